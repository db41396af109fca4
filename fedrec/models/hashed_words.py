"""Public item content for items that come one by one: TF-IDF of hashed title words beside hashed categories.

`fedrec.models.content` learns its columns from a whole catalogue, which suits training; here a new item has its
features at once. An item has a fixed number of places for words, so that a change of one item moves one row.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

NUM_COLUMNS = 1 << 16
_WORD = re.compile(r"[^\W_]{2,}")
_PLACES = 16
_CATEGORY_PLACES = 4
_WORD_PLACES = _PLACES - _CATEGORY_PLACES
_LEAST_RARITY = 0.1


class ItemWords(Protocol):
    """Features of items by what their texts say; a change makes a new one. See `HashedWords`."""

    def with_items(self, positions: np.ndarray, texts: Sequence[tuple[str, str]]) -> ItemWords: ...

    def profile(self, history: np.ndarray, strengths: np.ndarray) -> Any:
        """For `similarities` alone."""
        ...

    def similarities(self, profile: Any, positions: np.ndarray | None = None) -> np.ndarray: ...

    def between(self, left: np.ndarray, right: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True, repr=False)
class HashedWords:
    """Features of items, rows of norm 1 (or 0 where nothing is known); a change makes a new one.

    Words and categories are a block of norm 1 each, so that the similarity of two items is the mean over both. An item
    keeps its 12 rarest words and its first 4 categories. How rare a word is, is counted over the texts seen so far.

    Attributes:
        columns: int32, (num_items, 16).
        values: float32, (num_items, 16); 0 in places that are not used.
        counts: int32, (NUM_COLUMNS,): texts with each word; give an item again only where its text changed.
    """

    columns: np.ndarray = field(default_factory=lambda: np.zeros((0, _PLACES), np.int32))
    values: np.ndarray = field(default_factory=lambda: np.zeros((0, _PLACES), np.float32))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(NUM_COLUMNS, np.int32))

    @property
    def num_items(self) -> int:
        """Rows."""
        return len(self.columns)

    def with_items(self, positions: np.ndarray, texts: Sequence[tuple[str, str]]) -> HashedWords:
        """After an upsert.

        Args:
            positions: int64, distinct; rows that change, or lie beyond the last one.
            texts: title and category of each, several categories joined by "|".
        """
        words = [Counter(_column("w", word) for word in _WORD.findall(title.lower())) for title, _ in texts]
        counts = self.counts.copy()
        for found in words:
            counts[list(found)] += 1
        num_items = max(self.num_items, int(positions.max(initial=-1)) + 1)
        used = list(set().union(*words))
        rarity = np.maximum(1 + np.log((1 + num_items) / (1 + counts[used])), _LEAST_RARITY)
        rarity_of = dict(zip(used, rarity.tolist(), strict=True))
        columns, values = (np.zeros((num_items, _PLACES), old.dtype) for old in (self.columns, self.values))
        columns[: self.num_items], values[: self.num_items] = self.columns, self.values
        columns[positions], values[positions] = 0, 0
        for row, found, (_, category) in zip(positions.tolist(), words, texts, strict=True):
            weights = {column: (1 + math.log(times)) * rarity_of[column] for column, times in found.items()}
            if len(weights) > _WORD_PLACES:
                kept = sorted(weights, key=lambda column: (-weights[column], column))[:_WORD_PLACES]
                weights = {column: weights[column] for column in kept}
            labels = dict.fromkeys((_column("c", name) for name in category_names(category)[:_CATEGORY_PLACES]), 1.0)
            blocks = [block for block in (weights, labels) if block]
            for at, block in enumerate(blocks):
                norm = math.sqrt(sum(value * value for value in block.values()) * len(blocks))
                start = 0 if at == 0 else len(blocks[0])
                columns[row, start : start + len(block)] = list(block)
                values[row, start : start + len(block)] = [value / norm for value in block.values()]
        return replace(self, columns=columns, values=values, counts=counts)

    def profile(self, history: np.ndarray, strengths: np.ndarray) -> np.ndarray:
        """float64, (NUM_COLUMNS,): sum of the history's features, by strength."""
        added = self.values[history] * strengths[:, None]
        return np.bincount(self.columns[history].ravel(), weights=added.ravel(), minlength=NUM_COLUMNS)

    def similarities(self, profile: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
        """float64: of each item (of ``positions``, or all) to a profile; for one item's profile its cosine."""
        columns, values = self.columns, self.values
        if positions is not None:
            columns, values = columns[positions], values[positions]
        return np.einsum("ij,ij->i", profile[columns], values)

    def between(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """float64, (len(left), len(right)): cosines of items."""
        used, places = np.unique(np.concatenate([self.columns[left], self.columns[right]]), return_inverse=True)
        places = places.reshape(-1, _PLACES)
        width = len(used)
        cells = places + np.arange(len(places))[:, None] * width
        values = np.concatenate([self.values[left], self.values[right]])
        dense = np.bincount(cells.ravel(), weights=values.ravel(), minlength=len(places) * width)
        dense = dense.reshape(len(places), width)
        return np.asarray(dense[: len(left)] @ dense[len(left) :].T)


def category_names(text: str) -> list[str]:
    """The categories of an item from its text, "a|b"; each once."""
    return list(dict.fromkeys(part.strip() for part in text.split("|") if part.strip()))


def _column(kind: str, text: str) -> int:
    return zlib.crc32(f"{kind}:{text}".encode()) % NUM_COLUMNS
