"""A small shop's website on the recommend API: home, product and cart, each with its rows, each item with its why.

    FEDREC_KEY=fr_... python clients/storefront/storefront.py --api http://127.0.0.1:8080

The key stays in this process: browsers talk to it, and it talks to the API. A row that the API does not answer in time
is left out; the page is shown all the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import uvicorn
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from fedrec.client import AsyncClient, Event, Item, Listed, Ranked
from fedrec.errors import FedrecError, RequestRefused

HERE = Path(__file__).parent
ROW = 6
MOST_VIEWED, MOST_IN_CART = 10, 20
MONTH_S = 30 * 86_400
WORDS = {
    "personal": "because of what you bought and looked at",
    "session": "because of what you are looking at",
    "content": "like what you looked at",
    "new": "new in the shop",
    "popular": "many shoppers bought it",
    "trending": "many shoppers buy it lately",
    "newest": "new in the shop",
    "similar": "like this",
    "bought_together": "shoppers bought both",
    "pinned": "chosen by the shop",
}


@dataclass(frozen=True)
class Card:
    """One item of a row: what the list says of it, and what the catalogue does."""

    line: Listed
    item: Item

    @property
    def reasons(self) -> list[tuple[str, int]]:
        """What in her history speaks for it most: title, and its part of everything that does, in percent."""
        if (why := self.line.explanation) is None:
            return []
        whole = sum(one.value for one in why.contributions if one.value > 0) + max(why.others, 0.0)
        shown = [one for one in why.contributions if one.value > 0][:2]
        return [(calm(one.title or one.item), round(100 * one.value / whole)) for one in shown]


@dataclass(frozen=True)
class Row:
    """A list as a page shows it."""

    title: str
    ranked: Ranked
    cards: list[Card]


@dataclass
class Visitor:
    """What the browser's own cookies say; nothing of it is trusted further than a shop trusts a form.

    Attributes:
        shopper: whom she says she is; "" = not signed in, and then nothing that she does is stored.
        viewed, cart: item keys, oldest first.
    """

    shopper: str
    viewed: list[str]
    cart: list[str]

    @classmethod
    def of(cls, request: Request) -> Visitor:
        try:
            found = json.loads(unquote(request.cookies.get("visitor", "{}")))
            shopper, viewed, cart = (
                str(found["shopper"]),
                list(map(str, found["viewed"])),
                list(map(str, found["cart"])),
            )
        except (ValueError, KeyError, TypeError):
            return cls("", [], [])
        return cls(shopper, viewed[-MOST_VIEWED:], cart[-MOST_IN_CART:])

    def keep(self, answer: Response) -> Response:
        found = {"shopper": self.shopper, "viewed": self.viewed[-MOST_VIEWED:], "cart": self.cart[-MOST_IN_CART:]}
        answer.set_cookie("visitor", quote(json.dumps(found)), MONTH_S, httponly=True, samesite="lax")
        return answer

    def saw(self, item: str) -> None:
        self.viewed = [*(one for one in self.viewed if one != item), item]


class Storefront:
    """The pages."""

    def __init__(self, api: AsyncClient, name: str) -> None:
        self.api, self.name = api, name
        self.pages = Environment(
            loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )
        self.pages.filters |= {
            "quoted": partial(quote, safe=""),
            "picture": picture_of,
            "name": lambda item: calm(item.title or item.key),
        }
        self.pages.globals |= {"words": WORDS, "shop": name}

    async def home(self, request: Request) -> Response:
        """For her, or from what she looked at; then what sells, and what is new."""
        visitor = Visitor.of(request)
        if visitor.shopper:
            first = self.row("For you", self.api.home(visitor.shopper, n=ROW, explain=True, diversity=0.2))
        elif visitor.viewed:
            first = self.row("From what you looked at", self.api.session(visitor.viewed, n=ROW, explain=True))
        else:
            first = self.row("Popular here", self.api.popular(n=ROW))
        trending = self.row("Many buy lately", self.api.trending(n=ROW))
        newest = self.row("New in the shop", self.api.newest(n=ROW))
        rows = await asyncio.gather(first, trending, newest)
        return self.answer("home.html", visitor, rows=rows)

    async def item(self, request: Request) -> Response:
        """A product. Looking at it is an event; the list on which it was clicked makes it a click."""
        key, visitor = request.path_params["item"], Visitor.of(request)
        try:
            item = await self.api.item(key)
        except RequestRefused as error:
            return self.problem(visitor, error.status, "There is no such product.")
        except FedrecError:
            return self.problem(visitor, 503, "The shop cannot be reached now.")
        await self.tell(visitor, key, "view", request.query_params.get("list"))
        visitor.saw(key)
        rows = await asyncio.gather(
            self.row("Bought together", self.api.bought_together(key, n=ROW)),
            self.row("Similar", self.api.similar(key, n=ROW)),
        )
        return self.answer("item.html", visitor, item=item, rows=rows, list_id=request.query_params.get("list", ""))

    async def cart(self, request: Request) -> Response:
        """What is in it, and what goes with that."""
        visitor, rows = Visitor.of(request), []
        items = [item for item in await asyncio.gather(*map(self.known, visitor.cart)) if item is not None]
        if items:
            asked = self.api.cart([one.key for one in items], visitor.shopper or None, n=ROW, explain=True)
            rows = [await self.row("Goes with your cart", asked)]
        total = sum(item.price or 0.0 for item in items)
        return self.answer("cart.html", visitor, items=items, total=total, rows=rows)

    async def add(self, request: Request) -> Response:
        """Put into the cart."""
        visitor, form = Visitor.of(request), await read_form(request)
        if (item := await self.known(form.get("item", ""))) is not None:
            await self.tell(visitor, item.key, "cart", form.get("list"))
            visitor.cart.append(item.key)
        return visitor.keep(RedirectResponse("/cart", 303))

    async def remove(self, request: Request) -> Response:
        """Take out of the cart."""
        visitor, form = Visitor.of(request), await read_form(request)
        if form.get("item") in visitor.cart:
            visitor.cart.remove(form["item"])
        return visitor.keep(RedirectResponse("/cart", 303))

    async def buy(self, request: Request) -> Response:
        """Buy what is in the cart."""
        visitor = Visitor.of(request)
        for item in visitor.cart:
            await self.tell(visitor, item, "purchase")
        visitor.cart, visitor.viewed = [], []
        return visitor.keep(RedirectResponse("/", 303))

    async def sign_in(self, request: Request) -> Response:
        """Be somebody; a real shop asks for a password here."""
        visitor = Visitor("", [], Visitor.of(request).cart)
        visitor.shopper = (await read_form(request)).get("shopper", "").strip()[:200]
        return visitor.keep(RedirectResponse("/", 303))

    async def row(self, title: str, asked: Awaitable[Ranked]) -> Row | None:
        """A list with its items; None where there is none in time."""
        try:
            ranked = await asked
        except FedrecError:
            return None
        # A real shop looks titles, prices and pictures up in its own catalogue.
        items = await asyncio.gather(*(self.known(line.item) for line in ranked.items))
        cards = [Card(line, item) for line, item in zip(ranked.items, items, strict=True) if item is not None]
        return Row(title, ranked, cards) if cards else None

    async def known(self, key: str) -> Item | None:
        """An item, if there is one and the API answers."""
        try:
            return await self.api.item(key) if key else None
        except FedrecError:
            return None

    async def tell(self, visitor: Visitor, item: str, kind: str, list_id: str | None = None) -> None:
        """Send an event of somebody who is signed in; a shop that must lose none keeps a queue."""
        if visitor.shopper:
            event = Event(secrets.token_hex(12), visitor.shopper, item, kind, list_id=list_id or None)
            try:
                await self.api.send([event])
            except FedrecError:
                return

    def answer(self, template: str, visitor: Visitor, status: int = 200, **values: Any) -> Response:
        """A page, with the visitor's cookie."""
        text = self.pages.get_template(template).render(visitor=visitor, **values)
        policy = "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; frame-ancestors 'none'"
        return visitor.keep(HTMLResponse(text, status, {"Content-Security-Policy": policy}))

    def problem(self, visitor: Visitor, status: int, message: str) -> Response:
        """A page that says what is wrong."""
        return self.answer("problem.html", visitor, status, message=message)


