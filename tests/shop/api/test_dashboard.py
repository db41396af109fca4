"""Who sees the dashboard, what its forms may do, and that its figures are the shop's."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from fedrec.shop.adoption import LOCAL, current_version
from fedrec.shop.api import dashboard_session
from fedrec.shop.api.app import make_app
from fedrec.shop.api.dashboard_figures import look_up
from fedrec.shop.store.rows import Event, EventKind, Item, KeyScope

from .conftest import Corner, serving

HOSTILE = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>"


@contextmanager
def people(*corners: Corner) -> Iterator[httpx.Client]:
    """A browser without a session."""
    shops = {corner.name: corner.live for corner in corners}
    with serving(make_app(shops)) as url, httpx.Client(base_url=url, follow_redirects=True) as client:
        yield client


def log_in(client: httpx.Client, corner: Corner, scope: KeyScope = KeyScope.ADMIN) -> str:
    """The dashboard's page."""
    answer = client.post("/dashboard/login", data={"key": corner.keys[scope]})
    assert answer.status_code == 200, answer.text
    return answer.text


def token_of(page: str) -> str:
    found = re.search(r'name="token" value="([0-9a-f]{64})"', page)
    assert found
    return found.group(1)


def test_without_a_key_nothing_of_a_shop_is_said(corner: Corner) -> None:
    with people(corner) as client:
        wrong = [corner.keys[KeyScope.READ][:-1], "", "é\u2028", f"fr_{corner.name}_"]
        answers = [client.get("/"), *(client.post("/dashboard/login", data={"key": key}) for key in wrong)]
        answers.append(client.post("/dashboard/shopper", data={"shopper": "ann", "token": "0" * 64}))
    assert [answer.status_code for answer in answers] == [200, 401, 401, 401, 401, 401]
    for answer in answers:
        assert corner.name not in answer.text
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(("origin", "is_secure"), [("http://127.0.0.1", False), ("https://shop.example.org", True)])
def test_a_session_is_a_cookie_that_scripts_and_other_sites_do_not_get(
    corner: Corner, origin: str, is_secure: bool
) -> None:
    key = corner.keys[KeyScope.READ]
    with people(corner) as client:
        answer = client.post("/dashboard/login", data={"key": key}, headers={"Origin": origin}, follow_redirects=False)
    cookie = answer.headers["set-cookie"]
    assert answer.headers["location"] == "/"
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Max-Age=3600" in cookie
    assert ("Secure" in cookie) == is_secure
    assert key not in str(answer.headers)
    assert key.rpartition("_")[2] not in cookie


def test_pages_let_the_browser_run_and_load_nothing(corner: Corner) -> None:
    with people(corner) as client:
        log_in(client, corner)
        pages = [client.get("/"), client.post("/dashboard/shopper", data={"shopper": "ann", "token": ""})]
    assert [page.status_code for page in pages] == [200, 403]
    for page in pages:
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'self';")
        assert "script-src" not in policy
        assert page.headers["cache-control"] == "no-store"
        assert not re.search(r"<script|<style|\sstyle=|\son\w+=|https?://", page.text)


def test_what_a_shop_says_is_text(corner: Corner) -> None:
    corner.store.put_items([Item("bad", HOSTILE, HOSTILE)])
    corner.store.append_events([Event(HOSTILE, "bad", EventKind.VIEW, 1.0), Event(HOSTILE, "d", EventKind.VIEW, 2.0)])
    with people(corner) as client:
        token = token_of(log_in(client, corner))
        answer = client.post("/dashboard/shopper", data={"shopper": HOSTILE, "token": token})
    assert answer.status_code == 200
    assert answer.text.count("&lt;script&gt;") >= 3  # her id in title and heading, the item she looked at
    assert not re.search(r"<script|<img", answer.text)


def test_a_key_opens_its_own_shop(tmp_path: Path) -> None:
    north, south = Corner(tmp_path / "n", "north.1"), Corner(tmp_path / "s", "south")
    with people(north, south) as client:
        page = log_in(client, north)
        assert "north.1" in page
        assert "south" not in page
        given = client.cookies[dashboard_session.COOKIE]
        client.cookies.clear()
        client.cookies[dashboard_session.COOKIE] = given.replace("north.1", "south")
        assert "south" not in client.get("/").text
        assert 'name="key"' in client.get("/").text
        client.cookies.clear()
        assert "south" in log_in(client, south)


