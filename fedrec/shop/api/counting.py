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


class Counting:
    """Popularity and trends of one shop, from its events."""

    def __init__(self, store: Store, taste: TasteSettings, settings: TrendSettings) -> None:
        self._store, self._taste, self._settings = store, taste, settings
        self._thread = ThreadPoolExecutor(1, "counting")
        self._is_over = False

    def begin(self, shelf: Shelf, until: int) -> Future[Trends]:
        """Count all events so far.

        Args:
            shelf: whose positions count.
            until: sequence of the last event.
        """
        return self._thread.submit(self._all, shelf, until)

    def add(self, trends: Trends, events: Sequence[StoredEvent], shelf: Shelf) -> None:
        """Count these too, soon."""
        self._thread.submit(self._add, trends, events, shelf).add_done_callback(_log_failure)

    def close(self) -> None:
        """Stop; what was not counted is in the store."""
        self._is_over = True
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _all(self, shelf: Shelf, until: int) -> Trends:
        codes: dict[str, int] = {}
        rows: list[np.ndarray] = []
        after = 0
        while after < until and not self._is_over:
            began = time.perf_counter()
            if not (page := self._store.events_after(after, _PAGE)):
                break
            after = page[-1].sequence
            found = [
                (codes.setdefault(one.shopper, len(codes)), shelf.position(one.item), strength, one.timestamp)
                for one in page
                if one.sequence <= until and (strength := strength_of(one, self._taste)) > 0
            ]
            rows.append(np.array(found, np.float64).reshape(-1, 4))
            time.sleep(_REST * (time.perf_counter() - began))
        table = np.concatenate(rows) if rows else np.empty((0, 4))
        table = table[table[:, 1] != NOT_HERE]
        trends = Trends(self._settings)
        shoppers, items = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
        trends.add_histories(shoppers, items, table[:, 2], table[:, 3], now=time.time())
        return trends

    def _add(self, trends: Trends, events: Sequence[StoredEvent], shelf: Shelf) -> None:
        rows = []
        for shopper, new in _by_shopper(events).items():
            strongest: dict[str, float] = {}
            for one in (*(one for one in self._store.history(shopper) if one.sequence < new[0].sequence), *new):
                strength, before = strength_of(one, self._taste), strongest.get(one.item, 0.0)
                strongest[one.item] = max(strength, before)
                place = shelf.position(one.item)
                if one.sequence >= new[0].sequence and place != NOT_HERE and strength > before:
                    rows.append((place, strength - before, one.timestamp))
        if rows:
            places, strengths, timestamps = (np.array(column) for column in zip(*rows, strict=True))
            trends.add(places, strengths, timestamps, now=time.time())


def _log_failure(done: Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        _log.warning("events were not counted for popularity (%s); the next start counts them", type(error).__name__)


def _by_shopper(events: Sequence[StoredEvent]) -> dict[str, list[StoredEvent]]:
    """In the order of arrival."""
    found: dict[str, list[StoredEvent]] = defaultdict(list)
    for one in events:
        found[one.shopper].append(one)
    return found
