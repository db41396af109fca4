"""The federation's rounds inside a comparison: Flower's apps on the scenario's engine, with the final training rows."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.config import SimulationSettings
from fedrec.errors import ConfigError, DataError, NotFinite
from fedrec.federation.anchors import shop_keys
from fedrec.federation.early_stopping import EarlyStopping
from fedrec.federation.plan import RoundPlan
from fedrec.federation.run_record import RoundRecord
from fedrec.federation.terms import Terms
from fedrec.flower.engines import Federation, RunOptions, Trained, run_local, run_with_ray
from fedrec.flower.local_grid import Faults
from fedrec.flower.server_app import Measure
from fedrec.models.recommender import LOSS, LocalModel, Recommender, State
from fedrec.privacy.settings import check_masked, usual_min_shops
from fedrec.reports.summary import score
from fedrec.secure_aggregation.keys import IdentityKey
from fedrec.secure_aggregation.parameters import Parameters
from fedrec.shop.node import FILES_FOLDER
from fedrec.simulation.columns import judge, objective, shared_scorer
from fedrec.simulation.coordinator_view import CoordinatorView
from fedrec.simulation.progress import Progress
from fedrec.simulation.world import Stage, World, queries, training_rows

CHECKPOINT = "checkpoint.safetensors"
TEST, VALIDATION = "ndcg@10", "validation ndcg@10"
"""Names of a round's figures: of the shared model on test and on validation shoppers."""
KEYS_FOLDER = "keys"


def federate(
    settings: SimulationSettings,
    world: World,
    model: Recommender,
    run_dir: Path,
    *,
    resume: bool,
    progress: Progress,
) -> Trained:
    """Run all rounds that are left, as far as `EarlyStopping` lets them; the records hold the learning curve.

    A model that improves over rounds (`Recommender`'s ``is_iterative``) is measured after each. Where rounds may stop
    early the shops train without their validation events.
    """
    is_iterative, patience = _is_iterative(model), settings.federation.patience

    def on_round(record: RoundRecord, state: State) -> None:
        if is_iterative:
            progress.result(f"round {record.index + 1}: {figures_in_words(record.figures)}")

    def on_reply(plan: RoundPlan, heard: int) -> None:
        if heard == 1:
            name = f"rounds: {plan.spec.name}" if is_iterative else f"round {plan.index + 1}: {plan.spec.name}"
            progress.phase(name, len(plan.terms.asked(plan.spec.kind, plan.index, plan.attempt)))
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
        measure=_measure(settings, world, model) if is_iterative else None,
        stopping=None if patience is None else EarlyStopping(VALIDATION, patience),
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
            shops_per_round=settings.federation.num_asked(len(roster)),
        ),
        [shop.shared(training_rows(shop, shared_stage(settings)), world.public.num_items) for shop in world.shops],
        identities=identities,
        shoppers=[shop.shoppers for shop in world.shops],
    )
    return run_rounds(settings, federation, options, run_dir)


def shared_stage(settings: SimulationSettings) -> Stage:
    """The rows that federation and pooled model learn from: without validation events where these stop the rounds."""
    return Stage.FINAL if settings.federation.patience is None else Stage.CHOOSE


def stopped_after(settings: SimulationSettings, trained: Trained) -> int | None:
    """How many rounds the served arrays have; None where rounds may not stop early."""
    if settings.federation.patience is None:
        return None
    best = EarlyStopping(VALIDATION, settings.federation.patience).best(trained.rounds)
    return len(trained.rounds) if best is None else best + 1


def learning_curve(rounds: Sequence[RoundRecord]) -> list[dict[str, Any]]:
    """What was measured after each round, for the run record."""
    return [{"round": one.index + 1, **one.figures} for one in rounds if TEST in one.figures]


def figures_in_words(figures: Mapping[str, float | None]) -> str:
    """A round's figures, of the federation as a whole: "loss 6.812, NDCG@10 .0912, on validation .0810"."""
    written = {LOSS: "loss {:.4g}".format, TEST: lambda value: f"NDCG@10 {score(value)}"}
    written[VALIDATION] = lambda value: f"on validation {score(value)}"
    return ", ".join(write(figures[name]) for name, write in written.items() if figures.get(name) is not None)


def _measure(settings: SimulationSettings, world: World, model: Recommender) -> Measure:
    """The shared model's test NDCG@10, mean over all shops, and what settings are chosen by on validation.

    **Guarantee:** none: both are figures on raw data, for the researcher.
    """
    most, seed = settings.evaluation.max_test_shoppers_per_shop, settings.seed
    curve = settings.evaluation.max_curve_shoppers_per_shop
    stages: dict[str, tuple[Stage, int | None]] = {TEST: (Stage.FINAL, curve if most is None else min(most, curve))}
    if settings.federation.patience is not None:
        stages[VALIDATION] = Stage.CHOOSE, most
    asked = {
        name: [queries(shop, stage, limit=limit, seed=seed) for shop in world.shops]
        for name, (stage, limit) in stages.items()
    }

    def measure(state: State) -> dict[str, float | None]:
        scorer = model.fit(state, world.public)
        figures: dict[str, float | None] = {}
        for name, of_shops in asked.items():
            try:
                values = [
                    judge(shared_scorer(world, scorer, place), shop, seed=seed)
                    for place, shop in enumerate(of_shops)
                    if shop.targets.nnz
                ]
            except DataError as error:
                raise NotFinite(
                    f"the rounds ended with a shared model that cannot rank ({error}); finished rounds are kept; give "
                    "smaller learning rates"
                ) from error
            if name == VALIDATION:
                figures[name] = objective(values)
            else:
                figures[name] = float(np.mean([shop.mean() for shop in values])) if values else None
        return figures

    return measure


def check_rounds(settings: SimulationSettings, world: World, model: Recommender) -> None:
    """Refuse rounds that this model or these shops cannot have, before anything is written.

    Raises:
        ConfigError: fewer shops asked than needed or than there are, a part of them for sums, or rounds to be stopped
            that the model does not have or nothing to stop them by.
        PrivacyError: see `least_answers`.
    """
    federation, num_shops = settings.federation, len(world.shops)
    least, asked = least_answers(settings, num_shops), federation.num_asked(num_shops)
    if asked is not None and not isinstance(model, LocalModel):
        raise ConfigError(
            f"federation.shops_per_round = {federation.shops_per_round:g}: model '{model.name}' is made of sums over "
            "every shop; leave it out, or give a model of local updates, such as multvae"
        )
    if asked is not None and not least <= asked <= num_shops:
        raise ConfigError(
            f"federation.shops_per_round = {federation.shops_per_round:g} asks {asked} of {num_shops} shops a round; "
            f"give at least federation.min_shops ({least}) and at most all"
        )
    if federation.patience is None:
        return
    if not _is_iterative(model):
        raise ConfigError(
            f"federation.patience = {federation.patience}: model '{model.name}' is done when its sums are there, no "
            "round improves it; leave it out"
        )
    if not any(shop.validation.nnz for shop in world.shops):
        raise ConfigError(
            f"federation.patience = {federation.patience}: the split holds no validation events to stop by; give one "
            "that does (data.split_settings.validation_share above 0)"
        )


def _is_iterative(model: Recommender) -> bool:
    return bool(getattr(model, "is_iterative", False))


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
