"""Item neighbours: cosine of co-occurrence with shrinkage, and public item content as a prior.

Source: Deshpande & Karypis 2004, "Item-based top-N recommendation algorithms" (cosine, k neighbours); the shrinkage
term in the denominator is Bell & Koren's 2007 as Ferrari Dacrema et al. 2019, arXiv:1907.06902, use it. The content
prior enters before the normalisation, as in EASE: G + rho F F^T, so an item nobody bought still has neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from scipy import sparse

from fedrec.errors import ConfigError
from fedrec.models.co_occurrence import blocks, unpack_lower
from fedrec.models.item_item import ItemItemModel, ItemItemScorer, add_similarity, check_item_item, scaled_content
from fedrec.models.private_item_item import PrivateItemItem, PrivateItemItemSettings, item_item_requests
from fedrec.models.private_rules import item_item_rules
from fedrec.models.recommender import PublicInputs, State
from fedrec.privacy.mechanisms import Outlook, ReleaseRequest

_TIE = 1e-6
"""Neighbours this close (relative) to the last one stay in: which of two equals is kept must not hang on rounding."""


@dataclass(frozen=True)
class ItemKnnSettings:
    """How similarities come from the statistics.

    Attributes:
        neighbours: each item is scored by at most this many most similar items (and ties with the last); >= 1.
        shrinkage: added to the product of the norms in the cosine's denominator, in shoppers; >= 0.
        content_weight: rho, weight of the public content prior, in shoppers; 0 leaves content out.
        shopper_exponent: a shopper weighs n ** (-2 x exponent) for n items: 0 = plain counts, 0.5 = all the same norm.
        max_items: K, the number of most popular items with statistics; 1 to 12,000.
    """

    neighbours: int = 50
    shrinkage: float = 20.0
    content_weight: float = 3.0
    shopper_exponent: float = 0.0
    max_items: int = 8000

    def __post_init__(self) -> None:
        _check_neighbours(self.neighbours, self.shrinkage)
        check_item_item(self.max_items, self.shopper_exponent, self.content_weight)


def _check_neighbours(neighbours: int, shrinkage: float) -> None:
    if not neighbours >= 1:
        raise ConfigError(f"neighbours = {neighbours}: give a whole number of at least 1")
    if not 0 <= shrinkage < np.inf:
        raise ConfigError(f"shrinkage = {shrinkage}: give a number of at least 0")


@dataclass(frozen=True)
class ItemKnn(ItemItemModel):
    """Items that the same shoppers bought (cosine with shrinkage), with titles and categories as a prior."""

    name: ClassVar[str] = "itemknn"
    fit_fields: ClassVar[tuple[str, ...]] = ("neighbours", "shrinkage", "content_weight")
    settings: ItemKnnSettings = field(default_factory=ItemKnnSettings)

    def candidates(self) -> dict[str, tuple[Any, ...]]:
        """As many combinations as EASE tries."""
        return {"neighbours": (20, 100), "shrinkage": (10.0, 100.0), "content_weight": (0.0, 3.0, 10.0)}

    def release_requests(self, crowd: float | None = None) -> tuple[ReleaseRequest, ...]:
        """Popularity, then co-occurrence."""
        return item_item_requests(crowd)

    def private(self, outlook: Outlook, public: PublicInputs) -> PrivateItemKnn:
        """Settings by public rules; ``neighbours``, ``content_weight`` 0 and a smaller ``max_items`` are kept."""
        rules = item_item_rules(outlook, public)
        return PrivateItemKnn(
            PrivateItemKnnSettings(
                released_items=min(rules.released_items, self.settings.max_items),
                content_weight=rules.content_weight if self.settings.content_weight > 0 else 0.0,
                popularity_weight=rules.popularity_weight,
                crowd=rules.crowd,
                own_weight=rules.own_weight,
                tail_share=rules.tail_share,
                max_items=self.settings.max_items,
                neighbours=self.settings.neighbours,
                shrinkage=rules.regularisation,
            )
        )

    def fit(self, state: State, public: PublicInputs) -> ItemItemScorer:
        """Weight of bought item i for candidate j: G'_ij / (sqrt(G'_ii G'_jj) + shrinkage), G' = G + rho F F^T."""
        return _scorer(state, public, self.settings)


@dataclass(frozen=True)
class PrivateItemKnnSettings(PrivateItemItemSettings):
    """What public rules chose for private item neighbours.

    Attributes:
        neighbours: as in `ItemKnnSettings`.
        shrinkage: added to the product of the norms, in units of the co-occurrence sum; >= 0.
    """

    neighbours: int = 50
    shrinkage: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_neighbours(self.neighbours, self.shrinkage)


@dataclass(frozen=True)
class PrivateItemKnn(PrivateItemItem):
    """Item neighbours from two noisy sums, denoised, with titles and categories as a prior."""

    name: ClassVar[str] = "private-itemknn"
    fit_fields: ClassVar[tuple[str, ...]] = (
        *("neighbours", "shrinkage", "content_weight", "popularity_weight"),
        *("own_weight", "tail_share", "max_items"),
    )
    settings: PrivateItemKnnSettings = field(default_factory=PrivateItemKnnSettings)

    def fit(self, state: State, public: PublicInputs) -> ItemItemScorer:
        """As `ItemKnn.fit`."""
        scale, settings = self._content_scale(state), self.settings
        scorer = _scorer(self._ranked(state), scaled_content(public, scale), settings, tail_share=settings.tail_share)
        return replace(scorer, popularity_weight=settings.popularity_weight, content_scale=scale)


def _scorer(
    state: State,
    public: PublicInputs,
    settings: ItemKnnSettings | PrivateItemKnnSettings,
    *,
    tail_share: float = 1.0,
) -> ItemItemScorer:
    """Cosines with shrinkage of the state's statistics plus rho F F^T."""
    covered = state["covered"]
    gram = unpack_lower(state["co_occurrence"], len(covered))
    weight = settings.content_weight if public.content is not None else 0.0
    if public.content is not None and weight > 0:
        add_similarity(gram, public.content[covered], weight)
    else:
        public = PublicInputs(public.items)
    norms = np.sqrt(gram.diagonal())
    content_scale = _ratio(weight, norms * np.sqrt(weight) + settings.shrinkage)
    return ItemItemScorer(
        public=public,
        popularity=state["popularity"],
        covered=covered,
        weights=_neighbours(gram, norms, settings),
        content_map=partial(_content_map, content_scale * tail_share, public, covered),
        tail_weight=tail_share * float(_ratio(weight, np.array([weight + settings.shrinkage]))[0]),
    )


