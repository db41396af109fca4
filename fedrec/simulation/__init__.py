"""A whole comparison on one machine: from events to ranked lists, figures and a report.

`simulate` runs every column of a comparison on the same split: shops alone, the federation through real Flower rounds,
the federation personalised, all data pooled. The figures are the researcher's own: they come from raw data.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.config import SimulationSettings, read_scenario
from fedrec.data.split import SplitKind
from fedrec.errors import ConfigError
from fedrec.evaluation.gains import gain_table
from fedrec.evaluation.tables import Evaluation, evaluate_lists
from fedrec.federation.run_record import RunRecord, epsilon_of, family_of
from fedrec.flower.engines import Trained, require_ray
from fedrec.models import load_model
from fedrec.models.neural import NeuralModel
from fedrec.shop.personalise import Choice
from fedrec.simulation import outputs
from fedrec.simulation.columns import Chosen, Search
from fedrec.simulation.comparison import Lists, main_column, rank_columns
from fedrec.simulation.private_columns import PrivateColumns, check_promises, private_columns
from fedrec.simulation.progress import Progress, quiet
from fedrec.simulation.rounds import check_rounds, federate, learning_curve
from fedrec.simulation.world import World, prepare

__all__ = ["Run", "simulate"]

_JOINED = ("federated", "federated_personal", "federated_dp", "federated_dp_personal")
_SIZE_BOUNDS = (100, 1_000, 10_000)


@dataclass(frozen=True)
class Run:
    """A finished comparison.

    Attributes:
        record: what ``run.json`` holds.
        run_dir: where it, the lists, the split, the model and the report are.
        evaluation: every figure of every test shopper, for statistics of one's own.
        shoppers: by shop, the ids of those shoppers, in the same order.
    """

    record: RunRecord
    run_dir: Path
    evaluation: Evaluation
    shoppers: Mapping[str, np.ndarray]


class _Clock:
    """Seconds spent in each named part of a run."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        return {**self._seconds, "total": time.perf_counter() - self._started}


