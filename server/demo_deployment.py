"""A coordinator and five shops as processes on this machine, over TLS, two of them killed on the way.

Run: make demo-deployment, or: python server/demo_deployment.py [--data xmarket] [--calm] [--keep]

Every step is a command that operators give (`fedrec coordinator …`, `fedrec shop …`), in a folder that is made for it
and removed at the end. The federation trains EASE under epsilon 2 with masks. While it runs, the coordinator and one
shop are killed (SIGKILL) and started again. Then one recommend API serves all five. It fails unless the run ends,
every shop got the model and serves what it chose, and no ledger was charged twice for a noisy sum. With ``--calm``
nothing is killed: how long a run takes from cold start to a model in every shop. Ends no process that it did not start.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fedrec.client import Client, Event
from fedrec.errors import FedrecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fedrec.data.sources import DataSettings

FEDREC = str(Path(sys.executable).with_name("fedrec"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": os.environ.get("COLUMNS", "110")}
COORDINATOR = "coordinator"
LONGEST_S = 240.0
NUM_SUMS = 2
"""Noisy sums of private EASE: popularity and co-occurrence."""


class DemoError(Exception):
    """Something did not go as it must."""


class Processes:
    """What this demonstration started, by name, each with its log."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str) -> None:
        with self._open_log(name) as log:
            self._running[name] = subprocess.Popen(
                [FEDREC, *command], stdout=log, stderr=log, cwd=self._folder, env=ENVIRONMENT
            )

    def kill(self, name: str) -> int:
        """SIGKILL; its id."""
        process = self._running.pop(name)
        process.kill()
        process.wait()
        return process.pid

    def wait_until(self, what: str, is_true: Callable[[], bool]) -> None:
        """Raises:
        DemoError: it took too long, or a process ended before.
        """
        give_up_at = time.monotonic() + LONGEST_S
        while not is_true():
            for name, process in self._running.items():
                if process.poll() is not None:
                    raise DemoError(f"{name} ended with status {process.returncode} before {what}\n{self.log(name)}")
            if time.monotonic() > give_up_at:
                raise DemoError(f"not within {LONGEST_S:g} s: {what}\n{self.log(COORDINATOR)}")
            time.sleep(0.01)

    def wait(self, name: str) -> None:
        """Until it ends by itself, with status 0."""
        process = self._running.pop(name)
        try:
            status = process.wait(LONGEST_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise DemoError(f"{name} did not end within {LONGEST_S:g} s\n{self.log(name)}") from None
        if status:
            raise DemoError(f"{name} ended with status {status}\n{self.log(name)}")

    def stop_all(self) -> dict[str, int]:
        """SIGTERM to all that run, then wait; exit statuses."""
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)
        statuses = {}
        for name, process in self._running.items():
            try:
                statuses[name] = process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                statuses[name] = process.wait()
        self._running.clear()
        return statuses

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    def _open_log(self, name: str) -> IO[bytes]:
        return open(self._folder / f"{name}.log", "ab")


def fedrec(folder: Path, *command: str, shows: bool = True) -> str:
    """Give a command and show it; its output.

    Raises:
        DemoError: it was refused.
    """
    done = subprocess.run([FEDREC, *command], capture_output=True, text=True, cwd=folder, env=ENVIRONMENT)
    if done.returncode:
        raise DemoError(f"fedrec {' '.join(command)}\n{done.stderr}")
    if shows:
        print(f"$ fedrec {' '.join(command)}\n{done.stdout}", end="")
    return done.stdout


@contextmanager
def phase(title: str, seconds: dict[str, float]) -> Iterator[None]:
    """A headline, and how long it took."""
    print(f"\n== {title}", flush=True)
    start = time.monotonic()
    yield
    seconds[title] = time.monotonic() - start


def write_shops(folder: Path, data: str) -> dict[str, int]:
    """One file of events a shop, and the common item list; declared sizes by shop."""
    from fedrec.data import sources
    from fedrec.privacy.spec import one_significant_digit

    loaded = sources.load(_settings(data), seed=0)
    loaded.items.table.reset_index(names="item")[["item", "title", "category"]].to_csv(
        folder / "items.csv", index=False
    )
    sizes = {}
    for shop, table in loaded.events.table.groupby("shop", observed=True):
        name = str(shop)
        table.drop(columns="shop").to_csv(folder / f"{name}.csv", index=False)
        sizes[name] = one_significant_digit(int(table["shopper"].nunique()))
        print(f"{name}: {len(table):,} events of about {sizes[name]:,} shoppers")
    return sizes


