"""A shop whose store is another machine's: the same answers, and nobody waits for somebody else's slow read."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from fedrec.shop.api.app import make_app
from fedrec.shop.store.rows import KeyScope

from .conftest import Corner, serving
from .test_dashboard import token_of


@pytest.fixture
def shops(tmp_path: Path, postgres: Iterator[str]) -> Iterator[tuple[Corner, list[httpx.Client]]]:
    """One in PostgreSQL; clients of it, and of one like it in SQLite."""
    far, near = Corner(tmp_path / "far", url=next(postgres)), Corner(tmp_path / "near")
    with ExitStack() as open_ones:
        urls = [open_ones.enter_context(serving(make_app({"corner": one.live}))) for one in (far, near)]
        yield (
            far,
            [
                open_ones.enter_context(httpx.Client(base_url=url, headers=one.headers(), timeout=30))
                for url, one in zip(urls, (far, near), strict=True)
            ],
        )


def test_both_databases_give_the_same_answers(shops: tuple[Corner, list[httpx.Client]]) -> None:
    _, clients = shops

    def same(method: str, path: str, body: object = None) -> Any:
        found = [client.request(method, path, json=body) for client in clients]
        answers = [(one.status_code, {**one.json(), "list_id": ""} if one.content else None) for one in found]
        assert answers[0] == answers[1], path
        return answers[0][1]

    def bought(item: str) -> dict[str, object]:
        event = {"event_id": f"ann-{item}", "shopper": "ann", "item": item, "kind": "purchase"}
        return {"events": [{**event, "timestamp": 1e9}]}

    home = "/v1/shoppers/ann/recommendations?explain=true"
    for item in ("d", "e"):
        same("POST", "/v1/events", bought(item))
        assert [same("GET", f"{home}&n=5")["reason"] for _ in range(2)] == ["personal"] * 2
    for path in (
        "/v1/items/d/similar?n=2",
        "/v1/items/none/similar",
        f"{home}&n=0",
        "/v1/shoppers/%07/recommendations",
    ):
        same("GET", path)
    same("POST", "/v1/cart", {"items": ["a"], "shopper": "ann"})
    same("POST", "/v1/session", {"items": ["a", "b"]})
    same("PATCH", "/v1/items/f", {"is_hidden": True})
    assert "f" not in [line["item"] for line in same("GET", f"{home}&n=9")["items"]]
    same("DELETE", "/v1/items/g")
    same("PUT", "/v1/items", {"items": [{"key": "g", "title": "again"}]})
    assert ("g", "again") in [(line["item"], line["title"]) for line in same("GET", f"{home}&n=9")["items"]]


@pytest.mark.parametrize(("table", "what"), [("events", "list"), ("keys", "list"), ("events", "dashboard")])
def test_a_read_that_waits_keeps_nobody_else_waiting(
    shops: tuple[Corner, list[httpx.Client]], table: str, what: str
) -> None:
    far, (client, _) = shops
    home = "/v1/shoppers/ann/recommendations"
    page = client.post("/dashboard/login", data={"key": far.keys[KeyScope.READ]}, follow_redirects=True).text
    form = {"shopper": "ann", "token": token_of(page)}
    assert client.get(home).status_code == 200  # this key is known, the other one is not
    with psycopg.connect(far.url) as blocker, ThreadPoolExecutor(1) as one:
        blocker.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        if what == "dashboard":
            waiting = one.submit(client.post, "/dashboard/shopper", data=form)
        else:
            headers = far.headers(KeyScope.WRITE if table == "keys" else KeyScope.ADMIN)
            waiting = one.submit(client.get, home, headers=headers)
        for _ in range(3):
            assert httpx.get(client.base_url.join("/health/live"), timeout=30).status_code == 200
        assert not waiting.done()  # live was answered while she waited for the lock
        blocker.rollback()
        assert waiting.result().status_code == 200
