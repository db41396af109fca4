"""A shop's own model solved over the whole shared item space, though the shop keeps only its own catalogue of it.

EASE over all items with M = lambda (I + r F F^T) + g U U^T + X^T X: public content F, released statistics U U^T of low
rank (the spectral cut leaves few directions) at what they are worth to this shop, the shop's own scaled rows X. Items
that the shop doesn't sell still link those that it does. R = (I + r F F^T)^-1 holds no shop's rows and is solved once
for all shops alone and for small ones that join. For large ones it is solved once for each release, which says where
content counts: more for popular items, as in the shared model, and more in all where the noisy sum asks for it. A shop
adds its rows by the Woodbury identity, which
takes milliseconds for a small one. As the noise grows U empties, and what is left is the shop alone with content.

Everything here happens inside the shop, or on public and released arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve, lapack

from fedrec.errors import NotPositiveDefinite
from fedrec.models.co_occurrence import blocks, unpack
from fedrec.models.ease import Ease, PrivateEase
from fedrec.models.item_item import ItemItemScorer, add_similarity, scaled_content
from fedrec.models.popularity import binary_rows
from fedrec.models.private_rules import popularity_share
from fedrec.models.rare_pairs import gram_without_rare_pairs, solve_without
from fedrec.models.recommender import PublicInputs, Recommender, State

MOST_ITEMS = 8_000
"""Of a larger shared item space a resolvent would exceed 256 MB: there is no whole-space model then."""

RIDGE = 30.0
"""lambda, in units of the co-occurrence sum of unit-norm rows."""

CONTENT_RATIO = 0.1
"""r: content's weight against the ridge. A large shop that joins goes to twice that where the release asks for it."""

OWN_WEIGHT = 10.0
"""What a shop's own rows count beside released ones, on average over its shoppers."""

POPULARITY_WEIGHT = 0.1
"""Added to a score for an item that all of the shop's shoppers have."""

_PSEUDO_SHOPPERS = 10.0
"""The released popularity counts like so many shoppers of the shop."""

_HALF_WORTH = 3.0
_SMALL_SHOP = 100.0
_LARGE_SHOP = 300
"""From so many shoppers on content follows the release (frozen on other sets: no gain by more at 190 shoppers, one
at 470)."""

_RELATIVE_RANK = 1e-9

_LEAST_POPULARITY = 0.1
"""Items rarer than this part of the mean count as if they had it, where content is tilted by popularity."""


@dataclass(frozen=True, repr=False)
class ReleasedFactor:
    """Released co-occurrence as U U^T.

    Attributes:
        items: int64, (K,); positions in the shared item space.
        factor: float64, (K, k).
        popularity: float64, (num_items,), >= 0; released, of the whole item space.
        crowd: x, declared shoppers over the noise of one release with the whole budget.
        asked_content: content's weight against the ridge that suits the noisy sum best; >= 0.
        content_tilt: similarity of two items is multiplied by (the product of their popularities, over the mean of the
            released items') to this power; >= 0.
    """

    items: np.ndarray
    factor: np.ndarray
    popularity: np.ndarray
    crowd: float
    asked_content: float = 0.0
    content_tilt: float = 0.0

    def content_ratio(self) -> float:
        """r of a large shop: up to twice the usual where the noisy sum asks for it."""
        return CONTENT_RATIO + min(self.asked_content, CONTENT_RATIO)

    def content_scale(self) -> np.ndarray:
        """float64, (num_items,): what items' features are multiplied with, 1 at the mean popularity."""
        mean = float(self.popularity[self.items].mean()) if len(self.items) else 0.0
        if mean <= 0:
            return np.ones(len(self.popularity))
        return np.maximum(self.popularity / mean, _LEAST_POPULARITY) ** self.content_tilt

    def worth(self, num_shoppers: int) -> float:
        """g in (0, 1]: what the released statistics count beside those of so many shoppers of one's own.

        With more noise, or more shoppers of its own, a shop's model tends to that of the shop alone.
        """
        return 1 / (1 + (_HALF_WORTH * (num_shoppers + _SMALL_SHOP) / self.crowd) ** 2)


