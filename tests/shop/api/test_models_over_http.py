"""New models arrive while lists are served: swapped, kept aside, rolled back, compared."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from scipy import sparse

from fedrec.errors import StoreError
from fedrec.shop.adoption import CURRENT_FILE, LOCAL
from fedrec.shop.api.app import make_app
from fedrec.shop.api.live_shop import LiveShop
from fedrec.shop.lists.serving_model import Dense, ServingModel
from fedrec.shop.lists.serving_settings import ServingSettings, Split
from fedrec.shop.member import LEDGER_FILE
from fedrec.shop.past_releases import past_releases
from fedrec.shop.store.rows import Item

from ..test_member import agreed, run_rounds
from ..town import Town
from .conftest import Corner, asking, chain, serving
from .test_lists_over_http import home


def adopt(corner: Corner, version: str, model: ServingModel | None) -> None:
    """What the shop's agent leaves when it takes a model over."""
    folder = corner.folder / "models"
    (folder / version).mkdir(parents=True, exist_ok=True)
    (folder / version / "model.json").write_text("{}")
    if model is not None:
        corner.models[version] = named(model, version)
    path = folder / CURRENT_FILE
    before = json.loads(path.read_text()) if path.exists() else {"current": LOCAL, "history": []}
    entry = {"run_id": version, "is_adopted": True, "instead_of": before["current"]}
    path.write_text(json.dumps({"current": version, "history": [*before["history"], entry]}))


def named(model: ServingModel, version: str) -> ServingModel:
    return replace(model, served=replace(model.served, version=version))  # type: ignore[type-var]


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def until(version: str, api: httpx.Client, shopper: str = "ann") -> None:
    """Wait until a version is served."""
    wait_for(lambda: home(api, shopper).model_version == version)


@pytest.fixture
def corner(tmp_path: Path) -> Corner:
    found = Corner(tmp_path / "corner")
    found.models[LOCAL] = named(chain(), LOCAL)
    found.live = reopened(found)
    return found


def reopened(corner: Corner, settings: ServingSettings | None = None) -> LiveShop:
    return LiveShop(
        corner.name,
        corner.folder,
        corner.store,
        settings or ServingSettings(requests_per_s=0),
        open_model=lambda _, version: opened(corner, version),
        split_key=b"k" * 32,
    )


def opened(corner: Corner, version: str) -> ServingModel:
    if version not in corner.models:
        raise StoreError(f"{corner.folder}: no readable model")
    return corner.models[version]


def test_no_request_is_dropped_while_models_are_swapped(api: httpx.Client, corner: Corner) -> None:
    answers: Counter[tuple[int, str]] = Counter()
    is_over = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=api.base_url, headers=api.headers) as client:
            while not is_over.is_set():
                answer = client.get("/v1/shoppers/ann/recommendations", params={"n": 3})
                answers[answer.status_code, answer.json().get("model_version", "")] += 1

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()

    def has_served(version: str) -> bool:
        return (200, version) in answers

    for before, version in ((LOCAL, "run-1"), ("run-1", "run-2")):
        wait_for(partial(has_served, before))
        adopt(corner, version, chain(shift=2))
        until(version, api)
    assert api.post("/v1/models/roll-back", json={}).json()["current"] == "run-1"
    until("run-1", api)
    wait_for(partial(has_served, "run-2"))
    is_over.set()
    for thread in threads:
        thread.join()
    assert {status for status, _ in answers} == {200}
    assert {version for _, version in answers} == {LOCAL, "run-1", "run-2"}


