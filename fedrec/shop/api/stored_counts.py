"""Rows counted for `/metrics`: not at every scrape, since counting looks at all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedrec.shop.store.store import Store

LEAST_AGE_S = 10.0
REST = 50.0
"""Times as long as it took to count, a count is given out: counting takes 2 % of a thread at most."""


@dataclass(frozen=True)
class Counts:
    """What the store held.

    Attributes:
        num_events: of all.
        shown: lists shown and clicked by (version, arm).
        made: monotonic seconds.
        took_s: to count.
    """

    num_events: int
    shown: Mapping[tuple[str, str], tuple[int, int]]
    made: float
    took_s: float


@dataclass
class StoredCounts:
    """Counts of one store; any thread may ask, and one at a time counts.

    Attributes:
        good_rating: see `Store.click_through`.
    """

    store: Store
    good_rating: float
    clock: Callable[[], float] = time.monotonic
    _found: Counts | None = None
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def newest(self) -> Counts:
        """Counts at most `LEAST_AGE_S` old, or `REST` times what it took to make them; older ones while others count.

        Raises:
            StoreError: the store cannot be read.
        """
        found = self._found
        if found is not None and not self._is_old(found):
            return found
        if not self._turn.acquire(blocking=found is None):
            assert found is not None
            return found
        try:
            if self._found is None or self._is_old(self._found):
                self._found = self._count()
            return self._found
        finally:
            self._turn.release()

    def _is_old(self, found: Counts) -> bool:
        return self.clock() - found.made > max(LEAST_AGE_S, REST * found.took_s)

    def _count(self) -> Counts:
        began = self.clock()
        shown: dict[tuple[str, str], tuple[int, int]] = {}
        for row in self.store.click_through(good_rating=self.good_rating):
            before = shown.get((row.version, row.arm), (0, 0))
            shown[row.version, row.arm] = before[0] + row.shown, before[1] + row.clicked
        num_events = self.store.num_events()
        return Counts(num_events, shown, self.clock(), self.clock() - began)
