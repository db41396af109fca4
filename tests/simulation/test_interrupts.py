"""A simulation whose process is stopped in the middle of masked rounds: it says so in one line, and it resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedrec.privacy.ledger import Ledger

BASE = ("--source", "synthetic", "--seed", "3", "--no-tune", "--reveal-coordinator-view")
SMALL = {
    "data.synthetic.num_shoppers": 400,
    "data.synthetic.num_shops": 4,
    "data.synthetic.num_items": 60,
    "evaluation.bootstrap": 100,
    "evaluation.ks": [10],
}
PRIVATE = {"evaluation.columns": ["local", "dp_popularity", "federated_dp_personal"], "privacy.noise_draws": 2}
FEDERATED = "eps-2/federated_dp_personal-draw-1"
DP_POPULARITY = "eps-2/dp_popularity-draw-1"
PER_SHOP_AND_ROUND = 3  # upload, signature, shares
PER_SHOP_AND_SETUP = 2  # keys, deal
SHOPS = 4
SETUP = SHOPS * PER_SHOP_AND_SETUP
ROUND = SHOPS * PER_SHOP_AND_ROUND


def command(out: Path, settings: dict[str, object], *options: str) -> list[str]:
    run = "import sys; from fedrec.cli import main; sys.exit(main())"
    sets = [part for name, value in {**SMALL, **settings}.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    return [sys.executable, "-c", run, "simulate", *BASE, *options, *sets, "--out", str(out)]


def messages(out: Path, rounds: str) -> list[dict[str, object]]:
    path = out / "coordinator_view" / rounds / "messages.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def stopped_after(out: Path, line: list[str], rounds: str, number: int, how: signal.Signals) -> tuple[int, str]:
    """Start the command and stop its whole group, as a terminal does, when so many messages have come."""
    process = subprocess.Popen(
        line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(messages(out, rounds)) < number and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()
    os.killpg(process.pid, how)
    said = process.communicate(timeout=60)[1]
    return process.returncode, said


def check(out: Path) -> None:
    """The run is finished, its ledgers hold one draw, and nothing is left over."""
    record = json.loads((out / "run.json").read_text())
    figures = record["scores"]["federated_dp_personal@2"]["macro"]["ndcg@10"]
    assert figures["mean"] > 0
    assert record["privacy"]["runs"][0]["federated"]["rounds"][0]["failed"] == 0
    url = f"sqlite:///{out / record['privacy']['runs'][0]['ledger']}"
    for row in record["data"]["shops"]:
        ledger = Ledger.open(url, row["shop"])
        ledger.verify()
        assert ledger.head().sequence == 4  # opened, reserved, charged twice
        assert 1.8 < ledger.spent().epsilon <= 2
    assert not [path for path in out.rglob("*") if path.suffix in {".tmp", ".part"}]
    for path in out.rglob("messages.jsonl"):
        listed = [json.loads(text) for text in path.read_text().splitlines()]
        assert [one["number"] for one in listed] == list(range(len(listed)))
        assert all((path.parent / one["file"]).stat().st_size == one["bytes"] for one in listed)


POINTS = {
    "popularity": (DP_POPULARITY, SETUP + 2),
    "second draw of popularity": ("eps-2/dp_popularity-draw-2", 1),
    "keys": (FEDERATED, 2),
    "first upload": (FEDERATED, SETUP + 1),
    "first shares": (FEDERATED, SETUP + 2 * SHOPS + 2),
    "between the rounds": (FEDERATED, SETUP + ROUND),
    "second upload": (FEDERATED, SETUP + ROUND + 2),
    "last signature": (FEDERATED, SETUP + ROUND + SHOPS + 3),
    "last share": (FEDERATED, SETUP + 2 * ROUND),
    "second draw": ("eps-2/federated_dp_personal-draw-2", SETUP + 3),
}


@pytest.mark.parametrize(
    ("point", "how", "workers"),
    [
        ("last signature", signal.SIGKILL, 0),
        *(
            pytest.param(point, how, 2 if place % 3 == 0 else 0, marks=pytest.mark.slow)
            for place, point in enumerate(POINTS)
            for how in [signal.SIGINT, signal.SIGKILL][place % 2 :][:1]
        ),
    ],
)
def test_a_masked_private_run_that_was_stopped_resumes_and_ends(
    tmp_path: Path, point: str, how: signal.Signals, workers: int
) -> None:
    out = tmp_path / "run"
    rounds, number = POINTS[point]
    slow = {**PRIVATE, "federation.faults.delay_s": 0.05}
    line = command(out, slow, "--epsilon", "2", "--delta", "1e-5", "--workers", str(workers))
    status, said = stopped_after(out, line, rounds, number, how)
    before = messages(out, rounds)
    if how is signal.SIGINT:
        assert status == 130, said
        assert said.splitlines()[-1].startswith("interrupted: ")
        assert "Traceback" not in said
        assert not list(out.rglob(".*.tmp"))
    done = subprocess.run([*line, "--resume"], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert "could not" not in done.stderr
    check(out)
    after = messages(out, rounds)
    assert after[: len(before)] == before


@pytest.mark.slow
def test_the_masked_sums_of_a_resumed_run_are_those_of_one_that_was_never_stopped(tmp_path: Path) -> None:
    settings = {"evaluation.columns": ["local", "federated"], "federation.faults.delay_s": 0.05}
    settings["federation.secure"] = True
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = subprocess.run(command(whole, settings), capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    status, said = stopped_after(cut, command(cut, settings), "federated", SETUP + SHOPS + 1, signal.SIGINT)
    assert status == 130, said
    done = subprocess.run([*command(cut, settings), "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tables = [json.loads((out / "run.json").read_text())["scores"] for out in (whole, cut)]
    assert tables[0] == tables[1]
    assert {one["attempt"] for one in messages(cut, "federated")} == {1, 2}
    assert len(messages(cut, "federated")) > len(messages(whole, "federated"))