def make_app(api_url: str, key: str, *, name: str = "Corner Market") -> Starlette:
    """The website.

    Args:
        api_url: of ``fedrec shop serve``.
        key: of scope write; it never leaves this process but for the API.
    """
    api = AsyncClient(api_url, key, timeout_s=2.0, retries=0)  # a row may be missing, a page may not wait
    shop = Storefront(api, name)

    @asynccontextmanager
    async def running(_: Starlette) -> AsyncIterator[None]:
        yield
        await api.close()

    pages = {"/": shop.home, "/item/{item:path}": shop.item, "/cart": shop.cart}
    forms = {"/add": shop.add, "/remove": shop.remove, "/buy": shop.buy, "/sign-in": shop.sign_in}
    routes = [
        *(Route(path, page) for path, page in pages.items()),
        *(Route(path, form, methods=["POST"]) for path, form in forms.items()),
        Route("/style.css", lambda _: FileResponse(HERE / "style.css")),
    ]
    return Starlette(routes=routes, lifespan=running)


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a small form."""
    if int(request.headers.get("content-length", 0)) > 4096:
        return {}
    return dict(parse_qsl((await request.body()).decode("ascii", "replace")))


def picture_of(item: Item) -> tuple[int, list[tuple[int, int, int]]]:
    """A picture where the data has none: one of eight colours, and three discs (x, y, radius), in percent."""
    drawn = sha256(item.key.encode()).digest()
    discs = [
        (drawn[place] * 100 // 255, drawn[place + 1] * 100 // 255, 14 + drawn[place + 2] // 8) for place in (0, 3, 6)
    ]
    return sha256((item.category or item.key).encode()).digest()[0] % 8, discs


def calm(text: str) -> str:
    """As a page writes it: some catalogues shout."""
    return text.title() if text.isupper() else text


def main() -> None:
    """Serve the website on this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--api", default="http://127.0.0.1:8080", help="where fedrec shop serve is")
    parser.add_argument("--name", default="Corner Market", help="of the shop, on its pages")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    if not (key := os.environ.get("FEDREC_KEY", "")):
        parser.error("put a key of scope write into FEDREC_KEY: fedrec shop key DIR add")
    print(f"http://127.0.0.1:{given.port}", flush=True)
    uvicorn.run(make_app(given.api, key, name=given.name), host="127.0.0.1", port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
