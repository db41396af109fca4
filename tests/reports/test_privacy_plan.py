"""What a promise costs before any data is touched."""

from __future__ import annotations

import math

import pytest

from fedrec.errors import BadAssumption, BadDelta, BadEpsilon, NoColluders, TooFewHonestShops
from fedrec.privacy import accounting
from fedrec.privacy.settings import PrivacySettings
from fedrec.privacy.spec import Mode
from fedrec.reports.privacy_plan import Question, alternatives, answer, expected_gain, largest_delta, usefulness


def ask(epsilon=2.0, rounds=2, shoppers=6039, shops=10, delta=1e-5, items=3628, **settings) -> Question:
    return Question(PrivacySettings(epsilon=epsilon, delta=delta, **settings), rounds, shoppers, shops, items)


PAPER = {"colluders": 0, "benchmark": True}


def test_the_noise_keeps_the_promise_and_no_more():
    plan = answer(ask(rounds=5))
    mu = math.sqrt(sum(one.repeats / one.sigma**2 for one in plan.sums))
    assert accounting.exact_epsilon(mu, 1e-5) == pytest.approx(2, rel=2e-3)
    assert plan.epsilon_by_accounts[1] <= 2
    assert sum(one.share for one in plan.sums) == pytest.approx(1)
    assert [(one.name, one.repeats) for one in plan.sums] == [("popularity", 1), ("statistics", 4)]


def test_one_round_has_no_split():
    [one] = answer(ask(rounds=1)).sums
    assert (one.name, one.share) == ("statistics", 1)
    assert one.sigma == pytest.approx(1.99, abs=0.02)  # the analytic Gaussian at epsilon 2, delta 1e-5


def test_shops_share_noise_in_distributed_mode_alone():
    shared, alone = answer(ask()), answer(ask(mode=Mode.LOCAL))
    assert shared.spec.min_shops == 8
    assert shared.sums[1].of_each_shop == pytest.approx(shared.sums[1].sigma / math.sqrt(7))
    assert shared.sums[1].of_the_sum == pytest.approx(shared.sums[1].sigma * math.sqrt(10 / 7))
    assert alone.sums[1].of_each_shop == alone.sums[1].sigma
    assert alone.sums[1].of_the_sum == pytest.approx(alone.sums[1].sigma * math.sqrt(10))


@pytest.mark.parametrize(("epsilon", "reached"), [(1, 0.286), (2, 0.315), (4, 0.343), (8, 0.355)])
def test_the_expectation_is_near_what_the_shared_model_reached(epsilon, reached):
    gain = (reached - 0.187) / (0.404 - 0.187)
    assert answer(ask(epsilon, **PAPER)).expectation.gain == pytest.approx(gain, abs=0.07)


@pytest.mark.parametrize(("epsilon", "reached"), [(1, 0.223), (2, 0.257), (4, 0.287), (8, 0.309)])
def test_the_expectation_is_near_what_full_noise_in_each_shop_reached(epsilon, reached):
    gain = (reached - 0.187) / (0.404 - 0.187)
    assert answer(ask(epsilon, mode=Mode.LOCAL)).expectation.gain == pytest.approx(gain, abs=0.07)


@pytest.mark.parametrize(("epsilon", "reached"), [(1, 0.145), (2, 0.200), (4, 0.233), (8, 0.260)])
def test_the_expectation_is_near_what_one_small_shop_reached(epsilon, reached):
    gain = max(0.0, (reached - 0.187) / (0.404 - 0.187))
    found = answer(ask(epsilon, shoppers=604, shops=1, mode=Mode.LOCAL)).expectation
    assert found.gain == pytest.approx(gain, abs=0.07)


def test_more_signal_never_promises_less():
    gains = [expected_gain(10 ** (power / 10)) for power in range(-20, 60)]
    assert gains == sorted(gains)
    assert (gains[0], gains[-1]) == (0, 0.77)


@pytest.mark.parametrize(
    ("gain", "words"),
    [(0.0, "popularity only"), (0.1, "strongest tastes"), (0.3, "up to half of the gain"), (0.6, "most of the gain")],
)
def test_the_gain_in_words(gain, words):
    assert usefulness(gain) == words


def test_more_shoppers_fewer_rounds_and_epsilon_help_and_full_noise_does_not():
    rows = {name: found for name, found, _ in alternatives(ask(rounds=5, delta=1e-6))}
    asked = rows.pop("as asked").gain
    assert rows.pop("mode local").gain < asked
    assert set(rows) == {"2 times the shoppers", "10 times the shoppers", "2 rounds", "1 round", "ε 4"}
    assert all(found.gain > asked for found in rows.values())


def test_more_shoppers_get_the_delta_that_they_may_have():
    deltas = {name: delta for name, _, delta in alternatives(ask(shoppers=6000, delta=1e-5))}
    assert deltas["as asked"] == 1e-5
    assert deltas["10 times the shoppers"] == pytest.approx(1 / 600_000)


def test_too_few_shops_are_not_told_to_share_noise():
    names = [name for name, _, _ in alternatives(ask(shops=2, mode=Mode.LOCAL))]
    assert "mode distributed" not in names


def test_clipping_for_two_shops_halves_the_signal():
    one, two = answer(ask()), answer(ask(max_shops_per_person=2))
    assert two.expectation.ratio == pytest.approx(one.expectation.ratio / 2)
    assert two.epsilon_by_accounts[2] == pytest.approx(one.epsilon_by_accounts[1], rel=1e-3)


def test_a_small_catalogue_is_easier():
    assert answer(ask(items=75)).expectation.ratio == pytest.approx(2 * answer(ask(items=300)).expectation.ratio)


@pytest.mark.parametrize(
    ("error", "settings"),
    [
        (BadEpsilon, {"epsilon": 0.0}),
        (BadEpsilon, {"epsilon": float("nan")}),
        (BadDelta, {"delta": 1.7e-5, "shoppers": 6000}),
        (BadDelta, {"delta": 0.0}),
        (BadAssumption, {"rounds": 0}),
        (BadAssumption, {"shoppers": 0}),
        (BadAssumption, {"shops": 0}),
        (BadAssumption, {"items": 1}),
        (BadAssumption, {"min_shops": 11}),
        (TooFewHonestShops, {"shops": 2}),
        (TooFewHonestShops, {"min_shops": 3, "colluders": 3}),
        (NoColluders, {"colluders": 0}),
    ],
)
def test_what_cannot_be_promised_is_refused(error, settings):
    with pytest.raises(error):
        answer(ask(**settings))


def test_the_largest_delta_is_a_tenth_of_a_shopper():
    assert largest_delta(6000) == pytest.approx(1 / 60_000)
    with pytest.raises(BadAssumption):
        largest_delta(0)
