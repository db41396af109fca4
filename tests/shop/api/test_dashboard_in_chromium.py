"""The dashboard as somebody of the shop uses it, in a real browser."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from fedrec.shop.adoption import LOCAL, current_version
from fedrec.shop.api.app import make_app
from fedrec.shop.store.rows import Event, EventKind, KeyScope

from .bazaar import HOSTILE, RUN, Bazaar
from .chromium import Browser, chromium
from .conftest import serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bazaar(tmp_path_factory: pytest.TempPathFactory) -> Bazaar:
    return Bazaar(tmp_path_factory.mktemp("bazaar") / "shop")


@pytest.fixture(scope="module")
def browser(bazaar: Bazaar, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """At the dashboard's door."""
    with (
        chromium(tmp_path_factory.mktemp("profile")) as found,
        serving(make_app({bazaar.name: bazaar.live})) as url,
    ):
        found.driver.get(url)
        yield found


def test_somebody_looks_after_the_shop(browser: Browser, bazaar: Bazaar) -> None:
    shopper = bazaar.shoppers[3]
    bazaar.store.append_events([Event(shopper, "hostile", EventKind.VIEW, bazaar.now)])

    browser.keep("login")
    browser.write("#key", "fr_nordmarkt_no")
    browser.follow("button")
    assert "opens no shop" in browser.find("[role=alert]").text
    assert [line for line in browser.errors() if "401" not in line] == []

    browser.write("#key", bazaar.keys[KeyScope.ADMIN])
    browser.follow("button")
    assert browser.texts("h1") == [bazaar.name]
    assert browser.texts(".tile .value")[0] == RUN
    assert "fr_" not in browser.driver.page_source
    plots = browser.driver.find_elements("css selector", ".plot.wide .line")
    assert len(plots) == 3  # two arms and the ledger
    assert all(one.size["width"] > 300 for one in plots)
    browser.keep("dashboard")

    browser.write("#shopper", shopper)
    browser.follow(".ask button")
    assert browser.texts("h1") == [shopper]
    assert shopper not in browser.driver.current_url
    assert len(browser.texts(".ranked > li")) == 10
    assert browser.texts(".reasons li .n")
    assert HOSTILE in browser.find(".history").text  # a title that is markup is text
    assert browser.count("main img, main b, script") == 0
    browser.keep("shopper")
    browser.follow(".back a")

    prepared = bazaar.folder / "models" / LOCAL / "serving.json"
    prepared.rename(prepared.with_suffix(".away"))
    browser.click(".sure summary")
    browser.follow(".sure button")
    assert current_version(bazaar.folder / "models") == LOCAL
    assert "last good model" in browser.find(".state.bad").text
    assert browser.texts(".tile .value")[0] == RUN
    browser.keep("dashboard-trouble")
    prepared.with_suffix(".away").rename(prepared)
    deadline = time.monotonic() + 20
    while browser.count(".state.bad") and time.monotonic() < deadline:
        time.sleep(0.2)
        browser.driver.refresh()
    assert browser.texts(".tile .value")[0] == LOCAL
    assert browser.errors() == []  # no script was tried, nothing was refused

    browser.follow(".bar button")
    assert browser.find("#key").is_displayed()
    browser.driver.back()
    browser.driver.refresh()
    assert browser.find("#key").is_displayed()
