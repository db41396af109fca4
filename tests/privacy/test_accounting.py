import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.errors import AccountantsDisagree, BadAssumption, BadDelta, UnknownAccountant
from fedrec.privacy import accounting
from fedrec.privacy.accounting import (
    best_accuracy,
    check_accountants,
    check_memberships,
    delta_at,
    epsilon,
    exact_delta,
    exact_epsilon,
    gdp_mu,
    posterior,
    trade_off,
)
from fedrec.privacy.ledger_filters import GdpFilter, RenyiFilter
from fedrec.privacy.mechanisms import PlannedRelease


def sums(sigma, rate=1.0, count=1):
    return (PlannedRelease("sum", 1.0, sigma, rate),) * count


@pytest.mark.parametrize(("sigma", "expected"), [(3.73, 1.0), (1.99, 2.0), (1.08, 4.0), (0.600, 8.0)])
def test_one_noisy_sum_costs_what_the_exact_gaussian_formula_says(sigma, expected):
    # noise multipliers of the analytic Gaussian mechanism at delta 1e-5 (Balle & Wang 2018), to three digits
    assert epsilon(sums(sigma), 1e-5) == pytest.approx(expected, rel=7e-3)
    assert 0 <= epsilon(sums(sigma), 1e-5) - exact_epsilon(1 / sigma, 1e-5) < 1e-4


@pytest.mark.parametrize(
    ("rate", "sigma", "count", "expected"),
    [(0.02, 1.0, 500, 2.77), (0.05, 2.0, 1000, 3.70), (0.1, 2.0, 500, 5.56), (0.05, 1.0, 1000, 10.99)],
)
def test_sampled_sums_cost_what_published_accountants_say(rate, sigma, count, expected):
    assert epsilon(sums(sigma, rate, count), 1e-5) == pytest.approx(expected, abs=0.011)


@settings(max_examples=25, deadline=None)
@given(
    sigmas=st.lists(st.floats(0.3, 50), min_size=1, max_size=6),
    delta=st.sampled_from([1e-9, 1e-6, 1e-4]),
)
def test_unequal_sums_without_sampling_cost_what_one_gaussian_of_their_joint_mu_costs(sigmas, delta):
    schedule = tuple(PlannedRelease(f"sum {i}", 1.0, sigma) for i, sigma in enumerate(sigmas))
    mu = math.sqrt(sum(sigma**-2 for sigma in sigmas))
    assert gdp_mu(schedule) == pytest.approx(mu)
    figure, exact = epsilon(schedule, delta), exact_epsilon(mu, delta)
    assert exact - 1e-9 <= figure <= exact + max(2e-3, 0.01 * exact)


def test_a_person_in_k_shops_moves_the_same_sum_k_times():
    for k in (1, 2, 3):
        assert epsilon(sums(1.99), 1e-5, memberships=k) == pytest.approx(epsilon(sums(1.99 / k), 1e-5))
    one, two = (epsilon(sums(2.0, 0.05, 20), 1e-5, memberships=k) for k in (1, 2))
    assert two > 1.5 * one


def test_finer_steps_agree_for_a_person_in_several_shops():
    assert check_memberships(sums(1.99), 1e-5, 3) == epsilon(sums(1.99), 1e-5, memberships=3)


@pytest.mark.parametrize("schedule", [sums(1.99), sums(0.1), sums(1.0, 0.02, 500)], ids=["one", "loud", "sampled"])
def test_independent_accountants_agree(schedule):
    found = check_accountants(schedule, 1e-5)
    assert found.prv is not None
    assert found.rdp >= found.pld


def test_accountants_that_disagree_stop_everything(monkeypatch):
    wrong = dict(accounting._ACCOUNTANTS) | {"prv": lambda groups, delta, memberships: 1.5}
    monkeypatch.setattr(accounting, "_ACCOUNTANTS", wrong)
    with pytest.raises(AccountantsDisagree, match="PRV"):
        check_accountants(sums(1.99), 1e-5)


def test_tiny_and_huge_epsilons_are_not_under_reported():
    for sigma in (0.05, 0.2, 30.0, 300.0, 3000.0):
        assert epsilon(sums(sigma), 1e-6) >= exact_epsilon(1 / sigma, 1e-6) - 1e-9
    assert exact_epsilon(1 / 3000, 1e-3) == 0


