"""A shop's own pairs of items that too few shoppers bought both of: left out of what its lists are made from.

A pair that two shoppers share tells either of them about the other. Zeros in its place would say that nobody ever has
both, which is wrong as well as bad for lists (and need not be a Gram matrix any more). So every rare pair, seen or not,
counts what chance would give: c is Poisson of rate n_i n_j sum(l_u^2) / sum(l_u)^2, for items of n_i and n_j shoppers
who have l_u items each, and what stands there is its mean below the limit, E[c | c < least].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from scipy import sparse

from fedrec.errors import ConfigError, NotPositiveDefinite
from fedrec.models.co_occurrence import blocks, pair_sums, row_starts

GIVEN_BACK = (0.0, 0.25, 1.0)
"""Shares of the change that are tried on the diagonal, in this order; the ridge is nearly always enough for none."""

_SQRT2 = np.sqrt(2.0)
_Solved = TypeVar("_Solved")


def solve_without(solve: Callable[[float], _Solved]) -> _Solved:
    """The first solution that exists, from what share of the change is given back to it on the diagonal.

    A change E of the matrix with the sums of |E| over rows added to its diagonal is diagonally dominant, so that with
    all of it given back a Gram matrix stays positive semi-definite.

    Raises:
        NotPositiveDefinite: not even then.
    """
    for share in GIVEN_BACK[:-1]:
        try:
            return solve(share)
        except NotPositiveDefinite:
            continue
    return solve(GIVEN_BACK[-1])


def without_rare_pairs(
    packed: np.ndarray, rows: sparse.csr_matrix, *, least_shoppers: int, given_back: float = 0.0, exponent: float = 0.0
) -> np.ndarray:
    """Co-occurrence whose rare pairs are what chance would give.

    Args:
        packed: float64, (packed_size(K),); `fedrec.models.co_occurrence.CoOccurrence` of ``rows``.
        rows: CSR with sorted indices, (num_shoppers, K); entries count as 1.
        least_shoppers: a pair must have; >= 1, and 1 changes nothing.
        given_back: share of the change that is added to the diagonal at both items, in [0, 1].
        exponent: of the co-occurrence.
    Returns:
        float64, (packed_size(K),). **Guarantee:** off the diagonal it is a function of the pairs of at least
        ``least_shoppers`` shoppers, of how many shoppers have each item and of how many items they have.
    """
    if not least_shoppers >= 1:
        raise ConfigError(f"least_shoppers = {least_shoppers}: give a whole number of at least 1")
    num_items = rows.shape[1]
    counts, starts = pair_sums(rows, np.ones(rows.shape[0])), row_starts(num_items)
    items, lengths = counts[starts], np.diff(rows.indptr).astype(np.float64)
    spread, value = _spread(lengths), _value(lengths, exponent)
    kept, change = packed.copy(), np.zeros(num_items)
    for row, start in enumerate(starts.tolist()):
        cells = slice(start + 1, start + num_items - row)
        chance = by_chance(items[row] * items[row + 1 :] * spread, least_shoppers) * (value * _SQRT2)
        kept[cells] = np.where(counts[cells] < least_shoppers, chance, packed[cells])
        if given_back > 0:
            moved = np.abs(kept[cells] - packed[cells]) / _SQRT2
            change[row] += moved.sum()
            change[row + 1 :] += moved
    kept[starts] += given_back * change
    return kept


def gram_without_rare_pairs(
    rows: sparse.csr_matrix, *, least_shoppers: int, given_back: float = 0.0, value: float = 1.0
) -> np.ndarray:
    """float32 (c, c): value x rows^T rows of 0/1 rows, its rare pairs as `without_rare_pairs` has them."""
    gram = (rows.T @ rows).toarray().astype(np.float32)
    items, lengths = gram.diagonal().astype(np.float64), np.diff(rows.indptr).astype(np.float64)
    spread, change = _spread(lengths), np.zeros(len(gram))
    for start, stop in blocks(len(gram)):
        counts = gram[start:stop].copy()
        is_rare = counts < least_shoppers
        is_rare[np.arange(stop - start), np.arange(start, stop)] = False
        chance = by_chance(np.outer(items[start:stop], items) * spread, least_shoppers)
        gram[start:stop] = np.where(is_rare, chance, counts)
        change[start:stop] = np.abs(gram[start:stop] - counts).sum(axis=1)
    gram[np.diag_indices_from(gram)] += (given_back * change).astype(np.float32)
    gram *= np.float32(value)
    return gram


def by_chance(rates: np.ndarray, least: int) -> np.ndarray:
    """float64: mean of a Poisson count of each rate, given that it is below ``least``."""
    weights, term = np.ones_like(rates), np.ones_like(rates)
    total = np.zeros_like(rates)
    for count in range(1, least):
        term = term * rates / count
        weights += term
        total += count * term
    return total / weights


def _spread(lengths: np.ndarray) -> float:
    """sum(l^2) / sum(l)^2: how unevenly items are divided among shoppers."""
    return float((lengths**2).sum() / max(lengths.sum(), 1.0) ** 2)


def _value(lengths: np.ndarray, exponent: float) -> float:
    """What a pair of one shopper adds to the sum, on average over pairs: l ** (-2 exponent)."""
    used = lengths[lengths > 0]
    return float((used ** (2 - 2 * exponent)).sum() / max((used**2).sum(), 1.0))
