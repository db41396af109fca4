"""Neural collaborative filtering as recommenders: GMF, MLP and NeuMF (He et al. 2017, arXiv:1708.05031).

Item tables, towers and the output layer are shared; a shopper's vector is private, and folded in from her history.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy import sparse

from fedrec.errors import ConfigError
from fedrec.models.neural import LARGEST_WIDTH, NeuralSettings, check_whole
from fedrec.models.popularity import ItemCounts, binary_rows, popularity_round
from fedrec.models.private_neural import PrivatelyTrainable
from fedrec.models.recommender import Contributions, PublicInputs, RoundKind, RoundSpec, State

if TYPE_CHECKING:
    from fedrec.training.ncf import NcfSettings as PairSettings
    from fedrec.training.network import Network

_SMALL: Mapping[str, Any] = {
    "factors": 16,
    "layers": 1,
    "is_dot_product": False,
    "tower_factors": 0,
    "negatives": 4,
    "is_expected": False,
    "regularisation": 0.0,
    "fold_in_steps": 30,
    "serving_steps": 30,
    "fold_in_rate": 0.05,
}
"""Under an epsilon: noise grows with the number of values, and a shopper's gradient is bounded by her drawn pairs."""
_LEAST = 0.5
"""Shoppers that are added to each item's, so that there is a logarithm."""
_LOSSES = ("binary", "pairwise", "softmax")
_MOST_LAYERS = 8
_MOST_NEGATIVES = 249
"""A step of fold-in draws 250 pairs: an item and its negatives must be among them."""


@dataclass(frozen=True, kw_only=True)
class NcfSettings(NeuralSettings):
    """What the models of pairs have to set; the defaults came first on validation of NCF's own MovieLens-1M files.

    Attributes:
        loss: binary (cross-entropy, the paper's), pairwise (BPR) or softmax (over sampled negatives).
        factors: width of the product and of the tower's last layer; 1 to `LARGEST_WIDTH`.
        is_dot_product: add the product's values up without learned weights, so that regularisation holds.
        tower_factors: width of the tower's last layer where it is another, >= 1; 0 = ``factors``.
        layers: of the tower, each half as wide as the one before, the first at most `LARGEST_WIDTH`; 1 to 8.
        negatives: drawn for each of a shopper's items; 1 to 249.
        is_expected: train on the binary loss that drawing would give on average, without draws. Without privacy only:
            the network of a private run draws.
        regularisation: L2 pull on the vectors of each pair; >= 0.
        prior_items: items whose pairs pull on a shopper's vector besides her own, so that of a short history little is
            made; >= 0.
        fold_in_steps: of Adam, for a shopper's vector, in training; >= 1.
        serving_steps: the same where she is recommended to; >= 0. 0 = twice ``fold_in_steps``.
        fold_in_rate: length of the first of them, falling to 0; > 0. Short steps, and few, leave vectors where they
            are shorter than training left them; a federation then moves the shared arrays to suit that.
    """

    loss: str = "binary"
    factors: int = 128
    is_dot_product: bool = True
    tower_factors: int = 8
    layers: int = 1
    negatives: int = 8
    is_expected: bool = True
    regularisation: float = 0.0035
    prior_items: float = 10.0
    fold_in_steps: int = 15
    serving_steps: int = 0
    fold_in_rate: float = 0.3
    rounds: int = 8
    local_epochs: int = 2
    batch_shoppers: int = 512
    least_steps: int = 38
    learning_rate: float = 0.01
    round_learning_rate: float = 0.03
    last_round_rate: float = 0.2
    vector_learning_rate: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in _LOSSES:
            raise ConfigError(f"loss = {self.loss!r}: give one of {', '.join(_LOSSES)}")
        check_whole(self, "factors", most=LARGEST_WIDTH)
        check_whole(self, "tower_factors", least=0, most=LARGEST_WIDTH)
        check_whole(self, "layers", most=_MOST_LAYERS)
        check_whole(self, "negatives", most=_MOST_NEGATIVES)
        check_whole(self, "fold_in_steps")
        check_whole(self, "serving_steps", least=0)
        last = "tower_factors" if self.tower_factors else "factors"
        first = getattr(self, last) << (self.layers - 1)
        if first > LARGEST_WIDTH:
            raise ConfigError(
                f"layers = {self.layers}: over {last} = {getattr(self, last)} the tower's first layer is {first} wide; "
                f"give fewer layers or a smaller {last}, for at most {LARGEST_WIDTH}"
            )
        if not 0 < self.fold_in_rate < math.inf:
            raise ConfigError(f"fold_in_rate = {self.fold_in_rate}: give a finite number above 0")
        if self.is_expected and self.loss != "binary":
            raise ConfigError(
                f"loss = {self.loss!r}: only the binary loss has the mean over draws; give is_expected = false, or "
                "loss = 'binary'"
            )

    def of_network(self) -> PairSettings:
        """As the networks take them."""
        from fedrec.training.ncf import NcfSettings as PairSettings
        from fedrec.training.pair_losses import PairLoss

        return PairSettings(
            loss=PairLoss(self.loss),
            factors=self.factors,
            is_dot_product=self.is_dot_product,
            tower_factors=self.tower_factors or None,
            layers=self.layers,
            negatives=self.negatives,
            is_expected=self.is_expected,
            regularisation=self.regularisation,
            prior_items=self.prior_items,
            fold_in_steps=self.fold_in_steps,
            serving_steps=self.serving_steps or 2 * self.fold_in_steps,
            fold_in_rate=self.fold_in_rate,
        )


