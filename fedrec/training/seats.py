"""Per-shopper gradients whose every bit is the shopper's own: what every private step computes.

A matrix product may round a row in another way when the batch has one row more, or the row another place in it. That is
a matter of last bits until a coordinator chooses shared arrays at which the last bit decides: the sign of a rounding
error says whether a unit is on (kinks), an inner step where it goes (`Network.fold_in`), a squared norm whether it is
finite, a gradient that is all rounding which way a clip norm's length points. Then the one who leaves takes others'
gradients with her, up to five times the clip norm in all.

So each shopper has a seat, by a draw of her own, in batches of one size; where histories are lists, of a size that
follows from about how many items she has, beside shoppers who have about as many; empty seats hold empty histories and
count for nothing. Who leaves may move others of her seat to another such batch, never to another seat, and changes no
shape of a dense product, which is all that the order of its additions depends on; a sparse first layer adds up each row
by itself (`fedrec.training.layer_rules.SparseLinear`). `fedrec.training.network_check.check_seats` tries a network.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from fedrec.privacy.draws import Draws
from fedrec.training.dp_sgd import ClosedForm, Totals, check_bound, clip_weights, zero_totals
from fedrec.training.layer_rules import OuterProducts
from fedrec.training.network import Batch, Network, threads_for
from fedrec.training.pairs import size_classes
from fedrec.training.recording import Layer

_ITEMS_AT_ONCE = 512  # of a batch of lists: with fewer seats more of them are taken, with more a batch is cheaper a row
_MOST_WAITING = 256  # shoppers, before their outer products are added


class SeatedGradients:
    """What `ShopperGradients` computes, vectors folded in, seat by seat."""

    def __init__(
        self, network: Network, histories: sparse.csr_matrix, draws: Draws, *, seats: int | None = None
    ) -> None:
        """Args:
        network: float64; its ``is_seated`` is set.
        histories: CSR, (num_shoppers, num_items); entries > 0 where bought.
        draws: of these shoppers.
        seats: shoppers computed at once; bounds the memory. None = as many as `seated` says where their histories are
            lists, else 64.
        """
        network.is_seated = True
        self._network, self._num_shoppers = network, histories.shape[0]
        empty = sparse.csr_matrix((1, histories.shape[1]), dtype=histories.dtype)
        self._histories = sparse.vstack([histories, empty], format="csr")
        self._draws = Draws(draws.key, np.concatenate([draws.digests, np.zeros((1, 16), np.uint8)]))
        counts = np.diff(histories.indptr) if network.has_lists else np.zeros(histories.shape[0], np.int64)
        self._batches = seated(counts, draws.of("seats"), seats or (None if network.has_lists else 64))

    def norms(self) -> np.ndarray:
        """float64, (num_shoppers,): as `ShopperGradients.norms`."""
        norms = np.zeros(self._num_shoppers + 1)
        for rows, part in self._parts():
            norms[rows] = part.norms.cpu().numpy()
        return norms[:-1]

    def total(self, weights: np.ndarray) -> np.ndarray:
        """float64, (num_values,): as `ShopperGradients.total`."""
        weights, total = np.append(weights, 0.0), _Sum(self._network)
        for rows, part in self._parts():
            total.add(part, torch.from_numpy(weights[rows]).to(part.norms.device))
        return total.values()

    def clipped(self, bound: float) -> tuple[np.ndarray, np.ndarray]:
        """float64 (num_values,), (num_shoppers,): as `ShopperGradients.clipped`.

        Guarantee: that of `ShopperGradients.clipped` with a ``spread`` of 0, whatever the network computes and whoever
            chose its parameters, as long as torch rounds a row by its place and the tensors' shapes, not by what other
            rows hold (`tests/training/test_seats.py` tries it at parameters made to show it; the one exception found is
            the derivative of torch.prod, which no network here has: a zero anywhere changes how it is computed). An
            empty seat counts for nothing, whatever the network makes of it. What is left is the rounding of the sum.
        """
        check_bound(bound)
        norms, total = np.zeros(self._num_shoppers + 1), _Sum(self._network)
        for rows, part in self._parts():
            is_taken = torch.from_numpy(rows < self._num_shoppers).to(part.norms.device)
            total.add(part, torch.where(is_taken, clip_weights(part.norms, bound), 0))
            norms[rows] = part.norms.cpu().numpy()
        return total.values(), norms[:-1]

    def _parts(self) -> Iterator[tuple[np.ndarray, ClosedForm]]:
        network = self._network
        for place, rows in enumerate(self._batches):
            histories, draws = self._histories[rows], self._draws.take(rows)
            batch = network.batch(histories, draws, network.fold_in(histories, draws.of("fold in")))
            with threads_for(network, len(rows)):
                if not place:
                    longest = int(np.diff(histories.indptr).argmax())
                    ClosedForm(network, _only(batch, longest))  # refuses what one row gives away
                part = ClosedForm(network, batch)
                yield rows, part


class _Sum:
    """A weighted sum of gradients over batches.

    Outer products wait for those of other batches: a pass over the total of a wide layer costs as much as hundreds.
    """

    def __init__(self, network: Network) -> None:
        self._flat, self._totals = zero_totals(network)
        self._waiting: dict[str, tuple[Layer, OuterProducts, list[tuple[Tensor, Tensor]]]] = {}
        self._num_waiting = 0

    def add(self, part: ClosedForm, weights: Tensor) -> None:
        """Add weight times gradient of each shopper of a batch."""
        for layer, gradients in part.parts:
            if isinstance(gradients, OuterProducts):
                *_, waiting = self._waiting.setdefault(layer.name, (layer, gradients, []))
                waiting.append(gradients.weighted(weights))
            else:
                gradients.add(weights, self._of(layer))
        self._num_waiting += int(torch.count_nonzero(weights))
        if self._num_waiting >= _MOST_WAITING:
            self._add_waiting()

    def values(self) -> np.ndarray:
        """float64, (num_values,): the sum."""
        self._add_waiting()
        return self._flat.cpu().numpy()

    def _add_waiting(self) -> None:
        for layer, gradients, waiting in self._waiting.values():
            weighted, inputs = zip(*waiting, strict=True)
            gradients.add_weighted(torch.cat(weighted), torch.cat(inputs), self._of(layer))
        self._waiting, self._num_waiting = {}, 0

    def _of(self, layer: Layer) -> Totals:
        return {local: self._totals[layer.full_name(local)] for local in layer.own}


def _only(batch: Batch, row: int) -> Batch:
    return {name: values[row : row + 1] for name, values in batch.items()}


def seated(counts: np.ndarray, draws: Draws, seats: int | None = None) -> list[np.ndarray]:
    """Which shopper sits where: a batch each, int64 (num_seats,); ``len(counts)`` in a seat that is empty.

    Args:
        counts: int64, (num_shoppers,): items of each.
        draws: of these shoppers.
        seats: of a batch; None = from 16 to 128, fewer where the class has more items.
    Guarantee: a shopper's seat, and the class of sizes and number of seats of her batch, follow from her own draws and
        count.
    """
    classes, words = size_classes(counts), draws.words(1)[:, 0].astype(np.int64)
    batches: list[np.ndarray] = []
    for size_class in np.unique(classes):
        members = np.flatnonzero(classes == size_class)
        num_seats = seats or max(16, min(128, _ITEMS_AT_ONCE >> max(int(size_class) - 1, 0)))
        places = words[members] % num_seats
        order = np.argsort(places, kind="stable")
        members, places = members[order], places[order]
        layers = np.arange(len(members)) - np.searchsorted(places, places)  # how many sit there before her
        rows = np.full((layers.max() + 1, num_seats), len(counts), np.int64)
        rows[layers, places] = members
        batches.extend(rows)
    return batches
