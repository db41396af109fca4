"""RecVAE: a variational autoencoder over whole baskets whose prior remembers the last encoder."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

from fedrec.errors import ConfigError
from fedrec.privacy.draws import Draws
from fedrec.training.autoencoders import (
    checked_share,
    input_rows,
    latent_noise,
    linear,
    negative_log_likelihood,
    set_bias,
)
from fedrec.training.fit import Phase
from fedrec.training.network import Batch, Network, dense


class RecVae(Network):
    """Mult-VAE with a deeper encoder, a prior that remembers the last encoder, and a KL weight by length of history.

    Encoder and decoder train in turn, the encoder on corrupted rows, then the decoder on clean ones: some epochs each
    or, as in a federation's rounds, in every batch.

    Source: Shenbin et al. 2020, arXiv:1912.11160: encoder, composite prior (equation 6, weights 3/20, 3/4, 1/10 as in
        the authors' code), beta = gamma times the number of items (section 3.3), alternating training (section 3.4).
        The remembered encoder is the one at the end of the last turn; before, that at the start of the training. In
        turns by batch, which the paper does not have: that at the start of the epoch.
    """

    def __init__(
        self,
        num_items: int,
        *,
        hidden: int = 600,
        latent: int = 200,
        dropout: float = 0.5,
        gamma: float = 0.005,
        encoder_epochs: int = 3,
        decoder_epochs: int = 1,
        batch_encoder_rate: float = 1.0,
        init_seed: int = 0,
        output_bias: np.ndarray | None = None,
        has_sparse_input: bool = True,
    ) -> None:
        """Args:
        num_items: size of the item space.
        hidden: size of each of the encoder's five layers.
        latent: size of the code.
        dropout: share of a shopper's items that is hidden from the encoder when it is trained; in [0, 1).
        gamma: weight of the KL term for each of a shopper's items; >= 0.
        encoder_epochs: of a turn; 0 together with decoder_epochs = 0: they take turns in every batch.
        decoder_epochs: of a turn.
        batch_encoder_rate: the encoder's learning rate where they do, in the decoder's; > 0.
        init_seed: of the first parameters.
        output_bias: float, (num_items,); of the decoder at the start, such as log popularity; None = zeros.
        has_sparse_input: compute the first layer from the items bought alone (`SparseLinear`).
        """
        super().__init__(num_items)
        if not 0 <= gamma < math.inf:
            raise ConfigError(f"gamma = {gamma}: give a finite number of at least 0")
        if min(encoder_epochs, decoder_epochs) < (1 if max(encoder_epochs, decoder_epochs) else 0):
            raise ConfigError(f"a turn of {encoder_epochs} and {decoder_epochs} epochs: both >= 1, or both 0")
        self.dropout, self.latent, self.gamma = checked_share("dropout", dropout), latent, gamma
        if not 0 < batch_encoder_rate < math.inf:
            raise ConfigError(f"batch_encoder_rate = {batch_encoder_rate}: give a finite number above 0")
        self.turn, self.batch_encoder_rate = (encoder_epochs, decoder_epochs), batch_encoder_rate
        self.phase = "both"
        self.output_name, self.item_bias_name = "decoder.", "decoder.bias"
        generator = torch.Generator().manual_seed(init_seed)
        self.encoder = DenseEncoder(num_items, hidden, 2 * latent, generator, has_sparse_input=has_sparse_input)
        self.decoder = linear(latent, num_items, generator)
        set_bias(self.decoder, output_bias)
        self._old: dict[str, Tensor] = {}

    def begin_epoch(self, epoch: int) -> tuple[Phase, ...]:
        """Whose turn it is; the prior remembers the encoder when the decoder's turn begins, or with each epoch."""
        encoder_epochs, decoder_epochs = self.turn
        encoder, decoder = Phase("encoder", ("encoder.",)), Phase("decoder", ("decoder.",))
        if not encoder_epochs:
            self.remember()
            return replace(encoder, rate=self.batch_encoder_rate), decoder
        place = epoch % (encoder_epochs + decoder_epochs)
        if place == encoder_epochs or not self._old:
            self.remember()
        return (encoder if place < encoder_epochs else decoder,)

    def remember(self) -> None:
        """Make the present encoder a part of the prior."""
        self._old = {name: values.detach().clone() for name, values in self.encoder.named_parameters()}

    def batch(self, histories: sparse.csr_matrix, draws: Draws | None, vectors: Tensor | None = None) -> Batch:
        """As `MultVae`, and ``prior``: mean and log variance of the remembered encoder, side by side."""
        dropout = 0.0 if self.phase == "decoder" else self.dropout
        clean = input_rows(histories, None, 0, self)
        with torch.no_grad():
            prior = torch.func.functional_call(self.encoder, self._old, (clean,)) if self._old else self.encoder(clean)
        return {
            "rows": input_rows(histories, draws, dropout, self),
            "bought": dense(histories, self),
            "noise": latent_noise(histories, draws, self.latent, self),
            "prior": prior,
        }

    def forward(self, batch: Batch) -> Tensor:
        """(num_shoppers,): minus the evidence lower bound, one sample of the code for both of its terms."""
        mean, log_variance = self.encoder(batch["rows"]).split(self.latent, dim=1)
        code = mean + batch["noise"] * torch.exp(0.5 * log_variance)
        prior_mean, prior_log_variance = batch["prior"].split(self.latent, dim=1)
        divergence = gaussian_log_density(code, mean, log_variance) - composite_log_prior(
            code, prior_mean, prior_log_variance
        )
        weight = self.gamma * batch["bought"].sum(1)
        return negative_log_likelihood(self.decoder(code), batch["bought"]) + weight * divergence.sum(1)

    @torch.no_grad()
    def scores(self, histories: sparse.csr_matrix, vectors: Tensor | None = None) -> Tensor:
        """(num_shoppers, num_items): logits at the code's mean."""
        return self.decoder(self.encoder(input_rows(histories, None, 0, self))[:, : self.latent])


class DenseEncoder(nn.Module):
    """Five layers with swish and LayerNorm, each of which also sees the outputs of all before.

    Source: Shenbin et al. 2020, arXiv:1912.11160, figure 2, and the authors' code (LayerNorm with eps 0.1).
    """

    def __init__(
        self, num_items: int, size: int, size_out: int, generator: torch.Generator, *, has_sparse_input: bool
    ) -> None:
        super().__init__()
        self.first = linear(num_items, size, generator, is_sparse=has_sparse_input)
        self.rest = nn.ModuleList([linear(size, size, generator) for _ in range(4)])
        self.norms = nn.ModuleList([nn.LayerNorm(size, eps=0.1) for _ in range(5)])
        self.output = linear(size, size_out, generator)

    def forward(self, rows: Tensor) -> Tensor:
        """(num_shoppers, size_out)."""
        values = self.norms[0](functional.silu(self.first(rows)))
        before = values
        for layer, norm in zip(self.rest, self.norms[1:], strict=True):
            values = norm(functional.silu(layer(values) + before))
            before = before + values
        return self.output(values)


def gaussian_log_density(values: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log density of each value by itself, in the values' shape."""
    return -0.5 * (math.log(2 * math.pi) + log_variance + (values - mean).square() / log_variance.exp())


def composite_log_prior(code: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log density of each value of the code under a mixture: standard normal, remembered posterior, wide normal.

    Source: Shenbin et al. 2020, arXiv:1912.11160, equation 6; by coordinate, as in the authors' code.
    """
    zeros = torch.zeros_like(code)
    parts = ((3 / 20, zeros, zeros), (3 / 4, mean, log_variance), (1 / 10, zeros, zeros + 10))
    return torch.stack([math.log(share) + gaussian_log_density(code, *normal) for share, *normal in parts]).logsumexp(0)
