"""A neural recommender under differential privacy: DP-SGD steps of the whole federation, or of every shop by itself.

Round "popularity" sums the shoppers' unit-norm rows; its noisy sum picks the K items that the network covers and starts
its output bias. Then every "gradient step" samples shoppers at a public rate q, clips each one's whole gradient to C
and sums; the coordinator divides the noisy sum by the *public* number of shoppers and moves the shared arrays by Adam.
With n shops that sample at the same q this is one step of central DP-SGD over all shoppers. In "local steps"
(``private_rounds = "local-update"``) every shop takes S such steps by itself, each on a noisy sum of its own with all
of the noise, divided by the number of shoppers that it *declared*, and answers with its change times that number; the
coordinator averages. Items outside the K come last, in the order of noisy popularity.

**Guarantee:** each sum has an L2 sensitivity of C per shopper, whatever the batch: a gradient depends on the round's
arrays, her own row and her own draws alone (`fedrec.training.dp_sgd`), and nothing is divided by a number that depends
on who is in the data. What the coordinator does with the sums is post-processing; so is what a shop does with its own
noisy sums in local steps, whose every sum is charged (`fedrec.federation.release.PrivateDoor.release_update`). A vector
of a single shopper is folded in from the shared arrays and never leaves; `own_statistics` stays in the shop.
**Source:** Abadi et al. 2016, arXiv:1607.00133, algorithm 1, with Poisson sampling (Mironov et al. 2019,
arXiv:1908.10530); deviation: the unit is a shopper with all her events, not an example. Local steps that are averaged:
Noble et al. 2022, arXiv:2111.09278 (their DP-FedAvg); deviation: Adam in the shop.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy import sparse

from fedrec.errors import ConfigError
from fedrec.models.item_item import most_popular, selected_columns
from fedrec.models.neural import NetworkScorer, NeuralModel, NeuralSettings, check_whole, weighted_change
from fedrec.models.popularity import ItemCounts, binary_rows, covered_rows, mix_arrays, popularity_round, take
from fedrec.models.private_rules import item_item_rules
from fedrec.models.recommender import (
    LARGEST_ARRAY,
    WEIGHT,
    Contributions,
    Gradients,
    Layout,
    NoisySum,
    PublicInputs,
    RoundKind,
    RoundSpec,
    State,
    sampled_gradients,
)
from fedrec.privacy.mechanisms import Outlook, ReleaseRequest
from fedrec.training.adaptive_clip import (
    LEARNING_RATE,
    MOST_TIMES,
    WITHIN,
    QuantileGradients,
    next_clip_norm,
    parted,
)
from fedrec.training.server_step import memory_of, server_step, without_memory

if TYPE_CHECKING:
    from fedrec.privacy.draws import Draws
    from fedrec.training.network import Network

STEP, LOCAL_STEPS = "gradient step", "local steps"
_POPULARITY_SHARE = 0.1
_ADAM_FLOOR = 1e-8
_OWN = ("popularity", "popularity_noise", "covered")
_CLIP_NORM = "server.clip_norm"
"""The next step's clip norm, with the coordinator's memory; where it follows a quantile."""


@dataclass(frozen=True, kw_only=True)
class PrivateNeuralSettings(NeuralSettings):
    """What public rules chose for a private neural model.

    Attributes:
        base: ``module:Class`` of the model whose network it is.
        network: JSON object: that model's settings.
        released_items: K, number of items that the network covers; >= 1.
        public_shoppers: declared number of shoppers of the whole federation; >= 1.
    """

    base: str = "smallae"
    network: str = "{}"
    released_items: int = 600
    public_shoppers: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "released_items", "public_shoppers")


@dataclass(frozen=True)
class PrivateNeural(NeuralModel):
    """A neural recommender trained by the whole federation's DP-SGD steps."""

    name: ClassVar[str] = "private-neural"
    settings: PrivateNeuralSettings = field(default_factory=PrivateNeuralSettings)
    num_statistics_rounds: ClassVar[int] = 1

    @property
    def base(self) -> NeuralModel:
        """The model whose network is trained.

        Raises:
            ConfigError: a private variant again: a shop's policy looks at one base, not at a base's own; or a model
                that no private steps are for.
        """
        from fedrec.models import load_model

        model: Any = load_model(self.settings.base, json.loads(self.settings.network))
        if isinstance(model, PrivateNeural):
            raise ConfigError(f"base {self.settings.base!r} is a private variant itself: give the model that it trains")
        if not isinstance(model, PrivatelyTrainable):
            raise ConfigError(f"base {self.settings.base!r} has no private steps: give a model that has")
        return model

    def make_network(self, num_items: int) -> Network:
        """The base model's."""
        return self.base.make_network(num_items)

    def plan_round(self, index: int, state: State, public: PublicInputs) -> RoundSpec | None:
        """Popularity, then gradient steps or local updates of noisy steps."""
        number = index - self.num_statistics_rounds
        if number < 0:
            return self.plan_statistics(index, state, public)
        settings = self.settings
        if number >= settings.private_steps // (settings.private_local_steps if settings.is_privately_local else 1):
            return None
        step = self._step(self._shared(state), state["covered"])
        if not settings.is_privately_local:
            return step if settings.private_clip_quantile is None else self._with_count(step, state)
        layout = Layout((*step.layout.shapes, (WEIGHT, (1,))))
        inputs = {**step.inputs, "round": np.array([number])}
        return RoundSpec(RoundKind.LOCAL_UPDATE, LOCAL_STEPS, layout, inputs, step.sampling_rate)

    def plan_statistics(self, index: int, state: State, public: PublicInputs) -> RoundSpec:
        """The rounds before the first step."""
        return popularity_round(public)

    def contributions(self, spec: RoundSpec, histories: sparse.csr_matrix) -> Contributions:
        """Unit-norm rows."""
        return ItemCounts(binary_rows(histories), exponent=0.5)

    def gradients(self, spec: RoundSpec, histories: sparse.csr_matrix, draws: Draws) -> Gradients:
        """Of the sampled shoppers, in float64; with their count within the clip norm where that follows a quantile.

        Raises:
            BadMessage: the round's arrays, items or clip norm are not this model's.
        """
        from fedrec.training.seats import SeatedGradients

        inputs = dict(spec.inputs)
        covered, clip_norm = inputs.pop("covered"), inputs.pop(_CLIP_NORM, None)
        network = self.network_with(inputs, len(covered)).double()
        rows = binary_rows(selected_columns(histories, covered))
        gradients = SeatedGradients(network, rows, draws)
        if clip_norm is None:
            return gradients
        return QuantileGradients(gradients, float(clip_norm[0]), self.settings.private_clip_norm)

    def local_steps(self, spec: RoundSpec, noisy_sum: NoisySum, *, steps: int, num_shoppers: int) -> np.ndarray:
        """What S steps of Adam on (noisy sum) / (q x declared shoppers) change, times that number; the number.

        Adam starts anew in every round, so that a shop keeps nothing between rounds. After each step the arrays are
        moved into +-`LARGEST_ARRAY`, where the bound on a shopper's gradient holds.
        """
        first = {name: spec.inputs[name] for name, _ in spec.layout.shapes if name != WEIGHT}
        done = int(spec.inputs["round"][0]) * self.settings.private_local_steps
        arrays, memory = first, State()
        for number in range(done, done + steps):
            step = self._step(arrays, spec.inputs["covered"])
            sums = step.layout.split(noisy_sum(step))
            arrays, memory = self._adam(arrays, sums, memory, number, num_shoppers)
            arrays = {name: values.clip(-LARGEST_ARRAY, LARGEST_ARRAY) for name, values in arrays.items()}
        return weighted_change(first, arrays, num_shoppers)

    def local_update(self, spec: RoundSpec, histories: sparse.csr_matrix, draws: Draws) -> np.ndarray:
        """`local_steps` on plain sums of gradients, without clip or noise: raw, for research."""
        numbers = itertools.count()

        def plain_sum(step: RoundSpec) -> np.ndarray:
            gradients, num_sampled = sampled_gradients(self, step, histories, draws.of(f"step {next(numbers)}"))
            return gradients.total(np.ones(num_sampled))

        if not histories.shape[0]:
            return np.zeros(spec.layout.size)
        return self.local_steps(
            spec, plain_sum, steps=self.settings.private_local_steps, num_shoppers=histories.shape[0]
        )

    def advance(
        self, spec: RoundSpec, state: State, total: np.ndarray, public: PublicInputs, *, noise_sd: float = 0.0
    ) -> State:
        """Popularity starts the network; a step moves it by Adam on (noisy sum) / (q x public shoppers).

        Local updates move it by their mean over declared shoppers, as the strategy takes it.
        """
        if spec.kind is RoundKind.STATISTICS:
            return self.advance_statistics(spec, state, total, public, noise_sd)
        if spec.kind is RoundKind.LOCAL_UPDATE:
            return {**self._kept(state), **super().advance(spec, state, total, public)}
        memory = memory_of(state)
        done = float(memory["server.step"][0]) if memory else 0.0
        arrays = {name: spec.inputs[name] for name, _ in spec.layout.shapes if name != WITHIN}
        layout, clip_norm = self._step(arrays, spec.inputs["covered"]).layout, State()
        if _CLIP_NORM in spec.inputs:
            total, clip_norm = self._without_count(spec, total)
        moved, memory = self._adam(arrays, layout.split(total), memory, done, self.settings.public_shoppers)
        return {**self._kept(state), **moved, **memory, **clip_norm}

    def _with_count(self, step: RoundSpec, state: State) -> RoundSpec:
        """The step at the clip norm that the last one left, and with the count that the next one follows from."""
        clip_norm = state.get(_CLIP_NORM, np.array([self.settings.private_clip_norm]))
        layout = Layout((*step.layout.shapes, (WITHIN, (1,))))
        return replace(step, layout=layout, inputs={**step.inputs, _CLIP_NORM: clip_norm})

    def _without_count(self, spec: RoundSpec, total: np.ndarray) -> tuple[np.ndarray, State]:
        """The noisy sum of gradients in their own units, and the next step's clip norm from the noisy count."""
        settings, clip_norm = self.settings, float(spec.inputs[_CLIP_NORM][0])
        assert settings.private_clip_quantile is not None
        agreed = settings.private_clip_norm
        gradients, count = parted(total, clip_norm=clip_norm, agreed=agreed)
        moved = next_clip_norm(
            clip_norm,
            count,
            expected_batch=settings.private_sampling_rate * settings.public_shoppers,
            quantile=settings.private_clip_quantile,
            learning_rate=LEARNING_RATE,
        )
        bounded = min(max(moved, agreed / MOST_TIMES), agreed * MOST_TIMES, LARGEST_ARRAY)
        return gradients, {_CLIP_NORM: np.array([bounded])}

    def _step(self, arrays: State, covered: np.ndarray) -> RoundSpec:
        """A gradient step at these arrays."""
        layout = Layout(tuple((name, tuple(values.shape)) for name, values in arrays.items()))
        inputs = {**arrays, "covered": covered}
        return RoundSpec(RoundKind.GRADIENT_STEP, STEP, layout, inputs, self.settings.private_sampling_rate)

    def _adam(self, arrays: State, sums: State, memory: State, done: float, num_shoppers: int) -> tuple[State, State]:
        """The arrays after a step on noisy sums, and Adam's memory; ``done`` steps were taken before."""
        settings = self.settings
        expected = settings.private_sampling_rate * num_shoppers
        return server_step(
            "fedadam",
            {name: np.asarray(values, np.float32) for name, values in arrays.items()},
            {name: -values / expected for name, values in sums.items()},
            memory,
            learning_rate=settings.private_learning_rate * (1 - done / settings.private_steps),
            tau=_ADAM_FLOOR,
        )

    def advance_statistics(
        self, spec: RoundSpec, state: State, total: np.ndarray, public: PublicInputs, noise_sd: float
    ) -> State:
        """Noisy popularity, the K items that it puts first, and the arrays that the first step starts from."""
        covered = most_popular(total, self.settings.released_items)
        known = {"popularity": total.copy(), "popularity_noise": np.array([noise_sd]), "covered": covered}
        return {**known, **self.first_arrays(known, public)}

    def first_arrays(self, state: State, public: PublicInputs) -> State:
        """The network as its seed starts it, at noisy popularity."""
        return self.arrays_at(covered_popularity(state))

    def fit(self, state: State, public: PublicInputs) -> CoveredScorer:
        """The network over the covered items, popularity for the others."""
        covered = state["covered"]
        inner = PublicInputs(public.items[covered], None if public.content is None else public.content[covered])
        return CoveredScorer(NetworkScorer(self.base, self._shared(state), inner), covered, state["popularity"])

    def project(self, state: State, positions: np.ndarray, public: PublicInputs) -> State:
        """The arrays of the covered items that the shop has; popularity at its items."""
        inner = covered_rows(state["covered"], len(state["popularity"]), positions)
        covered = np.flatnonzero(inner >= 0)
        arrays = super().project(self._shared(state), inner[covered], PublicInputs(public.items[covered]))
        return {
            "popularity": take(state["popularity"], positions),
            "popularity_noise": state["popularity_noise"],
            "covered": covered.astype(np.int64),
            **arrays,
        }

    def own_statistics(self, state: State, histories: sparse.csr_matrix, public: PublicInputs) -> State:
        """The arrays fine-tuned on the shop's own shoppers, and their popularity; they never leave it."""
        rows = selected_columns(histories, state["covered"])
        arrays = super().own_statistics(self._shared(state), rows, public)
        counts = ItemCounts(binary_rows(histories), exponent=0.5).total(np.ones(histories.shape[0]))
        return {"popularity": counts, "popularity_noise": np.zeros(1), "covered": state["covered"], **arrays}

    def mix(self, state: State, own: State, *, global_share: float) -> State:
        """Arrays between the shared and the fine-tuned ones, popularity likewise."""
        return {**mix_arrays(without_memory(state), own, global_share=global_share), "covered": state["covered"]}

    def _kept(self, state: State) -> State:
        return {name: state[name] for name in _OWN}

    def _shared(self, state: State) -> State:
        rest = {name: values for name, values in state.items() if name not in _OWN}
        return super()._shared(rest)


