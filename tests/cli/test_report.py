"""fedrec report privacy, verify and plan in the terminal."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedrec.privacy import accounting
from fedrec.privacy.calibration import calibrate
from fedrec.privacy.mechanisms import ReleaseRequest
from fedrec.privacy.spec import Mode, PrivacySpec
from fedrec.reports.privacy_figures import odds
from fedrec.secure_aggregation.keys import IdentityKey

from ..reports.privacy_ledgers import SCHEDULE, anchor, charge, make_shop, open_ledger

Command = Callable[..., Any]

SHOP = """
Privacy of shop uk
shop.db: 1 ledger, 2 runs, 4 releases
! Rollback not detectable (shop uk): nobody outside the shop keeps the ledger's
head, so that a restored backup or a cloned machine would go unnoticed.

 shop   budget       δ   spent    left   lifetime   sums   anchor
 ────────────────────────────────────────────────────────────────
 uk          3   1e-06   1.635   2.402      1.635      4   no


 run        mode      ε   k = 1   k = 2   k = 3   coord.
 ───────────────────────────────────────────────────────
 winter-0   local   1.2   1.123   2.389   3.747    1.123
 winter-1   local   1.2   1.123   2.389   3.747    1.123

k: accounts of one person; coord.: what a coordinator
reaches that sees each shop's sum

 ε counted by     PLD   Rényi     PRV   closed form
 ──────────────────────────────────────────────────
 winter-0       1.123    1.21   1.133         1.123
 winter-1       1.123    1.21   1.133         1.123


 shop   sum             times   ε by itself   share
 ──────────────────────────────────────────────────
 uk     popularity          2        0.4731    10 %
 uk     co-occurrence       2         1.544    90 %

