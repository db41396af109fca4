"""Popularity: one round of counts; everybody gets the same list."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from scipy import sparse

from fedrec.models.recommender import Layout, PublicInputs, RoundKind, RoundSpec, State
from fedrec.privacy.mechanisms import Outlook, ReleaseRequest

_TIE_BREAK = 1e-6


@dataclass(frozen=True)
class PopularitySettings:
    """Popularity has nothing to set."""


@dataclass(frozen=True)
class ItemCounts:
    """Every shopper's 0/1 row, times her own public-rule scale; see `Contributions`.

    Attributes:
        rows: CSR, (num_shoppers, num_items); only where entries are matters.
        exponent: shopper u's row is scaled by (number of her items) ** -exponent.
    """

    rows: sparse.csr_matrix
    exponent: float = 0.0

    def norms(self) -> np.ndarray:
        """float64, (num_shoppers,): n_u ** (1/2 - exponent), 0 for an empty history."""
        return powers(np.diff(self.rows.indptr), 0.5 - self.exponent)

    def total(self, weights: np.ndarray) -> np.ndarray:
        """float64, (num_items,)."""
        lengths = np.diff(self.rows.indptr)
        return self._sum(np.asarray(weights, np.float64) * powers(lengths, -self.exponent))

    def integers(self, weights: np.ndarray, scale: float) -> np.ndarray:
        """int64, (num_items,); whole numbers below 2^53 add up exactly in float64."""
        lengths = np.diff(self.rows.indptr)
        return self._sum(np.trunc(scale * (np.asarray(weights) * powers(lengths, -self.exponent)))).astype(np.int64)

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """float64, (num_items,): each shopper's value added to every item she has."""
        everyone = np.repeat(values, np.diff(self.rows.indptr))
        return np.bincount(self.rows.indices, weights=everyone, minlength=self.rows.shape[1]).astype(np.float64)


@dataclass(frozen=True)
class PopularityScorer:
    """The same scores for everybody.

    Attributes:
        counts: float64, (num_items,).
    """

    counts: np.ndarray

    def scores(self, histories: sparse.csr_matrix) -> np.ndarray:
        """float32, (num_rows, num_items)."""
        return np.repeat(self.counts.astype(np.float32)[None, :], histories.shape[0], axis=0)

    def restrict(self, positions: np.ndarray, public: PublicInputs) -> PopularityScorer:
        """The counts at ``positions``; unknown items have none."""
        return PopularityScorer(take(self.counts, positions))


@dataclass(frozen=True)
class Popularity:
    """What most shoppers bought, most first."""

    name: ClassVar[str] = "popularity"
    settings: PopularitySettings = field(default_factory=PopularitySettings)

    def plan_round(self, index: int, state: State, public: PublicInputs) -> RoundSpec | None:
        """One round of counts."""
        if index > 0:
            return None
        return popularity_round(public)

    def contributions(self, spec: RoundSpec, histories: sparse.csr_matrix) -> ItemCounts:
        """A shopper's contribution is her 0/1 row, of norm sqrt(number of her items)."""
        return self._counts(histories)

    def _counts(self, histories: sparse.csr_matrix) -> ItemCounts:
        return ItemCounts(binary_rows(histories))

    def advance(
        self, spec: RoundSpec, state: State, total: np.ndarray, public: PublicInputs, *, noise_sd: float = 0.0
    ) -> State:
        """The counts are the state."""
        return {"popularity": spec.layout.split(total)["popularity"].copy()}

    def release_requests(self, crowd: float | None = None) -> tuple[ReleaseRequest, ...]:
        """One noisy sum of unit-norm rows."""
        return (ReleaseRequest("popularity", 1.0, clip_norm=1.0),)

    def private(self, outlook: Outlook, public: PublicInputs) -> PrivatePopularity:
        """Nothing is chosen but the shoppers' weights."""
        return PrivatePopularity()

    def fit(self, state: State, public: PublicInputs) -> PopularityScorer:
        """Counts are scores."""
        return PopularityScorer(state["popularity"])

    def project(self, state: State, positions: np.ndarray, public: PublicInputs) -> State:
        """The counts at ``positions``; unknown items have none."""
        return {"popularity": take(state["popularity"], positions)}

    def own_statistics(self, state: State, histories: sparse.csr_matrix, public: PublicInputs) -> State:
        """The shop's own counts."""
        return {"popularity": self._counts(histories).total(np.ones(histories.shape[0]))}

    def mix(self, state: State, own: State, *, global_share: float) -> State:
        """Weighted mean of global and own counts."""
        return mix_arrays(state, own, global_share=global_share)

    def candidates(self) -> dict[str, tuple[Any, ...]]:
        """Nothing to tune."""
        return {}


