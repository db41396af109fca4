"""Co-occurrence sums: how often two items were bought by the same shopper, as one packed vector.

The Gram matrix G (K, K) of the shoppers' rows travels as its upper triangle, row after row, with sqrt(2) on every entry
off the diagonal: (G_00, sqrt(2) G_01, sqrt(2) G_02, ..., G_11, sqrt(2) G_12, ...). In that form the L2 norm of one
shopper's contribution x x^T is exactly the squared norm of her row x.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.linalg import blas

from fedrec.models.popularity import powers

_SQRT2 = math.sqrt(2.0)
_MACS_PER_PAIR = 700
"""A pair of items scattered one by one costs as much as this many multiply-adds of a blocked product (measured)."""
_PAIRS_AT_ONCE = 1 << 18
_DENSE_BYTES = 64 << 20
_EXACT_FLOAT32 = 1 << 24


def packed_size(num_items: int) -> int:
    """Length of the packed upper triangle of a (num_items, num_items) matrix."""
    return num_items * (num_items + 1) // 2


def row_starts(num_items: int) -> np.ndarray:
    """int64, (num_items,): where row i of the packed triangle starts, that is entry (i, i)."""
    rows = np.arange(num_items, dtype=np.int64)
    return rows * num_items - rows * (rows - 1) // 2


def packed_diagonal(packed: np.ndarray, num_items: int) -> np.ndarray:
    """The diagonal (num_items,) of a packed triangle."""
    return packed[row_starts(num_items)]


def lower_of(triangle: np.ndarray, num_items: int) -> np.ndarray:
    """A triangle's values as they are, float64 (num_items, num_items) in Fortran order; the lower half is written."""
    matrix = np.zeros((num_items, num_items), order="F")
    for row, start in enumerate(row_starts(num_items).tolist()):
        matrix[row:, row] = triangle[start : start + num_items - row]
    return matrix


def mirror(lower: np.ndarray) -> np.ndarray:
    """Write the upper half of a matrix whose lower half is given, in place."""
    for start, stop in blocks(len(lower)):
        lower[start:stop, stop:] = lower[stop:, start:stop].T
        square = lower[start:stop, start:stop]
        square += np.tril(square, -1).T
    return lower


def unpack_lower(packed: np.ndarray, num_items: int) -> np.ndarray:
    """The matrix, float64 (num_items, num_items) in Fortran order; only its lower triangle is written.

    A column below the diagonal of the Fortran array is a row of the packed triangle, so LAPACK gets its triangle by
    plain copies; the rest holds zeros.
    """
    matrix = lower_of(packed, num_items)
    matrix *= 1 / _SQRT2
    np.fill_diagonal(matrix, packed_diagonal(packed, num_items))
    return matrix


def pack_lower(matrix: np.ndarray) -> np.ndarray:
    """The packed triangle of a symmetric matrix (num_items, num_items), of which the lower triangle is read."""
    num_items = len(matrix)
    packed = np.empty(packed_size(num_items))
    for row, start in enumerate(row_starts(num_items).tolist()):
        packed[start : start + num_items - row] = matrix[row:, row]
    packed *= _SQRT2
    packed[row_starts(num_items)] = matrix.diagonal()
    return packed


def unpack(packed: np.ndarray, num_items: int) -> np.ndarray:
    """The whole symmetric matrix, float64 (num_items, num_items)."""
    return mirror(unpack_lower(packed, num_items))


def take_packed(packed: np.ndarray, num_items: int, positions: np.ndarray) -> np.ndarray:
    """The packed triangle of the matrix at ``positions``, rows and columns; zeros where the position is -1.

    Args:
        packed: float64, (packed_size(num_items),).
        num_items: K of ``packed``.
        positions: int64, (num_taken,); each of 0..K-1 at most once, -1 as often as needed.
    """
    num_taken = len(positions)
    if num_taken == num_items and (positions == np.arange(num_items)).all():
        return packed.copy()
    taken = np.zeros(packed_size(num_taken))
    known = np.flatnonzero(positions >= 0)
    places = positions[known]
    old_starts, new_starts = row_starts(num_items), row_starts(num_taken)
    for n, (new_row, place) in enumerate(zip(known.tolist(), places.tolist(), strict=True)):
        others = places[n:]
        low = np.minimum(others, place)
        old = old_starts[low] + np.maximum(others, place) - low
        taken[new_starts[new_row] + known[n:] - new_row] = packed[old]
    return taken