class WholeSpace:
    """What no shop's rows are in: solved when first asked for, once for all shops alone and once for each release."""

    def __init__(self, public: PublicInputs) -> None:
        self._public = public
        self._alone: np.ndarray | None = None
        self._latest: ReleasedFactor | None = None
        self._joined = np.zeros((0, 0), np.float32)

    @property
    def is_small_enough(self) -> bool:
        """Whether there are whole-space models at all."""
        return self._public.num_items <= MOST_ITEMS

    def resolvent(self, released: ReleasedFactor | None = None, num_shoppers: int = 0) -> np.ndarray:
        """float32, (num_items, num_items): R = (I + r F F^T)^-1, symmetric.

        Args:
            released: in a large shop r and the features' scale follow from it; None = a shop alone. Only the latest
                one's R is kept.
            num_shoppers: of the shop.
        """
        if released is None or num_shoppers < _LARGE_SHOP or self._public.content is None:
            if self._alone is None:
                self._alone = _resolvent(self._public, CONTENT_RATIO)
            return self._alone
        if released is not self._latest:
            scaled = scaled_content(self._public, released.content_scale())
            self._latest, self._joined = released, _resolvent(scaled, released.content_ratio())
        return self._joined


def has_whole_space(model: Recommender) -> bool:
    """Whether this is the model that the whole space is solved for."""
    return isinstance(model, Ease | PrivateEase)


def released_factor(model: Recommender, state: State) -> ReleasedFactor:
    """The released statistics of a private item-item model as a factor; directions of no weight are left out."""
    settings: Any = getattr(model, "settings")  # noqa: B009 - every private item-item model has these
    items = state["covered"]
    values, vectors = np.linalg.eigh(unpack(state["co_occurrence"], len(items)))
    is_kept = values > _RELATIVE_RANK * max(values.max(initial=0.0), 1.0)
    factor = vectors[:, is_kept] * np.sqrt(values[is_kept])
    shoppers, share = 1 / max(settings.popularity_weight, 1e-12), popularity_share(settings.crowd)
    least = shoppers / (settings.crowd * math.sqrt(share))  # the noise of one item's popularity
    return ReleasedFactor(
        items,
        factor,
        np.maximum(state["popularity"], least),
        settings.crowd,
        asked_content=float(state["content_weight"][0] / state["ridge"][0]),
        content_tilt=settings.content_tilt,
    )


def whole_space_scorer(
    space: WholeSpace,
    positions: np.ndarray,
    histories: sparse.csr_matrix,
    public: PublicInputs,
    released: ReleasedFactor | None = None,
    *,
    least_shoppers: int = 1,
) -> ItemItemScorer:
    """A shop's model over its own catalogue, solved over the whole item space.

    Args:
        positions: int64, (num_shop_items,): place in the shared item space; -1 = known here alone, without links.
        histories: float32 CSR, (num_shoppers, num_shop_items); the shop's training rows.
        public: the shop's own item space.
        released: what the federation released; None = the shop alone.
        least_shoppers: own pairs of fewer shoppers do not count, see `fedrec.models.rare_pairs`.
    """
    rows = binary_rows(histories)
    scaled = _scaled(rows)
    weights = _weights(space.resolvent(released, scaled.shape[0]), positions, scaled, released, least_shoppers)
    covered = np.arange(public.num_items, dtype=np.int64)
    return ItemItemScorer(
        public,
        _rates(rows, positions, released),
        covered,
        weights,
        content_map=lambda: np.zeros((len(covered), 0), np.float32),
        popularity_weight=POPULARITY_WEIGHT,
    )


def _rates(rows: sparse.csr_matrix, positions: np.ndarray, released: ReleasedFactor | None) -> np.ndarray:
    """float64, (c,): the share of shoppers who have each item; the released popularity counts like a few of them."""
    num_shoppers = int(np.count_nonzero(np.diff(rows.indptr)))
    counts = np.bincount(rows.indices, minlength=rows.shape[1]).astype(np.float64)
    if released is not None:
        prior = np.where(positions >= 0, released.popularity[positions], 0.0)
        if prior.sum() > 0:
            mean_length = counts.sum() / max(num_shoppers, 1)
            counts += _PSEUDO_SHOPPERS * np.minimum(prior / prior.sum() * mean_length, 1.0)
    return counts / (num_shoppers + _PSEUDO_SHOPPERS)