@dataclass(frozen=True)
class PrivatePopularity(Popularity):
    """What most shoppers bought, from one noisy sum of rows of norm 1."""

    name: ClassVar[str] = "private-popularity"

    def contributions(self, spec: RoundSpec, histories: sparse.csr_matrix) -> ItemCounts:
        """A shopper of n items adds n ** -1/2 to each: norm 1, whatever she bought."""
        return self._counts(histories)

    def _counts(self, histories: sparse.csr_matrix) -> ItemCounts:
        return ItemCounts(binary_rows(histories), exponent=0.5)


def powers(lengths: np.ndarray, exponent: float) -> np.ndarray:
    """float64: lengths ** exponent, 0 where the length is 0.

    One by one for each distinct length: a vectorised power may round its last values otherwise than its first, and a
    shopper's integers must not hang on where she stands in a table.
    """
    distinct, place = np.unique(lengths, return_inverse=True)
    values = [float(length) ** exponent if length > 0 else 0.0 for length in distinct.tolist()]
    return np.array(values, np.float64)[place]


def binary_rows(histories: sparse.csr_matrix) -> sparse.csr_matrix:
    """The same CSR matrix if it is canonical; else a copy with sorted columns, no duplicates and no explicit zeros."""
    if histories.has_canonical_format and (histories.data > 0).all():
        return histories
    rows = sparse.csr_matrix(histories, copy=True)
    rows.sum_duplicates()
    rows.eliminate_zeros()
    return rows


def add_popularity(scores: np.ndarray, popularity: np.ndarray, weight: float | None) -> None:
    """Add popularity to every row of scores, in place.

    Args:
        scores: float32, (num_rows, num_items).
        popularity: float64, (num_items,); >= 0.
        weight: of each unit of popularity; None = only so much as orders what a model has nothing to say about, and
            cold shoppers' lists.
    """
    top = popularity.max(initial=0)
    if weight is not None:
        scores += (popularity * weight).astype(np.float32)
    elif top > 0:
        scores += (popularity * (_TIE_BREAK / top)).astype(np.float32)


def popularity_round(public: PublicInputs) -> RoundSpec:
    """The round that asks for the sum of all shoppers' rows."""
    layout = Layout((("popularity", (public.num_items,)),))
    return RoundSpec(RoundKind.STATISTICS, "popularity", layout)


def take(values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """``values`` (num_items, ...) at ``positions`` (num_shop_items,), 0 where the position is -1."""
    taken = np.zeros((len(positions), *values.shape[1:]), values.dtype)
    is_known = positions >= 0
    taken[is_known] = values[positions[is_known]]
    return taken


def covered_rows(covered: np.ndarray, num_items: int, positions: np.ndarray) -> np.ndarray:
    """int64, (len(positions),): each position's row in arrays over the ``covered`` of ``num_items`` items, -1 = none.

    Args:
        covered: int64, distinct positions in the item space.
        positions: int64; -1 = not in the item space.
    """
    place = np.full(num_items + 1, -1, np.int64)  # the last place is the one of position -1
    place[covered] = np.arange(len(covered))
    return place[positions]


def mix_arrays(state: State, own: State, *, global_share: float) -> State:
    """``global_share`` x state + (1 - ``global_share``) x own, for every floating array; others stay as they are."""
    mixed = {}
    for name, values in state.items():
        if global_share == 1 or not np.issubdtype(values.dtype, np.floating):
            mixed[name] = values
        elif global_share == 0:
            mixed[name] = own[name]
        else:
            mixed[name] = values * global_share
            mixed[name] += own[name] * (1 - global_share)
    return mixed
