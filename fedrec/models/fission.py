"""Regularisation chosen on the noisy sum itself, by splitting it into two with independent noise.

If Y = G + E and Z is drawn from the law of E, then Y + a Z and Y - Z / a are two noisy versions of one G whose noises
are independent. EASE solved from the first can be judged on the second: its squared error tr (I - B)^T G (I - B) is
linear in G, so the noisy figure is unbiased. No shopper is asked, and nothing is spent.

**Guarantee:** post-processing of a noisy sum. Z protects nothing; its seed may be public.
**Source:** Rasines & Young 2023, "Splitting strategies for post-selection inference", Biometrika 110(3); Leiner et al.
2023, "Data fission: splitting a single data point", arXiv:2112.11079.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from fedrec.models.co_occurrence import packed_size, unpack
from fedrec.models.damped import damp, damp_rows
from fedrec.models.spectral import signal

RIDGES = (7.0, 10.0, 15.0, 20.0, 30.0, 45.0, 70.0, 100.0, 150.0, 220.0, 320.0)
"""Values of lambda that are tried, in units of the co-occurrence sum."""
CONTENT_RATIOS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Values of rho / lambda that may be tried."""
_FIRST_RATIO = 3
_SPLIT = 0.5
_NUM_SPLITS = 2
_MANY_ITEMS = 1000
"""From so many items on one split is enough: each costs K^3, and its figure is a mean over K items."""
_SEED = 0


@dataclass(frozen=True)
class _Halves:
    """One split: what is solved, and what it is judged on.

    Attributes:
        factor: float32, (K, k); U of the solved matrix U U^T.
        judge: float32, (K, K); the other noisy matrix.
    """

    factor: np.ndarray
    judge: np.ndarray


def choose_regularisation(
    packed: np.ndarray, noise_sd: float, direction: np.ndarray, alpha: float, similarity: np.ndarray | None
) -> tuple[float, float]:
    """lambda and rho of the EASE that errs least on noise it has not seen.

    Args:
        packed: float64, (packed_size(K),); the noisy damped co-occurrence sum.
        noise_sd: standard deviation of its noise, > 0.
        direction: v, float64, (K,), of norm 1.
        alpha: of the damping.
        similarity: S, float64, (K, K), of public content, positive semi-definite; None without content.
    Returns:
        lambda, rho.
    """
    rng = np.random.default_rng(_SEED)
    num_splits = _NUM_SPLITS if len(direction) < _MANY_ITEMS else 1
    halves = [_split(packed, noise_sd, direction, alpha, rng) for _ in range(num_splits)]
    if similarity is None:
        return RIDGES[int(np.argmin(_mean_errors(halves, None, 0.0)))], 0.0

    @cache
    def errors(place: int) -> np.ndarray:
        return _mean_errors(halves, similarity, CONTENT_RATIOS[place])

    best = _FIRST_RATIO
    for step in (1, -1):  # one step at a time, while it helps
        while 0 <= best + step < len(CONTENT_RATIOS) and errors(best + step).min() < errors(best).min():
            best += step
    ridge = RIDGES[int(np.argmin(errors(best)))]
    return ridge, CONTENT_RATIOS[best] * ridge


def _mean_errors(halves: list[_Halves], similarity: np.ndarray | None, ratio: float) -> np.ndarray:
    """Mean error over the splits for each lambda, with rho / lambda given; float64, (len(RIDGES),)."""
    prior: np.ndarray = np.eye(len(halves[0].judge), dtype=np.float32)
    if similarity is not None and ratio > 0:
        prior = np.linalg.inv(prior + np.float32(ratio) * similarity.astype(np.float32))
    return np.mean([_errors(half, prior, is_plain=ratio == 0) for half in halves], axis=0)


def _split(
    packed: np.ndarray, noise_sd: float, direction: np.ndarray, alpha: float, rng: np.random.Generator
) -> _Halves:
    num_items = len(direction)
    added = rng.standard_normal(packed_size(num_items)) * noise_sd
    louder = noise_sd * math.sqrt(1 + _SPLIT**2)
    factor = damp_rows(signal(packed + _SPLIT * added, num_items, louder, direction), direction, 1 / alpha)
    judge = damp(unpack(packed - added / _SPLIT, num_items), direction, 1 / alpha)
    return _Halves(factor.astype(np.float32), judge.astype(np.float32))


def _errors(half: _Halves, prior: np.ndarray, *, is_plain: bool) -> np.ndarray:
    """tr (I - B)^T Y (I - B) for each lambda, float64 (len(RIDGES),), with R = (I + ratio S)^-1 given.

    With V the columns of R U turned so that U^T R U is diagonal (D): lambda P = R - V (lambda + D)^-1 V^T, and
    I - B = P diag(1 / diag P). So all lambdas share the two products that cost K^3.
    """
    weighted = half.factor if is_plain else prior @ half.factor
    values, turn = np.linalg.eigh(half.factor.T @ weighted)
    vectors = weighted @ turn  # (K, k)
    judged = half.judge if is_plain else prior @ half.judge
    own = np.einsum("ij,ij->i", judged, prior)  # diag(R Y R)
    cross = judged @ vectors
    inner = vectors.T @ (half.judge @ vectors)
    errors = np.empty(len(RIDGES))
    for place, ridge in enumerate(RIDGES):
        shrunk = vectors / (ridge + values)
        diagonal = prior.diagonal() - np.einsum("ij,ij->i", shrunk, vectors)
        spread = own - 2 * np.einsum("ij,ij->i", cross, shrunk) + np.einsum("ij,ij->i", shrunk @ inner, shrunk)
        errors[place] = np.sum(spread.astype(np.float64) / diagonal.astype(np.float64) ** 2)
    return errors
