"""A variational autoencoder over whole baskets, and a discriminator that tells its baskets from those bought."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedrec.errors import ConfigError
from fedrec.training.autoencoders import MultVae, climb, has_items, tower
from fedrec.training.fit import Phase
from fedrec.training.network import Batch


class VaeGan(MultVae):
    """Mult-VAE whose decoder also tries to pass its baskets off as bought to a discriminator.

    Generated baskets are real-valued and masked by what was bought: a shopper's open items are unknown, not refused.
    Both baskets are scaled so that a decoder which spreads its probability evenly over her items and nothing else is
    not told from her. The losses are logistic (the generator's non-saturating); two phases share every batch.

    Source: Larsen et al. 2016, arXiv:1512.09300 (a decoder that is also a generator), with the baskets of Chae et al.
        2018 (CFGAN) in place of learned similarity.
    """

    def __init__(
        self,
        num_items: int,
        *,
        hidden: Sequence[int] = (),
        latent: int = 200,
        dropout: float = 0.5,
        beta: float = 0.1,
        anneal_share: float = 0.5,
        adversarial: float = 0.1,
        judge_size: int = 100,
        judge_rate: float = 0.5,
        init_seed: int = 0,
        output_bias: np.ndarray | None = None,
        has_sparse_input: bool = True,
    ) -> None:
        """Args:
        num_items: size of the item space.
        hidden, latent, dropout, beta, anneal_share, init_seed, output_bias, has_sparse_input: as for `MultVae`.
        adversarial: weight of the discriminator's verdict in the generator's loss, for each of a shopper's items; >= 0.
        judge_size: of the discriminator's hidden layer.
        judge_rate: the discriminator's learning rate, in the generator's.
        """
        super().__init__(
            num_items,
            hidden=hidden,
            latent=latent,
            dropout=dropout,
            beta=beta,
            anneal_share=anneal_share,
            init_seed=init_seed,
            output_bias=output_bias,
            has_sparse_input=has_sparse_input,
        )
        if not 0 <= adversarial < math.inf:
            raise ConfigError(f"adversarial = {adversarial}: give a finite number of at least 0")
        self.adversarial, self.judge_rate, self.phase = adversarial, judge_rate, "generator"
        self.judge = tower((num_items, judge_size, 1), torch.Generator().manual_seed(init_seed + 1))

    def begin_epoch(self, epoch: int) -> tuple[Phase, ...]:
        """Every batch trains the discriminator, then the generator."""
        return Phase("discriminator", ("judge.",), self.judge_rate), Phase("generator", ("encoder.", "decoder."))

    def forward(self, batch: Batch) -> Tensor:
        """(num_shoppers,): the loss of the player whose phase it is."""
        bought = batch["bought"]
        if self.phase == "discriminator":
            with torch.no_grad():
                made = self.baskets(self.bound(batch)[1], bought)
            losses = functional.softplus(-self._verdicts(_unit(bought))) + functional.softplus(self._verdicts(made))
            return losses * has_items(bought)
        losses, logits = self.bound(batch)
        verdicts = self._verdicts(self.baskets(logits, bought))
        return losses + self.adversarial * bought.sum(1) * functional.softplus(-verdicts)

    def baskets(self, logits: Tensor, bought: Tensor) -> Tensor:
        lengths = bought.sum(1, keepdim=True)
        return functional.softmax(logits, dim=1) * bought * lengths.sqrt()

    def _verdicts(self, baskets: Tensor) -> Tensor:
        return climb(self.judge, baskets).squeeze(1)


def _unit(rows: Tensor) -> Tensor:
    """Rows of L2 norm 1; rows of zeros stay."""
    return rows / rows.square().sum(1, keepdim=True).clamp(min=1).sqrt()