def blocks(length: int, size: int = 512) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive blocks that cover 0..length."""
    for start in range(0, length, size):
        yield start, min(start + size, length)


@dataclass(frozen=True)
class CoOccurrence:
    """Every shopper's x x^T in packed form, where x is her 0/1 row times (number of her items) ** -exponent.

    Attributes:
        rows: CSR with sorted indices, (num_shoppers, K); entries count as 1.
        exponent: 0 gives plain counts, 1/2 rows of norm 1.
    """

    rows: sparse.csr_matrix
    exponent: float = 0.0

    def norms(self) -> np.ndarray:
        """float64, (num_shoppers,): |x_u|^2 = n_u ** (1 - 2 exponent), 0 for an empty history."""
        return powers(np.diff(self.rows.indptr), 1 - 2 * self.exponent)

    def total(self, weights: np.ndarray) -> np.ndarray:
        """float64, (packed_size(K),).

        Shoppers with short histories are added pair by pair, straight into the packed vector; those with long ones by a
        blocked dense product over the items that any of them has. Counts are exact either way; sqrt(2) comes last.
        """
        scaled = np.asarray(weights, np.float64) * powers(np.diff(self.rows.indptr), -2 * self.exponent)
        packed = pair_sums(self.rows, scaled)
        starts = row_starts(self.rows.shape[1])
        diagonal = packed[starts]
        packed *= _SQRT2
        packed[starts] = diagonal
        return packed

    def integers(self, weights: np.ndarray, scale: float) -> np.ndarray:
        """int64, (packed_size(K),).

        A shopper's packed vector holds two distinct values, one on and one off the diagonal, so both are rounded first
        and whole numbers are summed.
        """
        lengths = np.diff(self.rows.indptr)
        on_diagonal = scale * (np.asarray(weights, np.float64) * powers(lengths, -2 * self.exponent))
        summed = whole_pair_sums(self.rows, np.trunc(_SQRT2 * on_diagonal))
        summed[row_starts(self.rows.shape[1])] = np.bincount(
            self.rows.indices, weights=np.repeat(np.trunc(on_diagonal), lengths), minlength=self.rows.shape[1]
        )
        return summed


def pair_sums(rows: sparse.csr_matrix, values: np.ndarray) -> np.ndarray:
    """The triangle of sum_u values[u] r_u r_u^T, r_u the 0/1 row of shopper u; without sqrt(2) off the diagonal.

    Args:
        rows: CSR with sorted indices, (num_shoppers, K); entries count as 1.
        values: float64, (num_shoppers,).
    Returns:
        float64, (packed_size(K),).
    """
    lengths = np.diff(rows.indptr)
    packed = np.zeros(packed_size(rows.shape[1]))
    is_used = (lengths > 0) & (values != 0)
    is_dense = is_used & _is_dense(lengths, rows.shape[1])
    for sign in (1.0, -1.0):
        shoppers = np.flatnonzero(is_dense & (sign * values > 0))
        if len(shoppers):
            _add_dense(packed, rows[shoppers], sign * values[shoppers], sign)
    _add_pairs(packed, rows, values, np.flatnonzero(is_used & ~is_dense))
    return packed


def whole_pair_sums(rows: sparse.csr_matrix, values: np.ndarray) -> np.ndarray:
    """`pair_sums` of whole numbers ``values`` >= 0, int64 and exact.

    Pairs below 2^53 add up exactly in float64; the dense product takes roots and is rounded to the whole numbers it
    stands for, over so few shoppers at once that its error stays below a quarter.
    """
    summed = np.zeros(packed_size(rows.shape[1]), np.int64)
    for start, stop in blocks(rows.shape[0], _exact_rows(float(values.max(initial=0)))):
        part = pair_sums(rows[start:stop], values[start:stop])
        summed += np.rint(part, out=part).astype(np.int64)
    return summed


def _is_dense(lengths: np.ndarray, num_items: int) -> np.ndarray:
    """Whose rows the dense product adds faster, counting what unpacking its square costs."""
    is_long = lengths.astype(np.float64) ** 2 * _MACS_PER_PAIR > float(num_items) ** 2
    saved = float((lengths[is_long].astype(np.float64) ** 2).sum()) / 2
    return is_long & (saved > packed_size(num_items) / 4)


def _exact_rows(largest: float) -> int:
    """How many rows a product of roots may add and still be within a quarter of the whole number it stands for.

    n products of two roots of whole numbers up to b, in any order, err by at most n b x (n + 3) x 2^-53.
    """
    return max(1, int(math.sqrt(2.0**51 / max(largest, 1))) - 3)


def _add_pairs(packed: np.ndarray, rows: sparse.csr_matrix, scaled: np.ndarray, shoppers: np.ndarray) -> None:
    """Add each shopper's pairs to ``packed``, still without sqrt(2); shoppers of one history length go together."""
    if len(shoppers) == 0:
        return
    lengths = np.diff(rows.indptr)[shoppers]
    starts = row_starts(rows.shape[1])
    order = np.argsort(lengths, kind="stable")
    shoppers, lengths = shoppers[order], lengths[order]
    ends = np.flatnonzero(np.diff(lengths, append=-1)) + 1
    for begin, end in zip(np.concatenate([[0], ends[:-1]]).astype(int), ends, strict=True):
        length = int(lengths[begin])
        first, second = np.triu_indices(length)
        step = max(1, _PAIRS_AT_ONCE // len(first))
        for at in range(begin, end, step):
            group = shoppers[at : min(at + step, end)]
            items = rows.indices[rows.indptr[group][:, None] + np.arange(length)].astype(np.int64)
            low = items[:, first]  # (num_in_group, num_pairs)
            cells = starts[low] - low + items[:, second]
            np.add.at(packed, cells.ravel(), np.repeat(scaled[group], len(first)))


def _add_dense(packed: np.ndarray, rows: sparse.csr_matrix, scaled: np.ndarray, sign: float) -> None:
    """Add ``sign`` x rows^T diag(scaled) rows to ``packed`` by symmetric rank-k updates; scaled > 0."""
    items = np.unique(rows.indices)
    is_exact = bool((scaled == 1).all()) and rows.shape[0] < _EXACT_FLOAT32
    dtype, update = (np.float32, blas.ssyrk) if is_exact else (np.float64, blas.dsyrk)
    scale = np.sqrt(scaled)
    gram = np.zeros((len(items), len(items)), dtype, order="F")
    place = np.zeros(rows.shape[1], rows.indices.dtype)
    place[items] = np.arange(len(items))
    step = max(1, _DENSE_BYTES // (max(len(items), 1) * np.dtype(dtype).itemsize))
    for start, stop in blocks(rows.shape[0], step):
        block = np.zeros((stop - start, len(items)), dtype)
        lengths = np.diff(rows.indptr[start : stop + 1])
        columns = place[rows.indices[rows.indptr[start] : rows.indptr[stop]]]
        block[np.repeat(np.arange(stop - start), lengths), columns] = np.repeat(scale[start:stop], lengths)
        gram = update(sign, block.T, beta=1.0, c=gram, overwrite_c=1, lower=1)
    starts = row_starts(rows.shape[1])
    is_everything = len(items) == rows.shape[1]
    for n, item in enumerate(items.tolist()):
        column = gram[n:, n]
        if is_everything:
            packed[starts[item] : starts[item] + len(column)] += column
        else:
            packed[starts[item] - item + items[n:]] += column
