"""What `fedrec coordinator` and `fedrec shop` say when something is wrong: one line, exit status 2, and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fedrec.cli.service import only_one, running
from fedrec.role_config import read_coordinator, read_shop

SHOPS = ("north", "south", "west")


@pytest.fixture
def town(tmp_path, fedrec, monkeypatch) -> Path:
    """A coordinator and three shops, enrolled and admitted, by the commands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "items.csv").write_text("item,title\n" + "".join(f"i{n},Title {n}\n" for n in range(20)))
    assert fedrec("coordinator", "init", "c", "--items", "items.csv", "--name", "books").status == 0
    assert fedrec("coordinator", "invite", "c").status == 0
    for place, shop in enumerate(SHOPS):
        rows = [f"u{row},i{(row * 3 + n + place) % 20},{n}" for row in range(30) for n in range(5)]
        (tmp_path / f"{shop}.csv").write_text("shopper,item,timestamp\n" + "\n".join(rows) + "\n")
        said = fedrec(
            *("shop", "enrol", shop, "--invitation", "invitation.json", "--name", shop),
            *("--events", f"{shop}.csv", "--shoppers", 31),
        )
        assert said.status == 0, said.err
        assert "compare with the coordinator by telephone" in said.out
    said = fedrec("coordinator", "admit", "c", *(f"{shop}/{shop}.enrolment.json" for shop in SHOPS))
    assert said.status == 0
    assert "roster of 3 shops: " in said.out
    return tmp_path


def refused(said, *words: str) -> None:
    """One line on standard error, with all the words."""
    assert said.status == 2, said
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1, said.err
    assert "Traceback" not in said.err
    for word in words:
        assert word in said.err, said.err


@pytest.mark.parametrize("command", ["invite", "run", "status", "rounds", "renew", "stop"])
def test_a_coordinators_commands_name_a_folder_that_holds_none(fedrec, tmp_path, command):
    refused(fedrec("coordinator", command, tmp_path / "none"), "none")


@pytest.mark.parametrize("command", ["run", "status", "recover", "privacy", "leave"])
def test_a_shops_commands_name_a_folder_that_holds_none(fedrec, tmp_path, command):
    refused(fedrec("shop", command, tmp_path / "none"), "none")


def test_admit_and_remove_in_a_folder_that_holds_no_coordinator(fedrec, tmp_path, town):
    refused(fedrec("coordinator", "admit", tmp_path / "none", "north/north.enrolment.json"), "none")
    refused(fedrec("coordinator", "remove", tmp_path / "none", "north"), "none")


def test_init_refuses_a_missing_list_a_bad_name_and_a_folder_in_use(fedrec, town):
    refused(fedrec("coordinator", "init", "d", "--items", "none.csv"), "--items none.csv", "is not a file")
    refused(fedrec("coordinator", "init", "d", "--items", "items.csv", "--name", "../x"), "letters, digits")
    refused(fedrec("coordinator", "init", "c", "--items", "items.csv"), "holds a coordinator already")
    for host in ("", "a b", "https://x.org", "x.org:7443", "::1", 'x"', "-x", "x" * 254):
        refused(fedrec("coordinator", "init", "d", "--items", "items.csv", "--host", host), "--host", "give a name")
    refused(fedrec("coordinator", "init", "/proc/d", "--items", "items.csv"), "/proc/d: cannot be written")
    assert not Path("d").exists()


def test_paths_with_quotes_and_backslashes_are_written_so_that_they_can_be_read(fedrec, town):
    odd = town / 'a "b" \\c'
    odd.mkdir()
    for name in ("items.csv", "north.csv"):
        shutil.copy(town / name, odd / name)
    assert fedrec("coordinator", "init", "d", "--items", odd / "items.csv").status == 0
    assert read_coordinator(Path("d")).items.file == str(odd / "items.csv")
    options = ("--name", "x", "--events", odd / "north.csv", "--items", odd / "items.csv", "--shoppers", 30)
    assert fedrec("shop", "enrol", "x", "--invitation", "invitation.json", *options).status == 0
    assert read_shop(Path("x")).data.events == str(odd / "north.csv")


def test_words_of_shops_are_no_markup_in_the_status(fedrec, town):
    about = {"run_id": "r", "phase": "failed", "last_error": "the first, 'north', with [/bold] [red]x[/]"}
    (town / "c/status.json").write_text(json.dumps(about))
    assert "with [/bold] [red]x[/]" in fedrec("coordinator", "status", "c").out
    traffic = {"connected": False, "last_error": "[/no]", "answered": {}, "refused": 0, "bytes_up": 0}
    shop = {"at": "now", "shop": "north", "run_id": "", "model": "local", "traffic": traffic, "ledger": {}}
    (town / "north/status.json").write_text(json.dumps(shop))
    assert "no: [/no]" in fedrec("shop", "status", "north").out


