"""A model whose shoppers contribute what an auditor wrote down: rows of any length, summed as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
from scipy import sparse

from fedrec.models.recommender import Contributions, Layout, PublicInputs, Recommender, RoundKind, RoundSpec, State
from fedrec.privacy.mechanisms import ReleaseRequest


@dataclass(frozen=True)
class Crafted:
    """Sums the histories' rows as they are: every row is a vector that some shopper would contribute.

    Attributes:
        rounds: names of its noisy sums.
        shares: of the budget, one a round.
        factor: every row is multiplied with it, so that the clip has something to do.
    """

    name: ClassVar[str] = "crafted"
    rounds: tuple[str, ...] = ("first", "second")
    shares: tuple[float, ...] = (0.1, 0.9)
    factor: float = 1.0

    def plan_round(self, index: int, state: State, public: PublicInputs) -> RoundSpec | None:
        """One sum of rows a round."""
        if index >= len(self.rounds):
            return None
        return RoundSpec(RoundKind.STATISTICS, self.rounds[index], Layout((("rows", (public.num_items,)),)))

    def contributions(self, spec: RoundSpec, histories: sparse.csr_matrix) -> Contributions:
        """The rows times the factor."""
        return RowSums(sparse.csr_matrix(histories, dtype=np.float64) * self.factor)

    def advance(
        self, spec: RoundSpec, state: State, total: np.ndarray, public: PublicInputs, *, noise_sd: float = 0.0
    ) -> State:
        """All sums are kept."""
        return {**state, spec.name: total.copy()}

    def release_requests(self, crowd: float | None = None) -> tuple[ReleaseRequest, ...]:
        """A noisy sum with a clip norm of 1 for every round."""
        return tuple(ReleaseRequest(name, share, 1.0) for name, share in zip(self.rounds, self.shares, strict=True))

    @property
    def trained(self) -> Recommender:
        """As coordinator and shops take it; they train it and never ask it for scores, which it does not have."""
        return cast(Recommender, self)


@dataclass(frozen=True)
class RowSums:
    """Rows of any length; see `Contributions`."""

    rows: sparse.csr_matrix

    def norms(self) -> np.ndarray:
        """float64, (num_shoppers,)."""
        return np.sqrt(np.asarray(self.rows.multiply(self.rows).sum(axis=1), np.float64).ravel())

    def total(self, weights: np.ndarray) -> np.ndarray:
        """float64, (num_items,)."""
        return np.asarray(self.rows.T @ weights).ravel()

    def integers(self, weights: np.ndarray, scale: float) -> np.ndarray:
        """int64, (num_items,)."""
        steps = self.rows.multiply(scale * np.asarray(weights)[:, None]).tocsr()
        steps.data = np.trunc(steps.data)
        return np.asarray(steps.sum(axis=0)).ravel().astype(np.int64)
