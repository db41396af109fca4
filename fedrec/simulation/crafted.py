"""Models whose shoppers contribute what an auditor wrote down, and the events of shoppers that no shop has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
import pandas as pd
from scipy import sparse

from fedrec.data.events import clean
from fedrec.models.recommender import (
    Contributions,
    Gradients,
    Layout,
    NoisySum,
    PublicInputs,
    Recommender,
    RoundKind,
    RoundSpec,
    State,
)
from fedrec.privacy.mechanisms import ReleaseRequest
from fedrec.simulation.audit_claim import AuditSettings, item_name

if TYPE_CHECKING:
    from fedrec.privacy.draws import Draws


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
class CraftedSteps(Crafted):
    """The same in local updates: the sum of S noisy sums of the rows leaves a shop, which took them by itself.

    Attributes:
        steps: S, in each round.
    """

    name: ClassVar[str] = "crafted-steps"
    shares: tuple[float, ...] = (0.5, 0.5)
    steps: int = 3

    def plan_round(self, index: int, state: State, public: PublicInputs) -> RoundSpec | None:
        """A local update over the same rows a round."""
        spec = super().plan_round(index, state, public)
        return None if spec is None else replace(spec, kind=RoundKind.LOCAL_UPDATE)

    def release_requests(self, crowd: float | None = None) -> tuple[ReleaseRequest, ...]:
        """S noisy sums with a clip norm of 1 for every round."""
        return tuple(replace(one, local_steps=self.steps) for one in super().release_requests(crowd))

    def gradients(self, spec: RoundSpec, histories: sparse.csr_matrix, draws: Draws) -> Gradients:
        """The rows times the factor, whatever the step before left."""
        return RowSums(sparse.csr_matrix(histories, dtype=np.float64) * self.factor)

    def local_steps(self, spec: RoundSpec, noisy_sum: NoisySum, *, steps: int, num_shoppers: int) -> np.ndarray:
        """The best that an attacker gets from S noisy sums of the same rows: their sum."""
        step = replace(spec, kind=RoundKind.GRADIENT_STEP)
        return np.sum([noisy_sum(step) for _ in range(steps)], axis=0)


@dataclass(frozen=True)
class RowSums:
    """Rows of any length; see `Contributions` and `Gradients`."""

    rows: sparse.csr_matrix

    def norms(self) -> np.ndarray:
        """float64, (num_shoppers,)."""
        return np.sqrt(np.asarray(self.rows.multiply(self.rows).sum(axis=1), np.float64).ravel())

    def total(self, weights: np.ndarray) -> np.ndarray:
        """float64, (num_items,)."""
        return np.asarray(self.rows.T @ weights).ravel()

    def clipped(self, bound: float) -> tuple[np.ndarray, np.ndarray]:
        """The sum of rows of a norm of at most ``bound``, and the norms before."""
        norms = self.norms()
        return self.total(bound / np.maximum(norms, bound)), norms

    def integers(self, weights: np.ndarray, scale: float) -> np.ndarray:
        """int64, (num_items,)."""
        steps = self.rows.multiply(scale * np.asarray(weights)[:, None]).tocsr()
        steps.data = np.trunc(steps.data)
        return np.asarray(steps.sum(axis=0)).ravel().astype(np.int64)


def crafted_events(settings: AuditSettings) -> pd.DataFrame:
    """An events table of a usual crowd and a few shoppers that no shop has: columns ``shopper``, ``item``.

    One has a popular item, one an item of few others, one the whole catalogue, one a single item a thousand times.
    """
    rng = np.random.default_rng(settings.seed)
    chances = 1 / np.arange(1, settings.num_items + 1)
    chances /= chances.sum()
    rows = []
    for shopper in range(60):
        bought = np.unique(rng.choice(settings.num_items, size=12, p=chances))
        rows += [(f"usual-{shopper:03d}", int(item)) for item in bought]
    rare = int(rows[-1][1])  # the last is among the rarest that anybody of the crowd has
    rows += [("crafted-one-popular", 0), ("crafted-one-rare", rare)]
    rows += [("crafted-everything", item) for item in range(settings.num_items)]
    rows += [("crafted-repeats", 1)] * 1000
    return pd.DataFrame(
        {
            "shop": "shop-00",
            "shopper": [shopper for shopper, _ in rows],
            "item": [item_name(item) for _, item in rows],
            "timestamp": np.arange(len(rows), dtype=np.float64),
        }
    )


def crafted_names(events: pd.DataFrame) -> list[str]:
    """Names of the shoppers in `crafted_events` that are not of the crowd."""
    return sorted(name for name in events["shopper"].unique() if name.startswith("crafted"))


def histories(raw: pd.DataFrame, public: PublicInputs) -> sparse.csr_matrix:
    """A shop's rows from its raw events, as a run computes them: cleaned, then 1 for every item a shopper has."""
    table = clean(raw)[0].table
    shoppers, rows = np.unique(table["shopper"].to_numpy(str), return_inverse=True)
    columns = np.searchsorted(public.items, table["item"].to_numpy(str))
    ones = np.ones(len(rows), np.float32)
    matrix = sparse.csr_matrix((ones, (rows, columns)), shape=(len(shoppers), public.num_items))
    matrix.sum_duplicates()
    matrix.data.fill(1.0)
    return matrix
