"""The hard stop across runs: what releases cost, and whether the budget covers one more.

Runs may be chosen after looking at the outputs of earlier ones, so their epsilons do not simply compose: a filter
bounds a sum that is fixed in advance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from scipy.special import gammaln, logsumexp

from fedrec.privacy.accounting import exact_delta, exact_epsilon
from fedrec.privacy.mechanisms import Schedule

_ORDERS = range(2, 513)


class Filter(Protocol):
    """Adds up costs and says when to stop."""

    def cost(self, schedule: Schedule) -> float:
        """Of all releases of a schedule."""

    def fits(self, spent: float, cost: float) -> bool:
        """Whether the budget covers both."""

    def epsilon(self, spent: float, delta: float) -> float:
        """Of everything spent, at delta."""


@dataclass(frozen=True)
class GdpFilter:
    """For releases without sampling: Gaussian mechanisms, whose squared mu = 1 / sigma add up exactly.

    Guarantee: releases chosen one after the other, while `fits`, are (epsilon, delta)-DP together.
    Source: Koskela, Tobaben, Honkela 2022, arXiv:2210.17520, Theorem 8 (fully adaptive GDP); Dong, Roth, Su 2019,
        arXiv:1905.02383, Corollary 2.13 for the conversion.
    """

    budget_epsilon: float
    budget_delta: float

    def cost(self, schedule: Schedule) -> float:
        """Sum of 1 / sigma^2 over all noisy sums; infinite where a release is sampled."""
        if any(release.sampling_rate != 1 for release in schedule):
            return math.inf
        return math.fsum(release.num_sums * release.noise_multiplier**-2 for release in schedule)

    def fits(self, spent: float, cost: float) -> bool:
        """Whether the budget covers both."""
        return _gdp_delta(spent + cost, self.budget_epsilon) <= self.budget_delta

    def epsilon(self, spent: float, delta: float) -> float:
        """Epsilon at delta."""
        if spent == 0:
            return 0.0
        return math.inf if math.isinf(spent) else exact_epsilon(math.sqrt(spent), delta)


@dataclass(frozen=True)
class RenyiFilter:
    """For releases of any kind: Renyi divergences at one order add up.

    Guarantee: releases chosen one after the other, while `fits`, are (epsilon, delta)-DP together.
    Source: Feldman, Zrnic 2021, arXiv:2008.11193, Theorem 4.3; Mironov, Talwar, Zhang 2019, arXiv:1908.10530, section
        3.3 for sampled Gaussians at whole orders; Canonne et al. 2020, arXiv:2004.00010, Proposition 12.
    """

    budget_epsilon: float
    budget_delta: float
    order: int

    def cost(self, schedule: Schedule) -> float:
        """Renyi divergences at the order, over all noisy sums."""
        return math.fsum(r.num_sums * _renyi(r.sampling_rate, r.noise_multiplier, self.order) for r in schedule)

    def fits(self, spent: float, cost: float) -> bool:
        """Whether the budget covers both."""
        return spent + cost + _conversion(self.order, self.budget_delta) <= self.budget_epsilon

    def epsilon(self, spent: float, delta: float) -> float:
        """Epsilon at delta."""
        return 0.0 if spent == 0 else max(0.0, spent + _conversion(self.order, delta))


def best_order(epsilon: float, delta: float) -> int:
    """The order at which a budget pays for most Gaussian releases."""
    return max(_ORDERS, key=lambda order: (epsilon - _conversion(order, delta)) / order)


def _gdp_delta(mu_squared: float, epsilon: float) -> float:
    if mu_squared == 0:
        return 0.0
    return 1.0 if math.isinf(mu_squared) else exact_delta(math.sqrt(mu_squared), epsilon)


def _renyi(q: float, sigma: float, order: int) -> float:
    if q == 1:
        return order / (2 * sigma**2)
    terms = [
        gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
        + (order - k) * math.log1p(-q) + k * math.log(q) + (k * k - k) / (2 * sigma**2)
        for k in range(order + 1)
    ]  # fmt: skip
    return max(0.0, float(logsumexp(terms)) / (order - 1))


def _conversion(order: int, delta: float) -> float:
    """What Renyi divergence at an order lacks to an epsilon at delta."""
    return math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
