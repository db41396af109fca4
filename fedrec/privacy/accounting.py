"""Epsilon of a schedule of noisy sums, computed in independent ways that must agree.

The figure that fedrec reports is `dp_accounting`'s privacy loss distribution (PLD), discretised pessimistically: it
never under-reports. A Renyi accountant must lie above it and Opacus' PRV accountant beside it, or nothing is
reported. The central-limit approximation ("gdp" in other libraries) under-reports by up to a fifth and is refused;
the *exact* Gaussian formula for sums without sampling is a different thing and serves as a third check.

Sources: PLD: Koskela et al. 2020, arXiv:1906.03049, and Doroshenko et al. 2022, arXiv:2207.04380; PRV: Gopi et al.
2021, arXiv:2106.02848; RDP of the sampled Gaussian: Mironov et al. 2019, arXiv:1908.10530; exact Gaussian: Balle &
Wang 2018, arXiv:1805.06530, Theorem 8, and Dong et al. 2019, arXiv:1905.02383; a person in k shops: mixtures of
Gaussians as in Choquette-Choo et al. 2023, arXiv:2310.15526.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr, ndtri
from scipy.stats import binom

from fedrec.errors import AccountantsDisagree, BadAssumption, BadDelta, UnknownAccountant
from fedrec.privacy.mechanisms import PlannedRelease, Schedule

INTERVAL = 1e-3
"""Width of the PLD's steps in privacy loss."""
FINE_INTERVAL = 1e-4
"""Of the second PLD that checks the first where a person has accounts in several shops."""
MAX_DISTINCT = 40
"""Up to so many kinds of sampled sums are composed as they are; beyond, sigma is rounded down to steps of 1 %."""

_Groups = tuple[tuple[float, float, int], ...]
"""(sampling rate, noise multiplier, how many) of each kind of sum."""


@dataclass(frozen=True)
class Agreement:
    """What independent accountants say of one schedule; epsilon at the same delta.

    Attributes:
        pld: the figure that counts.
        rdp: Renyi; an upper bound, never below ``pld`` by more than its discretisation.
        prv: Opacus' numerical one; None where it cannot answer (it says so itself), then ``pld`` and ``rdp`` stand.
        exact: the closed form; None where any sum is sampled.
    """

    pld: float
    rdp: float
    prv: float | None
    exact: float | None


def epsilon(schedule: Schedule, delta: float, *, memberships: int = 1, accountant: str = "pld") -> float:
    """Epsilon at delta of all releases of a schedule, each noisy sum chosen after the ones before it.

    Args:
        schedule: the releases.
        delta: in (0, 1).
        memberships: k: for a person with accounts in k shops of the same sums, without clipping to C / k.
        accountant: ``pld`` (the figure), ``rdp`` or ``prv`` (checks, k = 1).
    Raises:
        UnknownAccountant: another name, among them "gdp".
        BadDelta, BadAssumption: out of range.
    Guarantee: with ``pld`` the schedule is (epsilon, delta)-DP for adding or removing one person with k accounts.
    """
    _check(schedule, delta, memberships)
    if accountant not in _ACCOUNTANTS:
        raise UnknownAccountant(
            f"accountant {accountant!r}: {_REASONS.get(accountant, 'unknown')}; give pld, rdp or prv"
        )
    if not schedule:
        return 0.0
    return _ACCOUNTANTS[accountant](_groups(schedule), delta, memberships)


