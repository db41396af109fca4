"""Scores in, ranked lists out: known items leave, ties are broken by a seeded random key."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from fedrec.errors import ConfigError, DataError

NO_ITEM = -1
"""Fills the places of a list for which no item is left."""

_CHUNK_VALUES = 4_000_000
_FEW_TIES = 8


def top_items(
    scores: np.ndarray,
    known: sparse.csr_matrix,
    k: int,
    *,
    seed: int,
    row_ids: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Each row's k best items that are not known yet, best first.

    Equal scores are ordered by a random key of (seed, row id, item), at the k-th place too, so a list does
    not depend on how rows are cut into batches. An item scored -inf is never listed.

    Args:
        scores: float32, (num_rows, num_items); higher is better; -inf allowed, NaN and +inf not.
        known: CSR, (num_rows, num_items); entries other than 0 leave the list.
        k: length of a list, >= 1.
        seed: of the tie key, >= 0.
        row_ids: int64, (num_rows,), >= 0; names of the rows for the tie key; default 0, 1, ... .

    Returns:
        items, int32 (num_rows, k), filled with -1 where fewer than k are left, and their scores, float32
        (num_rows, k), filled with -inf.

    Raises:
        DataError: shapes disagree, or a score is NaN or +inf.
        ConfigError: k or seed is out of range.
    """
    ids = _check(scores, known, k, seed, row_ids)
    num_rows, num_items = scores.shape
    items = np.full((num_rows, k), NO_ITEM, dtype=np.int32)
    listed = np.full((num_rows, k), -np.inf, dtype=np.float32)
    row_keys = _mix(ids.astype(np.uint64) ^ _mix(np.array([seed], dtype=np.uint64)))
    item_keys = _mix(np.arange(num_items, dtype=np.uint64) + np.uint64(0x5851F42D4C957F2D))
    step = max(1, _CHUNK_VALUES // max(num_items, 1))
    for start in range(0, num_rows, step):
        rows = slice(start, min(start + step, num_rows))
        _rank_chunk(_unknown_scores(scores[rows], known[rows]), row_keys[rows], item_keys, items[rows], listed[rows])
    return items, listed


def _check(scores: np.ndarray, known: sparse.csr_matrix, k: int, seed: int, row_ids: np.ndarray | None) -> np.ndarray:
    """Refuse what cannot be ranked; the row ids."""
    if scores.ndim != 2 or scores.shape != known.shape:
        raise DataError(f"scores of shape {scores.shape} and known items of shape {known.shape} must agree")
    if not k >= 1:
        raise ConfigError(f"k = {k}: a list holds at least 1 item")
    if not seed >= 0:
        raise ConfigError(f"seed = {seed}: must be 0 or more")
    ids = np.arange(scores.shape[0]) if row_ids is None else np.asarray(row_ids)
    if ids.shape != (scores.shape[0],):
        raise DataError(f"row_ids of shape {ids.shape} do not name {scores.shape[0]} rows of scores")
    return ids


def _unknown_scores(scores: np.ndarray, known: sparse.csr_matrix) -> np.ndarray:
    """A copy of the scores, float32, with known items at -inf."""
    if not (scores < np.inf).all():
        raise DataError("a score is NaN or +inf: nothing can be ranked by it; the model must give finite scores")
    masked = np.array(scores, dtype=np.float32)
    rows = np.repeat(np.arange(known.shape[0]), np.diff(known.indptr))
    is_known = known.data != 0
    masked[rows[is_known], known.indices[is_known]] = -np.inf
    return masked


def _rank_chunk(
    scores: np.ndarray, row_keys: np.ndarray, item_keys: np.ndarray, items: np.ndarray, listed: np.ndarray
) -> None:
    """Write the best items of each row of ``scores`` into ``items`` and ``listed``."""
    num_items = scores.shape[1]
    k = min(items.shape[1], num_items)
    if k == 0:
        return
    last = np.partition(scores, num_items - k, axis=1)[:, num_items - k, None]  # (rows, 1): the k-th best score
    is_candidate = (scores >= last) & (scores > -np.inf)
    crowded = np.flatnonzero(is_candidate.sum(axis=1) > _FEW_TIES * k)
    if crowded.size:
        is_candidate[crowded] = _settle_ties(scores[crowded], last[crowded], row_keys[crowded], item_keys, k)
    rows, columns = np.divmod(np.flatnonzero(is_candidate), num_items)
    found = scores[rows, columns]
    order = np.lexsort((_mix(row_keys[rows] ^ item_keys[columns]), -found, rows))
    rows, columns, found = rows[order], columns[order], found[order]
    places = np.arange(len(rows)) - np.searchsorted(rows, np.arange(scores.shape[0]))[rows]
    is_kept = places < k
    items[rows[is_kept], places[is_kept]] = columns[is_kept]
    listed[rows[is_kept], places[is_kept]] = found[is_kept]


def _settle_ties(
    scores: np.ndarray, last: np.ndarray, row_keys: np.ndarray, item_keys: np.ndarray, k: int
) -> np.ndarray:
    """Exactly k items of each row as a mask: those above the k-th score and, of its ties, the least keys."""
    keys = _mix(row_keys[:, None] ^ item_keys[None, :]) >> np.uint64(1)
    keys[scores > last] = 0
    keys[scores < last] = np.iinfo(np.uint64).max
    chosen = np.argpartition(keys, k - 1, axis=1)[:, :k]
    is_chosen = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(is_chosen, chosen, True, axis=1)
    return is_chosen


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's output function on uint64 arrays (Steele, Lea, Flood 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
