"""What a model must say so that a federation can train it: rounds, contributions, sums, scores.

A model names the arrays that are *shared*; everything else is private. A round asks every shop for the sum of its
shoppers' contributions, the coordinator moves the shared arrays by the total of all shops, and a shop turns them into a
`Scorer`. The same methods train one shop alone or all shops pooled (`train_alone`), so every column of a comparison
runs the same arithmetic.

Axis names: ``num_items`` items of the item space at hand (the federation's shared list, or a shop's own catalogue),
``num_shoppers`` rows of a shop's histories, ``num_features`` columns of the public item content.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from scipy import sparse

from fedrec.errors import BadMessage, NotFinite
from fedrec.privacy.mechanisms import Outlook, ReleaseRequest

if TYPE_CHECKING:
    from fedrec.privacy.draws import Draws

WEIGHT, LOSS = "weight", "loss"
"""Arrays of one value in a local update's layout: what a shop counts for in the mean, and that times its loss."""

State = dict[str, np.ndarray]
"""A model's shared arrays by name: what the coordinator may hold and every shop may get."""

LARGEST_ARRAY = 64.0
"""Largest absolute value in an array that gradients are computed at under a promise; trained weights are far below."""


class RoundKind(StrEnum):
    """How a round's sum is used."""

    STATISTICS = "statistics"
    GRADIENT_STEP = "gradient-step"
    LOCAL_UPDATE = "local-update"


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the arrays that one flat float64 vector holds, in order."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def size(self) -> int:
        """Number of values in the flat vector."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    def digest(self) -> str:
        """sha256 of names and shapes, hexadecimal; carried by every message."""
        return hashlib.sha256(json.dumps(self.shapes).encode()).hexdigest()

    def split(self, vector: np.ndarray) -> State:
        """Views into ``vector`` (size,) by array name.

        Raises:
            BadMessage: the vector's length is not the layout's.
        """
        if vector.shape != (self.size,):
            raise BadMessage(f"a vector of shape {vector.shape} does not fit a layout of {self.size} values")
        arrays, start = {}, 0
        for name, shape in self.shapes:
            stop = start + math.prod(shape)
            arrays[name] = vector[start:stop].reshape(shape)
            start = stop
        return arrays


@dataclass(frozen=True)
class RoundSpec:
    """What one round asks of every shop.

    Attributes:
        kind: how the sum is used.
        name: what is summed, for people ("popularity", "co-occurrence", "normal equations").
        layout: of the flat vector that each shop sends.
        inputs: shared arrays a shop needs to compute it (sent to every shop).
        sampling_rate: q in (0, 1]: a shop computes a gradient step, or each of its own private steps, over a random
            part of its shoppers, each of whom is in it with this public probability, whoever else is (Poisson
            sampling).
    """

    kind: RoundKind
    name: str
    layout: Layout
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    sampling_rate: float = 1.0


@dataclass(frozen=True)
class PublicInputs:
    """What everybody may know about an item space; declared, never computed from events.

    Attributes:
        items: str, (num_items,); item keys.
        content: float32 CSR, (num_items, num_features), rows of norm 1 (or empty rows); None without item text.
    """

    items: np.ndarray
    content: sparse.csr_matrix | None = None

    @classmethod
    def of(cls, items: np.ndarray, features: sparse.csr_matrix | None, catalogue: Any) -> PublicInputs:
        """The item space of some items of a catalogue.

        Args:
            items: str, (num_items,); keys, all of them in the catalogue.
            features: of the catalogue's items, in its order; None without item text.
            catalogue: index of its keys, a `pandas.Index`.
        """
        return cls(items, None if features is None else features[catalogue.get_indexer(items)].tocsr())

    @property
    def num_items(self) -> int:
        """Size of the item space."""
        return len(self.items)


class Contributions(Protocol):
    """All shoppers' contributions to one round, without ever writing out one vector per shopper.

    Shopper u's contribution c_u is a function of the round's inputs, her own history and public data alone. The door
    out clips by asking for the norms first and for a weighted sum after (weights min(1, C / norm)).
    """

    def norms(self) -> np.ndarray:
        """float64, (num_shoppers,): L2 norm of each shopper's contribution."""
        ...

    def total(self, weights: np.ndarray) -> np.ndarray:
        """float64, (layout.size,): sum over shoppers of ``weights[u]`` times c_u; weights float64 (num_shoppers,)."""
        ...

    def integers(self, weights: np.ndarray, scale: float) -> np.ndarray:
        """The sum on an integer grid, each shopper rounded before she is added.

        Args:
            weights: float64, (num_shoppers,); >= 0.
            scale: grid steps per unit of the sum; > 0.
        Returns:
            int64, (layout.size,): close to scale x `total`.
        Guarantee: removing shopper u moves the sum by at most scale x weights[u] x her norm in L2 (up to float64
            rounding of that product). The usual way: trunc(scale x weights[u] x c_u), value by value, summed exactly;
            a shopper's own integers depend on nothing but her row, her weight and the scale, to the last bit, and
            rounding toward zero makes no value larger. Where that is too slow (c_u without zeros) a sum may be rounded
            once, if every shopper's bound is lowered first by what that can add.
        """
        ...