def epsilon_after(schedule: Schedule, counts: Sequence[int], delta: float) -> dict[int, float]:
    """`epsilon` of the first so many releases, each composed onto those before it: once over the schedule in all.

    Args:
        schedule: the releases.
        counts: ascending, each from 1 to the number of releases.
        delta: in (0, 1).
    """
    from dp_accounting.pld import privacy_loss_distribution as distributions

    _check(schedule, delta, 1)
    sampled = distributions.identity(value_discretization_interval=INTERVAL)
    mu_squared, done, found = 0.0, 0, {}
    for count in counts:
        for rate, sigma, number in _groups(schedule[done:count]):
            if rate == 1:
                mu_squared += sigma**-2
            else:
                sampled = sampled.compose(_gaussian(sigma, rate).self_compose(number))
        whole = sampled.compose(_gaussian(mu_squared**-0.5, 1.0)) if mu_squared else sampled
        found[count], done = float(whole.get_epsilon_for_delta(delta)), count
    return found


def delta_at(schedule: Schedule, epsilon: float, *, memberships: int = 1) -> float:
    """Delta at epsilon by the PLD.

    Raises:
        BadAssumption: epsilon is below 0 or not a number, or memberships below 1.
    """
    _check(schedule, 0.5, memberships)
    if not 0 <= epsilon < math.inf:
        raise BadAssumption(f"epsilon = {epsilon}: give a number of at least 0")
    return 0.0 if not schedule else float(_pld(_groups(schedule), memberships, INTERVAL).get_delta(epsilon))


def check_accountants(schedule: Schedule, delta: float) -> Agreement:
    """Ask every accountant, and refuse where they disagree.

    Raises:
        AccountantsDisagree: Renyi below PLD by more than max(1e-3, 0.1 %), PRV away from it by more than
            max(0.02, 0.5 %), or the closed form above it by more than 1e-9 or below it by more than max(0.01, 1 %).
    """
    found = Agreement(
        pld=epsilon(schedule, delta),
        rdp=epsilon(schedule, delta, accountant="rdp"),
        prv=_prv_if_it_can(schedule, delta),
        exact=exact_epsilon(mu, delta) if (mu := gdp_mu(schedule)) is not None else None,
    )
    findings = []
    if not found.rdp >= found.pld - max(1e-3, 1e-3 * found.pld):
        findings.append(f"Renyi says {found.rdp:.4f}")
    if found.prv is not None and not abs(found.prv - found.pld) <= max(0.02, 5e-3 * found.pld):
        findings.append(f"PRV says {found.prv:.4f}")
    if found.exact is not None and not -1e-9 <= found.pld - found.exact <= max(0.01, 0.01 * found.exact):
        findings.append(f"the closed form says {found.exact:.4f}")
    if findings:
        raise AccountantsDisagree(
            f"epsilon is {found.pld:.4f} by PLD, but {' and '.join(findings)}: nothing is reported; check the "
            "versions of dp-accounting and opacus"
        )
    return found


def check_memberships(schedule: Schedule, delta: float, memberships: int) -> float:
    """Epsilon for a person in k shops, once more with ten times finer steps (minutes where many sums are sampled).

    Raises:
        AccountantsDisagree: the two differ by more than max(0.02, 0.5 %).
    """
    coarse = epsilon(schedule, delta, memberships=memberships)
    fine = float(_pld(_groups(schedule), memberships, FINE_INTERVAL).get_epsilon(delta)) if schedule else 0.0
    if not abs(coarse - fine) <= max(0.02, 5e-3 * fine):
        raise AccountantsDisagree(
            f"epsilon for {memberships} accounts is {coarse:.4f}, with finer steps {fine:.4f}: nothing is reported"
        )
    return coarse


def gdp_mu(schedule: Schedule) -> float | None:
    """mu of the exact Gaussian trade-off of all releases together: sqrt(sum of 1 / sigma^2); None if any is sampled."""
    if any(release.sampling_rate != 1 for release in schedule):
        return None
    return math.sqrt(math.fsum(release.num_sums * release.noise_multiplier**-2 for release in schedule))


def exact_epsilon(mu: float, delta: float) -> float:
    """Epsilon at delta of a mu-Gaussian mechanism, to 1e-10 on the safe side."""
    if mu == 0 or exact_delta(mu, 0.0) <= delta:
        return 0.0
    high = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + 1
    return float(brentq(lambda eps: _log_delta(mu, eps) - math.log(delta), 0.0, high, xtol=1e-11)) + 1e-10


