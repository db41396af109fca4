"""The federation's rounds inside a comparison: Flower's apps on the scenario's engine, with the final training rows."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.config import SimulationSettings
from fedrec.errors import ConfigError
from fedrec.federation.anchors import shop_keys
from fedrec.federation.plan import RoundPlan
from fedrec.federation.run_record import RoundRecord
from fedrec.federation.terms import Terms
from fedrec.flower.engines import Federation, RunOptions, Trained, run_local, run_with_ray
from fedrec.flower.local_grid import Faults
from fedrec.models.recommender import Recommender, State
from fedrec.privacy.settings import check_masked, usual_min_shops
from fedrec.secure_aggregation.keys import IdentityKey
from fedrec.secure_aggregation.parameters import Parameters
from fedrec.shop.node import FILES_FOLDER
from fedrec.simulation.columns import judge, shared_scorer
from fedrec.simulation.coordinator_view import CoordinatorView
from fedrec.simulation.progress import Progress
from fedrec.simulation.world import Stage, World, queries, training_rows

CHECKPOINT = "checkpoint.safetensors"
KEYS_FOLDER = "keys"


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

    view = (
        CoordinatorView(run_dir, "federated", is_masked=settings.is_masked)
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
    identities = shop_keys(run_dir / KEYS_FOLDER, len(roster)) if settings.is_masked else ()
    min_shops, colluders = least_answers(settings, len(roster)), colluders_of(settings)
    secure = None
    if identities:
        secure = secure_parameters(roster, identities, min_shops=min_shops, colluders=colluders)
    federation = Federation(
        model,
        world.public,
        Terms(
            roster=roster,
            min_shops=min_shops,
            run_id=run_id_of(settings, world),
            secure=secure,
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


def least_answers(settings: SimulationSettings, num_shops: int) -> int:
    """Fewest shops of the sums without noise.

    Raises:
        ConfigError: more are demanded than there are shops.
        PrivacyError: fewer than masks need, or nobody honest among the shops.
    """
    given, colluders = settings.federation.min_shops, colluders_of(settings)
    if given is not None and given > num_shops:
        raise ConfigError(f"federation.min_shops = {given}: there are {num_shops} shops; give at most so many")
    if not settings.is_masked:
        return given or 1
    least = usual_min_shops(num_shops, colluders) if given is None else given
    check_masked(num_shops, min_shops=least, colluders=colluders, key="federation")
    return least


def colluders_of(settings: SimulationSettings) -> int:
    """Shops against whom the masks of sums without noise hold: as many as the promise beside them assumes, else 1."""
    return settings.privacy.colluders if settings.privacy.epsilons else 1


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
