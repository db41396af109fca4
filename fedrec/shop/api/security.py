"""Who may ask what: keys, scopes, rates, sizes.

**Guarantee:** a request without a valid key learns nothing, not even which shops there are: a wrong shop, a wrong
secret and no key at all get the same answer. The key chooses the shop; no parameter can name another one. Secrets are
kept and compared as hashes and are in no log line.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedrec.pace import Pace
from fedrec.shop.api.live_shop import LiveShop
from fedrec.shop.api.news import waiting
from fedrec.shop.api.problems import ApiError, problem, unexpected
from fedrec.shop.store.rows import Key, KeyScope

KEY_AGE_S = 2.0
"""A key that another process revoked works for at most that long."""

_MOST_KEYS = 4096
_Shown = bytes | tuple[str, str]
"""By what a key was shown: a header's digest, or shop and key of a session."""

_Found = tuple[LiveShop, Key] | None
_GONE = 499
"""For metrics: whoever asked did not wait for the answer."""

_UNAUTHORIZED = "give a key of a shop that is served here: Authorization: Bearer fr_..."


@dataclass(frozen=True)
class Grant:
    """A key that was found valid.

    Attributes:
        shop: the one that the key opens.
        key_id, scope: of the key.
        checked: when the store said so, monotonic seconds.
    """

    shop: LiveShop
    key_id: str
    scope: KeyScope
    checked: float


class Guard:
    """Admits requests."""

    def __init__(self, shops: Mapping[str, LiveShop]) -> None:
        """Args:
        shops: by name, at least one.
        """
        self._shops = shops
        self._grants: OrderedDict[_Shown, Grant] = OrderedDict()
        rates = {name: shop.settings.requests_per_s for name, shop in shops.items()}
        self._paces = {name: Pace(rate, max(1.0, 2 * rate)) for name, rate in rates.items() if rate}

    async def admit(self, scope: Scope, needed: KeyScope) -> Grant:
        """The key of a request, one request spent.

        Args:
            scope: of the request; the shop is noted in it for the metrics.
            needed: least scope.
        Raises:
            ApiError: 401 no valid key, 403 too small a scope, 429 too many requests.
        """
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return await self._admit(scope, needed, sha256(header).digest(), lambda: self._by_header(header))

    async def admit_session(self, scope: Scope, needed: KeyScope, shop: str, key_id: str) -> Grant:
        """As `admit`, for whoever showed that key when the dashboard's session began."""
        return await self._admit(scope, needed, (shop, key_id), lambda: self._by_id(shop, key_id))

    async def _admit(
        self, scope: Scope, needed: KeyScope, shown: _Shown, find: Callable[[], Awaitable[_Found]]
    ) -> Grant:
        now = time.monotonic()
        grant = self._grants.get(shown)
        if grant is None or now - grant.checked > KEY_AGE_S:
            grant = await self._look_up(shown, find, now)
        scope["fedrec.shop"] = grant.shop
        pace = self._paces.get(grant.shop.name)  # a key's rate is the key's, however it was shown
        if pace is not None and (wait_s := pace.wait_s(grant.key_id, most_s=0.0)):
            rate = grant.shop.settings.requests_per_s
            again = {"Retry-After": str(math.ceil(wait_s))}
            raise ApiError(429, f"more than {rate:g} requests a second with this key", headers=again)
        if grant.scope < needed:
            raise ApiError(403, f"this key has scope {grant.scope.name.lower()}; give one with {needed.name.lower()}")
        return grant

    async def _look_up(self, shown: _Shown, find: Callable[[], Awaitable[_Found]], now: float) -> Grant:
        self._grants.pop(shown, None)
        if (found := await find()) is None:
            raise ApiError(401, _UNAUTHORIZED, headers={"WWW-Authenticate": "Bearer"})
        shop, key = found
        grant = self._grants[shown] = Grant(shop, key.id, key.scope, now)
        if len(self._grants) > _MOST_KEYS:
            self._grants.popitem(last=False)
        return grant

    async def _by_header(self, header: bytes) -> _Found:
        secret = header[7:].decode("ascii", "replace") if header[:7].lower() == b"bearer " else ""
        named = [shop for name, shop in self._shops.items() if secret.startswith(f"fr_{name}_")]
        for shop in named or list(self._shops.values())[:1]:  # a look-up in any case: time does not tell shops apart
            key = await waiting(shop.store, shop.store.key_of, secret)
            if key is not None and named:
                return shop, key
        return None

    async def _by_id(self, name: str, key_id: str) -> _Found:
        shop = self._shops[name]
        every = await waiting(shop.store, shop.store.keys)
        keys = [key for key in every if key.id == key_id and key.revoked is None]
        return (shop, keys[0]) if keys else None


class Edge:
    """Around everything: paths as they were sent, a bound on bodies, headers that every answer has, times, and no error
    that gets out.

    **Guarantee:** no body longer than its bound is ever held, declared or not.
    """

    def __init__(self, app: ASGIApp, *, most_body_bytes: int) -> None:
        self._app, self._most_body_bytes = app, most_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, read = time.perf_counter(), 0, 0
        scope["path"] = scope["raw_path"].decode("latin-1")  # percent-encoded, so that a name may hold a slash

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-content-type-options", b"nosniff"))
            await send(message)

        async def receiving() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most_body_bytes:
                raise HTTPException(413, self._too_long)
            return message

        try:
            if _declared(scope) > self._most_body_bytes:
                await problem(413, self._too_long)(scope, receive, sending)
            else:
                await self._app(scope, receiving, sending)
        except ClientDisconnect:
            status = status or _GONE
        except Exception as error:
            if status:
                raise
            await unexpected(error)(scope, receive, sending)
        finally:
            shop: LiveShop | None = scope.get("fedrec.shop")
            if shop is not None:
                route = getattr(scope.get("route"), "path_format", "")
                shop.metrics.answered(scope["method"], route, status, time.perf_counter() - started)

    @property
    def _too_long(self) -> str:
        return f"a body of at most {self._most_body_bytes:,} bytes"


def _declared(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0
