"""GMF, MLP and NeuMF where one sample is one shopper: shared item tables and towers, private shopper vectors.

A score is the item's bias, which starts at its popularity, plus what the shopper's vector makes of the item. Her vector
is private: it is computed from her own history and the shared parameters alone (`fold_in`), and it never travels. A new
shopper is folded in so without training; one without a history has a vector of zeros.

Source: He et al. 2017, arXiv:1708.05031. Deviations: the loss of a shopper is the sum over her pairs; a new shopper's
vector is reconstructed as in Singhal et al. 2021, arXiv:2102.03448; ``is_dot_product`` is the product of Rendle et al.
2020, arXiv:2005.09683; the tower's: `fedrec.training.pair_parts`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn.functional import softplus

from fedrec.errors import ConfigError
from fedrec.privacy.draws import Draws
from fedrec.training.network import Batch, Network, to_tensor
from fedrec.training.pair_losses import LOSSES, PairLoss
from fedrec.training.pair_parts import ItemSide, ProductPart, TowerPart, embedding, linear
from fedrec.training.pairs import draw_pairs, own_draws, padded

_CHUNK_VALUES = 1_000_000
_TOWER_START = 0.01  # of the output layer's usual weights: what an untrained tower says would bury popularity
_FADING = 0.9, 0.99  # Adam's memory in fold-in: its steps are few
_STEPS_A_DRAW = 5  # drawing a shopper's pairs takes as long as some steps on them


@dataclass(frozen=True)
class NcfSettings:
    """What a model of pairs is made of.

    Attributes:
        loss: of a shopper's pairs.
        factors: width of the product and of the tower's last layer, the paper's predictive factors.
        is_dot_product: add the product's values up as they are. Weights that are learned over them undo the penalty on
            the vectors: they grow, the vectors shrink.
        tower_factors: width of the tower's last layer where it is another; None = ``factors``.
        layers: of the tower; each half as wide as the one before.
        negatives: drawn for each item that she has.
        is_expected: draw none: the binary loss that drawing would give on average, of all her items and all others.
            Many times as fast where a product alone is trained, and free of the draws' noise. Plain training only: it
            goes past the layers, so that no shopper's gradient can be bounded (`fedrec.training.dp_sgd` refuses).
        max_pairs: of a shopper and step; of longer histories a part is drawn.
        loss_unit: what the sum over her pairs is divided by; public, the same for all.
        regularisation: of the shopper's vector and her pairs' item vectors, for each pair.
        prior_items: items whose pairs pull on her vector besides her own, so that of a short history little is made.
        init_sd: standard deviation of the item tables at the start.
        fold_in_steps: of Adam, for a shopper's vector, in training.
        serving_steps: the same where she is recommended to; None = ``fold_in_steps``.
        fold_in_pairs: of a shopper and such a step.
        fold_in_rate: length of the first step; falls to 0.
    """

    loss: PairLoss = PairLoss.BINARY
    factors: int = 32
    is_dot_product: bool = False
    tower_factors: int | None = None
    layers: int = 3
    negatives: int = 4
    is_expected: bool = False
    max_pairs: int = 500
    loss_unit: float = 100.0
    regularisation: float = 0.0
    prior_items: float = 0.0
    init_sd: float = 0.1
    fold_in_steps: int = 30
    serving_steps: int | None = None
    fold_in_pairs: int = 250
    fold_in_rate: float = 0.05

    def __post_init__(self) -> None:
        for name in ("factors", "tower_factors", "layers", "negatives", "fold_in_steps", "serving_steps"):
            if getattr(self, name) is not None and not getattr(self, name) >= 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be at least 1")
        for name in ("max_pairs", "fold_in_pairs"):
            if not getattr(self, name) > self.negatives:
                raise ConfigError(f"{name} = {getattr(self, name)}: must leave room for an item and its negatives")
        for name in ("loss_unit", "init_sd", "fold_in_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be above 0 and finite")
        if self.is_expected and self.loss is not PairLoss.BINARY:
            raise ConfigError(f"is_expected with loss = {self.loss}: only the binary loss has that mean, give it")
        for name in ("regularisation", "prior_items"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be 0 or more and finite")

    @property
    def tower_width(self) -> int:
        """Of the tower's last layer."""
        return self.factors if self.tower_factors is None else self.tower_factors


