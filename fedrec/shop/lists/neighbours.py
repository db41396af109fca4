"""Each item's strongest weights to others: what a linear model is served from, 8 bytes a weight."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedrec.errors import DataError

MAX_WEIGHTS = 200
"""Weights kept for each bought item, by size, negative ones too."""


@dataclass(frozen=True, repr=False)
class Neighbours:
    """Rows of weights, cut to one width; a bought item is a row, what it speaks for its entries.

    Attributes:
        items: int32, (num_items, width); candidates, by falling weight. Rows with fewer end in the row's own item.
        weights: float32, (num_items, width); 0 in such places.
    """

    items: np.ndarray
    weights: np.ndarray

    def __post_init__(self) -> None:
        shape = self.items.shape
        if len(shape) != 2 or shape != self.weights.shape:
            raise DataError(f"neighbours of shape {shape} and their weights of shape {self.weights.shape} must agree")
        if self.items.size and not (self.items.min() >= 0 and self.items.max() < shape[0]):
            raise DataError(f"neighbours: a position outside 0 to {shape[0] - 1}")
        if not np.isfinite(self.weights).all():
            raise DataError("neighbours: a weight that is not finite")

    @classmethod
    def strongest(cls, blocks: Iterable[np.ndarray], num_items: int, max_weights: int = MAX_WEIGHTS) -> Neighbours:
        """Cut rows of weights.

        Args:
            blocks: float, (rows, num_items) each, all rows in order; bought item by candidate.
            max_weights: kept a row, those of the greatest size; ties to the smaller position.
        """
        kept = [_cut(block, max_weights) for block in blocks]
        width = max((len(items) for block in kept for items, _ in block), default=0)
        items = np.repeat(np.arange(num_items, dtype=np.int32)[:, None], width, axis=1)
        weights = np.zeros((num_items, width), np.float32)
        for row, (places, values) in enumerate(pair for block in kept for pair in block):
            items[row, : len(places)], weights[row, : len(places)] = places, values
        return cls(items, weights)

    @property
    def num_items(self) -> int:
        """Size of the item space."""
        return len(self.items)

    @cached_property
    def means(self) -> np.ndarray:
        """float64, (num_items,): what each bought item adds to the average candidate."""
        return self.weights.sum(axis=1, dtype=np.float64) / max(self.num_items, 1)

    def sums(self, history: np.ndarray, strengths: np.ndarray) -> np.ndarray:
        """float64, (num_items,): strengths @ rows of the history; int64 and float64 (len(history),)."""
        added = self.weights[history] * strengths[:, None]
        return np.bincount(self.items[history].ravel(), weights=added.ravel(), minlength=self.num_items)

    def reach(self, history: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """bool, (len(candidates),): those that any of the history has a weight for."""
        is_asked, is_reached = np.zeros((2, self.num_items), bool)
        is_asked[candidates] = True
        items = self.items[history]
        is_reached[items[is_asked[items] & (self.weights[history] != 0)]] = True
        return is_reached[candidates]

    def between(self, history: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """float64, (len(history), len(candidates)): single weights, 0 where none was kept; candidates are distinct."""
        width = len(candidates)
        column = np.full(self.num_items, width, np.int64)
        column[candidates] = np.arange(width)
        columns = column[self.items[history]]  # (len(history), width of a row)
        cells = columns + np.arange(len(history))[:, None] * (width + 1)
        sums = np.bincount(cells.ravel(), weights=self.weights[history].ravel(), minlength=len(history) * (width + 1))
        return sums.reshape(len(history), width + 1)[:, :width]


def _cut(block: np.ndarray, max_weights: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Candidates (by falling weight) and weights of each row."""
    rows = []
    for row in np.asarray(block, np.float32):
        places = np.flatnonzero(row)
        if len(places) > max_weights:
            sizes = np.abs(row[places])
            least = np.partition(sizes, len(sizes) - max_weights)[len(sizes) - max_weights]
            above, level = places[sizes > least], places[sizes == least]
            places = np.concatenate([above, level[: max_weights - len(above)]])
        order = np.lexsort((places, -row[places]))
        rows.append((places[order].astype(np.int32), row[places[order]]))
    return rows
