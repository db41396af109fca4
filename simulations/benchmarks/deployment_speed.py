"""What a deployment costs where nothing is trained: an exchange with five agents, starting up, an idle agent.

Run it: python simulations/benchmarks/deployment_speed.py [--quick]

Exchanges go over TLS on the loopback, with the agents as threads of this process; the rest is of real processes.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedrec.cli import main as fedrec
from fedrec.flower import _agent_compat
from fedrec.flower.agent import Agent
from fedrec.flower.certificates import TlsFiles, create_authority, issue
from fedrec.flower.exchange import exchange
from fedrec.flower.fleet import Fleet, fleet_app, serve

SHOPS = ("ant", "bee", "cat", "dog", "elk")
FEDREC = (sys.executable, "-c", "import sys, fedrec.cli; sys.exit(fedrec.cli.main())")
LONGEST_S = 120.0


def echo(message: Message, context: Context) -> Message:
    """Send back what came."""
    return Message(message.content, reply_to=message)


def exchange_seconds(folder: Path, size_bytes: int, repeats: int) -> list[float]:
    """Wall-clock time of exchanges of so many bytes each way with each of five agents, none of which computes."""
    tls = TlsFiles.in_folder(folder)
    create_authority(tls, "benchmark")
    issue(tls, "127.0.0.1")
    keys = {shop: _agent_compat.new_key() for shop in SHOPS}
    fleet = Fleet({shop: _agent_compat.public_of(key) for shop, key in keys.items()})
    app = ClientApp()
    app.query("echo")(echo)
    found = []
    with serve(fleet_app(fleet), host="127.0.0.1", port=0, certificate=tls.certificate, key=tls.key) as port:
        authority = tls.authority.read_bytes()
        agents = [
            Agent(lambda: app, shop=shop, address=f"127.0.0.1:{port}", authority=authority, node_key=key)
            for shop, key in keys.items()
        ]
        threads = [threading.Thread(target=agent.run) for agent in agents]
        for thread in threads:
            thread.start()
        fleet.wait_for(len(SHOPS), deadline_s=LONGEST_S)
        for _ in range(repeats):
            grid, arrays = fleet.grid(), ArrayRecord()
            arrays["x"] = Array("uint8", (size_bytes,), "raw", os.urandom(size_bytes))
            content = RecordDict({"x": arrays})
            messages = {shop: Message(content, node, "query.echo") for shop, node in fleet.nodes.items()}
            started = time.perf_counter()
            replies = list(exchange(grid, messages, deadline_s=LONGEST_S, read=lambda content: content["x"]["x"].data))
            found.append(time.perf_counter() - started)
            if any(reply.data != arrays["x"].data for reply in replies):
                raise SystemExit("an agent did not answer what it was sent")
        for agent in agents:
            agent.stop.set()
        for thread in threads:
            thread.join()
    return found


def until(look: Callable[[], bool]) -> float:
    """Seconds until something is so."""
    started = time.perf_counter()
    while not look():
        if time.perf_counter() - started > LONGEST_S:
            raise SystemExit(f"not ready after {LONGEST_S:g} s")
        time.sleep(0.01)
    return time.perf_counter() - started


def started(folder: Path, role: str, marker: Callable[[], bool], watch_s: float) -> tuple[float, float, float]:
    """Seconds from a command's start until it is ready, its resident memory in MB some seconds later, share of a core.

    A shop's agent gives back after two seconds what a run takes; it is watched from then on, its coordinator away.
    """
    with open(folder / f"{role}.log", "wb") as log:
        command = [*FEDREC, role, "run", str(folder / role)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        ready_s = until(marker)
        if role == "shop":
            until(lambda: b"FEDREC_KNOWN=" in Path(f"/proc/{process.pid}/environ").read_bytes())
        time.sleep(10)
        before = processor_seconds(process.pid)
        time.sleep(watch_s)
        share = (processor_seconds(process.pid) - before) / watch_s
        status = Path(f"/proc/{process.pid}/status").read_text()
    finally:
        process.terminate()
        process.wait()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return ready_s, int(found[1]) / 1024 if found else float("nan"), share


def processor_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def process_figures(folder: Path, watch_s: float) -> dict[str, tuple[float, float, float]]:
    """By role: seconds until ready (it waits for shops, or tried to connect), idle memory in MB, share of a core."""
    (folder / "items.csv").write_text("item\n" + "".join(f"item-{item}\n" for item in range(1000)))
    rows = (f"s{row},item-{(7 * row + item) % 1000},{item}\n" for row in range(1000) for item in range(10))
    (folder / "events.csv").write_text("shopper,item,timestamp\n" + "".join(rows))
    coordinator, shop, invitation = folder / "coordinator", folder / "shop", folder / "invitation.json"
    shops = [shop, *(folder / name for name in SHOPS)]
    joining = ("--invitation", invitation, "--events", folder / "events.csv", "--shoppers", 1000)
    commands: list[tuple[object, ...]] = [
        ("coordinator", "init", coordinator, "--items", folder / "items.csv"),
        ("coordinator", "invite", coordinator, "--out", invitation),
        *(("shop", "enrol", place, "--name", place.name, *joining) for place in shops),
        ("coordinator", "admit", coordinator, *(place / f"{place.name}.enrolment.json" for place in shops)),
    ]
    for command in commands:
        with redirect_stdout(io.StringIO()):
            status = fedrec([str(part) for part in command])
        if status:
            raise SystemExit(f"fedrec {command[0]} {command[1]} failed")
    for file in (coordinator / "coordinator.toml", shop / "shop.toml"):
        text = re.sub(r"(?m)^metrics_port = \d+", "metrics_port = 0", file.read_text())
        text = re.sub(r"(?m)^idle_after_s = .*", "idle_after_s = 2.0", text)
        file.write_text(re.sub(r"(?m)^port = \d+", "port = 0", text))
    shown = coordinator / "status.json"
    waits = started(
        folder, "coordinator", lambda: shown.exists() and b"waiting for shops" in shown.read_bytes(), watch_s
    )
    return {"coordinator": waits, "shop": started(folder, "shop", (shop / "status.json").exists, watch_s)}


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats, no large arrays")
    is_quick = parser.parse_args().quick
    logging.getLogger("flwr").setLevel(logging.ERROR)
    for size_bytes, repeats in ((8, 5 if is_quick else 20), *(() if is_quick else ((20_000_000, 5),))):
        with tempfile.TemporaryDirectory() as folder:
            found = exchange_seconds(Path(folder), size_bytes, repeats)
        spread = f"median {statistics.median(found):.2f} s, longest {max(found):.2f} s of {repeats}"
        print(f"exchange of {size_bytes:,} bytes each way, five agents: {spread}")
    with tempfile.TemporaryDirectory() as folder:
        figures = process_figures(Path(folder), 10.0 if is_quick else 60.0)
    for role, (ready_s, megabytes, share) in figures.items():
        print(f"{role}: ready after {ready_s:.1f} s, idle at {megabytes:.0f} MB and {share:.1%} of a core")


if __name__ == "__main__":
    main()
