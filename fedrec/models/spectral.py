"""What is left of a noisy co-occurrence matrix once the noise's own spectrum is taken out.

The noise of a packed triangle (`fedrec.models.co_occurrence`) is s on the diagonal and s / sqrt(2) off it: the Gaussian
orthogonal ensemble. Its eigenvalues fill [-e, e] with e = sqrt(2) x s x sqrt(K), however large K is, and signal shows
only where it stands above that edge.

Source: edge and overlaps: Capitaine, Donati-Martin & Feral 2009, arXiv:0706.0136; the shrinker that is optimal in
Frobenius norm: Donoho, Gavish & Johnstone 2018, arXiv:1311.0851, in its form for symmetric noise.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import eigh

from fedrec.models.co_occurrence import unpack

_ABOVE_EDGE = 1.02
"""Eigenvalues below this many edges are dropped: the largest one of pure noise strays a little beyond its limit."""


def noise_edge(noise_sd: float, num_items: int) -> float:
    """Largest eigenvalue that noise alone reaches, in the limit of many items.

    Args:
        noise_sd: standard deviation of the noise in each value of the packed triangle; >= 0.
        num_items: K.
    """
    return math.sqrt(2 * num_items) * noise_sd


def denoise(packed: np.ndarray, num_items: int, noise_sd: float, direction: np.ndarray | None = None) -> np.ndarray:
    """The matrix of `signal`, float64 (num_items, num_items); without noise the matrix as it is."""
    if noise_sd == 0 or num_items == 0:
        return unpack(packed, num_items)
    factor = signal(packed, num_items, noise_sd, direction)
    return factor @ factor.T


def denoise_rectangle(matrix: np.ndarray, noise_sd: float) -> np.ndarray:
    """The matrix closest (in expected Frobenius norm) to the one under independent noise in every value.

    Args:
        matrix: float64, (num_rows, num_columns), num_rows >= num_columns. Not changed.
        noise_sd: standard deviation of the noise in each value; 0 = none, then a copy comes back.
    Returns:
        float64, of the same shape; zeros where no singular value stands out.
    """
    num_rows, num_columns = matrix.shape
    if noise_sd == 0 or matrix.size == 0:
        return matrix.copy()
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    aspect, unit = num_columns / num_rows, noise_sd * math.sqrt(num_rows)
    seen = values / unit
    inside = np.maximum((seen**2 - aspect - 1) ** 2 - 4 * aspect, 0)
    kept = np.where(seen > 1 + math.sqrt(aspect), np.sqrt(inside) / np.maximum(seen, 1e-12), 0.0)
    return (left * (kept * unit)) @ right


def signal(packed: np.ndarray, num_items: int, noise_sd: float, direction: np.ndarray | None = None) -> np.ndarray:
    """U of U U^T, the positive semi-definite matrix closest (in expected Frobenius norm) to the one under the noise.

    A spike theta of the true matrix shows as l = theta + e^2 / (4 theta), with an eigenvector of squared overlap
    1 - e^2 / (4 theta^2): the best weight for it is theta times that overlap, sqrt(l^2 - e^2).

    Args:
        packed: float64, (packed_size(num_items),); noisy sum. Not changed.
        num_items: K.
        noise_sd: standard deviation of the noise in each value; > 0.
        direction: float64, (num_items,), of norm 1: one that is known beforehand to carry signal. What the noisy
            matrix shows along it and the cut lost is put back.
    Returns:
        float64, (num_items, k); k = 0 where no eigenvalue stands out.
    Guarantee: uses the noisy sum and public numbers only, so it costs no privacy (post-processing).
    """
    matrix = unpack(packed, num_items)
    edge = noise_edge(noise_sd, num_items)
    seen = 0.0 if direction is None else float(direction @ matrix @ direction)
    floor = _ABOVE_EDGE * edge
    values, vectors = eigh(matrix, lower=True, overwrite_a=True, check_finite=False, subset_by_value=(floor, np.inf))
    vectors *= np.sqrt(np.sqrt(values**2 - edge**2))
    if direction is None:
        return vectors
    lost = seen - float(np.sum((direction @ vectors) ** 2))
    return np.column_stack([vectors, math.sqrt(lost) * direction]) if lost > 0 else vectors
