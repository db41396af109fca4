"""Matrix factorisation once its items are solved: settings, folding a shopper in, scores, packed symmetric matrices.

Source: Hu, Koren & Volinsky 2008, eq. 4; Rendle et al. 2022, arXiv:2110.14037, eq. 9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import sparse

from fedrec.errors import ConfigError
from fedrec.models.least_squares import solve_rows
from fedrec.models.popularity import add_popularity, binary_rows, take
from fedrec.models.recommender import PublicInputs


@dataclass(frozen=True)
class IalsSettings:
    """The loss and how long it is minimised.

    Attributes:
        factors: d, length of every vector; >= 1.
        alpha: an event of strength r weighs 1 + alpha r against 1 for every item not bought; > 0.
        regularisation: lambda; > 0.
        frequency_exponent: nu in [0, 1]; an item's ridge is lambda x (alpha x its shoppers + all shoppers) ** nu, a
            shopper's lambda x (alpha x her items + all items) ** nu. 0 = the same for everyone (Hu et al.).
        sweeps: number of rounds; >= 1.
        init_seed: public seed of the items' first factors.
    """

    factors: int = 32
    alpha: float = 4.0
    regularisation: float = 0.01
    frequency_exponent: float = 1.0
    sweeps: int = 10
    init_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("factors", "sweeps"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: give a whole number of at least 1")
        for name in ("alpha", "regularisation"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: give a number above 0")
        if not 0 <= self.frequency_exponent <= 1:
            raise ConfigError(f"frequency_exponent = {self.frequency_exponent}: give a number from 0 to 1")
        if not self.init_seed >= 0:
            raise ConfigError(f"init_seed = {self.init_seed}: give a whole number of at least 0")


@dataclass(frozen=True)
class IalsScorer:
    """Folds a history in and multiplies with the items' factors.

    Attributes:
        item_factors: float64, (num_items, d).
        gram: float64, (d, d): of the item space that the model was solved in.
        num_model_items: size of that item space.
        popularity: float64, (num_items,); breaks ties, and orders a cold shopper's list.
        settings: of the model.
        public: the item space.
        popularity_weight: added to a score for each unit of popularity; None = only as much as breaks ties.
    """

    item_factors: np.ndarray
    gram: np.ndarray
    num_model_items: int
    popularity: np.ndarray
    settings: IalsSettings
    public: PublicInputs
    popularity_weight: float | None = None

    @cached_property
    def _float32_factors(self) -> np.ndarray:
        return self.item_factors.T.astype(np.float32)

    def scores(self, histories: sparse.csr_matrix) -> np.ndarray:
        """float32, (num_rows, num_items)."""
        shoppers = solve_shoppers(
            binary_rows(histories), self.item_factors, self.gram, self.num_model_items, self.settings
        )
        scores = shoppers.astype(np.float32) @ self._float32_factors
        add_popularity(scores, self.popularity, self.popularity_weight)
        return scores

    def restrict(self, positions: np.ndarray, public: PublicInputs) -> IalsScorer:
        """The same factors for a shop's own items; unknown items get those of items with similar content."""
        popularity = take(self.popularity, positions)
        factors = with_content(take(self.item_factors, positions), positions >= 0, popularity, public)
        return replace(self, item_factors=factors, popularity=popularity, public=public)


def solve_shoppers(
    rows: sparse.csr_matrix, factors: np.ndarray, gram: np.ndarray, num_items: int, settings: IalsSettings
) -> np.ndarray:
    """Shoppers' factors, float64 (num_shoppers, d); zeros for empty histories."""
    counts = settings.alpha * np.diff(rows.indptr) + num_items
    ridge = settings.regularisation * np.maximum(counts, 1) ** settings.frequency_exponent
    return solve_rows(rows, factors, gram, alpha=settings.alpha, ridge=ridge)


def with_content(factors: np.ndarray, is_known: np.ndarray, popularity: np.ndarray, public: PublicInputs) -> np.ndarray:
    """Factors (num_items, d) whose unknown items take a mean of the known ones, weighted by popularity and cosine.

    One average shopper's worth of zero factors is in the mean, so that faint similarity gives small factors.
    """
    if public.content is None or is_known.all():
        return factors
    factors, content = factors.copy(), public.content.astype(np.float64)
    known, unknown = content[is_known], content[~is_known]
    weights = popularity[is_known]
    weighted = known.T @ (factors[is_known] * weights[:, None])  # (num_features, d)
    mass = unknown @ (known.T @ weights)
    factors[~is_known] = (unknown @ weighted) / (1 + mass)[:, None]
    return factors


def pack_symmetric(matrices: np.ndarray) -> np.ndarray:
    """Upper triangles (..., d (d + 1) / 2) of symmetric matrices (..., d, d), off-diagonal entries times sqrt(2)."""
    d = matrices.shape[-1]
    first, second = np.triu_indices(d)
    packed = matrices.reshape(*matrices.shape[:-2], d * d).take(first * d + second, axis=-1)
    packed *= np.where(first == second, 1.0, math.sqrt(2))
    return packed


def unpack_symmetric(packed: np.ndarray, d: int) -> np.ndarray:
    """Symmetric matrices (num_rows, d, d) from their packed triangles (num_rows, d (d + 1) / 2)."""
    first, second = np.triu_indices(d)
    cells = np.empty((d, d), np.int64)
    cells[first, second] = cells[second, first] = np.arange(len(first))
    scaled = packed * np.where(first == second, 1.0, math.sqrt(0.5))
    return scaled.take(cells.ravel(), axis=1).reshape(-1, d, d)
