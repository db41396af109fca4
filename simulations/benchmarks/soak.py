"""Two hundred rounds of a real federation with random faults: is anything lost, charged twice, or kept for ever?

Run it: python simulations/benchmarks/soak.py [--rounds 200] [--followed 100] [--seed 0]

A coordinator and four shops, processes over TLS with a proxy in between, run half of the rounds without a promise (iALS
under masks, one long run) and half under epsilon (private iALS, six noisy sums a run). All shops have to take part in
every round. Meanwhile faults are drawn from the seed, one every few rounds: SIGKILL of the coordinator or of a shop and
a new start, a stalled network, a shop that hangs. It fails unless

- the long run's arrays are, bit for bit, those of the same federation in one process without faults;
- every shop was charged for every noisy sum exactly once, its ledger's chain verifies, and its last head is the one
  that the coordinator keeps;
- no process left a traceback, and memory and file handles do not grow over a last run, without faults.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load

from fedrec.cli.shop import open_member
from fedrec.federation.anchors import AnchorBook
from fedrec.federation.enrolment import Offer
from fedrec.flower.deployment import HEADS_FILE, IDENTITY_FILE
from fedrec.flower.engines import Federation, run_local
from fedrec.privacy.ledger import Ledger
from fedrec.secure_aggregation.keys import IdentityKey

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.deployment.town import SHOPS, Town, build

SUMS_A_RUN = 6
ROUNDS_A_FAULT = (1, 5)
SPARED = "dog"
"""The shop that is never killed, so that its memory can be followed."""
WARM_UP_ROUNDS = 20
"""Of the last run, before memory is followed: caches and heaps fill."""
MOST_KB, MOST_HANDLES = 40.0, 0.05
"""Growth a round that counts as a leak."""


@dataclass
class Faults:
    """Draws faults in a thread of its own until it is told to stop; `num_rounds` is the clock that it goes by."""

    town: Town
    seed: int
    num_rounds: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    is_over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        draw, due = random.Random(self.seed), 0
        while not self.is_over.wait(0.1):
            if self.num_rounds < due:
                continue
            due = self.num_rounds + draw.randint(*ROUNDS_A_FAULT)
            self.is_over.wait(draw.uniform(0.0, 1.5))
            kind = draw.choice(("coordinator killed", "shop killed", "network stalled", "shop hung"))
            shop, seconds = draw.choice([one for one in self.town.shops if one != SPARED]), draw.uniform(0.5, 3.0)
            with self.lock:
                self._do(kind, shop, seconds)
            self.counts[kind] = self.counts.get(kind, 0) + 1

    def _do(self, kind: str, shop: str, seconds: float) -> None:
        town = self.town
        current = town.coordinator / "current-run"
        if kind == "coordinator killed" and current.exists():
            town.end("coordinator", signal.SIGKILL)
            if current.exists():  # else it had just finished
                town.start("coordinator")
        elif kind == "shop killed":
            town.end(shop, signal.SIGKILL)
            town.start(shop)
        elif kind == "network stalled":
            town.proxy.stall()
            self.is_over.wait(seconds)
            town.proxy.heal()
        elif kind == "shop hung":
            town.processes[shop].send_signal(signal.SIGSTOP)
            self.is_over.wait(seconds)
            town.processes[shop].send_signal(signal.SIGCONT)


@dataclass
class Samples:
    """Rounds, memory in KB and open files of two processes, as rounds go on."""

    seen: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)

    def take(self, town: Town, num_rounds: int) -> None:
        for name in ("coordinator", SPARED):
            process = town.processes.get(name)
            with suppress(OSError, TypeError, AttributeError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                kilobytes = float(re.search(r"VmRSS:\s+(\d+) kB", status)[1])
                handles = len(os.listdir(f"/proc/{process.pid}/fd"))
                self.seen.setdefault(name, []).append((num_rounds, kilobytes, handles))

    def growth(self, name: str) -> tuple[float, float]:
        """KB and handles a round: slopes."""
        table = np.array([row for row in self.seen[name] if row[0] >= WARM_UP_ROUNDS])
        table -= table.mean(axis=0)
        kilobytes, handles = table[:, 0] @ table[:, 1:] / (table[:, 0] @ table[:, 0])
        return float(kilobytes), float(handles)


def run_with_faults(town: Town, faults: Faults, done_before: int, samples: Samples | None = None) -> str:
    """One run to its end, whatever happens to it; its id."""
    with faults.lock:
        (town.coordinator / "status.json").unlink(missing_ok=True)
        town.start("coordinator")
    while True:
        time.sleep(0.2)
        with faults.lock:
            faults.num_rounds = done_before + int(town.status("coordinator").get("round", 0))
            if samples is not None:
                samples.take(town, faults.num_rounds)
            process = town.processes.get("coordinator")
            if process is not None and process.poll() is None:
                continue
            if process is not None and (status := town.finish()):
                raise SystemExit(f"the coordinator ended with {status}:\n{town.log('coordinator')[-3000:]}")
            town.check_logs()
            return str(town.status("coordinator")["run_id"])


def check_same(town: Town, run_id: str) -> None:
    """The run's arrays are those of one process without faults."""
    key = IdentityKey.load(town.coordinator / IDENTITY_FILE)
    offer = Offer.read((town.coordinator / "runs" / run_id / "offer.json").read_bytes(), key.public)
    histories, identities = [], []
    for shop in town.shops:
        member, _ = open_member(town.folder / shop)
        histories.append(member.node().histories)
        identities.append(IdentityKey.load(town.folder / shop / "identity.key"))
        member.close()
    here = run_local(
        Federation(
            offer.read_model(), offer.public_inputs(), offer.read_terms(), histories, identities=tuple(identities)
        )
    )
    there = load(town.model(run_id))
    same = there.keys() == here.state.keys() and all(
        there[name].tobytes() == array.tobytes() for name, array in here.state.items()
    )
    if not same:
        raise SystemExit("the arrays differ from those of the federation without faults")