def _settings(data: str) -> DataSettings:
    from fedrec.data.sources import DataSettings, SyntheticSettings

    if data == "xmarket":
        return DataSettings(source="xmarket-electronics")
    market = SyntheticSettings(num_shoppers=6_000, num_shops=5, num_items=300, size_ratio=100.0)
    return DataSettings(source="synthetic", synthetic=market)


def join(folder: Path, sizes: dict[str, int]) -> str:
    """Make the coordinator and all shops; the roster's fingerprint."""
    fedrec(folder, "coordinator", "init", COORDINATOR, "--items", "items.csv", "--name", "demo", "--host", "127.0.0.1")
    _use_free_port(folder / COORDINATOR / "coordinator.toml", host="127.0.0.1")
    fedrec(folder, "coordinator", "invite", COORDINATOR)

    def enrol(shop: str) -> str:
        answer = ("--invitation", "invitation.json", "--name", shop, "--events", f"{shop}.csv", "--items", "items.csv")
        output = fedrec(folder, "shop", "enrol", shop, *answer, "--shoppers", str(sizes[shop]), shows=shop == first)
        _use_free_port(folder / shop / "shop.toml")
        return output

    first = min(sizes)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(enrol, sizes))
    print(f"… and so for the other {len(sizes) - 1}")
    enrolments = [f"{shop}/{shop}.enrolment.json" for shop in sizes]
    return fedrec(folder, "coordinator", "admit", COORDINATOR, *enrolments).split()[-1]


def _use_free_port(file: Path, *, host: str | None = None) -> None:
    """Ports that nothing else here uses: any for metrics, a free one for shops."""
    text = re.sub(r"(?m)^metrics_port = \d+", "metrics_port = 0", file.read_text())
    if host is not None:
        with socket.create_server((host, 0)) as free:
            text = re.sub(r"(?m)^port = \d+", f"port = {free.getsockname()[1]}", text)
        text = re.sub(r'(?m)^host = ".*?"', f'host = "{host}"', text)
    file.write_text(text)


def federate(folder: Path, processes: Processes, shops: list[str], fingerprint: str, *, is_calm: bool) -> None:
    """Run the federation; unless calm, kill the coordinator in its first round and a shop in its second."""

    def start(shop: str) -> None:
        processes.start(shop, "shop", "run", shop, "--roster", fingerprint)

    def uploads() -> set[Path]:
        return set(folder.glob(f"{COORDINATOR}/runs/*/inbox/*/*.upload"))

    print(f"$ fedrec coordinator run {COORDINATOR}\n$ fedrec shop run {shops[0]} --roster {fingerprint}")
    print(f"… and so for the other {len(shops) - 1}", flush=True)
    processes.start(COORDINATOR, "coordinator", "run", COORDINATOR)
    for shop in shops:
        start(shop)
    if is_calm:
        processes.wait(COORDINATOR)
        return
    processes.wait_until("an upload of the first round was kept", lambda: bool(uploads()))
    first = uploads()
    print(f"kill -9 {processes.kill(COORDINATOR)}: the coordinator, in round 1, which has kept uploads: {len(first)}")
    processes.start(COORDINATOR, "coordinator", "run", COORDINATOR)
    print("started again: it goes on with the same round", flush=True)
    first_round = {path.parent for path in first}
    processes.wait_until("an upload of the second round", lambda: any(u.parent not in first_round for u in uploads()))
    victim = shops[1]
    print(f"kill -9 {processes.kill(victim)}: shop {victim}, in round 2")
    start(victim)
    print("started again: it is given the round again if it is still open, and charges nothing twice", flush=True)
    processes.wait(COORDINATOR)
    print("the run is finished, and the model was handed out")


