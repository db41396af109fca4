"""Whether a network keeps shoppers apart, found by trying: for the tests of every network trained in private."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from fedrec.errors import NoPrivateVariant
from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.training.dp_sgd import clipped_sum
from fedrec.training.network import Batch, Network
from fedrec.training.pairs import size_classes
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


def check_seats(network: Network) -> None:
    """Try what `fedrec.training.seats` takes for granted, on made-up histories from no item to all.

    Args:
        network: float64, of so many items that lists differ in length; its ``is_seated`` is set.
    Raises:
        NoPrivateVariant: it fails on some histories, the shapes of a batch follow from more than the
            `fedrec.training.pairs.size_classes` of its rows (where it has no lists: from any row), or a shopper's
            gradient changes by a bit with who else is there.
    """
    network.is_seated = True
    sizes = np.array([size for size in (0, 1, 3, 4) if size < network.num_items] + [network.num_items])
    classes = size_classes(sizes)
    for size, size_class in zip(sizes, classes, strict=True):
        others = sizes[classes == size_class] if network.has_lists else sizes
        shapes, *values = _seen_of_first(network, [size, size, size])
        for other in np.union1d(others, 0):
            found, *changed = _seen_of_first(network, [size, other, other])
            if found != shapes:
                raise NoPrivateVariant(
                    f"a batch of {size} and {other} items has other shapes than one of {size} and {size}: where the "
                    "network is_seated, pad lists by size_classes; has_lists = False is for batches of one shape"
                )
            if not all(np.array_equal(*both, equal_nan=True) for both in zip(values, changed, strict=True)):
                raise NoPrivateVariant("a shopper's gradient changes in its last bits with who else is in the batch")


def _seen_of_first(network: Network, sizes: Sequence[int]) -> tuple[dict[str, tuple[int, ...]], np.ndarray, np.ndarray]:
    """Shapes of a batch of so many items each; the first shopper's norm and gradient."""
    rows = [(np.arange(network.num_items) + place) % network.num_items < size for place, size in enumerate(sizes)]
    histories = sparse.csr_matrix(np.array(rows, np.float32))
    draws = Draws.seeded("made up", shopper_digests(range(len(sizes))))
    weights = torch.tensor([1.0, *[0.0] * (len(sizes) - 1)], dtype=torch.float64, device=network.device)
    try:
        batch = network.batch(histories, draws, network.fold_in(histories, draws.of("fold in")))
        totals, norms = clipped_sum(network, batch, partial(_always, weights))
    except NoPrivateVariant:
        raise
    except Exception as error:
        raise NoPrivateVariant(f"fails on shoppers with {sizes} of {network.num_items} items: {error}") from error
    shapes = {name: tuple(values.shape) for name, values in batch.items()}
    flat = torch.cat([total.flatten() for total in totals.values()])
    return shapes, norms[:1].cpu().numpy(), flat.cpu().numpy()


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
