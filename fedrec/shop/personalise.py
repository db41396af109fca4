"""The layer that never leaves the shop: own statistics beside the global ones, a blend, and the choice to join at all.

A shop has these components: the *global* model over its catalogue, a *mixed* model (global statistics with its own
added, solved over its own catalogue), its *local* model, *content* similarity and *popularity*; with EASE also *wide*
(released statistics with its own added, solved over the whole shared item space) and *local_wide* (its own alone,
solved likewise); from a private release also *shared_popularity*, the released counts. A blend is a weighted sum of
components, each standardised per shopper. A shop stays with its local blend unless its own validation shoppers say that
joining helps (a one-sided paired test), or it is too small to test (a size rule frozen on other data sets).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from fedrec.errors import ConfigError
from fedrec.evaluation.intervals import one_sided_paired_test
from fedrec.models.popularity import PopularityScorer
from fedrec.models.recommender import Explainable, PublicInputs, Recommender, Scorer, State

Blend = dict[str, float]
"""Component name -> weight above 0; a component that a shop does not have (content without item text) is left out."""

LOCAL_BLENDS: tuple[Blend, ...] = (
    {"local": 1.0},
    {"local": 0.75, "popularity": 0.25},
    {"local": 0.25, "popularity": 0.75},
    {"popularity": 1.0},
    {"local": 0.5, "content": 0.25, "popularity": 0.25},
    {"local_wide": 1.0},
    {"local_wide": 0.75, "popularity": 0.25},
)
"""What a shop alone may serve; chosen on validation, its own or that of all shops too small to tell."""

JOINED_BLENDS: tuple[Blend, ...] = (
    {"global": 1.0},
    {"mixed": 1.0},
    {"global": 0.75, "popularity": 0.25},
    {"global": 0.25, "popularity": 0.75},
    {"global": 0.25, "mixed": 0.5, "popularity": 0.25},
    {"global": 0.5, "local": 0.25, "popularity": 0.25},
)
"""What a shop that joins may serve; chosen likewise."""

PRIVATE_BLENDS: tuple[Blend, ...] = ({"wide": 1.0}, {"mixed": 1.0})
"""What a shop that joins serves under differential privacy: the first that it has all components of. Frozen, so that
nothing is chosen on private data."""

PRIVATE_GLOBAL_SHARE = 0.5
"""Share of the released statistics in its mixed model; a private model's own rules weigh what they are added to."""

LEAST_WORTH = 0.5
"""A shop that tests stays local without looking where a private release is worth less than this to it."""

DECISION_K = 50
"""Length of the lists that the decision about a private release is made on: longer ones tell small gains apart."""

TESTING_SHOPPERS = 100
"""From this declared size on (one significant digit) a shop keeps its validation events out of what it releases."""


@dataclass(frozen=True)
class PersonalisationSettings:
    """When a shop joins, and how much of the mixed model is its own.

    Attributes:
        half_share_shoppers: a shop with this many shoppers weighs global and own statistics alike in the mixed model:
            share of global = half_share_shoppers / (half_share_shoppers + its shoppers). > 0.
        significance: level of the one-sided paired test against "no gain", in (0, 1).
        min_validation_shoppers: with fewer a shop cannot test, and joins (frozen on other data sets: leaving each of
            five sets out in turn chose 50 four times and 100 once).
    """

    half_share_shoppers: float = 1000.0
    significance: float = 0.10
    min_validation_shoppers: int = 50

    def __post_init__(self) -> None:
        if not 0 < self.half_share_shoppers < np.inf:
            raise ConfigError(f"half_share_shoppers = {self.half_share_shoppers}: give a number above 0")
        if not 0 < self.significance < 1:
            raise ConfigError(f"significance = {self.significance}: give a level between 0 and 1")
        if not self.min_validation_shoppers >= 0:
            raise ConfigError(f"min_validation_shoppers = {self.min_validation_shoppers}: give 0 or more")

    def global_share(self, num_shoppers: int) -> float:
        """Weight of the global statistics in the mixed model of a shop with so many shoppers, in (0, 1]."""
        return self.half_share_shoppers / (self.half_share_shoppers + num_shoppers)


