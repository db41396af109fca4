from dataclasses import replace

import pytest

from fedrec.errors import BadAssumption, BadDelta, BadEpsilon, NoColluders, PrivacyError, TooFewHonestShops
from fedrec.privacy.spec import Mode, PrivacySpec, one_significant_digit

SPEC = PrivacySpec(
    epsilon=2.0, delta=1e-6, mode=Mode.DISTRIBUTED, public_shoppers=6000, max_shoppers=7000, min_shops=8, colluders=1
)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"epsilon": 0.0}, BadEpsilon),
        ({"epsilon": -1.0}, BadEpsilon),
        ({"epsilon": float("nan")}, BadEpsilon),
        ({"epsilon": float("inf")}, BadEpsilon),
        ({"epsilon": 50.1}, BadEpsilon),
        ({"delta": 0.0}, BadDelta),
        ({"delta": float("nan")}, BadDelta),
        ({"delta": 1.7e-5}, BadDelta),
        ({"colluders": 0}, NoColluders),
        ({"colluders": 8}, TooFewHonestShops),
        ({"min_shops": 1}, TooFewHonestShops),
        ({"min_shops": 0}, BadAssumption),
        ({"public_shoppers": 0}, BadAssumption),
        ({"max_shoppers": 5999}, BadAssumption),
        ({"max_shops_per_person": 0}, BadAssumption),
        ({"colluders": -1, "is_benchmark": True}, NoColluders),
    ],
    ids=str,
)
def test_each_broken_promise_has_its_own_error(change, error):
    with pytest.raises(error) as caught:
        replace(SPEC, **change)
    assert isinstance(caught.value, PrivacyError)


def test_the_largest_delta_is_a_tenth_of_one_over_the_shoppers():
    assert replace(SPEC, delta=1 / 60_000).delta == 1 / 60_000


def test_a_benchmark_may_count_on_everybody():
    benchmark = replace(SPEC, colluders=0, is_benchmark=True)
    assert benchmark.noise_divisor == pytest.approx(8**0.5)


def test_in_local_mode_every_shop_adds_all_the_noise_whatever_the_colluders():
    assert replace(SPEC, mode=Mode.LOCAL, min_shops=1, colluders=0).noise_divisor == 1


def test_noise_shares_count_on_honest_shops_alone():
    assert SPEC.noise_divisor == pytest.approx(7**0.5)


@pytest.mark.parametrize(("count", "declared"), [(0, 1), (7, 7), (94, 90), (95, 100), (6040, 6000), (1_000_000, 10**6)])
def test_shoppers_are_declared_to_one_digit(count, declared):
    assert one_significant_digit(count) == declared