def step_requests(settings: NeuralSettings, share: float) -> ReleaseRequest:
    """The steps as one kind of noisy sum, with ``share`` of the budget over all of them.

    T steps at a rate q cost about T (q / sigma)^2, where one release of everybody costs 1 / sigma^2.
    """
    local_steps = settings.private_local_steps if settings.is_privately_local else 0
    return ReleaseRequest(
        LOCAL_STEPS if local_steps else STEP,
        share / (settings.private_steps * settings.private_sampling_rate**2),
        clip_norm=settings.private_clip_norm,
        sampling_rate=settings.private_sampling_rate,
        repeats=settings.private_steps // max(1, local_steps),
        local_steps=local_steps,
    )


class PrivatelyTrainable(NeuralModel):
    """A neural model that can also be trained under a privacy budget.

    Attributes:
        private_network: settings of the smaller network that is trained then; noise grows with the number of values.
    """

    private_network: ClassVar[Mapping[str, Any]] = {}

    def release_requests(self, crowd: float | None = None) -> tuple[ReleaseRequest, ...]:
        """Popularity with a tenth of the budget, then the gradient steps."""
        return (
            ReleaseRequest("popularity", _POPULARITY_SHARE, clip_norm=1.0),
            step_requests(self.settings, 1 - _POPULARITY_SHARE),
        )

    def private(self, outlook: Outlook, public: PublicInputs) -> PrivateNeural:
        """K by the rule of the item-item models.

        Raises:
            NoPrivateVariant: its network mixes shoppers, or gradients cannot be bounded; tried on made-up rows.
        """
        found = PrivateNeural(private_settings(self, outlook, public, dict(self.private_network)))
        _check_network(found.base)
        return found


