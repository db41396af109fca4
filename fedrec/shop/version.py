"""A model that a shop can serve, from what was released and, where it may, with the shop's own statistics added."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from fedrec.models import load_model, settings_of
from fedrec.models.item_item import selected_columns
from fedrec.models.popularity import take
from fedrec.models.rare_pairs import solve_without, without_rare_pairs
from fedrec.models.recommender import PublicInputs, Recommender, Scorer, State, train_alone
from fedrec.models.whole_space import WholeSpace, has_whole_space, released_factor, whole_space_scorer
from fedrec.shop.personalise import PRIVATE_GLOBAL_SHARE, ShopPersonalisation

LOCAL_MODEL = "ease"


@dataclass(frozen=True, repr=False)
class Version:
    """A model that came from a federation.

    Attributes:
        model: as trained.
        state: its shared arrays.
        public: the federation's item space.
        positions: int64, (num_shop_items,): place in it, -1 = known here alone.
        mode: how it was trained, see `fedrec.shop.lists.serving_model.Served`.
    """

    model: Recommender
    state: State
    public: PublicInputs
    positions: np.ndarray
    mode: str = "none"

    def scorer(self, rows: sparse.csr_matrix, shop_public: PublicInputs, settings: ShopPersonalisation) -> Scorer:
        """The model with the shop's own statistics added.

        Args:
            rows: float32 CSR, (num_shoppers, num_shop_items), to personalise on.
            shop_public: the shop's item space.
            settings: how much of it is the shop's own.
        """
        if not (self._is_private and self._has_wide):
            return solve_without(lambda share: self._mixed(rows, shop_public, settings, share))
        factor = released_factor(self.model, self.state)
        least = settings.own_statistics_min_shoppers
        return whole_space_scorer(
            WholeSpace(self.public), self.positions, rows, shop_public, factor, least_shoppers=least
        )

    def mixed_state(
        self, rows: sparse.csr_matrix, shop_public: PublicInputs, settings: ShopPersonalisation, given_back: float
    ) -> State:
        """Shared arrays with the shop's own statistics added, over the shop's items.

        Args:
            given_back: see `fedrec.models.rare_pairs`.
        """
        share = PRIVATE_GLOBAL_SHARE if self._is_private else settings.global_share(rows.shape[0])
        projected = self.model.project(self.state, self.positions, shop_public)
        own = self.model.own_statistics(projected, rows, shop_public)
        least = settings.own_statistics_min_shoppers
        return self.model.mix(projected, _common(self.model, own, rows, least, given_back), global_share=share)

    def released_state(self, shop_public: PublicInputs) -> State:
        """Shared arrays over the shop's items, nothing of its own added."""
        projected = self.model.project(self.state, self.positions, shop_public)
        return self.model.mix(projected, projected, global_share=1.0)

    def released_scorer(self, shop_public: PublicInputs) -> Scorer:
        """The model from what was released alone.

        **Guarantee:** a function of the released arrays and of public items; no event of the shop is read.
        """
        if not (self._is_private and self._has_wide):
            return self.model.fit(self.released_state(shop_public), shop_public)
        nobody = sparse.csr_matrix((0, shop_public.num_items), dtype=np.float32)
        factor = released_factor(self.model, self.state)
        return whole_space_scorer(WholeSpace(self.public), self.positions, nobody, shop_public, factor)

    def released_popularity(self) -> np.ndarray:
        """float64, (num_shop_items,); zeros where the model released none."""
        released = self.state.get("popularity")
        return np.zeros(len(self.positions)) if released is None else np.maximum(take(released, self.positions), 0.0)

    def at(self, shop_items: np.ndarray) -> Version:
        """The same for a shop's catalogue as it is now; str (num_shop_items,)."""
        place = {key: position for position, key in enumerate(self.public.items.tolist())}
        return replace(self, positions=np.array([place.get(str(key), -1) for key in shop_items.tolist()], np.int64))

    @property
    def _is_private(self) -> bool:
        return "released" in self.state

    @property
    def _has_wide(self) -> bool:
        return has_whole_space(self.model) and WholeSpace(self.public).is_small_enough

    def _mixed(
        self, rows: sparse.csr_matrix, shop_public: PublicInputs, settings: ShopPersonalisation, given_back: float
    ) -> Scorer:
        return self.model.fit(self.mixed_state(rows, shop_public, settings, given_back), shop_public)


def local_scorer(rows: sparse.csr_matrix, shop_public: PublicInputs, settings: ShopPersonalisation) -> Scorer:
    """The shop's own model, trained on nothing but its own events."""
    model = load_model(LOCAL_MODEL)
    trained = train_alone(model, rows, shop_public)
    least = settings.own_statistics_min_shoppers
    return solve_without(lambda share: model.fit(_common(model, trained, rows, least, share), shop_public))


def _common(model: Recommender, own: State, rows: sparse.csr_matrix, least_shoppers: int, given_back: float) -> State:
    """Own statistics without the pairs of too few shoppers; models without pairs keep theirs."""
    if least_shoppers == 1 or "co_occurrence" not in own:
        return own
    packed = without_rare_pairs(
        own["co_occurrence"],
        selected_columns(rows, own["covered"]),
        least_shoppers=least_shoppers,
        given_back=given_back,
        exponent=settings_of(model)["shopper_exponent"],
    )
    return {**own, "co_occurrence": packed}
