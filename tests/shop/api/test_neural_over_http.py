"""Networks that came from a federation, adopted, served, explained, rolled back: a shop's folder over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from scipy import sparse

from fedrec.cli import main
from fedrec.cli.shop_serve import make_ready, open_live_shop
from fedrec.models import load_model
from fedrec.models.recommender import PublicInputs, train_alone
from fedrec.role_config import SHOP_FILE, open_store, read_shop
from fedrec.shop.adoption import LOCAL, judge_and_keep
from fedrec.shop.own_data import StoreData
from fedrec.shop.store.rows import Event

from .conftest import asking

NUM_ITEMS, NUM_SHOPPERS = 12, 40
FAST = {"rounds": 2, "device": "cpu", "batch_shoppers": 20}
MODELS = {
    "multvae": FAST | {"hidden": 8, "latent": 4},
    "smallae": FAST | {"size": 4},
    "neumf": FAST | {"factors": 4, "fold_in_steps": 5, "least_steps": 4},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A shop of shoppers who keep to one half of its items."""
    folder = tmp_path / "shop"
    assert main(["shop", "init", str(folder), "--name", "north"]) == 0
    lines = [f"s{who},{item},{1_700_000_000 + place}" for place, (who, item) in enumerate(bought(NUM_SHOPPERS))]
    (tmp_path / "events.csv").write_text("\n".join(["shopper,item,timestamp", *lines]))
    assert main(["shop", "import", str(folder), str(tmp_path / "events.csv")]) == 0
    return folder


def bought(num_shoppers: int) -> list[tuple[int, str]]:
    half = NUM_ITEMS // 2
    return [(who, f"p{(who + step) % half + half * (who % 2):02}") for who in range(num_shoppers) for step in range(4)]


def adopt(folder: Path, name: str, mode: str) -> str:
    """What the shop's agent does with a model that a federation of others has trained."""
    model = load_model(name, MODELS[name])
    items = np.array([f"p{place:02}" for place in range(NUM_ITEMS)], dtype=object)
    others = np.zeros((60, NUM_ITEMS), np.float32)
    for who, item in bought(60):
        others[who, int(item[1:])] = 1
    settings = read_shop(folder)
    with open_store(folder, settings) as store:
        data, public = StoreData(store, "north", validation="leave-last").read()
    adoption = judge_and_keep(
        folder / "models",
        f"run-{name}",
        model,
        train_alone(model, sparse.csr_matrix(others), PublicInputs(items)),
        PublicInputs(items),
        data=data,
        positions=np.arange(NUM_ITEMS),
        shop_public=public,
        settings=replace(settings.personalisation, min_validation_shoppers=10_000),  # too small to refuse it
        mode=mode,
        is_joint_dp=settings.serving.inside_shop == "joint_dp",
        make_ready=lambda version: make_ready(folder, settings, version),
    )
    assert adoption.is_adopted, adoption.reason
    return f"run-{name}"


def served(folder: Path) -> AbstractContextManager[httpx.Client]:
    return asking(open_live_shop(folder))


def home(api: httpx.Client, shopper: str) -> dict[str, Any]:
    answer = api.get(f"/v1/shoppers/{shopper}/recommendations", params={"n": NUM_ITEMS, "explain": True})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize("name", MODELS)
def test_a_network_is_adopted_served_explained_and_rolled_back(folder: Path, name: str) -> None:
    with served(folder) as api:
        assert (home(api, "s1")["model_version"], home(api, "s1")["mode"]) == (LOCAL, "alone")
        linear = home(api, "s1")["items"]
        version = adopt(folder, name, "none")
        wait_for(lambda: home(api, "s1")["model_version"] == version)
        found = home(api, "s1")
        assert (found["reason"], found["mode"], found["inside_shop"]) == ("personal", "none", "none")
        assert found["epsilon_outside"] is None, "a run without a promise bounds nothing"
        assert len(found["items"]) == NUM_ITEMS - 4
        for line in found["items"]:
            why = line["explanation"]
            total = why["base"] + why["boost"] + sum(one["value"] for one in why["contributions"]) + why["others"]
            assert total == pytest.approx(line["score"], abs=1e-5)
            assert why["attribution"] == "leave-one-out"
        assert any(line["explanation"]["contributions"] for line in found["items"])
        event = {"event_id": "1", "shopper": "new", "item": "p00", "kind": "purchase"}
        assert api.post("/v1/events", json={"events": [event]}).is_success
        cold = home(api, "new")
        assert (cold["reason"], cold["model_version"]) == ("personal", version)
        assert api.get("/v1/items/p00/similar").json()["items"]
        assert api.post("/v1/models/roll-back", json={}).json()["current"] == LOCAL
        wait_for(lambda: home(api, "s1")["model_version"] == LOCAL)
        assert home(api, "s1")["items"] == linear
        assert api.post("/v1/models/roll-back", json={"version": version}).is_success
        wait_for(lambda: home(api, "s1")["model_version"] == version)
        assert home(api, "s1")["items"] == found["items"]


@pytest.mark.parametrize(("name", "promise"), [("multvae", "joint_dp"), ("neumf", "joint_dp"), ("multvae", "none")])
def test_what_others_of_the_shop_did_shows_only_where_nothing_is_promised(
    folder: Path, name: str, promise: str
) -> None:
    file = folder / SHOP_FILE
    file.write_text(file.read_text().replace('inside_shop = "none"', f'inside_shop = "{promise}"'))
    with open_store(folder, read_shop(folder)) as store:
        hers = store.history("s1")
        store.append_events(Event("ann", one.item, one.kind, one.timestamp) for one in hers)
    version = adopt(folder, name, "distributed")
    answers = []
    for _ in range(2):
        assert main(["shop", "refresh", str(folder)]) == 0
        with served(folder) as api:
            lists = [home(api, "ann"), *(api.get(f"/v1/{one}").json() for one in ("popular", "items/p00/similar"))]
        assert {(one["inside_shop"], one["model_version"]) for one in lists} == {(promise, version)}
        answers.append([one["items"] for one in lists])
        with open_store(folder, read_shop(folder)) as store:
            for place in range(2, 20):
                store.erase_shopper(f"s{place}")
    assert (answers[0] == answers[1]) == (promise == "joint_dp")


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)
