"""Per-shopper gradients whose every bit is the shopper's own: what every private step computes.

A matrix product may round a row in another way when the batch has one row more, or the row another place in it. That is
a matter of last bits until a coordinator chooses shared arrays at which the last bit decides: the sign of a rounding
error says whether a unit is on (kinks), an inner step where it goes (`Network.fold_in`), a squared norm whether it is
finite, a gradient that is all rounding which way a clip norm's length points. Then the one who leaves takes others'
gradients with her, up to five times the clip norm in all.

So each shopper has a seat, by a draw of her own, in batches of one size; where histories are lists she shares them with
shoppers of about as many items; empty seats hold empty histories. Who leaves may move others of her seat to another
such batch, never to another seat, and changes no shape of a dense product, which is all that the order of its additions
depends on; a sparse first layer adds up each row by itself (`fedrec.training.layer_rules.SparseLinear`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from fedrec.privacy.draws import Draws
from fedrec.training.dp_sgd import ShopperGradients
from fedrec.training.network import Network
from fedrec.training.pairs import size_classes


class SeatedGradients:
    """What `ShopperGradients` computes, vectors folded in, seat by seat."""

    def __init__(
        self, network: Network, histories: sparse.csr_matrix, draws: Draws, *, seats: int | None = None
    ) -> None:
        """Args:
        network: float64; its ``is_seated`` is set.
        histories: CSR, (num_shoppers, num_items); entries > 0 where bought.
        draws: of these shoppers.
        seats: shoppers computed at once; bounds the memory. None = 32 where their histories are lists, else 128.
        """
        network.is_seated = True
        seats = seats or (32 if network.has_lists else 128)
        self._network, self._num_shoppers, self._seats = network, histories.shape[0], seats
        empty = sparse.csr_matrix((1, histories.shape[1]), dtype=histories.dtype)
        self._histories = sparse.vstack([histories, empty], format="csr")
        self._draws = Draws(draws.key, np.concatenate([draws.digests, np.zeros((1, 16), np.uint8)]))
        counts = np.diff(histories.indptr) if network.has_lists else np.zeros(histories.shape[0], np.int64)
        self._batches = seated(counts, draws.of("seats"), seats)

    def norms(self) -> np.ndarray:
        """float64, (num_shoppers,): as `ShopperGradients.norms`."""
        norms = np.zeros(self._num_shoppers + 1)
        for rows, part in self._parts():
            norms[rows] = part.norms()
        return norms[:-1]

    def total(self, weights: np.ndarray) -> np.ndarray:
        """float64, (num_values,): as `ShopperGradients.total`."""
        weights, total = np.append(weights, 0.0), self._zeros()
        for rows, part in self._parts():
            total += part.total(weights[rows])
        return total

    def clipped(self, bound: float) -> tuple[np.ndarray, np.ndarray]:
        """float64 (num_values,), (num_shoppers,): as `ShopperGradients.clipped`.

        Guarantee: that of `ShopperGradients.clipped` with a ``spread`` of 0, whatever the network computes and whoever
            chose its parameters, as long as torch rounds a row by its place and the tensors' shapes, not by what other
            rows hold (`tests/training/test_seats.py` tries it at parameters made to show it). What is left is the
            rounding of the sum.
        """
        norms, total = np.zeros(self._num_shoppers + 1), self._zeros()
        for rows, part in self._parts():
            of_batch, norms[rows] = part.clipped(bound)
            total += of_batch
        return total, norms[:-1]

    def _parts(self) -> Iterator[tuple[np.ndarray, ShopperGradients]]:
        for place, rows in enumerate(self._batches):
            histories, draws = self._histories[rows], self._draws.take(rows)
            vectors = self._network.fold_in(histories, draws.of("fold in"))
            part = ShopperGradients(
                self._network, histories, draws, vectors=vectors, micro_batch=self._seats, is_tried=place > 0
            )
            yield rows, part

    def _zeros(self) -> np.ndarray:
        return np.zeros(sum(values.numel() for values in self._network.parameters()))


def seated(counts: np.ndarray, draws: Draws, seats: int) -> np.ndarray:
    """int64, (num_batches, seats): which shopper sits where; ``len(counts)`` in a seat that is empty.

    Args:
        counts: int64, (num_shoppers,): items of each.
        draws: of these shoppers.
        seats: of a batch.
    Guarantee: a shopper's seat, and the class of sizes in her batch, follow from her own draws and count.
    """
    groups = size_classes(counts) * seats + draws.words(1)[:, 0].astype(np.int64) % seats  # (class, seat)
    order = np.argsort(groups, kind="stable")
    first = np.searchsorted(groups[order], groups[order])
    layers = np.arange(len(order)) - first  # how many of her class and seat stand before her
    batches, places = np.unique((groups[order] // seats) * (len(order) + 1) + layers, return_inverse=True)
    rows = np.full((len(batches), seats), len(counts), np.int64)
    rows[places, groups[order] % seats] = order
    return rows
