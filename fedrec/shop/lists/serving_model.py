"""What a shop's lists are scored with: a model made ready once, so that a request costs a few array operations.

Linear models are served as each item's strongest weights; others as they are. A score is a *base*, which no bought item
brings, and what each item of the history adds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Protocol

import numpy as np
from scipy import sparse

from fedrec.errors import BrokenModel, ConfigError
from fedrec.models.item_item import ItemItemScorer
from fedrec.models.popularity import PopularityScorer
from fedrec.models.recommender import Scorer
from fedrec.shop.lists.neighbours import MAX_WEIGHTS, Neighbours
from fedrec.shop.personalise import BlendedScorer, ContentScorer

_BLOCK_ROWS = 256
_SAME = 1e-12


class Attribution(StrEnum):
    """How a score was shared out among the history."""

    EXACT = "exact"
    LEAVE_ONE_OUT = "leave-one-out"


class InsideShop(StrEnum):
    """What a list promises between shoppers of one shop."""

    NONE = "none"
    JOINT_DP = "joint_dp"


@dataclass(frozen=True)
class Served:
    """What every answer says of the model behind it.

    Attributes:
        version: run id, or ``local``.
        mode: how it was trained: ``alone`` (nothing left the shop for it), ``none`` (a federation without a promise),
            ``local`` or ``distributed`` (noise of each shop, or shared).
        epsilon_outside: what all that ever left the shop can tell of one shopper; None = no bound, 0 = nothing left.
        inside_shop: `InsideShop`.
        generation: of the store when its events were read; each erasure raises it. 0 where no event was.
    """

    version: str
    mode: str
    epsilon_outside: float | None
    inside_shop: InsideShop
    generation: int = 0

    def is_stale(self, generation: int) -> bool:
        """Whether raw events went into it of somebody who was erased since, by the store's generation of now."""
        return self.inside_shop is InsideShop.NONE and self.generation != generation


@dataclass(frozen=True, repr=False)
class Parts:
    """Scores taken apart: base + contributions.sum(axis=1) = the scores.

    Attributes:
        base: float64, (num_candidates,); for leave-one-out what the single contributions leave over.
        contributions: float64, (num_candidates, len(history)).
        attribution: how they were found.
    """

    base: np.ndarray
    contributions: np.ndarray
    attribution: Attribution


