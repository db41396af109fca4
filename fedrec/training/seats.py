"""Per-shopper gradients whose every bit is the shopper's own: for networks that would blow up the last one.

A matrix product may round a row in another way when the batch has one row more, or the row another place in it. Most
networks leave that in the last bits (`fedrec.training.dp_sgd.rounding_slack`). One with kinks, or with inner steps
(`Network.fold_in`), need not: a coordinator can choose shared arrays at which the sign of a rounding error decides
whether a unit is on, for all shoppers at once, and the one who leaves takes many gradients with her.

So each shopper has a seat, by a draw of her own, in batches of one size; she shares them with shoppers of about as many
items, and empty seats hold empty histories. Who leaves may move others of her seat to another such batch, never to
another seat, and changes no tensor's shape, which is all that the order of a product's additions depends on.
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

    def __init__(self, network: Network, histories: sparse.csr_matrix, draws: Draws, *, seats: int = 32) -> None:
        """Args:
        network: float64; its ``is_seated`` is set.
        histories: CSR, (num_shoppers, num_items); entries > 0 where bought.
        draws: of these shoppers.
        seats: shoppers computed at once; bounds the memory.
        """
        network.is_seated = True
        self._network, self._num_shoppers, self._seats = network, histories.shape[0], seats
        empty = sparse.csr_matrix((1, histories.shape[1]), dtype=histories.dtype)
        self._histories = sparse.vstack([histories, empty], format="csr")
        self._draws = Draws(draws.key, np.concatenate([draws.digests, np.zeros((1, 16), np.uint8)]))
        self._batches = seated(np.diff(histories.indptr), draws.of("seats"), seats)

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
        for rows in self._batches:
            histories, draws = self._histories[rows], self._draws.take(rows)
            vectors = self._network.fold_in(histories, draws.of("fold in"))
            yield rows, ShopperGradients(self._network, histories, draws, vectors=vectors, micro_batch=self._seats)

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
