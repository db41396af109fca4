"""Many small weighted least-squares problems at once: the inner loop of iALS.

Rows of a sparse matrix of event strengths are grouped by length, so that one batched product builds the normal
equations of a whole group. Every row's result depends on that row alone, not on its neighbours in a batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy import sparse
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

_BATCH_VALUES = 1 << 18
"""Gathered factor values of one batch: 2 MB, so that it stays in the cache between its two uses."""


@dataclass(frozen=True)
class Batch:
    """Rows of similar length, padded to one length.

    Attributes:
        rows: int64, (num_rows,); which rows of the sparse matrix.
        columns: int64, (num_rows, length); num_columns where padded.
        strengths: float64, (num_rows, length); 0 where padded.
    """

    rows: np.ndarray
    columns: np.ndarray
    strengths: np.ndarray


def batches(matrix: sparse.csr_matrix, num_factors: int) -> Iterator[Batch]:
    """All rows of a CSR matrix that have entries, in groups of similar length (at most a quarter of it is padding)."""
    lengths = np.diff(matrix.indptr)
    padded = _padded(lengths)
    for length in np.unique(padded[lengths > 0]).tolist():
        rows = np.flatnonzero((padded == length) & (lengths > 0))
        step = max(1, _BATCH_VALUES // (length * num_factors))
        for start in range(0, len(rows), step):
            group = rows[start : start + step]
            places = matrix.indptr[group][:, None].astype(np.int64) + np.arange(length)
            is_entry = np.arange(length) < lengths[group][:, None]
            np.minimum(places, matrix.nnz - 1, out=places)
            columns = np.where(is_entry, matrix.indices[places], matrix.shape[1])
            yield Batch(group, columns, np.where(is_entry, matrix.data[places], 0.0).astype(np.float64))


def for_each_batch(matrix: sparse.csr_matrix, num_factors: int, work: Callable[[Batch], None]) -> None:
    """Call ``work`` on every batch, on several threads if there is much of it; it must write to its own rows only."""
    spread(work, batches(matrix, num_factors), is_worth_it=matrix.nnz * num_factors > 4 * _BATCH_VALUES)


def spread(work: Callable[[Any], None], parts: Iterable[Any], *, is_worth_it: bool) -> None:
    """Call ``work`` on every part, on `num_threads` threads, with BLAS on one thread each.

    The matrices are so small that BLAS' own threads would cost more than they bring, and together with ours they would
    wait for each other most of the time.
    """
    threads = num_threads() if is_worth_it else 1
    with _blas_threads().limit(limits=1, user_api="blas"):
        if threads == 1:
            for part in parts:
                work(part)
            return
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(work, parts):
                pass


@cache
def _blas_threads() -> ThreadpoolController:
    return ThreadpoolController()


def num_threads() -> int:
    """Cores this process may use, or fewer where OMP_NUM_THREADS says so."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(wanted))) if wanted.isdigit() else cores


def with_padding_row(factors: np.ndarray) -> np.ndarray:
    """The factors (num_columns, d) with a row of zeros behind, which padded columns point to."""
    return np.concatenate([factors, np.zeros((1, factors.shape[1]))])


def normal_equations(
    batch: Batch, padded_factors: np.ndarray, alpha: float, padded_scale: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Each row's sum of alpha r v v^T, (num_rows, d, d), and of scale (1 + alpha r) v, (num_rows, d).

    ``padded_scale`` (num_columns + 1,): of each column, 1 if None; with factors scaled by its root before.
    """
    gathered = padded_factors.take(batch.columns, axis=0)  # (num_rows, length, d)
    strengths = batch.strengths * alpha
    confidence = strengths + 1
    if padded_scale is not None:
        confidence *= padded_scale[batch.columns]
    right = np.matmul(confidence[:, None, :], gathered)[:, 0, :]
    gathered *= np.sqrt(strengths)[:, :, None]
    return np.matmul(gathered.transpose(0, 2, 1), gathered), right


def solve(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """x of left x = right for each row; left (num_rows, d, d), right (num_rows, d)."""
    return np.linalg.solve(left, right[:, :, None])[:, :, 0]


def solve_rows(
    matrix: sparse.csr_matrix, factors: np.ndarray, gram: np.ndarray, *, alpha: float, ridge: np.ndarray
) -> np.ndarray:
    """Each row's factors given those of the columns (Hu, Koren & Volinsky 2008, eq. 4).

    Args:
        matrix: CSR, (num_rows, num_columns); strengths r > 0.
        factors: float64, (num_columns, d).
        gram: float64, (d, d): factors^T factors, over all columns of the model.
        alpha: confidence of an event is 1 + alpha r.
        ridge: float64, (num_rows,); > 0.
    Returns:
        float64, (num_rows, d); zeros for rows without entries, NaN for those whose strengths leave no solution: one
        row's strengths must not keep the others from theirs.
    """
    solved = np.zeros((matrix.shape[0], factors.shape[1]))
    padded = with_padding_row(factors)
    diagonal = np.arange(factors.shape[1])

    def work(batch: Batch) -> None:
        left, right = normal_equations(batch, padded, alpha)
        left += gram
        left[:, diagonal, diagonal] += ridge[batch.rows][:, None]
        solved[batch.rows] = _solve_each(left, right)

    for_each_batch(matrix, factors.shape[1], work)
    return solved


def _solve_each(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`solve`, with NaN in the rows that have no solution."""
    try:
        return solve(left, right)
    except np.linalg.LinAlgError:
        if len(left) == 1:
            return np.full(right.shape, np.nan)
        half = len(left) // 2
        return np.concatenate([_solve_each(left[:half], right[:half]), _solve_each(left[half:], right[half:])])


def _padded(lengths: np.ndarray) -> np.ndarray:
    """Lengths rounded up to an eighth of their power of two, and to at least 4."""
    power = np.exp2(np.floor(np.log2(np.maximum(lengths, 4))))
    quantum = np.maximum(power / 8, 1)
    return (np.ceil(np.maximum(lengths, 4) / quantum) * quantum).astype(np.int64)
