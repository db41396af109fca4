"""What a ledger's entries add up to; refuses entries that no ledger could have written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from fedrec.errors import LedgerTampered
from fedrec.privacy.ledger_entries import START, Budget, Costs, Counting, Entry, Head, Kind, Period, total
from fedrec.privacy.mechanisms import PlannedRelease, Schedule

LONGEST_GAP = timedelta(days=31)
"""Ledger time that passes between two entries at most, whatever the clock says."""

YEAR = timedelta(days=365)
"""Ledger time that a budget of period ``year`` lasts at least."""


@dataclass
class Run:
    """What the ledger knows of one run.

    Attributes:
        schedule, costs: its reserved releases and what each costs, in round order.
        counting: what bounds it.
        fields: everything its reservation says, JSON values.
        charged: round -> plan digests (hex) in the order charged -> the head after it.
        is_finished: nothing more will be charged.
    """

    schedule: Schedule
    costs: tuple[Costs, ...]
    counting: Counting
    fields: Mapping[str, Any]
    charged: dict[int, dict[str, Head]] = field(default_factory=dict)
    is_finished: bool = False

    @property
    def is_deployable(self) -> bool:
        """Whether its guarantee holds: no benchmark's assumptions, no seeded noise."""
        return not (self.fields["spec"]["is_benchmark"] or self.fields["is_noise_seeded"])

    @property
    def num_aborts(self) -> int:
        """Charges of rounds beyond each round's first."""
        return sum(len(plans) - 1 for plans in self.charged.values())

    @property
    def outstanding(self) -> Costs:
        """Reserved and not charged yet."""
        left = (cost for i, cost in enumerate(self.costs) if i not in self.charged)
        return Costs() if self.is_finished else total(left)


