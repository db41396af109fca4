"""Autoencoders over whole baskets: a shopper's items go in, a probability of every item comes out.

A shopper has no vector of her own: her history is encoded in one go, so a new shopper needs no training. The likelihood
is the multinomial one of Liang et al. 2018 (arXiv:1802.05814): the sum over a shopper's items of the log of the softmax
over all items.

Axis names: ``num_shoppers`` rows of a batch, ``num_items``, ``size`` of a hidden layer, ``latent`` of the code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from fedrec.errors import ConfigError
from fedrec.privacy.draws import Draws
from fedrec.training.layer_rules import SparseLinear
from fedrec.training.network import Batch, Network, dense, to_tensor


class MultDae(Network):
    """Denoising autoencoder with a multinomial likelihood.

    Source: Liang et al. 2018, arXiv:1802.05814, section 2.4. The defaults are those that did best on MovieLens-1M.
    """

    has_lists = False

    def __init__(
        self,
        num_items: int,
        *,
        hidden: Sequence[int] = (),
        latent: int = 200,
        dropout: float = 0.6,
        init_seed: int = 0,
        output_bias: np.ndarray | None = None,
        has_sparse_input: bool = True,
    ) -> None:
        """Args:
        num_items: size of the item space.
        hidden: sizes of the encoder's layers between items and code; the decoder has them in reverse.
        latent: size of the code.
        dropout: share of a shopper's items that is hidden from the encoder in training; in [0, 1).
        init_seed: of the first parameters.
        output_bias: float, (num_items,); of the last layer at the start, such as log popularity; None = zeros.
        has_sparse_input: compute the first layer from the items bought alone (`SparseLinear`).
        """
        super().__init__(num_items)
        self.dropout = checked_share("dropout", dropout)
        generator = torch.Generator().manual_seed(init_seed)
        self.encoder = tower((num_items, *hidden, latent), generator, has_sparse_input=has_sparse_input)
        self.decoder = tower((latent, *reversed(hidden), num_items), generator)
        self.output_name = f"decoder.{len(hidden)}."
        self.item_bias_name = f"{self.output_name}bias"
        set_bias(self.decoder[-1], output_bias)

    def batch(self, histories: sparse.csr_matrix, draws: Draws | None, vectors: Tensor | None = None) -> Batch:
        """``rows``: what the encoder sees; ``bought``: 1 where bought."""
        return {"rows": input_rows(histories, draws, self.dropout, self), "bought": dense(histories, self)}

    def forward(self, batch: Batch) -> Tensor:
        """(num_shoppers,): minus the log-likelihood of each one's items."""
        return negative_log_likelihood(self._logits(batch["rows"]), batch["bought"])

    @torch.no_grad()
    def scores(self, histories: sparse.csr_matrix, vectors: Tensor | None = None) -> Tensor:
        """(num_shoppers, num_items): logits."""
        return self._logits(input_rows(histories, None, 0, self))

    def _logits(self, rows: Tensor) -> Tensor:
        return climb(self.decoder, torch.tanh(climb(self.encoder, rows)))


