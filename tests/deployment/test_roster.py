"""The roster changes between runs: a shop leaves, another gets new keys; the rest confirm it and go on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from .town import SHOPS, Town, build, command, fingerprint, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def own_town(tmp_path) -> Iterator[Town]:
    town = build(tmp_path)
    try:
        yield town
    finally:
        town.close()


def confirm(town: Town, *folders: str) -> None:
    """Start agents with the present roster confirmed."""
    for name in folders:
        town.change(name, roster=fingerprint(town))
        town.start(name)


def test_after_a_shop_left_and_another_got_new_keys_all_others_go_on(own_town):
    town = own_town
    confirm(town, *SHOPS)
    num_sums = len(town.rounds(town.run()))
    for shop in SHOPS:
        town.end(shop)

    command("coordinator", "remove", town.coordinator, "cat")  # bee's neighbour is now dog, who kept none of its heads
    command("coordinator", "remove", town.coordinator, "ant")
    options = ("--name", "ant", "--events", town.folder / "ant.csv", "--shoppers", 40)
    command("shop", "enrol", town.folder / "new", "--invitation", town.folder / "invitation.json", *options)
    command("coordinator", "admit", town.coordinator, town.folder / "new" / "ant.enrolment.json")
    town.change("new", metrics_port=0, budget_epsilon=100.0, budget_delta=1e-4)
    confirm(town, "new", "bee", "dog")
    town.start("coordinator")  # all three are needed, and ant's ledger begins anew
    wait_until(
        lambda: "shop ant: its ledger head is refused: it begins anew" in town.log("coordinator"), "ant left out"
    )
    assert town.end("coordinator") == 2
    town.end("new")
    shutil.copy(town.folder / "ant" / "ledger.sqlite", town.folder / "new" / "ledger.sqlite")
    town.start("new")
    assert [one["shops"] for one in town.rounds(town.run())] == [3] * num_sums
    assert town.charge("bee") == (2 * num_sums, 0)
    town.end("new")
    shutil.copy(town.folder / "new" / "ledger.sqlite", town.folder / "ant" / "ledger.sqlite")
    assert town.charge("ant") == (2 * num_sums, 0)
