"""Losses of a shopper's pairs: her own items beside items she has not."""

from __future__ import annotations

from enum import Enum

from torch import Tensor
from torch.nn.functional import softplus

from fedrec.training.network import Batch

_FAR_BELOW = -1e30


class PairLoss(Enum):
    """What a shopper's own items are told from others by.

    BINARY: each item by itself, bought or not (the paper's).
    PAIRWISE: each negative against one of her items (BPR).
    SOFTMAX: each of her items against all her negatives, corrected for how they were drawn (sampled softmax).
    """

    BINARY = "binary"
    PAIRWISE = "pairwise"
    SOFTMAX = "softmax"


def _binary(scores: Tensor, batch: Batch) -> Tensor:
    """-log sigmoid(score) of hers, -log sigmoid(-score) of others."""
    return ((softplus(scores) - scores * batch["is_positive"]) * batch["is_pair"]).sum(1)


def _pairwise(scores: Tensor, batch: Batch) -> Tensor:
    """-log sigmoid(her item's score - the other's)."""
    is_negative = batch["is_pair"] - batch["is_positive"]
    return (softplus(scores - scores.gather(1, batch["partner"])) * is_negative).sum(1)


def _softmax(scores: Tensor, batch: Batch) -> Tensor:
    """-log of her item's share of exp(score) among itself and all others, as estimated from those drawn."""
    is_negative = batch["is_pair"] > batch["is_positive"]
    others = (scores + batch["stands_for"]).masked_fill(~is_negative, _FAR_BELOW).logsumexp(1, keepdim=True)
    return (softplus(others - scores) * batch["is_positive"]).sum(1)


LOSSES = {PairLoss.BINARY: _binary, PairLoss.PAIRWISE: _pairwise, PairLoss.SOFTMAX: _softmax}
"""A shopper's loss, (num_shoppers,), from the scores of her pairs, (num_shoppers, length), and the batch."""
