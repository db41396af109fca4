"""What the machinery costs: a federation through Flower's messages against the same arithmetic in a plain loop.

Both sides compute the same contributions and add them in the same order, and end with the same bits; they run in turn,
in one process with one thread, and the median of the differences in processor time counts: other jobs on the machine
change it little. With Ray installed the same federation runs on Flower's own engine too.

    python simulations/benchmarks/machinery.py [--quick] [--ray]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy import sparse

from fedrec.federation.run_record import num_cores, num_threads, package_versions
from fedrec.federation.terms import Terms
from fedrec.flower.engines import Federation, run_local, run_with_ray
from fedrec.models.ease import Ease, EaseSettings
from fedrec.models.factors import IalsSettings
from fedrec.models.ials import Ials
from fedrec.models.recommender import PublicInputs, State

SMALL_KB = (8, 64, 256, 1024)
LARGE_MB = (8, 80)
SHOPPERS = (60, 600)
HISTORY = 30


def ease_over(size_bytes: int) -> tuple[Ease, int]:
    """EASE whose co-occurrence round sends about ``size_bytes`` a shop, and its number of items."""
    num_items = max(8, int(np.sqrt(size_bytes / 4)))  # K (K + 1) / 2 float64
    return Ease(EaseSettings(max_items=num_items)), num_items


def ials_over(size_bytes: int) -> tuple[Ials, int]:
    """Two sweeps of iALS whose rounds send about ``size_bytes`` a shop, and its number of items."""
    factors = 4 if size_bytes < 50_000 else 16
    num_values = factors * (factors + 1) // 2 + factors + 1  # of one item: normal equations, right-hand side, count
    return Ials(IalsSettings(factors=factors, sweeps=2)), max(8, size_bytes // (8 * num_values))


MODELS = {"ease": ease_over, "ials": ials_over}


def make_federation(model_name: str, num_shops: int, size_bytes: int, seed: int = 0) -> Federation:
    """Shops of 60 to 600 shoppers with about 30 items each (at most half the list)."""
    rng = np.random.default_rng(seed)
    model, num_items = MODELS[model_name](size_bytes)
    popularity = 1 / np.arange(1, num_items + 1) ** 0.8
    popularity /= popularity.sum()
    histories = []
    for num_shoppers in np.exp(rng.uniform(*np.log(SHOPPERS), num_shops)).astype(int):
        lengths = np.minimum(rng.poisson(HISTORY, num_shoppers) + 1, num_items // 2)
        rows = np.repeat(np.arange(num_shoppers), lengths)
        columns = rng.choice(num_items, size=len(rows), p=popularity)
        table = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(num_shoppers, num_items))
        table.data[:] = 1
        histories.append(table.astype(np.float32))
    public = PublicInputs(np.array([f"item-{i:06d}" for i in range(num_items)]))
    roster = tuple(f"shop-{i:03d}" for i in range(num_shops))
    return Federation(model, public, Terms(roster), histories)


def train_plainly(federation: Federation) -> State:
    """The same rounds without plans, releases or messages."""
    model = federation.model
    state: State = {}
    index = 0
    while (spec := model.plan_round(index, state, federation.public)) is not None:
        total = np.zeros(spec.layout.size)
        for rows in federation.histories:
            total += model.contributions(spec, rows).total(np.ones(rows.shape[0]))
        state = model.advance(spec, state, total, federation.public)
        index += 1
    return state


def processor_seconds(call: Callable[[], object]) -> float:
    """Processor time of one call in this process, garbage collected before."""
    gc.collect()
    started = time.process_time()
    call()
    return time.process_time() - started


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock time of one call, garbage collected before."""
    gc.collect()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def measure(model_name: str, num_shops: int, size_bytes: int, repeats: int) -> dict[str, float | int | str]:
    """Plain and federated runs in turn; medians, and the median of the paired differences."""
    federation = make_federation(model_name, num_shops, size_bytes)
    plain_state, trained = train_plainly(federation), run_local(federation)
    if any(plain_state[name].tobytes() != array.tobytes() for name, array in trained.state.items()):
        raise SystemExit("the federation and the plain loop differ")
    sent_bytes = trained.rounds[-1].bytes_up / num_shops
    num_messages = num_shops * len(trained.rounds)
    del plain_state, trained
    plain, extra = [], []
    for _ in range(repeats):
        plain.append(processor_seconds(lambda: train_plainly(federation)))
        extra.append(processor_seconds(lambda: run_local(federation)) - plain[-1])
    overhead_s = statistics.median(extra)
    return {
        "model": model_name,
        "shops": num_shops,
        "bytes_a_shop": round(sent_bytes),
        "plain_s": round(statistics.median(plain), 5),
        "overhead_percent": round(100 * overhead_s / statistics.median(plain), 2),
        "microseconds_a_message": round(1e6 * overhead_s / num_messages, 1),
        "ms_a_mb_and_message": round(1e3 * overhead_s / num_messages / (sent_bytes / 1e6), 3),
    }


def measure_ray(num_shops: int, size_bytes: int) -> dict[str, float | int | str]:
    """One run on Flower's Ray engine, start-up included and apart."""
    federation = make_federation("ease", num_shops, size_bytes)
    local_s = statistics.median(seconds(lambda: run_local(federation)) for _ in range(3))
    with tempfile.TemporaryDirectory() as folder:
        rounds_s = []

        def run() -> None:
            rounds_s.append(sum(r.seconds for r in run_with_ray(federation, run_dir=Path(folder)).rounds))

        whole_s = seconds(run)
    return {
        "shops": num_shops,
        "bytes_a_shop": size_bytes,
        "local_s": round(local_s, 4),
        "ray_rounds_s": round(rounds_s[0], 3),
        "ray_whole_s": round(whole_s, 2),
        "ray_over_local": round(whole_s / local_s, 1),
        "ray_rounds_over_local": round(rounds_s[0] / local_s, 1),
    }


def main() -> None:
    """Print one JSON line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, no arrays above 1 MB")
    parser.add_argument("--ray", action="store_true", help="compare with Flower's Ray engine (needs fedrec[ray])")
    options = parser.parse_args()
    print(json.dumps({"cores": num_cores(), "threads": num_threads(), **package_versions()}))
    for model_name, num_shops, size_kb in itertools.product(MODELS, (10, 200), SMALL_KB):
        repeats = 3 if options.quick else (31 if num_shops == 10 else 7)
        print(json.dumps(measure(model_name, num_shops, size_kb * 1024, repeats)), flush=True)
    if not options.quick:
        for size_mb in LARGE_MB:
            print(json.dumps(measure("ease", 10, size_mb * 1_000_000, 3)), flush=True)
    if options.ray:
        for num_shops in (10, 200):
            print(json.dumps(measure_ray(num_shops, 1024 * 1024)), flush=True)


if __name__ == "__main__":
    main()
