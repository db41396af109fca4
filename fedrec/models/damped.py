"""Co-occurrence with the direction of popularity damped, so that a shopper's bound is spent on what is her own.

Much of what a shopper's row says is that she bought what everybody buys, which the popularity sum has told already.
With v the unit vector of released popularity and M = I - (1 - alpha) v v^T, she contributes M x (M x)^T, scaled to norm
1: the Gram matrix of M x, in which the rest weighs more against the noise. M is undone after the sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from fedrec.models.co_occurrence import lower_of, mirror, pack_lower, packed_size, pair_sums, whole_pair_sums

_FINE = 256
"""Weights are rounded to this part of a grid step: a shopper of many items has a small one."""
_ROUNDING = 2.0
"""Steps by which two sums may differ in a value besides their true difference: 1 for rounding, 1 for float64's error,
which is far below it (K x 2^-53 of the largest eigenvalue)."""


def damp(matrix: np.ndarray, direction: np.ndarray, alpha: float) -> np.ndarray:
    """M S M with M = I - (1 - alpha) v v^T; 1 / alpha undoes it.

    Args:
        matrix: float64, (K, K), symmetric. Not changed.
        direction: v, float64, (K,), of norm 1.
        alpha: > 0.
    """
    beta = 1 - alpha
    along = matrix @ direction
    side = along - (0.5 * beta * float(direction @ along)) * direction
    cross = np.outer(beta * direction, side)
    return matrix - cross - cross.T


def damp_rows(factor: np.ndarray, direction: np.ndarray, alpha: float) -> np.ndarray:
    """M U for U (K, k): the factor of M U U^T M. Not changed."""
    return factor - np.outer((1 - alpha) * direction, direction @ factor)


@dataclass(frozen=True)
class DampedCoOccurrence:
    """Every shopper's M x (M x)^T / |M x|^2 in packed form, x her 0/1 row; see `Contributions`.

    Attributes:
        rows: CSR with sorted indices, (num_shoppers, K); entries count as 1.
        direction: v, float64, (K,), of norm 1; released.
        alpha: in (0, 1]; 1 = no damping.
    """

    rows: sparse.csr_matrix
    direction: np.ndarray = field(repr=False)
    alpha: float

    def norms(self) -> np.ndarray:
        """float64, (num_shoppers,): 1, or 0 for an empty row."""
        return (np.diff(self.rows.indptr) > 0).astype(np.float64)

    def total(self, weights: np.ndarray) -> np.ndarray:
        """float64, (packed_size(K),)."""
        return self._damped(pair_sums(self.rows, np.asarray(weights, np.float64) * self._inverse_sizes()))

    def integers(self, weights: np.ndarray, scale: float) -> np.ndarray:
        """int64, (packed_size(K),).

        A shopper's M x (M x)^T has no zeros, so rounding each before the sum would cost K^2 for each of them. Instead
        their pairs are summed as exact whole numbers, and damped and rounded once; what that rounding can add,
        sqrt(size) times `_ROUNDING`, every shopper's bound gives up beforehand.

        **Guarantee:** removing a shopper moves the vector by at most scale x her weight (x her norm, which is 1) in L2.
        """
        room = scale * np.asarray(weights, np.float64) - _ROUNDING * math.sqrt(packed_size(self.rows.shape[1]))
        values = np.trunc(_FINE * np.maximum(room, 0) * self._inverse_sizes())
        damped = self._damped(whole_pair_sums(self.rows, values).astype(np.float64))
        damped *= 1 / _FINE
        return np.rint(damped, out=damped).astype(np.int64)

    def _damped(self, triangle: np.ndarray) -> np.ndarray:
        matrix = mirror(lower_of(triangle, self.rows.shape[1]))
        return pack_lower(damp(matrix, self.direction, self.alpha))

    def _inverse_sizes(self) -> np.ndarray:
        """float64, (num_shoppers,): 1 / |M x|^2, 0 for an empty row; |M x|^2 >= alpha^2 x her number of items."""
        lengths = np.diff(self.rows.indptr).astype(np.float64)
        ones = sparse.csr_matrix((np.ones(self.rows.nnz), self.rows.indices, self.rows.indptr), shape=self.rows.shape)
        sizes = np.maximum(lengths - (1 - self.alpha**2) * (ones @ self.direction) ** 2, self.alpha**2 * lengths)
        return np.where(lengths > 0, 1 / np.where(lengths > 0, sizes, 1), 0)
