"""Any name that can be one is one everywhere: in events, in paths, in the client."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedrec.client import Client, Event, Item
from fedrec.shop.store.rows import MAX_ID_LENGTH, KeyScope

from .conftest import Corner

ODD = [
    *(
        "ann/recommendations",
        "/",
        "//",
        "a/b c",
        "a%2Fb",
        "%2F",
        "%",
        "%25",
        "100%",
        "?n=1",
        "#x",
        "a&b=c",
        "+",
        "a+b",
        " ",
    ),
    *(".", "..", "../..", "./a", "..%2f", "a\\b", ":", "@", "~", "*", "similar", "x/similar", "bought-together"),
    *(
        "ünï",
        "e\u0301",
        "é",
        "日本",
        "😀",
        "\ufffd",
        "'; DROP TABLE events; --",
        "%_%",
        "_",
        "<b>",
        '"',
        "x" * 256,
        "日" * 256,
    ),
]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_is_a_name(api: httpx.Client, corner: Corner, name: str) -> None:
    with Client(str(api.base_url), corner.keys[KeyScope.ADMIN]) as shop:
        check(shop, corner, name)
        assert shop.send([Event("other", "zoe", "d", "purchase")]).accepted == 1
        erased = shop.erase_shopper(name)
        assert erased["num_events"] == 1
        assert corner.store.shoppers() == ["zoe"]
        shop.delete_item(name)
        assert corner.store.item(name) is None
        assert corner.store.item("a") is not None


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.text(max_size=MAX_ID_LENGTH - 1).filter(str.isprintable))
def test_any_name_is_a_name(api: httpx.Client, corner: Corner, name: str) -> None:
    with Client(str(api.base_url), corner.keys[KeyScope.ADMIN]) as shop:
        check(shop, corner, f"/{name}")


def check(shop: Client, corner: Corner, name: str) -> None:
    assert shop.put_items([Item(name, "Odd")]) == 1
    shop.send([Event(f"of {name}"[:MAX_ID_LENGTH], name, "d", "purchase", timestamp=1e9)])
    assert [one["item"] for one in shop.export_shopper(name)["events"]] == ["d"]
    assert shop.home(name, n=1).keys == ["e"]
    assert shop.item(name).key == name
    assert shop.similar(name, n=1).list_name == "similar"
    assert shop.bought_together(name, n=1).list_name == "bought-together"
    shop.hide_item(name)
    assert corner.store.item(name).is_hidden  # type: ignore[union-attr]


def test_a_path_that_is_no_utf8_names_nobody(api: httpx.Client) -> None:
    for name in ("%FF", "%C3", "%ED%A0%80", ""):
        assert api.get(f"/v1/shoppers/{name}/recommendations").status_code == 422, name
        assert api.delete(f"/v1/shoppers/{name}").status_code == 422, name


def test_a_slash_at_the_end_leads_nowhere_else(api: httpx.Client) -> None:
    answer = api.get("/v1/popular/", headers={"Host": "elsewhere.example"}, follow_redirects=False)
    assert (answer.status_code, answer.headers.get("location")) == (404, None)
