"""The run directory: what a comparison leaves behind, and who may write where."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save

from fedrec.config import SimulationSettings
from fedrec.errors import ConfigError, StoreError
from fedrec.federation.run_record import (
    RoundRecord,
    RunRecord,
    num_cores,
    num_threads,
    package_versions,
    peak_memory_bytes,
    remove_leftovers,
    write_atomically,
)
from fedrec.flower.engines import Trained
from fedrec.models.recommender import State
from fedrec.privacy.settings import epsilon_name
from fedrec.reports.comparison import write_report
from fedrec.shop.personalise import PRIVATE_GLOBAL_SHARE
from fedrec.shop.served import write_choices
from fedrec.simulation.columns import Chosen, Trial
from fedrec.simulation.comparison import Lists, columns_of, main_column, settings_by_column
from fedrec.simulation.private_columns import PrivateColumns
from fedrec.simulation.rounds import CHECKPOINT, VALIDATION, stopped_after
from fedrec.simulation.world import World

SCENARIO = "scenario.json"
NO_GUARANTEE = "none: research mode; shops' sums leave unprotected"
NO_GUARANTEE_MASKED = "none: research mode; sums without noise, though the coordinator sees only those over shops"


def choose_run_dir(settings: SimulationSettings, out: str | Path | None, *, resume: bool) -> Path:
    """The run directory, not made yet.

    Raises:
        ConfigError: it exists and ``resume`` is not set, or it is there with another scenario, or nothing is to resume.
    """
    if out is None:
        if resume:
            raise ConfigError("--resume needs the run directory: give it with --out")
        return Path("runs") / f"{settings.name}-{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}"
    run_dir = Path(out)
    if not run_dir.exists():
        return run_dir
    if not resume:
        raise ConfigError(f"{run_dir}: exists already; choose another --out, or go on with it by --resume")
    if not run_dir.is_dir() or not (run_dir / SCENARIO).is_file():
        raise ConfigError(f"{run_dir}: holds no run to resume ({SCENARIO} is missing)")
    try:
        written = json.loads((run_dir / SCENARIO).read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{run_dir / SCENARIO}: cannot be read; choose another --out") from error
    if written != _scenario(settings):
        raise ConfigError(f"{run_dir}: was made with other settings; give the same ones, or another --out")
    if (run_dir / "run.json").exists():
        raise ConfigError(f"{run_dir}: this run is finished, nothing is left to resume; choose another --out")
    remove_leftovers(run_dir)
    return run_dir


def write_world(run_dir: Path, settings: SimulationSettings, world: World) -> None:
    """Make the run directory with the scenario, the catalogue and the split."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{run_dir}: cannot be made ({error.strerror}); choose another --out") from error
    if (run_dir / CHECKPOINT).exists():
        return  # finished rounds belong to the split that is here; the checkpoint refuses another one
    write_atomically(run_dir / SCENARIO, json.dumps(_scenario(settings), indent=1).encode())
    _write_table(run_dir / "items.parquet", world.items.table.reset_index(names="item"))
    split = world.split.events.table[["shop", "shopper", "item"]].copy()
    for name in ("timestamp", "order"):
        if name in world.split.events.table:
            split[name] = world.split.events.table[name]
    split["part"] = world.split.parts
    _write_table(run_dir / "split.parquet", split)


def write_model(
    run_dir: Path, settings: SimulationSettings, state: State, chosen: Chosen, private: PrivateColumns, world: World
) -> None:
    """What the main column serves: shared arrays, the order of their items, and every shop's blend."""
    folder = run_dir / "model"
    folder.mkdir(exist_ok=True)
    shared, served, column = chosen.shared, private.served, main_column(settings)
    if served is None:
        blends = [chosen.blend(column, place) for place in range(len(world.shops))]
        shares = [settings.personalisation.global_share(len(shop.shoppers)) for shop in world.shops]
    else:
        shared, state, blends = served.model, served.state, list(served.blends)
        shares = [PRIVATE_GLOBAL_SHARE] * len(world.shops)
    arrays = {name: _smallest(array) for name, array in state.items()}
    write_atomically(folder / "shared.safetensors", save(arrays))
    names = [shop.name for shop in world.shops]
    write_choices(
        run_dir,
        local=chosen.local,
        shared=shared,
        shared_items=world.public.items,
        blends=dict(zip(names, blends, strict=True)),
        global_shares=dict(zip(names, shares, strict=True)),
    )


def _smallest(array: np.ndarray) -> np.ndarray:
    """The array as float32 where that loses nothing (counts, mostly), else as it is."""
    if array.dtype == np.float64:
        small = array.astype(np.float32)
        if np.array_equal(small, array):
            return np.ascontiguousarray(small)
    return np.ascontiguousarray(array)


def _blended(settings: SimulationSettings) -> list[str]:
    """The wanted columns in which shops choose a blend."""
    return [column for column in settings.evaluation.columns if column in ("local", "federated_personal")]


