"""The columns of a comparison: which model serves each shop in each of them, and how its settings were chosen.

Every column searches the same settings on the same validation shoppers and gets the same public item content.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fedrec.config import SimulationSettings
from fedrec.evaluation.metrics import hit_matrix, ndcg, relevant_counts
from fedrec.evaluation.ranking import top_items
from fedrec.models import load_model, reference_of, settings_of
from fedrec.models.popularity import PopularityScorer, take
from fedrec.models.recommender import Recommender, Scorer, State
from fedrec.models.whole_space import ReleasedFactor, has_whole_space, whole_space_scorer
from fedrec.shop.personalise import (
    JOINED_BLENDS,
    LOCAL_BLENDS,
    Blend,
    Choice,
    Components,
    combine,
    decide,
    mixed_scorer,
)
from fedrec.simulation.progress import Progress
from fedrec.simulation.world import Queries, Stage, World, queries, train_once, training_rows

_BATCH_ROWS = 1024
_CHOICE_K = 10


def rank(scorer: Scorer, asked: Queries, k: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranked lists of the shoppers asked for: items int32 and scores float32, (num_queries, k)."""
    items, scores = [], []
    for start in range(0, len(asked.rows), _BATCH_ROWS):
        known = asked.known[start : start + _BATCH_ROWS]
        rows = asked.rows[start : start + _BATCH_ROWS]
        best, value = top_items(scorer.scores(known), known, k, seed=seed, row_ids=rows)
        items.append(best)
        scores.append(value)
    if not items:
        return np.empty((0, k), np.int32), np.empty((0, k), np.float32)
    return np.concatenate(items), np.concatenate(scores)


def judge(scorer: Scorer, asked: Queries, *, seed: int, k: int = _CHOICE_K) -> np.ndarray:
    """float64: NDCG@k of each shopper asked for who has a target in the shop's catalogue."""
    return _figures(rank(scorer, asked, k, seed=seed)[0], asked, k=k)


def judge_blends(parts: Components, blends: Sequence[Blend], asked: Queries, *, seed: int) -> list[np.ndarray]:
    """`judge` of every blend; each component scores a batch of shoppers once for all of them."""
    if not asked.targets.nnz:
        return [np.empty(0) for _ in blends]
    names = sorted({name for blend in blends for name in blend if parts.has(name)})
    listed: list[list[np.ndarray]] = [[] for _ in blends]
    for start in range(0, len(asked.rows), _BATCH_ROWS):
        batch = slice(start, start + _BATCH_ROWS)
        scores = {name: parts[name].scores(asked.known[batch]) for name in names}
        for blend, lists in zip(blends, listed, strict=True):
            mixture = combine([(weight, scores[name]) for name, weight in blend.items() if name in scores])
            lists.append(top_items(mixture, asked.known[batch], _CHOICE_K, seed=seed, row_ids=asked.rows[batch])[0])
    return [_figures(np.concatenate(lists), asked) for lists in listed]


def _figures(items: np.ndarray, asked: Queries, *, k: int = _CHOICE_K) -> np.ndarray:
    """float64: NDCG@k of each shopper who has a target in the shop's catalogue."""
    relevant = relevant_counts(asked.targets)
    is_judged = relevant > 0
    return ndcg(hit_matrix(items, asked.targets)[is_judged], relevant[is_judged], k=k)


def objective(values: Sequence[np.ndarray]) -> float:
    """What settings are chosen by, from NDCG@10 per shopper of each shop.

    Half the mean over shops (a shop of three shoppers counts like one of three thousand) and half the mean over
    shoppers (which the large shops decide): either alone is noisier.
    """
    asked = [shop for shop in values if len(shop)]
    if not asked:
        return 0.0
    macro = float(np.mean([shop.mean() for shop in asked]))
    return (macro + float(np.concatenate(asked).mean())) / 2


def local_scorer(world: World, model: Recommender, place: int, stage: Stage) -> Scorer:
    """A shop on its own."""
    return model.fit(train_once(world, model, place, stage), world.shop_public[place])


def shared_scorer(world: World, scorer: Scorer, place: int) -> Scorer:
    """The shared model over one shop's catalogue."""
    return scorer.restrict(world.shops[place].positions, world.shop_public[place])


