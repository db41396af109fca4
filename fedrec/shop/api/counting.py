"""Keeps count of what the shop's shoppers want, in a thread of its own: nobody's answer waits for it."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from fedrec.shop.lists.shelf import NOT_HERE, Shelf
from fedrec.shop.lists.taste import TasteSettings, strength_of
from fedrec.shop.lists.trends import Trends, TrendSettings
from fedrec.shop.store.rows import StoredEvent
from fedrec.shop.store.store import Store

_log = logging.getLogger("fedrec.shop.api")
_PAGE = 1_000
_REST = 3.0
"""Times as long as it counted a page it lets others have Python's lock."""

_MOST_STRANGE = 10_000
"""Items that no shelf has, but events name, to be counted once one has them; those beyond wait for the next count."""


class Counting:
    """Popularity and trends of one shop, from its events."""

    def __init__(self, store: Store, taste: TasteSettings, settings: TrendSettings) -> None:
        self._store, self._taste, self._settings = store, taste, settings
        self._thread = ThreadPoolExecutor(1, "counting")
        self._turn = 0
        self._strange: set[str] = set()

    def begin(self, shelf: Shelf, until: int) -> Future[Trends]:
        """Count all events so far; what was begun before is given up.

        Args:
            shelf: whose positions count.
            until: sequence of the last event.
        """
        self._turn += 1
        self._strange = set()
        return self._thread.submit(self._all, shelf, until, self._turn)

    def lacks(self, shelf: Shelf) -> bool:
        """Whether the shelf has an item by now whose events were left out, since it came after them."""
        return any(shelf.position(item) != NOT_HERE for item in tuple(self._strange))

    def take_back(self, trends: Trends, events: Sequence[StoredEvent], shelf: Shelf) -> None:
        """Uncount a shopper at once.

        Args:
            events: all of hers.
        """
        rows = [(0, shelf.position(one.item), strength_of(one, self._taste), one.timestamp) for one in events]
        trends.take_back(*_columns(np.array(rows, np.float64).reshape(-1, 4))[1:], now=time.time())

    def add(self, trends: Trends, events: Sequence[StoredEvent], shelf: Shelf) -> None:
        """Count these too, soon."""
        self._thread.submit(self._add, trends, events, shelf).add_done_callback(_log_failure)

    def close(self) -> None:
        """Stop; what was not counted is in the store."""
        self._turn = -1
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _place(self, item: str, shelf: Shelf) -> int:
        place = shelf.position(item)
        if place == NOT_HERE and len(self._strange) < _MOST_STRANGE:
            self._strange.add(item)
        return place

    def _all(self, shelf: Shelf, until: int, turn: int) -> Trends:
        codes: dict[str, int] = {}
        rows: list[np.ndarray] = []
        after = 0
        while after < until and turn == self._turn:
            began = time.perf_counter()
            if not (page := self._store.events_after(after, _PAGE)):
                break
            after = page[-1].sequence
            found = [
                (codes.setdefault(one.shopper, len(codes)), self._place(one.item, shelf), strength, one.timestamp)
                for one in page
                if one.sequence <= until and (strength := strength_of(one, self._taste)) > 0
            ]
            rows.append(np.array(found, np.float64).reshape(-1, 4))
            time.sleep(_REST * (time.perf_counter() - began))
        trends = Trends(self._settings)
        shoppers, *columns = _columns(np.concatenate(rows) if rows else np.empty((0, 4)))
        trends.add_histories(shoppers, *columns, now=time.time())
        return trends

    def _add(self, trends: Trends, events: Sequence[StoredEvent], shelf: Shelf) -> None:
        rows = []
        for shopper, new in _by_shopper(events).items():
            strongest: dict[str, float] = {}
            for one in (*(one for one in self._store.history(shopper) if one.sequence < new[0].sequence), *new):
                strength, before = strength_of(one, self._taste), strongest.get(one.item, 0.0)
                strongest[one.item] = max(strength, before)
                if one.sequence < new[0].sequence or strength <= before:
                    continue
                if (place := self._place(one.item, shelf)) != NOT_HERE:
                    rows.append((place, strength - before, one.timestamp))
        if rows:
            places, strengths, timestamps = (np.array(column) for column in zip(*rows, strict=True))
            trends.add(places, strengths, timestamps, now=time.time())


def _columns(table: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Shoppers, positions, strengths and times of the rows that count."""
    table = table[(table[:, 1] != NOT_HERE) & (table[:, 2] > 0)]
    return table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2], table[:, 3]


def _log_failure(done: Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        _log.warning("events were not counted for popularity (%s); the next start counts them", type(error).__name__)


def _by_shopper(events: Sequence[StoredEvent]) -> dict[str, list[StoredEvent]]:
    """In the order of arrival."""
    found: dict[str, list[StoredEvent]] = defaultdict(list)
    for one in events:
        found[one.shopper].append(one)
    return found
