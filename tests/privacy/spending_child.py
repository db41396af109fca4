"""A shop's process that spends its budget and is killed for it; see test_ledger_processes.py.

What "left" is appended to a file and flushed to disk, as the network cannot be asked.
"""

import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from fedrec.errors import BudgetExhausted, TooManyAborts
from fedrec.privacy.ledger import Budget, Ledger
from fedrec.privacy.mechanisms import PlannedRelease
from fedrec.privacy.spec import Mode, PrivacySpec

SPEC = PrivacySpec(
    epsilon=3.0, delta=1e-5, mode=Mode.LOCAL, public_shoppers=100, max_shoppers=1000, min_shops=3, colluders=1
)
RELEASE = PlannedRelease("gram", 1.0, 64.0)
ROUNDS = 3


def send(outbox: Path, line: str) -> None:
    """Nothing can call this back."""
    with open(outbox, "a") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def run(book: Ledger, outbox: Path, run_id: str) -> None:
    """One run of three rounds, or the rest of it."""
    book.reserve(run_id, SPEC, (RELEASE,) * ROUNDS)
    for index in range(ROUNDS):
        plan = hashlib.sha256(f"{run_id} {index}".encode()).digest()
        found = book.stored(run_id, index, plan)
        payload = os.urandom(2000) if found is None else found.payload  # fresh noise whenever it is computed
        if found is None:
            book.charge(run_id, index, plan, RELEASE, payload)
        send(outbox, f"{run_id} {index} {hashlib.sha256(payload).hexdigest()}")
    book.finish(run_id)


def all_runs(database: str, outbox: Path, name: str, *, num_lines: int = 0) -> None:
    """Run after run, beginning with the one that a dead process left; so many lines after the look back, it dies."""
    book = Ledger.open(database, "north")
    finished = {run_id for run_id, found in book.verify().runs.items() if found.is_finished}
    if num_lines:
        die_after(num_lines)
    for number in range(10_000):
        if f"{name}-{number}" not in finished:
            run(book, outbox, f"{name}-{number}")


def die_after(num_lines: int) -> None:
    """Kill this process before it runs so many more lines of the ledger's files or of this one."""

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal num_lines
        if not any(name in frame.f_code.co_filename for name in ("ledger", "spending_child")):
            return None
        num_lines -= event == "line"
        if num_lines < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def race(database: str, outbox: Path, name: str) -> None:
    """Runs of one round each, until the budget is gone; after the first it waits for the others' first."""
    book = Ledger.open(database, "north")
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(100):
        if number == 1:
            print("started", flush=True)
            sys.stdin.readline()
        try:
            book.reserve(f"{name}-{number}", SPEC, (RELEASE,))
            book.charge(f"{name}-{number}", 0, b"p" * 32, RELEASE, b"x")
        except (BudgetExhausted, TooManyAborts):
            return
        send(outbox, f"{name}-{number}")
        time.sleep(0.01)  # SQLite's lock is not fair: give the others a turn


def serve(database: str, outbox: Path, name: str) -> None:
    """For each line read, fork a process that goes on with the runs until it is killed: no import to wait for.

    A line holds after how many lines of code the process kills itself; 0 = somebody else does.
    """
    Ledger.open("sqlite://", "warm", budget=Budget(1.0, 1e-5)).close()
    print("ready", flush=True)
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            all_runs(database, outbox, name, num_lines=int(line))
            os._exit(0)
        print(child, flush=True)
        os.waitpid(child, 0)
        print("dead", flush=True)


if __name__ == "__main__":
    kind, database, outbox, name = sys.argv[1:]
    if kind == "race":
        race(database, Path(outbox), name)
    else:
        serve(database, Path(outbox), name)