@dataclass(frozen=True)
class ShopPersonalisation(PersonalisationSettings):
    """The same in a deployed shop, whose lists people see; a simulation compares models and counts all pairs.

    Attributes:
        own_statistics_min_shoppers: the shop's own pairs of items that fewer shoppers bought both of do not count
            (`fedrec.models.rare_pairs`); >= 1.
    """

    own_statistics_min_shoppers: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.own_statistics_min_shoppers >= 1:
            raise ConfigError(f"own_statistics_min_shoppers = {self.own_statistics_min_shoppers}: give 1 or more")


def keeps_validation(declared_shoppers: int) -> bool:
    """Whether a shop of this declared size decides by a test of its own, on events that it did not release.

    The declared size decides, not the data: no shopper changes what the others contribute.
    """
    return declared_shoppers >= TESTING_SHOPPERS


@dataclass(frozen=True)
class Choice:
    """What a shop decided.

    Attributes:
        joins: whether it serves the joined blend (else the local one).
        reason: in plain words.
        p_value: of the test, None where the size rule decided.
    """

    joins: bool
    reason: str
    p_value: float | None


@dataclass(frozen=True)
class ContentScorer:
    """Similarity to what a shopper bought, by public content alone."""

    public: PublicInputs

    def scores(self, histories: sparse.csr_matrix) -> np.ndarray:
        """float32, (num_rows, num_items)."""
        content = self.public.content
        if content is None:
            return np.zeros(histories.shape, np.float32)
        return (histories.astype(np.float32) @ content @ content.T).toarray()

    def restrict(self, positions: np.ndarray, public: PublicInputs) -> ContentScorer:
        """Content needs nothing but the item space."""
        return ContentScorer(public)

    def because(self, history: np.ndarray, item: int) -> np.ndarray:
        """float32, (len(history),): similarity of each bought item to ``item``."""
        content = self.public.content
        if content is None:
            return np.zeros(len(history), np.float32)
        return (content[history] @ content[[item]].T).toarray().ravel()


@dataclass(frozen=True)
class BlendedScorer:
    """Weighted components, each standardised over the catalogue per shopper.

    Attributes:
        parts: (weight, scorer) of each component.
        num_items: size of the catalogue.
    """

    parts: tuple[tuple[float, Scorer], ...]
    num_items: int

    def scores(self, histories: sparse.csr_matrix) -> np.ndarray:
        """float32, (num_rows, num_items)."""
        return combine([(weight, scorer.scores(histories)) for weight, scorer in self.parts])

    def restrict(self, positions: np.ndarray, public: PublicInputs) -> BlendedScorer:
        """The same blend over fewer items."""
        parts = tuple((weight, scorer.restrict(positions, public)) for weight, scorer in self.parts)
        return BlendedScorer(parts, public.num_items)

    def because(self, history: np.ndarray, item: int) -> np.ndarray:
        """float32, (len(history),): what each bought item adds to the score; popularity belongs to no bought item.

        Raises:
            ConfigError: no component can say.
        """
        parts = [(weight, scorer) for weight, scorer in self.parts if isinstance(scorer, Explainable)]
        if not parts:
            raise ConfigError("this model cannot say which item brought a recommendation")
        if len(self.parts) == 1:
            return parts[0][1].because(history, item)
        added = np.zeros(len(history), np.float32)
        for weight, scorer in parts:
            row = sparse.csr_matrix(
                (np.ones(len(history), np.float32), (np.zeros(len(history), int), history)), shape=(1, self.num_items)
            )
            spread = float(scorer.scores(row).std()) or 1.0
            added += weight * scorer.because(history, item) / np.float32(spread)
        return added


