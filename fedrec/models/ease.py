"""EASE: the linear item-item model with a closed-form solution, from one or two sums over shoppers.

Source: Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data", arXiv:1905.03375, eq. 8.
Deviations: public item content enters as a prior (rho F F^T is added to the Gram matrix, as if each feature were a
shopper who bought the items that have it), and items without statistics are scored by the same regression.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from scipy import sparse
from scipy.linalg import lapack

from fedrec.errors import ConfigError, NotPositiveDefinite
from fedrec.models.co_occurrence import blocks, packed_diagonal, unpack_lower
from fedrec.models.item_item import ItemItemModel, ItemItemScorer, add_similarity, check_item_item, scaled_content
from fedrec.models.private_item_item import (
    PrivateItemItem,
    PrivateItemItemSettings,
    item_item_requests,
    over_all_items,
)
from fedrec.models.private_rules import item_item_rules
from fedrec.models.recommender import PublicInputs, State
from fedrec.privacy.mechanisms import Outlook, ReleaseRequest


@dataclass(frozen=True)
class EaseSettings:
    """How EASE solves its statistics.

    Attributes:
        regularisation: lambda, added to the diagonal; > 0. In units of the mean popularity of the items that were
            bought at all, so that one value serves shops of ten shoppers and of a million.
        content_weight: rho, weight of the public content prior, in the same units; 0 leaves content out.
        shopper_exponent: a shopper weighs n ** (-2 x exponent) for n items: 0 = plain counts, 0.5 = all the same norm.
        max_items: K, the number of most popular items with statistics; 1 to 12,000.
    """

    regularisation: float = 10.0
    content_weight: float = 0.5
    shopper_exponent: float = 0.0
    max_items: int = 8000

    def __post_init__(self) -> None:
        if not 0 < self.regularisation < np.inf:
            raise ConfigError(f"regularisation = {self.regularisation}: give a number above 0")
        check_item_item(self.max_items, self.shopper_exponent, self.content_weight)


@dataclass(frozen=True)
class Ease(ItemItemModel):
    """Linear item-item weights in closed form (Steck 2019), with titles and categories as a prior."""

    name: ClassVar[str] = "ease"
    fit_fields: ClassVar[tuple[str, ...]] = ("regularisation", "content_weight")
    settings: EaseSettings = field(default_factory=EaseSettings)

    def candidates(self) -> dict[str, tuple[Any, ...]]:
        """Best values of five public sets lie between the outer ones."""
        return {"regularisation": (1.0, 3.0, 10.0, 30.0), "content_weight": (0.0, 0.5, 2.0)}

    def release_requests(self, crowd: float | None = None) -> tuple[ReleaseRequest, ...]:
        """Popularity, then co-occurrence."""
        return item_item_requests(crowd)

    def private(self, outlook: Outlook, public: PublicInputs) -> PrivateEase:
        """Settings by public rules; ``content_weight`` 0 and a smaller ``max_items`` of this model are kept."""
        rules = item_item_rules(outlook, public)
        return PrivateEase(
            PrivateEaseSettings(
                released_items=min(rules.released_items, self.settings.max_items),
                content_weight=rules.content_weight if self.settings.content_weight > 0 else 0.0,
                popularity_weight=rules.popularity_weight,
                crowd=rules.crowd,
                own_weight=rules.own_weight,
                tail_share=rules.tail_share,
                max_items=self.settings.max_items,
                regularisation=rules.regularisation,
            )
        )

    def fit(self, state: State, public: PublicInputs) -> ItemItemScorer:
        """B = I - P diag(1 / diag P) with P = (G + d (lambda I + rho F F^T))^-1, d the mean popularity.

        Raises:
            ConfigError: the statistics are no Gram matrix for this lambda.
        """
        counts = packed_diagonal(state["co_occurrence"], len(state["covered"]))
        unit = float(counts[counts > 0].mean()) if (counts > 0).any() else 1.0
        settings = self.settings
        return _scorer(state, public, ridge=settings.regularisation * unit, weight=settings.content_weight * unit)


@dataclass(frozen=True)
class PrivateEaseSettings(PrivateItemItemSettings):
    """What public rules chose for private EASE.

    Attributes:
        regularisation: lambda, added to the diagonal, in units of the co-occurrence sum; > 0. It and ``content_weight``
            hold for sums without noise and for the mixed model; a noisy sum finds its own.
    """

    regularisation: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.regularisation < np.inf:
            raise ConfigError(f"regularisation = {self.regularisation}: give a number above 0")


@dataclass(frozen=True)
class PrivateEase(PrivateItemItem):
    """EASE from two noisy sums, denoised, with titles and categories as a prior."""

    name: ClassVar[str] = "private-ease"
    fit_fields: ClassVar[tuple[str, ...]] = (
        "popularity_weight",
        *("own_weight", "tail_share", "max_items"),
    )
    is_tuned_on_the_sum: ClassVar[bool] = True
    settings: PrivateEaseSettings = field(default_factory=PrivateEaseSettings)

    def fit(self, state: State, public: PublicInputs) -> ItemItemScorer:
        """As `Ease.fit`, with lambda and rho in the units of the sum itself, and popularity added to the scores.

        With content all items are solved together, those without statistics on content alone, up to ``max_items``.

        Raises:
            ConfigError: the statistics are no Gram matrix for this lambda.
        """
        settings = self.settings
        ridge, weight = (float(state[name][0]) for name in ("ridge", "content_weight"))
        if public.content is not None and weight > 0 and public.num_items <= settings.max_items:
            state = over_all_items(state)
        scale = self._content_scale(state)
        scorer = _scorer(
            self._ranked(state),
            scaled_content(public, scale),
            ridge=ridge,
            weight=weight,
            tail_share=settings.tail_share,
        )
        return replace(scorer, popularity_weight=settings.popularity_weight, content_scale=scale)


def _scorer(
    state: State, public: PublicInputs, *, ridge: float, weight: float, tail_share: float = 1.0
) -> ItemItemScorer:
    """EASE of the state's statistics with ``ridge`` on the diagonal and ``weight`` x F F^T, all in one unit."""
    covered = state["covered"]
    gram = unpack_lower(state["co_occurrence"], len(covered))
    if public.content is not None and weight > 0:
        add_similarity(gram, public.content[covered], weight)
    else:
        public, weight = PublicInputs(public.items), 0.0
    gram[np.diag_indices_from(gram)] += ridge
    weights, diagonal = _solve(gram)
    return ItemItemScorer(
        public=public,
        popularity=state["popularity"],
        covered=covered,
        weights=weights,
        content_map=partial(_content_map, weights, diagonal * weight * tail_share, public, covered),
        tail_weight=tail_share * weight / (ridge + weight),
    )