def write_lists(run_dir: Path, world: World, lists: Lists, column: str) -> None:
    """``recommendations.parquet``: the main column's list of every test shopper."""
    parts = []
    for shop in world.shops:
        items, scores = lists.items[column][shop.name], lists.scores[shop.name]
        items = items[0] if items.ndim == 3 else items  # of several noise draws the first, whose model is kept
        rows, ranks = np.nonzero(items >= 0)
        parts.append(
            pd.DataFrame(
                {
                    "shop": shop.name,
                    "shopper": lists.shoppers[shop.name][rows],
                    "rank": (ranks + 1).astype(np.int32),
                    "item": shop.items[items[rows, ranks]],
                    "score": scores[rows, ranks],
                }
            )
        )
    _write_table(run_dir / "recommendations.parquet", pd.concat(parts, ignore_index=True))


def make_record(
    settings: SimulationSettings,
    world: World,
    chosen: Chosen,
    trials: Sequence[Trial],
    trained: Trained,
    private: PrivateColumns,
    curve: Sequence[Mapping[str, Any]],
    tables: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> RunRecord:
    """Everything that run.json says.

    Args:
        tables: "scores", "gain", "gain_by_epsilon" and "compatibility" as the record holds them.
    """
    state, rounds = trained.state, trained.rounds
    if private.served is not None:
        state, rounds = private.served.state, trained.rounds or private.served.rounds
    shared_values = sum(int(array.size) for array in state.values())
    return RunRecord(
        name=settings.name,
        seed=settings.seed,
        complete=True,
        guarantee=_guarantee(settings, private),
        config=_scenario(settings),
        data=world.account,
        model={
            "name": settings.model.name,
            "settings": settings_by_column(settings, chosen),
            "blends": {
                shop.name: {column: chosen.blend(column, place) for column in _blended(settings)}
                for place, shop in enumerate(world.shops)
            },
            "items_covered": items_covered(state, world),
            "shared_values": shared_values,
            "tuned": [trial.to_json() for trial in trials],
            "early_stopping": _early_stopping(settings, trained),
        },
        columns=columns_of(settings),
        main_column=main_column(settings),
        scores=tables["scores"],
        gain=tables["gain"],
        gain_by_epsilon=tables["gain_by_epsilon"],
        privacy=private.record,
        compatibility=tables["compatibility"],
        rounds=rounds,
        learning_curve=curve,
        seconds=seconds,
        bytes=_bytes(rounds),
        peak_memory_bytes=peak_memory_bytes(),
        versions=package_versions(),
        threads=num_threads(),
        cores=num_cores(),
        files=(
            "run.json",
            "report.html",
            "recommendations.parquet",
            "split.parquet",
            "items.parquet",
            "model/shared.safetensors",
            "model/personal.json",
            *_ledgers(private),
        ),
    )


def _early_stopping(settings: SimulationSettings, trained: Trained) -> dict[str, Any] | None:
    best = stopped_after(settings, trained)
    if best is None:
        return None
    return {"patience": settings.federation.patience, "round": best, "figure": f"{VALIDATION}: raw data, no guarantee"}


def _guarantee(settings: SimulationSettings, private: PrivateColumns) -> str:
    """The promise behind the lists that the run leaves, and that nothing else of it has one."""
    if private.record is None or private.served is None:
        return NO_GUARANTEE_MASKED if settings.is_masked else NO_GUARANTEE
    first = next(run for run in private.record["runs"] if run["epsilon"] == settings.privacy.epsilons[0])
    promise = first.get("federated", first.get("popularity"))["guarantee"]
    others = f" Other epsilons of this run: {_others(settings)}, each counted for itself." if _others(settings) else ""
    return (
        f"{promise}.{others} Columns without an epsilon promise nothing, and every noise draw has a budget of its own, "
        "as only a simulation may"
    )


def _others(settings: SimulationSettings) -> str:
    return ", ".join(epsilon_name(epsilon) for epsilon in settings.privacy.epsilons[1:])


def _ledgers(private: PrivateColumns) -> list[str]:
    runs = [] if private.record is None else private.record["runs"]
    return [run["ledger"] for run in runs if "ledger" in run]


def write_record(run_dir: Path, record: RunRecord) -> None:
    """``report.html``, then ``run.json``, whose presence says that the run is finished."""
    write_report(json.loads(record.to_json()), run_dir / "report.html")
    record.write(run_dir / "run.json")
    (run_dir / CHECKPOINT).unlink(missing_ok=True)


def items_covered(state: State, world: World) -> int:
    """Items that the shared statistics cover: those of the array ``covered``, else all."""
    return len(state["covered"]) if "covered" in state else world.public.num_items


def _scenario(settings: SimulationSettings) -> dict[str, Any]:
    return settings.to_json()


def _bytes(rounds: Sequence[RoundRecord]) -> dict[str, int]:
    return {"up": sum(r.bytes_up for r in rounds), "down": sum(r.bytes_down for r in rounds)}


def _write_table(path: Path, table: pd.DataFrame) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    table.to_parquet(temporary, index=False, compression="zstd")
    temporary.replace(path)
