"""Whether a network keeps shoppers apart, found by trying: for the tests of every network trained in private."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fedrec.errors import NoPrivateVariant
from fedrec.training.dp_sgd import clipped_sum
from fedrec.training.network import Batch, Network
from fedrec.training.recording import check_losses, layers_of


def check_network(network: Network, batch: Batch, *, engine: str = "closed-form", tolerance: float = 1e-8) -> None:
    """Try what `fedrec.training.dp_sgd` takes for granted.

    Args:
        network: float64.
        batch: of at least three shoppers with different histories.
        engine: of `fedrec.training.dp_sgd.ENGINES`.
        tolerance: of comparisons, relative to the largest value.
    Raises:
        NoPrivateVariant: a layer that cannot be used; losses of another shape, that are not finite, drawn anew at every
            call or move when another shopper is replaced or left out; per-shopper gradients that are not autograd's.
    """
    layers_of(network)
    num_shoppers = len(next(iter(batch.values())))
    if num_shoppers < 3 or network.floating != torch.float64:
        raise ValueError("check_network needs at least 3 shoppers and a float64 network")
    _check_losses(network, batch, num_shoppers, tolerance)
    _check_gradients(network, batch, num_shoppers, engine, tolerance)


def _check_losses(network: Network, batch: Batch, num_shoppers: int, tolerance: float) -> None:
    with torch.no_grad():
        state = torch.get_rng_state()
        losses = network(batch)
        check_losses(losses, num_shoppers)
        if not losses.isfinite().all():
            raise NoPrivateVariant("losses that are not finite at the network's first parameters")
        if not torch.equal(state, torch.get_rng_state()) or not torch.equal(losses, network(batch)):
            raise NoPrivateVariant(
                "the loss draws random numbers: draw them in Network.batch, from the shopper's draws"
            )
        for other in range(num_shoppers):
            left = [row for row in range(num_shoppers) if row != other]
            replaced = torch.tensor([left[0] if row == other else row for row in range(num_shoppers)])
            for rows in (torch.tensor(left), replaced):
                changed = network({name: values[rows.to(values.device)] for name, values in batch.items()})
                if not _are_close(changed, losses[rows.to(losses.device)], tolerance):
                    raise NoPrivateVariant("a shopper's loss moves when another one is left out or replaced")


def _check_gradients(network: Network, batch: Batch, num_shoppers: int, engine: str, tolerance: float) -> None:
    parameters = tuple(network.parameters())
    losses = network(batch)
    for rows in [[row] for row in range(num_shoppers)] + [list(range(num_shoppers))]:
        weights = torch.zeros(num_shoppers, dtype=torch.float64, device=losses.device)
        weights[rows] = 1
        totals, norms = clipped_sum(network, batch, partial(_always, weights), engine=engine)
        found = torch.cat([total.flatten() for total in totals.values()])
        gradients = torch.autograd.grad(
            losses[rows].sum(), parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        expected = torch.cat([gradient.flatten() for gradient in gradients])
        if not _are_close(found, expected, tolerance):
            name = _name_at(network, int((found - expected).abs().argmax()))
            raise NoPrivateVariant(f"gradients of {name} are not autograd's: is the first axis always the shopper?")
        if len(rows) == 1 and not _are_close(norms[rows[0]], expected.norm(), tolerance):
            raise NoPrivateVariant("norms of gradients are not autograd's")


def _name_at(network: Network, place: int) -> str:
    """The parameter that holds a place of the flat vector."""
    for name, values in network.named_parameters():
        if place < values.numel():
            return name
        place -= values.numel()
    raise IndexError(place)


def _always(weights: Tensor, norms: Tensor) -> Tensor:
    return weights


def _are_close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    scale = max(float(expected.abs().max()), 1e-9)
    return bool((found - expected).abs().le(tolerance * scale).all())
