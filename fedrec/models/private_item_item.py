"""What the private item-item models share: two noisy sums, the spectral cut, and the shop's own pairs added at home.

Round "popularity" sums the shoppers' unit-norm rows over all items; its noisy sum picks the K items that the rest of
the budget is spent on. Round "co-occurrence" sums the outer products of their rows over those K, damped along the
popularity that is known by then and scaled to norm 1 (`fedrec.models.damped`), and what stands above the noise's
spectrum is kept (`fedrec.models.spectral`). How much regularisation and public content suit it is found on the same
noisy sum (`fedrec.models.fission`). Items outside the K are scored by content and noisy popularity.

**Guarantee:** both contributions have an L2 norm of at most 1 and are functions of the shopper's own row and of what
was released before; everything after the noisy sums is post-processing, but for `own_statistics` and `mix`, which stay
in the shop.
**Source:** co-occurrence under differential privacy as in McSherry & Mironov 2009, "Differentially Private
Recommender Systems"; deviations: a shopper is the unit, rows have norm 1, and the spectrum is denoised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy import sparse

from fedrec.errors import BadMessage, ConfigError
from fedrec.models.co_occurrence import pack_lower, packed_size, take_packed
from fedrec.models.damped import DampedCoOccurrence, damp
from fedrec.models.fission import choose_regularisation
from fedrec.models.item_item import MAX_ITEMS_LIMIT, ItemItemModel, most_popular, selected_columns
from fedrec.models.popularity import ItemCounts, binary_rows, popularity_round
from fedrec.models.private_rules import popularity_share
from fedrec.models.recommender import Contributions, Layout, PublicInputs, RoundKind, RoundSpec, State
from fedrec.models.spectral import denoise
from fedrec.privacy.mechanisms import ReleaseRequest

LEAST_DAMPING = 2.0**-6
"""With less, undoing the damping would blow up float64's error, which the rounding of sums has room for."""

_LEAST_POPULARITY = 0.1
"""Items rarer than this part of the mean count as if they had it, where similarity is tilted by popularity."""


def item_item_requests(crowd: float | None) -> tuple[ReleaseRequest, ...]:
    """The noisy sums of the private item-item models, in round order."""
    share = popularity_share(crowd)
    return (
        ReleaseRequest("popularity", share, clip_norm=1.0),
        ReleaseRequest("co-occurrence", 1 - share, clip_norm=1.0),
    )