class Account:
    """What a chain of entries adds up to.

    Attributes:
        shop: whose ledger.
        budget, order: of the first entry; None and 0 before it. The order is that of the Renyi filter.
        sequence, hash, utc: of the last entry; 0 before the first.
        time: ledger time of the last entry: real time, less what lies in gaps beyond `LONGEST_GAP`.
        year_began: ledger time at which the current budget year began.
        years: budget years begun.
        counting: what bounds the current period; None while nothing was released or is reserved in it.
        runs: by run id.
        spent: charged in the current period.
        lifetime: charged ever.
        head: after the last release.
        recovered, was_recovered: part of lifetime that recoveries charged; whether one did in the current period.
        residual_delta: what sampling noise adds to delta, of all runs reserved in the current period.
        places: sequence -> head, of all entries that recorded a release.
        hashes, before: sequence -> hash of the entry, and of the one before it.
        payloads: sequence of a charge -> sha256 (hex) of its bytes.
        absorbed: heads of lost copies of this ledger that were charged by a recovery.
    """

    def __init__(self, shop: str) -> None:
        self.shop = shop
        self.budget: Budget | None = None
        self.order = 0
        self.sequence = 0
        self.hash = START
        self.utc: datetime | None = None
        self.time = timedelta()
        self.year_began = timedelta()
        self.years = 1
        self.counting: Counting | None = None
        self.runs: dict[str, Run] = {}
        self.spent = Costs()
        self.lifetime = Costs()
        self.recovered = Costs()
        self.was_recovered = False
        self.residual_delta = 0.0
        self.head = Head(shop, 0, START, Costs())
        self.places: dict[int, Head] = {}
        self.hashes: dict[int, bytes] = {}
        self.before: dict[int, bytes] = {}
        self.payloads: dict[int, str] = {}
        self.absorbed: set[tuple[int, bytes]] = set()

    @property
    def outstanding(self) -> Costs:
        """Reserved by unfinished runs and not charged yet."""
        return total(run.outstanding for run in self.runs.values() if not run.is_finished)

    @property
    def is_untouched(self) -> bool:
        """Nothing was released or is reserved in the current period."""
        return self.spent == Costs() and all(run.is_finished for run in self.runs.values())

    def time_at(self, utc: datetime) -> timedelta:
        """Ledger time of an entry that would be written now."""
        if self.utc is None:
            return timedelta()
        return self.time + min(max(utc - self.utc, timedelta()), LONGEST_GAP)

    def apply(self, entry: Entry) -> None:
        """Add the next entry.

        Raises:
            LedgerTampered: no ledger writes this entry after the ones before.
        """
        try:
            self._check_place(entry)
            self._count(entry)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
            raise LedgerTampered(
                f"ledger of shop {self.shop!r}, entry {entry.sequence} ({entry.kind}): does not follow from the "
                "entries before; nothing is released"
            ) from error
        self.time = self.time_at(entry.utc)
        self.before[entry.sequence] = self.hash
        self.sequence, self.hash, self.utc = entry.sequence, entry.hash, entry.utc
        self.hashes[entry.sequence] = entry.hash
        if self.is_untouched:
            self.counting = None

    def _check_place(self, entry: Entry) -> None:
        if (entry.kind is Kind.OPEN) != (self.sequence == 0):
            raise ValueError("a ledger opens once")
        may_skip = entry.kind is Kind.RECOVER
        if not (entry.sequence == self.sequence + 1 or (may_skip and entry.sequence > self.sequence)):
            raise ValueError("entries are missing")
        if self.utc is not None and entry.utc < self.utc and entry.kind is not Kind.CLOCK:
            raise ValueError("only a clock's correction goes back in time")

    def _count(self, entry: Entry) -> None:
        match entry.kind:
            case Kind.OPEN:
                self._apply_open(entry)
            case Kind.RESERVE:
                self._apply_reserve(entry)
            case Kind.CHARGE:
                self._apply_charge(entry)
            case Kind.FINISH:
                self._apply_finish(entry)
            case Kind.RECOVER:
                self._apply_recover(entry)
            case Kind.YEAR:
                self._apply_year(entry)
            case Kind.CLOCK:
                pass

    def _apply_open(self, entry: Entry) -> None:
        self.budget = Budget(**entry.what["budget"])
        self.order = int(entry.what["order"])

    def _apply_reserve(self, entry: Entry) -> None:
        what = entry.what
        if what["run"] in self.runs:
            raise ValueError("a run is reserved once")
        schedule = tuple(PlannedRelease(**release) for release in what["schedule"])
        costs = tuple(Costs.from_json(cost) for cost in what["costs"])
        if len(schedule) != len(costs):
            raise ValueError("every release has a cost")
        self.runs[what["run"]] = Run(schedule, costs, Counting(what["counting"]), what)
        self.residual_delta += float(what["residual_delta"])
        self.counting = Counting(what["counting"])

    def _apply_charge(self, entry: Entry) -> None:
        what = entry.what
        run, index = self.runs[what["run"]], what["round"]
        plans = run.charged.get(index, {})
        cost = Costs.from_json(what["cost"])
        is_as_reserved = cost == run.costs[index] and what["release"] == run.schedule[index].to_json()
        if run.is_finished or what["plan"] in plans or not is_as_reserved or what["is_repeat"] != bool(plans):
            raise ValueError("a charge of no reserved release")
        self._advance(entry, cost)
        run.charged.setdefault(index, {})[what["plan"]] = self.head
        self.payloads[entry.sequence] = what["payload_sha256"]

    def _apply_finish(self, entry: Entry) -> None:
        run = self.runs[entry.what["run"]]
        if run.is_finished:
            raise ValueError("a run finishes once")
        run.is_finished = True

    def _apply_recover(self, entry: Entry) -> None:
        lost = [Head.from_json(head) for head in entry.what["heads"]]
        if not lost or entry.sequence <= max(head.sequence for head in lost):
            raise ValueError("a recovery comes after what it recovers")
        cost = Costs.from_json(entry.what["cost"])
        self.absorbed |= {head.place for head in lost}
        self._advance(entry, cost, parent=max(lost, key=lambda head: head.sequence).place)
        self.recovered += cost
        self.was_recovered = True
        if math.isinf(cost.gdp):
            self.counting = Counting.RENYI

    def _apply_year(self, entry: Entry) -> None:
        if self.budget is None or self.budget.period is not Period.YEAR or self.outstanding != Costs():
            raise ValueError("no year can begin")
        now = self.time_at(entry.utc)
        if now - self.year_began < YEAR:
            raise ValueError("a year began too early")
        self.years += 1
        self.was_recovered = False
        self.year_began, self.spent, self.residual_delta = now, Costs(), 0.0

    def _advance(self, entry: Entry, cost: Costs, parent: tuple[int, bytes] | None = None) -> None:
        """Count a release, and make it the head."""
        self.spent += cost
        self.lifetime += cost
        before = parent or self.head.place
        self.head = Head(self.shop, entry.sequence, entry.hash, self.lifetime, before)
        self.places[entry.sequence] = self.head
