"""Events, items and shoppers' rights, over HTTP; and what other processes write."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from fedrec.shop.api.app import make_app
from fedrec.shop.store.rows import Event, EventKind, Item
from fedrec.shop.store.store import Store

from .conftest import Corner, serving
from .test_lists_over_http import home, keys

Send = Callable[..., dict[str, object]]


def test_a_batch_is_taken_event_by_event_and_once(api: httpx.Client, corner: Corner) -> None:
    good = {"event_id": "1", "shopper": "ann", "item": "d", "kind": "purchase"}
    events = [
        good,
        {**good, "event_id": "2", "kind": "steal"},
        {**good, "event_id": "3", "surname": "Smith"},
        {**good, "event_id": "4", "kind": "rating"},
        {**good, "event_id": "5", "timestamp": time.time() + 1e6},
        "no event",
        {**good, "event_id": "7", "item": "e"},
    ]
    found = api.post("/v1/events", json={"events": events}).json()
    assert (found["accepted"], found["duplicates"]) == (2, 0)
    assert [(one["index"], one["event_id"]) for one in found["refused"]] == [
        *((1, "2"), (2, "3"), (3, "4"), (4, "5"), (5, None))
    ]
    assert "Smith" not in str(found)
    again = api.post("/v1/events", json={"events": events}).json()
    assert (again["accepted"], again["duplicates"]) == (0, 2)
    assert [row.item for row in corner.store.history("ann")] == ["d", "e"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"events": []}', b'{"events": [], "shop": "other"}', b'"\xff"'])
def test_what_is_no_batch_is_refused_whole(api: httpx.Client, body: bytes) -> None:
    assert api.post("/v1/events", content=body).status_code in (400, 422)


def test_events_of_another_process_are_in_the_next_list(api: httpx.Client, send: Send, corner: Corner) -> None:
    send("ann", "d")
    assert keys(home(api, "ann", n=1)) == ["e"]
    with Store.open(corner.url) as other:
        other.append_events([Event("ann", "e", EventKind.PURCHASE, time.time())])
    assert keys(home(api, "ann", n=1)) == ["f"]


def test_items_of_another_process_are_in_the_next_list(api: httpx.Client, send: Send, corner: Corner) -> None:
    send("ann", "d")
    first = home(api, "ann", n=1).items[0]
    with Store.open(corner.url) as other:
        other.put_items([Item("e", "Another title", "even", 1.0)])
        assert home(api, "ann", n=1).items[0].title == "Another title" != first.title
        other.hide_items(["e"])
        assert keys(home(api, "ann", n=1)) == ["f"]


def test_items_are_put_hidden_shown_and_deleted(api: httpx.Client, send: Send) -> None:
    assert api.put("/v1/items", json={"items": [{"key": "a/b c", "title": "New", "price": 2}]}).json() == {"stored": 1}
    assert api.get("/v1/items/a%2Fb%20c").json()["title"] == "New"
    assert api.get("/v1/new", params={"n": 1}).json()["items"][0]["item"] == "a/b c"
    send("ann", "d")
    for is_hidden, listed in ((True, "f"), (False, "e")):
        assert api.patch("/v1/items/e", json={"is_hidden": is_hidden}).status_code == 204
        assert keys(home(api, "ann", n=1)) == [listed]
    assert api.delete("/v1/items/e").status_code == 204
    assert keys(home(api, "ann", n=1)) == ["f"]
    assert [api.get("/v1/items/e").status_code, api.delete("/v1/items/e").status_code] == [404, 404]


def test_an_erased_shopper_is_forgotten(api: httpx.Client, send: Send, corner: Corner) -> None:
    send("ann", "d", "e", timestamp=1_700_000_000)
    assert home(api, "ann").reason == "personal"
    assert len(api.get("/v1/shoppers/ann").json()["events"]) == 2
    report = api.delete("/v1/shoppers/ann").json()
    assert (report["num_events"], report["epsilon_outside"]) == (2, 0.0)
    assert report["past_releases"] == "nothing has left the shop"
    assert report["needs_refresh"], "raw statistics are served"
    assert home(api, "ann").reason == "popular"
    assert send("ann", "d", timestamp=1_700_000_000)["erased"] == 1
    left = api.get("/v1/shoppers/ann").json()
    assert (left["events"], left["erased_at"] is not None) == ([], True)
    assert api.get("/v1/shoppers/nobody").status_code == 404


def test_an_erased_shopper_is_popular_no_more(api: httpx.Client, send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    def wanted(name: str) -> dict[str, float]:
        found = api.get(f"/v1/{name}", params={"n": 3}).json()["items"]
        return {line["item"]: line["score"] for line in found if line["score"] > 0 and line["source"] == name}

    send("zoe", "k", "l", kind="view")
    send("zoe", "k", "l")
    send("ann", "l")
    wait_until(lambda: api.get(f"/v1/popular?seed={time.time_ns() % 2**32}").json()["items"][0]["score"] == 2.0)
    monkeypatch.setattr("fedrec.shop.api.live_shop.LiveShop._count", lambda _: None)  # not even counted anew
    assert api.delete("/v1/shoppers/zoe").is_success
    assert wanted("popular") == {"l": 1.0}
    assert list(wanted("trending")) == ["l"]


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_lists_shown_and_clicked_are_counted(api: httpx.Client, send: Send) -> None:
    send("ann", "d")
    shown = [home(api, "ann", n=2) for _ in range(3)]
    assert len({one.list_id for one in shown}) == 3, "an unchanged list has an id of its own too"
    send("ann", "e", list_id=shown[1].list_id)
    send("ann", "k", list_id=shown[2].list_id)  # was not on it
    deadline = time.monotonic() + 20
    while not (rows := api.get("/v1/click-through").json()["rows"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    (row,) = rows
    assert {name: row[name] for name in ("list_name", "version", "arm", "shown", "clicked")} == {
        **{"list_name": "home", "version": "r1", "arm": "", "shown": 3, "clicked": 1}
    }
    text = api.get("/metrics").text
    assert 'fedrec_lists_clicked{arm="",version="r1"} 1.0' in text
    assert 'fedrec_lists_total{arm="",list="home",reason="personal",version="r1"} 3.0' in text
    assert "ann" not in text


@pytest.mark.parametrize("fault", ["locked", "full"])
def test_while_the_store_cannot_be_written_lists_are_still_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr("fedrec.shop.store.database.LOCK_WAIT_S", 0.05)
    corner = Corner(tmp_path / "corner")
    purchase = [
        {"event_id": f"e-{item}", "shopper": "ann", "item": item, "kind": "purchase"} for item in ("d", "e" * 200)
    ]
    with (
        serving(make_app({corner.name: corner.live})) as url,
        httpx.Client(base_url=url, headers=corner.headers()) as api,
        closing(sqlite3.connect(corner.folder / "store.sqlite", isolation_level=None)) as other,
    ):
        assert api.post("/v1/events", json={"events": purchase[:1]}).status_code == 200
        if fault == "locked":
            other.execute("BEGIN IMMEDIATE")
        else:
            corner.store._database._writer.execute("PRAGMA max_page_count = 1")
        batch = [{**purchase[1], "event_id": f"{place:03}" * 80} for place in range(200)]
        answer = api.post("/v1/events", json={"events": batch})
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        assert "Retry-After" in answer.headers
        assert str(tmp_path) not in answer.text
        assert keys(home(api, "ann", n=1)) == ["e"]
        other.rollback()
        assert api.post("/v1/events", json={"events": batch}).json()["accepted"] == 200, "works again by itself"


def test_what_is_popular_follows_events(api: httpx.Client, send: Send) -> None:
    for shopper in ("ann", "bob", "cat"):
        send(shopper, "k")
    send("ann", "k", kind="view")  # says nothing more of her
    send("ann", "c", timestamp=1_600_000_000)
    send("bob", "c", timestamp=1_600_000_000)
    deadline = time.monotonic() + 20
    while (found := [api.get(f"/v1/{name}", params={"n": 2}).json()["items"] for name in ("popular", "trending")]) and [
        line["score"] for line in found[0]
    ] != [3.0, 2.0]:
        assert time.monotonic() < deadline
        api.put("/v1/items", json={"items": [{"key": "a"}]})  # so that no list is kept
        time.sleep(0.05)
    assert [line["item"] for line in found[0]] == ["k", "c"]
    assert [line["source"] for line in found[1]] == ["trending"] * 2
    assert found[1][0]["item"] == "k"
