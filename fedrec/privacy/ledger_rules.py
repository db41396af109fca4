"""What a ledger allows: the filter over a period's releases, the cap on repeats, and what a lost copy has spent."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedrec.errors import BudgetExhausted, LedgerTampered, TooManyAborts
from fedrec.privacy import accounting
from fedrec.privacy.ledger_account import Account
from fedrec.privacy.ledger_entries import Budget, Costs, Counting, Entry, Head, Period, total
from fedrec.privacy.ledger_filters import GdpFilter, RenyiFilter, best_order
from fedrec.privacy.mechanisms import Schedule
from fedrec.privacy.spec import Mode

_SAME_COST = 1e-9
"""Relative: machines may differ in the last digits of a logarithm."""


@dataclass(frozen=True)
class Spent:
    """A ledger in figures.

    Attributes:
        budget: of the shop.
        counting: the filter that bounds the current period; None = nothing released or reserved in it.
        epsilon: charged in the current period, at the budget's delta.
        committed_epsilon: with what unfinished runs have reserved.
        lifetime_epsilon: charged ever, at the same delta; what a shopper of all the years has to know.
        period_costs, lifetime_costs, outstanding_costs, recovered_costs: the same in the filters' units.
        years: budget years begun.
        num_charges, num_aborts: releases, and those that repeated a round.
        is_deployable: False if a run was a benchmark's, or its noise was seeded: then no guarantee holds for it.
        rollback_detectable: somebody outside keeps this ledger's head.
    """

    budget: Budget
    counting: Counting | None
    epsilon: float
    committed_epsilon: float
    lifetime_epsilon: float
    period_costs: Costs
    lifetime_costs: Costs
    outstanding_costs: Costs
    recovered_costs: Costs
    years: int
    num_charges: int
    num_aborts: int
    is_deployable: bool
    rollback_detectable: bool


def opening(budget: Budget) -> dict[str, Any]:
    """What the first entry says; the nonce tells a ledger from another one that began at the same instant."""
    about = {
        "epsilon": budget.epsilon,
        "delta": budget.delta,
        "period": str(budget.period),
        "max_aborts": budget.max_aborts,
    }
    return {"budget": about, "order": best_order(budget.epsilon, budget.delta), "nonce": secrets.token_hex(16)}


def budget_of(account: Account) -> Budget:
    """The budget of the first entry."""
    if account.budget is None:
        raise LedgerTampered(f"the ledger of shop {account.shop!r} has lost its first entry")
    return account.budget


def costs_of(account: Account, schedule: Schedule) -> tuple[Costs, ...]:
    """What each release of a schedule costs."""
    gdp, renyi = _filters(account, 0.0)
    return tuple(Costs(gdp.cost((release,)), renyi.cost((release,))) for release in schedule)


def epsilon(account: Account, costs: Costs) -> float:
    """Of costs, at the budget's delta: exact where nothing was sampled, else at the ledger's Renyi order."""
    budget, (gdp, renyi) = budget_of(account), _filters(account, 0.0)
    if math.isfinite(costs.gdp):
        return gdp.epsilon(costs.gdp, budget.delta)
    return renyi.epsilon(costs.renyi, budget.delta)


def figures(account: Account, *, rollback_detectable: bool) -> Spent:
    """An account in figures."""
    runs, outstanding = account.runs.values(), account.outstanding
    now, committed = epsilon(account, account.spent), epsilon(account, account.spent + outstanding)
    lifetime = epsilon(account, account.lifetime)
    if account.counting is Counting.FIXED and not account.was_recovered:
        now, committed = _fixed_epsilons(account)
        lifetime = now if account.lifetime == account.spent else lifetime
    return Spent(
        budget=budget_of(account),
        counting=account.counting,
        epsilon=now,
        committed_epsilon=committed,
        lifetime_epsilon=lifetime,
        period_costs=account.spent,
        lifetime_costs=account.lifetime,
        outstanding_costs=outstanding,
        recovered_costs=account.recovered,
        years=account.years,
        num_charges=sum(len(plans) for run in runs for plans in run.charged.values()),
        num_aborts=sum(run.num_aborts for run in runs),
        is_deployable=all(run.is_deployable for run in runs),
        rollback_detectable=rollback_detectable,
    )


def choose_counting(
    account: Account, run_id: str, schedule: Schedule, costs: Sequence[Costs], residual_delta: float
) -> Counting:
    """What will bound the period once this run is in it.

    The kind of filter is settled by a period's first run, before anything of the period was seen, and stays. Were it
    chosen on the way, each choice would be a branch with a delta of its own, and they add up.

    Raises:
        BudgetExhausted: the budget does not cover the run.
    Guarantee: with everything that was charged or reserved in the period, the run's releases stay within the budget.
    Source: see `fedrec.privacy.ledger_filters`; a period's only run needs no filter, since its schedule is fixed.
    """
    counting, asked = account.counting, total(costs)
    if counting is None:
        counting = Counting.GDP if math.isfinite(asked.gdp + account.spent.gdp) else Counting.RENYI
    if counting is not Counting.FIXED and fits(account, counting, asked, residual_delta):
        return counting
    if account.is_untouched and _fits_as_fixed(account, schedule, residual_delta):
        return Counting.FIXED
    raise BudgetExhausted(_refusal(account, counting, asked, f"run {run_id!r}"))


def fits(account: Account, counting: Counting, asked: Costs, residual_delta: float = 0.0) -> bool:
    """Whether the budget covers more costs, on top of what is charged and reserved."""
    committed = account.spent + account.outstanding
    if budget_of(account).delta - account.residual_delta - residual_delta <= 0:
        return False
    gdp, renyi = _filters(account, residual_delta)
    if counting is Counting.GDP:
        return gdp.fits(committed.gdp, asked.gdp)
    return counting is Counting.RENYI and renyi.fits(committed.renyi, asked.renyi)


def check_reserved(account: Account, run_id: str, round_index: int) -> None:
    """Whether a reservation still stands: a recovery may have taken the budget from under it.

    Raises:
        BudgetExhausted: it has.
    """
    run = account.runs[run_id]
    if account.was_recovered and not fits(account, run.counting, Costs()):
        what = f"round {round_index} of run {run_id!r}, reserved before a lost copy's releases were charged,"
        raise BudgetExhausted(_refusal(account, run.counting, Costs(), what))


def check_repeat(account: Account, run_id: str, round_index: int) -> None:
    """Whether a round may be charged once more.

    Raises:
        TooManyAborts: the run has repeated as many as the shop allows.
        BudgetExhausted: the budget does not cover a release beyond the reservation.
    """
    run, budget = account.runs[run_id], budget_of(account)
    if run.num_aborts >= budget.max_aborts:
        raise TooManyAborts(
            f"run {run_id!r} has charged {run.num_aborts} repeated rounds, the shop allows {budget.max_aborts} a run: "
            f"round {round_index} is not released again; start a new run, if the budget covers one"
        )
    if not fits(account, run.counting, run.costs[round_index]):
        what = f"round {round_index} of run {run_id!r}, once more,"
        raise BudgetExhausted(_refusal(account, run.counting, run.costs[round_index], what))


def check_costs(account: Account, entry: Entry) -> None:
    """Recompute a reservation's costs from its parameters.

    Raises:
        LedgerTampered: they are others than the entry says.
    """
    run = account.runs[entry.what["run"]]
    if any(one.local_steps for one in run.schedule) and entry.what["spec"]["mode"] != Mode.LOCAL:
        raise LedgerTampered(f"ledger of shop {account.shop!r}, entry {entry.sequence}: local steps under shared noise")
    for written, computed in zip(run.costs, costs_of(account, run.schedule), strict=True):
        pairs = ((written.gdp, computed.gdp), (written.renyi, computed.renyi))
        if not all(math.isclose(a, b, rel_tol=_SAME_COST) for a, b in pairs):
            raise LedgerTampered(
                f"ledger of shop {account.shop!r}, entry {entry.sequence}: costs do not follow from its parameters"
            )


def lost(account: Account, heads: Sequence[Head]) -> tuple[Head, ...]:
    """Heads that somebody has seen and that this ledger neither has nor has recovered, by sequence."""
    found = {head.place: head for head in heads if head.sequence > 0 and head.place not in account.absorbed}
    return tuple(head for _, head in sorted(found.items()) if account.hashes.get(head.sequence) != head.hash)


def missing(account: Account, heads: Sequence[Head]) -> Costs:
    """What lost copies of this ledger have spent since they parted from it.

    From the last head of each copy the parents are followed back, as far as they are known, to one that this ledger
    has. Where none is, the copy's whole spending counts, the common beginning with it.

    Args:
        heads: of `lost`.
    """
    known = {head.place: head for head in heads}
    parents = {head.parent for head in heads}
    tips = [head for head in heads if head.place not in parents]
    return total(tip.spent.since(_parted(account, tip, known)) for tip in tips)


def _parted(account: Account, tip: Head, known: dict[tuple[int, bytes], Head]) -> Costs:
    """What the ledger had spent where a copy's history leaves its own; nothing, if that is not known."""
    head, place = tip, tip.parent
    while place in known and known[place].sequence < head.sequence:
        head = known[place]
        place = head.parent
    own = account.places.get(place[0])
    return own.spent if own is not None and own.hash == place[1] else Costs()