def simulate(
    settings: SimulationSettings | Mapping[str, Any] | str | Path,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Run a comparison and leave its run directory.

    Args:
        settings: a scenario: checked settings, nested plain values as in a scenario file, or the file's path.
        out: run directory; must not exist unless ``resume``. None = runs/<name>-<UTC time>.
        resume: go on with the finished rounds in ``out``.
        progress: told about phases and steps; None = nobody.

    Raises:
        ConfigError, DataError, PrivacyError: a setting or the data cannot be used, or a promise not be made;
            nothing was written.
        TooFewShops: a round had fewer shops than ``min_shops``; finished rounds stay for ``resume``.
    """
    settings, progress = _checked(settings), progress or quiet
    model = load_model(settings.model.name, settings.model.settings)
    if isinstance(model, NeuralModel):
        model.check_here()
    if settings.federation.engine == "ray":
        require_ray()
    run_dir = outputs.choose_run_dir(settings, out, resume=resume)
    clock = _Clock()
    with clock.part("load and split"):
        progress.phase("load and split", None)
        world = prepare(settings)
    if settings.privacy.epsilons:
        with clock.part("find the noise"):
            progress.phase("find the noise", None)
            check_promises(settings, world, model)
    check_rounds(settings, world, model)
    outputs.write_world(run_dir, settings, world)
    search = Search(world, settings, model, progress)
    with clock.part("choose settings"):
        chosen = search.run(settings.evaluation.columns)
    with clock.part("federated rounds"):
        trained = Trained({})
        if set(settings.evaluation.columns) & {"federated", "federated_personal"}:
            trained = federate(settings, world, chosen.shared, run_dir, resume=resume, progress=progress)
    main = main_column(settings)
    with clock.part("private rounds and lists"):
        private = private_columns(settings, world, chosen, model, run_dir, main=main, progress=progress)
    with clock.part("rank"):
        outputs.write_model(run_dir, settings, trained.state, chosen, private, world)
        lists = rank_columns(settings, world, chosen, trained, private, progress)
        outputs.write_lists(run_dir, world, lists, main)
    with clock.part("evaluate"):
        progress.phase("evaluate", None)
        evaluation, tables = _evaluate(settings, world, chosen, private, lists)
    curve = learning_curve(trained.rounds) or _one_point_curve(len(trained.rounds), tables)
    record = outputs.make_record(
        settings, world, chosen, search.trials, trained, private, curve, tables, clock.seconds()
    )
    outputs.write_record(run_dir, record)
    return Run(record, run_dir, evaluation, lists.shoppers)


def _checked(given: SimulationSettings | Mapping[str, Any] | str | Path) -> SimulationSettings:
    if isinstance(given, SimulationSettings):
        return given
    if isinstance(given, Mapping):
        return SimulationSettings.from_mapping(given)
    if isinstance(given, str | Path):
        return read_scenario(given)
    raise ConfigError(f"settings of type {type(given).__name__}: give SimulationSettings, a mapping or a file's path")


def _evaluate(
    settings: SimulationSettings, world: World, chosen: Chosen, private: PrivateColumns, lists: Lists
) -> tuple[Evaluation, dict[str, Any]]:
    """Every shopper's figures, and the record's "scores", "gain", "gain_by_epsilon" and "compatibility"."""
    rng = np.random.default_rng([settings.seed, 1])
    evaluation = evaluate_lists(
        lists.tests,
        lists.items,
        rng=rng,
        ks=settings.evaluation.ks,
        is_recall_capped=world.split.description["kind"] == SplitKind.STRONG,
        resamples=settings.evaluation.bootstrap,
    )
    decisions = {"federated_personal": _decisions(world, chosen.choices)} | private.decisions
    gains: dict[str, dict[str, Any]] = {}
    for column in evaluation.columns if "local" in evaluation.columns else ():
        if column == main_column(settings) or family_of(column) == "federated_dp_personal":
            gains[column] = _gain(evaluation, world, column, decisions.get(column), rng)
    main = main_column(settings)
    return evaluation, {
        "scores": evaluation.scores,
        "gain": gains[main] if main in gains and family_of(main) in _JOINED else None,
        "gain_by_epsilon": [
            {"epsilon": float(epsilon_of(column)), **gain} for column, gain in gains.items() if epsilon_of(column)
        ],
        "compatibility": lists.compatibility,
    }


def _gain(
    evaluation: Evaluation,
    world: World,
    column: str,
    decisions: Mapping[str, tuple[str, str]] | None,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """What shops gain by one column over their local models, and by size of shop."""
    sizes = {shop.name: len(shop.shoppers) for shop in world.shops}
    if decisions is None:
        decisions = dict.fromkeys(sizes, ("joins", "no personalisation: every shop serves the shared model"))
    return gain_table(
        evaluation, of=column, over="local", rng=rng, shoppers=sizes, decisions=decisions, classes=size_classes(sizes)
    )


def _decisions(world: World, choices: tuple[Choice, ...]) -> dict[str, tuple[str, str]] | None:
    if not choices:
        return None
    return {
        shop.name: ("joins" if choice.joins else "stays local", choice.reason)
        for shop, choice in zip(world.shops, choices, strict=True)
    }


def size_classes(sizes: Mapping[str, int]) -> dict[str, list[str]]:
    """Shops by their number of shoppers: under 100, then in powers of ten; empty classes are left out."""
    edges = [0, *_SIZE_BOUNDS, math.inf]
    classes = {}
    for low, high in itertools.pairwise(edges):
        shops = [shop for shop, size in sizes.items() if low <= size < high]
        name = f"under {high:,} shoppers" if low == 0 else f"{low:,} to {high - 1:,.0f} shoppers"
        if shops:
            classes[f"{low:,} shoppers and more" if high == math.inf else name] = shops
    return classes


def _one_point_curve(num_rounds: int, tables: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A model solved once after its last round has one point."""
    federated = tables["scores"].get("federated")
    if federated is None:
        return []
    return [{"round": num_rounds, "ndcg@10": federated["macro"]["ndcg@10"]["mean"]}]
