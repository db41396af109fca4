"""What all item-item models share: which items they cover, their rounds and statistics, the scores of the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from fedrec.errors import BadMessage, ConfigError
from fedrec.models.co_occurrence import (
    CoOccurrence,
    blocks,
    packed_diagonal,
    packed_size,
    take_packed,
)
from fedrec.models.popularity import (
    ItemCounts,
    add_popularity,
    binary_rows,
    covered_rows,
    mix_arrays,
    popularity_round,
    take,
)
from fedrec.models.recommender import Contributions, Layout, PublicInputs, RoundKind, RoundSpec, State

MAX_ITEMS_LIMIT = 12_000
"""More items than this are never covered: one float64 square would exceed a gigabyte."""


def check_item_item(max_items: int, shopper_exponent: float, content_weight: float) -> None:
    """Check the settings that item-item models share.

    Raises:
        ConfigError: one is out of range.
    """
    if not 1 <= max_items <= MAX_ITEMS_LIMIT:
        raise ConfigError(f"max_items = {max_items}: give a whole number from 1 to {MAX_ITEMS_LIMIT}")
    if not 0 <= shopper_exponent <= 1:
        raise ConfigError(f"shopper_exponent = {shopper_exponent}: give a number from 0 to 1")
    if not 0 <= content_weight < np.inf:
        raise ConfigError(f"content_weight = {content_weight}: give a number of at least 0")


def most_popular(popularity: np.ndarray, max_items: int) -> np.ndarray:
    """int64, sorted: positions of the ``max_items`` most popular items, ties to the smaller position."""
    if len(popularity) <= max_items:
        return np.arange(len(popularity), dtype=np.int64)
    order = np.argsort(-popularity, kind="stable")
    return np.sort(order[:max_items]).astype(np.int64)


class ItemItemModel:
    """Rounds and statistics of every item-item model; a model adds its name, its settings and how it solves.

    Up to ``max_items`` items one round does: the co-occurrence of all of them. With more, round 0 asks for popularity
    and round 1 for the co-occurrence of the ``max_items`` most popular.

    Its ``settings`` hold ``max_items`` and ``shopper_exponent``: a shopper's row is scaled by (number of her covered
    items) ** -exponent, so that her weight in the Gram matrix is n ** (-2 exponent).

    State: ``popularity`` float64 (num_items,); ``covered`` int64 (K,), sorted positions of the covered items;
    ``co_occurrence`` float64 (packed_size(K),), packed as `fedrec.models.co_occurrence` says.
    """

    settings: Any

    def plan_round(self, index: int, state: State, public: PublicInputs) -> RoundSpec | None:
        """Co-occurrence alone, or popularity and then co-occurrence."""
        is_small = public.num_items <= self.settings.max_items
        if index >= (1 if is_small else 2):
            return None
        if is_small:
            layout = Layout((("co_occurrence", (packed_size(public.num_items),)),))
            return RoundSpec(RoundKind.STATISTICS, "co-occurrence", layout)
        if index == 0:
            return popularity_round(public)
        covered = most_popular(state["popularity"], self.settings.max_items)
        layout = Layout((("co_occurrence", (packed_size(len(covered)),)),))
        return RoundSpec(RoundKind.STATISTICS, "co-occurrence", layout, {"covered": covered})

    def contributions(self, spec: RoundSpec, histories: sparse.csr_matrix) -> Contributions:
        """Rows (popularity) or packed outer products of rows (co-occurrence), both scaled by the exponent.

        Raises:
            BadMessage: the round's covered items are not ascending positions in the item list.
        """
        if spec.name == "popularity":
            return ItemCounts(binary_rows(histories), self.settings.shopper_exponent)
        return CoOccurrence(selected_columns(histories, spec.inputs.get("covered")), self.settings.shopper_exponent)

    def advance(
        self, spec: RoundSpec, state: State, total: np.ndarray, public: PublicInputs, *, noise_sd: float = 0.0
    ) -> State:
        """The sums are the state; which items are covered is recorded with them."""
        arrays = spec.layout.split(total)
        if spec.name == "popularity":
            return {"popularity": arrays["popularity"].copy()}
        packed = arrays["co_occurrence"].copy()
        if "covered" in spec.inputs:
            return {**state, "covered": np.asarray(spec.inputs["covered"]), "co_occurrence": packed}
        return {
            "popularity": packed_diagonal(packed, public.num_items),
            "covered": np.arange(public.num_items, dtype=np.int64),
            "co_occurrence": packed,
        }

    def project(self, state: State, positions: np.ndarray, public: PublicInputs) -> State:
        """Statistics in a shop's item space: zeros for what the global model doesn't cover.

        A catalogue of more than ``max_items`` keeps its globally most popular items, ties to the smaller position.
        """
        popularity = take(state["popularity"], positions)
        covered = most_popular(popularity, self.settings.max_items)
        rows = covered_rows(state["covered"], len(state["popularity"]), positions[covered])
        packed = take_packed(state["co_occurrence"], len(state["covered"]), rows)
        return {"popularity": popularity, "covered": covered, "co_occurrence": packed}

    def own_statistics(self, state: State, histories: sparse.csr_matrix, public: PublicInputs) -> State:
        """The shop's own co-occurrence over the items that ``state`` covers, and its own popularity."""
        everyone = np.ones(histories.shape[0])
        covered = state["covered"]
        packed = CoOccurrence(selected_columns(histories, covered), self.settings.shopper_exponent).total(everyone)
        if len(covered) == public.num_items:
            popularity = packed_diagonal(packed, len(covered))
        else:
            popularity = ItemCounts(binary_rows(histories), self.settings.shopper_exponent).total(everyone)
        return {"popularity": popularity, "covered": covered, "co_occurrence": packed}

    def mix(self, state: State, own: State, *, global_share: float) -> State:
        """Weighted mean of co-occurrence and popularity."""
        return mix_arrays(state, own, global_share=global_share)