def exact_delta(mu: float, epsilon: float) -> float:
    """Delta at epsilon of a mu-Gaussian mechanism."""
    return math.exp(_log_delta(mu, epsilon)) if mu > 0 else 0.0


def trade_off(schedule: Schedule, false_positive_rates: np.ndarray) -> np.ndarray:
    """The least rate at which an attacker overlooks a shopper, for each rate at which he suspects one in vain.

    Args:
        schedule: the releases; the attacker knows everything but whether one shopper is in the data.
        false_positive_rates: float64 (num_rates,), in [0, 1].
    Returns:
        false negative rates, float64 (num_rates,): nobody can be below them, whatever he computes.
    Source: Dong et al. 2019, arXiv:1905.02383, eq. 5 for Gaussians and Proposition 2.5 for (epsilon, delta) curves.
    """
    rates = np.asarray(false_positive_rates, np.float64)
    if (mu := gdp_mu(schedule)) is not None:
        with np.errstate(over="ignore"):
            return ndtr(ndtri(1 - rates) - mu)
    epsilons = np.concatenate([[0.0], np.geomspace(1e-2, 60, 200)])
    deltas = np.array([delta_at(schedule, float(eps)) for eps in epsilons])
    one = 1 - deltas[:, None] - np.exp(epsilons)[:, None] * rates
    other = np.exp(-epsilons)[:, None] * (1 - deltas[:, None] - rates)
    return np.maximum(np.maximum(one, other).max(axis=0), 0.0)


def best_accuracy(schedule: Schedule) -> float:
    """The best share of right answers to "was she there?" after a fair coin: (1 + delta at epsilon 0) / 2."""
    if (mu := gdp_mu(schedule)) is not None:
        return float(ndtr(mu / 2))
    return (1 + delta_at(schedule, 0.0)) / 2


def posterior(prior: float, epsilon: float) -> float:
    """What an attacker who believed ``prior`` may believe after seeing everything, but with probability delta.

    Raises:
        BadAssumption: prior is not in (0, 1).
    """
    if not 0 < prior < 1:
        raise BadAssumption(f"prior = {prior}: give a probability between 0 and 1")
    return 1 / (1 + (1 - prior) / prior * math.exp(-epsilon))


def _log_delta(mu: float, epsilon: float) -> float:
    """log(Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu)), stable for small results."""
    above = log_ndtr(mu / 2 - epsilon / mu)
    below = epsilon + log_ndtr(-mu / 2 - epsilon / mu)
    gap = min(below - above, -1e-300)
    return float(above + math.log(-math.expm1(gap)))


def _groups(schedule: Schedule) -> _Groups:
    """Equal sums together, local steps one by one; all sums without sampling are one Gaussian, exactly."""
    mu_squared = math.fsum(one.num_sums * one.noise_multiplier**-2 for one in schedule if one.sampling_rate == 1)
    sampled: Counter[tuple[float, float]] = Counter()
    for one in schedule:
        if one.sampling_rate != 1:
            sampled[one.sampling_rate, one.noise_multiplier] += one.num_sums
    if len(sampled) > MAX_DISTINCT:
        rounded: Counter[tuple[float, float]] = Counter()
        for (rate, sigma), count in sampled.items():
            rounded[rate, 1.01 ** math.floor(math.log(sigma) / math.log(1.01))] += count
        sampled = rounded
    whole = ((1.0, mu_squared**-0.5, 1),) if mu_squared else ()
    return (*whole, *((rate, sigma, count) for (rate, sigma), count in sorted(sampled.items())))


