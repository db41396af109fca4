"""The coordinator's side for `flwr run .`; Flower's check wants a plain assignment.

`--run-config 'run-dir="/abs/run"'` trains the shops whose files are there; with `scenario="/abs/scenario.toml"`
besides, they are made from the scenario first (its model settings as given: tuning is for `fedrec simulate`). It is
research mode: a scenario with a promise is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from fedrec.errors import ConfigError
from fedrec.federation.terms import Terms
from fedrec.flower import server_app
from fedrec.flower.engines import Federation

if TYPE_CHECKING:
    from fedrec.config import SimulationSettings

SCENARIO_FILE = "scenario.json"


def prepare_shops(scenario: Path, run_dir: Path) -> None:
    """Write the files of a scenario's shops."""
    from fedrec.config import read_scenario
    from fedrec.models import load_model
    from fedrec.simulation.world import Stage, prepare, training_rows

    settings = read_scenario(scenario)
    refuse_what_is_not_run(settings)
    kept = run_dir / SCENARIO_FILE
    if kept.exists():
        if json.loads(kept.read_bytes()) != settings.to_json():
            raise ConfigError(f"{run_dir}: holds the shops of another scenario than {scenario}; choose another run-dir")
        return
    world = prepare(settings)
    Federation(
        load_model(settings.model.name, settings.model.settings),
        world.public,
        Terms(
            roster=tuple(shop.name for shop in world.shops),
            min_shops=settings.federation.min_shops or 1,
            run_id=f"{settings.name}-{settings.seed}",
            shops_per_round=settings.federation.num_asked(len(world.shops)),
        ),
        [shop.shared(training_rows(shop, Stage.FINAL), world.public.num_items) for shop in world.shops],
    ).write_files(run_dir)
    kept.write_text(json.dumps(settings.to_json()))


def refuse_what_is_not_run(settings: SimulationSettings) -> None:
    """Refuse what a scenario asks for and rounds under `flwr run` do not do.

    Raises:
        ConfigError: a promise, masks, or early stopping.
    """
    asked = {
        "privacy.epsilon": bool(settings.privacy.epsilons),
        "federation.secure": bool(settings.federation.secure),
        "federation.patience": settings.federation.patience is not None,
    }
    if found := [name for name, is_asked in asked.items() if is_asked]:
        raise ConfigError(f"{found[0]}: flwr run trains without it; leave it out, or use fedrec simulate")


app = server_app.make_app_for_run_dir(prepare_shops)
