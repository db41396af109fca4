"""What the machinery costs: a federation through Flower's messages against the same arithmetic in a plain loop.

Both sides compute the same contributions and add them in the same order, and end with the same bits; they run in turn,
in one process with one thread, and the median of the differences in processor time counts: other jobs on the machine
change it little. ``--ray`` runs a federation on Flower's own engine instead (pip install "fedrec[ray]"), and in this
process beside it: start and stop of Ray, a later round of each, and the memory of Ray's processes at its highest.

    python simulations/benchmarks/machinery.py [--quick | --ray]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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


def processes_below(parent: int) -> list[int]:
    """Ids of all that a process started, and what those started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, last = [], {parent}
    while last := {pid for pid, above in parents.items() if above in last}:
        found += sorted(last)
    return found


def shared_once_mb(pids: list[int]) -> float:
    """Their memory (proportional set size), pages that several share counted once; of those that still run."""
    total_kb = 0
    for pid in pids:
        with suppress(OSError):
            found = re.search(r"(?m)^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text())
            total_kb += int(found[1]) if found else 0
    return total_kb / 1024


@contextmanager
def highest_memory_below() -> Iterator[list[float]]:
    """One number: the most that this process's children have held together, in MB, seen five times a second."""
    highest, is_over = [0.0], threading.Event()

    def look() -> None:
        while not is_over.wait(0.2):
            highest[0] = max(highest[0], shared_once_mb(processes_below(os.getpid())))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield highest
    finally:
        is_over.set()
        thread.join()


def measure_ray(num_shops: int, size_bytes: int) -> dict[str, float | int | str]:
    """iALS on Ray and in this process: rounds after the first, which wakes Ray's workers, and what Ray itself takes."""
    federation = make_federation("ials", num_shops, size_bytes)
    local = run_local(federation)
    with tempfile.TemporaryDirectory() as folder, highest_memory_below() as highest:
        started = time.perf_counter()
        ray = run_with_ray(federation, run_dir=Path(folder))
        whole_s = time.perf_counter() - started
    if any(ray.state[name].tobytes() != array.tobytes() for name, array in local.state.items()):
        raise SystemExit("Ray and this process end with different arrays")
    in_rounds_s = sum(one.seconds for one in ray.rounds)
    local_round_s, ray_round_s = (statistics.median(one.seconds for one in of.rounds[1:]) for of in (local, ray))
    return {
        "shops": num_shops,
        "bytes_a_shop": round(local.rounds[-1].bytes_up / num_shops),
        "ray_start_and_stop_s": round(whole_s - in_rounds_s, 1),
        "ray_first_round_s": round(ray.rounds[0].seconds, 2),
        "ray_round_s": round(ray_round_s, 3),
        "local_round_s": round(local_round_s, 3),
        "ray_round_over_local": round(ray_round_s / local_round_s, 1),
        "ray_processes_mb": round(highest[0]),
    }


def main() -> None:
    """Print one JSON line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, no arrays above 1 MB")
    parser.add_argument("--ray", action="store_true", help="Flower's Ray engine alone (needs fedrec[ray])")
    options = parser.parse_args()
    print(json.dumps({"cores": num_cores(), "threads": num_threads(), **package_versions()}))
    if options.ray:
        for num_shops in (10, 200):
            print(json.dumps(measure_ray(num_shops, 256 * 1024)), flush=True)
        return
    for model_name, num_shops, size_kb in itertools.product(MODELS, (10, 200), SMALL_KB):
        repeats = 3 if options.quick else (31 if num_shops == 10 else 7)
        print(json.dumps(measure(model_name, num_shops, size_kb * 1024, repeats)), flush=True)
    if not options.quick:
        for size_mb in LARGE_MB:
            print(json.dumps(measure("ease", 10, size_mb * 1_000_000, 3)), flush=True)


if __name__ == "__main__":
    main()