def add_similarity(lower: np.ndarray, features: sparse.csr_matrix, weight: float) -> None:
    """Add ``weight`` x F F^T to the lower triangle of a Fortran-ordered float64 matrix, in place, block by block."""
    features = features.astype(np.float64)
    transposed = features.T.tocsr()
    for start, stop in blocks(features.shape[0]):
        similarity = (features[start:] @ transposed[:, start:stop]).toarray(order="F")
        similarity *= weight
        lower[start:, start:stop] += similarity


@dataclass(frozen=True)
class ItemItemScorer:
    """Scores are sums of weights between bought items and candidates.

    Items without statistics (the tail) are scored by content, in the units of the covered ones: a covered bought item
    counts through ``content_map``, a bought item of the tail through ``tail_weight`` x cosine of the features. Where a
    tail item has no features it ranks below the covered items. Popularity breaks ties everywhere.

    Attributes:
        public: the item space; without content where the model was told to leave it out.
        popularity: float64, (num_items,).
        covered: int64, (K,), sorted positions of the covered items.
        weights: float32, (K, K), C order or CSR; row = bought item, column = candidate, zero diagonal.
        content_map: returns float32 (K, num_features), dense or CSR: times a tail item's features it gives each covered
            item's weight for it. Called at most once, and only where there is a tail.
        tail_weight: weight between two items of which at least one, the bought one, lies in the tail, per cosine.
        content_scale: float64, (num_items,); what the items' features were multiplied with, None = nothing. ``public``
            holds them scaled; `restrict` scales those of the shop alike, unknown items by the least factor.
        popularity_weight: added to a score for each unit of popularity; None = only as much as breaks ties.
    """

    public: PublicInputs
    popularity: np.ndarray
    covered: np.ndarray
    weights: np.ndarray | sparse.csr_matrix
    content_map: Callable[[], Any] = field(repr=False)
    tail_weight: float = 0.0
    popularity_weight: float | None = None
    content_scale: np.ndarray | None = None

    @cached_property
    def _content_map(self) -> Any:
        return self.content_map()

    @cached_property
    def _tail(self) -> np.ndarray:
        is_tail = np.ones(self.public.num_items, bool)
        is_tail[self.covered] = False
        return np.flatnonzero(is_tail)

    def scores(self, histories: sparse.csr_matrix) -> np.ndarray:
        """float32, (num_rows, num_items)."""
        histories = histories.astype(np.float32)
        has_tail = len(self._tail) > 0
        scores = self._scores_with_tail(histories) if has_tail else times(histories, self.weights)
        add_popularity(scores, self.popularity, self.popularity_weight)
        return scores

    def _scores_with_tail(self, histories: sparse.csr_matrix) -> np.ndarray:
        bought = histories[:, self.covered]
        scores = np.zeros(histories.shape, np.float32)
        covered_scores = times(bought, self.weights)
        is_known = np.zeros(len(self._tail), bool)
        content = self.public.content
        if content is not None:
            of_tail, of_covered = content[self._tail], content[self.covered]
            bought_tail = (histories[:, self._tail] @ of_tail) * np.float32(self.tail_weight)
            covered_scores += (bought_tail @ of_covered.T).toarray()
            profiles = times(bought, self._content_map) + bought_tail  # (num_rows, num_features)
            scores[:, self._tail] = np.asarray((of_tail @ np.asarray(profiles).T).T)
            is_known = np.diff(of_tail.indptr) > 0
        scores[:, self.covered] = covered_scores
        floor = covered_scores.min(axis=1, initial=0)
        scores[:, self._tail[~is_known]] = floor[:, None]
        return scores

    def restrict(self, positions: np.ndarray, public: PublicInputs) -> ItemItemScorer:
        """The same weights over a shop's own items; what it doesn't cover becomes the shop's tail."""
        if self.public.content is None:
            public = PublicInputs(public.items)
        scale = None
        if self.content_scale is not None:
            scale = np.where(positions >= 0, self.content_scale[positions], self.content_scale.min(initial=1.0))
            public = scaled_content(public, scale)
        rows = covered_rows(self.covered, self.public.num_items, positions)
        covered = np.flatnonzero(rows >= 0)
        rows = rows[covered]
        has_tail = len(covered) < len(positions) and public.content is not None
        content_map = self._content_map[rows] if has_tail else None
        return ItemItemScorer(
            public=public,
            popularity=take(self.popularity, positions),
            covered=covered,
            weights=np.ascontiguousarray(self.weights[np.ix_(rows, rows)])
            if isinstance(self.weights, np.ndarray)
            else self.weights[rows][:, rows],
            content_map=lambda: content_map,
            tail_weight=self.tail_weight,
            popularity_weight=self.popularity_weight,
            content_scale=scale,
        )

    def because(self, history: np.ndarray, item: int) -> np.ndarray:
        """float32, (len(history),): each bought item's part of the score of ``item``."""
        history = np.asarray(history, np.int64)
        place = np.full(self.public.num_items, -1, np.int64)
        place[self.covered] = np.arange(len(self.covered))
        rows, column = place[history], int(place[item])
        parts = np.zeros(len(history), np.float32)
        content = self.public.content
        is_covered = rows >= 0
        if column >= 0:
            parts[is_covered] = _dense(self.weights[rows[is_covered]][:, [column]]).ravel()
        elif content is not None and is_covered.any():
            parts[is_covered] = _dense(self._content_map[rows[is_covered]] @ content[[item]].T).ravel()
        if content is not None and not is_covered.all():
            cosines = (content[history[~is_covered]] @ content[[item]].T).toarray().ravel()
            parts[~is_covered] = self.tail_weight * cosines
        return parts


