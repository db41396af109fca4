"""The coordinator's side for `flwr run .`; Flower's check wants a plain assignment.

`--run-config 'run-dir="/abs/run"'` trains the shops whose files are there; with `scenario="/abs/scenario.toml"`
besides, they are made from the scenario first (its model settings as given: tuning is for `fedrec simulate`).
"""

from pathlib import Path

from fedrec.errors import ConfigError
from fedrec.federation.terms import Terms
from fedrec.flower import server_app
from fedrec.flower.engines import Federation


def prepare_shops(scenario: Path, run_dir: Path) -> None:
    """Write the files of a scenario's shops."""
    from fedrec.config import read_scenario
    from fedrec.models import load_model
    from fedrec.simulation.world import Stage, prepare, training_rows

    settings = read_scenario(scenario)
    if settings.federation.patience is not None:
        raise ConfigError(
            "federation.patience: rounds stop by raw validation data in `fedrec simulate` alone; leave it out"
        )
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


app = server_app.make_app_for_run_dir(prepare_shops)
