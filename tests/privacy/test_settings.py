"""What a scenario promises, once the federation's public numbers are known."""

import pytest

from fedrec.errors import (
    BadAssumption,
    BadDelta,
    BadEpsilon,
    ConfigError,
    NoColluders,
    TooFewHonestShops,
)
from fedrec.privacy.settings import PrivacySettings, epsilon_name, least_masked
from fedrec.privacy.spec import Mode, PrivacySpec
from fedrec.secure_aggregation.parameters import usual_threshold

LOCAL = Mode.LOCAL


def spec_of(
    num_shops: int = 10,
    num_shoppers: int = 6040,
    least_answers: int | None = None,
    is_masked: bool = False,
    **settings: object,
) -> PrivacySpec:
    wanted = PrivacySettings(**{"epsilon": 2.0, "delta": 1e-6, **settings})  # type: ignore[arg-type]
    return wanted.spec(
        2.0, num_shops=num_shops, num_shoppers=num_shoppers, least_answers=least_answers, is_masked=is_masked
    )


def test_without_epsilon_nothing_is_promised() -> None:
    assert PrivacySettings().epsilons == ()
    assert PrivacySettings(delta=1e-6).epsilons == ()


def test_one_epsilon_or_several_are_given_alike() -> None:
    assert PrivacySettings(epsilon=2.0, delta=1e-6).epsilons == (2.0,)
    assert PrivacySettings(epsilon=(4.0, 0.5), delta=1e-6).epsilons == (4.0, 0.5)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf"), 51, (), (1.0, 0.0), (2.0, 2.0), (2, 1e9)])
def test_an_epsilon_that_promises_nothing_is_refused(epsilon: object) -> None:
    with pytest.raises(BadEpsilon):
        PrivacySettings(epsilon=epsilon, delta=1e-6)  # type: ignore[arg-type]


def test_an_epsilon_without_delta_is_refused_with_what_to_give() -> None:
    with pytest.raises(ConfigError, match=r"epsilon = 2 without delta: give --delta or privacy\.delta"):
        PrivacySettings(epsilon=2.0)


@pytest.mark.parametrize("delta", [0.0, -1e-6, 0.2, float("nan")])
def test_a_delta_that_fits_no_federation_is_refused_before_data_is_read(delta: float) -> None:
    with pytest.raises(BadDelta):
        PrivacySettings(epsilon=2.0, delta=delta)


def test_a_delta_too_large_for_the_shoppers_is_refused() -> None:
    with pytest.raises(BadDelta, match="6,000 public shoppers"):
        spec_of(delta=1e-4)


@pytest.mark.parametrize(
    ("num_shops", "fewest"), [(3, 3), (4, 4), (5, 4), (7, 6), (10, 8), (11, 9), (30, 24), (100, 80)]
)
def test_shared_noise_counts_on_four_of_five_shops_and_three_at_least(num_shops: int, fewest: int) -> None:
    assert spec_of(num_shops).min_shops == fewest


@pytest.mark.parametrize("num_shops", [1, 2])
def test_shared_noise_among_fewer_than_three_shops_is_refused_and_local_noise_is_not(num_shops: int) -> None:
    with pytest.raises(TooFewHonestShops, match="--privacy-mode local"):
        spec_of(num_shops)
    assert spec_of(num_shops, mode=LOCAL).min_shops == 1
    assert spec_of(num_shops, mode=LOCAL).noise_divisor == 1


def test_a_benchmark_counts_on_all_shops_and_says_so() -> None:
    spec = spec_of(benchmark=True, colluders=0)
    assert (spec.min_shops, spec.colluders, spec.is_benchmark) == (10, 0, True)
    assert spec.noise_divisor == pytest.approx(10**0.5)


def test_no_colluders_are_refused_but_for_a_benchmark() -> None:
    with pytest.raises(NoColluders):
        PrivacySettings(epsilon=2.0, delta=1e-6, colluders=0)
    assert PrivacySettings(epsilon=2.0, delta=1e-6, colluders=0, mode=LOCAL).colluders == 0


