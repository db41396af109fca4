"""Where ``joint_dp`` is promised, all answers to a shopper are the same whatever another shopper did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedrec.cli import main
from fedrec.cli.shop_serve import open_live_shop
from fedrec.role_config import SHOP_FILE, open_store, read_shop
from fedrec.shop.store.rows import Event, EventKind, Item

from ..test_member import agreed, run_rounds
from ..town import ITEMS, Town, small_shop
from .conftest import NOON, asking

ZOE = [("zoe", item) for item in ("p0", "p1", "p2", "p3", "p7", "only zoe bought this")]
LISTS = (
    ("GET", "/v1/shoppers/ann/recommendations"),
    ("GET", "/v1/shoppers/nobody/recommendations"),
    ("POST", "/v1/session"),
    ("POST", "/v1/cart"),
    *(("GET", f"/v1/items/{item}/{which}") for which in ("similar", "bought-together") for item in ("p1", "p7")),
    ("GET", "/v1/items/only%20zoe%20bought%20this/similar"),
    *(("GET", f"/v1/{which}") for which in ("popular", "trending", "new")),
)


def answers(folder: Path, others: list[tuple[str, str]], promise: str) -> dict[str, Any]:
    """What is answered in a shop where these others bought, too."""
    assert main(["shop", "init", str(folder), "--name", "north"]) == 0
    settings = folder / SHOP_FILE
    settings.write_text(settings.read_text().replace('inside_shop = "none"', f'inside_shop = "{promise}"'))
    bought = [(f"s{row}", f"p{(row + step) % 8}") for row in range(12) for step in range(4)]
    lines = [f"{who},{item},{1_700_000_000 + at}" for at, (who, item) in enumerate([*bought, ("ann", "p0"), *others])]
    (folder / "events.csv").write_text("\n".join(["shopper,item,timestamp", *lines]))
    kinds = ["tea", "cup", "pot"]
    items = [f"p{row},a {kinds[row % 3]} of kind {row % 2},{kinds[row % 3]},{row + 1}" for row in range(8)]
    (folder / "items.csv").write_text("\n".join(["item,title,category,price", *items]))
    files = [str(folder / "events.csv"), "--items", str(folder / "items.csv")]
    assert main(["shop", "import", str(folder), *files]) == 0
    live = open_live_shop(folder)
    live.store.put_items(replace(one.item, created=NOON) for one in live.store.items_after(0))  # the clock goes on
    found: dict[str, Any] = {}
    with asking(live) as api:
        for method, path in LISTS:
            for query in ({"n": 8, "explain": True}, {"n": 3, "diversity": 0.6, "offset": 1, "include_bought": True}):
                if method == "GET":
                    answer = api.get(path, params=query)
                else:
                    answer = api.post(path, json={"items": ["p1", "only zoe bought this"], **query})
                found[f"{path} {query}"] = {**answer.json(), "list_id": ""}
        for path in ("/v1/shoppers/ann", "/v1/items/p7", "/v1/items/only%20zoe%20bought%20this", "/v1/privacy"):
            found[path] = {**api.get(path).json(), "impressions": []}
    return found


@pytest.mark.parametrize("promise", ["joint_dp", "none"])
def test_answers_depend_on_another_shopper_only_where_nothing_is_promised(tmp_path: Path, promise: str) -> None:
    with_her, without_her = (answers(tmp_path / name, others, promise) for name, others in (("a", ZOE), ("b", [])))
    differing = [what for what in with_her if with_her[what] != without_her[what]]
    assert {one["inside_shop"] for one in with_her.values() if "inside_shop" in one} == {promise}
    assert sum(len(one.get("items", [])) for one in with_her.values()) > 60
    assert (differing == []) == (promise == "joint_dp"), differing


def test_a_federations_model_is_served_under_joint_dp_with_what_it_cost_in_both_arms(town: Town) -> None:
    folder = town.folder / "ant"
    town.change("ant", inside_shop="joint_dp")
    file = folder / SHOP_FILE
    file.write_text(file.read_text().replace("[serving]\n", '[serving]\nsplit = { version = "local", share = 0.5 }\n'))
    members = agreed(town, offer := town.offer())
    coordinator = run_rounds(town, members, offer)
    spent = members[0].ledger().spent().lifetime_epsilon
    assert members[0].adopt("run-1", coordinator.state).is_adopted
    for member in members:
        member.close()
    data = small_shop("ant")
    rows, places = data.train.nonzero()
    with open_store(folder, read_shop(folder)) as store:
        store.put_items(Item(str(key), f"thing {key[-1]}", created=NOON) for key in ITEMS)
        pairs = zip(data.shoppers[rows].tolist(), ITEMS[places].tolist(), strict=True)
        store.append_events(Event(who, item, EventKind.PURCHASE, NOON) for who, item in pairs)
    found = []
    for _ in range(2):
        live = open_live_shop(folder)
        with asking(live) as api:
            lists = [
                api.get(f"/v1/shoppers/ant-{row}/recommendations", params={"explain": True}).json() for row in range(12)
            ]
            lists += [api.get(f"/v1/{name}").json() for name in ("popular", "trending", "items/item-03/similar")]
        said = {(one["model_version"], one["mode"], one["epsilon_outside"], one["inside_shop"]) for one in lists}
        assert said == {("run-1", "distributed", spent, "joint_dp"), ("local", "alone", spent, "joint_dp")}
        found.append([one["items"] for one in lists])
        assert main(["shop", "refresh", str(folder)]) == 0
        with open_store(folder, read_shop(folder)) as store:
            for row in range(12, 60):
                store.erase_shopper(f"ant-{row}")
    assert found[0] == found[1]
    assert len({line["item"] for items in found[0] for line in items}) > 15