def components(
    world: World,
    place: int,
    stage: Stage,
    *,
    local: Recommender,
    shared: Recommender,
    state: State,
    scorer: Scorer | None,
    global_share: float,
    released: ReleasedFactor | None = None,
) -> Components:
    """What one shop can blend.

    Args:
        local, shared: models with the settings of either column.
        state: the shared arrays; empty where the comparison has no shared model.
        scorer: the shared model, solved over the shared item space; None likewise.
        global_share: of the shared arrays in the mixed model, in [0, 1].
        released: the shared arrays of a private release as a factor, where there is a whole-space model.
    """
    shop, public = world.shops[place], world.shop_public[place]
    rows = training_rows(shop, stage)
    trained: dict[str, Callable[[], Scorer]] = {"local": partial(local_scorer, world, local, place, stage)}
    if scorer is not None:
        trained["global"] = partial(shared_scorer, world, scorer, place)
        trained["mixed"] = partial(mixed_scorer, shared, state, shop.positions, rows, public, global_share=global_share)
    if world.whole.is_small_enough and has_whole_space(local):
        trained["local_wide"] = partial(whole_space_scorer, world.whole, shop.positions, rows, public)
    if released is not None:
        trained["wide"] = partial(whole_space_scorer, world.whole, shop.positions, rows, public, released)
        trained["shared_popularity"] = partial(PopularityScorer, take(state["popularity"], shop.positions))
    return Components(trained, rows, public)


@dataclass(frozen=True)
class Trial:
    """One setting or blend that was tried for one column: `objective` on validation."""

    column: str
    settings: Mapping[str, Any]
    value: float

    def to_json(self) -> dict[str, Any]:
        """For the run record."""
        return {"column": self.column, "settings": dict(self.settings), "ndcg@10": self.value}


@dataclass(frozen=True)
class Chosen:
    """What the search on validation ended with.

    Attributes:
        local, shared: the model with the settings of either column.
        local_blends, joined_blends: what each shop serves alone and joined, in roster order; empty where no column
            needs them.
        choices: each shop's decision in roster order; empty where no personalised column is wanted.
        alone: NDCG@10 of each shop's local blend per validation shopper, in roster order; empty likewise.
    """

    local: Recommender
    shared: Recommender
    local_blends: tuple[Blend, ...] = ()
    joined_blends: tuple[Blend, ...] = ()
    choices: tuple[Choice, ...] = ()
    alone: tuple[np.ndarray, ...] = ()

    def blend(self, column: str, place: int) -> Blend:
        """What a column serves at the shop at a place of the roster."""
        match column:
            case "popularity":
                return {"popularity": 1.0}
            case "local":
                return self.local_blends[place]
            case "federated_personal":
                return self.joined_blends[place] if self.choices[place].joins else self.local_blends[place]
        return {"global": 1.0}


