"""The layer that never leaves the shop: own statistics mixed into the global ones, a blend, the choice to join.

The personal model solves ``share * global + (1 - share) * own`` statistics over the shop's own catalogue; share 0 is
the shop alone and share 1 the global model. A shop stays with its local model unless its own validation shoppers say
that joining helps (a one-sided paired test), or it is too small to test (a size rule frozen on other data sets).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from fedrec.data.shops import ShopData
from fedrec.errors import ConfigError
from fedrec.evaluation.intervals import one_sided_paired_test
from fedrec.models.recommender import Explainable, PublicInputs, Recommender, Scorer, State

Judge = Callable[[Scorer], np.ndarray]
"""Scores a model on the shop's validation shoppers: float64, (num_validation_shoppers,)."""


@dataclass(frozen=True)
class Blend:
    """Weights of the components next to the model's own scores, each standardised per shopper."""

    content: float = 0.0
    popularity: float = 0.0

    def __post_init__(self) -> None:
        for name in ("content", "popularity"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ConfigError(f"blend weight {name} = {getattr(self, name)}: give a number of at least 0")


@dataclass(frozen=True)
class PersonalisationSettings:
    """What a shop tries on its own validation shoppers, and when it joins.

    Attributes:
        global_shares: weights of the global statistics that are tried, each in (0, 1].
        default_share: taken without a trial where too few shoppers validate.
        blends: blends that are tried, for the local and the joined model alike.
        significance: level of the one-sided paired test against "no gain".
        min_validation_shoppers: below it the size rule decides.
        join_below_shoppers: size rule: a shop that is too small to test joins if it has fewer shoppers than this.
    """

    global_shares: tuple[float, ...] = (0.1, 0.3, 1.0)
    default_share: float = 0.3
    blends: tuple[Blend, ...] = (Blend(),)
    significance: float = 0.10
    min_validation_shoppers: int = 30
    join_below_shoppers: int = 100

    def __post_init__(self) -> None:
        if not self.global_shares or not all(0 < share <= 1 for share in (*self.global_shares, self.default_share)):
            raise ConfigError(f"global_shares = {self.global_shares}: give shares above 0 and at most 1")
        if not 0 < self.significance < 1:
            raise ConfigError(f"significance = {self.significance}: give a level between 0 and 1")


@dataclass(frozen=True)
class Choice:
    """What a shop decided.

    Attributes:
        joins: whether it serves the personalised global model (else its local one).
        global_share, blend: of the model it serves when it joins.
        local_blend: of its local model.
        reason: in plain words.
        p_value: of the test, None where the size rule decided.
    """

    joins: bool
    global_share: float
    blend: Blend
    local_blend: Blend
    reason: str
    p_value: float | None


@dataclass(frozen=True)
class BlendedScorer:
    """A scorer next to content similarity and popularity, each standardised over the shop's items per shopper."""

    scorer: Scorer
    blend: Blend
    popularity: np.ndarray
    public: PublicInputs

    def scores(self, histories: sparse.csr_matrix) -> np.ndarray:
        """float32, (num_rows, num_items)."""
        total = _standardised(self.scorer.scores(histories))
        if self.blend.popularity:
            total += self.blend.popularity * _standardised(np.log1p(self.popularity, dtype=np.float32)[None, :])
        if self.blend.content and self.public.content is not None:
            profile = histories @ self.public.content
            total += self.blend.content * _standardised((profile @ self.public.content.T).toarray())
        return total

    def restrict(self, positions: np.ndarray, public: PublicInputs) -> Scorer:
        """The same model over fewer items."""
        popularity = np.where(positions >= 0, self.popularity[positions], 0)
        return replace(self, scorer=self.scorer.restrict(positions, public), popularity=popularity, public=public)

    def because(self, history: np.ndarray, item: int) -> np.ndarray:
        """The model's own explanation; the blend's parts belong to no single item."""
        if not isinstance(self.scorer, Explainable):
            raise ConfigError("this model cannot say which item brought a recommendation")
        return self.scorer.because(history, item)


def _standardised(scores: np.ndarray) -> np.ndarray:
    centred = scores - scores.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    return (centred / np.where(spread > 0, spread, 1)).astype(np.float32)


def blended(scorer: Scorer, blend: Blend, histories: sparse.csr_matrix, public: PublicInputs) -> Scorer:
    """The scorer itself where the blend adds nothing, else a `BlendedScorer` with the shop's own popularity."""
    if blend == Blend():
        return scorer
    return BlendedScorer(scorer, blend, np.asarray(histories.sum(axis=0)).ravel(), public)


def personal_scorer(
    model: Recommender,
    state: State,
    positions: np.ndarray,
    histories: sparse.csr_matrix,
    public: PublicInputs,
    *,
    global_share: float,
) -> Scorer:
    """Global statistics with the shop's own mixed in, solved over the shop's own catalogue.

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


def choose(
    *,
    local: Callable[[], Scorer],
    joined: Callable[[float], Scorer],
    judge: Judge,
    num_judges: int,
    shop: ShopData,
    histories: sparse.csr_matrix,
    public: PublicInputs,
    settings: PersonalisationSettings,
) -> Choice:
    """A shop's choice on its own validation shoppers.

    Args:
        local: trains the shop's model alone, without validation events.
        joined: the personal model by its share of global statistics, trained likewise.
        judge: metric of a scorer per validation shopper, of which there are ``num_judges``.
        histories: the rows both were trained on (for popularity in the blend).
    """
    if num_judges < settings.min_validation_shoppers:
        joins, reason, p_value = decide(np.empty(num_judges), np.empty((0, 0)), shop, settings)
        return Choice(joins, settings.default_share, settings.blends[0], settings.blends[0], reason, p_value)
    alone = local()
    local_values = np.stack([judge(blended(alone, blend, histories, public)) for blend in settings.blends])
    candidates = [(share, blend) for share in settings.global_shares for blend in settings.blends]
    values = np.stack(
        [
            judge(blended(scorer, blend, histories, public))
            for share in settings.global_shares
            for scorer in [joined(share)]
            for blend in settings.blends
        ]
    )
    best_local = int(local_values.mean(axis=1).argmax())
    share, blend = candidates[int(values.mean(axis=1).argmax())]
    joins, reason, p_value = decide(local_values[best_local], values, shop, settings)
    return Choice(joins, share, blend, settings.blends[best_local], reason, p_value)


def decide(
    local: np.ndarray, joined: np.ndarray, shop: ShopData, settings: PersonalisationSettings
) -> tuple[bool, str, float | None]:
    """Whether a shop leaves its local model.

    Args:
        local: float64, (num_validation_shoppers,); metric of the local model per shopper.
        joined: float64, (num_candidates, num_validation_shoppers): of each joined candidate.

    Two-fold cross-fitting keeps the choice among candidates out of the test: each half is scored with the candidate
    that the other half chose.
    """
    n = len(local)
    if n < settings.min_validation_shoppers:
        joins = len(shop.shoppers) < settings.join_below_shoppers
        word = "joins" if joins else "stays local"
        return joins, f"too small to test ({n} validation shoppers): the size rule {word}", None
    half = np.arange(n) % 2 == 0
    gain = np.empty(n)
    for side in (half, ~half):
        best = int(joined[:, ~side].mean(axis=1).argmax())
        gain[side] = joined[best, side] - local[side]
    p_value = one_sided_paired_test(gain, rng=np.random.default_rng(n))
    joins = p_value <= settings.significance
    verdict = "gain" if joins else "no gain shown"
    return joins, f"{verdict} on {n} validation shoppers (p = {p_value:.3f})", p_value
