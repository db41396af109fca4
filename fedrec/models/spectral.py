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

from fedrec.models.co_occurrence import pack_lower, packed_size, unpack_lower

_ABOVE_EDGE = 1.02
"""Eigenvalues below this many edges are dropped: the largest one of pure noise strays a little beyond its limit."""


def noise_edge(noise_sd: float, num_items: int) -> float:
    """Largest eigenvalue that noise alone reaches, in the limit of many items.

    Args:
        noise_sd: standard deviation of the noise in each value of the packed triangle; >= 0.
        num_items: K.
    """
    return math.sqrt(2 * num_items) * noise_sd


def denoise(packed: np.ndarray, num_items: int, noise_sd: float) -> np.ndarray:
    """The positive semi-definite matrix closest (in expected Frobenius norm) to the one under the noise.

    A spike theta of the true matrix shows as l = theta + e^2 / (4 theta), with an eigenvector of squared overlap
    1 - e^2 / (4 theta^2): the best weight for it is theta times that overlap, sqrt(l^2 - e^2).

    Args:
        packed: float64, (packed_size(num_items),); noisy sum. Not changed.
        num_items: K.
        noise_sd: standard deviation of the noise in each value; 0 = none, then a copy comes back.
    Returns:
        float64, (packed_size(num_items),); zeros where no eigenvalue stands out.
    Guarantee: uses the noisy sum and public numbers only, so it costs no privacy (post-processing).
    """
    if noise_sd == 0 or num_items == 0:
        return packed.copy()
    edge = noise_edge(noise_sd, num_items)
    lower = unpack_lower(packed, num_items)
    floor = _ABOVE_EDGE * edge
    values, vectors = eigh(lower, lower=True, overwrite_a=True, check_finite=False, subset_by_value=(floor, np.inf))
    if len(values) == 0:
        return np.zeros(packed_size(num_items))
    vectors *= np.sqrt(np.sqrt(values**2 - edge**2))
    return pack_lower(vectors @ vectors.T)
