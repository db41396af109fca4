"""The audit's statistics, on Gaussians whose parameters are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtri

from fedrec.errors import BadAssumption
from fedrec.privacy.accounting import exact_epsilon
from fedrec.privacy.audit import (
    FALSE_ALARM,
    Guesses,
    Interval,
    accuracy,
    best_exchange_accuracy,
    epsilon_interval,
    guess,
    mean_shift,
    moved_by,
    one_run_bound,
    variance_ratio,
)


def canaries(mu: float, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    is_inside = rng.random(size) < 0.5
    return 3 * (rng.normal(size=size) + mu * is_inside) + 7, is_inside


@pytest.mark.parametrize("mu", [0.1, 0.5, 2.0])
def test_the_mean_shift_holds_the_true_mu_whatever_scale_and_place(mu):
    found = mean_shift(*canaries(mu, 200_000, seed=1))
    assert found.holds(mu)
    assert not found.holds(mu / 0.7)
    assert found.high - found.low < 0.1


def test_the_mean_shift_misses_as_rarely_as_it_says():
    errors = []
    for seed in range(2000):
        found = mean_shift(*canaries(1.0, 400, seed))
        reach = (found.high - found.low) / 2
        errors.append((found.estimate - 1.0) / (reach / -ndtri(FALSE_ALARM / 2)))
    assert np.std(errors) == pytest.approx(1, abs=0.08)  # standard normal, 5 of its standard errors
    assert np.max(np.abs(errors)) < -ndtri(FALSE_ALARM / 2)


def test_scores_without_noise_shift_without_bound():
    assert mean_shift(np.array([0.0, 0, 1, 1]), np.array([False, False, True, True])).estimate == math.inf
    assert epsilon_interval(Interval(math.inf, math.inf, math.inf), 1e-5).low == math.inf


def test_epsilon_of_a_shift_is_that_of_the_gaussian_mechanism():
    found = epsilon_interval(Interval(0.5, -0.1, 0.6), 1e-5)
    assert found.estimate == exact_epsilon(0.5, 1e-5)
    assert found.low == 0
    assert found.high > found.estimate


@pytest.mark.parametrize(("count", "ceiling"), [(100, 3.49), (300, 4.59), (1000, 5.78)])
def test_all_guesses_correct_prove_what_the_theorem_says(count, ceiling):
    # (p^m = 0.05 solved for epsilon)
    by_hand = -math.log(0.05 ** (-1 / count) - 1)
    assert one_run_bound(Guesses(count, count, count), 0.0) == pytest.approx(by_hand, abs=1e-3)
    assert by_hand == pytest.approx(ceiling, abs=0.03)


def test_a_delta_above_zero_proves_less_and_chance_proves_nothing():
    guesses = Guesses(10_000, 200, 150)
    assert 0 < one_run_bound(guesses, 1e-6) < one_run_bound(guesses, 0.0)
    assert one_run_bound(Guesses(1000, 200, 100), 0.0) == 0
    assert one_run_bound(Guesses(1000, 200, 0), 1e-5) == 0


def test_the_bound_of_one_run_stays_below_the_truth():
    delta, mu = 1e-5, 0.8
    bounds = []
    for seed in range(30):
        scores, is_inside = canaries(mu, 5000, seed)
        bounds.append(one_run_bound(guess(scores, is_inside, 250), delta))
    assert max(bounds) < exact_epsilon(mu, delta)
    assert np.mean(bounds) > 0.5  # and says something


def test_guesses_are_about_the_surest_canaries():
    scores = np.array([5.0, -3, 0, 0.1, 9, -8])
    assert guess(scores, np.array([True, False, False, True, False, False]), 4).num_correct == 3


@pytest.mark.parametrize("num_guesses", [0, 3, 8])
def test_a_number_of_guesses_that_cannot_be_is_refused(num_guesses):
    with pytest.raises(BadAssumption, match="guesses"):
        guess(np.zeros(6), np.zeros(6, bool), num_guesses)


def test_too_few_canaries_are_refused():
    with pytest.raises(BadAssumption, match="canaries"):
        mean_shift(np.zeros(3), np.array([True, False, False]))


def test_independent_noise_gives_a_ratio_of_one_and_the_same_noise_zero():
    rng = np.random.default_rng(4)
    first, second = rng.normal(0, 5.0, (2, 20_000))
    assert variance_ratio(first - second, 5.0).holds(1.0)
    assert not variance_ratio(first - second, 5.0 / 0.7).holds(1.0)
    assert not variance_ratio(first - second, 5.0 / 1.1).holds(1.0)
    assert variance_ratio(first - first, 5.0).estimate == 0


def test_how_far_a_vector_moved_is_exact_for_large_integers():
    whole, rest = np.array([2**62, 3, 7]), np.array([-(2**62) + 1, 3, 7])
    assert moved_by(whole // 2, rest // 2, 2.0**62) == pytest.approx(1.0)
    assert moved_by(np.array([3, 4, 1]), np.array([0, 0, 1]), 5.0) == 1.0
    assert moved_by(rest, rest, 5.0) == 0


def test_the_share_of_right_answers_has_wilsons_interval():
    z = 5.3267  # of 10^-7, two-sided
    found = accuracy(50, 100)
    reach = z * math.sqrt(0.0025 + z * z / 40_000) / (1 + z * z / 100)
    assert (found.low, found.high) == pytest.approx((0.5 - reach, 0.5 + reach), abs=1e-4)
    assert accuracy(100, 100).high == 1.0
    for wrong in ((1, 0), (5, 4), (-1, 4)):
        with pytest.raises(BadAssumption):
            accuracy(*wrong)


def test_without_any_signal_the_best_attacker_flips_a_coin():
    assert best_exchange_accuracy(0.0) == 0.5
    assert best_exchange_accuracy(1.0) == pytest.approx(0.8413, abs=1e-4)
