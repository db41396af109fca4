"""The federation's rounds inside a comparison: Flower's apps on the scenario's engine, with the final training rows."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.config import SimulationSettings
from fedrec.federation.anchors import shop_keys
from fedrec.federation.plan import RoundPlan
from fedrec.federation.run_record import RoundRecord
from fedrec.federation.terms import Terms
from fedrec.flower.engines import Federation, RunOptions, Trained, run_local, run_with_ray
from fedrec.flower.local_grid import Faults
from fedrec.models.recommender import Recommender, State
from fedrec.secure_aggregation.keys import IdentityKey
from fedrec.secure_aggregation.parameters import Parameters, usual_threshold
from fedrec.shop.node import FILES_FOLDER
from fedrec.simulation.columns import judge, shared_scorer
from fedrec.simulation.coordinator_view import CoordinatorView
from fedrec.simulation.progress import Progress
from fedrec.simulation.world import Stage, World, queries, training_rows

CHECKPOINT = "checkpoint.safetensors"
KEYS_FOLDER = "keys"
EXPECTED_SHARE = 0.8


def federate(
    settings: SimulationSettings,
    world: World,
    model: Recommender,
    run_dir: Path,
    *,
    resume: bool,
    progress: Progress,
) -> tuple[Trained, list[dict[str, Any]]]:
    """Run all rounds that are left.

    Returns:
        The shared arrays with the records of all rounds, and the learning curve: test NDCG@10 of the shared model after
        each round of a model that improves over rounds (`Recommender`'s ``is_iterative``), else empty.
    """
    curve: list[dict[str, Any]] = []
    limit, seed = settings.evaluation.max_test_shoppers_per_shop, settings.seed
    is_iterative = bool(getattr(model, "is_iterative", False))
    asked = [queries(shop, Stage.FINAL, limit=limit, seed=seed) for shop in world.shops] if is_iterative else []

    def on_round(record: RoundRecord, state: State) -> None:
        if is_iterative:
            scorer = model.fit(state, world.public)
            values = [
                judge(shared_scorer(world, scorer, place), shop, seed=seed)
                for place, shop in enumerate(asked)
                if shop.targets.nnz
            ]
            value = float(np.mean([shop.mean() for shop in values])) if values else None
            curve.append({"round": record.index + 1, "ndcg@10": value})

    def on_reply(plan: RoundPlan, heard: int) -> None:
        if heard == 1:
            progress.phase(f"round {plan.index + 1}: {plan.spec.name}", len(plan.terms.roster))
        progress.advance()

    is_secure = bool(settings.federation.secure)
    view = (
        CoordinatorView(run_dir, "federated", is_masked=is_secure)
        if settings.federation.reveal_coordinator_view
        else None
    )
    options = RunOptions(
        checkpoint=run_dir / CHECKPOINT,
        resume=resume,
        on_round=on_round,
        on_reply=on_reply,
        on_message=view,
    )
    roster = tuple(shop.name for shop in world.shops)
    identities = shop_keys(run_dir / KEYS_FOLDER, len(roster)) if is_secure else ()
    min_shops = settings.federation.min_shops
    if identities:
        min_shops = max(min_shops, usual_min_shops(len(roster)))
    federation = Federation(
        model,
        world.public,
        Terms(
            roster=roster,
            min_shops=min_shops,
            run_id=run_id_of(settings, world),
            secure=secure_parameters(roster, identities, min_shops=min_shops, colluders=1) if identities else None,
        ),
        [shop.shared(training_rows(shop, Stage.FINAL), world.public.num_items) for shop in world.shops],
        identities=identities,
        shoppers=[shop.shoppers for shop in world.shops],
    )
    return run_rounds(settings, federation, options, run_dir), curve


def secure_parameters(
    roster: tuple[str, ...], identities: Sequence[IdentityKey], *, min_shops: int, colluders: int
) -> Parameters:
    """What the simulation's shops agree on for secure aggregation."""
    keys = [identity.public for identity in identities]
    return Parameters.of(roster, keys, min_shops=min_shops, colluders=colluders)


def usual_min_shops(num_shops: int) -> int:
    """Fewest shops of a masked sum where nobody says it: four of five, and as many as one colluder calls for."""
    return max(math.ceil(EXPECTED_SHARE * num_shops), usual_threshold(num_shops, 1))


def run_rounds(settings: SimulationSettings, federation: Federation, options: RunOptions, run_dir: Path) -> Trained:
    """All rounds of a federation on the scenario's engine, with its faults."""
    try:
        if settings.federation.engine == "ray":
            return run_with_ray(federation, options, run_dir=run_dir)
        faults = Faults(**settings.federation.faults.model_dump())
        return run_local(federation, options, workers=settings.federation.workers, faults=faults, run_dir=run_dir)
    finally:
        # What other processes read holds shoppers' histories; nobody needs it any more.
        shutil.rmtree(run_dir / FILES_FOLDER, ignore_errors=True)


def run_id_of(settings: SimulationSettings, world: World) -> str:
    """Names the run by what must not change when it is resumed: seed, split and data."""
    what = [settings.seed, world.split.description, world.account["fingerprint"]]
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]
