"""One privacy ledger a shop: what was released about its shoppers, ever, and what may still be.

Append-only and hash-chained, across runs, models and restarts. A run reserves its whole schedule before anything is
computed; each release is charged, at the reserved worst case, in the same transaction that stores its bytes and before
they leave; a charge is never refunded. The rule over everything: **what left is never more than what is charged**,
whenever a process dies and however many of them run.

What the ledger cannot see by itself is that it was exchanged for an older copy. Others keep its head
(`fedrec.federation.anchors`), and `Ledger.check_anchor` compares.

Time. Entries have the shop's clock in UTC. A budget by the year does not trust it: between two entries at most 31 days
of ledger time pass, so a clock that jumps forward adds at most 31 days to the year, once, and both entries show it. A
new year begins by an entry of its own (`Ledger.start_year`), never by itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fedrec.errors import (
    BudgetExhausted,
    ConfigError,
    LedgerTampered,
    RoundRefused,
)
from fedrec.privacy import ledger_rules as rules
from fedrec.privacy.ledger_account import YEAR, Account, Run
from fedrec.privacy.ledger_chain import Chain, Clock
from fedrec.privacy.ledger_entries import (
    Budget,
    Costs,
    Entry,
    Head,
    Kind,
    Period,
)
from fedrec.privacy.ledger_rules import Spent
from fedrec.privacy.mechanisms import PlannedRelease, Schedule, check_local_steps
from fedrec.privacy.spec import PrivacySpec

if TYPE_CHECKING:
    from fedrec.privacy.ledger_store import LedgerStore

_MECHANISM = "gaussian, rounded on the grid"

__all__ = ["Budget", "Costs", "Entry", "Head", "Ledger", "Period", "Spent", "Stored"]


@dataclass(frozen=True, repr=False)
class Stored:
    """A release that was charged: its bytes, and the ledger's head after the charge."""

    payload: bytes
    head: Head

    def __repr__(self) -> str:
        return f"Stored(size_bytes={len(self.payload)}, sequence={self.head.sequence})"


