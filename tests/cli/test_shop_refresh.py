"""`fedrec shop refresh`: what is served follows the shop's events where it may, and not where that is promised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from fedrec.federation.run_record import write_atomically
from fedrec.models.ease import PrivateEase
from fedrec.models.recommender import PublicInputs, train_alone
from fedrec.role_config import open_store, read_shop
from fedrec.shop.adoption import judge_and_keep
from fedrec.shop.lists.lists import Lists
from fedrec.shop.lists.ranked import Query, RankedList
from fedrec.shop.lists.serving_files import open_serving
from fedrec.shop.lists.shelf import Shelf
from fedrec.shop.member import MODELS_FOLDER
from fedrec.shop.own_data import StoreData
from fedrec.shop.personalise import ShopPersonalisation

from .conftest import Said

Call = Callable[..., Said]
ITEMS = np.array(sorted(f"i{place}" for place in range(20)))


@pytest.fixture
def shop(shop: Path, fedrec: Call) -> Path:
    assert fedrec("shop", "import", "north", "events.csv", "--items", "items.csv").status == 0
    return shop


def adopt_private(folder: Path) -> None:
    """A model of a federation, trained under a promise on other shops' shoppers."""
    table = (np.random.default_rng(0).random((60, 20)) < 0.2).astype(np.float32)
    public = PublicInputs(ITEMS)
    settings = read_shop(folder)
    with open_store(folder, settings) as store:
        data, own = StoreData(store, "north", validation="leave-last").read()
    judge_and_keep(
        folder / MODELS_FOLDER,
        "run",
        PrivateEase(),
        train_alone(PrivateEase(), sparse.csr_matrix(table), public),
        public,
        data=data,
        positions=np.searchsorted(ITEMS, data.items.astype(str)),
        shop_public=own,
        settings=ShopPersonalisation(),
        mode="distributed",
        is_joint_dp=True,
    )


def answers(folder: Path, version: str) -> list[RankedList]:
    """Lists of shopper u0 by what is served now."""
    with open_store(folder, read_shop(folder)) as store:
        shelf = Shelf.of(change.item for change in store.items_after(0))
        mine = store.history("u0")
    here = Lists(shelf, open_serving(folder / MODELS_FOLDER, version))
    query = Query(n=20, explain=True)
    key = mine[0].item
    return [here.home(mine, query), here.similar(key, query), here.bought_together(key, query), here.popular(query)]


@pytest.mark.parametrize(("version", "is_joint"), [("local", False), ("local", True), ("run", True)])
def test_erasing_another_shopper_changes_lists_unless_they_are_joint_dp(shop, fedrec, version, is_joint):
    if version == "run":
        adopt_private(shop)
    if is_joint:
        path = shop / "shop.toml"
        text = path.read_text().replace('inside_shop = "none"', 'inside_shop = "joint_dp"')
        write_atomically(path, text.encode())
    found = []
    for _ in range(2):
        said = fedrec("shop", "refresh", shop)
        assert said.status == 0, said.err
        assert f"version {version} is ready" in said.out
        found.append(answers(shop, version))
        assert fedrec("shop", "erase", shop, "u1").status == 0
    assert found[0][0].items
    assert {one.served.inside_shop for one in found[0]} == {"joint_dp" if is_joint else "none"}
    assert (found[0] == found[1]) is is_joint
