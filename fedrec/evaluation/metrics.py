"""How well ranked lists hit what shoppers took: one value per shopper.

Lists are int32 (num_shoppers, list_length), item positions, best first, filled with -1 at the end. What a
shopper took is a row of a CSR matrix (num_shoppers, num_items). The denominator of a mean is the shoppers
given: leave those without a test item out before (a relevant count of 0 is refused).
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from fedrec.errors import ConfigError, DataError


def hit_matrix(items: np.ndarray, taken: sparse.csr_matrix) -> np.ndarray:
    """bool, (num_shoppers, list_length): is the item at this place of the list one that the shopper took?

    Args:
        items: int, (num_shoppers, list_length); -1 = no item.
        taken: CSR, (num_shoppers, num_items); entries other than 0 count.

    Raises:
        DataError: shapes disagree or an item is outside the catalogue.
    """
    if items.ndim != 2 or items.shape[0] != taken.shape[0]:
        raise DataError(f"lists of shape {items.shape} do not fit the test rows of shape {taken.shape}")
    num_items = taken.shape[1]
    if items.size and not (items.min() >= -1 and items.max() < num_items):
        raise DataError(f"a list names item {items.max()} or {items.min()}: allowed are -1 to {num_items - 1}")
    is_taken = taken.data != 0
    rows = np.repeat(np.arange(taken.shape[0], dtype=np.int64), np.diff(taken.indptr))[is_taken]
    codes = np.sort(rows * num_items + taken.indices[is_taken])
    if codes.size == 0:
        return np.zeros(items.shape, dtype=bool)
    asked = np.arange(items.shape[0], dtype=np.int64)[:, None] * num_items + items
    places = np.minimum(np.searchsorted(codes, asked), codes.size - 1)
    return (codes[places] == asked) & (items >= 0)


def relevant_counts(taken: sparse.csr_matrix, missing: np.ndarray | None = None) -> np.ndarray:
    """int64, (num_shoppers,): test items of each shopper.

    Args:
        taken: CSR, (num_shoppers, num_items); entries other than 0 count once.
        missing: int64, (num_shoppers,); test items that are not in the catalogue, so no list can hold them.
            Given, they count as relevant and hence as misses (the extra columns); not given, they do not count.
    """
    canonical = sparse.csr_matrix(taken, copy=True)
    canonical.sum_duplicates()
    canonical.eliminate_zeros()
    counts = np.diff(canonical.indptr).astype(np.int64)
    return counts if missing is None else counts + missing


def hit_rate(hits: np.ndarray, *, k: int) -> np.ndarray:
    """float64, (num_shoppers,): 1 where at least one of the first k items hits."""
    return np.asarray(_first(hits, k).any(axis=1), dtype=np.float64)


def recall(hits: np.ndarray, relevant: np.ndarray, *, k: int) -> np.ndarray:
    """float64, (num_shoppers,): hits among the first k / test items; relevant int64, >= 1."""
    return _first(hits, k).sum(axis=1) / _counts(relevant)


def capped_recall(hits: np.ndarray, relevant: np.ndarray, *, k: int) -> np.ndarray:
    """float64, (num_shoppers,): hits among the first k / min(k, test items).

    Source: Liang et al. 2018, arXiv:1802.05814, section 4.2 (their Recall@R), used by split ``strong``.
    """
    return _first(hits, k).sum(axis=1) / np.minimum(_counts(relevant), k)


def ndcg(hits: np.ndarray, relevant: np.ndarray, *, k: int) -> np.ndarray:
    """float64, (num_shoppers,): binary NDCG @k; the ideal list holds min(k, test items) hits."""
    gains = 1.0 / np.log2(np.arange(2, k + 2))
    found = _first(hits, k)
    ideal = np.cumsum(gains)[np.minimum(_counts(relevant), k) - 1]
    return np.minimum(found @ gains[: found.shape[1]] / ideal, 1.0)  # rounding may lift a perfect list above 1


def mrr(hits: np.ndarray, *, k: int) -> np.ndarray:
    """float64, (num_shoppers,): 1 / place of the first hit among the first k items, 0 without one."""
    found = _first(hits, k)
    if found.shape[1] == 0:
        return np.zeros(found.shape[0])
    return found.any(axis=1) / (found.argmax(axis=1) + 1.0)


def _first(hits: np.ndarray, k: int) -> np.ndarray:
    """The first k places; a shorter list has no hits after its end."""
    if not k >= 1:
        raise ConfigError(f"k = {k}: a metric looks at 1 item or more")
    return hits[:, :k]


def _counts(relevant: np.ndarray) -> np.ndarray:
    """The counts, refused where one is 0."""
    if relevant.size and not relevant.min() >= 1:
        raise DataError("a shopper without test items has no recall or NDCG: leave such shoppers out before")
    return relevant
