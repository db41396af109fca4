"""Every column's ranked lists for the same test shoppers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from fedrec.config import Progress, SimulationSettings
from fedrec.evaluation.tables import ShopTest
from fedrec.models import settings_of
from fedrec.models.popularity import Popularity
from fedrec.models.recommender import Recommender, Scorer, State, train_alone
from fedrec.shop.personalise import Choice, blended
from fedrec.simulation.columns import joined_scorer, local_scorer, rank, shared_scorer
from fedrec.simulation.sampled import Sampled, pool, sampled
from fedrec.simulation.world import Queries, Stage, World, pooled_rows, queries, training_rows

ScorerOf = Callable[[int], Scorer]


@dataclass(frozen=True)
class Chosen:
    """What the search on validation ended with.

    Attributes:
        local, shared, personal: the model with the settings of each column.
        choices: per shop in roster order, empty where no personalised column is wanted.
    """

    local: Recommender
    shared: Recommender
    personal: Recommender
    choices: tuple[Choice, ...] = field(default_factory=tuple)


@dataclass(frozen=True)
class Lists:
    """What every column recommends to the same test shoppers.

    Attributes:
        tests: per shop in roster order, what the test shoppers took.
        shoppers: per shop the ids of those shoppers.
        items: column -> shop -> int32 (num_rows, list_length), positions in the shop's catalogue, -1 = no item left.
        scores: shop -> float32 (num_rows, list_length), of the main column.
        compatibility: column -> figure -> mean under sampled negatives; None where not asked for.
    """

    tests: list[ShopTest]
    shoppers: dict[str, np.ndarray]
    items: dict[str, dict[str, np.ndarray]]
    scores: dict[str, np.ndarray]
    compatibility: dict[str, dict[str, float]] | None


def main_column(settings: SimulationSettings) -> str:
    """The column whose lists a run leaves: the most that a shop gets without giving up its data."""
    order = ("federated_personal", "federated", "local", "pooled", "popularity")
    return next(column for column in order if column in settings.evaluation.columns)


def rank_columns(settings: SimulationSettings, world: World, chosen: Chosen, state: State, progress: Progress) -> Lists:
    """Lists of every wanted column, as long as the largest k, for every shop's test shoppers.

    Args:
        state: the federation's final shared arrays.
    """
    limit, seed, k = settings.evaluation.max_test_shoppers_per_shop, settings.seed, max(settings.evaluation.ks)
    asked = [queries(shop, Stage.FINAL, limit=limit, seed=seed) for shop in world.shops]
    items: dict[str, dict[str, np.ndarray]] = {}
    scores: dict[str, np.ndarray] = {}
    under_sampling: dict[str, list[Sampled]] = {}
    for column in settings.evaluation.columns:
        progress.phase(f"rank: {column}", len(world.shops))
        scorer_of = _scorers(column, world, chosen, state)
        items[column], under_sampling[column] = {}, []
        for place, shop in enumerate(world.shops):
            listed = np.empty((0, k), np.int32), np.empty((0, k), np.float32)
            if len(asked[place].rows):
                scorer = scorer_of(place)
                listed = rank(scorer, asked[place], k, seed=seed)
                if settings.evaluation.sampled_negatives:
                    trained = shop.train[asked[place].rows]
                    under_sampling[column].append(sampled(scorer, asked[place], trained, seed=seed))
            items[column][shop.name] = listed[0]
            if column == main_column(settings):
                scores[shop.name] = listed[1]
            progress.advance()
    tests = [_test(world, place, shop) for place, shop in enumerate(asked)]
    names = {shop.name: shop.shoppers[asked[place].rows] for place, shop in enumerate(world.shops)}
    return Lists(tests, names, items, scores, pool(under_sampling))


def _scorers(column: str, world: World, chosen: Chosen, state: State) -> ScorerOf:
    """How a column serves the shop at a place of the roster."""
    match column:
        case "popularity":
            return partial(local_scorer, world, Popularity(), stage=Stage.FINAL)
        case "local":
            return partial(_alone, world, chosen)
        case "federated":
            return partial(shared_scorer, world, chosen.shared.fit(state, world.public))
        case "pooled":
            pooled = train_alone(chosen.shared, pooled_rows(world, Stage.FINAL), world.public)
            return partial(shared_scorer, world, chosen.shared.fit(pooled, world.public))
        case "federated_personal":
            return partial(_personal, world, chosen, state)
    raise ValueError(f"no such column: {column}")


def _alone(world: World, chosen: Chosen, place: int) -> Scorer:
    scorer = local_scorer(world, chosen.local, place, Stage.FINAL)
    if not chosen.choices:
        return scorer
    rows = training_rows(world.shops[place], Stage.FINAL)
    return blended(scorer, chosen.choices[place].local_blend, rows, world.shop_public[place])


def _personal(world: World, chosen: Chosen, state: State, place: int) -> Scorer:
    """The personalised global model where the shop joins, else its local model."""
    choice = chosen.choices[place]
    if not choice.joins:
        return _alone(world, chosen, place)
    scorer = joined_scorer(world, chosen.personal, state, place, Stage.FINAL, global_share=choice.global_share)
    rows = training_rows(world.shops[place], Stage.FINAL)
    return blended(scorer, choice.blend, rows, world.shop_public[place])


def _test(world: World, place: int, asked: Queries) -> ShopTest:
    shop = world.shops[place]
    rows = training_rows(shop, Stage.FINAL)
    popularity = np.bincount(rows.indices, minlength=len(shop.items))
    return ShopTest(
        shop=shop.name,
        test=asked.targets,
        known=asked.known,
        popularity=popularity.astype(np.int64),
        num_shoppers=int(np.count_nonzero(np.diff(rows.indptr))),
        missing=asked.missing,
        content=world.shop_public[place].content,
    )


def settings_by_column(settings: SimulationSettings, chosen: Chosen) -> dict[str, dict[str, Any]]:
    """Each column's model settings, for the record."""
    models = {"local": chosen.local, "federated": chosen.shared, "pooled": chosen.shared}
    models["federated_personal"] = chosen.personal
    return {column: settings_of(models[column]) for column in settings.evaluation.columns if column in models}