@dataclass(frozen=True, kw_only=True)
class MlpSettings(NcfSettings):
    """Settings of the MLP, whose tower has all to say."""

    tower_factors: int = 64


@dataclass(frozen=True)
class PairModel(PrivatelyTrainable):
    """What the three have in common."""

    private_network: ClassVar[Mapping[str, Any]] = _SMALL
    settings: NcfSettings = field(default_factory=NcfSettings)
    num_statistics_rounds: ClassVar[int] = 1

    def plan_round(self, index: int, state: State, public: PublicInputs) -> RoundSpec | None:
        """Counts, then local updates."""
        number = index - self.num_statistics_rounds
        return popularity_round(public) if number < 0 else super().plan_round(number, state, public)

    def contributions(self, spec: RoundSpec, histories: sparse.csr_matrix) -> Contributions:
        """0/1 rows in the round of counts; a local update has none."""
        if spec.kind is not RoundKind.STATISTICS:
            return super().contributions(spec, histories)
        return ItemCounts(binary_rows(histories))

    def advance(
        self, spec: RoundSpec, state: State, total: np.ndarray, public: PublicInputs, *, noise_sd: float = 0.0
    ) -> State:
        """Counts start the items' biases; one below 0, which no shop's shoppers come to, counts as none."""
        if spec.kind is RoundKind.STATISTICS:
            return self.arrays_at(np.maximum(total, 0) + _LEAST)
        return super().advance(spec, state, total, public, noise_sd=noise_sd)

    def train_alone(self, histories: sparse.csr_matrix, public: PublicInputs, *, rounds: int | None = None) -> State:
        """As a federation of one shop would: rates fall over rounds, and each folds the shoppers' vectors in anew.

        ``rounds`` are the federation's, the one of counts among them.

        Vectors folded in once, from tables that nothing has trained yet, would fit these to the end.
        """
        from fedrec.privacy.draws import Draws, shopper_digests

        settings, counts = self.settings, popularity_round(public)
        total = self.contributions(counts, histories).total(np.ones(histories.shape[0]))
        arrays = self.advance(counts, {}, total, public)
        draws = Draws.seeded(f"alone/{settings.init_seed}", shopper_digests(range(histories.shape[0])))
        for index in range(settings.rounds if rounds is None else rounds - self.num_statistics_rounds):
            arrays = self._train(
                *(arrays, histories, draws, settings.local_epochs, index * settings.local_epochs, settings.epochs),
                learning_rate=settings.learning_rate * settings.share_of_round(index),
            )
        return arrays


@dataclass(frozen=True)
class Gmf(PairModel):
    """Generalised matrix factorisation: a weighted product of shopper and item vectors (He et al. 2017)."""

    name: ClassVar[str] = "gmf"

    def make_network(self, num_items: int) -> Network:
        """See `NeuralModel`."""
        from fedrec.training import ncf

        return ncf.Gmf(num_items, self.settings.of_network(), init_seed=self.settings.init_seed)


@dataclass(frozen=True)
class Mlp(PairModel):
    """A multi-layer perceptron over shopper and item vectors (He et al. 2017)."""

    name: ClassVar[str] = "mlp"
    settings: NcfSettings = field(default_factory=MlpSettings)

    def make_network(self, num_items: int) -> Network:
        """See `NeuralModel`."""
        from fedrec.training import ncf

        return ncf.Mlp(num_items, self.settings.of_network(), init_seed=self.settings.init_seed)


@dataclass(frozen=True)
class NeuMf(PairModel):
    """GMF and MLP joined by one output layer (He et al. 2017)."""

    name: ClassVar[str] = "neumf"

    def make_network(self, num_items: int) -> Network:
        """See `NeuralModel`."""
        from fedrec.training import ncf

        return ncf.NeuMf(num_items, self.settings.of_network(), init_seed=self.settings.init_seed)
