"""What a shop knows: its shoppers' events, its items, lists that it showed and keys of its API, in one database.

Several processes may have it open: the server that writes what happens, the agent that trains from it, and commands.
What one of them wrote the others find behind the sequence number that they saw last.

**Guarantee:** an event that `Store.append_events` has accepted is on disk when it returns; one of an erased shopper
from before her erasure is not taken again, from whatever file it comes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from fedrec.errors import StoreError
from fedrec.shop.store.database import Database, Transaction
from fedrec.shop.store.erasure import GENERATION, Erasures
from fedrec.shop.store.keys import Keys
from fedrec.shop.store.rows import (
    KEEP_IMPRESSIONS_S,
    NEGATIVE_KINDS,
    TRAINING_KINDS,
    Appended,
    ClickThrough,
    Erasure,
    Event,
    EventKind,
    Impression,
    Item,
    ItemChange,
    Key,
    KeyScope,
    Said,
    StoredEvent,
    check_id,
    check_not_ahead,
)

EventRow = tuple[str, str, str, str, float | None, float, str | None]
"""event_id, shopper, item, kind, value, timestamp, list_id."""

ImpressionRow = tuple[str, str | None, str, str, str, float, str | None]
"""list_id, shopper, list, version, arm, timestamp, items: a line each, which no key breaks."""

TrainingRow = tuple[str, str, str, float | None, float]
"""shopper, item, kind, value, timestamp."""

ALL_EVENTS = 2**31
_KINDS = {kind.value: kind for kind in EventKind}
_EVENT_NAMES = ("event_id", "shopper", "item", "kind", "value", "timestamp", "list_id")
_APPEND = f"""INSERT INTO events ({", ".join(_EVENT_NAMES)}) VALUES ({", ".join(f":{name}" for name in _EVENT_NAMES)})
ON CONFLICT (event_id) DO NOTHING"""
_STORED = f"SELECT sequence, {', '.join(_EVENT_NAMES)} FROM events"
_OF_SHOPPER = "FROM events WHERE shopper = :shopper ORDER BY timestamp DESC, sequence DESC LIMIT :limit"
_HISTORY = f"SELECT sequence, {', '.join(_EVENT_NAMES)} {_OF_SHOPPER}"
_SAID = f"SELECT item, kind, value {_OF_SHOPPER}"
_AFTER = f"{_STORED} WHERE sequence > :after ORDER BY sequence LIMIT :limit"
_TRAINING = """SELECT shopper, item, kind, value, timestamp FROM events WHERE kind IN ({kinds})
ORDER BY timestamp, sequence"""

_ITEM = "SELECT sequence, key, title, category, price, stock, is_hidden, created, is_deleted FROM items"
_PUT_ITEM = """INSERT INTO items (key, sequence, title, category, price, stock, is_hidden, is_deleted, created)
VALUES (:key, :sequence, :title, :category, :price, :stock, :is_hidden, 0, :created) ON CONFLICT (key) DO UPDATE
SET sequence = excluded.sequence, title = excluded.title, category = excluded.category, price = excluded.price,
stock = excluded.stock, is_hidden = excluded.is_hidden, is_deleted = 0,
created = CASE WHEN :keeps_created = 1 THEN items.created ELSE excluded.created END"""
_HIDE_ITEM = "UPDATE items SET sequence = :next, is_hidden = :is_hidden WHERE key = :key AND is_deleted = 0"
_DELETE_ITEM = """UPDATE items SET sequence = :next, title = '', category = '', price = NULL, stock = NULL,
is_deleted = 1 WHERE key = :key AND is_deleted = 0"""

_SHOW = """INSERT INTO impressions (list_id, shopper, list, version, arm, timestamp, items)
VALUES (:list_id, :shopper, :list, :version, :arm, :timestamp, :items) ON CONFLICT (list_id) DO NOTHING"""
_CLICK_THROUGH = """SELECT {day} AS day, list, version, arm, count(*), sum(CASE WHEN EXISTS
(SELECT 1 FROM events WHERE events.list_id = impressions.list_id
AND (impressions.shopper IS NULL OR events.shopper = impressions.shopper)
AND events.kind NOT IN ({negative}) AND (events.kind <> 'rating' OR events.value >= :good_rating)
AND (impressions.items IS NULL OR {is_listed})) THEN 1 ELSE 0 END) FROM impressions
WHERE timestamp >= :since GROUP BY day, list, version, arm ORDER BY day, list, version, arm"""
_MARK = f"""SELECT (SELECT coalesce(max(sequence), 0) FROM events), (SELECT coalesce(max(sequence), 0) FROM items),
({GENERATION})"""


class _Batch:
    """Events of one call, on their way to the disk."""

    def __init__(self, rows: Sequence[EventRow], *, is_forced: bool) -> None:
        self.rows, self.is_forced = rows, is_forced
        self.result: Appended | None = None


class Store:
    """One shop's store; safe to use from several threads.

    Args:
        url: ``sqlite:///file`` or ``postgresql://…``; made, or brought to the current schema, where it is not.
        tombstones: file of who was erased; None = beside SQLite's file (``store.tombstones``), and none for PostgreSQL.
    Raises:
        ConfigError, StoreError: see `Database` and `Erasures`.
    """

    def __init__(self, url: str, tombstones: Path | None = None) -> None:
        self._database = Database(url)
        if tombstones is None and self._database.path is not None:
            tombstones = self._database.path.with_suffix(".tombstones")
        try:
            self._erasures = Erasures(self._database, tombstones)
        except BaseException:
            self._database.close()
            raise
        self._keys = Keys(self._database)
        self._queue: deque[_Batch] = deque()
        self._turn = threading.Lock()

    @classmethod
    def open(cls, url: str, tombstones: Path | None = None) -> Store:
        """Open a store, or make it; see `Store`."""
        return cls(url, tombstones)

    def __repr__(self) -> str:
        return f"Store({self._database.name!r})"

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_file(self) -> bool:
        """SQLite: reading takes microseconds and waits for nobody, so that it needs no thread."""
        return self._database.is_sqlite

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    def append_events(self, events: Iterable[Event], *, is_forced: bool = False) -> Appended:
        """Store events; those of ids that are there already are left out.

        Args:
            events: checked; what the store knows of their items does not matter.
            is_forced: take events of erased shoppers from before their erasure, too.
        Raises:
            DataError: an event has not happened yet.
            StoreError: the database cannot be written; none of the events is in it.
        Guarantee: what is accepted is on disk when this returns.
        """
        now, rows = time.time(), []
        for one in events:
            check_not_ahead(one.timestamp, now)
            rows.append((one.event_id, one.shopper, one.item, one.kind.value, one.value, one.timestamp, one.list_id))
        return self.append_rows(rows, is_forced=is_forced)

    def append_rows(self, rows: Sequence[EventRow], *, is_forced: bool = False) -> Appended:
        """`append_events` for rows that were checked already, as `Event` and `check_not_ahead` check them."""
        batch = _Batch(rows, is_forced=is_forced)
        self._queue.append(batch)
        with self._turn:  # who gets here first writes what all others wait for: one flush for many calls
            if batch.result is None:
                self._write_queue()
        if batch.result is None:
            raise StoreError(f"{self._database.name}: the store could not be written; nothing was accepted")
        return batch.result

    def history(self, shopper: str, *, limit: int = 1000) -> list[StoredEvent]:
        """A shopper's newest events, newest last; of the same time in the order of arrival."""
        rows = self._database.read(_HISTORY, shopper=check_id("shopper", shopper), limit=limit)
        return [_stored(row) for row in reversed(rows)]

    def said(self, shopper: str, *, limit: int = 1000) -> list[Said]:
        """`history` without what lists don't ask for, in less time."""
        rows = self._database.read(_SAID, shopper=check_id("shopper", shopper), limit=limit)
        return list(map(Said._make, reversed(rows)))

    def events_after(self, sequence: int, limit: int = 10_000) -> list[StoredEvent]:
        """Events that arrived after that one, in order; 0 = from the first."""
        return [_stored(row) for row in self._database.read(_AFTER, after=sequence, limit=limit)]

    def last_sequence(self) -> int:
        """Of the newest event; 0 = there is none."""
        return int(self._database.read("SELECT coalesce(max(sequence), 0) FROM events")[0][0])

    def num_events(self) -> int:
        """How many there are."""
        return int(self._database.read("SELECT count(*) FROM events")[0][0])

    def shoppers(self) -> list[str]:
        """All shoppers with events, sorted."""
        return [shopper for (shopper,) in self._database.read("SELECT DISTINCT shopper FROM events ORDER BY shopper")]

    def training_rows(self, kinds: Collection[EventKind] = TRAINING_KINDS) -> list[TrainingRow]:
        """Events of these kinds and the negative ones, in the order in which they happened."""
        wanted = ", ".join(f"'{kind.value}'" for kind in EventKind if kind in kinds or kind in NEGATIVE_KINDS)
        return self._database.read(_TRAINING.format(kinds=wanted))

    def put_items(self, items: Iterable[Item]) -> int:
        """Store items, in place of what was known of them; how many.

        An item without ``created`` keeps the time at which the store first heard of it.
        """
        now = time.time()
        with self._database.writing() as transaction:
            first = _last_change(transaction)
            rows = [
                (
                    *(item.key, sequence, item.title, item.category, item.price, item.stock, int(item.is_hidden)),
                    *(now if item.created is None else item.created, int(item.created is None)),
                )
                for sequence, item in enumerate(items, start=first + 1)
            ]
            transaction.change_all(_PUT_ITEM, rows)
        return len(rows)

    def hide_items(self, keys: Iterable[str], *, is_hidden: bool = True) -> int:
        """List items no more, or again; how many of them there are."""
        return self._change_items(keys, _HIDE_ITEM, is_hidden=int(is_hidden))

    def delete_items(self, keys: Iterable[str]) -> int:
        """Sell items no more; how many of them there were. Their events stay, their texts go."""
        return self._change_items(keys, _DELETE_ITEM)

    def item(self, key: str) -> Item | None:
        """What is known of an item; None = nothing, or it was deleted."""
        rows = self._database.read(f"{_ITEM} WHERE key = :key AND is_deleted = 0", key=check_id("item", key))
        return _change(rows[0]).item if rows else None

    def items_after(self, sequence: int, limit: int = 10_000) -> list[ItemChange]:
        """Items that changed after that change, in order, as they are now; 0 = all."""
        query = f"{_ITEM} WHERE sequence > :after ORDER BY sequence LIMIT :limit"
        return [_change(row) for row in self._database.read(query, after=sequence, limit=limit)]

    def generation(self) -> int:
        """Rises with every erasure: what was kept of shoppers or counts outside of the store is then out of date."""
        return int(self._database.read(GENERATION)[0][0])

    def add_impressions(self, impressions: Iterable[Impression]) -> int:
        """Store lists that were shown; how many of them are new, and of nobody who was erased since.

        Those that are older than the newest of these by more than `KEEP_IMPRESSIONS_S` are forgotten.
        """
        return self.add_impression_rows(
            [
                (
                    *(one.list_id, one.shopper, one.list_name, one.version, one.arm, one.timestamp),
                    None if one.items is None else "\n".join(one.items),
                )
                for one in impressions
            ]
        )

    def add_impression_rows(self, rows: Sequence[ImpressionRow]) -> int:
        """`add_impressions` for rows that were checked already, as `Impression` checks them."""
        before = max((row[5] for row in rows), default=0.0) - KEEP_IMPRESSIONS_S
        with self._database.writing() as transaction:
            transaction.change("DELETE FROM impressions WHERE timestamp < :before", before=before)
            return transaction.change_all(_SHOW, self._erasures.without_erased(transaction, rows, 1, 5))

    def click_through(self, since: float = 0.0, *, good_rating: float) -> list[ClickThrough]:
        """Lists shown and clicked, by day, list, model version and arm.

        A click is an event with the list's id that names an item of the list, of the shopper whose list it was (of
        anybody where that was nobody known), and that speaks for the item. Where no items were noted any will do.

        Args:
            since: seconds since 1970 UTC; lists shown before don't count.
            good_rating: lower ratings speak against an item, as a dislike and a return do.
        """
        sql = _CLICK_THROUGH.format(
            day=self._database.day_of("timestamp"),
            negative=", ".join(f"'{kind.value}'" for kind in sorted(NEGATIVE_KINDS)),
            is_listed=self._database.holds("'\n' || impressions.items || '\n'", "'\n' || events.item || '\n'"),
        )
        rows = self._database.read(sql, since=since, good_rating=good_rating)
        return [ClickThrough(*row[:4], *map(int, row[4:])) for row in rows]

    def export_shopper(self, shopper: str) -> dict[str, Any]:
        """All that the store holds of a shopper, as JSON values."""
        lists = (
            "SELECT list_id, list, version, arm, timestamp, items FROM impressions WHERE shopper = :shopper "
            "ORDER BY timestamp"
        )
        names = ("list_id", "list", "version", "arm", "timestamp", "items")
        return {
            "shopper": shopper,
            "events": [
                {name: value for name, value in row._asdict().items() if name not in ("sequence", "shopper")}
                for row in self.history(shopper, limit=ALL_EVENTS)
            ],
            "impressions": [
                dict(zip(names, (*row, None if items is None else items.split("\n")), strict=True))
                for *row, items in self._database.read(lists, shopper=shopper)
            ],
            "erased_at": self._erasures.when(shopper),
        }

    def erase_shopper(self, shopper: str) -> Erasure:
        """Delete all that the store holds of a shopper, for good; see `fedrec.shop.store.erasure`.

        Events of hers that happen afterwards are taken: she came back. Models that were trained before are what they
        are until they are trained again.

        Raises:
            DataError: it is no id.
            StoreError: nothing was erased.
        """
        return self._erasures.erase(check_id("shopper", shopper))

    def new_key(self, shop: str, name: str, scope: KeyScope) -> tuple[Key, str]:
        """A new key of the API, and its secret, which nobody sees again; see `Keys.add`."""
        return self._keys.add(shop, name, scope)

    def key_of(self, secret: str) -> Key | None:
        """The valid key of a secret; None = there is none."""
        return self._keys.of(secret)

    def keys(self) -> list[Key]:
        """Valid and revoked keys, the oldest first."""
        return self._keys.all()

    def revoke_key(self, key_id: str) -> None:
        """Make a key invalid for ever; see `Keys.revoke`."""
        self._keys.revoke(key_id)

    def mark(self) -> object:
        """Compares unequal to an earlier one once anything was written since, by whatever process.

        Cheap enough to ask before every answer: microseconds on SQLite, one query on PostgreSQL.
        """
        version = self._database.version_of_data()
        return tuple(self._database.read(_MARK)[0]) if version is None else version

    def _change_items(self, keys: Iterable[str], sql: str, **values: Any) -> int:
        num_changed = 0
        with self._database.writing() as transaction:
            first = _last_change(transaction)
            for key in keys:
                num_changed += transaction.change(
                    sql, key=check_id("item", key), next=first + num_changed + 1, **values
                )
        return num_changed

    def _write_queue(self) -> None:
        """Write everything that waits, in one transaction; results are set once it is on disk."""
        batches = []
        while self._queue:
            batches.append(self._queue.popleft())
        results = []
        with self._database.writing() as transaction:
            for batch in batches:
                rows: Sequence[tuple[Any, ...]] = batch.rows
                if not batch.is_forced:
                    rows = self._erasures.without_erased(transaction, batch.rows, 1, 5)
                accepted = transaction.change_all(_APPEND, rows)
                results.append(Appended(accepted, len(rows) - accepted, len(batch.rows) - len(rows)))
        for batch, result in zip(batches, results, strict=True):
            batch.result = result


def _last_change(transaction: Transaction) -> int:
    return int(transaction.read("SELECT coalesce(max(sequence), 0) FROM items")[0][0])


def _stored(row: Sequence[Any]) -> StoredEvent:
    sequence, event_id, shopper, item, kind, value, timestamp, list_id = row
    return StoredEvent(sequence, event_id, shopper, item, _KINDS[kind], value, timestamp, list_id)


def _change(row: Sequence[Any]) -> ItemChange:
    sequence, key, title, category, price, stock, is_hidden, created, is_deleted = row
    return ItemChange(sequence, Item(key, title, category, price, stock, bool(is_hidden), created), bool(is_deleted))


__all__ = ["ALL_EVENTS", "EventRow", "Store"]
