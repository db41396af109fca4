"""A neural recommender in a federation: local updates that are averaged, and fine-tuning that stays in the shop.

Round r sends the shared arrays to every shop; a shop trains a few local epochs from them and answers with its change,
times the number of its shoppers, that number, and their summed loss in its last epoch; the coordinator moves the arrays
by the mean change (`fedrec.training.server_step`). Vectors of single shoppers, where a network has such, are folded in
from the shared arrays and the shopper's own history (as FedRecon does: Singhal et al. 2021, arXiv:2102.03448), so
nothing private has to outlive a round. torch is imported when a network is built, not before.

**Guarantee:** none by itself: a local update is raw. Under an epsilon a neural model takes noisy steps instead, of the
whole federation or in every shop (`fedrec.models.private_neural`).
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy import sparse

from fedrec.errors import BadMessage, ConfigError
from fedrec.models.factors import with_content
from fedrec.models.popularity import binary_rows, mix_arrays, take
from fedrec.models.recommender import (
    LARGEST_ARRAY,
    LOSS,
    WEIGHT,
    Contributions,
    Layout,
    PublicInputs,
    RoundKind,
    RoundSpec,
    Scorer,
    State,
)
from fedrec.training.server_step import STRATEGIES, memory_of, server_step, without_memory

if TYPE_CHECKING:
    from torch import Tensor

    from fedrec.privacy.draws import Draws
    from fedrec.training.fit import FitSettings
    from fedrec.training.network import Network

_ROWS_AT_ONCE = 512

PRIVATE_ROUNDS = (str(RoundKind.GRADIENT_STEP), str(RoundKind.LOCAL_UPDATE))
"""Kinds of rounds in which a neural model learns under an epsilon."""

FINE_TUNE = ("all", "output", "items")
"""What of a network the shop may fine-tune for itself."""

LARGEST_WIDTH = 8192  # of a network's layer


def check_whole(settings: NeuralSettings, *names: str, least: int = 1, most: float = math.inf) -> None:
    """Refuse (`ConfigError`) a setting that is not from ``least`` to ``most``."""
    for name in names:
        if not least <= (value := getattr(settings, name)) <= most:
            allowed = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
            raise ConfigError(f"{name} = {value}: give a whole number {allowed}")


@dataclass(frozen=True, kw_only=True)
class NeuralSettings:
    """What every neural recommender has to set.

    Attributes:
        rounds: rounds of the federation; >= 1.
        local_epochs: epochs that a shop trains in a round; >= 1. A shop alone, and all data pooled, train
            rounds x local_epochs.
        batch_shoppers: most shoppers in one optimiser step; >= 1.
        least_steps: optimiser steps that an epoch takes at least, in smaller batches where there are few shoppers (a
            shop of ten that takes a tenth of the steps of all data pooled falls behind it); >= 1.
        learning_rate: of Adam in the shop; > 0.
        round_learning_rate: of Adam in a federation's local updates, where averaging over shops takes noise out; >= 0.
            0 = learning_rate.
        last_round_rate: share of it that the last round has, in (0, 1]; it falls there along half a cosine.
        vector_learning_rate: of Adam on shoppers' private vectors, where a network has such, one step an epoch; > 0.
            Where they were folded in all the way, long steps only lead away again.
        weight_decay: L2 pull towards zero; >= 0.
        strategy: how the coordinator averages: fedavg, fedprox, fedavgm or fedadam.
        server_learning_rate: of the coordinator; > 0. 1 with fedavg is plain averaging.
        proximal: mu of fedprox, pull of local training towards the shared arrays; >= 0.
        fine_tune: what of the network its personal model fine-tunes: all of it, the output layer alone (FedRep) or the
            item tables (PFedRec); see `NeuralModel.own_statistics`.
        fine_tune_epochs: epochs on the shop's own shoppers after the last round, for its personal model; >= 0.
        init_seed: of the first shared arrays; from 0 to 2^63 - 1.
        device: auto (a GPU where there is one), cpu or cuda.
        private_steps: T, gradient steps under an epsilon; >= 1.
        private_sampling_rate: q in (0, 1]: part of all shoppers in each of them.
        private_clip_norm: C, bound on the L2 norm of one shopper's gradient; above 1e-6, at most `LARGEST_ARRAY`.
        private_learning_rate: of Adam at the first of them, falling to 0 with the last; > 0.
        private_rounds: gradient-step: the coordinator takes each of them, on the noisy sum over shops. local-update:
            every shop takes ``private_local_steps`` by itself, with all of the noise in each, and the changes are
            averaged; in privacy.mode local alone.
        private_local_steps: S, noisy steps of a local update; divides ``private_steps`` then; >= 1.
        private_clip_quantile: share of the declared shoppers, in (0, 1), whose gradients a step should leave unclipped:
            the clip norm follows it, from ``private_clip_norm`` on, by a count that shares the step's noise
            (`fedrec.training.adaptive_clip`). None = it stays. For gradient steps.
    """

    rounds: int = 20
    local_epochs: int = 5
    batch_shoppers: int = 128
    least_steps: int = 1
    learning_rate: float = 1e-3
    round_learning_rate: float = 0.0
    last_round_rate: float = 1.0
    vector_learning_rate: float = 0.05
    weight_decay: float = 0.0
    strategy: str = "fedavg"
    server_learning_rate: float = 1.0
    proximal: float = 0.01
    fine_tune: str = "all"
    fine_tune_epochs: int = 5
    init_seed: int = 0
    device: str = "auto"
    private_steps: int = 100
    private_sampling_rate: float = 1.0
    private_clip_norm: float = 0.1
    private_learning_rate: float = 0.02
    private_rounds: str = "gradient-step"
    private_local_steps: int = 5
    private_clip_quantile: float | None = None

    def __post_init__(self) -> None:
        check_whole(self, "rounds", "local_epochs", "batch_shoppers", "least_steps")
        check_whole(self, "private_steps", "private_local_steps")
        check_whole(self, "init_seed", least=0, most=2**63 - 1)
        for name in ("learning_rate", "vector_learning_rate", "server_learning_rate", "private_learning_rate"):
            if not 0 < getattr(self, name) < np.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: give a number above 0")
        for name in ("round_learning_rate", "weight_decay", "proximal", "fine_tune_epochs"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: give 0 or more")
        ranges = ("private_sampling_rate", 0, 1), ("last_round_rate", 0, 1), ("private_clip_norm", 1e-6, LARGEST_ARRAY)
        for name, above, most in ranges:
            if not above < getattr(self, name) <= most:
                raise ConfigError(f"{name} = {getattr(self, name)}: give a number above {above:g}, at most {most:g}")
        if self.private_rounds not in PRIVATE_ROUNDS:
            raise ConfigError(f"private_rounds = {self.private_rounds!r}: give one of {', '.join(PRIVATE_ROUNDS)}")
        if self.is_privately_local and self.private_steps % self.private_local_steps:
            raise ConfigError(
                f"private_steps = {self.private_steps}: must be a multiple of private_local_steps = "
                f"{self.private_local_steps}, the steps of one local update"
            )
        if self.private_clip_quantile is not None:
            if not (isinstance(self.private_clip_quantile, float) and 0 < self.private_clip_quantile < 1):
                raise ConfigError(
                    f"private_clip_quantile = {self.private_clip_quantile}: above 0, below 1, or left out"
                )
            if self.is_privately_local:
                raise ConfigError(
                    f"private_clip_quantile = {self.private_clip_quantile}: leave it out in local updates"
                )
        if self.strategy not in STRATEGIES:
            raise ConfigError(f"strategy = {self.strategy!r}: give one of {', '.join(STRATEGIES)}")
        if self.fine_tune not in FINE_TUNE:
            raise ConfigError(f"fine_tune = {self.fine_tune!r}: give one of {', '.join(FINE_TUNE)}")

    @property
    def epochs(self) -> int:
        """Of a whole training."""
        return self.rounds * self.local_epochs

    def rate_of_round(self, index: int) -> float:
        """Of Adam in the local updates of a round, counted from 0."""
        return (self.round_learning_rate or self.learning_rate) * self.share_of_round(index)

    def share_of_round(self, index: int) -> float:
        """Of the first round's rate that this one has."""
        is_left = (1 + math.cos(math.pi * index / max(self.rounds - 1, 1))) / 2
        return self.last_round_rate + (1 - self.last_round_rate) * is_left

    @property
    def is_privately_local(self) -> bool:
        """Whether shops take the noisy steps by themselves."""
        return self.private_rounds == RoundKind.LOCAL_UPDATE


