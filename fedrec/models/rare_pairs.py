"""A shop's own pairs of items that too few shoppers bought both of: left out of what its lists are made from.

A pair that two shoppers share tells either of them about the other. What is left need not be a Gram matrix any more;
giving each dropped count back to the diagonal at both its items adds v (e_i - e_j) (e_i - e_j)^T for a pair of v, so
with all of it given back it is one again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from scipy import sparse

from fedrec.errors import ConfigError, NotPositiveDefinite
from fedrec.models.co_occurrence import pair_sums, row_starts

GIVEN_BACK = (0.0, 0.25, 1.0)
"""Shares of the dropped counts that are tried, in this order: the ridge is nearly always enough for none."""

_Solved = TypeVar("_Solved")


def solve_without(solve: Callable[[float], _Solved]) -> _Solved:
    """The first solution that exists, from what share of the dropped counts is given back to it.

    Raises:
        NotPositiveDefinite: not even with all of it.
    """
    for share in GIVEN_BACK[:-1]:
        try:
            return solve(share)
        except NotPositiveDefinite:
            continue
    return solve(GIVEN_BACK[-1])


def without_rare_pairs(
    packed: np.ndarray, rows: sparse.csr_matrix, *, least_shoppers: int, given_back: float
) -> np.ndarray:
    """Co-occurrence without the pairs of fewer shoppers.

    Args:
        packed: float64, (packed_size(K),); a sum over ``rows``, in the form of `fedrec.models.co_occurrence`.
        rows: CSR with sorted indices, (num_shoppers, K); entries count as 1.
        least_shoppers: a pair must have; >= 1, and 1 drops nothing.
        given_back: share of a dropped value that is added to the diagonal at both items, in [0, 1].
    Returns:
        float64, (packed_size(K),). **Guarantee:** off the diagonal it is a function of the pairs of at least
        ``least_shoppers`` shoppers alone.
    """
    if not least_shoppers >= 1:
        raise ConfigError(f"least_shoppers = {least_shoppers}: give a whole number of at least 1")
    counts = pair_sums(rows, np.ones(rows.shape[0]))
    starts = row_starts(rows.shape[1])
    is_rare = counts < least_shoppers
    is_rare[starts] = False
    kept = np.where(is_rare, 0.0, packed)
    if given_back > 0:
        dropped = np.flatnonzero(is_rare & (counts > 0))
        first = np.searchsorted(starts, dropped, side="right") - 1
        second = dropped - starts[first] + first
        values = packed[dropped] * (given_back / np.sqrt(2.0))
        for items in (first, second):
            kept[starts] += np.bincount(items, values, len(starts))
    return kept


def gram_without_rare_pairs(rows: sparse.csr_matrix, *, least_shoppers: int, given_back: float) -> np.ndarray:
    """float64 (c, c): rows^T rows without the pairs of fewer shoppers; the same for rows of any values > 0."""
    counts = (binary := rows.astype(bool).astype(np.float64)).T @ binary
    gram = (rows.T @ rows).toarray()
    is_rare = counts.toarray() < least_shoppers
    np.fill_diagonal(is_rare, False)
    lost = np.where(is_rare, gram, 0.0).sum(axis=1)
    gram[is_rare] = 0
    gram[np.diag_indices_from(gram)] += given_back * lost
    return gram