def _filters(account: Account, residual_delta: float) -> tuple[GdpFilter, RenyiFilter]:
    """Both filters over a period's budget, its delta less what the noise's sampling takes."""
    budget = budget_of(account)
    delta = budget.delta - account.residual_delta - residual_delta
    return GdpFilter(budget.epsilon, delta), RenyiFilter(budget.epsilon, delta, account.order)


def _fits_as_fixed(account: Account, schedule: Schedule, residual_delta: float) -> bool:
    """Whether the budget covers a period's only run by the accountant's figure, which is smaller than a filter's."""
    budget = budget_of(account)
    delta = budget.delta - account.residual_delta - residual_delta
    return delta > 0 and accounting.epsilon(schedule, delta) <= budget.epsilon


def _fixed_epsilons(account: Account) -> tuple[float, float]:
    """The accountant's figures of a period's only run: charged so far, and all of it, which stays taken."""
    run = next(run for run in reversed(account.runs.values()) if run.counting is Counting.FIXED)
    charged = tuple(release for i, release in enumerate(run.schedule) if i in run.charged)
    delta = budget_of(account).delta - account.residual_delta
    return accounting.epsilon(charged, delta) if charged else 0.0, accounting.epsilon(run.schedule, delta)


def _refusal(account: Account, counting: Counting, asked: Costs, what: str) -> str:
    budget = budget_of(account)
    period = "for a lifetime" if budget.period is Period.LIFETIME else f"in year {account.years}"
    spent, committed = epsilon(account, account.spent), epsilon(account, account.spent + account.outstanding)
    after = epsilon(account, account.spent + account.outstanding + asked)
    start = (
        f"the privacy budget of shop {account.shop!r} is epsilon {budget.epsilon:g} at delta {budget.delta:g} {period}"
        f"; spent {spent:.4g}, with open reservations {committed:.4g}; {what} asks for {epsilon(account, asked):.4g}, "
        f"which would make {after:.4g}. "
    )
    if counting is Counting.GDP and math.isinf(asked.gdp):
        return start + (
            "Nothing was sampled so far and the budget counts Gaussian releases alone; a run that samples shoppers has "
            "to be the first of its period"
        )
    if counting is Counting.FIXED:
        return start + "An earlier run took the whole period as its fixed schedule; nothing more fits"
    return start + "Give the run a smaller epsilon or fewer rounds, or finish runs that will not go on"