def test_a_file_of_brackets_is_no_document(fedrec, town):
    Path("deep.json").write_text("[" * 100_000)
    refused(fedrec("coordinator", "admit", "c", "deep.json"), "not a fedrec enrolment")


def test_an_error_shows_no_control_signs_of_a_file(fedrec, town):
    Path("odd.json").write_text(json.dumps({"kind": "\x1b[8mx", "format": 1, "signature": "00"}))
    said = fedrec("coordinator", "admit", "c", "odd.json")
    refused(said, "in place of a fedrec enrolment")
    assert said.err.rstrip("\n").isprintable()


def test_admit_refuses_files_that_are_no_enrolment_of_this_federation(fedrec, town):
    refused(fedrec("coordinator", "admit", "c", "none.json"), "none.json: cannot be read")
    refused(fedrec("coordinator", "admit", "c", "items.csv"), "not a fedrec enrolment")
    refused(fedrec("coordinator", "admit", "c", "invitation.json"), "fedrec invitation of format 1 in place of")
    changed = json.loads(Path("north/north.enrolment.json").read_bytes())
    Path("changed.json").write_text(json.dumps({**changed, "public_shoppers": 9}))
    refused(fedrec("coordinator", "admit", "c", "changed.json"), "not signed by")
    assert fedrec("coordinator", "init", "d", "--items", "items.csv").status == 0
    refused(fedrec("coordinator", "admit", "d", "north/north.enrolment.json"), "another coordinator's invitation")


def test_a_name_or_key_that_is_enrolled_is_refused_until_it_is_removed(fedrec, town):
    common = ("--invitation", "invitation.json", "--events", "north.csv", "--shoppers", 30)
    assert fedrec("shop", "enrol", "again", "--name", "north", *common).status == 0
    refused(fedrec("coordinator", "admit", "c", "again/north.enrolment.json"), "'north' is enrolled", "remove it first")
    assert fedrec("coordinator", "admit", "c", "north/north.enrolment.json").status == 0  # the same file again
    assert "north is off the roster; 2 shops" in fedrec("coordinator", "remove", "c", "north").out
    refused(fedrec("coordinator", "remove", "c", "north"), "'north' is not enrolled: south, west")
    assert fedrec("coordinator", "admit", "c", "again/north.enrolment.json").status == 0
    for other in ("../coordinator", "../ledger-heads"):
        (town / "c/ledger-heads.json").write_text("{}")
        refused(fedrec("coordinator", "remove", "c", other), "is not enrolled")
    assert (town / "c/ledger-heads.json").exists()


def test_enrol_refuses_what_it_cannot_use(fedrec, town):
    def enrol(folder: str = "new", invitation: str = "invitation.json", name: str = "new", events: str = "north.csv"):
        options = ("--invitation", invitation, "--name", name, "--events", events, "--shoppers", 30)
        return fedrec("shop", "enrol", folder, *options)

    refused(enrol(invitation="none.json"), "none.json: cannot be read")
    refused(enrol(invitation="items.csv"), "not a fedrec invitation")
    refused(enrol(name="a/b"), "letters, digits")
    refused(enrol(events="none.csv"), "--events none.csv", "is not a file")
    refused(enrol(folder="north"), "holds a shop already")
    changed = json.loads(Path("invitation.json").read_bytes())
    Path("changed.json").write_text(json.dumps({**changed, "address": "evil.example:7443"}))
    refused(enrol(invitation="changed.json"), "not signed by")
    assert not Path("new").exists()


def test_an_expired_invitation_is_refused(fedrec, town, monkeypatch):
    import datetime

    from fedrec.federation.enrolment import Invitation
    from fedrec.secure_aggregation.keys import IdentityKey

    key = IdentityKey.load("c/coordinator.key")
    now = datetime.datetime.now(datetime.UTC)
    plain = Invitation.read(Path("invitation.json").read_bytes(), now=now)
    old = Invitation(plain.federation, plain.address, plain.authority, plain.coordinator, "2020-01-01T00:00:00+00:00")
    Path("old.json").write_bytes(old.sign(key))
    said = fedrec(
        *("shop", "enrol", "new", "--invitation", "old.json", "--name", "new"),
        *("--events", "north.csv", "--shoppers", 30),
    )
    refused(said, "expired on 2020-01-01: ask the coordinator for a new one")


@pytest.mark.parametrize("name", ["coordinator.key", "authority.key", "coordinator-tls.key"])
def test_a_coordinator_whose_keys_others_can_read_does_not_start(fedrec, town, name):
    (town / "c" / name).chmod(0o644)
    refused(fedrec("coordinator", "run", "c"), f"{name}: ", "can be read by others", "chmod 600")


@pytest.mark.parametrize("name", ["identity.key", "node.key"])
def test_a_shop_whose_keys_others_can_read_does_not_start(fedrec, town, name):
    (town / "north" / name).chmod(0o644)
    refused(fedrec("shop", "run", "north"), f"{name}: ", "can be read by others", "chmod 600")