class Ledger:
    """A shop's privacy ledger; several processes may have it open."""

    def __init__(self, store: LedgerStore, shop: str, clock: Clock) -> None:
        """Use `Ledger.open`."""
        self._shop = shop
        self._chain = Chain(store, shop, clock)
        self._was_checked = False

    def __repr__(self) -> str:
        return f"Ledger({self._shop!r}, {self._chain!r})"

    @classmethod
    def open(
        cls,
        place: str | Path,
        shop: str,
        *,
        budget: Budget | None = None,
        clock: Clock = lambda: datetime.now(UTC),
    ) -> Self:
        """Open a shop's ledger, or begin it.

        Args:
            place: a file, or an SQLAlchemy URL; ``sqlite://`` = in memory, for simulations.
            shop: whose ledger; one database can hold many.
            budget: given when the ledger begins. Later it may be left out, or must be the same.
            clock: gives the time with its zone.
        Raises:
            ConfigError: there is no such ledger and no budget to begin one, or it has another budget.
            LedgerTampered, LedgerTooNew: the entries cannot be trusted, or read.
            StoreError: the database cannot be used.
        """
        from fedrec.privacy.ledger_store import LedgerStore  # so that nothing else waits for the database library

        ledger = cls(LedgerStore(place), shop, clock)
        with ledger._chain.writing(may_be_late=True) as tx:
            found = ledger._chain.account.budget
            if found is None and budget is None:
                raise ConfigError(
                    f"shop {shop!r} has no privacy ledger in {ledger._chain!r}: give a budget to begin it"
                )
            if found is None and budget is not None:
                ledger._chain.append(tx, Kind.OPEN, rules.opening(budget))
            elif budget not in (None, found):
                raise ConfigError(
                    f"the ledger of shop {shop!r} was begun with {found}, now {budget} is given: a budget cannot be "
                    "changed; leave it out, or give the same"
                )
        return ledger

    @property
    def shop(self) -> str:
        """Whose ledger."""
        return self._shop

    @property
    def budget(self) -> Budget:
        """What the shop is willing to spend on each shopper."""
        return rules.budget_of(self._chain.account)

    def reserve(
        self,
        run_id: str,
        spec: PrivacySpec,
        schedule: Schedule,
        *,
        is_noise_seeded: bool = False,
        is_masked: bool = False,
        residual_delta: float = 0.0,
    ) -> None:
        """Set the worst case of a whole run aside, before anything is computed; a second call changes nothing.

        Args:
            run_id: names the run in this shop, for ever.
            spec: what the run promises; kept for the report.
            schedule: all its releases.
            is_noise_seeded: noise of a test or study, which protects nobody; the report says so.
            is_masked: secure aggregation shows the coordinator sums alone; the report says whether.
            residual_delta: what sampling the run's noise adds to delta, in all.
        Raises:
            BudgetExhausted: the budget does not cover it.
            RoundRefused: the run was reserved on other terms, or is finished.
            BadAssumption: local steps under shared noise.
            PrivacyError: the ledger is not to be trusted now (see the class's errors).
        Guarantee: all releases of all runs whose reservation succeeded are (epsilon, delta)-DP per shopper with the
            budget's numbers, in each budget period, also where a run was chosen after looking at earlier ones.
        """
        fields = {
            "run": run_id,
            "spec": dataclasses.asdict(spec),
            "schedule": [release.to_json() for release in schedule],
            "residual_delta": float(residual_delta),
            "is_noise_seeded": bool(is_noise_seeded),
            "is_masked": bool(is_masked),
        }
        check_local_steps(schedule, spec)
        if not schedule or not 0 <= residual_delta < self.budget.delta:
            raise RoundRefused(f"run {run_id!r}: a schedule of {len(schedule)} releases, residual {residual_delta}")
        with self._chain.writing() as tx:
            if run_id in self._chain.account.runs:
                self._check_same_run(run_id, fields)
                return
            costs = rules.costs_of(self._chain.account, schedule)
            counting = rules.choose_counting(self._chain.account, run_id, schedule, costs, residual_delta)
            about = {"costs": [cost.to_json() for cost in costs], "counting": str(counting)}
            self._chain.append(tx, Kind.RESERVE, {**fields, **about})

    def charge(
        self, run_id: str, round_index: int, plan_digest: bytes, release: PlannedRelease, payload: bytes
    ) -> Head:
        """Charge one release and keep its bytes, in one transaction; call it before a byte leaves.

        Args:
            run_id: a reserved run.
            round_index: place in its schedule.
            plan_digest: of the round's whole plan. Another one for the same round is a new release, charged again.
            release: what the schedule says of the round.
            payload: the bytes that will be sent.
        Returns:
            The head after the charge, to be sent along.
        Raises:
            RoundRefused: not reserved, finished, not on the schedule, or these very terms were charged with other
                bytes (send `stored` again in their place).
            TooManyAborts: the run repeated more rounds than the shop allows.
            BudgetExhausted: a repeated round that the budget does not cover, or a recovery took what was reserved.
        Guarantee: when this returns, charge and bytes are on disk. It is never refunded, opened or not.
        """
        digest = hashlib.sha256(payload).hexdigest()
        with self._chain.writing() as tx:
            run = self._open_run(run_id)
            if not 0 <= round_index < len(run.schedule) or run.schedule[round_index] != release:
                raise RoundRefused(f"round {round_index} ({release.name}) is not what run {run_id!r} reserved")
            plans = run.charged.get(round_index, {})
            if (head := plans.get(plan_digest.hex())) is not None:
                if tx.payload(run_id, head.sequence) == payload:
                    return head
                raise RoundRefused(
                    f"round {round_index} of run {run_id!r} was charged for this plan with other bytes: send those"
                )
            rules.check_reserved(self._chain.account, run_id, round_index)
            if plans:
                rules.check_repeat(self._chain.account, run_id, round_index)
            what = {
                "run": run_id,
                "round": round_index,
                "plan": plan_digest.hex(),
                "mechanism": _MECHANISM + (f", {release.local_steps} times in the shop" if release.local_steps else ""),
                "release": release.to_json(),
                "cost": run.costs[round_index].to_json(),
                "is_repeat": bool(plans),
                "payload_sha256": digest,
                "size_bytes": len(payload),
            }
            entry = self._chain.append(tx, Kind.CHARGE, what)
            tx.put_payload(run_id, entry.sequence, payload)
        return self._chain.account.places[entry.sequence]

    def stored(self, run_id: str, round_index: int, plan_digest: bytes) -> Stored | None:
        """The bytes of a release that was charged for this very plan, to send them again; None = none, or erased.

        Raises:
            LedgerTampered: the bytes are not those that were charged.
            LedgerBehind, ClockWentBack: nothing is released now.
        """
        with self._chain.reading() as tx:
            self._chain.check_may_release()
            run = self._chain.account.runs.get(run_id)
            head = run.charged.get(round_index, {}).get(plan_digest.hex()) if run is not None else None
            payload = tx.payload(run_id, head.sequence) if head is not None else None
            if head is None or payload is None:
                return None
            digest = self._chain.account.payloads[head.sequence]
        if hashlib.sha256(payload).hexdigest() != digest:
            raise LedgerTampered(f"ledger of shop {self._shop!r}: the bytes of entry {head.sequence} were changed")
        return Stored(payload, head)

    def finish(self, run_id: str) -> None:
        """Free what the run reserved and never charged, and erase its bytes; a second call changes nothing.

        A run that only fitted as a fixed schedule (`Counting.FIXED`) keeps the whole period's budget.
        """
        with self._chain.writing() as tx:
            run = self._chain.account.runs.get(run_id)
            if run is None:
                raise RoundRefused(f"run {run_id!r} was never reserved")
            if not run.is_finished:
                self._chain.append(tx, Kind.FINISH, {"run": run_id, "freed": run.outstanding.to_json()})
                tx.erase_payloads(run_id)

    def is_reserved(self, run_id: str) -> bool:
        """Whether the run's worst case is set aside and the run not finished."""
        with self._chain.reading():
            run = self._chain.account.runs.get(run_id)
            return run is not None and not run.is_finished

    def start_year(self) -> None:
        """Begin the next budget year, by an entry.

        Raises:
            ConfigError: the budget is for a lifetime.
            RoundRefused: unfinished runs.
            BudgetExhausted: less than 365 days of ledger time have passed since the last began.
        """
        with self._chain.writing() as tx:
            account = self._chain.account
            if self.budget.period is not Period.YEAR:
                raise ConfigError(f"the budget of shop {self._shop!r} is for a lifetime: no new year begins")
            if open_runs := [name for name, run in account.runs.items() if not run.is_finished]:
                raise RoundRefused(f"{len(open_runs)} unfinished runs ({open_runs[0]!r}): finish them first")
            passed = account.time_at(self._chain.now()) - account.year_began
            if passed < YEAR:
                raise BudgetExhausted(
                    f"budget year {account.years} of shop {self._shop!r} has lasted {passed.days} days of ledger time, "
                    f"{YEAR.days} are needed (between two entries at most 31 days count): wait, and see "
                    "Ledger.note_time"
                )
            self._chain.append(tx, Kind.YEAR, {"year": account.years + 1})

    def note_time(self, *, is_clock_corrected: bool = False) -> None:
        """Write an entry that holds nothing but the time, so that ledger time goes on in a shop that trains rarely.

        Args:
            is_clock_corrected: the clock had run ahead and was put right: go on from the earlier time. No ledger time
                is gained by it, and the entry shows it.
        """
        with self._chain.writing(may_be_late=is_clock_corrected) as tx:
            last = self._chain.account.utc or datetime.now(UTC)
            now = self._chain.clock().astimezone(UTC)
            self._chain.append(tx, Kind.CLOCK, {"behind_s": max(0.0, (last - now).total_seconds())}, utc=now)

    def head(self) -> Head:
        """The state after the last release; sequence 0 if nothing was ever released."""
        with self._chain.reading():
            return self._chain.account.head

    def entries(self) -> tuple[Entry, ...]:
        """All entries, read anew and checked.

        Raises:
            LedgerTampered, LedgerTooNew: the chain does not hold.
        """
        with self._chain.raw(is_write=False) as tx:
            return self._chain.read(tx)

    def spent(self) -> Spent:
        """The ledger in figures."""
        with self._chain.reading() as tx:
            return rules.figures(self._chain.account, rollback_detectable=self._was_checked or bool(tx.receipts()))

    def verify(self) -> Account:
        """Recompute everything: the database's pages, the chain, every cost from its parameters, every stored payload.

        Returns:
            The account that the entries add up to.
        Raises:
            LedgerTampered: something does not hold.
            LedgerTooNew: a newer version wrote an entry.
        """
        with self._chain.raw(is_write=False) as tx:
            tx.check_file()
            account = Account(self._shop)
            for entry in self._chain.read(tx):
                account.apply(entry)
                if entry.kind is Kind.RESERVE:
                    rules.check_costs(account, entry)
                if entry.kind is Kind.CHARGE:
                    payload = tx.payload(entry.what["run"], entry.sequence)
                    if payload is not None and hashlib.sha256(payload).hexdigest() != entry.what["payload_sha256"]:
                        raise LedgerTampered(f"the bytes of entry {entry.sequence} were changed")
        return account

    def check_anchor(self, heads: Head | Sequence[Head]) -> None:
        """Compare with the heads that others have kept; call it at start and before every round.

        Args:
            heads: of this shop; their signatures are checked by `fedrec.federation.anchors`.
        Raises:
            LedgerBehind: somebody has seen a release that is not in this ledger. Until `recover`, every release is
                refused.
            LedgerTampered: a head of another shop.
        """
        given = _heads(heads)
        if strangers := [head.shop for head in given if head.shop != self._shop]:
            raise LedgerTampered(f"a ledger head of shop {strangers[0]!r} in place of one of {self._shop!r}")
        with self._chain.reading():
            lost = rules.lost(self._chain.account, given)
            self._was_checked = self._was_checked or bool(given)
            self._chain.behind = None
            if lost:
                worst = max(lost, key=lambda head: head.sequence)
                own = self._chain.account.sequence
                why = "a restored backup" if worst.sequence > own else "a cloned machine, or a restored backup"
                self._chain.behind = (
                    f"ledger of shop {self._shop!r}: others have seen release {worst.sequence}, which is not among its "
                    f"{own} entries ({why}); nothing is released until the missing ones are charged (Ledger.recover)"
                )
        self._chain.check_may_release()

    def recover(self, heads: Head | Sequence[Head]) -> Head:
        """Charge in full what others have seen of this ledger and it lacks, as an entry of its own; then go on.

        Args:
            heads: all that the anchors have kept. From the newest that this ledger shares with the lost copy on, the
                copy's releases are charged; where none is shared, all of them.
        Returns:
            The head after it, to be anchored.
        Raises:
            LedgerTampered: a head of another shop.
        """
        given = _heads(heads)
        if any(head.shop != self._shop for head in given):
            raise LedgerTampered(f"ledger heads of other shops cannot be recovered into {self._shop!r}")
        with self._chain.writing(may_be_behind=True) as tx:
            lost = rules.lost(self._chain.account, given)
            if lost:
                cost = rules.missing(self._chain.account, lost)
                what = {"heads": [head.to_json() for head in lost], "cost": cost.to_json()}
                after = max(self._chain.account.sequence, *(head.sequence for head in lost)) + 1
                self._chain.append(tx, Kind.RECOVER, what, sequence=after)
        self._chain.behind = None
        return self.head()

    def keep_receipt(self, signer: str, sequence: int, receipt: bytes) -> None:
        """Keep an anchor's latest countersignature with the ledger, for its report; not part of the chain."""
        with self._chain.raw(is_write=True) as tx:
            tx.put_receipt(signer, sequence, receipt)

    def receipts(self) -> list[bytes]:
        """The latest countersignature of each anchor, as `keep_receipt` took them."""
        with self._chain.raw(is_write=False) as tx:
            return tx.receipts()

    def close(self) -> None:
        """Close the database's connections."""
        self._chain.close()

    def _open_run(self, run_id: str) -> Run:
        run = self._chain.account.runs.get(run_id)
        if run is None or run.is_finished:
            state = "never reserved" if run is None else "finished"
            raise RoundRefused(f"run {run_id!r} was {state} in the ledger of shop {self._shop!r}: start a new run")
        return run

    def _check_same_run(self, run_id: str, fields: Mapping[str, Any]) -> None:
        run = self._open_run(run_id)
        if changed := sorted(name for name, value in fields.items() if run.fields[name] != value):
            raise RoundRefused(
                f"run {run_id!r} was reserved on other terms ({', '.join(changed)}): give the same, or a new run id"
            )


def _heads(heads: Head | Sequence[Head]) -> tuple[Head, ...]:
    return (heads,) if isinstance(heads, Head) else tuple(heads)
