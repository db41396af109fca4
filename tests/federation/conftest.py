"""A model small enough to check by hand, and a federation of three shops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from scipy import sparse

from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.terms import Terms
from fedrec.models.recommender import Layout, PublicInputs, RoundKind, RoundSpec, State


@dataclass(frozen=True)
class Rows:
    """Each shopper's row times the round's factor."""

    rows: sparse.csr_matrix
    factor: float

    def norms(self) -> np.ndarray:
        return np.sqrt(np.asarray(self.rows.multiply(self.rows).sum(axis=1)).ravel().astype(float)) * self.factor

    def total(self, weights: np.ndarray) -> np.ndarray:
        return np.asarray(self.rows.T @ weights).ravel().astype(float) * self.factor

    def integers(self, weights: np.ndarray, scale: float) -> np.ndarray:
        scaled = self.rows.toarray().astype(float) * (scale * self.factor * weights)[:, None]
        return np.trunc(scaled).astype(np.int64).sum(axis=0)


@dataclass(frozen=True)
class Counting:
    """Adds up rows; round i counts them (i + 1) times."""

    name: ClassVar[str] = "counting"
    rounds: int = 2

    def plan_round(self, index: int, state: State, public: PublicInputs) -> RoundSpec | None:
        if index >= self.rounds:
            return None
        layout = Layout((("counts", (public.num_items,)),))
        return RoundSpec(RoundKind.STATISTICS, "counts", layout, {"factor": np.array([index + 1.0])})

    def contributions(self, spec: RoundSpec, histories: sparse.csr_matrix) -> Rows:
        return Rows(histories, float(spec.inputs["factor"][0]))

    def advance(
        self, spec: RoundSpec, state: State, total: np.ndarray, public: PublicInputs, *, noise_sd: float = 0.0
    ) -> State:
        return {"counts": state.get("counts", np.zeros(public.num_items)) + total}


@pytest.fixture
def public() -> PublicInputs:
    return PublicInputs(np.array(["apple", "beer", "cake", "dill"]))


@pytest.fixture
def histories() -> list[sparse.csr_matrix]:
    """Three shops of 3, 1 and 2 shoppers over 4 items; sums [2, 1, 1, 0], [0, 1, 0, 1], [1, 0, 2, 0]."""
    tables = [
        [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]],
        [[0, 1, 0, 1]],
        [[1, 0, 1, 0], [0, 0, 1, 0]],
    ]
    return [sparse.csr_matrix(np.array(table, dtype=np.float32)) for table in tables]


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
def coordinator(counting: Counting, public: PublicInputs) -> Coordinator:
    return Coordinator(counting, public, Terms(("north", "south", "west"), min_shops=2, run_id="test"))
