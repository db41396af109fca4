"""The filters' arithmetic against dp-accounting, and that they stop in time."""

from __future__ import annotations

import math

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from fedrec.privacy.ledger_filters import GdpFilter, RenyiFilter, best_order
from fedrec.privacy.mechanisms import PlannedRelease


@pytest.mark.parametrize(("q", "sigma", "order"), [(1.0, 2.0, 7), (0.3, 1.1, 2), (0.05, 0.9, 24), (0.9, 4.0, 60)])
def test_renyi_costs_are_those_of_dp_accounting(q, sigma, order):
    ours = RenyiFilter(1.0, 1e-5, order).cost((PlannedRelease("step", 3.0, sigma, q),) * 2)
    theirs = RdpAccountant([order])
    theirs.compose(PoissonSampledDpEvent(q, GaussianDpEvent(sigma)) if q < 1 else GaussianDpEvent(sigma), 2)
    assert ours == pytest.approx(theirs._rdp[0], rel=1e-9)
    assert RenyiFilter(1.0, 1e-5, order).epsilon(ours, 1e-5) == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-9)


@pytest.mark.parametrize(("sigmas", "delta"), [((2.0, 5.0), 1e-5), ((0.7,), 1e-6), ((30.0,) * 4, 1e-10)])
def test_epsilon_of_gaussian_releases_is_dp_accountings(sigmas, delta):
    filter_ = GdpFilter(1.0, delta)
    ours = filter_.epsilon(filter_.cost(tuple(PlannedRelease("a", 1.0, sigma) for sigma in sigmas)), delta)
    theirs = PLDAccountant(value_discretization_interval=1e-4)
    for sigma in sigmas:
        theirs.compose(GaussianDpEvent(sigma))
    assert ours <= theirs.get_epsilon(delta) <= ours + 2e-3


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-6), (2.0, 1e-5), (10.0, 1e-8)])
def test_what_fits_is_within_the_budget_and_a_little_more_is_not(epsilon, delta):
    order = best_order(epsilon, delta)
    for filter_ in (GdpFilter(epsilon, delta), RenyiFilter(epsilon, delta, order)):
        low, high = 0.0, 1000.0
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if filter_.fits(middle / 2, middle / 2) else (low, middle)
        assert filter_.epsilon(low, delta) == pytest.approx(epsilon, rel=1e-6)
        assert not filter_.fits(low, 0.001 * low)
        assert filter_.fits(0.0, 0.0)


def test_the_best_order_pays_for_most():
    best = best_order(2.0, 1e-5)

    def most(order):
        """Largest mu^2 that fits."""
        gain = 2.0 - RenyiFilter(2.0, 1e-5, order).epsilon(1e-12, 1e-5)
        return gain / order

    assert most(best) == max(most(order) for order in range(2, 200))


def test_sampling_is_nothing_for_the_gaussian_filter():
    filter_ = GdpFilter(100.0, 0.5)
    assert filter_.cost((PlannedRelease("step", 1.0, 5.0, 0.999),)) == math.inf
    assert not filter_.fits(0.0, math.inf)
    assert filter_.epsilon(math.inf, 0.5) == math.inf
