"""What the shop's shoppers want, in all and lately: the shop's own raw statistics, moved by each event.

An event of strength s at time t counts s x 2 ** ((t - origin) / half_life): later ones count more, and what is there
never has to be touched again (forward decay: Cormode, Shkapenyuk, Srivastava, Xu 2009, ICDE, section III).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from fedrec.errors import ConfigError

_MOST_HALF_LIVES = 500.0
"""Later than this after the origin it is moved: 2 ** 1023 is the largest float64."""

_DUST = 1e-9
"""Share of a sum that is nothing but rounding."""


@dataclass(frozen=True)
class TrendSettings:
    """How quickly trends pass.

    Attributes:
        half_life_s: after so many seconds an event counts half; > 0.
    """

    half_life_s: float = 7 * 86_400.0

    def __post_init__(self) -> None:
        if not 0 < self.half_life_s < np.inf:
            raise ConfigError(f"half_life_s = {self.half_life_s}: give a number above 0")


class Trends:
    """Popularity and trending of every item of a shelf; safe to use from several threads.

    **Guarantee:** none between shoppers: these are raw counts, never served under ``joint_dp``.
    """

    def __init__(self, settings: TrendSettings | None = None) -> None:
        self.settings = settings or TrendSettings()
        self._lock = threading.Lock()
        self._origin: float | None = None
        self._popular = np.zeros(0)
        self._trending = np.zeros(0)

    def __repr__(self) -> str:
        return f"Trends({len(self._popular)} items)"

    def popular(self, num_items: int) -> np.ndarray:
        """float64, (num_items,): sum of strengths."""
        return _sized(self._popular, num_items)

    def trending(self, num_items: int) -> np.ndarray:
        """float64, (num_items,): decayed sum of strengths, in a unit that only compares."""
        return _sized(self._trending, num_items)

    def add(self, items: np.ndarray, strengths: np.ndarray, timestamps: np.ndarray, *, now: float) -> None:
        """Count events. A shopper counts once for an item: give only what an event adds to her strongest one so far.

        Args:
            items: int64, positions on the shelf.
            strengths: float64, > 0.
            timestamps: float64, seconds since 1970; later than ``now`` counts as ``now``.
            now: of this machine.
        """
        with self._lock:
            self._add(items, strengths, timestamps, now)

    def take_back(self, items: np.ndarray, strengths: np.ndarray, timestamps: np.ndarray, *, now: float) -> None:
        """Uncount all events of one shopper, who was erased; what she alone wanted is at 0 again.

        Where her events were added one by one, a little more is taken from trending than was added.

        Args: as of `add`, all of her events.
        """
        kept = _strongest(np.zeros(len(items), np.int64), items, strengths, timestamps)
        with self._lock:
            before = self._popular, self._trending
            self._add(items[kept], -strengths[kept], timestamps[kept], now)
            self._popular, self._trending = (
                np.where(left > _DUST * _sized(old, len(left)), left, 0.0)
                for left, old in zip((self._popular, self._trending), before, strict=True)
            )

    def _add(self, items: np.ndarray, strengths: np.ndarray, timestamps: np.ndarray, now: float) -> None:
        if len(items) == 0:
            return
        times = np.minimum(timestamps, now)
        if self._origin is None:
            self._origin = now
        if now - self._origin > _MOST_HALF_LIVES * self.settings.half_life_s:
            self._trending = self._trending * np.exp2((self._origin - now) / self.settings.half_life_s)
            self._origin = now
        decayed = strengths * np.exp2((times - self._origin) / self.settings.half_life_s)
        num_items = max(len(self._popular), int(items.max()) + 1)
        self._popular = _sized(self._popular, num_items) + np.bincount(items, strengths, num_items)
        self._trending = _sized(self._trending, num_items) + np.bincount(items, decayed, num_items)

    def add_histories(
        self, shoppers: np.ndarray, items: np.ndarray, strengths: np.ndarray, timestamps: np.ndarray, *, now: float
    ) -> None:
        """Count a whole table: of each shopper and item the strongest event, of these the last.

        Args:
            shoppers: int64 codes; the rest as `add`.
        """
        kept = _strongest(shoppers, items, strengths, timestamps)
        self.add(items[kept], strengths[kept], timestamps[kept], now=now)


def _strongest(shoppers: np.ndarray, items: np.ndarray, strengths: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
    """int64: of each shopper and item the place of the strongest event, of these the last."""
    order = np.lexsort((timestamps, strengths, items, shoppers))
    is_last = np.ones(len(order), bool)
    same = (shoppers[order][1:] == shoppers[order][:-1]) & (items[order][1:] == items[order][:-1])
    is_last[:-1] = ~same
    return order[is_last]


def _sized(values: np.ndarray, num_items: int) -> np.ndarray:
    """The first ``num_items``, zeros where there are fewer."""
    if len(values) == num_items:
        return values
    sized = np.zeros(num_items)
    sized[: min(len(values), num_items)] = values[:num_items]
    return sized
