"""What the private item-item models share: two noisy sums, the spectral cut, and the shop's own pairs added at home.

Round "popularity" sums the shoppers' unit-norm rows over all items; its noisy sum picks the K items that the rest of
the budget is spent on. Round "co-occurrence" sums the outer products of their unit-norm rows over those K, and what
stands above the noise's spectrum is kept (`fedrec.models.spectral`). Both contributions have an L2 norm of at most 1 by
construction. Items outside the K are scored by public content and private popularity.

**Guarantee:** a shopper's contribution to either round is a function of her own row and the public list of covered
items; everything after the noisy sums is post-processing, but for `own_statistics` and `mix`, which stay in the shop.
**Source:** co-occurrence under differential privacy as in McSherry & Mironov 2009, "Differentially Private
Recommender Systems"; deviations: a shopper is the unit, rows have norm 1, and the spectrum is denoised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from fedrec.errors import ConfigError
from fedrec.models.co_occurrence import packed_size, take_packed
from fedrec.models.item_item import MAX_ITEMS_LIMIT, ItemItemModel, most_popular
from fedrec.models.popularity import ItemCounts, binary_rows, popularity_round
from fedrec.models.recommender import Layout, PublicInputs, RoundKind, RoundSpec, State
from fedrec.models.spectral import denoise
from fedrec.privacy.mechanisms import ReleaseRequest

POPULARITY_SHARE = 0.1
"""Part of 1 / sigma^2 that the choice of items gets; the pairs get the rest."""


def item_item_requests() -> tuple[ReleaseRequest, ...]:
    """The noisy sums of the private item-item models, in round order."""
    return (
        ReleaseRequest("popularity", POPULARITY_SHARE, clip_norm=1.0),
        ReleaseRequest("co-occurrence", 1 - POPULARITY_SHARE, clip_norm=1.0),
    )


@dataclass(frozen=True)
class PrivateItemItemSettings:
    """What public rules chose for a private item-item model (`fedrec.models.private_rules`).

    Attributes:
        released_items: K, the number of items whose pairs are summed; 1 to 12,000.
        content_weight: rho, weight of the public content prior in units of the co-occurrence sum (a shopper of n
            covered items adds 1 / n to each of her pairs); 0 leaves content out.
        own_weight: w, what a shop's own pairs count beside the noisy sum in the mixed model; > 0.
        tail_share: in [0, 1]; content links of items outside the K, which no sum has tempered, count this much of
            what the solved model would give them.
        max_items: at home, a shop's own pairs cover this many of its items, most popular first; 1 to 12,000.
    """

    released_items: int = 600
    content_weight: float = 3.0
    own_weight: float = 10.0
    tail_share: float = 0.02
    max_items: int = 8000

    def __post_init__(self) -> None:
        for name in ("released_items", "max_items"):
            if not 1 <= getattr(self, name) <= MAX_ITEMS_LIMIT:
                raise ConfigError(f"{name} = {getattr(self, name)}: give a whole number from 1 to {MAX_ITEMS_LIMIT}")
        if not 0 <= self.content_weight < np.inf:
            raise ConfigError(f"content_weight = {self.content_weight}: give a number of at least 0")
        if not 0 < self.own_weight < np.inf:
            raise ConfigError(f"own_weight = {self.own_weight}: give a number above 0")
        if not 0 <= self.tail_share <= 1:
            raise ConfigError(f"tail_share = {self.tail_share}: give a number from 0 to 1")

    @property
    def shopper_exponent(self) -> float:
        """1/2: every shopper's row has norm 1, so that nobody's bound depends on how much she bought."""
        return 0.5


class PrivateItemItem(ItemItemModel):
    """Rounds and statistics of every private item-item model; a model adds its name, its settings and how it solves.

    State: as `ItemItemModel`, and ``released`` int64, sorted: positions of the items whose pairs were summed. After
    `project` more items may be covered, with zeros for the rest, so that a shop can add its own pairs of them.
    """

    settings: Any

    def plan_round(self, index: int, state: State, public: PublicInputs) -> RoundSpec | None:
        """Popularity, then the co-occurrence of the items that it put first."""
        if index == 0:
            return popularity_round(public)
        if index > 1:
            return None
        released = most_popular(state["popularity"], self.settings.released_items)
        layout = Layout((("co_occurrence", (packed_size(len(released)),)),))
        return RoundSpec(RoundKind.STATISTICS, "co-occurrence", layout, {"covered": released})

    def advance(
        self, spec: RoundSpec, state: State, total: np.ndarray, public: PublicInputs, *, noise_sd: float = 0.0
    ) -> State:
        """Noisy popularity as it is; of the noisy co-occurrence what stands above the noise."""
        if spec.name == "popularity":
            return {"popularity": total.copy()}
        released = np.asarray(spec.inputs["covered"])
        packed = denoise(total, len(released), noise_sd)
        return {**state, "covered": released, "released": released, "co_occurrence": packed}

    def project(self, state: State, positions: np.ndarray, public: PublicInputs) -> State:
        """Statistics in a shop's item space, over up to ``max_items`` of its items: zeros for what was not released."""
        projected = super().project(state, positions, public)
        is_released = np.zeros(len(state["popularity"]) + 1, bool)  # the last place is the one of position -1
        is_released[state["released"]] = True
        covered = projected["covered"]
        return {**projected, "released": covered[is_released[positions[covered]]]}

    def own_statistics(self, state: State, histories: sparse.csr_matrix, public: PublicInputs) -> State:
        """The shop's own pairs over all items that ``state`` covers, and its own popularity, both from unit rows."""
        own = super().own_statistics(state, histories, public)
        counts = ItemCounts(binary_rows(histories), self.settings.shopper_exponent)
        return {**own, "popularity": counts.total(np.ones(histories.shape[0])), "released": state["released"]}

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
        return {
            **state,
            "popularity": state["popularity"] + weight * own["popularity"],
            "co_occurrence": state["co_occurrence"] + weight * own["co_occurrence"],
        }

    def candidates(self) -> dict[str, tuple[Any, ...]]:
        """None: trying settings on shoppers' data would have to be paid for."""
        return {}
