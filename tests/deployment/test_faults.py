"""Processes that die, networks that stall, disks that fill: the run goes on, and nothing is charged twice."""

from __future__ import annotations

import datetime
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fedrec.errors import LedgerBehind
from fedrec.flower.certificates import TlsFiles, issue

from .town import LONG_S, SHOPS, Town, command, copy_of, wait_until

pytestmark = pytest.mark.slow


@contextmanager
def charged_once(town: Town, *, without: tuple[str, ...] = ()) -> Iterator[None]:
    """Every shop is charged for each noisy sum of the run once, and for no repeated one."""
    before = town.charges()
    yield
    num_rounds = len(town.rounds(str(town.status("coordinator")["run_id"])))
    for shop, (charges, aborts) in town.charges().items():
        assert aborts == before[shop][1], shop
        if shop not in without:
            assert charges - before[shop][0] == num_rounds, shop
    town.check_logs()


def upload_seen(town: Town) -> None:
    wait_until(town.uploads, "an upload")


def test_a_coordinator_that_was_killed_goes_on_with_the_same_round(town):
    with charged_once(town):
        town.begin()
        upload_seen(town)
        town.end("coordinator", signal.SIGKILL)
        run_id = (town.coordinator / "current-run").read_text()
        kept = {path.name for path in town.uploads()}
        assert kept
        assert town.run() == run_id
    assert "goes on with the uploads of" in town.log("coordinator")


def test_a_shop_that_was_killed_in_a_round_comes_back_and_is_charged_once(town):
    town.change("coordinator", min_shops=4)  # the round cannot end without it
    with charged_once(town):
        town.begin()
        upload_seen(town)
        town.end("bee", signal.SIGKILL)
        town.start("bee")
        assert town.finish() == 0
    assert [one["shops"] for one in town.rounds(str(town.status("coordinator")["run_id"]))][-1] == 4


def test_the_run_goes_on_without_a_shop_that_died_for_good_and_it_gets_the_model_later(town):
    with charged_once(town, without=("dog",)):
        town.begin()
        town.processes["dog"].send_signal(signal.SIGSTOP)  # a machine that hangs, then is gone
        upload_seen(town)
        town.end("dog", signal.SIGKILL)
        wait_until(lambda: town.phase() == "handing out the model", "the rounds' end")
        town.start("dog")
        assert town.finish() == 0
    run_id = str(town.status("coordinator")["run_id"])
    assert 3 in [one["shops"] for one in town.rounds(run_id)]
    wait_until(lambda: run_id in town.log("dog").rpartition("model of run")[2], "the model at dog's")


def test_a_shop_that_is_too_slow_misses_the_deadline_and_its_late_answer_changes_nothing(town):
    town.change("coordinator", deadline_s=6.0, patience_s=0.0)
    town.begin()
    town.processes["cat"].send_signal(signal.SIGSTOP)
    wait_until(lambda: town.phase() in ("handing out the model", "finished", "failed"), "the rounds' end")
    town.processes["cat"].send_signal(signal.SIGCONT)
    assert town.finish() == 0, town.log("coordinator")[-1500:]
    assert 3 in [one["shops"] for one in town.rounds(str(town.status("coordinator")["run_id"]))]
    town.check_logs()


def test_a_network_that_stalls_and_heals_costs_time_alone(town):
    with charged_once(town):
        town.begin()
        town.proxy.stall()
        time.sleep(3)
        town.proxy.heal()
        assert town.finish() == 0