class Gradients(Protocol):
    """All shoppers' gradients of one gradient step, without ever writing out one vector per shopper."""

    def total(self, weights: np.ndarray) -> np.ndarray:
        """float64, (layout.size,): sum over shoppers of ``weights[u]`` times her gradient; weights (num_shoppers,)."""
        ...

    def clipped(self, bound: float) -> tuple[np.ndarray, np.ndarray]:
        """The sum of gradients scaled down to an L2 norm of at most ``bound`` each, and the norms before.

        Returns:
            float64 (layout.size,), float64 (num_shoppers,); a shopper whose norm is not finite counts as zero.
        """
        ...


class Scorer(Protocol):
    """A trained model over one item space, ready to rank."""

    def scores(self, histories: sparse.csr_matrix) -> np.ndarray:
        """float32, (num_rows, num_items): higher is better; histories CSR (num_rows, num_items), 1 where bought.

        Known items are not masked here; a row without any entry (a cold shopper) still gets finite scores.
        """
        ...

    def restrict(self, positions: np.ndarray, public: PublicInputs) -> Scorer:
        """The same model over a shop's own item space.

        Args:
            positions: int64, (num_shop_items,): each shop item's place in this scorer's item space, or -1.
            public: the shop's own item space; items at -1 are scored by content and popularity.
        """
        ...


@runtime_checkable
class Explainable(Protocol):
    """A scorer that can say which bought item brought a recommendation."""

    def because(self, history: np.ndarray, item: int) -> np.ndarray:
        """float32, (len(history),): each bought item's part of the score of ``item``; positions in the item space."""
        ...


class Recommender(Protocol):
    """A federated recommender: a frozen dataclass of its settings (or of one field ``settings``), never data.

    Optional class attributes: ``fit_fields`` (names of settings that change how statistics are solved but not what
    shops send) and ``is_iterative`` (True where every round moves the model, so that a learning curve says something).
    """

    name: ClassVar[str]

    def plan_round(self, index: int, state: State, public: PublicInputs) -> RoundSpec | None:
        """What round ``index`` (0, 1, ...) asks, given the shared arrays so far; None when training is complete."""
        ...

    def contributions(self, spec: RoundSpec, histories: sparse.csr_matrix) -> Contributions:
        """The shop's side of a round; histories CSR (num_shoppers, num_items), values > 0 = strength of the event."""
        ...

    def advance(
        self, spec: RoundSpec, state: State, total: np.ndarray, public: PublicInputs, *, noise_sd: float = 0.0
    ) -> State:
        """New shared arrays from the old and the sum over all shops. Never edits ``state``.

        Args:
            spec: the round.
            state: shared arrays so far.
            total: float64, (layout.size,).
            public: the item space.
            noise_sd: standard deviation of the noise in each value of ``total``, in its units; 0 = none.
        """
        ...

    def fit(self, state: State, public: PublicInputs) -> Scorer:
        """Solve the shared arrays into a scorer over the same item space."""
        ...

    def project(self, state: State, positions: np.ndarray, public: PublicInputs) -> State:
        """The shared arrays in a shop's own item space; positions as in `Scorer.restrict`, ``public`` the shop's."""
        ...

    def own_statistics(self, state: State, histories: sparse.csr_matrix, public: PublicInputs) -> State:
        """The shop's own raw statistics, in the item space and shape of ``state`` (projected); they never leave it."""
        ...

    def mix(self, state: State, own: State, *, global_share: float) -> State:
        """``global_share`` x global + (1 - ``global_share``) x own statistics: 0 = the shop alone, 1 = the global."""
        ...

    def candidates(self) -> dict[str, tuple[Any, ...]]:
        """Settings worth trying on validation, by field name: the same search space for every column."""
        ...