class MultVae(Network):
    """Variational autoencoder with a multinomial likelihood and a KL weight that grows up to a cap below 1.

    Source: Liang et al. 2018, arXiv:1802.05814, equations 4 and 5, and section 2.2.2 for the annealing. The defaults
        did best on MovieLens-1M's validation; the paper's, for larger sets: one hidden layer of 600 and a cap of 0.2.
    """

    has_lists = False

    def __init__(
        self,
        num_items: int,
        *,
        hidden: Sequence[int] = (),
        latent: int = 200,
        dropout: float = 0.5,
        beta: float = 0.1,
        anneal_share: float = 0.5,
        init_seed: int = 0,
        output_bias: np.ndarray | None = None,
        has_sparse_input: bool = True,
    ) -> None:
        """Args:
        num_items: size of the item space.
        hidden: sizes of the encoder's layers between items and code; the decoder has them in reverse.
        latent: size of the code.
        dropout: share of a shopper's items that is hidden from the encoder in training; in [0, 1).
        beta: cap of the KL term's weight; >= 0.
        anneal_share: share of the training over which the weight grows from 0 to the cap; in [0, 1].
        init_seed: of the first parameters.
        output_bias: float, (num_items,); of the last layer at the start, such as log popularity; None = zeros.
        has_sparse_input: compute the first layer from the items bought alone (`SparseLinear`).
        """
        super().__init__(num_items)
        if not 0 <= beta < math.inf or not 0 <= anneal_share <= 1:
            raise ConfigError(f"beta = {beta}, anneal_share = {anneal_share}: give at least 0, and from 0 to 1")
        self.dropout, self.latent = checked_share("dropout", dropout), latent
        self.beta, self.anneal_share = beta, anneal_share
        generator = torch.Generator().manual_seed(init_seed)
        self.encoder = tower((num_items, *hidden, 2 * latent), generator, has_sparse_input=has_sparse_input)
        self.decoder = tower((latent, *reversed(hidden), num_items), generator)
        self.output_name = f"decoder.{len(hidden)}."
        self.item_bias_name = f"{self.output_name}bias"
        set_bias(self.decoder[-1], output_bias)

    @property
    def kl_weight(self) -> float:
        """Weight of the KL term at the present `progress`."""
        return self.beta * (min(1.0, self.progress / self.anneal_share) if self.anneal_share else 1.0)

    def batch(self, histories: sparse.csr_matrix, draws: Draws | None, vectors: Tensor | None = None) -> Batch:
        """``rows``: what the encoder sees; ``bought``: 1 where bought; ``noise``: of the code, standard normal."""
        return {
            "rows": input_rows(histories, draws, self.dropout, self),
            "bought": dense(histories, self),
            "noise": latent_noise(histories, draws, self.latent, self),
        }

    def forward(self, batch: Batch) -> Tensor:
        """(num_shoppers,): minus the evidence lower bound, its KL term weighted."""
        return self.bound(batch)[0]

    def bound(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Each shopper's loss, (num_shoppers,), and the logits it comes from, (num_shoppers, num_items)."""
        mean, log_variance = self.encode(batch["rows"])
        logits = climb(self.decoder, mean + batch["noise"] * torch.exp(0.5 * log_variance))
        divergence = gaussian_kl(mean, log_variance) * has_items(batch["bought"])
        return negative_log_likelihood(logits, batch["bought"]) + self.kl_weight * divergence, logits

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the code, each (num_shoppers, latent)."""
        mean, log_variance = climb(self.encoder, rows).split(self.latent, dim=1)
        return mean, log_variance

    @torch.no_grad()
    def scores(self, histories: sparse.csr_matrix, vectors: Tensor | None = None) -> Tensor:
        """(num_shoppers, num_items): logits at the code's mean."""
        return climb(self.decoder, self.encode(input_rows(histories, None, 0, self))[0])


def input_rows(histories: sparse.csr_matrix, draws: Draws | None, dropout: float, network: Network) -> Tensor:
    """(num_shoppers, num_items): rows of L2 norm 1, some items of each hidden and the rest scaled up to match.

    Source: Liang et al. 2018, arXiv:1802.05814, section 3.4 (normalised, then dropout on the input).
    """
    histories = histories.sorted_indices()
    lengths = np.diff(histories.indptr)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    values = 1 / np.sqrt(lengths[rows])
    if draws is not None and dropout > 0:
        places = np.arange(len(rows)) - histories.indptr[rows]
        uniforms = draws.of("dropout").uniforms(int(lengths.max(initial=0)))
        values *= (uniforms[rows, places] >= dropout) / (1 - dropout)
    tensor = torch.zeros(histories.shape, dtype=network.floating)
    tensor[torch.from_numpy(rows), torch.from_numpy(histories.indices.astype(np.int64))] = torch.from_numpy(values).to(
        network.floating
    )
    return tensor.to(network.device)


def latent_noise(histories: sparse.csr_matrix, draws: Draws | None, latent: int, network: Network) -> Tensor:
    """(num_shoppers, latent): standard normal; zeros without draws."""
    shape = histories.shape[0], latent
    return to_tensor(np.zeros(shape, np.float32) if draws is None else draws.of("code").normals(latent), network)


def negative_log_likelihood(logits: Tensor, bought: Tensor) -> Tensor:
    """(num_shoppers,): minus the sum over each one's items of log softmax; 0 without items.

    Source: Liang et al. 2018, arXiv:1802.05814, equation 2.
    """
    return -(functional.log_softmax(logits, dim=1) * bought).sum(1)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """(num_shoppers,): KL divergence of N(mean, variance) from the standard normal."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def tower(sizes: Sequence[int], generator: torch.Generator, *, has_sparse_input: bool = False) -> nn.ModuleList:
    """Layers between sizes that follow each other."""
    return nn.ModuleList(
        linear(wide, narrow, generator, is_sparse=has_sparse_input and not place)
        for place, (wide, narrow) in enumerate(pairwise(sizes))
    )


def climb(layers: nn.ModuleList, values: Tensor) -> Tensor:
    """The layers with tanh between them."""
    for place, layer in enumerate(layers):
        values = layer(torch.tanh(values) if place else values)
    return values


def linear(wide: int, narrow: int, generator: torch.Generator, *, is_sparse: bool = False) -> nn.Linear:
    """A layer with Xavier weights and no bias yet."""
    layer = skip_init(SparseLinear if is_sparse else nn.Linear, wide, narrow)
    nn.init.xavier_normal_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    if is_sparse:
        layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    return layer


@torch.no_grad()
def set_bias(layer: nn.Module, bias: np.ndarray | None) -> None:
    """Start an output layer's bias from given values, or zeros."""
    values = layer.bias
    assert isinstance(values, Tensor)
    if bias is None:
        values.zero_()
        return
    if np.shape(bias) != tuple(values.shape) or not np.isfinite(bias).all():
        raise ConfigError(f"output_bias of shape {np.shape(bias)}: give {tuple(values.shape)} finite numbers")
    values.copy_(torch.as_tensor(np.asarray(bias, np.float32)))


def has_items(bought: Tensor) -> Tensor:
    """(num_shoppers,): 1 for those who bought something, else 0."""
    return (bought.sum(1) > 0).to(bought.dtype)


def checked_share(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ConfigError(f"{name} = {value}: give a share from 0 to below 1")
    return value