def _event(rate: float, sigma: float, memberships: int) -> Any:
    """One sum as `dp_accounting` sees it, for a person who is in it ``memberships`` times."""
    from dp_accounting import dp_event

    if rate == 1:
        return dp_event.GaussianDpEvent(sigma / memberships)
    if memberships == 1:
        return dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma))
    times = list(range(memberships + 1))
    return dp_event.MixtureOfGaussiansDpEvent(sigma, times, binom.pmf(times, memberships, rate).tolist())


@lru_cache(maxsize=8)
def _gaussian(sigma: float, rate: float) -> Any:
    """Privacy loss of one sum."""
    from dp_accounting.pld import privacy_loss_distribution as distributions

    return distributions.from_gaussian_mechanism(sigma, value_discretization_interval=INTERVAL, sampling_prob=rate)


@lru_cache(maxsize=256)
def _pld(groups: _Groups, memberships: int, interval: float) -> Any:
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=interval)
    for rate, sigma, count in groups:
        accountant.compose(_event(rate, sigma, memberships), count)
    return accountant


def _pld_epsilon(groups: _Groups, delta: float, memberships: int) -> float:
    return float(_pld(groups, memberships, INTERVAL).get_epsilon(delta))


def _rdp_epsilon(groups: _Groups, delta: float, memberships: int) -> float:
    from dp_accounting.rdp import RdpAccountant

    _only_one(memberships, "rdp")
    accountant = RdpAccountant()
    with warnings.catch_warnings():  # at tiny epsilons the best order is the largest one: loose, but still a bound
        warnings.simplefilter("ignore")
        for rate, sigma, count in groups:
            accountant.compose(_event(rate, sigma, 1), count)
        return float(accountant.get_epsilon(delta))


def _prv_epsilon(groups: _Groups, delta: float, memberships: int) -> float:
    from opacus.accountants import PRVAccountant

    _only_one(memberships, "prv")
    accountant = PRVAccountant()
    accountant.history = [(sigma, rate, count) for rate, sigma, count in groups]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # it takes logarithms of 0 and leaves them out
        return float(accountant.get_epsilon(delta))


def _prv_if_it_can(schedule: Schedule, delta: float) -> float | None:
    """Opacus refuses extreme ranges with RuntimeError ("discrete mean differs") or a grid too large."""
    try:
        value = epsilon(schedule, delta, accountant="prv")
    except (RuntimeError, ValueError, MemoryError, OverflowError):
        return None
    return value if math.isfinite(value) else None


_ACCOUNTANTS: Mapping[str, Callable[[_Groups, float, int], float]] = {
    "pld": _pld_epsilon,
    "rdp": _rdp_epsilon,
    "prv": _prv_epsilon,
}
_REASONS = {
    "gdp": "the central-limit approximation under-reports by up to a fifth",
    "clt": "the central-limit approximation under-reports by up to a fifth",
}


def _only_one(memberships: int, accountant: str) -> None:
    if memberships != 1:
        raise BadAssumption(f"accountant {accountant!r} counts one membership, not {memberships}: use pld")


def _check(schedule: Schedule, delta: float, memberships: int) -> None:
    if not 0 < delta < 1:
        raise BadDelta(f"delta = {delta}: give a number between 0 and 1")
    if not (isinstance(memberships, int) and memberships >= 1):
        raise BadAssumption(f"memberships = {memberships}: give a whole number of at least 1")
    for one in schedule:
        _check_release(one)


def _check_release(one: PlannedRelease) -> None:
    if not 0 < one.noise_multiplier < math.inf:
        raise BadAssumption(f"noise multiplier of {one.name!r} = {one.noise_multiplier}: give a number above 0")
    if not 0 < one.sampling_rate <= 1:
        raise BadAssumption(f"sampling rate of {one.name!r} = {one.sampling_rate}: give a number above 0, at most 1")
    if not (type(one.local_steps) is int and one.local_steps >= 0):
        raise BadAssumption(f"local_steps of {one.name!r} = {one.local_steps!r}: give a whole number of at least 0")
