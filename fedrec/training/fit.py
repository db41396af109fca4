"""Training a network on one table of histories in one place: a plain loop that repeats itself bit for bit.

Which shoppers share a batch, dropout, latent noise and negatives all come from the shoppers' own draws, so the same
draws give the same parameters, in whatever order the shoppers stand in the table.

**Guarantee:** none: the parameters that come out are raw. Under an epsilon see `fedrec.training.dp_sgd`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from fedrec.errors import BadMessage, ConfigError, NotFinite
from fedrec.privacy.draws import Draws
from fedrec.training.network import Network, named, threads_for
from fedrec.training.recording import check_losses


class Optimiser(StrEnum):
    """How gradients move parameters."""

    ADAM = "adam"
    SGD = "sgd"


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a network is trained.

    Attributes:
        batch_shoppers: shoppers in one optimiser step; >= 1.
        learning_rate: of the optimiser; > 0.
        optimiser: adam or sgd.
        weight_decay: share of each matrix that a step of learning rate 1 takes away; >= 0. Biases don't decay.
        proximal: mu of FedProx, the pull towards where training started (or towards ``anchor``); >= 0.
        max_gradient_norm: L2 norm above which a step's whole gradient is scaled down; > 0.
        vector_learning_rate: of shoppers' private vectors, where a network has such; each takes one step an epoch; > 0.
        moved: what the names of the parameters that training moves start with; "" = all. Phases move no others.
    """

    batch_shoppers: int = 128
    learning_rate: float = 1e-3
    optimiser: Optimiser = Optimiser.ADAM
    weight_decay: float = 0.0
    proximal: float = 0.0
    max_gradient_norm: float = math.inf
    vector_learning_rate: float = 0.05
    moved: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        if not self.batch_shoppers >= 1:
            raise ConfigError(f"batch_shoppers = {self.batch_shoppers}: give a whole number of at least 1")
        for name in ("learning_rate", "vector_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: give a finite number above 0")
        for name in ("weight_decay", "proximal"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: give a finite number of at least 0")
        if not self.max_gradient_norm > 0:
            raise ConfigError(f"max_gradient_norm = {self.max_gradient_norm}: give a number above 0; infinity = no cap")
        if not isinstance(self.optimiser, Optimiser):
            raise ConfigError(f"optimiser = {self.optimiser!r}: give one of {', '.join(Optimiser)}")


@dataclass(frozen=True)
class Phase:
    """One way to use a batch.

    Attributes:
        name: what `Phased.phase` is while the batch is made and its losses are computed.
        moved: what the names of the parameters that this phase moves start with; "" = all.
        rate: its learning rate, in those of the settings.
    """

    name: str
    moved: tuple[str, ...] = ("",)
    rate: float = 1.0


@runtime_checkable
class Phased(Protocol):
    """A network whose losses alternate: a game of two players, or encoder and decoder in turn.

    Attributes:
        phase: name of the phase at hand.
    """

    phase: str

    def begin_epoch(self, epoch: int) -> tuple[Phase, ...]:
        """What each batch of this epoch is used for, in this order; may take note of the parameters as they are."""
        ...


@dataclass(frozen=True)
class FitOutcome:
    """What is known after training; the parameters are in the network.

    Attributes:
        losses: of each epoch, the mean over the shoppers who have items, at the time they were seen; of networks with
            several phases that of the last.
        vectors: (num_shoppers, num_shopper_values): shoppers' private vectors; None where the network has none.
    """

    losses: tuple[float, ...] = field(repr=False)
    vectors: Tensor | None = field(repr=False)


_ALL_AT_ONCE = (Phase("all"),)


def fit(
    network: Network,
    histories: sparse.csr_matrix,
    draws: Draws,
    settings: FitSettings,
    *,
    epochs: int,
    start_epoch: int = 0,
    total_epochs: int | None = None,
    vectors: Tensor | None = None,
    anchor: Mapping[str, np.ndarray] | None = None,
    on_epoch: Callable[[int, float], bool | None] | None = None,
) -> FitOutcome:
    """Train the network's parameters, in place, on shoppers who have items; others are left alone.

    Args:
        network: with its parameters where training starts.
        histories: CSR, (num_shoppers, num_items); entries > 0 where bought.
        draws: of these shoppers.
        settings: how to train.
        epochs: passes over the shoppers now; >= 0.
        start_epoch: epochs that were done before this call, of ``total_epochs``; >= 0.
        total_epochs: epochs of the whole training, which `Network.progress` is measured in; None = as many as will be
            done after this call.
        vectors: (num_shoppers, num_shopper_values); where private vectors start; None = folded in.
        anchor: parameters by name that ``settings.proximal`` pulls to; None = those at the start of this call.
        on_epoch: called after each epoch with its number and mean loss; True stops training.
    Raises:
        NotFinite: a loss or a parameter became NaN or infinite; the network is as after the last epoch without.
        BadMessage: names or shapes of the anchor are not the network's.
        NoPrivateVariant: the network's losses are not one a shopper.
        ConfigError: lengths disagree, epochs are below 0, or ``settings.moved`` names no parameter.
    Source: proximal term: Li et al. 2020, arXiv:1812.06127, equation 2; Adam with decoupled weight decay: Loshchilov &
        Hutter 2019, arXiv:1711.05101.
    """
    total_epochs = start_epoch + epochs if total_epochs is None else total_epochs
    _check(network, histories, draws, vectors, (epochs, start_epoch))
    if not any(name.startswith(settings.moved) for name, _ in named(network)):
        raise ConfigError(f"moved = {settings.moved}: the network has no such parameters")
    rows = np.flatnonzero(np.diff(histories.indptr))
    steppers = _Steppers(network, settings, _pull(network, anchor) if settings.proximal else {})
    own = _OwnVectors.start(network, histories, draws, vectors, settings)
    training = _Training(network, histories, draws, rows, settings, steppers, own, max(total_epochs, 1))
    losses: list[float] = []
    for epoch in range(start_epoch, start_epoch + epochs if len(rows) else start_epoch):
        before = training.snapshot()
        with threads_for(network, settings.batch_shoppers):
            loss = training.epoch(epoch)
        if not training.is_finite(loss):
            training.restore(before)
            raise NotFinite(
                f"training left the finite numbers in epoch {epoch + 1}: give a learning rate below "
                f"{settings.learning_rate:g}"
            )
        losses.append(loss)
        if on_epoch is not None and on_epoch(epoch, loss) is True:
            break
    return FitOutcome(tuple(losses), None if own is None else own.values)


@dataclass(frozen=True, repr=False)
class _Training:
    """One call of `fit`; ``rows`` are those with items."""

    network: Network
    histories: sparse.csr_matrix
    draws: Draws
    rows: np.ndarray
    settings: FitSettings
    steppers: _Steppers
    own: _OwnVectors | None
    total_epochs: int

    def epoch(self, epoch: int) -> float:
        """One pass over the shoppers; their mean loss."""
        network, size = self.network, self.settings.batch_shoppers
        phases = network.begin_epoch(epoch) if isinstance(network, Phased) else _ALL_AT_ONCE
        order = self.rows[self.draws.take(self.rows).of(f"order, epoch {epoch}").order()]
        draws = self.draws.of(f"epoch {epoch}")
        total = torch.zeros((), dtype=torch.float64, device=network.device)
        for start in range(0, len(order), size):
            network.progress = min(1.0, (epoch + start / len(order)) / self.total_epochs)
            for phase in phases:
                losses = self._step(order[start : start + size], phase, draws.of(phase.name))
            total += losses.double().sum()
        network.progress = min(1.0, (epoch + 1) / self.total_epochs)
        return float(total) / len(order)

    def _step(self, rows: np.ndarray, phase: Phase, draws: Draws) -> Tensor:
        """Move what the phase moves by some shoppers' losses; the losses before."""
        network, own, stepper = self.network, self.own, self.steppers.of(phase)
        if isinstance(network, Phased):
            network.phase = phase.name
        vectors = None if own is None else own.values[rows].requires_grad_()
        losses = network(network.batch(self.histories[rows], draws.take(rows), vectors))
        check_losses(losses, len(rows))
        sources = [*stepper.parameters, *([] if vectors is None else [vectors])]
        if not sources:
            return losses.detach()
        gradients = torch.autograd.grad(losses.mean(), sources, allow_unused=True)
        if own is not None and gradients[-1] is not None:
            own.step(rows, gradients[-1] * len(rows))
        stepper.step(gradients[: len(stepper.parameters)])
        return losses.detach()

    def snapshot(self) -> list[Tensor]:
        """Copies of all that an epoch moves."""
        return [values.detach().clone() for values in self._moving()]

    @torch.no_grad()
    def restore(self, before: list[Tensor]) -> None:
        """Set it back."""
        for values, old in zip(self._moving(), before, strict=True):
            values.copy_(old)

    def is_finite(self, loss: float) -> bool:
        """Neither the loss nor anything that moved is NaN or infinite."""
        return math.isfinite(loss) and all(bool(values.isfinite().all()) for values in self._moving())

    def _moving(self) -> list[Tensor]:
        return [*self.network.parameters(), *([] if self.own is None else [self.own.values])]


class _Stepper:
    """The optimiser of one phase's parameters."""

    def __init__(self, network: Network, phase: Phase, settings: FitSettings, pull: Mapping[str, Tensor]) -> None:
        moved = {
            name: values
            for name, values in named(network)
            if name.startswith(phase.moved) and name.startswith(settings.moved)
        }
        self.parameters: list[nn.Parameter] = list(moved.values())
        self._anchors = [pull[name] for name in moved] if pull else []
        self._proximal, self._max_norm = settings.proximal, settings.max_gradient_norm
        rate = phase.rate * settings.learning_rate
        groups = [
            {"params": [one for one in self.parameters if one.dim() > 1], "weight_decay": settings.weight_decay},
            {"params": [one for one in self.parameters if one.dim() <= 1], "weight_decay": 0.0},
        ]
        kind = torch.optim.AdamW if settings.optimiser is Optimiser.ADAM else torch.optim.SGD
        groups = [one for one in groups if one["params"]]
        self._optimiser = kind(groups, lr=rate, fused=True) if groups else None

    def step(self, gradients: tuple[Tensor | None, ...]) -> None:
        """Move the parameters; gradients are of the shoppers' mean loss."""
        for values, gradient in zip(self.parameters, gradients, strict=True):
            values.grad = torch.zeros_like(values) if gradient is None else _laid_out_as(values, gradient)
        for values, anchor in zip(self.parameters if self._anchors else [], self._anchors, strict=True):
            assert values.grad is not None
            values.grad.add_(values.detach() - anchor, alpha=self._proximal)
        if self._max_norm < math.inf:
            nn.utils.clip_grad_norm_(self.parameters, self._max_norm)
        if self._optimiser is not None:
            self._optimiser.step()
            self._optimiser.zero_grad()


def _laid_out_as(values: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in its parameter's memory order, which is how the fused optimisers read it, whatever its strides."""
    return gradient if gradient.stride() == values.stride() else torch.empty_like(values).copy_(gradient)


class _Steppers:
    """Steppers by phase, each kept for a whole call."""

    def __init__(self, network: Network, settings: FitSettings, pull: Mapping[str, Tensor]) -> None:
        self._make = lambda phase: _Stepper(network, phase, settings, pull)
        self._made: dict[str, _Stepper] = {}

    def of(self, phase: Phase) -> _Stepper:
        """The phase's stepper."""
        if phase.name not in self._made:
            self._made[phase.name] = self._make(phase)
        return self._made[phase.name]


@dataclass
class _OwnVectors:
    """Shoppers' private vectors under Adam, each row with a memory and a step count of its own."""

    values: Tensor
    first: Tensor
    second: Tensor
    counts: Tensor
    rate: float

    @classmethod
    def start(
        cls,
        network: Network,
        histories: sparse.csr_matrix,
        draws: Draws,
        vectors: Tensor | None,
        settings: FitSettings,
    ) -> _OwnVectors | None:
        """None for a network without private vectors."""
        if not network.num_shopper_values:
            return None
        if vectors is None:
            vectors = network.fold_in(histories, draws.of("fold-in"))
        assert vectors is not None
        values = vectors.detach().to(network.device, network.floating, copy=True)
        counts = torch.zeros(len(values), 1, dtype=values.dtype, device=values.device)
        memories = torch.zeros_like(values), torch.zeros_like(values)
        return cls(values, *memories, counts, settings.vector_learning_rate)

    @torch.no_grad()
    def step(self, rows: np.ndarray, gradients: Tensor) -> None:
        """One step of some rows, by the gradient of each one's own loss."""
        places = torch.from_numpy(rows).to(self.values.device)
        self.counts[places] += 1
        counts = self.counts[places]
        first = self.first[places].lerp(gradients, 0.1)
        second = self.second[places].lerp(gradients.square(), 0.001)
        self.first[places], self.second[places] = first, second
        fair = first / (1 - 0.9**counts), second / (1 - 0.999**counts)
        self.values[places] -= self.rate * fair[0] / (fair[1].sqrt() + 1e-8)


def _pull(network: Network, anchor: Mapping[str, np.ndarray] | None) -> dict[str, Tensor]:
    """Where the proximal term pulls to, by parameter."""
    if anchor is None:
        return {name: values.detach().clone() for name, values in named(network)}
    expected = {name: tuple(values.shape) for name, values in named(network)}
    if {name: tuple(np.shape(values)) for name, values in anchor.items()} != expected:
        raise BadMessage(
            "the anchor's arrays are of another network: give the shared arrays that training started from"
        )
    return {
        name: torch.as_tensor(values, dtype=network.floating, device=network.device) for name, values in anchor.items()
    }


def _check(
    network: Network,
    histories: sparse.csr_matrix,
    draws: Draws,
    vectors: Tensor | None,
    epochs: tuple[int, int],
) -> None:
    """Refuse what does not belong together."""
    num_shoppers, num_items = histories.shape
    if num_items != network.num_items:
        raise ConfigError(f"histories over {num_items} items for a network over {network.num_items}")
    if len(draws) != num_shoppers:
        raise ConfigError(f"draws of {len(draws)} shoppers for {num_shoppers} histories")
    if vectors is not None and vectors.shape != (num_shoppers, network.num_shopper_values):
        raise ConfigError(f"vectors of shape {tuple(vectors.shape)}: give {(num_shoppers, network.num_shopper_values)}")
    if not min(epochs) >= 0:
        raise ConfigError(f"epochs, start_epoch = {epochs}: give whole numbers of at least 0")
