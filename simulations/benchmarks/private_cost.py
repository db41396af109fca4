"""What a promise costs in time: one-shot EASE with and without differential privacy, on the same shops.

Run: python simulations/benchmarks/private_cost.py [SCENARIO] [--epsilon 1 2 8] [--repeats 3]
Both sides run their rounds through Flower's messages and the door, solve the shared model and rank the full catalogue
for every test shopper; loading and splitting the data is left out, though it is the same for both. They take turns in
one process; the median of the processor time counts. Neither tunes anything.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from fedrec.config import read_scenario
from fedrec.federation.terms import Terms
from fedrec.flower.engines import Federation, run_local
from fedrec.models import load_model
from fedrec.models.recommender import Recommender, State
from fedrec.privacy.settings import epsilon_name
from fedrec.simulation.columns import rank, shared_scorer
from fedrec.simulation.private_rounds import make_promise, released_rows, run_draw
from fedrec.simulation.progress import quiet
from fedrec.simulation.world import Stage, World, prepare, queries, training_rows

PARTS = ("rounds", "solve", "rank")


def serve(world: World, model: Recommender, state: State, marks: list[float]) -> None:
    """Solve the shared model, then rank for every test shopper."""
    scorer = model.fit(state, world.public)
    marks.append(time.process_time())
    for place, shop in enumerate(world.shops):
        asked = queries(shop, Stage.FINAL)
        if len(asked.rows):
            rank(shared_scorer(world, scorer, place), asked, 10, seed=0)
    marks.append(time.process_time())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="?", default="simulations/scenarios/demo.toml")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 2.0, 8.0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    settings = read_scenario(options.scenario)
    privacy = dataclasses.replace(settings.privacy, epsilon=tuple(options.epsilon))
    settings = settings.model_copy(update={"privacy": privacy})
    world = prepare(settings)
    model = load_model("ease", settings.model.settings)
    roster = tuple(shop.name for shop in world.shops)
    plain_rows = [shop.shared(training_rows(shop, Stage.FINAL), world.public.num_items) for shop in world.shops]
    rows = released_rows(settings, world)

    def plain(folder: Path, marks: list[float]) -> None:
        state = run_local(Federation(model, world.public, Terms(roster), plain_rows)).state
        marks.append(time.process_time())
        serve(world, model, state, marks)

    def private(epsilon: float, folder: Path, marks: list[float]) -> None:
        promise = make_promise(settings, world, model, epsilon)
        trained = run_draw(settings, world, promise, rows, folder, draw=0, keep_ledgers=True, progress=quiet)
        marks.append(time.process_time())
        serve(world, promise.model, trained.state, marks)

    took: dict[str, list[list[float]]] = {}
    for _ in range(options.repeats):
        for name in ("without", *map(epsilon_name, options.epsilon)):
            gc.collect()
            with tempfile.TemporaryDirectory() as folder:
                marks = [time.process_time()]
                if name == "without":
                    plain(Path(folder), marks)
                else:
                    private(float(name), Path(folder), marks)
            took.setdefault(name, []).append([marks[-1] - marks[0], *(b - a for a, b in itertools.pairwise(marks))])
    medians = {name: [statistics.median(column) for column in zip(*times, strict=True)] for name, times in took.items()}
    shoppers = world.account["shoppers"]
    print(f"{settings.name}: {world.public.num_items:,} items, {len(roster)} shops, {shoppers:,} shoppers")
    for name, (whole, *parts) in medians.items():
        shares = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in zip(PARTS, parts, strict=True))
        title = name if name == "without" else f"epsilon {name}"
        print(f"{title:12s} {whole:7.2f} s of processor time ({shares}), {whole / medians['without'][0]:.2f} x without")


if __name__ == "__main__":
    main()