def combine(parts: list[tuple[float, np.ndarray]]) -> np.ndarray:
    """Weighted sum of standardised scores, float32 (num_rows, num_items); a single part stays as it is."""
    if len(parts) == 1:
        return parts[0][1]
    total = np.zeros_like(parts[0][1])
    for weight, scores in parts:
        total += np.float32(weight) * _standardised(scores)
    return total


def _standardised(scores: np.ndarray) -> np.ndarray:
    centred = scores - scores.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    spread = centred.std(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    return centred / np.where(spread > 0, spread, 1)


def is_too_small(histories: sparse.csr_matrix) -> bool:
    """Whether a shop has one shopper or one item at most: nothing to learn but popularity, its local model then."""
    return int(np.count_nonzero(np.diff(histories.indptr))) <= 1 or histories.shape[1] <= 1


class Components:
    """A shop's components, each trained when it is first asked for.

    Args:
        trained: name -> trained model, for ``global``, ``mixed``, ``local`` and others; called at most once each.
        histories: float32 CSR, (num_shoppers, num_items); the shop's training rows, for popularity.
        public: the shop's item space.
    """

    def __init__(
        self, trained: Mapping[str, Callable[[], Scorer]], histories: sparse.csr_matrix, public: PublicInputs
    ) -> None:
        counts = np.asarray(histories.sum(axis=0), np.float64).ravel()
        self._trained: dict[str, Callable[[], Scorer]] = {**trained, "popularity": lambda: PopularityScorer(counts)}
        if is_too_small(histories):
            self._trained["local"] = self._trained["popularity"]
        if public.content is not None:
            self._trained["content"] = lambda: ContentScorer(public)
        self._ready: dict[str, Scorer] = {}
        self._num_items = public.num_items

    def __getitem__(self, name: str) -> Scorer:
        if name not in self._ready:
            self._ready[name] = self._trained[name]()
        return self._ready[name]

    def has(self, name: str) -> bool:
        """Whether the shop has this component."""
        return name in self._trained

    def has_all(self, weights: Blend) -> bool:
        """Whether the shop has every component of a blend."""
        return all(map(self.has, weights))

    def private_blend(self) -> Blend:
        """What the shop serves of a private release if it joins."""
        return next(blend for blend in PRIVATE_BLENDS if self.has_all(blend))

    def blend(self, weights: Blend) -> Scorer:
        """The blend as a scorer; one component alone keeps its own scores."""
        parts = tuple((weight, self[name]) for name, weight in weights.items() if self.has(name))
        return parts[0][1] if len(parts) == 1 else BlendedScorer(parts, self._num_items)


def mixed_scorer(
    model: Recommender,
    state: State,
    positions: np.ndarray,
    histories: sparse.csr_matrix,
    public: PublicInputs,
    *,
    global_share: float,
) -> Scorer:
    """Global statistics with the shop's own added, solved over the shop's own catalogue.

    Args:
        state: the federation's shared arrays.
        positions: int64, (num_shop_items,): place in the federation's item list, -1 = known here alone.
        histories: float32 CSR, (num_shoppers, num_shop_items); the shop's training rows.
        public: the shop's own item space.
        global_share: weight of the global statistics, in [0, 1]; the own ones get the rest.
    """
    projected = model.project(state, positions, public)
    own = model.own_statistics(projected, histories, public)
    return model.fit(model.mix(projected, own, global_share=global_share), public)


def decide(local: np.ndarray, joined: np.ndarray, settings: PersonalisationSettings) -> Choice:
    """Whether a shop leaves its local model.

    Args:
        local, joined: float64, (num_validation_shoppers,); metric of either blend per validation shopper, both models
            trained without validation events.
    """
    n = len(local)
    if n < settings.min_validation_shoppers:
        return Choice(True, f"too small to test ({n} validation shoppers): joins by the size rule", None)
    p_value = one_sided_paired_test(joined - local, rng=np.random.default_rng(n))
    joins = p_value <= settings.significance
    verdict = "gain" if joins else "no gain shown"
    return Choice(joins, f"{verdict} on {n} validation shoppers (p = {p_value:.3f})", p_value)
