"""What was bought together in a shop: its own raw counts of pairs, for the list of that name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from fedrec.shop.lists.neighbours import Neighbours

MAX_PAIRS = 50
"""Kept for each item."""

_BLOCK_ROWS = 128


def own_pairs(rows: sparse.csr_matrix, *, least_shoppers: int, max_pairs: int = MAX_PAIRS) -> Neighbours:
    """Pairs by the cosine of their shoppers: count / sqrt(count of one x count of the other).

    Args:
        rows: float32 CSR, (num_shoppers, num_items); 1 where bought.
        least_shoppers: a pair of fewer is left out; >= 1.
    Returns:
        **Guarantee:** which pairs are there depends on pairs of at least ``least_shoppers`` shoppers alone; how strong
        one is, also on how many had either item.
    """
    counts = np.asarray(rows.sum(axis=0), np.float64).ravel()
    scale = 1 / np.sqrt(np.maximum(counts, 1))
    columns = rows.T.tocsr()

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, rows.shape[1], _BLOCK_ROWS):
            together = (columns[start : start + _BLOCK_ROWS] @ rows).toarray()
            together[np.arange(len(together)), start + np.arange(len(together))] = 0
            together[together < least_shoppers] = 0
            yield together * scale * scale[start : start + len(together), None]

    return Neighbours.strongest(blocks(), rows.shape[1], max_pairs)
