"""What a shop's folder is served from: made ready, made anew, or the last that is good."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from fedrec.cli import main
from fedrec.cli.shop_serve import open_live_shop
from fedrec.errors import ConfigError
from fedrec.role_config import SHOP_FILE, open_store, read_shop
from fedrec.shop.adoption import CURRENT_FILE, LOCAL
from fedrec.shop.api.kept_lists import ListName
from fedrec.shop.api.live_shop import LiveShop
from fedrec.shop.lists.ranked import Query
from fedrec.shop.lists.serving_files import SERVING_FILE
from fedrec.shop.store.rows import Event, EventKind, Item

WORDS = ["green tea", "green tea cup", "coffee cup", "coffee mill"]


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A shop of four items that knows no event."""
    assert main(["shop", "init", str(tmp_path / "shop"), "--name", "north"]) == 0
    with open_store(tmp_path / "shop", read_shop(tmp_path / "shop")) as store:
        store.put_items(Item(f"item-{place}", title, "drinks") for place, title in enumerate(WORDS))
    capsys.readouterr()
    return tmp_path / "shop"


def buy(folder: Path, shopper: str, *items: int) -> None:
    with open_store(folder, read_shop(folder)) as store:
        store.append_events(Event(shopper, f"item-{item}", EventKind.PURCHASE, 1e9 + item) for item in items)


@contextmanager
def opened(folder: Path) -> Iterator[LiveShop]:
    shop = open_live_shop(folder)
    try:
        yield shop
    finally:
        asyncio.run(shop.close())


def test_a_shop_with_a_catalogue_alone_is_served_by_its_texts(folder: Path) -> None:
    with opened(folder) as shop:
        found = orjson.loads(shop.listed_for(ListName.SESSION, ["item-0"], None, Query(n=1)))
        assert (found["items"][0]["item"], found["model_version"]) == ("item-1", LOCAL)
        assert len(orjson.loads(shop.listed(ListName.NEW, "", Query(), b""))["items"]) == len(WORDS)


def test_events_that_train_nothing_are_no_reason_not_to_serve(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_store(folder, read_shop(folder)) as store:
        store.append_events([Event("ann", "item-3", EventKind.VIEW, 1e9)])
    with opened(folder) as shop:
        found = orjson.loads(shop.listed(ListName.HOME, "ann", Query(n=1), b""))
        assert (found["reason"], found["items"][0]["item"]) == ("personal", "item-2")
        assert "refresh" in str(shop.model_trouble)
    assert "no event of kind like, purchase, rating to train on" in capsys.readouterr().err


def test_refresh_learns_from_new_events(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in range(9):
        buy(folder, f"s{place}", 0, 3)
    assert main(["shop", "refresh", str(folder)]) == 0
    assert "version local is ready" in capsys.readouterr().out
    with opened(folder) as shop:
        found = orjson.loads(shop.listed_for(ListName.SESSION, ["item-0"], None, Query(n=1)))
        assert (found["reason"], found["items"][0]["item"]) == ("session", "item-3")


def test_a_model_of_another_promise_is_made_anew(folder: Path) -> None:
    buy(folder, "ann", 0, 3)
    with opened(folder) as shop:
        assert shop.privacy()["inside_shop"] == "none"
    path = folder / SHOP_FILE
    path.write_text(path.read_text().replace('inside_shop = "none"', 'inside_shop = "joint_dp"'))
    with opened(folder) as shop:
        assert shop.privacy()["inside_shop"] == "joint_dp"
        found = orjson.loads(shop.listed_for(ListName.SESSION, ["item-0"], None, Query(n=1)))
        assert found["items"][0]["item"] == "item-1", "by its words alone"


@pytest.mark.parametrize("damage", ["arrays", "about"])
def test_a_damaged_model_is_made_anew_at_the_start(folder: Path, damage: str) -> None:
    buy(folder, "ann", 0, 3)
    with opened(folder):
        pass
    place = folder / "models" / LOCAL
    damaged = next(place.glob("serving-*.safetensors")) if damage == "arrays" else place / SERVING_FILE
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with opened(folder) as shop:
        assert (shop.models()["served"], shop.trouble) == (LOCAL, None)


def test_without_a_readable_choice_the_shops_own_model_is_served(folder: Path) -> None:
    buy(folder, "ann", 0, 3)
    with opened(folder):
        pass
    (folder / "models" / CURRENT_FILE).write_text("{")
    with opened(folder) as shop:
        assert shop.models()["served"] == LOCAL
        assert "cannot be read" in str(shop.trouble)
    (folder / "models" / CURRENT_FILE).write_text(json.dumps({"current": "gone", "history": []}))
    with opened(folder) as shop:
        assert shop.models()["served"] == LOCAL
        assert "gone" in str(shop.trouble)


@pytest.mark.parametrize(
    "wrong", ["requests_per_s = -1", 'split = { version = "r", share = 2 }', 'inside_shop = "some"', "new_share = 0.9"]
)
def test_settings_of_serving_are_checked(folder: Path, wrong: str) -> None:
    path = folder / SHOP_FILE
    name = wrong.split(" ")[0]
    kept = (line for line in path.read_text().splitlines(keepends=True) if not line.startswith(name))
    path.write_text("".join(kept).replace("[serving]\n", f"[serving]\n{wrong}\n"))
    with pytest.raises(ConfigError, match=name):
        read_shop(folder)
