"""``fedrec simulate``: what it leaves, what it refuses."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

_SWEEPS = 60


def test_a_run_leaves_a_complete_record_and_a_page_and_names_its_directory_last(run_dir: Path) -> None:
    record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    assert record["complete"] is True
    assert record["name"] == "synthetic"
    assert record["config"]["data"]["synthetic"]["num_shops"] == 3
    assert all((run_dir / name).stat().st_size > 0 for name in record["files"])
    assert "<svg" in (run_dir / "report.html").read_text(encoding="utf-8")


def test_the_comparison_ends_with_the_run_directory(
    fedrec: Callable[..., Any], small_options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = fedrec("simulate", *small_options, "--name", "mine", "--set", "evaluation.columns=['popularity','local']")
    assert said.status == 0
    last = said.out.splitlines()[-1]
    assert last.startswith("run directory: runs/mine-")
    made = tmp_path / last.removeprefix("run directory: ")
    assert (made / "run.json").is_file()
    assert "NDCG@10" in said.out
    assert "load and split: " in said.err
    assert "\x1b" not in said.out + said.err


def test_an_existing_directory_is_refused_and_not_touched(
    fedrec: Callable[..., Any], small_options: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text("mine")
    said = fedrec("simulate", *small_options, "--out", tmp_path)
    assert said.status == 2
    assert "exists already" in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert (tmp_path / "run.json").read_text() == "mine"


def test_a_directory_that_is_no_run_cannot_be_resumed(
    fedrec: Callable[..., Any], small_options: tuple[str, ...], tmp_path: Path
) -> None:
    assert fedrec("simulate", *small_options, "--out", tmp_path, "--resume").status == 2
    assert fedrec("simulate", *small_options, "--out", tmp_path / "none", "--resume").status == 2
    assert list(tmp_path.iterdir()) == []


def test_own_files_run_from_end_to_end(fedrec: Callable[..., Any], tmp_path: Path) -> None:
    rows = [
        {"filiale": f"s{shopper % 2}", "kunde": f"k{shopper}", "artikel": f"a{(shopper + step) % 9}", "datum": day}
        for shopper in range(40)
        for step, day in enumerate(("2024-01-01", "2024-01-05", "2024-02-01", "2024-02-03"))
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "my.csv", index=False)
    titles = [{"item_id": f"a{place}", "title": f"thing {place}", "category": "x"} for place in range(9)]
    pd.DataFrame(titles).to_csv(tmp_path / "items.csv", index=False)
    said = fedrec(
        *("simulate", "--events", tmp_path / "my.csv", "--items", tmp_path / "items.csv", "--no-tune"),
        *("--columns", "shopper=kunde,item=artikel,shop=filiale,timestamp=datum", "--model", "itemknn"),
        *("--out", tmp_path / "run"),
    )
    assert said.status == 0, said.err
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert (record["name"], record["data"]["events"], record["data"]["shoppers"]) == ("my", 160, 40)
    listed = fedrec("recommend", "--run", tmp_path / "run", "--shop", "s1", "--shopper", "k1", "-n", 3)
    assert listed.status == 0
    assert "thing" in listed.out


def test_an_epsilon_adds_the_private_columns_and_the_guarantee_ends_the_output(
    fedrec: Callable[..., Any], small_options: tuple[str, ...], tmp_path: Path
) -> None:
    said = fedrec(
        *("simulate", *small_options, "--epsilon", "0.5,4", "--delta", "1e-6", "--noise-draws", "2"),
        *("--out", tmp_path / "run"),
    )
    assert said.status == 0, said.err
    for title in ("DP popularity, ε 0.5", "federated DP(ε 4)", "federated DP(ε 4) + personal", "gain in NDCG@10"):
        assert title in said.out
    guarantee = next(line for line in said.out.splitlines() if line.startswith("guarantee: "))
    assert "epsilon 0.5, delta 1e-06" in guarantee
    assert "the coordinator" in " ".join(said.out.split())
    assert "epsilon 4, draw 2 of 2: co-occurrence" in said.err
    assert (tmp_path / "run" / "privacy" / "eps-4" / "ledger.sqlite").stat().st_size > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--epsilon", "2"), "epsilon = 2 without delta"),
        (("--epsilon", "two", "--delta", "1e-6"), "--epsilon two: give a number above 0"),
        (("--epsilon", "1,,2", "--delta", "1e-6"), "--epsilon 1,,2: give a number above 0"),
        (("--epsilon", "0", "--delta", "1e-6"), "privacy.epsilon = 0.0: give a number above 0"),
        (("--epsilon", "2", "--delta", "0.01"), "delta = 0.01: must be above 0 and at most 1 / (10 x 300"),
        (("--epsilon", "2", "--delta", "1e-6", "--colluders", "0"), "colluders = 0 in mode distributed"),
        (("--epsilon", "2", "--delta", "1e-6", "--privacy-mode", "remote"), 'privacy.mode = "remote"'),
        (("--epsilon", "2", "--delta", "1e-6", "--shops", "random:2"), "2 shops: shared noise needs at least 3"),
        (("--epsilon", "1e9", "--delta", "1e-6"), "privacy.epsilon = 1e+09: give at most 50"),
        (("--epsilon", "2", "--delta", "0"), "privacy.delta = 0.0: give a number above 0 and at most 1 / (10 x"),
        (("--epsilon", "2", "--delta", "nan"), "privacy.delta = NaN: give a number above 0 and at most 1 / (10 x"),
        (("--epsilon", "2", "--set", "privacy.delta=abc"), 'privacy.delta = "abc": give a number above 0 and at most'),
        (
            ("--epsilon", "2", "--delta", "1e-6", "--benchmark-no-colluders", "--colluders", "2"),
            "--benchmark-no-colluders with --colluders 2: give one of the two",
        ),
        (
            ("--epsilon", "2", "--delta", "1e-6", "--colluders", "3"),
            "privacy.colluders = 3 among 3 shops: at least one",
        ),
        (
            ("--epsilon", "2", "--delta", "1e-6", "--set", "federation.min_shops=2"),
            "federation.min_shops = 2: sums of 3 shops, 1 of them colluding, need more than (3 + 1) / 2",
        ),
    ],
)
def test_a_promise_that_cannot_be_made_is_refused_in_one_line_and_nothing_is_written(
    fedrec: Callable[..., Any], small_options: tuple[str, ...], tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    columns = ("--set", "evaluation.columns=['dp_popularity']")
    said = fedrec("simulate", *small_options, *columns, *options, "--out", tmp_path / "run")
    assert said.status == 2
    assert words in said.err.splitlines()[-1]
    assert "Traceback" not in said.err
    assert list(tmp_path.iterdir()) == []


def test_masks_under_local_noise_need_no_further_setting(
    fedrec: Callable[..., Any], small_options: tuple[str, ...], tmp_path: Path
) -> None:
    said = fedrec(
        *("simulate", *small_options, "--epsilon", "2", "--delta", "1e-6", "--privacy-mode", "local", "--secure"),
        *("--noise-draws", "1", "--set", "evaluation.columns=['dp_popularity']", "--out", tmp_path / "run"),
    )
    assert said.status == 0, said.err
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["privacy"]["is_masked"] is True


def test_a_benchmark_without_colluders_is_marked_as_one(
    fedrec: Callable[..., Any], small_options: tuple[str, ...], tmp_path: Path
) -> None:
    said = fedrec(
        *("simulate", *small_options, "--epsilon", "2", "--delta", "1e-5", "--benchmark-no-colluders"),
        *("--set", "evaluation.columns=['dp_popularity']", "--out", tmp_path / "run"),
    )
    assert said.status == 0, said.err
    assert "not a deployable guarantee" in " ".join(said.out.split())
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["config"]["privacy"]["colluders"] == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c_says_how_to_resume_and_the_resumed_run_is_complete(
    small_options: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-c", "import sys; from fedrec.cli import main; sys.exit(main())", "simulate"]
    command += [*small_options, "--model", "ials", "--out", str(out), "--set", "evaluation.columns=['federated']"]
    command += ["--set", f"model.settings.sweeps={_SWEEPS}", "--set", "model.settings.factors=4"]
    command += ["--set", "federation.faults.delay_s=0.05"]  # there is time to press the keys
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (out / "checkpoint.safetensors").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 130, said
    assert said.splitlines()[-1].startswith("interrupted: ")
    assert f"--out {out} --resume" in said
    assert "Traceback" not in said
    assert not (out / "run.json").exists()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert [one["index"] for one in record["rounds"]] == list(range(_SWEEPS))
    assert f"round {_SWEEPS}: " in done.stderr
    assert "round 1: " not in done.stderr