def _neighbours(
    lower: np.ndarray, norms: np.ndarray, settings: ItemKnnSettings | PrivateItemKnnSettings
) -> sparse.csr_matrix:
    """Similarities float32 (K, K) with the strongest entries of each column, from the lower triangle of G'."""
    num_items = len(norms)
    columns = []
    for start, stop in blocks(num_items):
        square = lower[start:stop, start:stop]
        block = np.concatenate(
            [lower[start:stop, :start].T, np.tril(square) + np.tril(square, -1).T, lower[stop:, start:stop]]
        )  # (num_items, stop - start)
        similarity = _ratio(block, np.outer(norms, norms[start:stop]) + settings.shrinkage)
        similarity[np.arange(start, stop), np.arange(stop - start)] = 0
        if settings.neighbours < num_items:
            last = np.partition(similarity, num_items - settings.neighbours, axis=0)[num_items - settings.neighbours]
            similarity[similarity < last * (1 - _TIE)] = 0
        columns.append(sparse.csc_matrix(similarity.astype(np.float32)))
    if not columns:
        return sparse.csr_matrix((0, 0), dtype=np.float32)
    return sparse.hstack(columns, format="csr")


def _ratio(above: Any, below: np.ndarray) -> np.ndarray:
    """above / below, 0 where below is 0."""
    return np.where(below > 0, above / np.where(below > 0, below, 1), 0)


def _content_map(scale: np.ndarray, public: PublicInputs, covered: np.ndarray) -> sparse.csr_matrix:
    """Features of covered items, scaled: times a tail item's features they give its similarity."""
    assert public.content is not None
    return (sparse.diags(scale.astype(np.float32)) @ public.content[covered]).tocsr()
