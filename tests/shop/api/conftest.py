"""A small shop behind the API, without a port: items a, b, c, ..., a linear model of them, and keys."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from starlette.types import ASGIApp

from fedrec.shop.adoption import LOCAL
from fedrec.shop.api.app import make_app
from fedrec.shop.api.live_shop import LiveShop
from fedrec.shop.api.patience import Patience
from fedrec.shop.lists.serving_model import ServingModel
from fedrec.shop.lists.serving_settings import ServingSettings
from fedrec.shop.store.rows import Item, KeyScope
from fedrec.shop.store.store import Store

from ..lists.shelves import letters, linear

NUM_ITEMS = 12
NOON = 1_700_000_000.0


class Corner:
    """One shop on the corner, its application and its keys."""

    def __init__(
        self, folder: Path, name: str = "corner", settings: ServingSettings | None = None, url: str | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name, self.url = folder, name, url or f"sqlite:///{folder / 'store.sqlite'}"
        self.models: dict[str, ServingModel] = {LOCAL: chain()}
        self.store = Store.open(self.url)
        self.store.put_items(
            Item(key, f"Title {key}", "even" if place % 2 == 0 else "odd", 10.0 + place)
            for place, key in enumerate(letters(NUM_ITEMS))
        )
        self.keys = {scope: self.store.new_key(name, scope.name.lower(), scope)[1] for scope in KeyScope}
        self.live = LiveShop(
            name,
            folder,
            self.store,
            settings or ServingSettings(),
            open_model=lambda _, version: self.models[version],
            split_key=b"k" * 32,
        )

    def headers(self, scope: KeyScope = KeyScope.ADMIN) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys[scope]}"}


def chain(shift: int = 1) -> ServingModel:
    """Who had an item is shown the one after it, and a little the one after that."""
    weights = np.zeros((NUM_ITEMS, NUM_ITEMS))
    places = np.arange(NUM_ITEMS)
    weights[places, (places + shift) % NUM_ITEMS] = 1.0
    weights[places, (places + 2 * shift) % NUM_ITEMS] = 0.5
    return linear(weights, popularity=list(range(NUM_ITEMS, 0, -1)))


@pytest.fixture
def corner(tmp_path: Path) -> Corner:
    return Corner(tmp_path / "corner")


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """The application on a port of this machine, in a thread; yields its URL."""
    server = uvicorn.Server(
        uvicorn.Config(app, http=Patience, log_config=None, access_log=False, server_header=False, ws="none")
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def asking(live: LiveShop) -> Iterator[httpx.Client]:
    """One shop, served; who asks may do all with it."""
    key = live.store.new_key(live.name, "test", KeyScope.ADMIN)[1]
    with (
        serving(make_app({live.name: live})) as url,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as found,
    ):
        yield found


@pytest.fixture
def api(corner: Corner) -> Iterator[httpx.Client]:
    """All may be done with it."""
    with (
        serving(make_app({corner.name: corner.live})) as url,
        httpx.Client(base_url=url, headers=corner.headers()) as found,
    ):
        yield found


@pytest.fixture
def send(api: httpx.Client) -> Callable[..., dict[str, object]]:
    """Purchases of a shopper."""

    def events(shopper: str, *items: str, kind: str = "purchase", **more: object) -> dict[str, object]:
        batch = [
            {"event_id": f"{shopper}-{item}-{kind}", "shopper": shopper, "item": item, "kind": kind, **more}
            for item in items
        ]
        answer = api.post("/v1/events", json={"events": batch})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    return events
