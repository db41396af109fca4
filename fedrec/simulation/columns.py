"""The columns of a comparison: which model serves each shop in each of them, and how its settings were chosen.

Every column searches the same settings on the same validation shoppers and gets the same public item content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fedrec.config import Progress, SimulationSettings
from fedrec.evaluation.metrics import hit_matrix, ndcg, relevant_counts
from fedrec.evaluation.ranking import top_items
from fedrec.models import load_model, settings_of
from fedrec.models.recommender import Recommender, Scorer, State, train_alone
from fedrec.shop.personalise import Choice, PersonalisationSettings, choose, personal_scorer
from fedrec.simulation.world import Queries, Stage, World, pooled_rows, queries, training_rows

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


def judge(scorer: Scorer, asked: Queries, *, seed: int) -> np.ndarray:
    """float64: NDCG@10 of each shopper asked for who has a target in the shop's catalogue."""
    items, _ = rank(scorer, asked, _CHOICE_K, seed=seed)
    relevant = relevant_counts(asked.targets)
    is_judged = relevant > 0
    return ndcg(hit_matrix(items, asked.targets)[is_judged], relevant[is_judged], k=_CHOICE_K)


def mean_value(asked: Sequence[Queries], scorer_of: Callable[[int], Scorer], *, seed: int) -> float:
    """Mean over shops of their shoppers' mean NDCG@10; ``scorer_of`` gives the scorer by place in the roster."""
    means = [judge(scorer_of(place), shop, seed=seed).mean() for place, shop in enumerate(asked) if shop.targets.nnz]
    return float(np.mean(means)) if means else 0.0


def local_scorer(world: World, model: Recommender, place: int, stage: Stage) -> Scorer:
    """A shop on its own."""
    public = world.shop_public[place]
    return model.fit(train_alone(model, training_rows(world.shops[place], stage), public), public)


def shared_scorer(world: World, scorer: Scorer, place: int) -> Scorer:
    """The shared model over one shop's catalogue."""
    return scorer.restrict(world.shops[place].positions, world.shop_public[place])


def joined_scorer(
    world: World, model: Recommender, state: State, place: int, stage: Stage, *, global_share: float
) -> Scorer:
    """The shared statistics with the shop's own."""
    shop, public = world.shops[place], world.shop_public[place]
    rows = training_rows(shop, stage)
    return personal_scorer(model, state, shop.positions, rows, public, global_share=global_share)


@dataclass(frozen=True)
class Trial:
    """One setting that was tried for one column: mean over shops of validation NDCG@10."""

    column: str
    settings: dict[str, Any]
    value: float

    def to_json(self) -> dict[str, Any]:
        """For the run record."""
        return {"column": self.column, "settings": self.settings, "ndcg@10": self.value}


class Search:
    """Chooses settings on validation: the same candidates for every column, one setting after another."""

    def __init__(self, world: World, settings: SimulationSettings, model: Recommender, progress: Progress) -> None:
        self.world = world
        self.model = model
        self.personalisation = PersonalisationSettings()
        self.trials: list[Trial] = []
        self._seed = settings.seed
        self._tune = settings.model.tune
        self._progress = progress
        limit = settings.evaluation.max_test_shoppers_per_shop
        self._validation = [queries(shop, Stage.CHOOSE, limit=limit, seed=self._seed) for shop in world.shops]

    def local(self) -> Recommender:
        """The settings for shops alone."""

        def value(model: Recommender) -> float:
            return self._mean_value(lambda place: local_scorer(self.world, model, place, Stage.CHOOSE))

        return self._best("local", self.model, value)

    def shared(self) -> tuple[Recommender, State]:
        """The settings for the shared model, and its shared arrays without validation events.

        Pooled and federated run the same sums, so one search serves both; the rounds of the final model go through
        Flower.
        """
        rows = pooled_rows(self.world, Stage.CHOOSE)
        states: dict[tuple[tuple[str, Any], ...], State] = {}

        def state_of(model: Recommender) -> State:
            key = statistics_key(model)
            if key not in states:
                states.clear()
                states[key] = train_alone(model, rows, self.world.public)
            return states[key]

        def value(model: Recommender) -> float:
            scorer = model.fit(state_of(model), self.world.public)
            return self._mean_value(lambda place: shared_scorer(self.world, scorer, place))

        model = self._best("federated", self.model, value)
        return model, state_of(model)

    def personal(self, model: Recommender, state: State) -> Recommender:
        """The settings for the personalised model, around those of the shared one (whose statistics it takes over)."""
        share = self.personalisation.default_share

        def value(trial: Recommender) -> float:
            return self._mean_value(
                lambda place: joined_scorer(self.world, trial, state, place, Stage.CHOOSE, global_share=share)
            )

        return self._best("federated_personal", model, value, only=fit_fields(model))

    def shops(self, local: Recommender, personal: Recommender, state: State) -> Iterator[Choice]:
        """Each shop's own choice on its validation shoppers, in roster order."""
        self._progress.phase("shops choose", len(self.world.shops))
        for place, shop in enumerate(self.world.shops):
            yield choose(
                local=partial(local_scorer, self.world, local, place, Stage.CHOOSE),
                joined=partial(self._joined, personal, state, place),
                judge=partial(judge, asked=self._validation[place], seed=self._seed),
                num_judges=len(self._validation[place].rows),
                shop=shop,
                histories=training_rows(shop, Stage.CHOOSE),
                public=self.world.shop_public[place],
                settings=self.personalisation,
            )
            self._progress.advance()

    def _joined(self, model: Recommender, state: State, place: int, share: float) -> Scorer:
        return joined_scorer(self.world, model, state, place, Stage.CHOOSE, global_share=share)

    def _mean_value(self, scorer_of: Callable[[int], Scorer]) -> float:
        return mean_value(self._validation, scorer_of, seed=self._seed)

    def _best(
        self,
        column: str,
        start: Recommender,
        value: Callable[[Recommender], float],
        *,
        only: frozenset[str] | None = None,
    ) -> Recommender:
        """Coordinate search over the model's candidates: the best value of each setting is kept for the next."""
        best, best_value = start, -1.0
        if not self._tune or not any(len(asked.rows) for asked in self._validation):
            return best
        candidates = {name: v for name, v in start.candidates().items() if only is None or name in only}
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
    reference = f"{type(model).__module__}:{type(model).__qualname__}"
    return load_model(reference, {**settings_of(model), **changes})


def fit_fields(model: Recommender) -> frozenset[str]:
    """Settings that only change how statistics are solved, not what shops send."""
    return frozenset(getattr(model, "fit_fields", ()))


def statistics_key(model: Recommender) -> tuple[tuple[str, Any], ...]:
    """The settings that change what shops send: equal keys ask for equal sums."""
    return tuple((name, value) for name, value in settings_of(model).items() if name not in fit_fields(model))
