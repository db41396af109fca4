"""Many agents in one secure round, and a round of a large model: real processes over TLS on this machine.

Run it: python simulations/benchmarks/deployment_scale.py agents [--shops 50]
        python simulations/benchmarks/deployment_scale.py large [--items 5000]

``agents``: so many shops run private EASE under masks; it fails unless all take part in every round. ``large``: two
shops send EASE's sums over so many items, 8 bytes for each pair of items, without a promise (5,000 items: 100 MB each).
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.deployment.town import Town, build, wait_until

START_TOGETHER = 4
LONGEST_S = 3600.0


def megabytes(pid: int, field: str) -> float:
    """A process's memory; ``Pss`` counts pages that several share once."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    return int(found[1]) / 1024 if found else float("nan")


def start_all(town: Town) -> None:
    """All agents, a few at a time."""
    for begin in range(0, len(town.shops), START_TOGETHER):
        for shop in town.shops[begin : begin + START_TOGETHER]:
            town.start(shop)
        for shop in town.shops[begin : begin + START_TOGETHER]:
            wait_until(lambda shop=shop: town.status(shop), f"{shop}'s agent", deadline_s=LONGEST_S)


def show(town: Town, run_id: str, seconds: float) -> None:
    """Rounds and memory."""
    for one in town.rounds(run_id):
        print(
            f"  {one['name']}: {one['seconds']:.1f} s, {one['shops']} shops, {one['bytes_up'] / 1e6:.1f} MB up, "
            f"{one['bytes_down'] / 1e6:.1f} MB down"
        )
    pids = [town.processes[shop].pid for shop in town.shops]
    for field in ("Rss", "Pss"):
        sizes = [megabytes(pid, field) for pid in pids]
        print(f"  agents after the run, {field}: {max(sizes):.0f} MB at most, {sum(sizes) / 1024:.1f} GB together")
    print(f"  from the coordinator's start to a model in every shop: {seconds:.0f} s")


def federate(folder: Path, num_shops: int, num_items: int, *, is_private: bool) -> None:
    """One run; prints what it took."""
    with redirect_stdout(io.StringIO()):
        town = build(folder, tuple(f"shop-{number:03d}" for number in range(num_shops)), num_items=num_items)
    town.change("coordinator", min_shops=num_shops, deadline_s=600.0, patience_s=600.0)
    if not is_private:
        town.change("coordinator", epsilon=None, delta=None, secure=False)
        for shop in town.shops:
            town.change(shop, allow_research=True, require_masks=False, min_colluders=0, min_shops=1)
    try:
        start_all(town)
        started = time.perf_counter()
        town.start("coordinator")
        if status := town.processes["coordinator"].wait(timeout=LONGEST_S):
            raise SystemExit(f"the coordinator ended with {status}:\n{town.log('coordinator')[-3000:]}")
        seconds = time.perf_counter() - started
        run_id = str(town.status("coordinator")["run_id"])
        town.check_logs()
        if any(one["shops"] != num_shops for one in town.rounds(run_id)):
            raise SystemExit("not all shops took part")
        show(town, run_id, seconds)
    finally:
        town.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("agents", "large"))
    parser.add_argument("--shops", type=int, default=50)
    parser.add_argument("--items", type=int, default=5000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "agents":
            print(f"{options.shops} agents in one secure run of private EASE")
            federate(Path(folder), options.shops, 30, is_private=True)
        else:
            print(f"two agents, EASE over {options.items:,} items, no promise, no masks")
            federate(Path(folder), 2, options.items, is_private=False)


if __name__ == "__main__":
    main()
