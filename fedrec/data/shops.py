"""Who is a shop, and what one shop holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse


@dataclass(frozen=True)
class ShopData:
    """What one shop holds, in its own item space (its catalogue).

    Attributes:
        name: shop id.
        shoppers: str, (num_shoppers,); ids, sorted.
        items: str, (num_shop_items,); keys of the shop's catalogue, sorted.
        positions: int64, (num_shop_items,): place in the federation's shared item list, -1 = known here alone.
        train, validation, test, fold_in: float32 CSR, (num_shoppers, num_shop_items); 1 where the shopper had the item in
            that part of the split (explicit zeros never). ``fold_in`` is history of shoppers that must not be trained
            on (split ``strong``), else empty.
        missing_test: int64, (num_shoppers,): test rows whose item is not in the shop's catalogue.
    """

    name: str
    shoppers: np.ndarray
    items: np.ndarray
    positions: np.ndarray
    train: sparse.csr_matrix
    validation: sparse.csr_matrix
    test: sparse.csr_matrix
    fold_in: sparse.csr_matrix
    missing_test: np.ndarray

    def shared(self, histories: sparse.csr_matrix, num_shared: int) -> sparse.csr_matrix:
        """The same rows in the federation's item space, (num_shoppers, num_shared); items known here alone fall away."""
        coo = histories.tocoo()
        columns = self.positions[coo.col]
        keep = columns >= 0
        return sparse.csr_matrix(
            (coo.data[keep], (coo.row[keep], columns[keep])), shape=(histories.shape[0], num_shared)
        )