def test_colluders_that_leave_no_honest_shop_are_refused() -> None:
    with pytest.raises(TooFewHonestShops):
        PrivacySettings(epsilon=2.0, delta=1e-6, min_shops=3, colluders=3)
    with pytest.raises(TooFewHonestShops):
        spec_of(5, colluders=5)


def test_the_fewest_shops_are_no_fewer_than_the_federation_demands_and_no_more_than_there_are() -> None:
    assert spec_of(10, least_answers=9).min_shops == 9
    assert spec_of(10, least_answers=2, mode=LOCAL).min_shops == 2
    assert spec_of(10, min_shops=6).min_shops == 6
    for change in ({"min_shops": 11}, {"min_shops": 6, "least_answers": 7}):
        with pytest.raises(BadAssumption, match=r"privacy\.min_shops"):
            spec_of(10, **change)
    with pytest.raises(BadAssumption, match=r"federation\.min_shops = 11: there are 10 shops"):
        spec_of(10, least_answers=11)


def test_a_sum_of_fewer_shops_than_masks_allow_is_refused_with_what_to_give() -> None:
    with pytest.raises(BadAssumption, match=r"privacy\.min_shops = 5: .* give 6 to 10"):
        spec_of(10, min_shops=5)
    with pytest.raises(BadAssumption, match=r"privacy\.min_shops = 5: .* give 6 to 10"):
        spec_of(10, min_shops=5, mode=LOCAL, is_masked=True)
    assert spec_of(10, min_shops=5, mode=LOCAL).min_shops == 5


def test_masks_under_local_noise_count_on_four_of_five_shops_too() -> None:
    assert spec_of(10, mode=LOCAL, is_masked=True).min_shops == 8
    assert spec_of(2, mode=LOCAL, is_masked=True).min_shops == 2
    with pytest.raises(TooFewHonestShops, match=r"federation\.secure"):
        spec_of(1, mode=LOCAL, is_masked=True)


@pytest.mark.parametrize(("num_shops", "colluders", "fewest"), [(5, 3, 5), (5, 4, 5), (10, 6, 9), (10, 2, 8)])
def test_more_colluders_call_for_more_shops(num_shops: int, colluders: int, fewest: int) -> None:
    assert spec_of(num_shops, colluders=colluders).min_shops == fewest


def test_what_masks_need_is_the_rule_of_secure_aggregation() -> None:
    for num_shops in range(2, 40):
        for colluders in range(num_shops):
            assert least_masked(num_shops, colluders) == usual_threshold(num_shops, colluders)


@pytest.mark.parametrize(
    ("num_shoppers", "public", "most"), [(6040, 6000, 7000), (7, 7, 7), (9501, 10_000, 10_000), (100, 100, 100)]
)
def test_the_datas_own_number_counts_as_declared_to_one_digit_with_a_bound_that_holds(
    num_shoppers: int, public: int, most: int
) -> None:
    spec = spec_of(num_shoppers=num_shoppers)
    assert (spec.public_shoppers, spec.max_shoppers) == (public, most)
    assert most >= num_shoppers


def test_declared_numbers_are_taken_as_they_are() -> None:
    spec = spec_of(public_shoppers=500, max_shoppers=20_000, max_shops_per_person=2)
    assert (spec.public_shoppers, spec.max_shoppers, spec.max_shops_per_person) == (500, 20_000, 2)
    for change in ({"public_shoppers": 0}, {"public_shoppers": 10, "max_shoppers": 9}, {"max_shops_per_person": 0}):
        with pytest.raises(BadAssumption):
            spec_of(**change)


@pytest.mark.parametrize("draws", [0, -1, 1001])
def test_a_number_of_draws_out_of_range_is_refused(draws: int) -> None:
    with pytest.raises(ConfigError, match="noise_draws"):
        PrivacySettings(noise_draws=draws)


@pytest.mark.parametrize(("epsilon", "name"), [(2.0, "2"), (0.5, "0.5"), (10.0, "10")])
def test_an_epsilon_is_named_as_people_write_it(epsilon: float, name: str) -> None:
    assert epsilon_name(epsilon) == name