def test_two_processes_in_one_folder_are_refused(fedrec, town):
    with only_one(Path("c"), "coordinator"):
        assert running(Path("c"), "coordinator") is not None
        refused(fedrec("coordinator", "run", "c"), "a coordinator is running here already")
    assert running(Path("c"), "coordinator") is None
    with only_one(Path("north"), "shop"):
        for command in ("run", "leave"):
            refused(fedrec("shop", command, "north"), "a shop is running here already; stop it first")
    refused(fedrec("coordinator", "stop", "c"), "no coordinator is running here")


def test_settings_with_an_unknown_key_or_a_value_out_of_range_are_named(fedrec, town):
    for folder, file, command in (("c", "coordinator.toml", "coordinator"), ("north", "shop.toml", "shop")):
        path = town / folder / file
        text = path.read_text()
        path.write_text(text.replace("metrics_port =", "metrics_prot ="))
        refused(fedrec(command, "run", folder), file, "metrics_prot")
        path.write_text(text.replace("\n[", "\n[[", 1))
        refused(fedrec(command, "run", folder), file)
        path.unlink()
        refused(fedrec(command, "run", folder), file)
        path.write_text(text)
    path = town / "north" / "shop.toml"
    path.write_text(path.read_text().replace("max_epsilon = 2.0", "max_epsilon = -1.0"))
    refused(fedrec("shop", "run", "north"), "max_epsilon = -1.0")


def test_a_coordinator_without_shops_or_with_a_broken_list_says_so(fedrec, town):
    file = town / "c" / "coordinator.toml"
    file.write_text(file.read_text().replace("metrics_port = 7480", "metrics_port = 0"))
    (town / "items.csv").write_text("isbn\n1\n")
    refused(fedrec("coordinator", "run", "c"), "has no column 'item'; it has isbn")
    (town / "items.csv").write_text("item\n")
    refused(fedrec("coordinator", "run", "c"), "holds no items")
    (town / "items.csv").unlink()
    refused(fedrec("coordinator", "run", "c"), "cannot be read (FileNotFoundError)")
    for shop in SHOPS:
        assert fedrec("coordinator", "remove", "c", shop).status == 0
    refused(fedrec("coordinator", "run", "c"), "no shop is enrolled: send an invitation")


def test_a_roster_that_is_no_fingerprint_is_refused_and_a_good_one_written(fedrec, town):
    from fedrec.cli.shop import confirm_roster
    from fedrec.role_config import read_shop

    refused(fedrec("shop", "run", "north", "--roster", "abc"), "--roster abc: give the fingerprint")
    fingerprint = "-".join(["0a1b"] * 8)
    confirm_roster(Path("north"), fingerprint)
    assert read_shop(Path("north")).policy.roster == fingerprint


def test_a_shop_whose_events_are_gone_says_so(fedrec, town):
    (town / "north.csv").unlink()
    refused(fedrec("shop", "run", "north"), "north.csv")


def test_leave_deletes_the_keys_and_a_second_time_says_that_they_are_gone(fedrec, town):
    said = fedrec("shop", "leave", "north")
    assert said.status == 0
    assert "shop north has left" in said.out
    assert not list((town / "north").glob("*.key"))
    for command in ("leave", "run"):
        refused(fedrec("shop", command, "north"), "identity.key")


def test_recover_and_rollback_with_nothing_to_do(fedrec, town):
    refused(fedrec("shop", "recover", "north"), "nothing to recover")
    refused(fedrec("shop", "rollback", "north"), "nothing to go back to")
    refused(fedrec("shop", "rollback", "north", "--to", "r9"), "no version 'r9' here")
    refused(fedrec("shop", "status", "north"), "no agent has run here yet")
    refused(fedrec("coordinator", "status", "c"), "no coordinator has run here yet")


def test_a_version_that_is_rolled_back_to_is_made_ready_where_it_was_not(fedrec, town):
    from fedrec.shop.lists.serving_files import open_serving

    said = fedrec("shop", "rollback", "north", "--to", "local")
    assert (said.status, said.out) == (0, "serves local from now on\n")
    assert open_serving(town / "north" / "models", "local").served.mode == "alone"


def test_an_unfinished_run_with_a_shop_that_was_removed_says_how_to_go_on(fedrec, town):
    from fedrec.flower.deployment import Deployment

    file = town / "c" / "coordinator.toml"
    file.write_text(file.read_text().replace("metrics_port = 7480", "metrics_port = 0"))
    Deployment(Path("c"))._open_run()
    assert fedrec("coordinator", "remove", "c", "west").status == 0
    refused(fedrec("coordinator", "run", "c"), "'west' is no longer enrolled: delete", "current-run")
    shutil.rmtree(town / "c" / "runs")
    refused(fedrec("coordinator", "run", "c"), "current-run")