def test_a_restored_backup_takes_part_again_only_after_recover(town):
    town.run()
    folder = town.folder / "ant"
    town.end("ant")
    shutil.copy(folder / "ledger.sqlite", town.folder / "backup.sqlite")
    town.start("ant")
    town.run()
    town.end("ant")
    behind, _ = town.charge("ant")
    shutil.copy(town.folder / "backup.sqlite", folder / "ledger.sqlite")
    town.start("ant")
    town.run()
    assert LedgerBehind.__name__ in town.log("ant")
    assert "shop ant gave no ledger head: LedgerBehind" in town.log("coordinator")
    assert town.charge("ant")[0] < behind
    town.end("ant")
    command("shop", "recover", folder)
    town.start("ant")
    run_id = town.run()
    assert [one["shops"] for one in town.rounds(run_id)][-1] == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epsilon": 2.5}, "epsilon 2.5 is asked; policy.max_epsilon is 2"),
        ({"name": "foreign:Model"}, "model 'foreign:Model', which policy.models does not list"),
        ({}, "compare it with the other shops, then set policy.roster to it"),
    ],
    ids=["epsilon", "model", "roster"],
)
def test_a_coordinator_that_asks_for_more_is_refused_with_a_line_in_every_shops_log(town, changes, words):
    town.change("coordinator", patience_s=0.5)
    if "epsilon" in changes:
        town.change("coordinator", **changes)
    elif changes:
        code = "from fedrec.models.ease import Ease\n\n\nclass Model(Ease):\n    pass\n"
        (town.folder / "foreign.py").write_text(code)
        town.change("coordinator", epsilon=None, delta=None)  # a promise would put fedrec's own in its place
        path = town.coordinator / "coordinator.toml"
        path.write_text(path.read_text().replace('name = "ease"', 'name = "foreign:Model"'))
    before = {shop: len(town.log(shop)) for shop in SHOPS}
    dog = (town.coordinator / "shops" / "dog.json").read_bytes()
    if not changes:
        command("coordinator", "remove", town.coordinator, "dog")
    charges = town.charges()
    town.start("coordinator")
    assert town.finish() == 2
    (town.coordinator / "shops" / "dog.json").write_bytes(dog)
    last = town.log("coordinator").splitlines()[-1]
    assert last.startswith("error: ")
    for shop in SHOPS[:3]:
        said = town.log(shop)[before[shop] :]
        assert words in said, said
        assert said.count("did not agree to a run") == 1, said  # once, not at every try
    assert town.charges() == charges
    town.check_logs()


def test_two_agents_with_one_key_do_not_disturb_each_other_and_the_second_is_told(town):
    town.end("dog")
    copy = copy_of(town, "ant")
    try:
        with charged_once(town):
            (town.coordinator / "status.json").unlink(missing_ok=True)
            town.start("coordinator")
            wait_until(lambda: town.phase() == "waiting for shops", "the coordinator")
            wait_until(lambda: {"ant", "bee", "cat"} <= set(town.online()), "three shops")
            town.start(copy.name)
            wait_until(lambda: "another agent with this shop's key is running" in town.log(copy.name), "the refusal")
            town.start("dog")
            assert town.finish() == 0
        assert "shop ant: a second agent with its key was turned away" in town.log("coordinator")
    finally:
        town.end(copy.name)
        shutil.rmtree(copy)


def test_an_ended_certificate_stops_the_coordinator_with_a_line_and_renew_heals_it(town):
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=9)
    issue(TlsFiles.in_folder(town.coordinator), "127.0.0.1", days=2, now=past)
    town.start("coordinator")
    assert town.finish() == 2
    assert town.log("coordinator").splitlines()[-1].endswith("renew it with fedrec coordinator renew")
    command("coordinator", "renew", town.coordinator)
    town.run()


def limit_files(town: Town, name: str, size: int) -> None:
    """No file of a process may grow beyond this: as a full disk."""
    pid = town.processes[name].pid
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_full_disk_at_the_coordinator_ends_it_with_a_line_and_it_goes_on_when_there_is_space(town):
    with charged_once(town):
        town.begin()
        limit_files(town, "coordinator", 0)
        assert town.finish() == 2
        last = town.log("coordinator").splitlines()[-1]
        assert last.startswith("error: ")
        assert "File too large" in last
        run_id = (town.coordinator / "current-run").read_text()
        assert town.run() == run_id


def test_a_full_disk_at_a_shop_is_said_in_one_line_and_it_goes_on_when_there_is_space(town):
    before = len(town.log("bee"))
    town.change("coordinator", patience_s=3.0)  # it does not wait long for a shop that is gone
    town.begin()
    limit_files(town, "bee", 0)
    assert town.finish() == 0, town.log("coordinator")[-1500:]  # three are enough
    town.end("bee")
    assert "File too large" in town.log("bee")[before:].splitlines()[-1]
    town.check_logs()
    town.start("bee")
    run_id = town.run()
    assert [one["shops"] for one in town.rounds(run_id)][-1] == 4


def test_stop_ends_a_coordinator_between_two_answers_and_a_second_start_goes_on(town):
    with charged_once(town):
        town.begin()
        command("coordinator", "stop", town.coordinator)
        assert town.finish() == 2
        assert "stopped" in town.log("coordinator").splitlines()[-1]
        run_id = (town.coordinator / "current-run").read_text()
        assert town.run() == run_id


def test_an_agent_that_is_asked_to_end_leaves_at_once_and_is_not_missed_for_twenty_seconds(town):
    (town.coordinator / "status.json").unlink(missing_ok=True)
    town.end("dog")
    town.start("coordinator")
    wait_until(lambda: {"ant", "bee", "cat"} <= set(town.online()), "three shops", deadline_s=LONG_S)
    assert town.end("cat") == 0
    for shop in ("cat", "dog"):
        town.start(shop)
    assert town.finish() == 0
