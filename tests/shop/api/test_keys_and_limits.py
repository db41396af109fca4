"""Who is let in, how often, with how much; and that nothing is said to anybody else."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.shop.api.app import make_app
from fedrec.shop.lists.serving_settings import ServingSettings
from fedrec.shop.store.rows import KeyScope
from fedrec.shop.store.store import Store

from .conftest import Corner, serving

ROUTES = {
    ("GET", "/v1/popular"): KeyScope.READ,
    ("GET", "/v1/shoppers/ann/recommendations"): KeyScope.READ,
    ("GET", "/v1/items/a/similar"): KeyScope.READ,
    ("GET", "/v1/items/a"): KeyScope.READ,
    ("GET", "/metrics"): KeyScope.READ,
    ("GET", "/v1/models"): KeyScope.READ,
    ("GET", "/v1/privacy"): KeyScope.READ,
    ("POST", "/v1/session"): KeyScope.READ,
    ("POST", "/v1/events"): KeyScope.WRITE,
    ("PUT", "/v1/items"): KeyScope.WRITE,
    ("PATCH", "/v1/items/a"): KeyScope.WRITE,
    ("DELETE", "/v1/items/a"): KeyScope.WRITE,
    ("GET", "/v1/shoppers/ann"): KeyScope.ADMIN,
    ("DELETE", "/v1/shoppers/ann"): KeyScope.ADMIN,
    ("POST", "/v1/models/roll-back"): KeyScope.ADMIN,
}


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Corner, Corner, str]]:
    """Two shops behind one port, the name of one the beginning of the other's."""
    shops = Corner(tmp_path / "a", "north"), Corner(tmp_path / "b", "north_end")
    with serving(make_app({shop.name: shop.live for shop in shops})) as url:
        yield *shops, url


def test_a_key_opens_its_own_shop_alone(two: tuple[Corner, Corner, str]) -> None:
    north, north_end, url = two
    event = {"event_id": "1", "shopper": "ann", "item": "d", "kind": "purchase"}
    assert httpx.post(f"{url}/v1/events", json={"events": [event]}, headers=north.headers()).is_success
    reasons = [
        httpx.get(f"{url}/v1/shoppers/ann/recommendations", headers=shop.headers()).json()["reason"]
        for shop in (north, north_end)
    ]
    assert reasons == ["personal", "popular"]
    assert (north.store.num_events(), north_end.store.num_events()) == (1, 0)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_wants_its_scope(api: httpx.Client, corner: Corner, method: str, path: str) -> None:
    answers = {
        scope: api.request(method, path, headers=corner.headers(scope), json={}).status_code for scope in KeyScope
    }
    needed = ROUTES[method, path]
    assert [status == 403 for status in answers.values()] == [scope < needed for scope in answers]
    assert 401 not in answers.values()
    assert httpx.request(method, f"{api.base_url}{path}", json={}).status_code == 401


def test_every_route_with_a_key_is_in_the_table(corner: Corner) -> None:
    documented = make_app({corner.name: corner.live}).openapi()["paths"]
    with_key = sum("security" not in one for methods in documented.values() for one in methods.values())
    same_scope = {"/v1/trending", "/v1/new", "/v1/items/{item}/bought-together", "/v1/cart", "/v1/click-through"}
    assert with_key == len(ROUTES) + len(same_scope & documented.keys())


def test_strangers_get_one_answer(two: tuple[Corner, Corner, str]) -> None:
    north, _, url = two
    good = north.keys[KeyScope.READ]
    wrong = [None, "x", good[:-1], f"{good}0", good.replace("north", "south"), good.replace("north_", "north_end_")]
    answers = {
        httpx.get(f"{url}/v1/popular", headers={} if key is None else {"Authorization": f"Bearer {key}"}).text
        for key in wrong
    }
    assert len(answers) == 1
    (text,) = answers
    assert json.loads(text)["status"] == 401
    assert "north" not in text


@settings(max_examples=40, deadline=None)
@given(header=st.binary(max_size=90))
def test_no_header_but_the_key_lets_in(stranger: httpx.Client, header: bytes) -> None:
    try:
        answer = stranger.get("/v1/popular", headers=[(b"authorization", header.strip())])
    except httpx.LocalProtocolError:  # the client will not send such bytes
        return
    assert answer.status_code in (400, 401), header


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    corner = Corner(tmp_path_factory.mktemp("shared"))
    with serving(make_app({corner.name: corner.live})) as url, httpx.Client(base_url=url) as client:
        yield client


def test_a_revoked_key_is_refused(corner: Corner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrec.shop.api.security.KEY_AGE_S", 0.0)
    with serving(make_app({corner.name: corner.live})) as url:
        read = corner.headers(KeyScope.READ)
        assert httpx.get(f"{url}/v1/popular", headers=read).status_code == 200
        with Store.open(corner.url) as other:
            (key,) = (key for key in Store.keys(other) if key.scope is KeyScope.READ)
            other.revoke_key(key.id)
        assert httpx.get(f"{url}/v1/popular", headers=read).status_code == 401


def test_a_key_has_a_rate_however_it_is_written(tmp_path: Path) -> None:
    corner = Corner(tmp_path / "slow", settings=ServingSettings(requests_per_s=0.001))
    key = corner.keys[KeyScope.READ]
    with serving(make_app({corner.name: corner.live})) as url:
        answers = [
            httpx.get(f"{url}/v1/popular", headers={"Authorization": f"{word} {key}"}) for word in ("Bearer", "bearer")
        ]
        other = httpx.get(f"{url}/v1/popular", headers=corner.headers(KeyScope.WRITE))
    assert [answer.status_code for answer in (*answers, other)] == [200, 429, 200]
    assert 900 < int(answers[1].headers["Retry-After"]) <= 1000


def test_long_bodies_are_refused_declared_or_not(corner: Corner) -> None:
    with serving(make_app({corner.name: corner.live}, most_body_bytes=1000)) as url:

        def post(**content: object) -> httpx.Response:
            return httpx.post(f"{url}/v1/events", headers=corner.headers(), **content)  # type: ignore[arg-type]

        answers = [post(content=b"x" * 1001), post(content=iter([b"x" * 600, b"x" * 600])), post(content=b"x" * 1000)]
    assert [answer.status_code for answer in answers] == [413, 413, 400]
    assert all(answer.headers["content-type"] == "application/problem+json" for answer in answers)


def test_browsers_of_named_pages_alone_may_call(tmp_path: Path) -> None:
    corner = Corner(tmp_path / "web")
    page = "https://shop.example.org"
    with serving(make_app({corner.name: corner.live}, origins=[page])) as url:
        asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
        allowed = [
            httpx.options(f"{url}/v1/popular", headers={**asked, "Origin": origin}).headers.get(
                "access-control-allow-origin"
            )
            for origin in (page, "https://elsewhere.example.org")
        ]
    assert allowed == [page, None]


def test_failures_are_problems_that_say_nothing(
    corner: Corner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("ann bought d")

    monkeypatch.setattr(corner.live, "privacy", fail)
    with serving(make_app({corner.name: corner.live})) as url, caplog.at_level(logging.DEBUG):
        answer = httpx.get(f"{url}/v1/privacy", headers=corner.headers())
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "RuntimeError" in caplog.text
    for told in (answer.text, caplog.text):
        assert "bought" not in told
        assert corner.keys[KeyScope.ADMIN] not in told
