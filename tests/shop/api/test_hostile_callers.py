"""Callers with a key who try to get more than theirs: requests, time, memory, other folders; and stores that fail."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from fedrec.errors import ConfigError, StoreError
from fedrec.shop.adoption import LOCAL, roll_back
from fedrec.shop.api import counting, kept_lists, patience
from fedrec.shop.api.app import make_app
from fedrec.shop.api.kept_lists import KeptList, KeptLists
from fedrec.shop.api.problems import findings
from fedrec.shop.lists.serving_settings import ServingSettings
from fedrec.shop.store.rows import Event, EventKind, KeyScope

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


def test_requests_beyond_a_keys_scope_are_spent_too(tmp_path: Path) -> None:
    corner = Corner(tmp_path / "corner", settings=ServingSettings(requests_per_s=2))
    with serving(make_app({corner.name: corner.live})) as url, httpx.Client(base_url=url) as client:
        begun = time.monotonic()
        answers = [client.delete("/v1/items/a", headers=corner.headers(KeyScope.READ)) for _ in range(20)]
        allowed = 4 + 2 * (time.monotonic() - begun)
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) <= {403, 429}
    assert 4 <= statuses.count(403) <= allowed


def test_what_cannot_be_a_name_is_refused_in_words(corner: Corner) -> None:
    with _served(corner) as api:
        for name in ("a%0Ab", "%0A", "%00", "a" * 300, "%E2%80%8B"):
            for method, path in (("GET", "/recommendations"), ("GET", ""), ("DELETE", "")):
                answer = api.request(method, f"/v1/shoppers/{name}{path}")
                assert (answer.status_code, answer.json()["title"]) == (422, "Unprocessable Entity"), (name, path)
        assert api.get("/v1/shoppers/..%2F..%2Fx/recommendations").json()["reason"] == "popular"


@pytest.mark.parametrize(
    ("path", "wide"),
    [
        ("/v1/session", {"items": ["a"], **dict.fromkeys(map(str, range(200_000)), 1)}),
        ("/v1/session", {"items": [1] * 400_000}),
        ("/v1/cart", {"items": ["a"], "exclude": [""] * 400_000}),
        ("/v1/items", {"items": [{}] * 400_000}),
        ("/v1/items", {"items": [{"key": "a", **dict.fromkeys(map(str, range(200)), 1)}] * 1_500}),
        ("/v1/events", {"events": [dict.fromkeys(map(str, range(200_000)), 1)]}),
    ],
)
def test_what_is_far_too_much_is_not_looked_at_part_by_part(
    corner: Corner, monkeypatch: pytest.MonkeyPatch, path: str, wide: dict[str, object]
) -> None:
    def found(error: ValidationError) -> list[dict[str, str]]:
        looked.append(error.error_count())
        return findings(error)

    looked: list[int] = []
    monkeypatch.setattr("fedrec.shop.api.reading.findings", found)
    monkeypatch.setattr("fedrec.shop.api.data_routes.findings", found)
    with _served(corner) as api:
        answer = api.request("PUT" if path == "/v1/items" else "POST", path, json=wide, timeout=60)
    problem = answer.json()
    assert answer.status_code == (200 if path == "/v1/events" else 422)
    assert len(problem.get("errors") or problem["refused"]) == 1
    assert looked == []
    assert len(answer.content) < 1_000


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> KeptLists:
    monkeypatch.setattr(kept_lists, "MOST_BYTES", 17_000)
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
    return KeptList("home", body, "popular", LOCAL, "a", "", time.monotonic())


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
        if limit == counting._PAGE and next(failures, False):
            raise StoreError("locked")
        return list(read(sequence, limit))

    monkeypatch.setattr(corner.store, "events_after", failing)
    with _served(corner) as api:
        corner.store.append_events([Event("bob", "e", EventKind.PURCHASE, NOON, event_id="2")])
        _until_popular(api, {"d": 1.0, "e": 1.0})


def test_what_happens_while_all_is_counted_is_counted(corner: Corner, monkeypatch: pytest.MonkeyPatch) -> None:
    read = corner.store.events_after

    def slow(sequence: int, limit: int = 10_000) -> list[object]:
        if limit == counting._PAGE:
            time.sleep(0.5)
        return list(read(sequence, limit))

    corner.store.append_events([Event("ann", "d", EventKind.PURCHASE, NOON, event_id="1")])
    corner.live._events_seen = corner.store.last_sequence()
    monkeypatch.setattr(corner.store, "events_after", slow)
    with _served(corner) as api:
        api.post("/v1/events", json={"events": [_bought("bob", "d"), _bought("bob", "d", "like")]})
        _until_popular(api, {"d": 2.0})


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /v1/popular HTTP/1.1\r\nHost: a\r\n",
        b"POST /v1/events HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{",
        b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\nGET",
    ],
)
def test_who_does_not_bring_a_request_is_not_waited_for(
    corner: Corner, monkeypatch: pytest.MonkeyPatch, begun: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "REQUEST_S", 0.4)
    with serving(make_app({corner.name: corner.live})) as url, _line_to(url) as line:
        line.sendall(begun)
        time.sleep(0.2)
        line.sendall(b"X-More: 1\r\n" if b"Host" in begun else b"")
        assert _is_closed(line)
        assert httpx.get(f"{url}/health/live").status_code == 200
    assert "unexpected" not in caplog.text


def test_a_head_without_end_is_not_read(corner: Corner) -> None:
    with serving(make_app({corner.name: corner.live})) as url, _line_to(url) as line:
        line.sendall(b"GET /v1/popular HTTP/1.1\r\nHost: a\r\nX-Long: ")
        with suppress(OSError):
            for _ in range(64):
                line.sendall(b"a" * 2**16)
        assert _is_closed(line)


def test_connections_are_bounded(corner: Corner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience.Patience, "most_connections", 5)
    with serving(make_app({corner.name: corner.live})) as url, ExitStack() as lines:
        many = [lines.enter_context(_line_to(url)) for _ in range(20)]
        assert sum(_is_closed(line, wait_s=0.1) for line in many) == 15


def _line_to(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=20)


def _is_closed(line: socket.socket, wait_s: float = 20) -> bool:
    line.settimeout(wait_s)
    try:
        while line.recv(2**16):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


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


def test_health_says_when_the_store_cannot_be_written_or_read(corner: Corner, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise StoreError("disk full at /home/shop")

    def until(wanted: str) -> None:
        deadline = time.monotonic() + 20
        while wanted not in api.get("/health/ready").text:
            assert time.monotonic() < deadline
            api.get("/v1/popular")  # a list that is shown is to be written
            time.sleep(0.05)

    with _served(corner) as api:
        assert api.get("/health/ready").json() == {"status": "ok"}
        with monkeypatch.context() as broken:
            broken.setattr(corner.store, "add_impression_rows", failing)
            until("cannot be written: events are refused")
        until('"ok"')
        monkeypatch.setattr(corner.store, "mark", failing)
        found = api.get("/health/ready")
    assert found.status_code == 503
    assert "disk full" not in found.text
