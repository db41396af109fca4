"""One rate limit for all that is asked of a server: a shop's API by key, a coordinator by shop and address."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable

_MOST_NAMES = 10_000


class Pace:
    """So many a second of each name, and so many at once after a pause; several threads may use it."""

    def __init__(self, per_s: float, at_once: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Args: per_s: > 0. at_once: >= 1."""
        self._step_s, self._slack_s, self._clock = 1 / per_s, (at_once - 1) / per_s, clock
        self._due: dict[Hashable, float] = {}
        self._lock = threading.Lock()

    def wait_s(self, name: Hashable, *, most_s: float = float("inf")) -> float:
        """Seconds until the next one of this name is due, which this one then is.

        Args:
            most_s: one that would wait longer is not counted; the caller refuses it.
        """
        with self._lock:
            now = self._clock()
            if len(self._due) > _MOST_NAMES:
                self._due = {one: due for one, due in self._due.items() if due > now}
            due = max(self._due.get(name, 0.0), now)
            wait = max(0.0, due - now - self._slack_s)
            if wait <= most_s:
                self._due[name] = due + self._step_s
            return wait
