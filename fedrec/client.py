"""Typed client of a shop's recommend API, blocking (`Client`) and asynchronous (`AsyncClient`).

    with Client("http://127.0.0.1:8080", key) as shop:
        shop.send([Event("e-1", "anna", "item-3", "purchase")])
        for line in shop.home("anna", n=5, explain=True).items:
            print(line.title, line.score, line.explanation)

Everything but `roll_back` may be repeated without harm, and is, when the connection fails or the shop asks for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Self, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import httpx

from fedrec.errors import RequestRefused, ShopUnreachable

T = TypeVar("T")
_COME_BACK = (429, 503)
_LONGEST_WAIT_S = 5.0


class Wanted(TypedDict, total=False):
    """What list is wanted; names and limits as in the API's documentation."""

    n: int
    offset: int
    category: list[str]
    not_category: list[str]
    price_min: float
    price_max: float
    in_stock: bool
    exclude: list[str]
    include_bought: bool
    diversity: float
    boost: list[str]
    pin: list[str]
    explain: bool
    seed: int


@dataclass(frozen=True)
class Event:
    """Something that a shopper did.

    Attributes:
        event_id: the shop's own; sent again it counts once.
        kind: view, cart, purchase, rating, like, dislike or return.
        value: rating or quantity.
        timestamp: Unix seconds; None = now.
        list_id: of the list that she clicked it on.
    """

    event_id: str
    shopper: str
    item: str
    kind: str
    value: float | None = None
    timestamp: float | None = None
    list_id: str | None = None


@dataclass(frozen=True)
class Item:
    """An item of the catalogue.

    Attributes:
        price: None = unknown.
        stock: None = not counted, always there.
        is_hidden: in no list.
        created: Unix seconds; None = now.
    """

    key: str
    title: str = ""
    category: str = ""
    price: float | None = None
    stock: int | None = None
    is_hidden: bool = False
    created: float | None = None


@dataclass(frozen=True)
class Contribution:
    """What one item of the history adds to a score."""

    item: str
    title: str
    value: float


@dataclass(frozen=True)
class Explanation:
    """A score taken apart: base + boost + contributions + others = the score.

    Attributes:
        base: what no item of the history brings.
        boost: what was asked for.
        contributions: of the history, greatest size first.
        others: sum of those that are not listed.
        attribution: exact, or leave-one-out.
    """

    base: float
    boost: float
    contributions: tuple[Contribution, ...]
    others: float
    attribution: str


@dataclass(frozen=True)
class Listed:
    """One line of a list.

    Attributes:
        position: in the whole list, 0 = first.
        score: comparable among items of one source in one list.
        source: where it comes from.
        explanation: where it was asked for and the model has a say.
    """

    position: int
    item: str
    title: str
    score: float
    source: str
    explanation: Explanation | None = None


@dataclass(frozen=True)
class Ranked:
    """A list, and what stands behind it.

    Attributes:
        list_id: give it back in `Event.list_id`.
        list_name: home, session, cart, similar, bought-together, popular, trending or new.
        reason: where it comes from: personal, session, content, popular, ...
        model_version, mode: of the model.
        epsilon_outside: what anybody outside can learn of one shopper; None = no bound.
        inside_shop: none or joint_dp.
    """

    list_id: str
    list_name: str
    reason: str
    model_version: str
    mode: str
    epsilon_outside: float | None
    inside_shop: str
    items: tuple[Listed, ...] = field(repr=False)

    @property
    def keys(self) -> list[str]:
        """Of its items, best first."""
        return [line.item for line in self.items]


@dataclass(frozen=True)
class Taken:
    """What became of a batch of events.

    Attributes:
        accepted: stored, and in the next list.
        duplicates: known already.
        erased: of an erased shopper, older than her erasure; dropped.
        refused: why, by place in the batch.
    """

    accepted: int
    duplicates: int
    erased: int
    refused: Mapping[int, str]


@dataclass(frozen=True)
class _Call(Generic[T]):
    method: str
    path: str
    read: Callable[[Any], T]
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    is_repeatable: bool = True


