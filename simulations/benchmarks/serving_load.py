"""What the recommend API costs, asked over loopback by another process.

Run: python simulations/benchmarks/serving_load.py [--items 12000] [--shoppers 100000] [--seconds 10] [--repeats 3]
     (--items 100000 for the larger catalogue; --postgres for a store in a PostgreSQL of its own, by the socket)
Makes a shop with drawn events and a drawn item-item model (a blend of two models of 200 weights an item and of
popularity: times do not depend on the values), starts ``fedrec shop serve`` on it and asks:

* personal lists of 10 with filters, at 300 requests a second, arrivals at random (open loop: a late answer makes none
  of the others later), times from when a request was due; with ``explain``; and while batches of events come in;
* how many requests a second the server answers at most (16 connections that ask without a pause): the server's own
  empty endpoint, an empty endpoint of a bare FastAPI beside it, lists that must be computed, an unchanged list;
* how much memory the server has after each of these: it must not go on growing;
* what of it is scoring: the lists alone in this process, beside ``recommend`` of implicit's ALS over as many items.

Prints a JSON line for each measurement, medians over repeats. Give it an otherwise idle machine with two cores or more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tests/ is not installed

import numpy as np

from fedrec.role_config import SHOP_FILE, open_store, read_shop, shop_toml
from fedrec.shop.adoption import LOCAL
from fedrec.shop.lists.lists import Lists
from fedrec.shop.lists.neighbours import Neighbours
from fedrec.shop.lists.ranked import Query
from fedrec.shop.lists.serving_files import open_serving, write_serving
from fedrec.shop.lists.serving_model import InsideShop, ItemItem, Served, Term
from fedrec.shop.lists.shelf import Shelf
from fedrec.shop.store.rows import Item, KeyScope
from fedrec.shop.store.store import Store
from tests.shop.postgres import binaries, cluster

RATE = 300.0
CONNECTIONS = 16
CATEGORIES = 40
MEAN_EVENTS = 14
WIDTH = 200
BATCH_EVENTS, BATCHES_PER_S = 100, 20.0
BARE = """
import sys, socket, uvicorn
from fastapi import FastAPI
app = FastAPI()
@app.get("/empty")
async def empty():
    return {}