@dataclass(frozen=True)
class PrivateItemItemSettings:
    """What public rules chose for a private item-item model (`fedrec.models.private_rules`).

    Attributes:
        released_items: K, the number of items whose pairs are summed; 1 to 12,000.
        damping: alpha in [2^-6, 1]; what is left of a shopper's row along the direction of popularity.
        content_weight: rho, weight of the public content prior in units of the co-occurrence sum (a shopper of n
            covered items adds about 1 / n to each of her pairs); 0 leaves content out.
        content_tilt: similarity of two items is multiplied by (the product of their popularities) to this power; >= 0.
        popularity_weight: added to an item's score for each unit of its noisy popularity; >= 0. Decides for shoppers
            of whom the model knows nothing else.
        crowd: x, declared shoppers over the noise of one release with the whole budget; > 0. At home it says what the
            noisy sum is worth beside a shop's own shoppers.
        own_weight: w, what a shop's own pairs count beside the noisy sum in the mixed model; > 0.
        tail_share: in [0, 1]; content links of items that were not solved with the others count this much of what the
            solved ones would give them.
        max_items: so many items are solved together at most; at home, a shop's own pairs cover this many of its items,
            most popular first; 1 to 12,000.
    """

    released_items: int = 600
    damping: float = 0.5
    content_weight: float = 6.0
    content_tilt: float = 0.3
    popularity_weight: float = 1e-4
    crowd: float = 1000.0
    own_weight: float = 10.0
    tail_share: float = 0.02
    max_items: int = 8000

    def __post_init__(self) -> None:
        for name in ("released_items", "max_items"):
            if not 1 <= getattr(self, name) <= MAX_ITEMS_LIMIT:
                raise ConfigError(f"{name} = {getattr(self, name)}: give a whole number from 1 to {MAX_ITEMS_LIMIT}")
        for name in ("content_weight", "content_tilt", "popularity_weight"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: give a number of at least 0")
        for name in ("own_weight", "crowd"):
            if not 0 < getattr(self, name) < np.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: give a number above 0")
        if not LEAST_DAMPING <= self.damping <= 1:
            raise ConfigError(f"damping = {self.damping}: give a number from {LEAST_DAMPING} to 1")
        if not 0 <= self.tail_share <= 1:
            raise ConfigError(f"tail_share = {self.tail_share}: give a number from 0 to 1")

    @property
    def shopper_exponent(self) -> float:
        """1/2: every shopper's row has norm 1, so that nobody's bound depends on how much she bought."""
        return 0.5


class PrivateItemItem(ItemItemModel):
    """Rounds and statistics of every private item-item model; a model adds its name, its settings and how it solves.

    State: as `ItemItemModel`, and ``released`` int64, sorted: positions of the items whose pairs were summed (after
    `project` more items may be covered, with zeros for the rest, so that a shop can add its own pairs of them);
    ``ridge`` and ``content_weight`` float64 (1,): lambda and rho as they were found; ``popularity_noise`` float64 (1,):
    standard deviation of the noise in ``popularity``.
    """

    is_tuned_on_the_sum: ClassVar[bool] = False

    settings: Any

    def plan_round(self, index: int, state: State, public: PublicInputs) -> RoundSpec | None:
        """Popularity, then the co-occurrence of the items that it put first."""
        if index == 0:
            return popularity_round(public)
        if index > 1:
            return None
        released = most_popular(state["popularity"], self.settings.released_items)
        layout = Layout((("co_occurrence", (packed_size(len(released)),)),))
        inputs = {"covered": released, "direction": _unit(self._floored(state)[released])}
        return RoundSpec(RoundKind.STATISTICS, "co-occurrence", layout, inputs)

    def contributions(self, spec: RoundSpec, histories: sparse.csr_matrix) -> Contributions:
        """Unit-norm rows (popularity), or outer products of damped ones (co-occurrence).

        Raises:
            BadMessage: the round's covered items are not ascending positions, or its direction is none over them.
        """
        if spec.name == "popularity":
            return ItemCounts(binary_rows(histories), self.settings.shopper_exponent)
        covered, direction = spec.inputs["covered"], np.asarray(spec.inputs["direction"], np.float64)
        if direction.shape != covered.shape or not 0 < float(np.abs(direction).max()) < np.inf:
            raise BadMessage(f"a direction of shape {direction.shape} for {len(covered)} items, or not finite, or zero")
        return DampedCoOccurrence(selected_columns(histories, covered), _unit(direction), self.settings.damping)

    def advance(
        self, spec: RoundSpec, state: State, total: np.ndarray, public: PublicInputs, *, noise_sd: float = 0.0
    ) -> State:
        """Noisy popularity as it is; of the noisy co-occurrence what stands above the noise."""
        if spec.name == "popularity":
            return {"popularity": total.copy(), "popularity_noise": np.array([noise_sd])}
        released, alpha = np.asarray(spec.inputs["covered"]), self.settings.damping
        direction = _unit(np.asarray(spec.inputs["direction"]))
        gram = damp(denoise(total, len(released), noise_sd, direction), direction, 1 / alpha)
        ridge, content_weight = self._regularisation(spec, state, total, public, noise_sd)
        return {
            **state,
            "covered": released,
            "released": released,
            "co_occurrence": pack_lower(gram),
            "ridge": np.array([ridge]),
            "content_weight": np.array([content_weight]),
        }

    def _regularisation(
        self, spec: RoundSpec, state: State, noisy: np.ndarray, public: PublicInputs, noise_sd: float
    ) -> tuple[float, float]:
        """lambda and rho: those that do best on the noisy sum itself; without noise those of the settings."""
        usual = self._usual_regularisation()
        if noise_sd == 0 or not self.is_tuned_on_the_sum:
            return usual
        released, direction = np.asarray(spec.inputs["covered"]), _unit(np.asarray(spec.inputs["direction"]))
        similarity = None
        if public.content is not None and usual[1] > 0:
            scale = self._content_scale({**state, "released": released})[released]
            features = sparse.diags(scale) @ public.content[released].astype(np.float64)
            similarity = (features @ features.T).toarray()
        return choose_regularisation(noisy, noise_sd, direction, self.settings.damping, similarity)

    def _usual_regularisation(self) -> tuple[float, float]:
        """lambda and rho of the settings."""
        return getattr(self.settings, "regularisation", 0.0), self.settings.content_weight

    def project(self, state: State, positions: np.ndarray, public: PublicInputs) -> State:
        """Statistics in a shop's item space, over up to ``max_items`` of its items: zeros for what was not released."""
        projected = super().project(state, positions, public)
        is_released = np.zeros(len(state["popularity"]) + 1, bool)  # the last place is the one of position -1
        is_released[state["released"]] = True
        covered = projected["covered"]
        kept = {name: state[name] for name in ("ridge", "content_weight", "popularity_noise")}
        return {**projected, **kept, "released": covered[is_released[positions[covered]]]}

    def own_statistics(self, state: State, histories: sparse.csr_matrix, public: PublicInputs) -> State:
        """The shop's own pairs over all items that ``state`` covers, and its own popularity, both from unit rows."""
        own = super().own_statistics(state, histories, public)
        counts = ItemCounts(binary_rows(histories), self.settings.shopper_exponent)
        kept = {name: state[name] for name in ("released", "ridge", "content_weight")}
        popularity = counts.total(np.ones(histories.shape[0]))
        return {**own, **kept, "popularity": popularity, "popularity_noise": np.zeros(1)}

    def mix(self, state: State, own: State, *, global_share: float) -> State:
        """The noisy sum plus the own pairs, which weigh ``own_weight`` at a ``global_share`` of 1/2.

        Sums are added, not averaged, since the settings are in units of the noisy sum: own x w (1 - share) / share.
        A share of 1 leaves the items that were released, as the global model has them; 0 the own statistics alone.
        """
        if global_share == 0:
            return own
        if global_share == 1:
            released = state["released"]
            packed = take_packed(
                state["co_occurrence"], len(state["covered"]), np.searchsorted(state["covered"], released)
            )
            return {**state, "covered": released, "co_occurrence": packed}
        weight = self.settings.own_weight * (1 - global_share) / global_share
        ridge, content_weight = self._usual_regularisation()  # what suits the noisy sum alone is too much for both
        return {
            **state,
            "ridge": np.array([ridge]),
            "content_weight": np.array([content_weight]),
            "popularity": state["popularity"] + weight * own["popularity"],
            "co_occurrence": state["co_occurrence"] + weight * own["co_occurrence"],
        }

    def _floored(self, state: State) -> np.ndarray:
        """Popularity, float64 (num_items,): no value under the noise, which alone would have put it anywhere."""
        return np.maximum(state["popularity"], state["popularity_noise"][0])

    def _content_scale(self, state: State) -> np.ndarray:
        """float64, (num_items,): (popularity over its mean) ** content_tilt: more of it where statistics weigh more."""
        popularity = self._floored(state)
        mean = float(popularity[state["released"]].mean()) if len(state["released"]) else 0.0
        if mean <= 0:
            return np.ones(len(popularity))
        return np.maximum(popularity / mean, _LEAST_POPULARITY) ** self.settings.content_tilt

    def _ranked(self, state: State) -> State:
        """The state with the popularity that is added to scores: the items outside the K keep theirs as it is."""
        popularity = state["popularity"].copy()
        popularity[state["released"]] = self._floored(state)[state["released"]]
        return {**state, "popularity": popularity}

    def candidates(self) -> dict[str, tuple[Any, ...]]:
        """None: trying settings on shoppers' data would have to be paid for."""
        return {}


def over_all_items(state: State) -> State:
    """The state with every item covered: zeros in the co-occurrence for those that were not."""
    num_items, covered = len(state["popularity"]), state["covered"]
    place = np.full(num_items, -1, np.int64)
    place[covered] = np.arange(len(covered))
    packed = take_packed(state["co_occurrence"], len(covered), place)
    return {**state, "covered": np.arange(num_items, dtype=np.int64), "co_occurrence": packed}


def _unit(vector: np.ndarray) -> np.ndarray:
    """The vector scaled to norm 1; the mean direction for a zero one.

    The largest value becomes 1 first: squares of tiny or huge ones would leave float64, and the norm with them.
    """
    largest = float(np.abs(vector).max(initial=0.0))
    if largest == 0:
        return np.full(len(vector), len(vector) ** -0.5)
    scaled = vector / largest
    return scaled / np.linalg.norm(scaled)