class Search:
    """Chooses settings and blends on validation: the same candidates for shops alone and joined."""

    def __init__(self, world: World, settings: SimulationSettings, model: Recommender, progress: Progress) -> None:
        self.world = world
        self.model = model
        self.trials: list[Trial] = []
        self._personalisation = settings.personalisation
        self._seed = settings.seed
        self._tune = settings.model.tune
        self._given = frozenset(settings.model.settings)
        is_wide = world.whole.is_small_enough and has_whole_space(model)
        local_blends = [blend for blend in LOCAL_BLENDS if is_wide or "local_wide" not in blend]
        self._local_blends = tuple(local_blends if self._tune else local_blends[:1])
        self._joined_blends = JOINED_BLENDS if self._tune else JOINED_BLENDS[:1]
        self._progress = progress
        limit = settings.evaluation.max_test_shoppers_per_shop
        self._validation = [queries(shop, Stage.CHOOSE, limit=limit, seed=self._seed) for shop in world.shops]

    def run(self, columns: Collection[str]) -> Chosen:
        """Everything that the wanted columns need."""
        local, shared, state, scorer = self.model, self.model, State(), None
        wants_local = bool({"local", "federated_personal", "federated_dp_personal"} & set(columns))
        if wants_local:
            local = self._local()
        if {"federated", "federated_personal", "pooled"} & set(columns):
            shared, trained = self._shared()
            if "federated_personal" in columns:
                state = trained(shared)
                scorer = shared.fit(state, self.world.public)
        if not wants_local:
            return Chosen(local, shared)
        alone, joined = self._blend_values(local, shared, state, scorer)
        local_blends = self._best_blends("local", self._local_blends, alone)
        of_local = tuple(alone[self._local_blends.index(blend)][place] for place, blend in enumerate(local_blends))
        if "federated_personal" not in columns:
            return Chosen(local, shared, local_blends, alone=of_local)
        joined_blends = self._best_blends("federated_personal", self._joined_blends, joined)
        choices = tuple(
            decide(of_local[place], joined[self._joined_blends.index(blend)][place], self._personalisation)
            for place, blend in enumerate(joined_blends)
        )
        return Chosen(local, shared, local_blends, joined_blends, choices, of_local)

    def _local(self) -> Recommender:
        """The settings for shops alone."""

        def value(model: Recommender) -> float:
            return self._objective(lambda place: local_scorer(self.world, model, place, Stage.CHOOSE))

        return self._best("local", value)

    def _shared(self) -> tuple[Recommender, Callable[[Recommender], State]]:
        """The settings for the shared model, and its shared arrays without validation events once they are asked for.

        Pooled and federated run the same sums, so one search serves both; the rounds of the final model go through
        Flower.
        """
        kept: dict[str, Any] = {}

        def trained(model: Recommender) -> State:
            if kept.get("key") != statistics_key(model):
                kept.update(key=statistics_key(model), state=train_once(self.world, model, None, Stage.CHOOSE))
            return kept["state"]

        def value(model: Recommender) -> float:
            scorer = model.fit(trained(model), self.world.public)
            return self._objective(lambda place: shared_scorer(self.world, scorer, place))

        return self._best("federated", value), trained

    def _blend_values(
        self, local: Recommender, shared: Recommender, state: State, scorer: Scorer | None
    ) -> tuple[list[list[np.ndarray]], list[list[np.ndarray]]]:
        """NDCG@10 per validation shopper of every blend, by blend and shop: of shops alone, and joined."""
        blends = (*self._local_blends, *(self._joined_blends if scorer is not None else ()))
        self._progress.phase("shops choose", len(self.world.shops))
        values: list[list[np.ndarray]] = [[] for _ in blends]
        for place, asked in enumerate(self._validation):
            parts = components(
                self.world,
                place,
                Stage.CHOOSE,
                local=local,
                shared=shared,
                state=state,
                scorer=scorer,
                global_share=self._personalisation.global_share(len(self.world.shops[place].shoppers)),
            )
            for figures, of_blend in zip(judge_blends(parts, blends, asked, seed=self._seed), values, strict=True):
                of_blend.append(figures)
            self._progress.advance()
        return values[: len(self._local_blends)], values[len(self._local_blends) :]

    def _best_blends(
        self, column: str, blends: Sequence[Blend], values: Sequence[Sequence[np.ndarray]]
    ) -> tuple[Blend, ...]:
        """Each shop's blend: its own best where it has the validation shoppers to tell, else that of all such shops."""
        for blend, shops in zip(blends, values, strict=True):
            self.trials.append(Trial(column, blend, objective(shops)))
        sizes = [len(shop) for shop in values[0]]
        is_small = [size < self._personalisation.min_validation_shoppers for size in sizes]
        of_small = [objective([shop for shop, small in zip(shops, is_small, strict=True) if small]) for shops in values]
        common = int(np.argmax(of_small)) if any(of_small) else int(np.argmax([objective(shops) for shops in values]))
        best = [
            common if small else int(np.argmax([shops[place].mean() for shops in values]))
            for place, small in enumerate(is_small)
        ]
        return tuple(blends[number] for number in best)

    def _objective(self, scorer_of: Callable[[int], Scorer]) -> float:
        return objective(
            [
                judge(scorer_of(place), asked, seed=self._seed)
                for place, asked in enumerate(self._validation)
                if asked.targets.nnz
            ]
        )

    def _best(self, column: str, value: Callable[[Recommender], float]) -> Recommender:
        """Coordinate search over the settings that the scenario leaves open: the best value of each is kept."""
        best, best_value = self.model, -1.0
        if not self._tune or not any(asked.targets.nnz for asked in self._validation):
            return best
        candidates = {name: values for name, values in best.candidates().items() if name not in self._given}
        if self.world.public.content is None:
            candidates = {name: values for name, values in candidates.items() if not name.startswith("content_")}
        if not candidates:
            return best
        self._progress.phase(f"choose settings: {column}", sum(map(len, candidates.values())))
        tried: set[Recommender] = set()
        for name, values in candidates.items():
            trials = [with_settings(best, **{name: setting}) for setting in values]
            for trial in trials:
                if trial not in tried:
                    tried.add(trial)
                    reached = value(trial)
                    self.trials.append(Trial(column, settings_of(trial), reached))
                    if reached > best_value:
                        best, best_value = trial, reached
                self._progress.advance()
        return best


def with_settings(model: Recommender, **changes: Any) -> Recommender:
    """The model with some of its settings changed."""
    reference = reference_of(model)
    return load_model(reference, {**settings_of(model), **changes})


def fit_fields(model: Recommender) -> frozenset[str]:
    """Settings that only change how statistics are solved, not what shops send."""
    return frozenset(getattr(model, "fit_fields", ()))


def statistics_key(model: Recommender) -> tuple[tuple[str, Any], ...]:
    """The settings that change what shops send: equal keys ask for equal sums."""
    return tuple((name, value) for name, value in settings_of(model).items() if name not in fit_fields(model))
