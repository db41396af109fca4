"""What a neural recommender is made of: a torch module whose loss is a sum over shoppers.

One sample is one shopper with all her items. Everything random about her is drawn when her batch is made, from
`fedrec.privacy.draws.Draws`, so that the loss is a plain function of parameters and batch, and what she contributes
depends on the shared parameters, her own history and her own draws alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from fedrec.errors import BadMessage, ConfigError
from fedrec.privacy.draws import Draws

Batch = dict[str, Tensor]
"""What a network computes the losses of some shoppers from: tensors whose first axis is the shopper."""


class Network(nn.Module):
    """The shared parameters of a neural recommender over one item space.

    Its modules' parameters are all *shared* (they travel); what is private to a shopper is ``shopper values``: a vector
    for each shopper that the batch carries, none for models that encode a history in one go.

    A network never mixes shoppers: no BatchNorm, no softmax over a batch. Row i of every output depends on row i of the
    batch alone (`fedrec.training.dp_sgd` checks its layers).

    Attributes:
        num_items: size of the item space.
        num_shopper_values: length of a shopper's private vector; 0 = none.
        output_name: what the names of the output layer's parameters start with; "" = all, where layers share theirs.
        item_bias_name: of the parameter that adds to an item's score whoever asks, see `start_at`; "" = none.
        is_seated: shapes of batches must follow from the rows' `fedrec.training.pairs.size_classes` alone; set by
            `fedrec.training.seats`.
        has_lists: a batch's tensors are as long as its rows' histories; False: of one size whatever is in them.
        progress: share of training that is done, in [0, 1], for schedules such as KL annealing; set by the trainer.
    """

    num_shopper_values: int = 0
    output_name: str = ""
    item_bias_name: str = ""
    is_seated: bool = False
    has_lists: bool = True

    def __init__(self, num_items: int) -> None:
        super().__init__()
        self.num_items = num_items
        self.progress = 1.0

    def batch(self, histories: sparse.csr_matrix, draws: Draws | None, vectors: Tensor | None = None) -> Batch:
        """Tensors of some shoppers, on the parameters' device and in their floating type.

        Args:
            histories: CSR, (num_shoppers, num_items); entries > 0 where bought.
            draws: of these shoppers; None = nothing random (no dropout, latent means; no negatives needed).
            vectors: (num_shoppers, num_shopper_values); the shoppers' private vectors where the network has such.
        """
        raise NotImplementedError

    def forward(self, batch: Batch) -> Tensor:
        """(num_shoppers,): each shopper's loss, which no other shopper moves; 0 for an empty history."""
        raise NotImplementedError

    def scores(self, histories: sparse.csr_matrix, vectors: Tensor | None = None) -> Tensor:
        """(num_shoppers, num_items): higher is better; nothing random. Finite for an empty history."""
        raise NotImplementedError

    def fold_in(self, histories: sparse.csr_matrix, draws: Draws | None = None) -> Tensor | None:
        """(num_shoppers, num_shopper_values): private vectors from the shared parameters and each one's history.

        None for networks without private vectors.
        """
        return None

    @torch.no_grad()
    def start_at(self, popularity: np.ndarray) -> None:
        """Start the items' biases where all shoppers together put them: at the logarithm of popularity beside its mean.

        Args:
            popularity: float, (num_items,), > 0; in any unit.
        """
        if self.item_bias_name:
            bias = self.get_parameter(self.item_bias_name)
            mean = popularity.sum() / max(len(popularity), 1)
            bias.copy_(torch.from_numpy(np.log(popularity / mean)).view_as(bias))

    @property
    def floating(self) -> torch.dtype:
        """Floating type of the parameters."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device


def dense(histories: sparse.csr_matrix, network: Network) -> Tensor:
    """(num_rows, num_items): 1 where bought, as the network takes it."""
    rows = torch.zeros(histories.shape, dtype=network.floating)
    coo = histories.tocoo()
    rows[torch.from_numpy(coo.row.astype(np.int64)), torch.from_numpy(coo.col.astype(np.int64))] = 1
    return rows.to(network.device)


def to_tensor(values: np.ndarray, network: Network) -> Tensor:
    """Floating values in the network's type, on its device."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(network.device, network.floating)


def get_arrays(network: Network) -> dict[str, np.ndarray]:
    """The parameters by name, float32, in the module's order."""
    return {name: values.detach().cpu().to(torch.float32).numpy().copy() for name, values in named(network)}


def set_arrays(network: Network, arrays: dict[str, np.ndarray]) -> None:
    """Copy arrays into the parameters.

    Raises:
        BadMessage: names or shapes are not the network's.
    """
    expected = {name: tuple(values.shape) for name, values in named(network)}
    found = {name: tuple(values.shape) for name, values in arrays.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise BadMessage(
            f"arrays of another network: {wrong[0]} is {found.get(wrong[0])}, {expected.get(wrong[0])} expected"
        )
    with torch.no_grad():
        for name, values in named(network):
            values.copy_(torch.tensor(arrays[name]))  # a copy: what a message brought is read-only


def named(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by name, in the order in which a flat vector holds them."""
    return iter(network.named_parameters())


_WORTH_A_THREAD = 2e8
"""Multiply-adds below which a second thread costs more than it gives, most of all on a busy machine."""


@contextmanager
def threads_for(network: nn.Module, num_shoppers: int) -> Iterator[None]:
    """One thread where a batch of so many shoppers is little work; as many as torch has where it is much."""
    work = num_shoppers * sum(values.numel() for values in network.parameters())
    before = torch.get_num_threads()
    torch.set_num_threads(before if work > _WORTH_A_THREAD else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pick_device(wanted: str) -> torch.device:
    """``auto`` = a GPU where there is one.

    Raises:
        ConfigError: there is no such device.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device).cpu()  # values of "meta" cannot be read
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ConfigError(
            f"device = {wanted!r}: this machine has no such device for torch; give auto, cpu, or cuda with a GPU"
        ) from error
    return device