class NeuralModel:
    """Rounds, fine-tuning and scoring of every neural recommender; a model adds its settings and its network.

    State: the network's parameters by name, float32, in its order; then the coordinator's optimiser ("server.").
    """

    name: ClassVar[str]
    is_iterative: ClassVar[bool] = True
    settings: Any

    @abstractmethod
    def make_network(self, num_items: int) -> Network:
        """The network over so many items as ``init_seed`` starts it, on the CPU; imports torch."""

    def check_here(self) -> None:
        """Pick the device and build the network, over one item, so that a run that cannot be does not begin.

        Raises:
            ConfigError: this machine has no such device, or no network has these settings.
        """
        from fedrec.training.network import pick_device

        pick_device(self.settings.device)
        _smallest_network(self)

    def plan_round(self, index: int, state: State, public: PublicInputs) -> RoundSpec | None:
        """A local update from the arrays so far."""
        if index >= self.settings.rounds:
            return None
        arrays = self._shared(state) or self._initial(public.num_items)
        shapes = tuple((name, tuple(values.shape)) for name, values in arrays.items())
        layout = Layout((*shapes, (WEIGHT, (1,)), (LOSS, (1,))))
        return RoundSpec(RoundKind.LOCAL_UPDATE, "local update", layout, {**arrays, "round": np.array([index])})

    def contributions(self, spec: RoundSpec, histories: sparse.csr_matrix) -> Contributions:
        """None: a local update has no contributions of single shoppers.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"a {spec.kind} round of model {self.name!r} has no contributions of single shoppers")

    def local_update(self, spec: RoundSpec, histories: sparse.csr_matrix, draws: Draws) -> np.ndarray:
        """float64, (layout.size,): (new - old) times the number of shoppers with a history; that number; its loss.

        The loss is the sum over those shoppers in the last local epoch, at the time they were seen.
        """
        arrays = {name: values for name, values in spec.inputs.items() if name != "round"}
        weight = int(np.count_nonzero(np.diff(histories.indptr)))
        if not weight:
            return np.zeros(spec.layout.size)
        index = int(spec.inputs["round"][0])
        done = index * self.settings.local_epochs
        losses: list[float] = []
        trained = self._train(
            *(arrays, histories, draws, self.settings.local_epochs, done, self.settings.epochs),
            on_epoch=lambda _, loss: losses.append(loss),
            learning_rate=self.settings.rate_of_round(index),
        )
        return np.append(weighted_change(arrays, trained, weight), weight * losses[-1])

    def advance(
        self, spec: RoundSpec, state: State, total: np.ndarray, public: PublicInputs, *, noise_sd: float = 0.0
    ) -> State:
        """The mean change over all shoppers of all shops, as the strategy takes it."""
        sums = spec.layout.split(total)
        weight = float(sums[WEIGHT][0])
        arrays = {name: spec.inputs[name] for name in sums if name not in (WEIGHT, LOSS)}
        if weight <= 0:
            return {**arrays, **memory_of(state)}
        moved, memory = server_step(
            self.settings.strategy,
            arrays,
            {name: sums[name] / weight for name in arrays},
            memory_of(state),
            learning_rate=self.settings.server_learning_rate,
        )
        return {**moved, **memory}

    def train_alone(self, histories: sparse.csr_matrix, public: PublicInputs, *, rounds: int | None = None) -> State:
        """As many epochs in one place as the federation's rounds have, or as its first ``rounds``."""
        from fedrec.privacy.draws import Draws, shopper_digests

        draws = Draws.seeded(f"alone/{self.settings.init_seed}", shopper_digests(range(histories.shape[0])))
        epochs = self.settings.epochs if rounds is None else rounds * self.settings.local_epochs
        return self._train(self._initial(public.num_items), histories, draws, epochs, 0, self.settings.epochs)

    def fit(self, state: State, public: PublicInputs) -> Scorer:
        """The network with the state's arrays."""
        return NetworkScorer(self, self._shared(state), public)

    def project(self, state: State, positions: np.ndarray, public: PublicInputs) -> State:
        """The arrays over a shop's items; unknown ones take the mean of known ones of similar content, else zeros.

        Biases of unknown items are the least that a known one has: they rank with the rarest.
        """
        is_known = positions >= 0
        axes, bias = _item_axes(self), _smallest_network(self).item_bias_name
        projected = {}
        for name, values in self._shared(state).items():
            if name not in axes:
                projected[name] = values
                continue
            by_item = np.moveaxis(values, axes[name], 0)
            taken = take(by_item, positions)
            if values.ndim == 1 or name == bias:
                taken[~is_known] = values.min(initial=0.0)
            elif is_known.any():
                flat = taken.reshape(len(positions), -1).astype(np.float64)
                taken = with_content(flat, is_known, is_known.astype(float), public).reshape(taken.shape)
            projected[name] = np.ascontiguousarray(np.moveaxis(taken, 0, axes[name]), np.float32)
        return projected

    def own_statistics(self, state: State, histories: sparse.csr_matrix, public: PublicInputs) -> State:
        """The arrays after fine-tuning on the shop's own shoppers, from where the federation left them.

        They never leave the shop. Shoppers' own vectors, where a network has such, are folded in whatever is tuned.

        Source: "output" keeps the representation shared and the output layer the shop's own: Collins et al. 2021,
            arXiv:2102.07078 (FedRep), its own part trained after the last round in place of each; "items": Zhang et al.
            2023, arXiv:2301.08143 (PFedRec: every client has its own item embeddings, from the shared ones), the
            client a shop here; with 0 epochs only vectors are the shoppers' own: Singhal et al. 2021, arXiv:2102.03448
            (FedRecon).
        """
        from fedrec.privacy.draws import Draws, shopper_digests

        draws = Draws.seeded(f"own/{self.settings.init_seed}", shopper_digests(range(histories.shape[0])))
        epochs = self.settings.fine_tune_epochs
        arrays, moved, done = self._shared(state), self._fine_tuned(), self.settings.epochs
        return self._train(arrays, histories, draws, epochs, done, done, moved=moved)

    def _fine_tuned(self) -> tuple[str, ...]:
        """What the names of the parameters that fine-tuning moves start with."""
        match self.settings.fine_tune:
            case "output":
                return (_smallest_network(self).output_name,)
            case "items":
                return tuple(_item_axes(self))
        return ("",)

    def mix(self, state: State, own: State, *, global_share: float) -> State:
        """Between the shared and the fine-tuned arrays, value by value.

        Source: Wortsman et al. 2022, arXiv:2109.01903 (weights between a model and its fine-tuned self).
        """
        return mix_arrays(self._shared(state), own, global_share=global_share)

    def candidates(self) -> dict[str, tuple[Any, ...]]:
        """None: training is dear, and the defaults were chosen on another set's validation."""
        return {}

    def fit_settings(self, num_shoppers: int, **changes: Any) -> FitSettings:
        """How a table of so many shoppers is trained on, but for some changes."""
        from fedrec.training.fit import FitSettings

        usual = {
            "batch_shoppers": min(self.settings.batch_shoppers, -(-num_shoppers // self.settings.least_steps)),
            "learning_rate": self.settings.learning_rate,
            "vector_learning_rate": self.settings.vector_learning_rate,
            "weight_decay": self.settings.weight_decay,
            "proximal": self.settings.proximal if self.settings.strategy == "fedprox" else 0.0,
        }
        return FitSettings(**{**usual, **changes})

    def network_with(self, arrays: Mapping[str, np.ndarray], num_items: int) -> Network:
        """The network on its device, with these parameters.

        Raises:
            BadMessage: they are not this model's.
        """
        from fedrec.training.network import pick_device, set_arrays

        network = copy.deepcopy(_first_network(self, num_items))
        set_arrays(network, dict(arrays))
        return network.to(pick_device(self.settings.device))

    def _train(
        self,
        arrays: State,
        histories: sparse.csr_matrix,
        draws: Draws,
        epochs: int,
        start_epoch: int,
        total_epochs: int,
        on_epoch: Callable[[int, float], None] | None = None,
        **changes: Any,
    ) -> State:
        """The arrays after so many epochs on the rows that are not empty."""
        from fedrec.training.fit import fit
        from fedrec.training.network import get_arrays

        rows = np.flatnonzero(np.diff(histories.indptr))
        if not len(rows) or not epochs:
            return dict(arrays)
        network = self.network_with(arrays, histories.shape[1])
        fit(
            network,
            binary_rows(histories[rows]),
            draws.take(rows),
            self.fit_settings(len(rows), **changes),
            epochs=epochs,
            start_epoch=start_epoch,
            total_epochs=total_epochs,
            on_epoch=on_epoch,
        )
        return get_arrays(network)

    def arrays_at(self, popularity: np.ndarray) -> State:
        """The first arrays of a network over so many items, its items' biases at their popularity, (num_items,)."""
        from fedrec.training.network import get_arrays

        network = self.make_network(len(popularity))
        network.start_at(popularity)
        return get_arrays(network)

    def _initial(self, num_items: int) -> State:
        from fedrec.training.network import get_arrays

        return get_arrays(self.make_network(num_items))

    def _shared(self, state: State) -> State:
        return {name: np.asarray(values, np.float32) for name, values in without_memory(state).items()}


def weighted_change(before: State, after: State, weight: float) -> np.ndarray:
    """A local update as it travels: float64, (after - before) x weight in the order of ``before``, then the weight."""
    changes = [(after[name].astype(np.float64) - before[name]).ravel() * weight for name in before]
    return np.concatenate([*changes, [float(weight)]])


@lru_cache(maxsize=2)
def _first_network(model: NeuralModel, num_items: int) -> Network:
    """To be copied: drawing first parameters takes longer than an epoch of a small shop."""
    return model.make_network(num_items)


@lru_cache(maxsize=64)
def _smallest_network(model: NeuralModel) -> Network:
    """To read names from."""
    return model.make_network(1)


@lru_cache(maxsize=64)
def _item_axes(model: NeuralModel) -> dict[str, int]:
    """Which axis of which parameter counts items: the one that grows with their number."""
    few, more = ({n: v.shape for n, v in model.make_network(size).named_parameters()} for size in (3, 4))
    axes = {}
    for name, shape in few.items():
        grown = [axis for axis, length in enumerate(shape) if more[name][axis] != length]
        if len(grown) > 1:
            raise BadMessage(f"parameter {name!r} has two axes of items")
        if grown:
            axes[name] = grown[0]
    return axes


@dataclass(frozen=True, eq=False)
class NetworkScorer:
    """A trained network over one item space.

    Attributes:
        model: whose network it is.
        arrays: float32, its parameters by name.
        public: the item space.
        trained: the scorer over the item space that the network was trained in, and each item's place there (-1 =
            none); shoppers' vectors are folded in there. None = this is it.
    """

    model: NeuralModel
    arrays: State
    public: PublicInputs
    trained: tuple[NetworkScorer, np.ndarray] | None = None

    @cached_property
    def _network(self) -> Network:
        network = self.model.network_with(self.arrays, self.public.num_items)
        network.eval()
        return network

    def scores(self, histories: sparse.csr_matrix) -> np.ndarray:
        """float32, (num_rows, num_items)."""
        import torch

        from fedrec.training.network import threads_for

        network, rows = self._network, binary_rows(histories)
        scores = np.empty(histories.shape, np.float32)
        for start in range(0, histories.shape[0], _ROWS_AT_ONCE):
            some = rows[start : start + _ROWS_AT_ONCE]
            with threads_for(network, some.shape[0]):
                vectors = self._fold_in(some)
                with torch.no_grad():
                    shown = network.scores(some, vectors)
            scores[start : start + _ROWS_AT_ONCE] = shown.cpu().numpy()
        return scores

    def restrict(self, positions: np.ndarray, public: PublicInputs) -> NetworkScorer:
        """The same network over a shop's own items."""
        places = positions
        if self.trained is not None:
            places = np.where(positions >= 0, self.trained[1][positions], -1)
        origin = self if self.trained is None else self.trained[0]
        return NetworkScorer(self.model, self.model.project(self.arrays, positions, public), public, (origin, places))

    def _fold_in(self, rows: sparse.csr_matrix) -> Tensor | None:
        """Private vectors of these rows, where the network has such."""
        if self.trained is None or not self._network.num_shopper_values:
            return self._network.fold_in(rows)
        origin, places = self.trained
        coo = rows.tocoo()
        columns = places[coo.col]
        known, shape = columns >= 0, (rows.shape[0], origin.public.num_items)
        there = sparse.csr_matrix((coo.data[known], (coo.row[known], columns[known])), shape=shape)
        return origin._network.fold_in(binary_rows(there))