def check(folder: Path, shops: list[str]) -> None:
    """Print what each shop serves and has spent.

    Raises:
        DemoError: a ledger was charged twice for a sum, or for none.
    """
    print(f"\n{'shop':<10} {'NDCG@50 before':>15} {'now':>8} {'shoppers':>8}  {'ε spent':>7}  serves")
    for shop in shops:
        current = _read(folder / shop / "models" / "current.json")
        ledger = _read(folder / shop / "status.json")["ledger"]
        judged = current["history"][-1]
        before, new = judged["current"], judged["candidate"]
        now = new if judged["is_adopted"] else before
        figures = " ".join(
            f"{'–' if value is None else f'{value:.4f}':>{width}}" for value, width in ((before, 15), (now, 8))
        )
        what = "the federation's model" if judged["is_adopted"] else "its own model"
        print(
            f"{shop:<10} {figures} {judged['num_shoppers']:>8,}  {ledger['ledger_epsilon']:>7.3f}  "
            f"{what}: {judged['reason']}"
        )
        if not 0 < ledger["ledger_num_charges"] <= NUM_SUMS or ledger["ledger_num_aborts"]:
            raise DemoError(f"{shop}: {ledger['ledger_num_charges']:g} charges for {NUM_SUMS} sums")
    print("NDCG@50: of the shop's own model, then of what it serves now, over so many of its shoppers, on events that")
    print("it had kept back. ε spent: at the budget's δ of 2e-06; the run's promise is 2 at 1e-06.")


def serve(folder: Path, processes: Processes, shops: list[str]) -> None:
    """Start one API for all shops, ask each for a list with its own key.

    Raises:
        DemoError: a shop does not serve the model that it chose.
    """
    keys = {
        shop: fedrec(folder, "shop", "key", shop, "add", "--scope", "write", shows=shop == shops[0]).split()[-1]
        for shop in shops
    }
    print(f"$ fedrec shop serve {' '.join(shops)} --port 0", flush=True)
    processes.start("api", "shop", "serve", *shops, "--port", "0")
    processes.wait_until("the API answers", lambda: " at http://" in processes.log("api"))
    url = processes.log("api").split(" at ")[-1].split()[0]
    for shop in shops:
        chosen = _read(folder / shop / "models" / "current.json")["current"]
        with Client(url, keys[shop]) as client:
            popular = client.popular(n=1).keys[0]
            client.send([Event("order-1", "somebody new", popular, "purchase")])
            found = client.home("somebody new", n=3)
        if found.model_version != chosen:
            raise DemoError(f"{shop} serves {found.model_version}, chose {chosen}\n{processes.log('api')}")
        outside = "no bound" if found.epsilon_outside is None else f"ε {found.epsilon_outside:.3f}"
        print(
            f"{shop}: somebody new buys {popular}; her {found.reason} list, by model {chosen}: {', '.join(found.keys)}"
        )
        print(f"{'':<{len(shop)}}  what all that left the shop may tell of one shopper: {outside}")


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise DemoError(f"{path} is missing")
    return dict(json.loads(path.read_bytes()))


def run(folder: Path, data: str, *, is_calm: bool) -> dict[str, float]:
    """All phases; seconds by phase."""
    seconds: dict[str, float] = {}
    processes = Processes(folder)
    try:
        with phase("five shops' files", seconds):
            sizes = write_shops(folder, data)
        shops = list(sizes)
        with phase("join", seconds):
            fingerprint = join(folder, sizes)
        with phase("run, from cold start to models" if is_calm else "run, with two crashes", seconds):
            federate(folder, processes, shops, fingerprint, is_calm=is_calm)
        with phase("shops' agents are ended (SIGTERM)", seconds):
            print(*(f"{name} ended with status {status}" for name, status in processes.stop_all().items()), sep="\n")
        with phase("what came out: the comparison, the rounds, one shop's privacy report", seconds):
            check(folder, shops)
            print()
            fedrec(folder, "coordinator", "rounds", COORDINATOR)
            fedrec(folder, "shop", "privacy", shops[0])
        with phase("shops' websites ask one API", seconds):
            serve(folder, processes, shops)
    finally:
        processes.stop_all()
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("synthetic", "xmarket"), default="synthetic")
    parser.add_argument("--calm", action="store_true", help="kill nothing")
    parser.add_argument("--keep", action="store_true", help="leave the folder, with its logs")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    folder = Path(tempfile.mkdtemp(prefix="fedrec-demo-"))
    try:
        seconds = run(folder, options.data, is_calm=options.calm)
    except (DemoError, FedrecError, KeyboardInterrupt) as error:
        print(f"error: {str(error) or 'interrupted'}", file=sys.stderr)
        return 1
    finally:
        if options.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder)
    print("\n" + "; ".join(f"{title} {spent:.1f} s" for title, spent in seconds.items()))
    survived = "" if options.calm else "the run survived both kills, and "
    print(f"done in {sum(seconds.values()):.0f} s: {survived}no shop was charged twice")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
