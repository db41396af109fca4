"""The demonstration shop, walked through in a real browser; its API is a real one in the same process."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from fedrec.shop.api.app import make_app
from fedrec.shop.store.rows import KeyScope

from .bazaar import HOSTILE, Bazaar
from .chromium import Browser, chromium
from .conftest import serving

pytestmark = pytest.mark.slow
PATH = Path(__file__).parents[3] / "clients" / "storefront" / "storefront.py"


@pytest.fixture(scope="module")
def storefront() -> ModuleType:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(PATH.parent)
        return importlib.import_module(PATH.stem)


@pytest.fixture(scope="module")
def bazaar(tmp_path_factory: pytest.TempPathFactory) -> Bazaar:
    return Bazaar(tmp_path_factory.mktemp("bazaar") / "shop")


@pytest.fixture(scope="module")
def url(bazaar: Bazaar, storefront: ModuleType) -> Iterator[str]:
    with (
        serving(make_app({bazaar.name: bazaar.live})) as api,
        serving(storefront.make_app(api, bazaar.keys[KeyScope.WRITE])) as found,
    ):
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


def headings(browser: Browser) -> list[str]:
    return browser.texts(".row h2")


def test_a_stranger_is_recommended_to_and_nothing_is_stored(browser: Browser, bazaar: Bazaar, url: str) -> None:
    before = bazaar.store.num_events()
    browser.driver.get(url)
    assert headings(browser) == ["Popular here", "Many buy lately", "New in the shop"]
    assert HOSTILE in browser.texts(".card .title")  # newest, and text
    assert browser.count("script, .card b, img") == 0
    browser.follow(".card a")
    looked_at = browser.find("h1").text
    assert set(headings(browser)) == {"Bought together", "Similar"}
    browser.follow("header .name")
    assert headings(browser)[0] == "From what you looked at"
    assert browser.find(".row .about").text.startswith("session")
    browser.click(".card summary")
    assert browser.texts(".card details[open] .reasons span") == [looked_at]
    assert bazaar.store.num_events() == before
    assert browser.errors() == []


def test_a_shopper_buys_and_her_page_changes(browser: Browser, bazaar: Bazaar, url: str) -> None:
    browser.driver.get(url)
    browser.write("#shopper", "anna")
    browser.follow(".who button")
    assert browser.find(".row .about").text.startswith("popular")
    browser.follow(".card a")
    browser.keep("storefront-item")
    bought = browser.find("h1").text
    browser.follow(".product button")
    assert bought in browser.find(".lines").text
    assert headings(browser) == ["Goes with your cart"]
    browser.click(".card summary")
    assert browser.texts(".card details[open] .reasons span") == [bought]
    browser.keep("storefront-cart")
    browser.follow(".buy button")
    assert browser.find(".row h2").text == "For you"
    assert browser.find(".row .about").text.startswith("personal")
    browser.click(".card summary")
    browser.keep("storefront-home")
    view, cart, purchase = bazaar.store.history("anna")
    assert [one.kind.value for one in (view, cart, purchase)] == ["view", "cart", "purchase"]
    assert view.list_id is not None  # counts as a click on the list
    assert {view.item, cart.item, purchase.item} == {view.item}
    assert browser.errors() == []


def test_the_key_stays_behind_the_website(browser: Browser, bazaar: Bazaar, url: str) -> None:
    secret = bazaar.keys[KeyScope.WRITE]
    for path in ("/", "/cart", "/style.css", f"/item/{bazaar.store.history('anna')[0].item}"):
        answer = httpx.get(url + path)
        assert answer.status_code == 200
        assert secret not in answer.text + str(answer.headers)
    assert all(secret not in str(cookie) for cookie in browser.driver.get_cookies())


@pytest.mark.parametrize("cookie", ["", "%", "[]", '{"shopper": 1, "viewed": null, "cart": []}', "x" * 3000])
def test_a_strange_cookie_is_a_strangers(url: str, cookie: str) -> None:
    assert "Welcome" in httpx.get(url, headers={"Cookie": f"visitor={cookie}"}).text


def test_a_shop_without_its_api_is_open(storefront: ModuleType) -> None:
    with serving(storefront.make_app("http://127.0.0.1:9", "fr_x_y")) as url:
        home, item = httpx.get(url), httpx.get(f"{url}/item/a")
    assert home.status_code == 200
    assert "open all the same" in home.text
    assert item.status_code == 503


def test_what_there_is_not_is_said(url: str) -> None:
    assert httpx.get(f"{url}/item/no%20such").status_code == 404
    added = httpx.post(f"{url}/add", data={"item": "no such"}, follow_redirects=True)
    assert "It is empty" in added.text