def scaled_content(public: PublicInputs, scale: np.ndarray) -> PublicInputs:
    """The same items with each one's features multiplied by its ``scale``, float64 (num_items,)."""
    if public.content is None:
        return public
    return PublicInputs(public.items, (sparse.diags(scale.astype(np.float32)) @ public.content).tocsr())


def times(histories: sparse.csr_matrix, weights: np.ndarray | sparse.csr_matrix) -> np.ndarray:
    """histories @ weights, float32 dense; long histories go through a dense product, which is faster for them."""
    if sparse.issparse(weights):
        return (histories @ weights).toarray()
    if histories.nnz > 0.05 * histories.shape[0] * histories.shape[1]:
        return histories.toarray() @ weights
    return np.asarray(histories @ weights)


def selected_columns(histories: sparse.csr_matrix, covered: np.ndarray | None) -> sparse.csr_matrix:
    """The covered items' columns. Packing counts on ascending ones: any others would break the bound of the norms."""
    rows = binary_rows(histories)
    if covered is not None and not _is_ascending(covered, rows.shape[1]):
        raise BadMessage("the covered items are not ascending positions in the item list")
    return rows if covered is None or len(covered) == rows.shape[1] else rows[:, covered]


def _is_ascending(positions: np.ndarray, num_items: int) -> bool:
    if positions.ndim != 1 or not np.issubdtype(positions.dtype, np.integer):
        return False
    in_range = len(positions) == 0 or (positions[0] >= 0 and positions[-1] < num_items)
    return bool(in_range and (positions[1:] > positions[:-1]).all())


def _dense(values: Any) -> np.ndarray:
    return values.toarray() if sparse.issparse(values) else np.asarray(values)
