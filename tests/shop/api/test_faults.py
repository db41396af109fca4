"""What can go wrong under a running server: disk, clock, folders and files that change."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from fedrec.cli import main
from fedrec.cli.shop_serve import open_live_shop
from fedrec.role_config import SHOP_FILE, shop_toml
from fedrec.shop.adoption import LOCAL
from fedrec.shop.api.app import make_app
from fedrec.shop.lists.serving_files import write_serving
from fedrec.shop.store.store import Store

from .conftest import Corner, asking, serving


@contextmanager
def served(corner: Corner) -> Iterator[httpx.Client]:
    with (
        serving(make_app({corner.name: corner.live})) as url,
        httpx.Client(base_url=url, headers=corner.headers(), timeout=30) as api,
    ):
        yield api


def send(api: httpx.Client, shopper: str, *items: str, **more: object) -> httpx.Response:
    events = [
        {"event_id": f"{shopper}-{item}", "shopper": shopper, "item": item, "kind": "purchase", **more}
        for item in items
    ]
    return api.post("/v1/events", json={"events": events})


def top(api: httpx.Client, shopper: str) -> str:
    answer = api.get(f"/v1/shoppers/{shopper}/recommendations", params={"n": 1})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["items"][0]["item"])


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_clock_that_goes_back_takes_events_and_keeps_their_order_of_arrival(
    corner: Corner, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    with served(corner) as api:
        assert send(api, "ann", "d").json()["accepted"] == 1
        assert top(api, "ann") == "e"
        monkeypatch.setattr(time, "time", lambda: now() - 7 * 86_400)
        assert send(api, "ann", "g").json()["accepted"] == 1
        assert top(api, "ann") in ("e", "h")
        assert api.get("/v1/trending").json()["items"]
        assert api.delete("/v1/shoppers/ann").json()["num_events"] == 2, "those from the future, too"
        assert api.get("/v1/shoppers/ann").json()["events"] == []


def test_items_are_deleted_while_lists_are_asked_for(corner: Corner) -> None:
    answers: Counter[int] = Counter()
    is_over = threading.Event()

    def ask(url: str) -> None:
        with httpx.Client(base_url=url, headers=corner.headers(), timeout=30) as api:
            while not is_over.is_set():
                for path in ("shoppers/ann/recommendations", "items/e/similar", "popular", "items/e/bought-together"):
                    answers[api.get(f"/v1/{path}", params={"explain": True}).status_code] += 1

    with served(corner) as api:
        send(api, "ann", "d")
        threads = [threading.Thread(target=ask, args=(str(api.base_url),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(8):
            assert api.delete("/v1/items/e").status_code == 204
            assert top(api, "ann") == "f"
            assert api.put("/v1/items", json={"items": [{"key": "e", "title": "back"}]}).is_success
            assert top(api, "ann") == "e"
        is_over.set()
        for thread in threads:
            thread.join()
    assert set(answers) == {200}
    assert answers[200] > 20


def test_the_folder_of_models_may_go_while_it_is_served(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    assert main(["shop", "init", str(folder), "--name", "north"]) == 0
    lines = [f"s{row},p{(row + step) % 5},{1e9 + row:.0f}" for row in range(9) for step in range(2)]
    (tmp_path / "events.csv").write_text("\n".join(["shopper,item,timestamp", *lines]))
    assert main(["shop", "import", str(folder), str(tmp_path / "events.csv")]) == 0
    live = open_live_shop(folder)
    with asking(live) as api:
        before = api.get("/v1/shoppers/s1/recommendations").json()["items"]
        shutil.rmtree(folder / "models")
        wait_for(lambda: "cannot be opened" in api.get("/health/ready").text)
        for path in ("/v1/models", "/v1/privacy", "/metrics", "/v1/popular"):
            assert api.get(path).status_code == 200, path
        assert api.get("/v1/shoppers/s1/recommendations").json()["items"] == before
        assert api.delete("/v1/shoppers/s2").status_code == 200
        assert main(["shop", "refresh", str(folder)]) == 0
        wait_for(lambda: api.get("/health/ready").json() == {"status": "ok"})


def test_two_servers_of_one_folder_see_each_others_events_items_and_erasures(tmp_path: Path) -> None:
    one = Corner(tmp_path / "corner")
    other = Corner(tmp_path / "corner")
    with served(one) as api, served(other) as second:
        assert send(api, "ann", "d").json()["accepted"] == 1
        assert top(second, "ann") == "e"
        assert second.patch("/v1/items/e", json={"is_hidden": True}).status_code == 204
        assert top(api, "ann") == "f"
        wait_for(lambda: scores(api)["d"] == scores(second)["d"] == 1.0)
        assert api.delete("/v1/shoppers/ann").json()["num_events"] == 1
        assert second.get("/v1/shoppers/ann/recommendations").json()["reason"] == "popular"
        wait_for(lambda: scores(second)["d"] == scores(api)["d"] == 0.0)
        assert send(second, "ann", "d", timestamp=1e9).json()["erased"] == 1


def scores(api: httpx.Client) -> dict[str, float]:
    found = api.get("/v1/popular", params={"n": 20, "seed": time.time_ns() % 2**32}).json()["items"]
    return {line["item"]: line["score"] for line in found}


def test_a_store_that_was_replaced_is_said_and_takes_no_event_that_would_be_lost(corner: Corner) -> None:
    with served(corner) as api:
        assert send(api, "ann", "d").json()["accepted"] == 1
        kept = corner.folder / "kept"
        kept.mkdir()
        for path in list(corner.folder.glob("store.sqlite*")):
            path.rename(kept / path.name)
        Store.open(corner.url, corner.folder / "store.tombstones").close()
        assert send(api, "ann", "e").status_code == 503
        assert api.get("/health/ready").status_code == 503
        for path in list(kept.iterdir()):
            path.replace(corner.folder / path.name)
        wait_for(lambda: send(api, "ann", "f").status_code == 200)
    with Store.open(corner.url) as store:
        assert {one.item for one in store.history("ann")} == {"d", "f"}


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
from fedrec.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_on_a_full_disk_lists_are_served_on_and_no_acknowledged_event_is_lost(tmp_path: Path) -> None:
    """No file of the server may grow beyond a bound, as on a disk that is full, until room is made."""
    corner = Corner(tmp_path / "corner")
    (corner.folder / SHOP_FILE).write_text(shop_toml("corner", public_shoppers=0, events=None, items=None))
    model = corner.models[LOCAL]
    named = replace(model, served=replace(model.served, version=LOCAL))  # type: ignore[type-var]
    write_serving(corner.folder / "models" / LOCAL, named)  # type: ignore[arg-type]
    corner.store.close()
    command = [sys.executable, "-c", FULL_DISK, "1500000", "shop", "serve", str(corner.folder), "--port", "0"]
    acknowledged: set[str] = set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        with httpx.Client(base_url=url, headers=corner.headers(), timeout=30) as api:
            assert send(api, "ann", "d").status_code == 200
            statuses = []
            for number in range(60):
                names = [f"{number:04}-{place:03}" * 8 for place in range(200)]
                batch = [{"event_id": one, "shopper": one, "item": "a", "kind": "view"} for one in names]
                statuses.append(api.post("/v1/events", json={"events": batch}).status_code)
                if statuses[-1] == 200:
                    acknowledged.update(names)
                elif len(statuses) > 3 and statuses[-3:] == [503] * 3:
                    break
            assert set(statuses) == {200, 503}
            assert top(api, "ann") == "e"
            wait_for(lambda: top(api, "ann") == "e" and "cannot be written" in api.get("/health/ready").text)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            wait_for(lambda: send(api, "ann", "e").status_code == 200)
            wait_for(lambda: api.get("/health/ready").json() == {"status": "ok"})
            assert top(api, "ann") == "f"
        process.kill()
    with Store.open(corner.url) as store:
        stored = {row.event_id for row in store.events_after(0, 10**6)}
    assert len(acknowledged) >= 200
    assert acknowledged <= stored
