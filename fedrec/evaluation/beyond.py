"""What lists are like beyond their hits: coverage, concentration, novelty, diversity, serendipity, popularity.

Lists are int32 (num_shoppers, list_length), item positions, best first, filled with -1 at the end; every
figure looks at the first k places and at the items that are there. Coverage, novelty, diversity, serendipity
and average popularity are RecTools' CatalogCoverage, MeanInvUserFreq, IntraListDiversity, Serendipity and
AvgRecPopularity (0.19).
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from fedrec.errors import DataError

HEAD_SHARE_OF_ITEMS = 0.2
"""The head of a catalogue: its most popular 20 % of items."""


def exposure(items: np.ndarray, num_items: int, *, k: int) -> np.ndarray:
    """int64, (num_items,): in how many lists each item stands among the first k."""
    first = items[:, :k]
    return np.bincount(first[first >= 0], minlength=num_items)


def catalogue_coverage(items: np.ndarray, num_items: int, *, k: int) -> float:
    """Share of the catalogue that stands in at least one list; NaN for an empty catalogue."""
    return float((exposure(items, num_items, k=k) > 0).mean()) if num_items else float("nan")


def gini(items: np.ndarray, num_items: int, *, k: int) -> float:
    """Gini index of the exposure of all catalogue items: 0 = all alike, 1 - 1/num_items = one has all.

    NaN where nothing is listed at all.
    """
    counts = np.sort(exposure(items, num_items, k=k))
    total = counts.sum()
    if total == 0:
        return float("nan")
    ranks = np.arange(1, num_items + 1)
    return float(((2 * ranks - num_items - 1) * counts).sum() / (num_items * total))


def novelty(items: np.ndarray, popularity: np.ndarray, num_shoppers: int, *, k: int) -> np.ndarray:
    """Mean self-information of each list in bits.

    Args:
        items: the lists.
        popularity: (num_items,); training shoppers of each item. Items of nobody count as one shopper's.
        num_shoppers: shoppers with training events, >= 1.

    Returns:
        float64, (num_lists,): mean of -log2(popularity / num_shoppers); NaN for an empty list.

    Raises:
        DataError: num_shoppers is below 1.
    """
    if not num_shoppers >= 1:
        raise DataError(f"num_shoppers = {num_shoppers}: novelty needs 1 shopper with training events")
    return _list_mean(items, -np.log2(np.maximum(popularity, 1) / num_shoppers), k)


def average_popularity(items: np.ndarray, popularity: np.ndarray, *, k: int) -> np.ndarray:
    """float64, (num_lists,): mean number of training shoppers of the listed items; NaN for an empty list."""
    return _list_mean(items, np.asarray(popularity, dtype=np.float64), k)


def popularity_bias(items: np.ndarray, popularity: np.ndarray, *, k: int) -> np.ndarray:
    """Average popularity of each list over that of the catalogue: 1 = no bias, comparable between shops.

    This is RecTools' AvgRecPopularity(normalize=True) times the number of items.

    Returns:
        float64, (num_lists,); NaN for an empty list or a catalogue without training events.
    """
    total = float(np.sum(popularity))
    if total == 0:
        return np.full(items.shape[0], np.nan)
    return average_popularity(items, popularity, k=k) * (len(popularity) / total)


def head_share(items: np.ndarray, popularity: np.ndarray, *, k: int) -> np.ndarray:
    """float64, (num_lists,): share of each list that is among the most popular 20 % of items; NaN for an
    empty list.

    Items as popular as the last one of the head belong to it, unless nobody had them.
    """
    if len(popularity) == 0:
        return np.full(items.shape[0], np.nan)
    size = max(1, round(HEAD_SHARE_OF_ITEMS * len(popularity)))
    least = max(np.partition(popularity, len(popularity) - size)[len(popularity) - size], 1)
    return _list_mean(items, (np.asarray(popularity) >= least).astype(np.float64), k)


def serendipity(items: np.ndarray, hits: np.ndarray, popularity: np.ndarray, *, k: int) -> np.ndarray:
    """How far each list's hits stand above the place that popularity would give them.

    Per listed item: is it a hit x max(0, P_list - P_popular) with P = (num_items + 1 - rank) / num_items, the
    rank being the place in the list, or the dense rank of the popularity count (P_popular = 0 for an item
    that nobody had); then the mean over the list.

    Args:
        items: the lists.
        hits: bool, as from `fedrec.evaluation.metrics.hit_matrix`.
        popularity: (num_items,); training shoppers of each item.

    Returns:
        float64, (num_lists,); 0 for an empty list.
    """
    num_items = len(popularity)
    if num_items == 0 or items.shape[1] == 0:
        return np.zeros(items.shape[0])
    levels = np.unique(popularity)
    dense_rank = len(levels) - np.searchsorted(levels, popularity)  # 1 = the highest count
    by_popularity = np.where(popularity > 0, (num_items + 1 - dense_rank) / num_items, 0.0)
    first = items[:, :k]
    by_list = (num_items - np.arange(first.shape[1])) / num_items
    surprise = np.maximum(by_list[None, :] - by_popularity[np.maximum(first, 0)], 0.0) * hits[:, :k]
    sizes = np.maximum((first >= 0).sum(axis=1), 1)
    return np.where(first >= 0, surprise, 0.0).sum(axis=1) / sizes


def intra_list_diversity(items: np.ndarray, content: sparse.csr_matrix, *, k: int) -> np.ndarray:
    """Mean distance 1 - cosine over the pairs of each list, from public item content.

    An item without content has cosine 0 with every other. No pair and no item-by-item matrix is ever written
    out: for rows of norm 1 the cosines of all pairs sum to (|sum of rows|^2 - sum of |row|^2) / 2.

    Args:
        items: the lists.
        content: CSR, (num_items, num_features); need not be normalised.

    Returns:
        float64, (num_lists,) in [0, 2]; 0 for a list of fewer than two items.
    """
    features = sparse.csr_matrix(content, dtype=np.float64)
    squares = np.asarray(features.multiply(features).sum(axis=1)).ravel()
    scale = np.where(squares > 0, 1 / np.sqrt(np.where(squares > 0, squares, 1)), 0.0)
    features = sparse.csr_matrix(sparse.diags_array(scale) @ features)
    rows, places = np.nonzero(items[:, :k] >= 0)
    members = sparse.csr_matrix(
        (np.ones(len(rows)), (rows, items[rows, places])), shape=(items.shape[0], content.shape[0])
    )
    sums = sparse.csr_matrix(members @ features)  # (num_lists, num_features)
    of_sum = np.asarray(sums.multiply(sums).sum(axis=1)).ravel()
    of_rows = members @ (squares > 0).astype(np.float64)
    sizes = np.asarray(members.sum(axis=1)).ravel()
    pairs = sizes * (sizes - 1) / 2
    cosines = (of_sum - of_rows) / 2
    return np.where(pairs > 0, 1 - cosines / np.maximum(pairs, 1), 0.0)


def _list_mean(items: np.ndarray, values: np.ndarray, k: int) -> np.ndarray:
    """Mean of the listed items' values, NaN for an empty list."""
    first = items[:, :k]
    is_item = first >= 0
    sizes = is_item.sum(axis=1)
    if values.size == 0:
        return np.full(items.shape[0], np.nan)
    sums = np.where(is_item, values[np.maximum(first, 0)], 0.0).sum(axis=1)
    return np.where(sizes > 0, sums / np.maximum(sizes, 1), np.nan)
