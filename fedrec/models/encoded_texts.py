"""Public item content by a sentence encoder, for items that come one by one; until it has encoded one, by its words."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from fedrec.models.hashed_words import HashedWords, category_names

WAITING = -1
"""Row of a text that is not encoded yet."""

_NOTHING = 0
_FIRST_ROWS = 1_024
_MOST_CHARS = 2_000


def text_of(title: str, category: str) -> str:
    """What is encoded of an item; "" = nothing is known."""
    return ", ".join(part for part in (title.strip(), *category_names(category)) if part)[:_MOST_CHARS]


def digest_of(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def halved(values: np.ndarray) -> np.ndarray:
    """float16, (n, dimension): rows of norm 1, or 0, as they are kept on disk."""
    norms = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    return (values / np.where(norms > 0, norms, 1.0)).astype("<f2")


class Vectors:
    """Vectors of texts, each once; only ever added to, by one thread, so that who has a row may read it at any time."""

    def __init__(self, dimension: int) -> None:
        self._rows = np.zeros((_FIRST_ROWS, dimension), np.float32)
        self._num_rows = 1  # the first is of no text
        self._row_of = {digest_of(""): _NOTHING}

    @property
    def dimension(self) -> int:
        """Columns."""
        return self._rows.shape[1]

    @property
    def rows(self) -> np.ndarray:
        """float32, (num_rows, dimension): norm 1, or 0 where the encoder finds nothing in a text."""
        return self._rows[: self._num_rows]

    def row(self, digest: bytes) -> int:
        """Of a text, `WAITING` if it has none."""
        return self._row_of.get(digest, WAITING)

    def add(self, digests: Sequence[bytes], halves: np.ndarray) -> None:
        """Texts that are new, distinct.

        Args:
            halves: float16, (len(digests), dimension); see `halved`.
        """
        begin, end = self._num_rows, self._num_rows + len(digests)
        if end > len(self._rows):
            grown = np.zeros((max(end, 2 * len(self._rows)), self.dimension), np.float32)
            grown[:begin] = self._rows[:begin]
            self._rows = grown
        values = halves.astype(np.float32)
        norms = np.linalg.norm(values, axis=1, keepdims=True)
        self._rows[begin:end] = values / np.where(norms > 0, norms, 1)
        self._num_rows = end
        self._row_of.update(zip(digests, range(begin, end), strict=True))


@dataclass(frozen=True, repr=False)
class TextProfile:
    """A history's features.

    Attributes:
        encoded: float32, (dimension,); sum over its items that are encoded, by strength.
        waiting, all: words of those that are not, and of all; None where every item of the shelf is encoded.
    """

    encoded: np.ndarray
    waiting: np.ndarray | None = None
    all: np.ndarray | None = None


@dataclass(frozen=True, repr=False)
class EncodedTexts:
    """Features of items; a change makes a new one. Two items are as alike as the cosine of their vectors; by
    `HashedWords` while one of them waits to be encoded.

    Attributes:
        vectors: of texts, shared with later ones of this class.
        row: int64, (num_items,); in ``vectors``, or `WAITING`.
        words: of all items.
    """

    vectors: Vectors
    row: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    words: HashedWords = field(default_factory=HashedWords)

    @property
    def num_items(self) -> int:
        """Rows."""
        return len(self.row)

    @cached_property
    def num_waiting(self) -> int:
        """Items that are not encoded yet."""
        return int(np.count_nonzero(self.row == WAITING))

    def waiting(self, most: int | None = None) -> np.ndarray:
        """int64: positions of items that are not encoded yet, the last ones first."""
        return np.flatnonzero(self.row == WAITING)[::-1][:most]

    def with_items(self, positions: np.ndarray, texts: Sequence[tuple[str, str]]) -> EncodedTexts:
        """After an upsert; see `HashedWords.with_items`. A text that was encoded before has its vector at once."""
        words = self.words.with_items(positions, texts)
        row = np.full(words.num_items, _NOTHING, np.int64)
        row[: self.num_items] = self.row
        return replace(self, row=row, words=words).looked_up(positions, texts)

    def looked_up(self, positions: np.ndarray, texts: Sequence[tuple[str, str]]) -> EncodedTexts:
        """With what is encoded by now of these items, whose texts are unchanged."""
        row = self.row.copy()
        row[positions] = [self.vectors.row(digest_of(text_of(*text))) for text in texts]
        return replace(self, row=row)

    def profile(self, history: np.ndarray, strengths: np.ndarray) -> TextProfile:
        """Sum of the history's features, by strength."""
        row = self.row[history]
        is_waiting = row == WAITING
        encoded = strengths[~is_waiting].astype(np.float32) @ self.vectors.rows[row[~is_waiting]]
        if not self.num_waiting:
            return TextProfile(encoded)
        waiting = self.words.profile(history[is_waiting], strengths[is_waiting])
        return TextProfile(encoded, waiting, self.words.profile(history, strengths))

    def similarities(self, profile: TextProfile, positions: np.ndarray | None = None) -> np.ndarray:
        """float64: of each item (of ``positions``, or all) to a profile; items of one text have the same."""
        row = self.row if positions is None else self.row[positions]
        if positions is None:
            found = (self.vectors.rows @ profile.encoded)[row].astype(np.float64)
        else:
            used, place = np.unique(row, return_inverse=True)
            found = (self.vectors.rows[used] @ profile.encoded)[place].astype(np.float64)
        if profile.waiting is None or profile.all is None:
            return found
        is_waiting = row == WAITING
        places = np.arange(self.num_items) if positions is None else positions
        found[~is_waiting] += self.words.similarities(profile.waiting, places[~is_waiting])
        found[is_waiting] = self.words.similarities(profile.all, places[is_waiting])
        return found

    def between(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """float64, (len(left), len(right)): cosines of items."""
        rows, of_left, of_right = self.vectors.rows, self.row[left], self.row[right]
        found = (rows[of_left] @ rows[of_right].T).astype(np.float64)
        is_waiting = (of_left == WAITING)[:, None] | (of_right == WAITING)[None, :]
        if is_waiting.any():
            found[is_waiting] = self.words.between(left, right)[is_waiting]
        return found