promised:
"""

CHECKS = """
✓ form        format 1
✓ signature   by key KEY, as given
✓ chain       9 entries in 1 ledger: each follows from the one before, every charge was reserved
✓ figures
✓ accountants PLD, Rényi and PRV agree on 2 runs (PRV within 0.01)
✓ ledger      the same entries as in the shop's database
✓ anchor      all 1 heads that the anchor keeps are in the chain
The report holds.
"""


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def test_the_terminal_shows_what_was_spent_and_left(fedrec: Command, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    make_shop(tmp_path / "shop.db", runs=2).close()
    said = fedrec("report", "privacy", tmp_path / "shop.db")
    assert (said.status, said.err) == (0, "")
    assert lines(said.out)[: len(lines(SHOP))] == lines(SHOP)
    text = " ".join(said.out.split())
    for words in (
        "promised: - Protected is one shopper (one account) with all her events in one shop, added or removed.",
        "Each of 2 runs at ε 1.2: whoever sees all that leaves is right",
        "All that ever left (uk): lifetime ε 1.635 at δ 1e-06, right at most 57.4 times in 100.",
        "not promised: - Nothing is promised between shoppers of one shop.",
        "assumed: - ε 1.2: nothing about other shops; 5,000 shoppers declared",
    ):
        assert words in text, words


def test_report_and_key_lie_beside_the_ledger(fedrec: Command, tmp_path):
    make_shop(tmp_path / "shop.db").close()
    said = fedrec("report", "privacy", tmp_path / "shop.db")
    assert f"page: {tmp_path / 'privacy-report.html'}" in said.out
    assert stat.S_IMODE((tmp_path / "privacy-report.key").stat().st_mode) == 0o600
    report = json.loads((tmp_path / "privacy-report.json").read_bytes())
    assert f"signed by key {report['signature']['fingerprint']}" in said.out
    assert report["source"] == "shop.db"


def test_a_given_key_signs_and_none_is_made(fedrec: Command, tmp_path):
    make_shop(tmp_path / "shop.db").close()
    key = IdentityKey.generate()
    key.save(tmp_path / "shop.key")
    options = ("--key", tmp_path / "shop.key", "--out", tmp_path / "a" / "b")
    said = fedrec("report", "privacy", tmp_path / "shop.db", *options)
    assert f"signed by key {key.public.fingerprint()}" in said.out
    assert not list(tmp_path.rglob("privacy-report.key"))
    said = fedrec("report", "privacy", tmp_path / "shop.db", "--key", tmp_path / "none.key")
    assert (said.status, said.err.count("\n")) == (2, 1)


def test_a_true_report_holds_line_by_line(fedrec: Command, tmp_path):
    ledger = make_shop(tmp_path / "shop.db", runs=2)
    kept = anchor(ledger, tmp_path)
    fedrec("report", "privacy", tmp_path / "shop.db")
    file = tmp_path / "privacy-report.json"
    key = json.loads(file.read_bytes())["signature"]["fingerprint"]
    options = ("--public-key", key, "--ledger", tmp_path / "shop.db", "--anchor", kept)
    said = fedrec("report", "verify", file, *options)
    assert said.status == 0
    for line, expected in zip(lines(said.out), lines(CHECKS.replace("KEY", key)), strict=True):
        assert line.startswith(expected), line


def test_a_changed_figure_ends_with_one(fedrec: Command, tmp_path):
    make_shop(tmp_path / "shop.db", runs=2).close()
    fedrec("report", "privacy", tmp_path / "shop.db")
    file = tmp_path / "privacy-report.json"
    text = file.read_text()
    assert '"lifetime": 1.63' in text
    file.write_text(text.replace('"lifetime": 1.63', '"lifetime": 1.53', 1))
    said = fedrec("report", "verify", file)
    assert said.status == 1
    assert "The report does not hold: signature, figures." in said.out
    assert "✗ figures" in said.out


def test_a_run_of_several_promises_is_reported_by_promise(fedrec: Command, tmp_path):
    for epsilon in ("10", "2"):
        (tmp_path / "privacy" / f"eps-{epsilon}").mkdir(parents=True)
        for shop in ("fr", "uk"):
            ledger = open_ledger(
                tmp_path / "privacy" / f"eps-{epsilon}" / "ledger.sqlite", shop, epsilon=float(epsilon)
            )
            charge(ledger, f"run-{epsilon}", SCHEDULE)
    said = fedrec("report", "privacy", tmp_path)
    assert "! 2 promises (ε 2, ε 10), each counted as if it were the only one" in said.out
    assert "ε 2: all 2 shops" in said.out
    assert (tmp_path / "privacy" / "privacy-report.html").is_file()
    assert fedrec("report", "verify", tmp_path / "privacy" / "privacy-report.json", "--ledger", tmp_path).status == 0


def test_a_run_without_a_promise_is_told_so(fedrec: Command, run_dir):
    said = fedrec("report", "privacy", run_dir)
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert "this run promises nothing, so there is no ledger to report" in said.err
    assert not (run_dir / "privacy").exists()


@pytest.mark.parametrize("what", ["missing.db", ".", "notes.txt", "sqlite:///missing.db", "nodb://x"])
def test_what_holds_no_ledger_is_refused_in_one_line(fedrec: Command, tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no database")
    said = fedrec("report", "privacy", what)
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]


def test_a_plan_answers_before_any_data(fedrec: Command):
    said = fedrec("report", "plan", "--epsilon", 2, "--rounds", 5, "--shoppers", 6000, "--delta", 1e-6)
    assert (said.status, said.err) == (0, "")
    text = " ".join(said.out.split())
    for words in (
        "ε 2, δ 1e-06, 5 rounds, 6,000 shoppers in 10 shops, mode distributed",
        "noise holds with 8 shops in a sum, 1 of them telling the coordinator theirs; needs secure aggregation",
        "a person with 1, 2, 3 accounts: ε 2, 4.318, 6.871",
        "right about whether somebody was there at most 58.9 times in 100",
        "statistics 4 85.2 %",
        "expect: up to half of the gain (about 35 %",
        "mode local 17 14 % strongest tastes",
        "read off private co-occurrence on MovieLens-1M",
    ):
        assert words in text, words


def test_a_plan_without_delta_says_which_one_it_answers_for(fedrec: Command):
    asked = ("report", "plan", "--epsilon", 2, "--rounds", 5, "--shoppers", 6000)
    said, given = fedrec(*asked), fedrec(*asked, "--delta", 1e-6)
    assert (said.status, said.err) == (0, "")
    assert said.out.startswith(given.out)
    assert " ".join(said.out.removeprefix(given.out).split()) == (
        "No --delta was given: this answers for 1e-06. It is the chance at which the promise may fail; 6,000 shoppers "
        "allow at most 1.67e-05, and a run has no default for it."
    )
    many = fedrec("report", "plan", "--epsilon", 2, "--rounds", 5, "--shoppers", 10**6)
    assert "δ 1e-07" in many.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--delta", 1e-4), "at most 1 / (10 x 6,000 public shoppers) = 1.7e-05"),
        (("--delta", 1), "delta = 1.0: must be above 0 and at most 1 / (10 x 6,000 public shoppers)"),
        (("--delta", 1e-6, "--min-shops", 5), "min_shops = 5: sums of 10 shops, 1 of them colluding, need more than"),
        (("--delta", 1e-6, "--epsilon", 1e9), "give at most 50"),
        (("--delta", 1e-6, "--epsilon", 0), "give a number above 0"),
        (("--delta", 1e-6, "--epsilon", "nan"), "give a number above 0"),
        (("--delta", 1e-6, "--rounds", 0), "rounds = 0"),
        (("--delta", 1e-6, "--shoppers", 0), "shoppers = 0"),
        (("--delta", 1e-6, "--shops", 2), "mode local"),
        (("--delta", 1e-6, "--colluders", 0), "colluders = 0"),
        (("--delta", 1e-6, "--mode", "none"), "distributed or local"),
        (("--delta", 1e-6, "--items", 1), "items = 1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_one_line(fedrec: Command, options, words):
    said = fedrec("report", "plan", "--epsilon", 2, "--rounds", 5, "--shoppers", 6000, *options)
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert words in said.err


@pytest.mark.parametrize("command", ["privacy", "verify", "plan"])
def test_help_holds_an_example_and_loads_nothing_heavy(fedrec: Command, command):
    said = fedrec("report", command, "--help")
    assert said.status == 0
    assert f"  fedrec report {command}" in said.out.split("Examples", 1)[1]
    code = (
        "import sys; from fedrec.cli import main; main(sys.argv[1:]);"
        "heavy = {'numpy', 'scipy', 'torch', 'opacus', 'dp_accounting', 'matplotlib', 'sqlalchemy', 'cryptography'};"
        "print('loaded:', sorted(heavy & sys.modules.keys()))"
    )
    arguments = [sys.executable, "-c", code, "report", command, "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_the_page_for_lawyers_says_what_the_accountant_says():
    page = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| ε ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) % \| ([\d.]+), ([\d.]+) \|", page)
    assert [row[0] for row in rows] == ["0.5", "1", "2", "4", "8"]
    for row in rows:
        epsilon, right, found, posterior, two, three = (float(cell) for cell in row)
        promise = PrivacySpec(epsilon, 1e-6, Mode.LOCAL, 6000, 6000, 1)
        schedule = calibrate((ReleaseRequest("sum", 1.0, clip_norm=1.0),), promise)
        best = odds(schedule)
        assert right == pytest.approx(100 * best["right_of_coin"], abs=0.051)
        assert found == pytest.approx(100 * best["found_at_one_percent"], abs=0.051)
        assert posterior == pytest.approx(100 * accounting.posterior(0.1, epsilon), abs=0.051)
        assert two == pytest.approx(accounting.epsilon(schedule, 1e-6, memberships=2), rel=5e-3)
        assert three == pytest.approx(accounting.epsilon(schedule, 1e-6, memberships=3), rel=5e-3)


_LOCAL_UPDATES = (
    *("--model", "smallae", "--set", 'model.settings.private_rounds="local-update"'),
    *("--set", "model.settings.private_local_steps=2", "--set", "model.settings.private_steps=4"),
    *("--set", "model.settings.private_sampling_rate=0.5", "--set", "model.settings.size=8"),
    *("--epsilon", "4", "--delta", "1e-5", "--set", "privacy.noise_draws=1"),
    *("--set", "evaluation.columns=['popularity','federated_dp']"),
)


@pytest.mark.parametrize("masks", ["--secure", "--no-secure"])
def test_local_updates_of_noisy_steps_are_run_reported_and_verified(fedrec: Command, small_options, tmp_path, masks):
    run = tmp_path / "run"
    options = (*small_options, *_LOCAL_UPDATES, "--privacy-mode", "local", masks, "--out", run)
    said = fedrec("simulate", *options)
    assert said.status == 2
    assert "privacy.shop_shoppers lacks" in said.err
    assert not run.exists()
    sizes = [f"privacy.shop_shoppers.shop-{place}=100" for place in (1, 2, 3)]
    assert fedrec("simulate", *options, *(text for size in sizes for text in ("--set", size))).status == 0
    said = fedrec("report", "privacy", run, "--out", tmp_path)
    assert said.status == 0
    assert "In rounds of local steps a shop trains by itself (2 steps a round)" in said.out
    assert "local steps, 2 a round" in (tmp_path / "privacy-report.html").read_text(encoding="utf-8")
    said = fedrec("report", "verify", tmp_path / "privacy-report.json", "--ledger", run)
    assert said.status == 0
    assert "✓ accountants PLD, Rényi and PRV agree on 1 run" in said.out
    text = (tmp_path / "privacy-report.json").read_text(encoding="utf-8")
    (tmp_path / "privacy-report.json").write_text(text.replace('"local_steps": 2', '"local_steps": 1', 1))
    assert fedrec("report", "verify", tmp_path / "privacy-report.json").status == 1


def test_local_updates_with_shared_noise_are_refused_before_anything_is_written(
    fedrec: Command, small_options, tmp_path
):
    said = fedrec("simulate", *small_options, *_LOCAL_UPDATES, "--out", tmp_path / "run")
    assert said.status == 2
    assert (
        'give mode local (privacy.mode), or gradient steps (the model\'s private_rounds = "gradient-step")' in said.err
    )
    assert not (tmp_path / "run").exists()
