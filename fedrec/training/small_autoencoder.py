"""A linear autoencoder with one table of item vectors, small enough for differential privacy.

Scores of a history x with n items are (x / sqrt(n)) W W^T + b: two layers that share their weights, so half the values
that noise is added to. The loss is the multinomial log-likelihood of Liang et al. 2018, arXiv:1802.05814, equation 2,
divided by n: a shopper counts once, however much she bought. In training a share of her items is hidden from the input,
or the table would learn to repeat what it is shown.
"""

from __future__ import annotations

import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from fedrec.privacy.draws import Draws
from fedrec.training.layer_rules import TiedAutoencoder
from fedrec.training.network import Batch, Network, dense, to_tensor

_START = 0.1


class SmallAutoencoder(Network):
    """Tied weights over all items of its item space."""

    item_bias_name = "tied.bias"
    has_lists = False

    def __init__(self, num_items: int, size: int, *, dropout: float = 0.5, init_seed: int = 0) -> None:
        """Args:
        num_items: of the item space.
        size: length of an item's vector.
        dropout: share of a shopper's items that the input lacks in training, in [0, 1).
        init_seed: of the first vectors.
        """
        super().__init__(num_items)
        self.dropout = dropout
        self.tied = TiedAutoencoder(num_items, size)
        generator = torch.Generator().manual_seed(init_seed)
        with torch.no_grad():
            self.tied.weight.copy_(_START * torch.randn(num_items, size, generator=generator))

    def batch(self, histories: sparse.csr_matrix, draws: Draws | None, vectors: Tensor | None = None) -> Batch:
        """``rows``: (num_shoppers, num_items), 1 where bought; ``seen``: the same, 0 where dropout hides it."""
        rows = dense(histories, self)
        if draws is None or self.dropout == 0:
            return {"rows": rows, "seen": rows}
        is_kept = draws.uniforms(self.num_items) >= self.dropout
        return {"rows": rows, "seen": rows * to_tensor(is_kept, self)}

    def forward(self, batch: Batch) -> Tensor:
        """(num_shoppers,): minus the mean log-probability of a shopper's items; 0 for an empty history."""
        rows = batch["rows"]
        lengths = rows.sum(1).clamp(min=1)
        seen = batch["seen"]
        scores = self.tied(seen / seen.sum(1).clamp(min=1).sqrt()[:, None])
        return -(functional.log_softmax(scores, dim=1) * rows).sum(1) / lengths

    def scores(self, histories: sparse.csr_matrix, vectors: Tensor | None = None) -> Tensor:
        """(num_shoppers, num_items)."""
        rows = dense(histories, self)
        scores: Tensor = self.tied(rows / rows.sum(1, keepdim=True).clamp(min=1).sqrt())
        return scores
