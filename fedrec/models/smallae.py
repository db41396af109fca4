"""smallae: a small autoencoder with tied weights, made for differential privacy.

Under an epsilon it starts where the private item-item models end: two noisy sums (popularity, co-occurrence), denoised,
with public content as a prior; the leading eigenvectors become its item vectors, and gradient steps go on from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy import sparse
from scipy.linalg import eigh

from fedrec.errors import ConfigError
from fedrec.models.co_occurrence import unpack_lower
from fedrec.models.ease import PrivateEase, PrivateEaseSettings
from fedrec.models.item_item import add_similarity
from fedrec.models.neural import LARGEST_WIDTH, NeuralSettings, check_whole
from fedrec.models.private_neural import (
    PrivatelyTrainable,
    PrivateNeural,
    PrivateNeuralSettings,
    covered_popularity,
    private_settings,
    step_requests,
)
from fedrec.models.private_rules import item_item_rules, popularity_share
from fedrec.models.recommender import Contributions, PublicInputs, RoundSpec, State
from fedrec.privacy.mechanisms import Outlook, ReleaseRequest

if TYPE_CHECKING:
    from fedrec.training.small_autoencoder import SmallAutoencoder

_GRAM_SHARE = 0.85
"""Part of what popularity leaves of the budget that the co-occurrence gets; the steps get the rest."""

_SHARPNESS = 150.0
"""Inner product of the start's scores in units of the softmax."""


@dataclass(frozen=True, kw_only=True)
class SmallAeSettings(NeuralSettings):
    """Settings of the small autoencoder.

    Attributes:
        size: length of an item's vector; 1 to `LARGEST_WIDTH`.
        dropout: share of a shopper's items that training hides from the input, in [0, 1); none under an epsilon.
    """

    size: int = 64
    dropout: float = 0.5
    rounds: int = 20
    learning_rate: float = 3e-3
    private_steps: int = 10
    private_clip_norm: float = 0.2
    private_learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "size", most=LARGEST_WIDTH)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout = {self.dropout}: give a share from 0 to below 1")


@dataclass(frozen=True)
class SmallAe(PrivatelyTrainable):
    """A small autoencoder with tied weights, which differential privacy suits."""

    name: ClassVar[str] = "smallae"
    settings: SmallAeSettings = field(default_factory=SmallAeSettings)

    def make_network(self, num_items: int) -> SmallAutoencoder:
        """Over all items of the item space."""
        from fedrec.training.small_autoencoder import SmallAutoencoder

        settings = self.settings
        return SmallAutoencoder(num_items, settings.size, dropout=settings.dropout, init_seed=settings.init_seed)

    def release_requests(self, crowd: float | None = None) -> tuple[ReleaseRequest, ...]:
        """Popularity, co-occurrence, then the gradient steps."""
        share = popularity_share(crowd)
        return (
            ReleaseRequest("popularity", share, clip_norm=1.0),
            ReleaseRequest("co-occurrence", (1 - share) * _GRAM_SHARE, clip_norm=1.0),
            step_requests(self.settings, (1 - share) * (1 - _GRAM_SHARE)),
        )

    def private(self, outlook: Outlook, public: PublicInputs) -> PrivateSmallAe:
        """K, lambda and rho by the rules of the item-item models."""
        rules = item_item_rules(outlook, public)
        about = private_settings(self, outlook, public, {"size": self.settings.size, "dropout": 0.0})
        settings: dict[str, Any] = {name: getattr(about, name) for name in PrivateNeuralSettings.__dataclass_fields__}
        return PrivateSmallAe(
            PrivateSmallAeSettings(
                **settings, crowd=rules.crowd, regularisation=rules.regularisation, content_weight=rules.content_weight
            )
        )


@dataclass(frozen=True, kw_only=True)
class PrivateSmallAeSettings(PrivateNeuralSettings):
    """What public rules chose.

    Attributes:
        crowd, regularisation, content_weight: as `fedrec.models.ease.PrivateEaseSettings` has them.
    """

    crowd: float = 1000.0
    regularisation: float = 30.0
    content_weight: float = 6.0


@dataclass(frozen=True)
class PrivateSmallAe(PrivateNeural):
    """The small autoencoder from two noisy sums and the whole federation's DP-SGD steps."""

    name: ClassVar[str] = "private-smallae"
    num_statistics_rounds: ClassVar[int] = 2
    settings: PrivateSmallAeSettings = field(default_factory=PrivateSmallAeSettings)

    @property
    def _statistics(self) -> PrivateEase:
        """The model whose sums the start is made of."""
        settings = self.settings
        return PrivateEase(
            PrivateEaseSettings(
                released_items=settings.released_items,
                content_weight=settings.content_weight,
                crowd=settings.crowd,
                regularisation=settings.regularisation,
            )
        )

    def plan_statistics(self, index: int, state: State, public: PublicInputs) -> RoundSpec:
        """Popularity, then co-occurrence."""
        spec = self._statistics.plan_round(index, state, public)
        assert spec is not None
        return spec

    def contributions(self, spec: RoundSpec, histories: sparse.csr_matrix) -> Contributions:
        """As private EASE's."""
        return self._statistics.contributions(spec, histories)

    def advance_statistics(
        self, spec: RoundSpec, state: State, total: np.ndarray, public: PublicInputs, noise_sd: float
    ) -> State:
        """Noisy popularity; then the first arrays, from the denoised co-occurrence of the items that it put first."""
        moved = self._statistics.advance(spec, state, total, public, noise_sd=noise_sd)
        if spec.name == "popularity":
            return moved
        known = {name: moved[name] for name in ("popularity", "popularity_noise", "covered")}
        return {**known, **self.first_arrays(moved, public)}

    def first_arrays(self, state: State, public: PublicInputs) -> State:
        """Item vectors V sqrt(l / (l + lambda)) of the leading eigenpairs of co-occurrence and content together.

        Their inner products score as a ridge regression of the rows on themselves does (EASE without its constraint).
        """
        covered = state["covered"]
        ridge = float(state["ridge"][0])
        gram = unpack_lower(state["co_occurrence"], len(covered))
        weight = float(state["content_weight"][0])
        if public.content is not None and weight > 0:
            add_similarity(gram, public.content[covered], weight)
        size = min(self._size, len(covered))
        last = len(covered) - 1
        values, vectors = eigh(gram, lower=True, subset_by_index=(len(covered) - size, last), check_finite=False)
        weights = np.zeros((len(covered), self._size), np.float32)
        kept = np.maximum(values, 0)
        weights[:, :size] = vectors * np.sqrt(_SHARPNESS * kept / (kept + ridge))
        return {**self.arrays_at(covered_popularity(state)), "tied.weight": weights}

    @property
    def _size(self) -> int:
        base: Any = self.base
        return int(base.settings.size)