@lru_cache(maxsize=8)
def _check_network(model: NeuralModel) -> None:
    """`fedrec.training.network_check` on made-up shoppers.

    In a shop a network that is refused would count as zeros in every step, and the noise be all that is learned from.
    """
    import torch

    from fedrec.privacy.draws import Draws, shopper_digests
    from fedrec.training.network_check import check_network, check_seats

    rows = sparse.csr_matrix(np.tri(3, 8, dtype=np.float32))
    network = model.make_network(8).double()
    draws = Draws.seeded("made up", shopper_digests(range(3)))
    check_network(network, network.batch(rows, draws, torch.zeros(3, network.num_shopper_values)))
    check_seats(model.make_network(64).double())


def private_settings(
    model: NeuralModel, outlook: Outlook, public: PublicInputs, network: dict[str, Any]
) -> PrivateNeuralSettings:
    """Settings of the private variant: public rules and what the scenario says, never what was tuned.

    Raises:
        ConfigError: a clip norm that follows a quantile, and people with accounts in several shops.
    """
    from fedrec.models import reference_of

    settings = model.settings
    if settings.private_clip_quantile is not None and outlook.max_shops_per_person > 1:
        raise ConfigError(
            f"private_clip_quantile with max_shops_per_person = {outlook.max_shops_per_person}: the count is read for "
            "one account a person; leave one of them out"
        )
    own = {name: value for name, value in asdict(settings).items() if name in NeuralSettings.__dataclass_fields__}
    same = {name: own[name] for name in ("init_seed", "device", "batch_shoppers", "learning_rate")}
    return PrivateNeuralSettings(
        **own,
        base=reference_of(model),
        network=json.dumps({**same, **network}, sort_keys=True),
        released_items=item_item_rules(outlook, public).released_items,
        public_shoppers=outlook.public_shoppers,
    )


