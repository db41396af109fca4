"""A shop that knows nothing yet is served, filled over HTTP, and learns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from fedrec.cli import main
from fedrec.cli.shop_serve import open_live_shop
from fedrec.role_config import SHOP_FILE

from .conftest import asking

TITLES = {"tea": "green tea", "cup": "tea cup", "mill": "coffee mill", "pot": "coffee pot"}


@pytest.fixture(params=["none", "joint_dp"])
def promise(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path, promise: str) -> Path:
    assert main(["shop", "init", str(tmp_path / "shop"), "--name", "north"]) == 0
    file = tmp_path / "shop" / SHOP_FILE
    file.write_text(file.read_text().replace('inside_shop = "none"', f'inside_shop = "{promise}"'))
    return tmp_path / "shop"


@pytest.fixture
def new(folder: Path) -> Iterator[httpx.Client]:
    live = open_live_shop(folder)
    with asking(live) as api:
        yield api


def test_a_new_shop_is_filled_over_http_and_learns(new: httpx.Client, folder: Path, promise: str) -> None:
    ready = new.get("/health/ready")
    assert ready.status_code == 200
    assert ("no model of the shop's events yet" in ready.text) == (promise == "none")
    for path in ("/v1/shoppers/ann/recommendations", "/v1/popular", "/v1/trending", "/v1/new"):
        found = new.get(path, params={"explain": True}).json()
        assert (found["items"], found["mode"], found["epsilon_outside"]) == ([], "alone", 0.0), path
        assert found["inside_shop"] == promise
    assert new.get("/v1/shoppers/ann/recommendations").json()["reason"] == "popular"
    assert new.post("/v1/session", json={"items": ["tea"]}).json()["items"] == []
    assert new.get("/v1/items/tea/similar").status_code == 404

    bought = [(f"s{place}", item) for place in range(5) for item in ("tea", "mill")] + [("zoe", "pot")]
    send(new, bought)  # before anybody said what these items are
    items = [{"key": key, "title": title} for key, title in TITLES.items()]
    assert new.put("/v1/items", json={"items": items}).json() == {"stored": 4}
    assert [line["item"] for line in new.get("/v1/new").json()["items"]] == list(TITLES)
    send(new, [("ann", "tea")])
    hers = new.get("/v1/shoppers/ann/recommendations").json()
    assert (hers["reason"], hers["items"][0]["item"]) == ("content", "cup")
    if promise == "none":
        wait_for(lambda: scores(new, "popular") == {"tea": 6.0, "mill": 5.0, "pot": 1.0, "cup": 0.0})
        assert set(list(scores(new, "trending"))[:3]) == {"tea", "mill", "pot"}

    assert main(["shop", "refresh", str(folder)]) == 0
    if promise == "none":
        wait_for(lambda: hers_now(new)["reason"] == "personal")
        assert hers_now(new)["items"][0]["item"] == "mill"
        wait_for(lambda: new.get("/health/ready").json() == {"status": "ok"})


def test_a_new_shop_starts_again_before_it_has_a_model(folder: Path) -> None:
    for _ in range(2):
        live = open_live_shop(folder)
        with asking(live) as api:
            assert live.trouble is None
            assert api.put("/v1/items", json={"items": [{"key": "tea"}]}).is_success
            assert api.get("/v1/popular").json()["items"][0]["item"] == "tea"


def send(api: httpx.Client, bought: list[tuple[str, str]]) -> None:
    events = [{"event_id": f"{who}-{item}", "shopper": who, "item": item, "kind": "purchase"} for who, item in bought]
    assert api.post("/v1/events", json={"events": events}).json()["accepted"] == len(bought)


def hers_now(api: httpx.Client) -> dict[str, list[dict[str, object]]]:
    return dict(api.get("/v1/shoppers/ann/recommendations").json())


def scores(api: httpx.Client, name: str) -> dict[str, float]:
    return {line["item"]: line["score"] for line in api.get(f"/v1/{name}").json()["items"]}


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)