def test_a_model_that_cannot_be_served_leaves_the_last_good_one(api: httpx.Client, corner: Corner) -> None:
    assert api.get("/health/ready").json() == {"status": "ok"}
    other_items = replace(chain(), items=chain().items + "-elsewhere")  # type: ignore[type-var]
    for version, model, why in (
        ("broken", None, "cannot be opened"),
        ("foreign", other_items, "another catalogue"),
        ("not-finite", network(lambda rows: rows.toarray() + np.nan), "cannot be opened"),
    ):
        adopt(corner, version, model)
        deadline = time.monotonic() + 20
        while version not in str(found := api.get("/health/ready").json().get("detail")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert why in found
        assert corner.name not in found
        assert home(api, "ann").model_version == LOCAL
        about = api.get("/v1/models").json()
        assert (about["served"], about["current"]) == (LOCAL, version)
        assert 'fedrec_model{version="local"} 0.0' in api.get("/metrics").text


@dataclass(frozen=True)
class Network:
    """Scores by any function of the histories."""

    of: Callable[[sparse.csr_matrix], np.ndarray]

    def scores(self, histories: sparse.csr_matrix) -> np.ndarray:
        return self.of(histories)


def network(of: Callable[[sparse.csr_matrix], np.ndarray]) -> ServingModel:
    return Dense(chain().items, chain().popularity, Network(of), chain().served)  # type: ignore[arg-type]


def test_a_history_without_finite_scores_gets_its_list_without_the_model(
    corner: Corner, caplog: pytest.LogCaptureFixture
) -> None:
    corner.models[LOCAL] = network(lambda rows: np.where(rows[:, [3]].toarray() > 0, np.nan, rows.toarray()))
    event = {"event_id": "1", "shopper": "ann", "item": "d", "kind": "purchase"}
    with asking(reopened(corner)) as api:
        assert home(api, "bob").reason == "popular"
        assert api.get("/health/ready").json()["status"] == "ok"
        assert api.post("/v1/events", json={"events": [event]}).is_success
        for _ in range(2):
            assert home(api, "ann", explain=True).reason == "content"
            assert api.post("/v1/session", json={"items": ["d"]}).json()["reason"] == "content"
            assert api.get("/v1/items/d/similar").json()["reason"] == "content"
        assert "not finite; serve another version" in api.get("/health/ready").json()["detail"]
        assert api.post("/v1/session", json={"items": ["e"]}).json()["reason"] == "session"
    assert [record.levelname for record in caplog.records if "not finite" in record.message] == ["ERROR"]


def test_after_a_restart_the_last_good_model_is_served(corner: Corner) -> None:
    adopt(corner, "good", chain(shift=2))
    adopt(corner, "broken", None)
    live = reopened(corner)
    assert live.models()["served"] == "good"
    assert "broken" in str(live.trouble)
    corner.models.clear()
    with pytest.raises(StoreError, match="no model can be served"):
        reopened(corner)


def test_after_a_restart_a_catalogue_that_grew_is_still_served(corner: Corner) -> None:
    corner.store.put_items(Item(f"new-{row}") for row in range(200))
    live = reopened(corner)
    assert live.models()["served"] == LOCAL
    assert "another catalogue" in str(live.trouble)


def test_two_models_are_compared_on_shoppers_who_stay_in_their_arm(corner: Corner) -> None:
    adopt(corner, "challenger", chain(shift=2))
    (corner.folder / "models" / CURRENT_FILE).unlink()
    live = reopened(corner, ServingSettings(requests_per_s=0, split=Split("challenger", 0.3)))
    with (
        serving(make_app({corner.name: live})) as url,
        httpx.Client(base_url=url, headers=corner.headers()) as api,
    ):
        first = [home(api, f"shopper-{place}", n=1).model_version for place in range(300)]
        second = [home(api, f"shopper-{place}", n=1).model_version for place in range(300)]
        assert first == second
        assert 40 < Counter(first)["challenger"] < 140  # 90 expected; beyond 6 standard deviations of 7.9
        assert api.get("/v1/popular").is_success  # for nobody known: in no arm
        deadline = time.monotonic() + 20
        rows: list[dict[str, object]] = []
        while sum(row["shown"] for row in rows) < 601:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            rows = api.get("/v1/click-through").json()["rows"]
        shown = {(row["list_name"], row["version"], row["arm"]) for row in rows}
        assert shown == {("home", LOCAL, "a"), ("home", "challenger", "b"), ("popular", LOCAL, "")}


def test_lists_say_what_has_left_the_shop_by_now(town: Town, corner: Corner) -> None:
    """Without a new model: the one that is served was made ready before."""
    folder, asked = town.folder / "ant", 0

    def outside() -> float | None:
        nonlocal asked
        asked += 1
        return past_releases(folder, "ant").epsilon

    live = LiveShop("ant", folder, corner.store, ServingSettings(), open_model=lambda *_: chain(), outside=outside)
    with asking(live) as api:
        assert home(api, "ann").epsilon_outside == 0
        members = agreed(town, offer := town.offer())
        run_rounds(town, members, offer)
        spent = members[0].ledger().spent().lifetime_epsilon
        deadline = time.monotonic() + 20
        while home(api, "ann").epsilon_outside != spent:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert api.get("/v1/privacy").json()["epsilon_outside"] == spent
        for member in members:
            member.close()
        time.sleep(0.8)
        before = asked
        time.sleep(0.8)
        assert asked == before  # looking at the ledger does not look like a release
        (folder / LEDGER_FILE).write_bytes(b"damaged")
        while home(api, "ann").epsilon_outside is not None:
            assert time.monotonic() < deadline + 20
            time.sleep(0.05)
        erased = api.delete("/v1/shoppers/ann")
        assert (erased.status_code, erased.json()["epsilon_outside"]) == (200, None)
        assert "cannot be said" in erased.json()["past_releases"]
