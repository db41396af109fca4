"""The client against a served shop: both kinds, every call, every refusal."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedrec.client import AsyncClient, Client, Event, Item
from fedrec.errors import RequestRefused, ShopUnreachable
from fedrec.shop.api.app import make_app
from fedrec.shop.store.rows import KeyScope

from .shop.api.conftest import Corner, serving


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[tuple[str, str]]:
    corner = Corner(tmp_path / "corner")
    with serving(make_app({corner.name: corner.live})) as url:
        yield url, corner.keys[KeyScope.ADMIN]


def test_every_call_does_what_it_says(shop: tuple[str, str]) -> None:
    with Client(*shop) as client:
        taken = client.send([Event("1", "ann/1", "d", "purchase"), Event("2", "ann/1", "a", "no kind")])
        assert (taken.accepted, list(taken.refused)) == (1, [1])
        home = client.home("ann/1", n=2, explain=True, exclude=["f"], boost=["g=0.5"])
        assert (home.reason, home.keys[0], "f" in home.keys) == ("personal", "e", False)
        why = home.items[0].explanation
        assert why is not None
        total = why.base + why.boost + sum(one.value for one in why.contributions) + why.others
        assert total == pytest.approx(home.items[0].score)
        assert client.session(["d"], n=1).reason == "session"
        assert client.cart(["d"], shopper="ann/1", n=1).keys == ["e"]
        assert client.similar("d", n=1).keys == ["e"]
        assert client.bought_together("d", n=1).list_name == "bought-together"
        assert client.popular(category=["odd"], n=1).keys[0] in ("b", "d")  # d as soon as ann's purchase is counted
        assert client.trending(price_max=10.5).keys == ["a"]
        assert client.put_items([Item("z/9", "Last", created=2e9)]) == 1
        assert client.item("z/9") == Item("z/9", "Last", created=2e9)
        assert client.newest(n=1).keys == ["z/9"]
        client.hide_item("z/9")
        assert "z/9" not in client.newest().keys
        client.hide_item("z/9", is_hidden=False)
        client.delete_item("z/9")
        assert len(client.export_shopper("ann/1")["events"]) == 1
        assert client.erase_shopper("ann/1")["num_events"] == 1
        assert client.models()["current"] == "local"
        assert client.privacy()["epsilon_outside"] == 2.0
        assert isinstance(client.click_through(), list)


def test_refusals_say_what_and_where(shop: tuple[str, str]) -> None:
    url, key = shop
    with Client(url, key) as client:
        with pytest.raises(RequestRefused, match="n: ") as caught:
            client.popular(n=0)
        assert (caught.value.status, caught.value.errors[0][0]) == (422, "n")
        for status, call in ((404, lambda: client.similar("nothing")), (409, client.roll_back)):
            with pytest.raises(RequestRefused) as caught:
                call()
            assert caught.value.status == status
    with Client(url, "fr_corner_guess") as client, pytest.raises(RequestRefused, match="401"):
        client.popular()
    with (
        Client("http://127.0.0.1:9", key, retries=1) as client,
        pytest.raises(ShopUnreachable, match="check the address"),
    ):
        client.popular()


def test_the_asynchronous_client_is_the_same(shop: tuple[str, str]) -> None:
    def calls(kind: type) -> dict[str, str]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {name: str(inspect.signature(one)) for name, one in found if not name.startswith("_")}

    assert calls(AsyncClient) == calls(Client)

    async def ask() -> list[str]:
        async with AsyncClient(*shop) as client:
            await client.send([Event("1", "ann", "d", "purchase")])
            lists = await asyncio.gather(client.home("ann", n=1), client.similar("a", n=1), client.cart(["b"], n=1))
            with pytest.raises(RequestRefused, match="404"):
                await client.similar("nothing")
            return [found.keys[0] for found in lists]

    assert asyncio.run(ask()) == ["e", "b", "c"]
    with pytest.raises(ShopUnreachable):
        asyncio.run(AsyncClient("http://127.0.0.1:9", "key", retries=0).popular())
