"""The parts of a model of pairs: the features of a shopper's and an item's vectors that a score is made of.

Source: He et al. 2017, arXiv:1708.05031. The first layer of the tower is split into an item part and a shopper part,
which is the same function of their concatenation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.nn.utils import skip_init

if TYPE_CHECKING:
    from fedrec.training.ncf import NcfSettings


class ProductPart(nn.Module):
    """The product of shopper and item vectors, value by value (GMF).

    Attributes:
        num_features: of those that the output layer weighs; a dot product has none.
    """

    def __init__(self, num_items: int, settings: NcfSettings, generator: torch.Generator) -> None:
        super().__init__()
        self.width = settings.factors
        self.num_features = 0 if settings.is_dot_product else self.width
        self.items = embedding(num_items, self.width)
        nn.init.normal_(self.items.weight, std=settings.init_sd, generator=generator)

    def of_items(self, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """What `forward` takes of these items, in the shape of ids, and their vectors' squared lengths; None = all."""
        items = self.items.weight if ids is None else self.items(ids)
        return items, items.square().sum(-1)

    def forward(self, vectors: Tensor, items: Tensor) -> Tensor:
        """Features, (num_shoppers, length, factors)."""
        return vectors[:, None] * items

    def of_all_items(self, vectors: Tensor, items: Tensor, output: Tensor) -> Tensor:
        """(num_shoppers, num_items): what the output's weights, (num_features,), make of the features."""
        return (vectors * output if self.num_features else vectors) @ items.T


class TowerPart(nn.Module):
    """A tower of layers over shopper and item vectors side by side (MLP)."""

    def __init__(self, num_items: int, settings: NcfSettings, generator: torch.Generator) -> None:
        super().__init__()
        sizes = [settings.tower_width << layer for layer in reversed(range(settings.layers))]
        self.width, self.num_features = sizes[0], sizes[-1]
        self.items = embedding(num_items, self.width)
        self.first_shopper = linear(self.width, sizes[0], has_bias=False)
        self.first_item = linear(self.width, sizes[0])
        rest = [linear(wide, narrow) for wide, narrow in pairwise(sizes)]
        self.rest = nn.ModuleList(rest)
        nn.init.normal_(self.items.weight, std=settings.init_sd, generator=generator)
        for layer in (self.first_shopper, self.first_item):
            fan = 2 * self.width + sizes[0]  # of the layer over both side by side
            nn.init.uniform_(layer.weight, -math.sqrt(6 / fan), math.sqrt(6 / fan), generator=generator)
        for after in rest:
            nn.init.xavier_uniform_(after.weight, generator=generator)

    def of_items(self, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """What `forward` takes of these items, in the shape of ids, and their vectors' squared lengths; None = all."""
        items = self.items.weight if ids is None else self.items(ids)
        return self.first_item(items), items.square().sum(-1)

    def forward(self, vectors: Tensor, items: Tensor) -> Tensor:
        """Features, (num_shoppers, length, num_features)."""
        features = relu(self.first_shopper(vectors)[:, None] + items)
        for layer in self.rest:
            features = relu(layer(features))
        return features

    def of_all_items(self, vectors: Tensor, items: Tensor, output: Tensor) -> Tensor:
        """(num_shoppers, num_items): what the output's weights, (num_features,), make of the features."""
        return self.forward(vectors, items) @ output


@dataclass(frozen=True)
class ItemSide:
    """What items bring to pairs, whoever the shopper: those of each shopper's pairs, or all items, once.

    Attributes:
        parts: of each part, (num_shoppers, length, width), or (num_items, width).
        bias: (num_shoppers, length), or (num_items,).
        squares: as ``bias``; squared lengths of the item vectors.
    """

    parts: tuple[Tensor, ...]
    bias: Tensor
    squares: Tensor


def linear(wide: int, narrow: int, *, has_bias: bool = True) -> nn.Linear:
    """A layer whose weight is yet to be drawn (never from the global generator), its bias 0."""
    layer = skip_init(nn.Linear, wide, narrow, bias=has_bias)
    if has_bias:
        nn.init.zeros_(layer.bias)
    return layer


def embedding(rows: int, width: int) -> nn.Embedding:
    """A table that is yet to be drawn."""
    return skip_init(nn.Embedding, rows, width)
