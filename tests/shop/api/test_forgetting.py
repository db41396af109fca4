"""After her erasure nothing holds an erased shopper but what the answer names, and that until it is made anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from fedrec.cli import main
from fedrec.cli.shop import refresh_after_erasures
from fedrec.cli.shop_serve import open_live_shop
from fedrec.role_config import SHOP_FILE
from fedrec.shop.adoption import LOCAL
from fedrec.shop.lists.serving_files import open_serving

from .conftest import asking

ZOE = "zoe-of-the-hill/é"
IN_PATH = "zoe-of-the-hill%2F%C3%A9"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A shop that compares two models, where Zoe alone bought two things together that others bought apart."""
    folder = tmp_path / "shop"
    assert main(["shop", "init", str(folder), "--name", "north"]) == 0
    file = folder / SHOP_FILE
    text = file.read_text().replace("own_statistics_min_shoppers = 3", "own_statistics_min_shoppers = 1")
    file.write_text(text.replace("[serving]\n", '[serving]\nsplit = { version = "local", share = 0.5 }\n'))
    bought = [(f"s{row}", f"p{(row + step) % 6}") for row in range(12) for step in range(2)]
    lines = [f"{who},{item},{1_700_000_000 + at}" for at, (who, item) in enumerate([*bought, (ZOE, "p0"), (ZOE, "p3")])]
    (tmp_path / "events.csv").write_text("\n".join(["shopper,item,timestamp", *lines]))
    assert main(["shop", "import", str(folder), str(tmp_path / "events.csv")]) == 0
    return folder


@pytest.fixture
def api(folder: Path) -> Iterator[httpx.Client]:
    live = open_live_shop(folder)
    with asking(live) as found:
        yield found


def holds_her(folder: Path) -> list[str]:
    """Files with her id, written in any of the usual ways."""
    spelled = [ZOE.encode(), ZOE.encode("latin-1"), IN_PATH.encode(), ZOE.encode("unicode_escape")]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if any(one in path.read_bytes() for one in spelled)]


def test_an_erased_shopper_is_in_no_file_and_in_no_answer(
    api: httpx.Client, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    event = {"shopper": ZOE, "item": "p3", "kind": "like"}
    for place in range(3):  # clicks on lists of a comparison, some of them answered unchanged
        shown = api.get(f"/v1/shoppers/{IN_PATH}/recommendations").json()
        assert shown["reason"] == "personal"
        click = {**event, "event_id": f"{ZOE} {place}", "list_id": shown["list_id"]}
        assert api.post("/v1/events", json={"events": [click]}).json()["accepted"] == 1
    assert api.post("/v1/cart", json={"items": ["p1"], "shopper": ZOE}).is_success
    wait_for(lambda: len(api.get(f"/v1/shoppers/{IN_PATH}").json()["impressions"]) == 4)
    assert [line["item"] for line in api.get("/v1/items/p0/bought-together").json()["items"][:3]].count("p3") == 1
    assert holds_her(folder)

    told = api.delete(f"/v1/shoppers/{IN_PATH}").json()
    assert (told["num_events"], told["num_impressions"]) == (5, 4)
    assert told["still_held"][0] == "model local: until fedrec shop refresh makes it anew"
    assert told["needs_refresh"]
    assert api.get("/v1/models").json()["is_stale"]
    assert "fedrec_model_is_stale 1.0" in api.get("/metrics").text
    left = api.get(f"/v1/shoppers/{IN_PATH}").json()
    assert (left["events"], left["impressions"]) == ([], [])
    assert main(["shop", "import", str(folder), str(tmp_path / "events.csv")]) == 0  # an old export
    assert api.get(f"/v1/shoppers/{IN_PATH}").json()["events"] == []

    assert main(["shop", "refresh", str(folder), "--if-erased"]) == 0
    wait_for(lambda: not api.get("/v1/models").json()["is_stale"])
    together = api.get("/v1/items/p0/bought-together").json()["items"]
    assert [line["item"] for line in together if line["source"] == "bought_together"] == ["p1", "p5"]
    for path in ("/v1/popular", "/v1/models", "/v1/click-through", "/v1/privacy", "/metrics", "/health/ready"):
        assert "zoe" not in api.get(path).text
    assert "zoe" not in caplog.text
    assert told["is_wiped"] == (told["still_held"][1:] == [])
    wait_for(lambda: bool(api.delete(f"/v1/shoppers/{IN_PATH}").json()["is_wiped"]))  # again, where somebody read
    assert holds_her(folder) == []
    assert api.get(f"/v1/shoppers/{IN_PATH}/recommendations").json()["reason"] == "popular"


def test_a_file_that_the_shop_trains_on_is_named_over_http_and_at_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "files"
    assert main(["shop", "init", str(folder), "--name", "south"]) == 0
    (folder / "events.csv").write_text("shopper,item,timestamp\nann,p0,1e9\nann,p1,1e9\nbob,p0,1e9\n")
    text = (folder / SHOP_FILE).read_text()
    (folder / SHOP_FILE).write_text(text.replace("store = true", 'events = "events.csv"'))
    with asking(open_live_shop(folder)) as api:
        told = api.delete("/v1/shoppers/ann").json()["still_held"]
        assert "rows are deleted there" in told[0]
    capsys.readouterr()
    assert main(["shop", "erase", str(folder), "bob"]) == 0
    assert f"still held: {told[0]}\n" in capsys.readouterr().out


def test_nothing_is_made_anew_where_nobody_was_erased(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shop", "refresh", str(folder)]) == 0
    before = (folder / "models" / LOCAL / "serving.json").stat().st_mtime_ns
    assert main(["shop", "refresh", str(folder), "--if-erased"]) == 0
    assert "nobody was erased" in capsys.readouterr().out
    assert (folder / "models" / LOCAL / "serving.json").stat().st_mtime_ns == before


def test_an_agent_has_what_is_served_made_anew(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shop", "refresh", str(folder)]) == 0
    assert main(["shop", "erase", str(folder), ZOE]) == 0
    assert "still held: model local: until fedrec shop refresh makes it anew" in capsys.readouterr().out
    refresh_after_erasures(folder, _Twice(), 0.0)  # type: ignore[arg-type]
    assert open_serving(folder / "models", LOCAL).served.generation == 1
    assert main(["shop", "refresh", str(folder), "--if-erased"]) == 0
    assert "nobody was erased" in capsys.readouterr().out


class _Twice:
    """An event that is set when it is waited for the third time."""

    def __init__(self) -> None:
        self.waited = 0

    def wait(self, _: float) -> bool:
        self.waited += 1
        return self.waited > 2


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)