def check_ledgers(town: Town, num_sums: int) -> None:
    """One charge a noisy sum, no repeat, chains that verify, and heads that agree."""
    book = AnchorBook(town.coordinator / HEADS_FILE, IdentityKey.load(town.coordinator / IDENTITY_FILE))
    for shop in town.shops:
        ledger = Ledger.open(town.folder / shop / "ledger.sqlite", shop)  # verifies the chain
        spent, head = ledger.spent(), ledger.head()
        ledger.close()
        if (spent.num_charges, spent.num_aborts) != (num_sums, 0):
            raise SystemExit(f"{shop}: {spent.num_charges} charges, {spent.num_aborts} aborts for {num_sums} sums")
        kept = [one.head for one in book.signed_heads(shop)]
        if max(one.sequence for one in kept) > head.sequence or not any(one == head for one in kept):
            raise SystemExit(f"{shop}: the coordinator keeps another head than the ledger's")


def soak(folder: Path, num_rounds: int, seed: int, num_followed: int = 0) -> Samples:
    """All of it but the check of growth over ``num_followed`` rounds; prints what happened."""
    with redirect_stdout(io.StringIO()):
        town = build(folder)
    town.change("coordinator", deadline_s=20.0, patience_s=600.0, min_shops=len(SHOPS), epsilon=None, delta=None)
    path = town.coordinator / "coordinator.toml"
    long_run = num_rounds // 2
    settings = 'name = "ials"\nsettings = {{ factors = 8, sweeps = {} }}'
    text = re.sub(r'(?m)^name = "ease".*$', settings.format(long_run), path.read_text())
    path.write_text(text)
    for shop in SHOPS:
        town.change(shop, allow_research=True, idle_after_s=5.0)
        town.start(shop)
    faults, samples, started = Faults(town, seed), Samples(), time.monotonic()
    thread = threading.Thread(target=faults.run)
    thread.start()
    try:
        run_id = run_with_faults(town, faults, 0)
        done = len(town.rounds(run_id))
        with faults.lock:
            check_same(town, run_id)  # now: the shops' folders still hold this run
        print(f"one run of {done} rounds after {time.monotonic() - started:.0f} s; faults {faults.counts}", flush=True)
        path.write_text(text.replace(settings.format(long_run), settings.format(SUMS_A_RUN - 1)))
        town.change("coordinator", epsilon=2.0, delta=1e-6)
        num_sums = 0
        while done < num_rounds:
            sums = len(town.rounds(run_with_faults(town, faults, done)))
            done, num_sums = done + sums, num_sums + sums
        print(f"{num_sums // SUMS_A_RUN} private runs, {num_sums} noisy sums", flush=True)
        faults.is_over.set()
        thread.join()
        check_ledgers(town, num_sums)
        print(f"{done} rounds in {time.monotonic() - started:.0f} s; faults: {faults.counts}")
        print("arrays as without faults; one charge a sum, no repeat; ledgers verify, heads agree; no traceback")
        if num_followed:
            path.write_text(text.replace(settings.format(long_run), settings.format(num_followed)))
            town.change("coordinator", epsilon=None, delta=None)
            run_with_faults(town, faults, 0, samples)
    finally:
        faults.is_over.set()
        thread.join()
        town.close()
    return samples


def check_growth(samples: Samples) -> None:
    """Neither memory nor file handles grow with the rounds; prints how they move."""
    for name in ("coordinator", SPARED):
        kilobytes, handles = samples.growth(name)
        what = "coordinator" if name == "coordinator" else "a shop's agent"
        last = samples.seen[name][-1][1] / 1024
        print(f"{what}: {kilobytes:+.1f} KB and {handles:+.3f} open files a round; {last:.0f} MB at the end")
        if not (kilobytes < MOST_KB and handles < MOST_HANDLES):
            raise SystemExit(f"more than {MOST_KB:g} KB or {MOST_HANDLES:g} files a round: a leak")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--followed", type=int, default=100, help="rounds of the last run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        check_growth(soak(Path(folder), options.rounds, options.seed, options.followed))


if __name__ == "__main__":
    main()