class ServingModel(Protocol):
    """A model over its own item space, ready to score one history.

    Arguments named ``history`` are int64, distinct positions in ``items``; ``strengths`` float64 > 0, one for each.
    ``scores`` and ``parts`` raise `BrokenModel` where a score is not finite.
    """

    @property
    def items(self) -> np.ndarray:
        """str, (num_items,); keys."""
        ...

    @property
    def popularity(self) -> np.ndarray:
        """float64, (num_items,); as the model knows it, without unit."""
        ...

    @property
    def pairs(self) -> Neighbours | None:
        """What was bought together in this shop, by its own raw counts; None = not to be served."""
        ...

    @property
    def served(self) -> Served:
        """What answers say of it."""
        ...

    def scores(self, history: np.ndarray, strengths: np.ndarray) -> np.ndarray:
        """float64, (num_items,), finite; a new array."""
        ...

    def reach(self, history: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """bool, (num_candidates,): those that the history says anything about."""
        ...

    def parts(self, history: np.ndarray, strengths: np.ndarray, candidates: np.ndarray) -> Parts:
        """The scores of distinct candidates, taken apart."""
        ...

    def likeness(self, candidates: np.ndarray) -> np.ndarray:
        """float64, (num_candidates, num_candidates), in [0, 1], symmetric: how alike distinct candidates are."""
        ...


@dataclass(frozen=True, repr=False)
class Term:
    """One component of a linear blend.

    Attributes:
        weight: in the blend; one component alone keeps its own scores.
        base: float64, (num_items,); its scores for no history.
        neighbours: None for popularity, which no history changes.
    """

    weight: float
    base: np.ndarray
    neighbours: Neighbours | None

    def scores(self, history: np.ndarray, strengths: np.ndarray) -> np.ndarray:
        """float64, (num_items,)."""
        if self.neighbours is None or len(history) == 0:
            return self.base.copy()
        return self.neighbours.sums(history, strengths) + self.base


@dataclass(frozen=True, repr=False)
class ItemItem:
    """A linear model, or a blend of linear ones.

    A blend standardises each component over the item space per shopper, x -> (x - mean) / spread. With her spread s_c
    held, it is linear: bought item i adds sum over c of weight_c strength_i (W_c[i, j] - mean of row i) / s_c to the
    score of j, that is what it does for j more than for the average item; the base likewise.

    Attributes:
        items: str, (num_items,); keys.
        popularity: float64, (num_items,).
        terms: at least one.
        served: what answers say.
        pairs: see `ServingModel`.
    """

    items: np.ndarray
    popularity: np.ndarray
    terms: tuple[Term, ...]
    served: Served
    pairs: Neighbours | None = None

    def scores(self, history: np.ndarray, strengths: np.ndarray) -> np.ndarray:
        """As `ServingModel.scores`."""
        if len(self.terms) == 1:
            return self.terms[0].scores(history, strengths)
        total = self._of_nobody.copy()
        for term in self.terms:
            if term.neighbours is not None:
                scores = term.scores(history, strengths)
                scores *= term.weight / _centre(scores)
                total += scores
        return total

    @cached_property
    def _of_nobody(self) -> np.ndarray:
        """float64, (num_items,): the terms of a blend that no history changes."""
        total = np.zeros(len(self.items))
        for term in self.terms:
            if term.neighbours is None:
                scores = term.base.copy()
                total += scores * (term.weight / _centre(scores))
        return total

    def reach(self, history: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """As `ServingModel.reach`."""
        is_reached = np.zeros(len(candidates), bool)
        for term in self.terms:
            if term.neighbours is not None and not is_reached.all():
                is_reached |= term.neighbours.reach(history, candidates)
        return is_reached

    def parts(self, history: np.ndarray, strengths: np.ndarray, candidates: np.ndarray) -> Parts:
        """As `ServingModel.parts`; exact."""
        base = np.zeros(len(candidates))
        added = np.zeros((len(candidates), len(history)))
        is_blend = len(self.terms) > 1
        for term in self.terms:
            scale = 1.0
            if is_blend:
                scale = term.weight / _centre(term.scores(history, strengths))
                base -= term.base.mean() * scale
            base += term.base[candidates] * scale
            if term.neighbours is not None and len(history):
                rows = term.neighbours.between(history, candidates).T
                if is_blend:
                    rows = rows - term.neighbours.means[history]
                added += rows * (strengths * scale)
        return Parts(base, added, Attribution.EXACT)

    def likeness(self, candidates: np.ndarray) -> np.ndarray:
        """As `ServingModel.likeness`: weights both ways, against the largest among the candidates."""
        links = np.zeros((len(candidates), len(candidates)))
        for term in self.terms:
            if term.neighbours is not None:
                links += term.weight * term.neighbours.between(candidates, candidates)
        links = np.maximum(links + links.T, 0.0)
        return links / (links.max(initial=0.0) or 1.0)


@dataclass(frozen=True, repr=False)
class Dense:
    """Any scorer as it is: neural models, and whatever is not linear in the history.

    Contributions are by leaving each item of the history out: what the score loses without it. They need not sum to the
    score; the base is what they leave over.

    Attributes:
        items: str, (num_items,); keys.
        popularity: float64, (num_items,).
        scorer: over ``items``; strengths are the values of its histories.
        served: what answers say.
        pairs: see `ServingModel`.
    """

    items: np.ndarray
    popularity: np.ndarray
    scorer: Scorer
    served: Served
    pairs: Neighbours | None = None

    def scores(self, history: np.ndarray, strengths: np.ndarray) -> np.ndarray:
        """As `ServingModel.scores`."""
        return self._all(history, strengths[None, :])[0]

    def reach(self, history: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Everything, by anything."""
        return np.full(len(candidates), len(history) > 0)

    def parts(self, history: np.ndarray, strengths: np.ndarray, candidates: np.ndarray) -> Parts:
        """As `ServingModel.parts`; leave-one-out."""
        without = np.repeat(strengths[None, :], len(history) + 1, axis=0)
        without[np.arange(len(history)), np.arange(len(history))] = 0
        scores = self._all(history, without)[:, candidates]  # the last row leaves nothing out
        added = (scores[-1] - scores[:-1]).T
        return Parts(scores[-1] - added.sum(axis=1), added, Attribution.LEAVE_ONE_OUT)

    def likeness(self, candidates: np.ndarray) -> np.ndarray:
        """As `ServingModel.likeness`; such a model does not say."""
        return np.zeros((len(candidates), len(candidates)))

    def _all(self, history: np.ndarray, strengths: np.ndarray) -> np.ndarray:
        """float64, (num_rows, num_items); strengths (num_rows, len(history)), 0 = left out."""
        rows, places = np.nonzero(strengths)
        table = sparse.csr_matrix(
            (strengths[rows, places].astype(np.float32), (rows, history[places])),
            shape=(len(strengths), len(self.items)),
        )
        scores = np.asarray(self.scorer.scores(table), np.float64)
        if not np.isfinite(scores).all():
            raise BrokenModel(f"model {self.served.version} gives scores that are not finite; serve another version")
        return scores


def serving_model(
    scorer: Scorer,
    items: np.ndarray,
    popularity: np.ndarray,
    served: Served,
    *,
    pairs: Neighbours | None = None,
    max_weights: int = MAX_WEIGHTS,
) -> ItemItem | Dense:
    """Make a scorer ready to serve: `ItemItem` if it is linear, else `Dense`.

    Args:
        items: str, (num_items,); the scorer's item space.
        popularity: float64, (num_items,).
        max_weights: kept for each item of a linear model; >= 1.
    """
    if not max_weights >= 1:
        raise ConfigError(f"max_weights = {max_weights}: give a whole number of at least 1")
    parts = scorer.parts if isinstance(scorer, BlendedScorer) else ((1.0, scorer),)
    if not all(isinstance(part, ItemItemScorer | PopularityScorer | ContentScorer) for _, part in parts):
        return Dense(items, popularity, scorer, served, pairs)
    terms = tuple(_term(weight, part, len(items), max_weights) for weight, part in parts)
    return ItemItem(items, popularity, terms, served, pairs)


def _term(weight: float, scorer: Scorer, num_items: int, max_weights: int) -> Term:
    """A linear scorer from its answers to histories of one item."""
    base = scorer.scores(sparse.csr_matrix((1, num_items), dtype=np.float32))[0].astype(np.float64)
    if isinstance(scorer, PopularityScorer):
        return Term(weight, base, None)
    return Term(weight, base, Neighbours.strongest(_rows(scorer, num_items, base), num_items, max_weights))


def _rows(scorer: Scorer, num_items: int, base: np.ndarray) -> Iterator[np.ndarray]:
    """Weights of each bought item, float32 (rows, num_items), block by block.

    Items that an item-item model can only place last (not covered, no content) get no weights: it does not know them.
    """
    is_unknown = np.zeros(num_items, bool)
    if isinstance(scorer, ItemItemScorer):
        is_unknown[:] = True
        is_unknown[scorer.covered] = False
        if scorer.public.content is not None:
            is_unknown &= np.diff(scorer.public.content.indptr) == 0
    everyone = sparse.identity(num_items, np.float32, format="csr")
    for start in range(0, num_items, _BLOCK_ROWS):
        rows = scorer.scores(everyone[start : start + _BLOCK_ROWS]) - base.astype(np.float32)
        rows[:, is_unknown] = 0
        yield rows


def _centre(scores: np.ndarray) -> float:
    """Take the mean from scores, in place; their standard deviation, 1 where they are all the same, up to rounding."""
    mean = float(np.add.reduce(scores)) / max(len(scores), 1)
    scores -= mean
    spread = math.sqrt(float(scores @ scores) / max(len(scores), 1))
    return spread if spread > _SAME * abs(mean) else 1.0