def _solve(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """B float32 (K, K) in C order and the diagonal of P; ``gram`` (its lower triangle) is used up."""
    num_items = len(gram)
    if num_items == 0:
        return np.zeros((0, 0), np.float32), np.zeros(0)
    factor, failed = lapack.dpotrf(gram, lower=1, overwrite_a=1, clean=0)
    if failed:
        raise NotPositiveDefinite(
            "the co-occurrence statistics are not positive definite; choose a larger regularisation, "
            "or train again if the arrays come from a file"
        )
    inverse, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    diagonal = inverse.diagonal().copy()
    scale = -1 / diagonal
    weights = np.empty((num_items, num_items), np.float32)
    for start, stop in blocks(num_items):
        square = inverse[start:stop, start:stop]
        square = np.tril(square) + np.tril(square, -1).T
        weights[start:stop, start:stop] = square * scale[start:stop]
        below = inverse[stop:, start:stop]
        weights[stop:, start:stop] = below * scale[start:stop]
        weights[start:stop, stop:] = below.T * scale[stop:]
    np.fill_diagonal(weights, 0)
    return weights, diagonal


def _content_map(weights: np.ndarray, scale: np.ndarray, public: PublicInputs, covered: np.ndarray) -> np.ndarray:
    """rho P F, float32 (K, num_features); from B, since P = (I - B) diag(P). ``scale`` is rho x diag(P)."""
    content = public.content
    assert content is not None
    scaled = (sparse.diags(scale.astype(np.float32)) @ content[covered]).tocsr()
    mapped = scaled.toarray()
    mapped -= np.asarray((scaled.T.tocsr() @ weights.T).T)
    return mapped