class Ncf(Network):
    """A model of pairs: features of shopper and item, and an output layer over them.

    Attributes:
        parts: ``product``, ``tower`` or both.
        widths: of each part's share of a shopper's vector.
        output: from the parts' features, side by side, to a score; of a dot product alone its bias: the one weight is
            that of a 0.
    """

    output_name, item_bias_name = "output.", "item_bias.weight"

    def __init__(
        self,
        num_items: int,
        settings: NcfSettings,
        kinds: dict[str, type[ProductPart] | type[TowerPart]],
        *,
        init_seed: int = 0,
        popularity: np.ndarray | None = None,
    ) -> None:
        super().__init__(num_items)
        self.settings = settings
        self.popularity = popularity
        generator = torch.Generator().manual_seed(init_seed)
        parts = {name: kind(num_items, settings, generator) for name, kind in kinds.items()}
        self.parts = nn.ModuleDict(parts)
        self.typed_parts = tuple(parts.values())
        self.widths = [part.width for part in parts.values()]
        self.output = linear(sum(part.num_features for part in parts.values()) or 1, 1)
        self.item_bias = embedding(num_items, 1)
        nn.init.zeros_(self.item_bias.weight)
        self._start_output(generator)
        self.num_shopper_values = sum(self.widths)

    def batch(self, histories: sparse.csr_matrix, draws: Draws | None, vectors: Tensor | None = None) -> Batch:
        """Tensors of some shoppers; draws = None takes the pairs that a history itself stands for."""
        return self._batch(histories, draws, vectors, self.settings.max_pairs)

    def forward(self, batch: Batch) -> Tensor:
        """(num_shoppers,): the sum over a shopper's pairs, over `NcfSettings.loss_unit`."""
        return self._losses(batch, self._batch_items(batch))

    def _losses(self, batch: Batch, items: ItemSide) -> Tensor:
        if self.settings.is_expected:
            return self._expected(batch, items) / self.settings.loss_unit
        losses = LOSSES[self.settings.loss](self._scores_of(batch["vectors"], items), batch)
        if self.settings.regularisation:
            lengths = (items.squares * batch["is_pair"]).sum(1) + self._pulls(batch["is_pair"].sum(1), batch["vectors"])
            losses = losses + self.settings.regularisation * lengths
        return losses / self.settings.loss_unit

    def pair_scores(self, vectors: Tensor, ids: Tensor) -> Tensor:
        """(num_shoppers, length): scores of some items for each."""
        return self._scores_of(vectors, self._of_items(ids))

    def _batch_items(self, batch: Batch) -> ItemSide:
        return self._of_items(None if self.settings.is_expected else batch["ids"])

    def _of_items(self, ids: Tensor | None) -> ItemSide:
        parts, squares = zip(*(part.of_items(ids) for part in self.typed_parts), strict=True)
        bias = self.item_bias.weight if ids is None else self.item_bias(ids)
        return ItemSide(parts, bias.squeeze(-1), torch.stack(squares).sum(0))

    def _scores_of(self, vectors: Tensor, items: ItemSide) -> Tensor:
        weighed, added = [], vectors.new_zeros(*items.squares.shape)
        split = zip(self.typed_parts, vectors.split(self.widths, dim=1), items.parts, strict=True)
        for part, own, side in split:
            features = part(own, side)
            if part.num_features:
                weighed.append(features)
            else:
                added = features.sum(2)
        together = torch.cat(weighed or [torch.zeros_like(added)[:, :, None]], dim=2)
        return self.output(together).squeeze(2) + items.bias + added

    @torch.no_grad()
    def scores(self, histories: sparse.csr_matrix, vectors: Tensor | None = None) -> Tensor:
        """(num_shoppers, num_items): higher is better; shoppers without a vector here are folded in."""
        if vectors is None:
            vectors = self.fold_in(histories)
        chunks = vectors.to(self.device, self.floating).split(max(1, _CHUNK_VALUES // self._values_a_row))
        items = self._of_items(None)
        return torch.cat([self._of_all_items(chunk, items) for chunk in chunks])

    def fold_in(self, histories: sparse.csr_matrix, draws: Draws | None = None) -> Tensor:
        """(num_shoppers, num_shopper_values): vectors that make each shopper's own loss small.

        Adam from zeros, with fresh pairs every few steps and the shared parameters as they are.

        Args:
            histories: CSR, (num_shoppers, num_items); entries > 0 where bought.
            draws: of these shoppers, for training; None = what a history itself stands for, so that the same history is
                always the same vector: for recommending, in `NcfSettings.serving_steps`.
        Guarantee: a row depends on the shared parameters, the shopper's own history and draws alone.
        Source: Singhal et al. 2021, arXiv:2102.03448, Algorithm 1 (reconstruction), with Adam.
        """
        settings = self.settings
        values = self._values_a_row if settings.is_expected else settings.fold_in_pairs * max(self.widths)
        rows = max(1, _CHUNK_VALUES // values)
        num_steps = settings.fold_in_steps if draws is not None else settings.serving_steps or settings.fold_in_steps
        found = []
        for start in range(0, histories.shape[0], rows):
            places = np.arange(start, min(start + rows, histories.shape[0]))
            some = histories[places]
            own = own_draws(some, "fold-in") if draws is None else draws.take(places)
            found.append(self._fold_in_some(some, own, num_steps))
        empty = torch.zeros(0, self.num_shopper_values, dtype=self.floating, device=self.device)
        return torch.cat([empty, *found])

    def _fold_in_some(self, histories: sparse.csr_matrix, draws: Draws, num_steps: int) -> Tensor:
        settings = self.settings
        shape = histories.shape[0], self.num_shopper_values

        @torch.no_grad()
        def drawn(step: int) -> tuple[Batch, ItemSide]:
            """What a step and some after it take; fold-in leaves the items as they are."""
            batch = self._batch(histories, draws.of(f"fold-in {step}"), vectors, settings.fold_in_pairs)
            return batch, self._batch_items(batch)

        vectors = torch.zeros(shape, dtype=self.floating, device=self.device, requires_grad=True)
        first, second = torch.zeros_like(vectors), torch.zeros_like(vectors)
        batch, items = drawn(0)
        for step in range(num_steps):
            if step and step % _STEPS_A_DRAW == 0:
                batch, items = drawn(step)
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(self._losses({**batch, "vectors": vectors}, items).sum(), vectors)
            rate = settings.fold_in_rate * (1 - step / num_steps)
            with torch.no_grad():
                first.lerp_(slope, 1 - _FADING[0])
                second.lerp_(slope.square(), 1 - _FADING[1])
                fair = first / (1 - _FADING[0] ** (step + 1)), second / (1 - _FADING[1] ** (step + 1))
                vectors -= rate * fair[0] / (fair[1].sqrt() + 1e-8)
        return vectors.detach()

    @torch.no_grad()
    def _start_output(self, generator: torch.Generator) -> None:
        """As many weights above 0 as below, and the bias where a score of nothing known belongs.

        Were all of one sign, or the first scores far off, the first steps would push every unit of a small tower below
        0, and there no gradient reaches it again.
        """
        weight = self.output.weight
        nn.init.uniform_(weight, 0, math.sqrt(3 / self.output.in_features), generator=generator)
        weight[:, 1::2] *= -1
        first = 0
        for part in self.typed_parts:
            if isinstance(part, TowerPart):
                weight[:, first : first + part.num_features] *= _TOWER_START
            first += part.num_features
        if self.settings.loss is PairLoss.BINARY:
            self.output.bias.fill_(-math.log(self.settings.negatives))

    def _batch(
        self, histories: sparse.csr_matrix, draws: Draws | None, vectors: Tensor | None, max_pairs: int
    ) -> Batch:
        if vectors is None or vectors.shape != (histories.shape[0], self.num_shopper_values):
            found = None if vectors is None else tuple(vectors.shape)
            raise ConfigError(f"vectors of shape {found}: give {(histories.shape[0], self.num_shopper_values)}")
        if self.settings.is_expected:
            ids, sizes = padded(histories)
            often = np.minimum(1, self.settings.negatives * sizes / np.maximum(self.num_items - sizes, 1))
            return {
                "vectors": vectors.to(self.device, self.floating),
                "ids": torch.from_numpy(ids).to(self.device),
                "is_pair": to_tensor(np.arange(ids.shape[1]) < sizes[:, None], self),
                "often": to_tensor(often, self),
            }
        pairs = draw_pairs(
            histories,
            own_draws(histories, "pairs") if draws is None else draws,
            negatives=self.settings.negatives,
            max_pairs=max_pairs,
            popularity=self.popularity,
            is_seated=self.is_seated,
        )
        is_positive, is_pair = pairs.is_positive, pairs.is_pair
        batch = {
            "vectors": vectors.to(self.device, self.floating),
            "ids": torch.from_numpy(pairs.ids).to(self.device),
            "is_positive": to_tensor(is_positive, self),
            "is_pair": to_tensor(is_pair, self),
        }
        is_negative = is_pair & ~is_positive
        if self.settings.loss is PairLoss.PAIRWISE:
            place = np.arange(is_pair.shape[1]) - pairs.num_positives[:, None]
            partner = np.where(is_negative, place % np.maximum(pairs.num_positives, 1)[:, None], 0)
            batch["partner"] = torch.from_numpy(partner).to(self.device)
        if self.settings.loss is PairLoss.SOFTMAX:
            batch["stands_for"] = to_tensor(np.where(is_negative, self._stands_for(histories, pairs.ids), 0), self)
            batch["stands_for"] -= to_tensor(np.log(np.maximum(pairs.num_negatives, 1))[:, None], self)
        return batch

    def _stands_for(self, histories: sparse.csr_matrix, ids: np.ndarray) -> np.ndarray:
        """Log of how many open items one draw of an item stands for: 1 over its share of the draws."""
        if self.popularity is None:
            num_open = self.num_items - np.diff(histories.indptr)
            return np.log(np.maximum(num_open, 1.0))[:, None]
        bought = histories != 0
        is_open_share = self.popularity.sum() - bought @ self.popularity
        return np.log(np.maximum(is_open_share, 1e-300))[:, None] - np.log(self.popularity)[ids]

    def _expected(self, batch: Batch, items: ItemSide) -> Tensor:
        """(num_shoppers,): the mean of the binary loss over draws, as if every item were drawn ``often`` times."""
        scores = self._of_all_items(batch["vectors"], items)
        ids, is_own, often = batch["ids"], batch["is_pair"], batch["often"]
        hers = scores.gather(1, ids)
        losses = often * softplus(scores).sum(1) + (((1 - often[:, None]) * softplus(hers) - hers) * is_own).sum(1)
        if self.settings.regularisation:
            num_pairs = often * self.num_items + (1 - often) * is_own.sum(1)
            lengths = (
                self._pulls(num_pairs, batch["vectors"])
                + often * items.squares.sum()
                + (1 - often) * (items.squares[ids] * is_own).sum(1)
            )
            losses = losses + self.settings.regularisation * lengths
        return losses

    def _pulls(self, num_pairs: Tensor, vectors: Tensor) -> Tensor:
        """(num_shoppers,): a vector's squared length, for each of her pairs and those of the prior."""
        prior = self.settings.prior_items * (1 + self.settings.negatives)
        return (num_pairs + prior) * vectors.square().sum(1)

    @property
    def _values_a_row(self) -> int:
        """Of the largest tensor that all items of one shopper take."""
        widest = max(part.width if isinstance(part, TowerPart) else 1 for part in self.typed_parts)
        return max(1, self.num_items * widest)

    def _of_all_items(self, vectors: Tensor, items: ItemSide) -> Tensor:
        sizes = [part.num_features for part in self.typed_parts]
        weights = self.output.weight[0, : sum(sizes)].split(sizes)
        split = zip(self.typed_parts, vectors.split(self.widths, dim=1), items.parts, weights, strict=True)
        first, *rest = [part.of_all_items(own, side, weight) for part, own, side, weight in split]
        return sum(rest, first) + items.bias + self.output.bias


class Gmf(Ncf):
    """Generalised matrix factorisation: a weighted product of shopper and item vectors."""

    def __init__(
        self, num_items: int, settings: NcfSettings, *, init_seed: int = 0, popularity: np.ndarray | None = None
    ) -> None:
        super().__init__(num_items, settings, {"product": ProductPart}, init_seed=init_seed, popularity=popularity)


class Mlp(Ncf):
    """A tower over shopper and item vectors."""

    def __init__(
        self, num_items: int, settings: NcfSettings, *, init_seed: int = 0, popularity: np.ndarray | None = None
    ) -> None:
        super().__init__(num_items, settings, {"tower": TowerPart}, init_seed=init_seed, popularity=popularity)


class NeuMf(Ncf):
    """GMF and MLP with tables of their own, joined by one output layer."""

    def __init__(
        self, num_items: int, settings: NcfSettings, *, init_seed: int = 0, popularity: np.ndarray | None = None
    ) -> None:
        kinds: dict[str, type[ProductPart] | type[TowerPart]] = {"product": ProductPart, "tower": TowerPart}
        super().__init__(num_items, settings, kinds, init_seed=init_seed, popularity=popularity)

    @torch.no_grad()
    def take_over(self, gmf: Gmf, mlp: Mlp, *, alpha: float = 0.5) -> None:
        """Start from trained parts: their parameters, and their output layers weighted alpha and 1 - alpha.

        The score becomes alpha times that of ``gmf`` plus 1 - alpha times that of ``mlp``; a shopper's vector is
        theirs side by side. A dot product has alpha in its item vectors.

        Raises:
            ConfigError: alpha is not within [0, 1].
        Source: He et al. 2017, section 3.4.1, equation 13.
        """
        if not 0 <= alpha <= 1:
            raise ConfigError(f"alpha = {alpha}: must lie in [0, 1]")
        self.parts["product"].load_state_dict(gmf.parts["product"].state_dict())
        self.parts["tower"].load_state_dict(mlp.parts["tower"].state_dict())
        weights = [(1 - alpha) * mlp.output.weight]
        if self.settings.is_dot_product:
            self.typed_parts[0].items.weight.mul_(alpha)
        else:
            weights.insert(0, alpha * gmf.output.weight)
        self.output.weight.copy_(torch.cat(weights, dim=1))
        self.output.bias.copy_(alpha * gmf.output.bias + (1 - alpha) * mlp.output.bias)
        self.item_bias.weight.copy_(alpha * gmf.item_bias.weight + (1 - alpha) * mlp.item_bias.weight)