def test_a_form_needs_its_own_sessions_token_and_its_own_site(corner: Corner) -> None:
    with people(corner) as client, httpx.Client(base_url=client.base_url, follow_redirects=True) as other:
        token, others = token_of(log_in(client, corner)), token_of(log_in(other, corner))

        def ask(sent: str, **headers: str) -> int:
            return client.post(
                "/dashboard/shopper", data={"shopper": "ann", "token": sent}, headers=headers
            ).status_code

        assert ask(token) == 200
        assert [ask(others), ask(""), ask("é")] == [403, 403, 403]
        assert ask(token, **{"Sec-Fetch-Site": "cross-site"}) == 403
        assert ask(token, **{"Sec-Fetch-Site": "same-site"}) == 403
        key = {"key": corner.keys[KeyScope.READ]}
        assert other.post("/dashboard/login", data=key, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_an_admin_alone_rolls_back(corner: Corner) -> None:
    version = {"version": LOCAL}
    with people(corner) as client:
        token = token_of(log_in(client, corner, KeyScope.WRITE))
        assert client.post("/dashboard/roll-back", data={"token": token, **version}).status_code == 403
        assert not (corner.folder / "models" / "current.json").exists()
        token = token_of(log_in(client, corner))
        assert client.post("/dashboard/roll-back", data={"token": token, "version": "none-such"}).status_code == 409
        answer = client.post("/dashboard/roll-back", data={"token": token, **version})
    assert answer.status_code == 200
    assert (corner.folder / "models" / "current.json").exists()
    assert current_version(corner.folder / "models") == LOCAL


def test_sessions_end(corner: Corner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrec.shop.api.security.KEY_AGE_S", 0.0)
    with people(corner) as client:
        token = token_of(log_in(client, corner))
        given = client.cookies[dashboard_session.COOKIE]
        client.post("/dashboard/logout", data={"token": token})
        assert dashboard_session.COOKIE not in client.cookies
        client.cookies[dashboard_session.COOKIE] = given
        assert corner.name not in client.get("/").text  # logged out: a copy is worth nothing either

        client.cookies.clear()
        with monkeypatch.context() as patched:
            patched.setattr(dashboard_session, "SESSION_S", 0)
            form = {"key": corner.keys[KeyScope.ADMIN]}
            over = client.post("/dashboard/login", data=form, follow_redirects=False).headers["set-cookie"]
        client.cookies.clear()
        assert corner.name not in client.get("/", headers={"Cookie": over.partition(";")[0]}).text

        client.cookies.clear()
        assert corner.name in log_in(client, corner)
        (key,) = (key for key in corner.store.keys() if key.scope is KeyScope.ADMIN)  # noqa: SIM118
        corner.store.revoke_key(key.id)
        revoked = client.get("/")
        assert revoked.status_code == 401
        assert corner.name not in revoked.text


@pytest.mark.parametrize("cookie", ["x", "", ".....", "0" * 64 + ".a.b.9999999999.corner", "é.a.b.9.corner"])
def test_a_cookie_of_somebodys_own_making_is_none(corner: Corner, cookie: str) -> None:
    with people(corner) as client:
        answer = client.get("/", headers=[(b"cookie", f"{dashboard_session.COOKIE}={cookie}".encode())])
    assert answer.status_code == 200
    assert corner.name not in answer.text


def test_looking_a_shopper_up_shows_her_list_and_notes_nothing(corner: Corner) -> None:
    corner.store.append_events([Event("ann", "d", EventKind.PURCHASE, 1.0)])
    with people(corner) as client:
        token = token_of(log_in(client, corner))
        page = client.post("/dashboard/shopper", data={"shopper": " ann ", "token": token})
        unknown = client.post("/dashboard/shopper", data={"shopper": "zoe", "token": token})
        listed = client.get("/v1/shoppers/ann/recommendations", headers=corner.headers()).json()["items"]
        metrics = client.get("/metrics", headers=corner.headers()).text
        assert corner.store.num_events() == 1
    titles = re.findall(r'class="title">([^<]*)<', page.text)
    assert titles == [line["title"] for line in listed]
    assert "Title d" in page.text
    assert "knows no event" in unknown.text
    assert 'fedrec_lists_total{arm="",list="home",reason="personal",version="r1"} 1.0' in metrics


def test_what_she_did_is_for_those_who_may_export_it(corner: Corner) -> None:
    corner.store.append_events([Event("ann", "d", EventKind.RETURN, 1.0)])
    with people(corner) as client:
        for scope, is_told in ((KeyScope.READ, False), (KeyScope.ADMIN, True)):
            token = token_of(log_in(client, corner, scope))
            page = client.post("/dashboard/shopper", data={"shopper": "ann", "token": token})
            assert "What she would be shown now" in page.text
            assert ("Title d" in page.text) == is_told


def test_an_empty_shop_is_told_what_to_do(tmp_path: Path) -> None:
    corner = Corner(tmp_path / "corner")
    corner.store.delete_items([line.item.key for line in corner.store.items_after(0)])
    with people(corner) as client:
        page = log_in(client, corner)
    for wanted in ("PUT /v1/items", "GET /v1/shoppers", "fedrec shop enrol", "[serving]", "fedrec shop run"):
        assert wanted in page


def test_reasons_say_their_share(corner: Corner) -> None:
    corner.store.append_events([Event("ann", "d", EventKind.PURCHASE, 1.0), Event("ann", "c", EventKind.PURCHASE, 2.0)])
    found = asyncio.run(look_up(corner.live, "ann"))
    best = found.lines[0]
    assert (best.item, best.source) == ("e", "personal")
    assert [one.title for one in best.reasons] == ["Title d", "Title c"]  # the chain: 1 from the one before, 1/2 from c
    assert [one.share for one in best.reasons] == pytest.approx([2 / 3, 1 / 3])
