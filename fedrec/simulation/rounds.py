"""The federation's rounds inside a comparison: Flower's apps on the scenario's engine, with the final training rows."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.config import SimulationSettings
from fedrec.federation.plan import RoundPlan
from fedrec.federation.run_record import RoundRecord
from fedrec.federation.terms import Terms
from fedrec.flower.engines import Federation, RunOptions, Trained, run_local, run_with_ray
from fedrec.flower.local_grid import Faults
from fedrec.models.recommender import Recommender, State
from fedrec.shop.node import FILES_FOLDER
from fedrec.simulation.columns import judge, shared_scorer
from fedrec.simulation.progress import Progress
from fedrec.simulation.world import Stage, World, queries, training_rows

CHECKPOINT = "checkpoint.safetensors"


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

    options = RunOptions(
        checkpoint=run_dir / CHECKPOINT,
        resume=resume,
        on_round=on_round,
        on_reply=on_reply,
    )
    federation = Federation(
        model,
        world.public,
        Terms(
            roster=tuple(shop.name for shop in world.shops),
            min_shops=settings.federation.min_shops,
            run_id=run_id_of(settings, world),
        ),
        [shop.shared(training_rows(shop, Stage.FINAL), world.public.num_items) for shop in world.shops],
    )
    return run_rounds(settings, federation, options, run_dir), curve


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
