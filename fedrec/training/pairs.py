"""A shopper's items beside items she has not: what pairwise and pointwise losses are made of.

Items are drawn without replacement and apart from her own, so that an item stands at most once in her row: then the
gradient of the item table has one row for each of her items, and its norm is known without adding rows up.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from fedrec.errors import ConfigError, DataError
from fedrec.privacy.draws import Draws

_CHUNK_VALUES = 4_000_000
_LOW = np.int64((1 << 32) - 1)
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Pairs:
    """Some of each shopper's items, then items she has not, then padding.

    Attributes:
        ids: int64, (num_shoppers, length); the padding repeats a row's first item (0 where she has none): how much of
            it there is hangs on others, so it must touch nothing that her own items don't (a value that isn't finite).
        num_positives: int64, (num_shoppers,); how many of a row's first places are her own items.
        num_negatives: int64, (num_shoppers,); how many places after these are items she has not.
    """

    ids: np.ndarray
    num_positives: np.ndarray
    num_negatives: np.ndarray

    @property
    def is_positive(self) -> np.ndarray:
        """bool, (num_shoppers, length)."""
        return _first_places(self.num_positives, self.ids.shape[1])

    @property
    def is_pair(self) -> np.ndarray:
        """bool, (num_shoppers, length): False in the padding."""
        return _first_places(self.num_positives + self.num_negatives, self.ids.shape[1])


def draw_pairs(
    histories: sparse.csr_matrix,
    draws: Draws,
    *,
    negatives: int,
    max_pairs: int,
    popularity: np.ndarray | None = None,
    is_seated: bool = False,
) -> Pairs:
    """Draw each shopper's items of one step: hers up to a public number, and others beside them.

    Args:
        histories: CSR, (num_shoppers, num_items); entries > 0 where bought.
        draws: of these shoppers.
        negatives: drawn for each of her items, >= 1; fewer where she has left too few items.
        max_pairs: the longest row, >= 1 + negatives; of longer histories a uniform part is drawn.
        popularity: float, (num_items,), > 0: draw others by it (a release; never a count of raw data); None = uniform.
        is_seated: pad to the most that a shopper of the largest of the rows' `size_classes` can have, so that of two
            shoppers of one class neither changes the other's padding.
    Raises:
        ConfigError: negatives or max_pairs is out of range.
        DataError: a popularity is not above 0, or there is not one for each item.
    Guarantee: a row depends on the shopper's own history and draws alone.
    """
    if not (negatives >= 1 and max_pairs >= 1 + negatives):
        raise ConfigError(f"negatives = {negatives}, max_pairs = {max_pairs}: give negatives >= 1 and room for a pair")
    positives, num_positives = draw_positives(histories, draws.of("positives"), max_pairs // (1 + negatives))
    wanted = negatives * num_positives
    others, num_negatives = draw_negatives(histories, draws.of("negatives"), wanted, popularity)
    length = int((num_positives + num_negatives).max(initial=0))
    if is_seated:
        most = 1 << int(size_classes(np.diff(histories.indptr)).max(initial=0)) >> 1
        length = min((1 + negatives) * min(most, max_pairs // (1 + negatives)), histories.shape[1])
    ids = np.zeros((len(positives), length), np.int64)
    has_items = num_positives > 0
    ids[has_items] = positives[has_items, :1]
    is_positive = _first_places(num_positives, length)
    ids[is_positive] = positives[_first_places(num_positives, positives.shape[1])]
    is_negative = _first_places(num_positives + num_negatives, length) & ~is_positive
    ids[is_negative] = others[_first_places(num_negatives, others.shape[1])]
    return Pairs(ids, num_positives, num_negatives)


def draw_positives(histories: sparse.csr_matrix, draws: Draws, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Up to ``most`` of each shopper's items, without replacement: int64 (num_shoppers, width), and how many (…,)."""
    owned, counts = padded(histories)
    taken = np.minimum(counts, most)
    heavy = np.flatnonzero(counts > most)
    if len(heavy):
        keys = draws.take(heavy).words(owned.shape[1]).astype(np.int64) << 32 | owned[heavy]
        keys[~_first_places(counts[heavy], owned.shape[1])] = _NEVER
        keys.sort(axis=1)
        owned[heavy, :most] = keys[:, :most] & _LOW
    return owned[:, : int(taken.max(initial=0))], taken


