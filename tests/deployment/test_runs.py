"""Whole runs of real processes: the same arrays as in one process, one charge a round, no secret outside its file."""

from __future__ import annotations

import base64
import json
import re
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from fedrec.federation.enrolment import Offer
from fedrec.flower.engines import Federation, run_local
from fedrec.secure_aggregation.keys import IdentityKey

from .town import SHOPS, Town, wait_until

pytestmark = pytest.mark.slow


def secrets_of(town: Town) -> dict[str, bytes]:
    """What must be nowhere but in its own file: private keys as PEM lines, raw and hexadecimal."""
    found: dict[str, bytes] = {}
    for path in [*town.folder.rglob("*.key")]:
        body = b"".join(path.read_bytes().split(b"\n")[1:-2])
        found[f"{path} PEM"] = body[-40:]
        raw = base64.b64decode(body)
        found[f"{path} raw"] = raw[-32:]
        found[f"{path} hex"] = raw[-32:].hex().encode()
    return found


def test_a_private_run_from_end_to_end(town):
    before = town.charges()
    run_id = town.run()
    rounds = town.rounds(run_id)
    assert [one["shops"] for one in rounds] == [4] * len(rounds)
    for shop, (charges, aborts) in town.charges().items():
        assert charges == before[shop][0] + len(rounds)
        assert aborts == 0
        history = json.loads((town.folder / shop / "models" / "current.json").read_bytes())["history"]
        assert history[-1]["run_id"] == run_id
    about = town.status("coordinator")
    assert about["phase"] == "finished"
    assert "epsilon 2" in about["guarantee"]
    assert not (town.coordinator / "current-run").exists()
    wait_until(lambda: all(town.status(shop)["traffic"]["answered"].get("train.model") for shop in SHOPS), "statuses")
    assert all(value.dtype.kind != "f" or np.isfinite(value).all() for value in load(town.model(run_id)).values())


def test_no_secret_is_in_an_argument_a_log_a_status_or_at_the_coordinator(town):
    town.have_run()
    secrets = secrets_of(town)
    assert len(secrets) == 3 * (3 + 2 * len(SHOPS))
    places: dict[str, bytes] = {}
    for name, process in town.processes.items():
        places[f"arguments of {name}"] = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        places[f"environment of {name}"] = Path(f"/proc/{process.pid}/environ").read_bytes()
    for path in town.folder.rglob("*"):
        if path.is_file() and path.suffix != ".key":
            places[str(path)] = path.read_bytes()
    for where, data in places.items():
        for what, secret in secrets.items():
            assert secret not in data, f"{what} in {where}"
    shoppers = [re.escape(f"s{place}-1") for place in range(4)]
    for where in ("coordinator.log", *(f"{shop}.log" for shop in SHOPS), "coordinator/status.json"):
        assert not re.search("|".join(f"\\b{one}" for one in shoppers), (town.folder / where).read_text())


def test_all_keys_ledgers_and_masks_are_for_their_owner_alone(town):
    town.have_run()
    kinds = (".key", ".sqlite", ".masking", ".lock")
    paths = [path for path in town.folder.rglob("*") if path.suffix in kinds]
    assert {path.suffix for path in paths} == set(kinds)
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for folder in (town.coordinator, *(town.folder / shop for shop in SHOPS)):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("is_masked", [False, True])
def test_the_shared_arrays_are_those_of_the_federation_in_one_process(town, is_masked):
    town.change("coordinator", epsilon=None, delta=None, secure=is_masked)
    for shop in SHOPS:
        town.end(shop)
        town.change(shop, allow_research=True, require_masks=is_masked, min_colluders=int(is_masked))
        town.start(shop)
    run_id = town.run()
    key = IdentityKey.load(town.coordinator / "coordinator.key")
    offer = Offer.read((town.coordinator / "runs" / run_id / "offer.json").read_bytes(), key.public)
    histories = [member_rows(town, shop) for shop in SHOPS]
    identities = tuple(IdentityKey.load(town.folder / shop / "identity.key") for shop in SHOPS)
    here = run_local(
        Federation(offer.read_model(), offer.public_inputs(), offer.read_terms(), histories, identities=identities)
    )
    there = load(town.model(run_id))
    assert there.keys() == here.state.keys()
    for name, array in here.state.items():
        assert there[name].dtype == array.dtype
        assert there[name].tobytes() == array.tobytes(), name
    assert np.any(there["co_occurrence"])
    for shop in SHOPS:
        town.end(shop)  # with the next test's settings they start anew


def member_rows(town: Town, shop: str):
    from fedrec.cli.shop import open_member

    member, _ = open_member(town.folder / shop)
    rows = member.node().histories
    member.close()
    return rows


def test_a_new_run_begins_from_nothing_and_is_charged_again(town):
    before = town.charges()
    first, second = town.run(), town.run()
    assert first != second
    assert town.model(first) != town.model(second)  # the noise is new
    num_rounds = len(town.rounds(first)) + len(town.rounds(second))
    assert {shop: charges - before[shop][0] for shop, (charges, _) in town.charges().items()} == dict.fromkeys(
        SHOPS, num_rounds
    )


def test_an_agent_gives_back_after_a_run_what_the_run_took_and_takes_part_in_the_next(town):
    town.end("ant")
    town.change("ant", idle_after_s=2.0)
    process = town.start("ant")

    def is_anew() -> bool:
        resident = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        is_small = resident is not None and int(resident[1]) / 1024 < 150
        return is_small and b"FEDREC_KNOWN=" in Path(f"/proc/{process.pid}/environ").read_bytes()

    for _ in range(2):
        run_id = town.run()
        assert [one["shops"] for one in town.rounds(run_id)][-1] == 4
        wait_until(is_anew, "an agent that gave its memory back")
    assert town.status("ant")["traffic"]["answered"]["train.model"] == 2
    assert town.end("ant") == 0
