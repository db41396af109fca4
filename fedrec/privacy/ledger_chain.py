"""A shop's chain of entries in a database: what every transaction of a ledger has in common."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from fedrec import __version__
from fedrec.errors import ClockWentBack, LedgerBehind, LedgerTampered, PrivacyError
from fedrec.privacy.ledger_account import Account
from fedrec.privacy.ledger_entries import START, Entry, Kind, make_entry, read_entry

if TYPE_CHECKING:
    from fedrec.privacy.ledger_store import LedgerStore, Transaction

CLOCK_TOLERANCE = timedelta(seconds=5)
"""How far a clock may be behind the last entry: time servers step a running machine by less, a leap second by 1 s."""

Clock = Callable[[], datetime]


class Chain:
    """Entries of one shop, and the account that this process has counted so far.

    Attributes:
        clock: gives the time with its zone.
        account: up to the last entry that this process has read or written.
        behind: why nothing may be released until a recovery; None = nothing known against it.
    """

    def __init__(self, store: LedgerStore, shop: str, clock: Clock) -> None:
        """Nothing is read yet."""
        self.clock = clock
        self.account = Account(shop)
        self.behind: str | None = None
        self._store = store
        self._shop = shop
        self._lock = threading.RLock()
        self._pending: list[Entry] = []

    def __repr__(self) -> str:
        return repr(self._store)

    @contextmanager
    def writing(self, *, may_be_behind: bool = False, may_be_late: bool = False) -> Iterator[Transaction]:
        """Lock, read what other processes wrote, check, let the block append, commit, then count what it appended."""
        with self._lock:
            self._pending = []
            with self._store.writing(self._shop) as tx:
                self._catch_up(tx)
                self.check_may_release(may_be_behind=may_be_behind, may_be_late=may_be_late)
                yield tx
            for entry in self._pending:
                self.account.apply(entry)

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """One state of the ledger, counted."""
        with self._lock, self._store.reading(self._shop) as tx:
            self._catch_up(tx)
            yield tx

    @contextmanager
    def raw(self, *, is_write: bool) -> Iterator[Transaction]:
        """A transaction that counts nothing."""
        with self._lock, (self._store.writing if is_write else self._store.reading)(self._shop) as tx:
            yield tx

    def read(self, tx: Transaction, first: int = 1) -> tuple[Entry, ...]:
        """Entries from one on, checked against the chain; those before ``first`` were counted."""
        previous = self.account.before.get(first, START)
        entries = []
        for row in tx.rows(first):
            entries.append(read_entry(self._shop, row.sequence, row.text, row.hash, previous))
            previous = row.hash
        return tuple(entries)

    def append(
        self,
        tx: Transaction,
        kind: Kind,
        what: Mapping[str, Any],
        *,
        sequence: int | None = None,
        utc: datetime | None = None,
    ) -> Entry:
        """Add one entry to the transaction; it is counted once it is committed."""
        place = self.account.sequence + 1 if sequence is None else sequence
        entry = make_entry(self._shop, place, kind, utc or self.now(), __version__, what, self.account.hash)
        tx.append(entry.sequence, entry.text(), entry.hash)
        self._pending.append(entry)
        return entry

    def now(self) -> datetime:
        """The clock in UTC, but never before the last entry."""
        now = self.clock().astimezone(UTC)
        return max(now, self.account.utc or now)

    def check_may_release(self, *, may_be_behind: bool = False, may_be_late: bool = False) -> None:
        """Whether the ledger is one to release by.

        Raises:
            LedgerBehind: others have seen more of it.
            ClockWentBack: its last entry is later than now.
        """
        if self.behind is not None and not may_be_behind:
            raise LedgerBehind(self.behind)
        last, now = self.account.utc, self.clock().astimezone(UTC)
        if last is not None and now < last - CLOCK_TOLERANCE and not may_be_late:
            raise ClockWentBack(
                f"the clock says {now:%Y-%m-%d %H:%M:%S} UTC, the last entry of shop {self._shop!r} is of "
                f"{last:%Y-%m-%d %H:%M:%S}: nothing is released; set the clock, or, where that entry was made by a "
                "clock that ran ahead, say so by Ledger.note_time(is_clock_corrected=True)"
            )

    def close(self) -> None:
        """Close the database's connections."""
        self._store.close()

    def _catch_up(self, tx: Transaction) -> None:
        """Count what other processes have appended; the last entry that was counted must still be there."""
        account = self.account
        try:
            new = self.read(tx, max(1, account.sequence))
            if account.sequence:
                if not new or new[0].place != (account.sequence, account.hash):
                    raise LedgerTampered(
                        f"ledger of shop {self._shop!r}: entry {account.sequence} is gone; nothing is released. "
                        "Restore the ledger and recover what others have seen of it"
                    )
                new = new[1:]
            for entry in new:
                account.apply(entry)
        except PrivacyError:
            self.account = Account(self._shop)
            raise