@runtime_checkable
class GradientModel(Protocol):
    """A recommender some of whose rounds are gradient steps: the whole federation takes one step together."""

    def gradients(self, spec: RoundSpec, histories: sparse.csr_matrix, draws: Draws) -> Gradients:
        """The shop's side of a gradient step, of the sampled shoppers alone.

        Args:
            spec: the round, of kind ``gradient-step``.
            histories: CSR, (num_sampled, num_items).
            draws: randomness of these shoppers; a gradient depends on the spec, her row and her draws alone.
        """
        ...


def sampled_gradients(
    model: GradientModel, spec: RoundSpec, histories: sparse.csr_matrix, draws: Draws
) -> tuple[Gradients, int]:
    """Gradients of the sampled shoppers, and how many there are: each by her own coin, whoever else is in the table.

    Args:
        histories: CSR, (num_shoppers, num_items); of all shoppers.
        draws: randomness of these shoppers in this step.
    """
    rows = np.flatnonzero(draws.of("sample").coins(spec.sampling_rate))
    return model.gradients(spec, histories[rows], draws.of("gradient").take(rows)), len(rows)


@runtime_checkable
class LocalModel(Protocol):
    """A recommender some of whose rounds are local updates: every shop trains for itself, then updates are averaged."""

    def local_update(self, spec: RoundSpec, histories: sparse.csr_matrix, draws: Draws) -> np.ndarray:
        """The shop's side of a local update: float64 (layout.size,), whose sum over shops `advance` understands.

        Where the layout has arrays `WEIGHT` and `LOSS`, the quotient of their sums is the round's training loss.
        """
        ...

    def train_alone(self, histories: sparse.csr_matrix, public: PublicInputs, *, rounds: int | None = None) -> State:
        """The shared arrays of one table of histories in one place, without averaging.

        Args:
            rounds: stop after what so many of the federation's rounds come to; None = after all of them.
        """
        ...


NoisySum = Callable[[RoundSpec], np.ndarray]
"""The noisy sum of clipped gradients over a fresh sample of the shop, for a ``gradient-step``: float64 (layout.size,).
Every call is one more sum that the shop is charged for."""


@runtime_checkable
class LocalStepsModel(Protocol):
    """A gradient model whose shops may take several steps by themselves before they answer, under a promise."""

    def local_steps(self, spec: RoundSpec, noisy_sum: NoisySum, *, steps: int, num_shoppers: int) -> np.ndarray:
        """The shop's side of a private local update.

        Args:
            spec: the round, of kind ``local-update``.
            noisy_sum: all that there is to know about the shop's shoppers.
            steps: S >= 1; how often it may be asked.
            num_shoppers: declared by the shop, so public; >= 1.
        Returns:
            float64 (layout.size,), whose sum over shops `advance` understands. It follows from the arguments alone, so
            it is post-processing of S noisy sums; no failure may depend on them.
        """
        ...


@runtime_checkable
class PrivateVariant(Protocol):
    """A recommender that can be trained under a privacy budget; `fedrec.models.private_model` asks for it.

    Both methods use public numbers only, so what they choose is as public as they are.
    """

    def release_requests(self, crowd: float | None = None) -> tuple[ReleaseRequest, ...]:
        """The noisy sums that the private variant asks for, in round order, with a shopper's bound C for each.

        Args:
            crowd: declared shoppers over the noise that one release with the whole budget would hold (C = 1). The
                shares may depend on it, names and number may not. None = not known yet.
        """
        ...

    def private(self, outlook: Outlook, public: PublicInputs) -> Recommender:
        """The private variant: a model of its own whose settings hold what public rules chose for this noise.

        Args:
            outlook: the calibrated schedule, the noise each sum will hold, and the declared number of shoppers.
            public: the item space.
        Returns:
            a model whose rounds have the names of the requests, in that order, and whose shoppers' contributions have
            an L2 norm of at most the request's C (the door clips them all the same).
        """
        ...


def train_alone(
    model: Recommender, histories: sparse.csr_matrix, public: PublicInputs, *, rounds: int | None = None
) -> State:
    """Run a model's rounds on one table of histories, without a federation (local-only and pooled columns).

    Args:
        rounds: stop after so many; None = after all.
    """
    if isinstance(model, LocalModel):
        return model.train_alone(histories, public, rounds=rounds)
    state: State = {}
    index = 0
    while index != rounds and (spec := model.plan_round(index, state, public)) is not None:
        total = model.contributions(spec, histories).total(np.ones(histories.shape[0]))
        if not np.isfinite(total).all():
            raise NotFinite(f"the sum of round {index} ({spec.name}) is not finite")
        state = model.advance(spec, state, total, public)
        index += 1
    return state