class Client:
    """Blocking; safe to share between threads."""

    def __init__(self, url: str, key: str, *, timeout_s: float = 10.0, retries: int = 2) -> None:
        """Args:
        url: of the server, such as ``https://recommend.example.org``.
        key: of the shop; chooses it.
        timeout_s: for one answer.
        retries: further attempts.
        """
        self._http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=timeout_s)
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connections."""
        self._http.close()

    def home(self, shopper: str, **wanted: Unpack[Wanted]) -> Ranked:
        """Her list; see `Wanted`.

        Raises (as every call):
            RequestRefused: with the status and what was wrong.
            ShopUnreachable: no answer.
        """
        return self._send(_home(shopper, wanted))

    def session(self, items: Iterable[str], **wanted: Unpack[Wanted]) -> Ranked:
        """For somebody unknown, from what she looked at, oldest first."""
        return self._send(_posted("/v1/session", items, wanted))

    def cart(self, items: Iterable[str], shopper: str | None = None, **wanted: Unpack[Wanted]) -> Ranked:
        """What goes with a cart."""
        return self._send(_posted("/v1/cart", items, wanted, shopper))

    def similar(self, item: str, **wanted: Unpack[Wanted]) -> Ranked:
        """Like an item."""
        return self._send(_of_item(item, "similar", wanted))

    def bought_together(self, item: str, **wanted: Unpack[Wanted]) -> Ranked:
        """Bought by the same shoppers."""
        return self._send(_of_item(item, "bought-together", wanted))

    def popular(self, **wanted: Unpack[Wanted]) -> Ranked:
        """Bought by most."""
        return self._send(_plain("popular", wanted))

    def trending(self, **wanted: Unpack[Wanted]) -> Ranked:
        """Popular lately."""
        return self._send(_plain("trending", wanted))

    def newest(self, **wanted: Unpack[Wanted]) -> Ranked:
        """New in the catalogue."""
        return self._send(_plain("new", wanted))

    def send(self, events: Iterable[Event]) -> Taken:
        """Events; durable, and in the next list, when this returns."""
        return self._send(_events(events))

    def put_items(self, items: Iterable[Item]) -> int:
        """Add or replace items; returns how many."""
        return self._send(_items(items))

    def item(self, item: str) -> Item:
        """What the shop's API knows of an item."""
        return self._send(_Call("GET", _path("items", item), lambda found: Item(**found)))

    def hide_item(self, item: str, is_hidden: bool = True) -> None:
        """Take an item out of all lists, or bring it back."""
        self._send(_hide(item, is_hidden))

    def delete_item(self, item: str) -> None:
        """Forget an item; its events stay."""
        self._send(_Call("DELETE", _path("items", item), lambda _: None))

    def export_shopper(self, shopper: str) -> dict[str, Any]:
        """All that the shop holds of her."""
        return self._send(_Call("GET", _path("shoppers", shopper), dict))

    def erase_shopper(self, shopper: str) -> dict[str, Any]:
        """Forget her; the answer says what was erased and what past releases may still tell."""
        return self._send(_Call("DELETE", _path("shoppers", shopper), dict))

    def models(self) -> dict[str, Any]:
        """Versions, and which is served."""
        return self._send(_Call("GET", "/v1/models", dict))

    def roll_back(self, version: str | None = None) -> str:
        """Serve the version before, or the one named; returns it."""
        return self._send(_roll_back(version))

    def privacy(self) -> dict[str, Any]:
        """What is promised, spent and left."""
        return self._send(_Call("GET", "/v1/privacy", dict))

    def click_through(self) -> list[dict[str, Any]]:
        """Impressions and clicks by day, list, model version and arm."""
        return self._send(_Call("GET", "/v1/click-through", lambda found: list(found["rows"])))

    def _send(self, call: _Call[T]) -> T:
        for attempt in range(self._retries if call.is_repeatable else 0):
            with suppress(httpx.TransportError):
                answer = self._http.request(call.method, call.path, params=call.query, json=call.body)
                if answer.status_code not in _COME_BACK:
                    return _read(call, answer)
                time.sleep(_asked_wait_s(answer))
            time.sleep(0.1 * 2.0**attempt)
        try:
            return _read(call, self._http.request(call.method, call.path, params=call.query, json=call.body))
        except httpx.TransportError as error:
            raise _unreachable(error) from error


