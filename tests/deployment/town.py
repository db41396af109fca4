"""A federation of real processes on the loopback, for tests and benchmarks: folders, and a proxy in between."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.cli import main

SHOPS = ("ant", "bee", "cat", "dog")
NUM_ITEMS = 30
LONG_S = 240.0
"""Nothing here takes this long on two idle cores; tests wait for events, never for a time."""

FEDREC = (sys.executable, "-c", "import sys, fedrec.cli; sys.exit(fedrec.cli.main())")
Found = Any


def wait_until(look: Callable[[], Found], what: str, *, deadline_s: float = LONG_S) -> Found:
    """What a look gives once it is true."""
    give_up_at = time.monotonic() + deadline_s
    while not (found := look()):
        assert time.monotonic() < give_up_at, f"not in {deadline_s:g} s: {what}"
        time.sleep(0.01)
    return found


def free_port() -> int:
    """A port below those that connections get by themselves."""
    for port in np.random.default_rng().integers(12_000, 30_000, 100).tolist():
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


class Proxy:
    """Forwards TCP from one port to another, and stops when it is told to: a network that stalls and heals."""

    def __init__(self, port: int, target: int) -> None:
        self._target, self._is_open = target, threading.Event()
        self._is_open.set()
        self._listener = socket.create_server(("127.0.0.1", port))
        self._lines: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def stall(self) -> None:
        """Nothing is forwarded any more, and nothing closed."""
        self._is_open.clear()

    def heal(self) -> None:
        """What waits is forwarded."""
        self._is_open.set()

    def close(self) -> None:
        self.heal()
        for line in self._lines:
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                self._lines.append(here)
                try:
                    there = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    here.close()
                    continue
                self._lines.append(there)
                for one, other in ((here, there), (there, here)):
                    threading.Thread(target=self._forward, args=(one, other), daemon=True).start()

    def _forward(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                self._is_open.wait()
                other.sendall(data)
        with suppress(OSError):
            other.shutdown(socket.SHUT_WR)


@dataclass
class Town:
    """One coordinator and its shops, each with a folder and a log.

    Attributes:
        folder: of all.
        proxy: what the shops' agents connect to; it forwards to the coordinator's port.
        port: the coordinator's.
        shops: their names.
        code: the folder in which a process finds another version of fedrec, by the process's name.
    """

    folder: Path
    proxy: Proxy
    port: int
    shops: tuple[str, ...] = SHOPS
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    readers: dict[str, threading.Thread] = field(default_factory=dict)
    code: dict[str, Path] = field(default_factory=dict)

    @property
    def coordinator(self) -> Path:
        return self.folder / "coordinator"

    def log(self, name: str) -> str:
        """All that a process has said."""
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def change(self, name: str, **values: object) -> None:
        """Rewrite lines of a settings file; a name may be left out of the file with None."""
        path = self.folder / name / ("coordinator.toml" if name == "coordinator" else "shop.toml")
        text = path.read_text()
        for key, value in values.items():
            written = f"{key} = {json.dumps(value)}" if value is not None else f"# {key} = none"
            text, count = re.subn(rf"(?m)^(# )?{key} = .*$", written, text, count=1)
            assert count == 1, key
        path.write_text(text)

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start the coordinator or a shop's agent; its log goes on."""
        role = "coordinator" if name == "coordinator" else "shop"
        code = self.code.get(name, Path(__file__).parents[2])
        process = subprocess.Popen(
            [*FEDREC, role, "run", str(self.folder / name), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"},
        )
        self.readers[name] = threading.Thread(target=self._read, args=(name, process), daemon=True)
        self.readers[name].start()
        self.processes[name] = process
        return process

    def _read(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Keep a log: a pipe, which no limit on files ends."""
        assert process.stdout is not None
        with open(self.folder / f"{name}.log", "ab", buffering=0) as log, process.stdout as said:
            for line in said:
                log.write(line)

    def _ended(self, name: str) -> int:
        """Exit status of a process, once all that it said is in its log."""
        status = self.processes.pop(name).wait(timeout=LONG_S)
        self.readers.pop(name).join(timeout=LONG_S)
        return status

    def end(self, name: str, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit status."""
        with suppress(ProcessLookupError):
            self.processes[name].send_signal(signal.SIGCONT)
            self.processes[name].send_signal(number)
        return self._ended(name)

    def close(self) -> None:
        for name in list(self.processes):
            self.end(name, signal.SIGKILL)
        self.proxy.close()

    def finish(self) -> int:
        """Wait for the coordinator to end; its exit status."""
        return self._ended("coordinator")

    def run(self) -> str:
        """A whole run; its id."""
        self.start("coordinator")
        status = self.finish()
        assert status == 0, self.log("coordinator")[-2000:]
        self.check_logs()
        return str(self.status("coordinator")["run_id"])

    def have_run(self) -> None:
        """One run at least is finished."""
        if not list(self.coordinator.glob("runs/*/model/shared.safetensors")):
            self.run()

    def status(self, name: str) -> dict[str, Any]:
        path = self.folder / name / "status.json"
        return json.loads(path.read_bytes()) if path.exists() else {}

    def phase(self) -> str:
        """Of the running coordinator."""
        return str(self.status("coordinator").get("phase", ""))

    def online(self) -> list[str]:
        """Shops whose agent says that it is connected."""
        return [shop for shop in self.shops if self.status(shop).get("traffic", {}).get("connected")]

    def begin(self) -> None:
        """Start the coordinator and return when its rounds begin."""
        (self.coordinator / "status.json").unlink(missing_ok=True)
        self.start("coordinator")
        wait_until(lambda: self.phase() == "rounds", "the run's rounds")

    def uploads(self) -> list[Path]:
        """What the coordinator has kept of the open round."""
        return list(self.coordinator.glob("runs/*/inbox/*/*.upload"))

    def drop_run(self) -> None:
        """Forget a run that is not finished."""
        (self.coordinator / "current-run").unlink(missing_ok=True)

    def rounds(self, run_id: str) -> list[dict[str, Any]]:
        return json.loads((self.coordinator / "runs" / run_id / "rounds.json").read_bytes())

    def model(self, run_id: str) -> bytes:
        """The file of a run's shared arrays."""
        return (self.coordinator / "runs" / run_id / "model" / "shared.safetensors").read_bytes()

    def charges(self) -> dict[str, tuple[int, int]]:
        """By shop: releases charged ever, and those that repeated a round."""
        return {shop: self.charge(shop) for shop in self.shops}

    def charge(self, shop: str) -> tuple[int, int]:
        from fedrec.privacy.ledger import Ledger

        path = self.folder / shop / "ledger.sqlite"
        if not path.exists():
            return 0, 0
        ledger = Ledger.open(path, shop)
        spent = ledger.spent()
        ledger.close()
        return spent.num_charges, spent.num_aborts

    def check_logs(self) -> None:
        """No process may ever leave a traceback."""
        for name in ("coordinator", *self.shops):
            assert "Traceback" not in self.log(name), self.log(name)[-3000:]


def events(place: int, *, num_shoppers: int = 40, num_items: int = NUM_ITEMS) -> str:
    """CSV of shoppers who buy neighbours on a ring of items."""
    rng = np.random.default_rng(place)
    lines = ["shopper,item,timestamp"]
    for row in range(num_shoppers):
        start = int(rng.integers(num_items))
        bought = (start + rng.permutation(8)[:6]) % num_items
        lines += [f"s{place}-{row},item-{item:02d},{when}" for when, item in enumerate(bought.tolist())]
    return "\n".join(lines) + "\n"


def command(*arguments: object) -> None:
    """A command of `fedrec`, in this process."""
    assert main([str(argument) for argument in arguments]) == 0, arguments


def build(folder: Path, shops: tuple[str, ...] = SHOPS, *, num_items: int = NUM_ITEMS) -> Town:
    """Folders of a coordinator and enrolled shops with the roster confirmed; nothing runs yet."""
    town = Town(folder, Proxy(public := free_port(), port := free_port()), port, shops)
    (folder / "items.csv").write_text("item\n" + "".join(f"item-{item:02d}\n" for item in range(num_items)))
    command("coordinator", "init", town.coordinator, "--items", folder / "items.csv", "--name", "town")
    town.change("coordinator", host="127.0.0.1", port=public, public_host="127.0.0.1", metrics_port=0)
    command("coordinator", "renew", town.coordinator)
    command("coordinator", "invite", town.coordinator, "--out", folder / "invitation.json")
    for place, shop in enumerate(shops):
        (folder / f"{shop}.csv").write_text(events(place, num_items=num_items))
        options = ("--name", shop, "--events", folder / f"{shop}.csv", "--shoppers", 40)
        command("shop", "enrol", folder / shop, "--invitation", folder / "invitation.json", *options)
        command("coordinator", "admit", town.coordinator, folder / shop / f"{shop}.enrolment.json")
    for shop in shops:
        town.change(shop, metrics_port=0, budget_epsilon=100.0, budget_delta=1e-4, roster=fingerprint(town))
    town.change("coordinator", port=town.port, deadline_s=60.0, patience_s=60.0, start_s=LONG_S)
    path = town.coordinator / "coordinator.toml"
    path.write_text(path.read_text().replace("[rounds]", "min_shops = 3\n\n[rounds]"))
    return town


def fingerprint(town: Town) -> str:
    from fedrec.federation.enrolment import roster_fingerprint
    from fedrec.flower.deployment import read_enrolments

    return roster_fingerprint({name: one.key for name, one in read_enrolments(town.coordinator).items()})


@contextmanager
def settings_kept(town: Town) -> Iterator[None]:
    """The settings files are afterwards as they were, and no run is open."""
    paths = [town.coordinator / "coordinator.toml", *(town.folder / shop / "shop.toml" for shop in SHOPS)]
    before = {path: path.read_bytes() for path in paths}
    try:
        yield
    finally:
        for path, data in before.items():
            path.write_bytes(data)
        if "coordinator" in town.processes:
            town.end("coordinator", signal.SIGKILL)
        town.drop_run()
        town.proxy.heal()


def copy_of(town: Town, shop: str) -> Path:
    """A clone of a shop's folder."""
    target = town.folder / f"{shop}-copy"
    shutil.copytree(town.folder / shop, target)
    return target
