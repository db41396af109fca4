"""How quick a shop's store is: bulk load, batches, single events, histories; beside bare SQLite on the same rows.

    python simulations/benchmarks/store_speed.py [--events N] [--url sqlite:///FILE | postgresql://...] [--folder DIR]

Prints a JSON line for each measurement. Wall-clock time on the disk of --folder: run it on a quiet machine; beside it
for the import, events for each second of processor time, which other jobs change less.
``bare`` is Python's sqlite3 alone: executemany into one table without an index, so no event is told from its repeat
and no history can be read; with the same chunks and the same flush to disk. ``commit`` is what one flushed batch of 100
rows takes there with synchronous = FULL (which survives a loss of power) and NORMAL (which survives the process alone).
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd

from fedrec.data.sources import DataSettings
from fedrec.federation.run_record import num_cores, package_versions
from fedrec.shop.store.imports import CHUNK_ROWS, import_events
from fedrec.shop.store.rows import Event, EventKind
from fedrec.shop.store.store import EventRow, Store

NUM_SHOPPERS, NUM_ITEMS = 100_000, 12_000
NOON = 1_700_000_000
BATCH, THREADS, PER_SECOND = 100, 8, 2_000


def say(what: str, **figures: object) -> None:
    """One line."""
    print(json.dumps({"what": what, **figures}), flush=True)


def make_file(path: Path, num_events: int) -> None:
    """Purchases over two years, in order."""
    rng = np.random.default_rng(0)
    shopper = rng.integers(NUM_SHOPPERS, size=num_events)
    item = np.minimum(rng.zipf(1.3, size=num_events), NUM_ITEMS)
    when = np.sort(rng.integers(NOON - 2 * 365 * 86_400, NOON, size=num_events))
    names = {"shopper": [f"customer-{one}" for one in shopper], "item": [f"item-{one}" for one in item]}
    pd.DataFrame({**names, "timestamp": when}).to_parquet(path)


def bare(folder: Path, rows: list[EventRow]) -> float:
    """Seconds of sqlite3 alone."""
    connection = sqlite3.connect(folder / "bare.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE events (event_id, shopper, item, kind, value, timestamp, list_id)")
    started = time.perf_counter()
    for start in range(0, len(rows), CHUNK_ROWS):
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", rows[start : start + CHUNK_ROWS])
        connection.execute("COMMIT")
    seconds = time.perf_counter() - started
    connection.close()
    return seconds


def commit_ms(folder: Path, synchronous: str) -> float:
    """Median milliseconds of one transaction of a batch."""
    connection = sqlite3.connect(folder / f"{synchronous}.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("CREATE TABLE events (event_id, timestamp)")
    taken = []
    for place in range(100):
        started = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO events VALUES (?, ?)", [(f"{place}-{one}", one) for one in range(BATCH)])
        connection.execute("COMMIT")
        taken.append(time.perf_counter() - started)
    connection.close()
    return statistics.median(taken) * 1e3


def batches(name: str, size: int) -> Iterator[list[Event]]:
    """New events of now, without end."""
    rng = np.random.default_rng(abs(hash(name)) % 2**32)
    number = 0
    while True:
        shopper, item = rng.integers(NUM_SHOPPERS, size=size), rng.integers(NUM_ITEMS, size=size)
        now = time.time()
        number += 1
        yield [
            Event(f"customer-{a}", f"item-{b}", EventKind.VIEW, now, event_id=f"{name}-{number}-{place}")
            for place, (a, b) in enumerate(zip(shopper, item, strict=True))
        ]


def milliseconds(act: Callable[[], object], times: int) -> dict[str, float]:
    """Median and 99th percentile."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        act()
        taken.append((time.perf_counter() - started) * 1e3)
    return {"p50_ms": round(float(np.median(taken)), 3), "p99_ms": round(float(np.quantile(taken, 0.99)), 3)}


def side_by_side(store: Store) -> None:
    """Histories read while batches are written at the wanted rate."""
    stop, written = threading.Event(), [0]
    stream = batches("beside", BATCH)

    def write() -> None:
        due = time.perf_counter()
        while not stop.is_set():
            written[0] += store.append_events(next(stream)).accepted
            due += BATCH / PER_SECOND
            time.sleep(max(0.0, due - time.perf_counter()))

    writer = threading.Thread(target=write)
    started = time.perf_counter()
    writer.start()
    found = milliseconds(reading(store), 5_000)
    stop.set()
    writer.join()
    rate = written[0] / (time.perf_counter() - started)
    say("history read while batches of 100 are written", events_per_s=round(rate), **found)


def reading(store: Store) -> Callable[[], object]:
    """Reads the history of somebody else each time."""
    rng = np.random.default_rng(1)
    return lambda: store.history(f"customer-{rng.integers(NUM_SHOPPERS)}", limit=500)


def measure(folder: Path, url: str, num_events: int) -> None:
    """All measurements, on an empty store."""
    say("machine", cores=num_cores(), **package_versions())
    for synchronous in ("FULL", "NORMAL"):
        say(f"commit of 100 rows, synchronous = {synchronous}", ms=round(commit_ms(folder, synchronous), 3))
    path = folder / "events.parquet"
    make_file(path, num_events)
    with Store.open(url, folder / "tombstones") as store:
        started, used = time.perf_counter(), time.process_time()
        count = import_events(store, DataSettings(events=str(path)), "shop").accepted
        seconds, used = time.perf_counter() - started, time.process_time() - used
        say("import of a file", events=count, events_per_s=round(count / seconds), per_cpu_s=round(count / used))
        rows = [row[1:] for row in store.events_after(0, limit=min(num_events, 200_000))]
        alone = [(f"again-{row[0]}", row[1], row[2], row[3].value, *row[4:]) for row in rows]
        taken = bare(folder, alone)
        started = time.perf_counter()
        for start in range(0, len(alone), CHUNK_ROWS):
            store.append_rows(alone[start : start + CHUNK_ROWS])
        stored = time.perf_counter() - started
        say("ready rows", store_per_s=round(len(alone) / stored), bare_per_s=round(len(alone) / taken))
        say("history read", **milliseconds(reading(store), 5_000))
        stream = batches("batch", BATCH)
        found = milliseconds(lambda: store.append_events(next(stream)), 200)
        say("batches of 100, one after the other", events_per_s=round(BATCH / found["p50_ms"] * 1e3), **found)
        singles(store)
        side_by_side(store)


def singles(store: Store) -> None:
    """Single events of several threads, which share flushes."""

    def write(name: str) -> None:
        stream = batches(name, 1)
        for _ in range(100):
            store.append_events(next(stream))

    for number in (1, THREADS):
        threads = [threading.Thread(target=write, args=(f"single-{number}-{one}",)) for one in range(number)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rate = 100 * number / (time.perf_counter() - started)
        say(f"single events, {number} threads at once", events_per_s=round(rate))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--url", help="an empty store; else a new SQLite file")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; else a temporary one")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as made:
        measure(Path(made), asked.url or f"sqlite:///{made}/store.sqlite", asked.events)


if __name__ == "__main__":
    main()