class AsyncClient:
    """Asynchronous; otherwise as `Client`."""

    def __init__(self, url: str, key: str, *, timeout_s: float = 10.0, retries: int = 2) -> None:
        """Args: as of `Client`."""
        self._http = httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=timeout_s)
        self._retries = retries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connections."""
        await self._http.aclose()

    async def home(self, shopper: str, **wanted: Unpack[Wanted]) -> Ranked:
        """As `Client.home`."""
        return await self._send(_home(shopper, wanted))

    async def session(self, items: Iterable[str], **wanted: Unpack[Wanted]) -> Ranked:
        """As `Client.session`."""
        return await self._send(_posted("/v1/session", items, wanted))

    async def cart(self, items: Iterable[str], shopper: str | None = None, **wanted: Unpack[Wanted]) -> Ranked:
        """As `Client.cart`."""
        return await self._send(_posted("/v1/cart", items, wanted, shopper))

    async def similar(self, item: str, **wanted: Unpack[Wanted]) -> Ranked:
        """As `Client.similar`."""
        return await self._send(_of_item(item, "similar", wanted))

    async def bought_together(self, item: str, **wanted: Unpack[Wanted]) -> Ranked:
        """As `Client.bought_together`."""
        return await self._send(_of_item(item, "bought-together", wanted))

    async def popular(self, **wanted: Unpack[Wanted]) -> Ranked:
        """As `Client.popular`."""
        return await self._send(_plain("popular", wanted))

    async def trending(self, **wanted: Unpack[Wanted]) -> Ranked:
        """As `Client.trending`."""
        return await self._send(_plain("trending", wanted))

    async def newest(self, **wanted: Unpack[Wanted]) -> Ranked:
        """As `Client.newest`."""
        return await self._send(_plain("new", wanted))

    async def send(self, events: Iterable[Event]) -> Taken:
        """As `Client.send`."""
        return await self._send(_events(events))

    async def put_items(self, items: Iterable[Item]) -> int:
        """As `Client.put_items`."""
        return await self._send(_items(items))

    async def item(self, item: str) -> Item:
        """As `Client.item`."""
        return await self._send(_Call("GET", _path("items", item), lambda found: Item(**found)))

    async def hide_item(self, item: str, is_hidden: bool = True) -> None:
        """As `Client.hide_item`."""
        await self._send(_hide(item, is_hidden))

    async def delete_item(self, item: str) -> None:
        """As `Client.delete_item`."""
        await self._send(_Call("DELETE", _path("items", item), lambda _: None))

    async def export_shopper(self, shopper: str) -> dict[str, Any]:
        """As `Client.export_shopper`."""
        return await self._send(_Call("GET", _path("shoppers", shopper), dict))

    async def erase_shopper(self, shopper: str) -> dict[str, Any]:
        """As `Client.erase_shopper`."""
        return await self._send(_Call("DELETE", _path("shoppers", shopper), dict))

    async def models(self) -> dict[str, Any]:
        """As `Client.models`."""
        return await self._send(_Call("GET", "/v1/models", dict))

    async def roll_back(self, version: str | None = None) -> str:
        """As `Client.roll_back`."""
        return await self._send(_roll_back(version))

    async def privacy(self) -> dict[str, Any]:
        """As `Client.privacy`."""
        return await self._send(_Call("GET", "/v1/privacy", dict))

    async def click_through(self) -> list[dict[str, Any]]:
        """As `Client.click_through`."""
        return await self._send(_Call("GET", "/v1/click-through", lambda found: list(found["rows"])))

    async def _send(self, call: _Call[T]) -> T:
        for attempt in range(self._retries if call.is_repeatable else 0):
            with suppress(httpx.TransportError):
                answer = await self._http.request(call.method, call.path, params=call.query, json=call.body)
                if answer.status_code not in _COME_BACK:
                    return _read(call, answer)
                await asyncio.sleep(_asked_wait_s(answer))
            await asyncio.sleep(0.1 * 2.0**attempt)
        try:
            return _read(call, await self._http.request(call.method, call.path, params=call.query, json=call.body))
        except httpx.TransportError as error:
            raise _unreachable(error) from error


def _home(shopper: str, wanted: Wanted) -> _Call[Ranked]:
    return _Call("GET", _path("shoppers", shopper, "recommendations"), _ranked, wanted)


def _of_item(item: str, name: str, wanted: Wanted) -> _Call[Ranked]:
    return _Call("GET", _path("items", item, name), _ranked, wanted)


def _plain(name: str, wanted: Wanted) -> _Call[Ranked]:
    return _Call("GET", f"/v1/{name}", _ranked, wanted)


def _posted(path: str, items: Iterable[str], wanted: Wanted, shopper: str | None = None) -> _Call[Ranked]:
    whose = {} if shopper is None else {"shopper": shopper}
    return _Call("POST", path, _ranked, body={"items": list(items), **whose, **wanted})


def _events(events: Iterable[Event]) -> _Call[Taken]:
    return _Call("POST", "/v1/events", _taken, body={"events": [_given(event) for event in events]})


def _items(items: Iterable[Item]) -> _Call[int]:
    return _Call("PUT", "/v1/items", lambda body: int(body["stored"]), body={"items": [_given(item) for item in items]})


def _hide(item: str, is_hidden: bool) -> _Call[None]:
    return _Call("PATCH", _path("items", item), lambda _: None, body={"is_hidden": is_hidden})


def _roll_back(version: str | None) -> _Call[str]:
    body = {} if version is None else {"version": version}
    return _Call("POST", "/v1/models/roll-back", lambda found: str(found["current"]), body=body, is_repeatable=False)


def _path(*parts: str) -> str:
    quoted = (quote(part, safe="") for part in parts)
    return "/v1/" + "/".join(part if part.strip(".") else part.replace(".", "%2E") for part in quoted)  # .. is a step


def _given(row: Event | Item) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if value is not None}


def _ranked(body: dict[str, Any]) -> Ranked:
    return Ranked(**{**body, "items": tuple(_line(line) for line in body["items"])})


def _line(line: dict[str, Any]) -> Listed:
    if (found := line.get("explanation")) is None:
        return Listed(**line)
    contributions = tuple(Contribution(**one) for one in found["contributions"])
    return Listed(**{**line, "explanation": Explanation(**{**found, "contributions": contributions})})


def _taken(body: dict[str, Any]) -> Taken:
    refused = {int(one["index"]): str(one["detail"]) for one in body["refused"]}
    return Taken(body["accepted"], body["duplicates"], body["erased"], refused)


def _read(call: _Call[T], answer: httpx.Response) -> T:
    if answer.is_success:
        return call.read(answer.json() if answer.content else None)
    try:
        body = answer.json()
        errors = tuple((str(one["where"]), str(one["message"])) for one in body.get("errors") or ())
        detail = str(body["detail"])
    except (ValueError, KeyError, TypeError, AttributeError):
        errors, detail = (), answer.reason_phrase
    where = "".join(f"; {place}: {message}" for place, message in errors)
    raise RequestRefused(f"{answer.status_code} {detail}{where}", status=answer.status_code, errors=errors)


def _unreachable(error: httpx.TransportError) -> ShopUnreachable:
    return ShopUnreachable(f"the shop's API does not answer ({type(error).__name__}); check the address and the server")


def _asked_wait_s(answer: httpx.Response) -> float:
    """What the server asked for, within reason."""
    asked = answer.headers.get("Retry-After", "")
    return min(_LONGEST_WAIT_S, float(asked)) if asked.isdigit() else 0.0