def _scaled(rows: sparse.csr_matrix) -> sparse.csr_matrix:
    """0/1 rows times one factor, so that their squared norm is the own weight on average; empty ones are left out."""
    lengths = np.diff(rows.indptr)
    scaled = rows.astype(np.float64)[lengths > 0]
    scaled.data[:] = np.sqrt(OWN_WEIGHT / max(float(lengths[lengths > 0].mean()) if scaled.nnz else 1.0, 1.0))
    return scaled.tocsr()


def _weights(
    resolvent: np.ndarray,
    positions: np.ndarray,
    rows: sparse.csr_matrix,
    released: ReleasedFactor | None,
    least_shoppers: int = 1,
) -> np.ndarray:
    """B float32 (c, c), zero diagonal: -P / diag P with P = M^-1 at the shop's items, up to a scale."""
    inverse = _at(resolvent, positions, positions)
    if released is not None and released.factor.shape[1]:
        factor = released.factor * np.sqrt(released.worth(rows.shape[0]))
        linked = _at(resolvent, positions, released.items) @ factor  # (c, k)
        inner = factor.T @ (_at(resolvent, released.items, released.items) @ factor)
        inverse -= _correction(linked, inner)
    if least_shoppers > 1 and rows.shape[0]:
        before, value = _inverse(inverse.astype(np.float32)), float(rows.data.max(initial=0.0)) ** 2
        binary = rows.astype(bool).astype(np.float32)

        def solve(given_back: float) -> np.ndarray:
            own = gram_without_rare_pairs(binary, least_shoppers=least_shoppers, given_back=given_back, value=value)
            return _inverse(before + own / np.float32(RIDGE))

        inverse = solve_without(solve)
    elif rows.shape[0] <= len(positions):
        linked = np.asarray(rows @ inverse).T  # (c, n)
        inverse -= _correction(linked, np.asarray(rows @ linked))
    else:
        inverse = _inverse(_inverse(inverse.astype(np.float32)) + (rows.T @ rows).toarray().astype(np.float32) / RIDGE)
    weights = (-inverse / inverse.diagonal()).astype(np.float32)
    np.fill_diagonal(weights, 0)
    return np.ascontiguousarray(weights)


def _correction(linked: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Z (lambda I + inner)^-1 Z^T, the Woodbury term of Z = ``linked`` (c, k)."""
    inner = inner.copy()
    inner[np.diag_indices_from(inner)] += RIDGE
    factor = cho_factor(inner, lower=True, overwrite_a=True, check_finite=False)
    return np.asarray(linked @ cho_solve(factor, linked.T, check_finite=False))


def _at(matrix: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """float64: the matrix at these rows and columns; an item at -1 is linked to itself alone."""
    taken = matrix[np.ix_(rows, columns)].astype(np.float64)
    taken[rows < 0], taken[:, columns < 0] = 0, 0
    if rows is columns:
        alone = np.flatnonzero(rows < 0)
        taken[alone, alone] = 1
    return taken


def _resolvent(public: PublicInputs, ratio: float) -> np.ndarray:
    matrix = np.zeros((public.num_items, public.num_items), np.float32, order="F")
    if public.content is not None:
        add_similarity(matrix, public.content, ratio)
    matrix[np.diag_indices_from(matrix)] += 1
    return _inverse(matrix)


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Inverse of a positive definite float32 matrix; its lower triangle is read, both triangles are written.

    The ridge keeps the condition number low (97 on MovieLens-100K, where double precision moves no weight by 1e-6).
    """
    factor, failed = lapack.spotrf(matrix, lower=1, clean=0)
    if failed:
        raise NotPositiveDefinite("the shop's statistics are not positive definite: count pairs of fewer shoppers, too")
    inverse, _ = lapack.spotri(factor, lower=1, overwrite_c=1)
    for start, stop in blocks(len(inverse)):
        inverse[start:stop, stop:] = inverse[stop:, start:stop].T
        square = inverse[start:stop, start:stop]
        inverse[start:stop, start:stop] = np.tril(square) + np.tril(square, -1).T
    return np.asarray(inverse)
