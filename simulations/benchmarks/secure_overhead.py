"""What secure aggregation costs a run: the same rounds plain and masked, in turn, in one process.

Run: python simulations/benchmarks/secure_overhead.py [SCENARIO ...] [--shops 5 50] [--values 5000000]
Each line is a federation of EASE: on a scenario's data, with its shoppers dealt to so many shops at random, and on
generated histories over as many items as give about --values values. Both sides run through Flower's messages; set-up,
masks, signatures and shares are all in. Seconds are of wall clock, all shops one after the other on this machine: a
real shop computes beside the others and has one share of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import time
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy import sparse

from fedrec.config import read_scenario
from fedrec.federation.terms import Terms
from fedrec.flower.engines import Federation, run_local
from fedrec.models.ease import Ease, EaseSettings
from fedrec.models.recommender import PublicInputs
from fedrec.privacy.settings import usual_min_shops
from fedrec.shop.node import simulated_identities
from fedrec.simulation.rounds import secure_parameters
from fedrec.simulation.world import Stage, pooled_rows, prepare


def from_scenario(path: str, num_shops: int) -> tuple[str, Federation]:
    """The scenario's shoppers, dealt to shops at random."""
    settings = read_scenario(path)
    world = prepare(settings)
    return settings.name, dealt(Ease(EaseSettings()), world.public, pooled_rows(world, Stage.FINAL), num_shops)


def generated(num_values: int, num_shops: int) -> tuple[str, Federation]:
    """100 shoppers a shop with 20 items each, over as many items as give so many values."""
    num_items = math.isqrt(2 * num_values)
    rng = np.random.default_rng(0)
    rows = np.repeat(np.arange(100 * num_shops), 20)
    columns = rng.integers(0, num_items, len(rows))
    table = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(100 * num_shops, num_items))
    table.data[:] = 1
    public = PublicInputs(np.array([f"item-{i:06d}" for i in range(num_items)]))
    model = Ease(EaseSettings(max_items=num_items))
    return f"{num_values / 1e6:g}M values", dealt(model, public, table, num_shops)


def dealt(model: Ease, public: PublicInputs, rows: sparse.csr_matrix, num_shops: int) -> Federation:
    """Shoppers dealt to shops at random."""
    place = np.random.default_rng(1).integers(0, num_shops, rows.shape[0])
    roster = tuple(f"shop-{i:03d}" for i in range(num_shops))
    tables = [rows[np.flatnonzero(place == i)] for i in range(num_shops)]
    return Federation(model, public, Terms(roster, usual_min_shops(num_shops, 1)), tables)


def secured(federation: Federation) -> Federation:
    """The same with secure aggregation."""
    identities = simulated_identities(len(federation.terms.roster))
    parameters = secure_parameters(
        federation.terms.roster, identities, min_shops=federation.terms.min_shops, colluders=1
    )
    return replace(federation, terms=replace(federation.terms, secure=parameters), identities=identities)


def measure(name: str, federation: Federation, repeats: int) -> dict[str, object]:
    """One line: the best of a few runs of each side."""
    sides = {"plain": federation, "secure": secured(federation)}
    best: dict[str, float] = {}
    bytes_up: dict[str, int] = {}
    for _ in range(repeats):
        for side, one in sides.items():
            gc.collect()
            started = time.perf_counter()
            trained = run_local(one)
            best[side] = min(best.get(side, math.inf), time.perf_counter() - started)
            bytes_up[side] = sum(record.bytes_up for record in trained.rounds)
    num_shops = len(federation.terms.roster)
    return {
        "federation": name,
        "shops": num_shops,
        "plain_s": round(best["plain"], 2),
        "secure_s": round(best["secure"], 2),
        "extra_s_a_shop": round((best["secure"] - best["plain"]) / num_shops, 3),
        "plain_mb_a_shop": round(bytes_up["plain"] / num_shops / 1e6, 2),
        "secure_mb_a_shop": round(bytes_up["secure"] / num_shops / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", default=["simulations/scenarios/demo.toml"])
    parser.add_argument("--shops", type=int, nargs="+", default=[5, 50])
    parser.add_argument("--values", type=int, default=5_000_000)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    for num_shops in options.shops:
        for make, what in [*((from_scenario, path) for path in options.scenarios), (generated, options.values)]:
            print(json.dumps(measure(*make(what, num_shops), options.repeats)), flush=True)  # type: ignore[operator]


if __name__ == "__main__":
    main()
