"""Every column's ranked lists for the same test shoppers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedrec.config import PRIVATE_COLUMNS, SimulationSettings
from fedrec.evaluation.tables import ShopTest
from fedrec.federation.run_record import noisy_column
from fedrec.flower.engines import Trained
from fedrec.models import settings_of
from fedrec.models.recommender import Scorer
from fedrec.simulation.columns import Chosen, components, rank, shared_scorer
from fedrec.simulation.private_columns import PrivateColumns
from fedrec.simulation.progress import Progress
from fedrec.simulation.rounds import shared_stage, stopped_after
from fedrec.simulation.sampled import Sampled, pool, sampled
from fedrec.simulation.world import Queries, Stage, World, queries, train_once, training_rows


@dataclass(frozen=True)
class Lists:
    """What every column recommends to the same test shoppers.

    Attributes:
        tests: per shop in roster order, what the test shoppers took.
        shoppers: per shop the ids of those shoppers.
        items: column -> shop -> int32 (num_rows, list_length), positions in the shop's catalogue, -1 = no item left;
            (num_draws, num_rows, list_length) under differential privacy.
        scores: shop -> float32 (num_rows, list_length), of the main column.
        compatibility: column -> figure -> mean under sampled negatives; None where not asked for.
    """

    tests: list[ShopTest]
    shoppers: dict[str, np.ndarray]
    items: dict[str, dict[str, np.ndarray]]
    scores: dict[str, np.ndarray]
    compatibility: dict[str, dict[str, float]] | None


_MOST_FOR_A_SHOP = (
    *("federated_dp_personal", "federated_dp", "dp_popularity"),
    *("federated_personal", "federated", "local", "pooled", "popularity"),
)


def columns_of(settings: SimulationSettings) -> tuple[str, ...]:
    """The wanted columns in their order, those under differential privacy once for each epsilon, the least first."""
    columns: list[str] = []
    for name in settings.evaluation.columns:
        if name in PRIVATE_COLUMNS:
            columns += [noisy_column(name, epsilon) for epsilon in sorted(settings.privacy.epsilons)]
        else:
            columns.append(name)
    return tuple(columns)


def main_column(settings: SimulationSettings) -> str:
    """The column whose lists a run leaves: the most that a shop gets without giving up its data.

    Under differential privacy that is a private column, of the first epsilon given.
    """
    columns = columns_of(settings)
    first = next(iter(settings.privacy.epsilons), 0.0)
    order = [noisy_column(name, first) if name in PRIVATE_COLUMNS else name for name in _MOST_FOR_A_SHOP]
    return next(column for column in order if column in columns)


def rank_columns(
    settings: SimulationSettings,
    world: World,
    chosen: Chosen,
    trained: Trained,
    private: PrivateColumns,
    progress: Progress,
) -> Lists:
    """Lists of every wanted column, as long as the largest k, for every shop's test shoppers.

    Args:
        trained: the federation's outcome; without arrays where no column needs them.
        private: the columns under differential privacy, ranked already.
    """
    columns = [name for name in settings.evaluation.columns if name not in PRIVATE_COLUMNS]
    seed, k, state = settings.seed, max(settings.evaluation.ks), trained.state
    limit = settings.evaluation.max_test_shoppers_per_shop
    asked = [queries(shop, Stage.FINAL, limit=limit, seed=seed) for shop in world.shops]
    progress.phase("solve the shared models", None)
    scorer = chosen.shared.fit(state, world.public) if {"federated", "federated_personal"} & set(columns) else None
    pooled = _pooled(settings, world, chosen, trained) if "pooled" in columns else None
    items: dict[str, dict[str, np.ndarray]] = {column: {} for column in columns}
    scores: dict[str, np.ndarray] = {}
    under_sampling: dict[str, list[Sampled]] = {column: [] for column in columns}
    progress.phase("rank", len(world.shops))
    for place, shop in enumerate(world.shops):
        parts = components(
            world,
            place,
            Stage.FINAL,
            local=chosen.local,
            shared=chosen.shared,
            state=state,
            scorer=scorer,
            global_share=settings.personalisation.global_share(len(shop.shoppers)),
        )
        for column in columns:
            listed = np.empty((0, k), np.int32), np.empty((0, k), np.float32)
            if len(asked[place].rows):
                if column == "pooled" and pooled is not None:
                    served = shared_scorer(world, pooled, place)
                else:
                    served = parts.blend(chosen.blend(column, place))
                listed = rank(served, asked[place], k, seed=seed)
                if settings.evaluation.sampled_negatives:
                    trained = shop.train[asked[place].rows]
                    under_sampling[column].append(sampled(served, asked[place], trained, seed=seed))
            items[column][shop.name] = listed[0]
            if column == main_column(settings):
                scores[shop.name] = listed[1]
        progress.advance()
    tests = [_test(world, place, shop) for place, shop in enumerate(asked)]
    names = {shop.name: shop.shoppers[asked[place].rows] for place, shop in enumerate(world.shops)}
    items = {column: (items | private.items)[column] for column in columns_of(settings)}
    if private.served is not None:
        scores = private.served.scores
    return Lists(tests, names, items, scores, pool(under_sampling))


def _pooled(settings: SimulationSettings, world: World, chosen: Chosen, trained: Trained) -> Scorer:
    """The shared model trained on everybody's rows in one place, on what and for as long as the federation's."""
    stage, rounds = shared_stage(settings), stopped_after(settings, trained)
    return chosen.shared.fit(train_once(world, chosen.shared, None, stage, rounds=rounds), world.public)


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
    """Model settings of each column that a search chose them for, for the record."""
    models = {"local": chosen.local}
    models |= dict.fromkeys(("federated", "federated_personal", "pooled"), chosen.shared)
    return {column: settings_of(models[column]) for column in settings.evaluation.columns if column in models}