def draw_negatives(
    histories: sparse.csr_matrix, draws: Draws, wanted: np.ndarray, popularity: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Items that a shopper has not, each at most once, one after the other uniformly or by popularity.

    Args:
        histories: CSR, (num_shoppers, num_items); entries > 0 where bought.
        draws: of these shoppers.
        wanted: int64, (num_shoppers,).
        popularity: float, (num_items,), > 0; None = uniform.

    Returns:
        int64 (num_shoppers, width) with 0 in the padding, and how many there are, int64 (num_shoppers,): fewer than
        wanted where she has left too few.
    """
    num_shoppers, num_items = histories.shape
    if popularity is not None and not (popularity.shape == (num_items,) and (popularity > 0).all()):
        raise DataError(f"popularity must hold {num_items} values above 0, one for each item")
    num_open = num_items - np.diff(histories.indptr)
    counts = np.minimum(wanted, num_open)
    drawn = np.zeros((num_shoppers, int(counts.max(initial=0))), np.int64)
    is_ranked = np.full(num_shoppers, popularity is not None) | (2 * counts > num_open)
    by_size = np.where(is_ranked, 0, np.ceil(np.log2(np.maximum(counts, 1))).astype(np.int64) + 1)
    for size in np.unique(by_size):  # rows of about one length together: little padding
        rows = np.flatnonzero((by_size == size) & (counts > 0))
        width = num_items if size == 0 else 4 << int(size)
        step = max(1, _CHUNK_VALUES // width)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            some = histories[part], draws.take(part), counts[part]
            ids = _by_rank(*some, popularity) if size == 0 else _by_rejection(*some)
            drawn[part, : ids.shape[1]] = ids
    return drawn, counts


def own_draws(histories: sparse.csr_matrix, purpose: str) -> Draws:
    """Draws by what a shopper has: the same whoever asks and whenever, for what must not look random.

    Not for training: whoever knows a history knows them.
    """
    digests = np.empty((histories.shape[0], 16), np.uint8)
    indices = histories.indices.astype(np.int64)
    for row, (start, end) in enumerate(zip(histories.indptr[:-1], histories.indptr[1:], strict=True)):
        items = np.sort(indices[start:end]).tobytes()
        digests[row] = np.frombuffer(hashlib.blake2b(items, digest_size=16).digest(), np.uint8)
    return Draws.seeded(purpose, digests)


def _by_rank(
    histories: sparse.csr_matrix, draws: Draws, counts: np.ndarray, popularity: np.ndarray | None
) -> np.ndarray:
    """The first items of a random order of all that are open; exponential clocks where popularity counts."""
    num_items = histories.shape[1]
    words = draws.words(num_items)
    if popularity is not None:
        clocks = -np.log((words + 0.5) * 2.0**-32) / (popularity / popularity.max())
        words = clocks.astype(np.float32).view(np.uint32)  # bits of floats >= 0 are in their order
    keys = words.astype(np.int64) << 32 | np.arange(num_items)
    keys[np.repeat(np.arange(len(counts)), np.diff(histories.indptr)), histories.indices] = _NEVER
    keys.sort(axis=1)
    width = int(counts.max())
    return np.where(_first_places(counts, width), keys[:, :width] & _LOW, 0)


def _by_rejection(histories: sparse.csr_matrix, draws: Draws, counts: np.ndarray) -> np.ndarray:
    """Uniform items in a stream of each shopper's own, without those she has and those that came before.

    Half of the open items at most are wanted, so that a stream of a few times their number holds them.
    """
    num_rows, num_items = histories.shape
    owned, num_owned = padded(histories)
    drawn = np.zeros((num_rows, int(counts.max())), np.int64)
    left = np.arange(num_rows)
    is_open = 1 - (num_owned + counts) / num_items
    length = int((counts / np.maximum(is_open, 0.1)).max()) + 16
    while len(left):
        stream = (draws.take(left).words(length).astype(np.uint64) * np.uint64(num_items) >> np.uint64(32)).astype(
            np.int64
        )
        keys = np.concatenate([owned[left] << 32, stream << 32 | np.arange(1, length + 1)], axis=1)
        keys[:, : owned.shape[1]][~_first_places(num_owned[left], owned.shape[1])] = _NEVER
        keys.sort(axis=1)
        is_new = np.ones(keys.shape, bool)
        is_new[:, 1:] = keys[:, 1:] >> 32 != keys[:, :-1] >> 32
        place = keys & _LOW  # in the stream, from 1; 0 for her own
        is_new &= (place > 0) & (keys != _NEVER)
        order = np.where(is_new, place, length + 1)
        order.sort(axis=1)
        is_done = is_new.sum(axis=1) >= counts[left]
        wanted = _first_places(counts[left], drawn.shape[1]) & is_done[:, None]
        order = np.where(wanted, order[:, : drawn.shape[1]], 1)
        drawn[left[is_done]] = np.where(wanted, np.take_along_axis(stream, order - 1, axis=1), 0)[is_done]
        left, length = left[~is_done], 2 * length  # a longer stream begins with the same draws
    return drawn


def padded(histories: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Each row's items in rising order, int64 (num_rows, longest), and how many."""
    if not histories.has_sorted_indices:
        histories = histories.sorted_indices()
    counts = np.diff(histories.indptr).astype(np.int64)
    items = np.zeros((len(counts), int(counts.max(initial=0))), np.int64)
    items[_first_places(counts, items.shape[1])] = histories.indices
    return items, counts


def size_classes(counts: np.ndarray) -> np.ndarray:
    """int64: 0 for no items, 1 for one, c for up to 2^(c - 1), more than 2^(c - 2)."""
    bits = np.frexp(np.maximum(counts - 1.0, 0))[1]  # of counts - 1; exact, as no logarithm needs to be
    return np.where(counts > 0, bits + 1, 0).astype(np.int64)


def _first_places(counts: np.ndarray, width: int) -> np.ndarray:
    """bool, (num_rows, width): a row's first ``counts`` places."""
    return np.arange(width) < counts[:, None]
