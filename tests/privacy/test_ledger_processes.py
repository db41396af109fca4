"""Processes that die, and processes that race: what left is never more than what is charged."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedrec.privacy.ledger import Budget, Ledger

CHILD = Path(__file__).parent / "spending_child.py"
COST = 1 / 64**2
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(kind, database, outbox, name):
    child = subprocess.Popen(
        [sys.executable, CHILD, kind, str(database), str(outbox), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert child.stdout.readline() == b"ready\n"
    return child


def end(child):
    child.stdin.close()
    child.stdout.close()
    child.wait()


def lines_of(outbox):
    return outbox.read_text().splitlines() if outbox.exists() else []


def kill_at_random(database, outbox, times, seed):
    """Start, kill and look, again and again; the child goes on with the same runs.

    Two of three die before a random line of code, wherever a busy machine has got to; the third at a random time, so
    also inside the database's own code.
    """
    rng = random.Random(seed)
    server = start("serve", database, outbox, "run")
    for number in range(times):
        by_time = number % 3 == 2
        server.stdin.write(f"{0 if by_time else rng.randrange(1, 1000)}\n".encode())
        server.stdin.flush()
        child = int(server.stdout.readline())
        if by_time:
            time.sleep(rng.uniform(0, 0.2))
            os.kill(child, signal.SIGKILL)
        assert server.stdout.readline() == b"dead\n"
        check_books(database, outbox)
    end(server)


def check_books(database, outbox):
    book = Ledger.open(database, "north")
    left = {tuple(line.split()[:2]) for line in lines_of(outbox)}
    assert book.head().spent.gdp >= COST * len(left) * (1 - 1e-12)
    account = book.verify()
    assert all(int(index) in account.runs[run].charged for run, index in left)
    sent = {}
    for line in lines_of(outbox):
        run, index, digest = line.split()
        assert sent.setdefault((run, index), digest) == digest, "a resumed run sent other bytes"
    book.close()


@pytest.mark.parametrize(
    "times",
    [
        int(os.environ.get("FEDREC_LEDGER_KILLS", "20")),
        pytest.param(200, marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_point_no_more_left_than_was_charged(tmp_path, times):
    database, outbox = tmp_path / "ledger.db", tmp_path / "outbox"
    Ledger.open(database, "north", budget=Budget(50.0, 1e-5)).close()
    kill_at_random(database, outbox, times, seed=times)
    lines = lines_of(outbox)
    assert len(lines) > times // 4  # the children did get to send
    assert len(set(lines)) < len(lines)  # and some sent again


def test_two_processes_cannot_spend_the_same_budget(tmp_path):
    database = tmp_path / "ledger.db"
    book = Ledger.open(database, "north", budget=Budget(0.25, 1e-5))
    outboxes = [tmp_path / f"outbox-{i}" for i in range(3)]
    children = [start("race", database, outbox, f"child{i}") for i, outbox in enumerate(outboxes)]
    for said in (b"started\n", None):
        for child in children:
            child.stdin.write(b"go\n")
            child.stdin.flush()
        if said:
            assert [child.stdout.readline() for child in children] == [said] * 3
    for child in children:
        end(child)
        assert child.returncode == 0
    left = [len(lines_of(outbox)) for outbox in outboxes]
    spent = book.spent()
    assert spent.num_charges == sum(left)
    assert spent.epsilon <= 0.25
    alone = Ledger.open("sqlite://", "north", budget=Budget(0.25, 1e-5))
    assert sum(left) == most_runs(alone)
    assert all(count > 0 for count in left)
    book.verify()


def most_runs(book):
    """How many one-round runs the budget covers."""
    from fedrec.errors import BudgetExhausted
    from fedrec.privacy.mechanisms import PlannedRelease
    from fedrec.privacy.spec import Mode, PrivacySpec

    spec = PrivacySpec(3.0, 1e-5, Mode.LOCAL, public_shoppers=100, max_shoppers=1000, min_shops=3)
    for number in range(1000):
        try:
            book.reserve(f"{number}", spec, (PlannedRelease("gram", 1.0, 64.0),))
        except BudgetExhausted:
            return number
    raise AssertionError("the budget never ends")