def covered_popularity(state: State) -> np.ndarray:
    """float64, (K,): of each covered item, none under the noise."""
    floor = max(float(state["popularity_noise"][0]), 1e-3)
    return np.maximum(state["popularity"][state["covered"]], floor)


@dataclass(frozen=True, eq=False)
class CoveredScorer:
    """A network over some items of an item space, and the rest by popularity below them.

    Attributes:
        inner: over the covered items.
        covered: int64, ascending positions in the item space.
        popularity: float64, (num_items,).
    """

    inner: NetworkScorer
    covered: np.ndarray
    popularity: np.ndarray

    def scores(self, histories: sparse.csr_matrix) -> np.ndarray:
        """float32, (num_rows, num_items)."""
        shape = (histories.shape[0], len(self.popularity))
        top = float(np.abs(self.popularity).max(initial=0)) or 1.0
        scores = np.broadcast_to((self.popularity / top).astype(np.float32), shape).copy()
        if len(self.covered):
            inner = self.inner.scores(selected_columns(histories, self.covered))
            scores += inner.min(axis=1, keepdims=True) - 2
            scores[:, self.covered] = inner
        return scores

    def restrict(self, positions: np.ndarray, public: PublicInputs) -> CoveredScorer:
        """The same over a shop's own items."""
        inner = covered_rows(self.covered, len(self.popularity), positions)
        covered = np.flatnonzero(inner >= 0).astype(np.int64)
        content = None if public.content is None else public.content[covered]
        of_shop = self.inner.restrict(inner[covered], PublicInputs(public.items[covered], content))
        return CoveredScorer(of_shop, covered, take(self.popularity, positions))