def test_hundreds_of_different_sums_are_rounded_to_more_cost_never_to_less():
    schedule = tuple(PlannedRelease("step", 1.0, 1.2 + 0.002 * i, 0.02) for i in range(60))
    every_one = sums(1.2, 0.02, 60)
    least = sums(1.2 + 0.002 * 59, 0.02, 60)
    assert epsilon(least, 1e-5) <= epsilon(schedule, 1e-5) <= epsilon(every_one, 1e-5) * 1.02


@pytest.mark.parametrize("name", ["gdp", "clt", "moments", ""])
def test_other_accountants_are_refused(name):
    with pytest.raises(UnknownAccountant):
        epsilon(sums(1.0), 1e-5, accountant=name)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, float("nan")])
def test_a_delta_that_is_no_probability_is_refused(delta):
    with pytest.raises(BadDelta):
        epsilon(sums(1.0), delta)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_noise_that_is_no_noise_is_refused(sigma):
    with pytest.raises(BadAssumption):
        epsilon(sums(sigma), 1e-5)


def test_delta_and_epsilon_are_each_others_inverse():
    eps = epsilon(sums(1.5), 1e-5)
    assert delta_at(sums(1.5), eps) == pytest.approx(1e-5, rel=0.02)
    assert exact_delta(1 / 1.5, exact_epsilon(1 / 1.5, 1e-7)) == pytest.approx(1e-7, rel=1e-6)


def test_the_trade_off_of_one_sum_is_the_gaussian_curve():
    rates = np.array([0.0, 0.05, 0.5, 1.0])
    missed = trade_off(sums(1.0), rates)
    # telling N(0, 1) from N(1, 1): at 5 % false alarms 74.05 % are overlooked, at 50 % 15.87 %
    np.testing.assert_allclose(missed, [1, 0.7405, 0.1587, 0], atol=1e-4)


def test_a_sampled_trade_off_lies_between_the_gaussian_and_knowing_nothing():
    rates = np.linspace(0, 1, 11)
    sampled = trade_off(sums(1.0, 0.2), rates)
    assert (sampled >= trade_off(sums(1.0), rates) - 1e-3).all()
    assert (sampled <= 1 - rates + 1e-9).all()
    assert sampled[5] < 0.5


def test_what_an_attacker_can_know():
    assert best_accuracy(sums(1.0)) == pytest.approx(0.6915, abs=1e-4)
    assert posterior(0.5, math.log(3)) == pytest.approx(0.75)
    assert posterior(0.01, 0.0) == pytest.approx(0.01)
    with pytest.raises(BadAssumption):
        posterior(1.0, 1.0)


def test_nothing_released_costs_nothing():
    assert epsilon((), 1e-5) == 0
    assert delta_at((), 0.0) == 0


@pytest.mark.parametrize(("sigma", "rate"), [(2.0, 1.0), (1.5, 0.3)])
@pytest.mark.parametrize("steps", [1, 7])
def test_steps_in_one_round_cost_what_as_many_rounds_cost(sigma, rate, steps):
    together, apart = (PlannedRelease("steps", 1.0, sigma, rate, local_steps=steps),), sums(sigma, rate, steps)
    assert check_accountants(together, 1e-6) == check_accountants(apart, 1e-6)
    assert gdp_mu(together) == gdp_mu(apart)
    assert delta_at(together, 1.0) == delta_at(apart, 1.0)
    assert best_accuracy(together) == best_accuracy(apart)
    assert epsilon(together, 1e-6, memberships=2) == epsilon(apart, 1e-6, memberships=2)
    for filter_ in (GdpFilter(3.0, 1e-6), RenyiFilter(3.0, 1e-6, 12)):
        assert filter_.cost(together) == pytest.approx(filter_.cost(apart), rel=1e-12)


@pytest.mark.parametrize("steps", [-1, 2.0, True, "3"])
def test_steps_that_are_no_number_of_steps_are_refused(steps):
    with pytest.raises(BadAssumption, match="local_steps"):
        epsilon((PlannedRelease("steps", 1.0, 2.0, local_steps=steps),), 1e-6)


def test_what_was_spent_after_each_release_is_what_its_schedule_costs():
    plain = PlannedRelease("popularity", 1.0, 6.0)
    sampled = [PlannedRelease("steps", 0.1, sigma, 0.5, local_steps=2) for sigma in (3.0, 3.0, 4.0)]
    schedule = (plain, *sampled, plain)
    found = accounting.epsilon_after(schedule, [1, 2, 4, 5], 1e-5)
    assert list(found) == [1, 2, 4, 5]
    for count, spent in found.items():
        assert spent == pytest.approx(epsilon(schedule[:count], 1e-5), rel=1e-6)
    assert accounting.epsilon_after(schedule, [], 1e-5) == {}
