"""Statistics of an audit: what noisy sums that were really drawn say about the epsilon that was claimed.

Nothing here draws or releases anything; `fedrec.simulation.audit` runs the real door and hands its numbers in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import binom, chi2

from fedrec.errors import BadAssumption
from fedrec.privacy.accounting import exact_epsilon

FALSE_ALARM = 1e-7
"""Chance that one test of a correct build fails."""
BOUND_CONFIDENCE = 0.95
"""Usual for the one-run bound that is printed; at small epsilons a correct build often lies above it by chance."""


@dataclass(frozen=True)
class Interval:
    """An estimate between two bounds that hold together with the probability 1 - `FALSE_ALARM`."""

    estimate: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether the value lies between the bounds."""
        return bool(self.low <= value <= self.high)


def mean_shift(scores: np.ndarray, is_inside: np.ndarray) -> Interval:
    """mu of the Gaussian trade-off, from the scores of canaries of which half were put in by coins.

    Args:
        scores: float64, (num_canaries,); each the better the more its canary seems to be in. Gaussian.
        is_inside: bool, (num_canaries,); whether it was.
    Returns:
        (mean inside - mean outside) / standard deviation around the two means, with its normal interval.
    Raises:
        BadAssumption: fewer than two canaries inside or outside.
    Source: Andrew et al. 2023, arXiv:2302.03098 (one-shot estimate); an estimate, not a bound: it takes the scores for
        Gaussian, which they are if the noise is.
    """
    inside, outside = scores[is_inside], scores[~is_inside]
    if min(len(inside), len(outside)) < 2:
        raise BadAssumption(f"{len(inside)} canaries inside, {len(outside)} outside: at least 2 of each are needed")
    spread = ((inside - inside.mean()) ** 2).sum() + ((outside - outside.mean()) ** 2).sum()
    sd = math.sqrt(spread / (len(scores) - 2))
    shift = float(inside.mean() - outside.mean())
    if sd == 0:
        mu = math.inf if shift > 0 else 0.0
        return Interval(mu, mu, mu)
    mu = shift / sd
    error = math.sqrt(1 / len(inside) + 1 / len(outside) + mu * mu / (2 * len(scores)))
    reach = float(-ndtri(FALSE_ALARM / 2)) * error
    return Interval(mu, mu - reach, mu + reach)


def epsilon_interval(mu: Interval, delta: float) -> Interval:
    """Epsilon at delta of a mu-Gaussian mechanism, for the estimate and its bounds."""
    return Interval(*(_epsilon(float(value), delta) for value in (mu.estimate, mu.low, mu.high)))


def _epsilon(mu: float, delta: float) -> float:
    return math.inf if math.isinf(mu) else exact_epsilon(max(mu, 0.0), delta)


@dataclass(frozen=True)
class Guesses:
    """How an attacker did who guessed about the canaries he was surest of.

    Attributes:
        num_canaries: m; each was put in by a fair coin.
        num_guesses: r, fixed before anything was seen.
        num_correct: v.
    """

    num_canaries: int
    num_guesses: int
    num_correct: int


def guess(scores: np.ndarray, is_inside: np.ndarray, num_guesses: int) -> Guesses:
    """Guess "in" for the highest scores and "out" for as many of the lowest; say nothing of the others.

    Raises:
        BadAssumption: an odd number of guesses, or more than canaries.
    """
    if num_guesses % 2 or not 2 <= num_guesses <= len(scores):
        raise BadAssumption(f"{num_guesses} guesses about {len(scores)} canaries: give an even number from 2")
    order = np.argsort(scores, kind="stable")
    half = num_guesses // 2
    correct = np.count_nonzero(~is_inside[order[:half]]) + np.count_nonzero(is_inside[order[-half:]])
    return Guesses(len(scores), num_guesses, int(correct))


def one_run_bound(guesses: Guesses, delta: float, *, confidence: float = BOUND_CONFIDENCE) -> float:
    """The least epsilon that so many correct guesses leave possible; rigorous whatever the scores are.

    Args:
        guesses: of one run.
        delta: at which epsilon is bounded.
        confidence: with which the bound holds.
    Guarantee: an (epsilon, delta)-DP mechanism gives a bound above epsilon with probability of at most 1 - confidence.
    Source: Steinke, Nasr, Jagielski 2023, arXiv:2305.08846, Theorem 5.2 (with its equation for delta > 0).
    """
    allowed = 1 - confidence
    if _chance_of(guesses, 0.0, delta) > allowed:
        return 0.0
    low, high = 0.0, 1.0
    while high < 64 and _chance_of(guesses, high, delta) <= allowed:
        low, high = high, 2 * high
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if _chance_of(guesses, middle, delta) <= allowed else (low, middle)
    return low


def _chance_of(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Bound on the probability of at least so many correct guesses under (epsilon, delta)-DP."""
    v, r = guesses.num_correct, guesses.num_guesses
    p = 1 / (1 + math.exp(-epsilon))
    beta = float(binom.sf(v - 1, r, p))
    if v == 0 or delta == 0:
        return min(1.0, beta)
    i = np.arange(1, v + 1)
    between = binom.cdf(v - 1, r, p) - binom.cdf(v - i - 1, r, p)  # P[v - i <= Bin <= v - 1]
    return min(1.0, beta + 2 * guesses.num_canaries * delta * float((between / i).max()))


def variance_ratio(differences: np.ndarray, expected_sd: float) -> Interval:
    """Variance of differences of two releases of equal data over what two independent noises would give.

    Args:
        differences: float64, (num_values,); Gaussian around 0 if all is well.
        expected_sd: standard deviation of one release's noise, in their units; > 0.
    Returns:
        mean square over 2 expected_sd^2, with the interval of a chi-squared variable. A correct build's holds 1.
    """
    n = len(differences)
    ratio = float(np.mean((differences / expected_sd) ** 2)) / 2
    low, high = chi2.ppf(1 - FALSE_ALARM / 2, n), chi2.ppf(FALSE_ALARM / 2, n)
    return Interval(ratio, ratio * n / float(low), ratio * n / float(high))


def moved_by(whole: np.ndarray, rest: np.ndarray, bound_units: float) -> float:
    """How far one shopper moved a vector of integers, as part of what she may: at most 1.

    Args:
        whole, rest: int64, (num_values,); with her and without, before noise.
        bound_units: the L2 sensitivity in grid units; > 0.
    """
    apart = (whole - rest).astype(object)  # Python's integers: no overflow, no rounding
    apart = apart[apart != 0]
    return math.sqrt(int((apart * apart).sum())) / bound_units if len(apart) else 0.0


def accuracy(num_correct: int, num_trials: int) -> Interval:
    """Share of correct answers with its Wilson interval.

    Raises:
        BadAssumption: no trials, or more correct than there were.
    """
    if not 0 <= num_correct <= num_trials or num_trials == 0:
        raise BadAssumption(f"{num_correct} correct of {num_trials}: give at least one trial")
    z = float(-ndtri(FALSE_ALARM / 2))
    share = num_correct / num_trials
    weight = 1 + z * z / num_trials
    middle = (share + z * z / (2 * num_trials)) / weight
    reach = z * math.sqrt(share * (1 - share) / num_trials + z * z / (4 * num_trials**2)) / weight
    return Interval(share, max(0.0, middle - reach), min(1.0, middle + reach))


def best_exchange_accuracy(mu: float) -> float:
    """Best chance to tell which of two equally likely histories a shopper has, under mu-Gaussian privacy.

    Exchanging a history is removing one shopper and adding another: 2 mu, and so Phi(2 mu / 2).
    """
    return float(ndtr(mu))
