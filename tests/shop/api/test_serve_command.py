"""``fedrec shop serve`` as a process: killed, started again, told to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from fedrec.cli import REFUSED, main
from fedrec.client import Client, Event
from fedrec.role_config import SHOP_FILE, shop_toml
from fedrec.shop.adoption import LOCAL
from fedrec.shop.lists.serving_files import write_serving
from fedrec.shop.store.rows import Item, KeyScope
from fedrec.shop.store.store import Store

from ..lists.shelves import letters
from .conftest import NUM_ITEMS, chain

SERVE = "import sys; from fedrec.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def shop(tmp_path: Path) -> tuple[Path, str]:
    """A folder with a model that is ready, and an admin's key."""
    folder = tmp_path / "corner"
    folder.mkdir()
    (folder / SHOP_FILE).write_text(shop_toml("corner", public_shoppers=0, events=None, items=None))
    with open_store(folder) as store:
        store.put_items(Item(key) for key in letters(NUM_ITEMS))
        _, key = store.new_key("corner", "test", KeyScope.ADMIN)
    model = chain()
    write_serving(folder / "models" / LOCAL, replace(model, served=replace(model.served, version=LOCAL)))  # type: ignore[type-var]
    return folder, key


def open_store(folder: Path) -> Store:
    return Store.open(f"sqlite:///{folder / 'store.sqlite'}", folder / "store.tombstones")


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, once it serves, and its URL."""
    command = [sys.executable, "-c", SERVE, "shop", "serve", *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = next((line for line in process.stdout if line.startswith("serves ")), "")
            assert line, "it did not start"
            yield process, line.split()[-1]
        finally:
            process.kill()


def test_killed_under_load_it_loses_no_acknowledged_event(shop: tuple[Path, str]) -> None:
    folder, key = shop
    acknowledged: set[str] = set()
    counted = threading.Lock()

    def send(url: str, sender: int, enough: threading.Event) -> None:
        number = 0
        with Client(url, key, retries=0) as client:
            while True:
                names = [f"{os.getpid()}-{url}-{sender}-{number}-{row}" for row in range(20)]
                try:
                    taken = client.send([Event(name, f"s{sender}", "d", "view") for name in names])
                except Exception:  # however a connection dies
                    return
                assert taken.accepted == len(names)
                with counted:
                    acknowledged.update(names)
                number += 1
                if number == 8:
                    enough.set()

    with running(str(folder)) as (process, url):
        marks = [threading.Event() for _ in range(4)]
        senders = [threading.Thread(target=send, args=(url, place, mark)) for place, mark in enumerate(marks)]
        for sender in senders:
            sender.start()
        assert all(mark.wait(60) for mark in marks)
        process.send_signal(signal.SIGKILL)
        for sender in senders:
            sender.join()
    with open_store(folder) as store:
        stored = {row.event_id for row in store.events_after(0, 10**6)}
    assert len(acknowledged) >= 4 * 8 * 20
    assert acknowledged <= stored


def test_stopped_it_writes_what_was_shown_and_ends(shop: tuple[Path, str]) -> None:
    folder, key = shop
    with running(str(folder)) as (process, url):
        with Client(url, key) as client:
            client.send([Event("1", "ann", "d", "purchase")])
            assert client.home("ann", n=1).keys == ["e"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    with open_store(folder) as store:
        assert [row.shown for row in store.click_through(good_rating=4.0)] == [1]


def test_a_linear_model_is_served_without_torch(shop: tuple[Path, str]) -> None:
    code = """
import sys
from pathlib import Path
from fedrec.cli.shop_serve import open_live_shop
from fedrec.shop.api.app import make_app
from fedrec.shop.lists.ranked import Query
shop = open_live_shop(Path(sys.argv[1]))
make_app({shop.name: shop}).openapi()
shop.listed_for("session", ["d"], None, Query(explain=True))
print(sorted({"torch", "opacus", "flwr", "matplotlib", "dp_accounting"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code, str(shop[0])], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_demo_serves_a_model_of_its_own(tmp_path: Path) -> None:
    with running("--demo", str(tmp_path / "demo")) as (process, url):
        assert process.stdout is not None
        words = "".join(line for line, _ in zip(process.stdout, range(4), strict=False))
        key = words.split("read ")[1].split()[0]
        with Client(url, key) as client:
            found = client.popular(n=5)
            assert len(found.keys) == 5
            assert client.session(found.keys[:1]).reason == "session"
            assert client.models()["served"] == LOCAL
        description = httpx.get(f"{url}/openapi.json").json()
    assert json.dumps(description["info"]["title"]) == '"fedrec shop"'


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give the folder of a shop"),
        (["nowhere"], "shop.toml"),
        (["--demo", "one", "two"], "one folder"),
        (["one", "--host", "0.0.0.0"], "plain text"),
        (["one", "--certificate", "c.pem"], "both a certificate and its private key"),
    ],
)
def test_what_cannot_be_served_is_said(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["shop", "serve", *arguments, "--port", "0"]) == REFUSED
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
