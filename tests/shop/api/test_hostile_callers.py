"""Callers with a key who try to get more than theirs: requests, time, memory, other folders; and stores that fail."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import httpx
import pytest

from fedrec.errors import ConfigError, StoreError
from fedrec.shop.adoption import LOCAL, roll_back
from fedrec.shop.api import kept_lists
from fedrec.shop.api.app import make_app
from fedrec.shop.api.kept_lists import KeptList, KeptLists
from fedrec.shop.serving_settings import ServingSettings
from fedrec.shop.store_rows import Event, EventKind, KeyScope

from .conftest import NOON, Corner, serving


def test_a_key_has_one_rate_however_it_is_written(tmp_path: Path) -> None:
    corner = Corner(tmp_path / "corner", settings=ServingSettings(requests_per_s=2))
    secret = corner.keys[KeyScope.READ]
    with serving(make_app({corner.name: corner.live})) as url, httpx.Client(base_url=url) as client:
        begun = time.monotonic()
        spellings = ["".join(letters) for letters in product(*((one, one.upper()) for one in "bearer"))][:20]
        answers = [client.get("/v1/popular", headers={"Authorization": f"{one} {secret}"}) for one in spellings]
        allowed = 4 + 2 * (time.monotonic() - begun)
    assert 4 <= sum(answer.status_code == 200 for answer in answers) <= allowed


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> KeptLists:
    monkeypatch.setattr(kept_lists, "MOST_BYTES", 10_000)
    return KeptLists()


def test_kept_lists_take_no_more_memory_than_they_may(lists: KeptLists) -> None:
    for number in range(1_000):
        lists.put(f"s{number % 40}", b"n=%d" % (number % 7), _kept(b"x" * 900))
        if number % 10 == 0:
            lists.drop("home", f"s{number % 40}")
    assert 5 <= len(lists) <= 11
    assert lists.get("home", "s39", b"n=%d" % (999 % 7)) is not None
    lists.put("long", b"", _kept(b"x" * 20_000))
    assert lists.get("home", "long", b"") is None
    for number in range(10):
        lists.put(f"t{number}", b"", _kept(b"x" * 900))
    assert len(lists) == 10


def _kept(body: bytes) -> KeptList:
    return KeptList("home", body, "popular", LOCAL, "a", time.monotonic())


def test_no_version_is_a_path(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine" / "models", tmp_path / "other" / "models" / "run-1"
    for folder in (mine / "run-1", other):
        folder.mkdir(parents=True)
        (folder / "model.json").write_text("{}")
    for version in ("../../other/models/run-1", str(other), "./run-1", "run-1/"):
        with pytest.raises(ConfigError, match="no version"):
            roll_back(mine, version)
    assert roll_back(mine, "run-1") == "run-1"


def test_counting_goes_on_after_the_store_failed(corner: Corner, monkeypatch: pytest.MonkeyPatch) -> None:
    corner.store.append_events([Event("ann", "d", EventKind.PURCHASE, NOON, event_id="1")])
    read, failures = corner.store.events_after, iter([True, True])

    def failing(sequence: int, limit: int = 10_000) -> list[object]:
        if limit == 5_000 and next(failures, False):
            raise StoreError("locked")
        return list(read(sequence, limit))

    monkeypatch.setattr(corner.store, "events_after", failing)
    with _served(corner) as api:
        corner.store.append_events([Event("bob", "e", EventKind.PURCHASE, NOON, event_id="2")])
        _until_popular(api, {"d": 1.0, "e": 1.0})


def test_what_happens_while_all_is_counted_is_counted(corner: Corner, monkeypatch: pytest.MonkeyPatch) -> None:
    read = corner.store.events_after

    def slow(sequence: int, limit: int = 10_000) -> list[object]:
        if limit == 5_000:
            time.sleep(0.5)
        return list(read(sequence, limit))

    corner.store.append_events([Event("ann", "d", EventKind.PURCHASE, NOON, event_id="1")])
    corner.live._events_seen = corner.store.last_sequence()
    monkeypatch.setattr(corner.store, "events_after", slow)
    with _served(corner) as api:
        api.post("/v1/events", json={"events": [_bought("bob", "d"), _bought("bob", "d", "like")]})
        _until_popular(api, {"d": 2.0})


@contextmanager
def _served(corner: Corner) -> Iterator[httpx.Client]:
    with (
        serving(make_app({corner.name: corner.live})) as url,
        httpx.Client(base_url=url, headers=corner.headers()) as api,
    ):
        yield api


def _bought(shopper: str, item: str, kind: str = "purchase") -> dict[str, str]:
    return {"event_id": f"{shopper}-{item}-{kind}", "shopper": shopper, "item": item, "kind": kind}


def _until_popular(api: httpx.Client, wanted: dict[str, float]) -> None:
    deadline = time.monotonic() + 20
    while True:
        lines = api.get("/v1/popular", params={"n": len(wanted)}).json()["items"]
        if {line["item"]: line["score"] for line in lines} == wanted:
            return
        assert time.monotonic() < deadline, lines
        time.sleep(0.05)