listener = socket.create_server(("127.0.0.1", 0))
print(f"serves at http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run(sockets=[listener])
"""
SERVE = "import sys; from fedrec.cli import main; sys.exit(main(sys.argv[1:]))"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=12_000)
    parser.add_argument("--shoppers", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="Keep the shop there, and use it again; not with --postgres.")
    parser.add_argument("--postgres", action="store_true", help="Start a PostgreSQL for the store (initdb, pg_ctl).")
    given = parser.parse_args()
    with ExitStack() as until_the_end:
        scratch = until_the_end.enter_context(tempfile.TemporaryDirectory())
        folder, url = given.folder or Path(scratch) / "shop", None
        if given.postgres:
            programs = binaries()
            if programs is None or given.folder is not None:
                raise SystemExit("--postgres needs the package postgresql, and makes its shop anew: no --folder")
            url = until_the_end.enter_context(cluster(programs))
        key = make_shop(folder, given.items, given.shoppers, url)
        show("scoring alone", ms=scoring(folder, given.items, given.repeats))
        with started("-c", BARE) as (bare, _, _):
            bare_rate = statistics.median(
                asyncio.run(saturated(bare, key, lambda: "/empty", given.seconds / 2)) for _ in range(given.repeats)
            )
        show("bare FastAPI, empty endpoint", requests_per_s=bare_rate)
        with started("-c", SERVE, "shop", "serve", str(folder), "--port", "0") as (url, pid, ready_s):
            show("start", ready_s=ready_s, memory_mb=memory_mb(url, key))
            measure(url, pid, key, given.shoppers, given.seconds, given.repeats)
            show("end", memory_mb=memory_mb(url, key))


def measure(url: tuple[str, int], pid: int, key: str, shoppers: int, seconds: float, repeats: int) -> None:
    """Everything that is asked over HTTP."""
    draw = random.Random(1)

    def home(extra: str = "") -> str:
        filters = f"n=10&not_category=c{draw.randrange(CATEGORIES)}&price_max=90&in_stock=true"
        return f"/v1/shoppers/s{draw.randrange(shoppers)}/recommendations?{filters}{extra}"

    asyncio.run(paced(url, key, home, 2.0))  # warm
    questions: dict[str, Callable[[], str]] = {"personal": home, "personal, explained": lambda: home("&explain=true")}
    for name, question in questions.items():
        runs = [asyncio.run(paced(url, key, question, seconds)) for _ in range(repeats)]
        show(f"{name}, {RATE:g}/s", **medians(runs))
    runs = [asyncio.run(while_ingesting(url, key, home, seconds, shoppers, turn)) for turn in range(repeats)]
    show(f"personal, {RATE:g}/s, beside {BATCH_EVENTS * BATCHES_PER_S:g} events/s", **medians(runs))
    same = home()
    kinds = {"empty": lambda: "/health/live", "computed": home, "unchanged": lambda: same}
    kinds["explained"] = lambda: home("&explain=true")
    rates: dict[str, float] = {}
    costs: dict[str, float] = {}
    for name, ask in kinds.items():
        before, runs = processor_s(pid), []
        for _ in range(repeats):
            runs.append(asyncio.run(saturated(url, key, ask, seconds / 2)))
        rates[name] = statistics.median(runs)
        costs[name] = (processor_s(pid) - before) / (sum(runs) * seconds / 2)
        show(
            f"saturation, {name}",
            requests_per_s=rates[name],
            of_empty=rates[name] / rates["empty"],
            processor_us=costs[name] * 1e6,
            of_empty_by_processor=costs["empty"] / costs[name],
            memory_mb=memory_mb(url, key),
        )


def processor_s(pid: int) -> float:
    """Processor seconds of a process so far: what it did, however busy the machine is. Linux alone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def make_shop(folder: Path, num_items: int, num_shoppers: int, url: str | None = None) -> str:
    """A folder to serve; returns a key. A folder that is there is used again.

    Args:
        url: of an empty store; None = SQLite in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = Store.open(url or f"sqlite:///{folder / 'store.sqlite'}", folder / "store.tombstones")
    _, key = store.new_key("load", "benchmark", KeyScope.ADMIN)
    if (folder / SHOP_FILE).exists():
        store.close()
        return key
    rng = np.random.default_rng(1)
    keys = np.array([f"item-{place}" for place in range(num_items)], dtype=object)
    store.put_items(
        Item(one, f"title {one} word{place % 977} brand{place % 131}", f"c{place % CATEGORIES}", float(place % 100), 5)
        for place, one in enumerate(keys.tolist())
    )
    popularity = (1.0 + np.arange(num_items)) ** -0.65
    number = 0
    for start in range(0, num_shoppers, 5_000):
        counts = rng.poisson(MEAN_EVENTS, min(5_000, num_shoppers - start))
        chosen = rng.choice(num_items, int(counts.sum()), p=popularity / popularity.sum())
        whose = np.repeat(np.arange(start, start + len(counts)), counts)
        at = 1.7e9 + rng.integers(0, 10**7, len(chosen))
        store.append_rows(
            [
                (f"e{number + row}", f"s{shopper}", keys[item], "purchase", None, float(when), None)
                for row, (shopper, item, when) in enumerate(zip(whose, chosen, at, strict=True))
            ]
        )
        number += len(chosen)
    store.close()
    write_serving(folder / "models" / LOCAL, drawn_model(keys, popularity, rng))
    text = shop_toml("load", public_shoppers=0, events=None, items=None)
    text = text.replace("requests_per_s = 1000", "requests_per_s = 0")
    (folder / SHOP_FILE).write_text(text.replace("sqlite:///store.sqlite", url or "sqlite:///store.sqlite"))
    return key


def drawn_model(keys: np.ndarray, popularity: np.ndarray, rng: np.random.Generator) -> ItemItem:
    """A blend of two item-item models and popularity, the shape that a shop in a federation serves."""

    def neighbours() -> Neighbours:
        items = rng.integers(0, len(keys), (len(keys), WIDTH)).astype(np.int32)
        return Neighbours(items, rng.exponential(1.0, (len(keys), WIDTH)).astype(np.float32))

    terms = (
        Term(0.5, popularity * 1e-3, neighbours()),
        Term(0.25, popularity * 1e-3, neighbours()),
        Term(0.25, popularity, None),
    )
    return ItemItem(keys, popularity, terms, Served(LOCAL, "alone", 0.0, InsideShop.NONE), None)


def scoring(folder: Path, num_items: int, repeats: int) -> dict[str, float]:
    """Milliseconds of one list without HTTP and store: ours with filters, and implicit's ALS with 64 factors."""
    import implicit
    from scipy import sparse

    rng = np.random.default_rng(2)
    model = open_serving(folder / "models", LOCAL)
    with open_store(folder, read_shop(folder)) as store:
        lists = Lists(Shelf.of(change.item for change in store.items_after(0, num_items)), model)
        histories = [store.history(f"s{shopper}") for shopper in range(300)]
    peer = implicit.als.AlternatingLeastSquares(factors=64)
    peer.user_factors = rng.normal(size=(len(histories), 64)).astype(np.float32)
    peer.item_factors = rng.normal(size=(num_items, 64)).astype(np.float32)
    had = sparse.csr_matrix(
        ([1.0] * 14 * len(histories), (np.repeat(np.arange(len(histories)), 14), rng.integers(0, num_items, 14 * 300))),
        shape=(len(histories), num_items),
    )

    def each(ask: Callable[[int], Any]) -> float:
        times = []
        for _ in range(repeats):
            for row in range(len(histories)):
                started_at = time.perf_counter()
                ask(row)
                times.append(time.perf_counter() - started_at)
        return statistics.median(times) * 1e3

    return {
        "fedrec": each(lambda row: lists.home(histories[row], Query())),
        "fedrec, explained": each(lambda row: lists.home(histories[row], Query(explain=True))),
        "implicit": each(lambda row: peer.recommend(row, had[row], N=10)),
    }


@contextmanager
def started(*arguments: str) -> Iterator[tuple[tuple[str, int], int, float]]:
    """A server process: its address, its id, and the seconds until it answered."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = next(line for line in process.stdout if "http://" in line)
        host, _, port = line.split("http://")[1].split()[0].rpartition(":")
        yield (host, int(port)), process.pid, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


class Connection:
    """Keep-alive HTTP without a library, so that the asking process costs little."""

    def __init__(self, key: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._head = f"Host: shop\r\nAuthorization: Bearer {key}\r\n"

    @classmethod
    async def to(cls, url: tuple[str, int], key: str) -> Connection:
        return cls(key, *await asyncio.open_connection(*url))

    async def ask(self, path: str, body: bytes = b"") -> bytes:
        method = "POST" if body else "GET"
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        self._writer.write(f"{method} {path} HTTP/1.1\r\n{self._head}{length}\r\n".encode() + body)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"{path}: {head.splitlines()[0].decode()}")
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return await self._reader.readexactly(size)

    def close(self) -> None:
        self._writer.close()


async def paced(url: tuple[str, int], key: str, question: Callable[[], str], seconds: float) -> list[float]:
    """Seconds from when each request was due to its answer, at `RATE` on average."""
    free = [await Connection.to(url, key) for _ in range(64)]
    times: list[float] = []
    tasks = []
    draw = random.Random(2)

    async def ask(due: float) -> None:
        connection = free.pop() if free else await Connection.to(url, key)
        await connection.ask(question())
        times.append(time.perf_counter() - due)
        free.append(connection)

    due = time.perf_counter()
    end = due + seconds
    while due < end:
        due += draw.expovariate(RATE)
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(ask(due)))
    await asyncio.gather(*tasks)
    for connection in free:
        connection.close()
    return times


async def while_ingesting(
    url: tuple[str, int], key: str, question: Callable[[], str], seconds: float, shoppers: int, turn: int
) -> list[float]:
    """As `paced`, while batches of events come in."""
    connection = await Connection.to(url, key)
    draw = random.Random(turn)
    name = time.time_ns()

    async def send() -> int:
        number, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            events = [
                {"event_id": f"{name}-{number}-{row}", "shopper": f"s{draw.randrange(shoppers)}", "item": "item-7"}
                | {"kind": "view"}
                for row in range(BATCH_EVENTS)
            ]
            await connection.ask("/v1/events", json.dumps({"events": events}).encode())
            number += 1
            await asyncio.sleep(max(0.0, began + number / BATCHES_PER_S - time.perf_counter()))
        return number

    times, sent = await asyncio.gather(paced(url, key, question, seconds), send())
    if sent < 0.95 * seconds * BATCHES_PER_S:
        show("ingest fell behind", batches=sent)
    return times


async def saturated(url: tuple[str, int], key: str, question: Callable[[], str], seconds: float) -> float:
    """Requests a second of `CONNECTIONS` that never pause."""
    connections = [await Connection.to(url, key) for _ in range(CONNECTIONS)]
    end = time.perf_counter() + seconds

    async def ask(connection: Connection) -> int:
        count = 0
        while time.perf_counter() < end:
            await connection.ask(question())
            count += 1
        return count

    jobs: list[Awaitable[int]] = [ask(connection) for connection in connections]
    total = sum(await asyncio.gather(*jobs))
    for connection in connections:
        connection.close()
    return total / seconds


def memory_mb(url: tuple[str, int], key: str) -> float:
    """Resident memory of the server, from its metrics."""

    async def ask() -> bytes:
        connection = await Connection.to(url, key)
        text = await connection.ask("/metrics")
        connection.close()
        return text

    line = next(line for line in asyncio.run(ask()).decode().splitlines() if line.startswith("fedrec_memory_bytes "))
    return float(line.split()[1]) / 1e6


def medians(runs: list[list[float]]) -> dict[str, float]:
    """Medians over runs of their percentiles, in ms."""
    found = {}
    for name, share in (("p50_ms", 50), ("p95_ms", 95), ("p99_ms", 99)):
        found[name] = statistics.median(float(np.percentile(times, share)) * 1e3 for times in runs)
    return {**found, "requests": sum(map(len, runs))}


def show(what: str, **figures: Any) -> None:
    """One line."""
    print(json.dumps({"what": what, **_rounded(figures)}), flush=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
