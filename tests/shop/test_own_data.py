"""What a shop trains on when its events are in its store, before and after an erasure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedrec.errors import DataError
from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.terms import Terms
from fedrec.models.ease import Ease, EaseSettings
from fedrec.shop.member import Member
from fedrec.shop.node import ShopNode, shop_nodes
from fedrec.shop.own_data import StoreData, training_events
from fedrec.shop.store.rows import Event, EventKind, Item
from fedrec.shop.store.store import Store

from .test_member import heads_for
from .town import ITEMS, Town

NOON = 1_700_000_000.0
ROSTER = ("ant", "bee")


@pytest.fixture
def make_store(tmp_path: Path) -> Iterable[Callable[[str], Store]]:
    stores = []

    def make(name: str = "store") -> Store:
        stores.append(Store.open(f"sqlite:///{tmp_path / name}.sqlite"))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def bought(shopper: str, *items: str) -> list[Event]:
    return [Event(shopper, item, EventKind.PURCHASE, NOON + place) for place, item in enumerate(items)]


def pairs(store: Store, **settings: object) -> list[tuple[str, str]]:
    table = training_events(store, **settings).table  # type: ignore[arg-type]
    return list(zip(table["shopper"].astype(str), table["item"].astype(str), strict=True))


def test_what_she_has_is_trained_on_and_what_she_looked_at_is_not(make_store: Callable[..., Store]) -> None:
    store = make_store()
    kinds = [EventKind.VIEW, EventKind.CART, EventKind.PURCHASE, EventKind.LIKE, EventKind.DISLIKE]
    store.append_events(Event("ann", f"item-{kind}", kind, NOON) for kind in kinds)
    store.append_events([Event("ann", "high", EventKind.RATING, NOON + 1, 5.0)])
    store.append_events([Event("ann", "low", EventKind.RATING, NOON + 2, 1.0)])
    assert [item for _, item in pairs(store)] == ["item-purchase", "item-like", "high", "low"]
    assert [item for _, item in pairs(store, min_rating=3.0)] == ["item-purchase", "item-like", "high"]
    assert [item for _, item in pairs(store, kinds={EventKind.VIEW})] == ["item-view"]


def test_what_she_sent_back_is_none_of_hers_until_she_buys_it_again(make_store: Callable[..., Store]) -> None:
    store = make_store()
    kinds = [EventKind.PURCHASE, EventKind.RETURN]
    store.append_events(Event("ann", "tea", kind, NOON + place) for place, kind in enumerate(kinds))
    store.append_events([*bought("ann", "cup"), *bought("bob", "tea")])
    assert sorted(pairs(store)) == [("ann", "cup"), ("bob", "tea")]
    store.append_events([Event("ann", "tea", EventKind.PURCHASE, NOON + 9)])
    assert ("ann", "tea") in pairs(store)


def test_times_that_are_unknown_stay_unknown_and_in_the_order_of_arrival(make_store: Callable[..., Store]) -> None:
    store = make_store()
    store.append_events([Event("ann", "new", EventKind.PURCHASE, NOON)])
    store.append_events(Event("ann", item, EventKind.PURCHASE, 0.0) for item in ("old", "older"))
    table = training_events(store).table
    assert table["item"].tolist() == ["old", "older", "new"]
    assert table["timestamp"].isna().tolist() == [True, True, False]
    assert table["order"].is_monotonic_increasing


def test_a_store_with_nothing_to_train_on_says_so(make_store: Callable[..., Store]) -> None:
    store = make_store()
    for _ in range(2):
        with pytest.raises(DataError, match="no event of kind like, purchase, rating"):
            training_events(store)
        store.append_events([Event("ann", "tea", EventKind.VIEW, NOON)])


def contribution(store: Store) -> tuple[np.ndarray, pd.Series]:
    """What the shop releases in a round without a promise, and the popularity behind it."""
    data, public = StoreData(store, "ant", validation="none").read()
    model = Ease(EaseSettings(regularisation=5.0))
    node: ShopNode = shop_nodes(model, public, Terms(ROSTER), [data.train, data.train])[0]
    plan = Coordinator(model, public, Terms(ROSTER)).next_plan()
    assert plan is not None
    counts = pd.Series(np.asarray(data.train.sum(axis=0)).ravel(), index=data.items)
    return np.frombuffer(node.answer(plan).to_bytes(), np.uint8), counts


def test_the_contribution_after_an_erasure_is_that_of_a_shop_where_she_never_was(
    make_store: Callable[..., Store],
) -> None:
    rng = np.random.default_rng(0)
    others = [event for row in range(30) for event in bought(f"s{row}", *rng.choice(ITEMS, 6, replace=False))]
    hers = bought("ann", *ITEMS[:5])
    with_her, without_her = make_store("with"), make_store("without")
    for store in (with_her, without_her):
        store.put_items(Item(key) for key in ITEMS)
        store.append_events(others)
    expected, counts = contribution(without_her)
    with_her.append_events(hers)
    before, _ = contribution(with_her)
    assert not np.array_equal(before, expected)
    with_her.erase_shopper("ann")
    with_her.append_events(hers)  # from an old file
    after, same = contribution(with_her)
    np.testing.assert_array_equal(after, expected)
    pd.testing.assert_series_equal(same, counts)


def test_an_agent_that_runs_leaves_an_erased_shopper_out_of_its_next_round(
    town: Town, make_store: Callable[..., Store]
) -> None:
    store = make_store()
    for row in range(20):
        store.append_events(bought(f"s{row}", *ITEMS[row : row + 6]))
    store.append_events(bought("ann", *ITEMS[:5]))
    source = StoreData(store, "ant", validation="none")
    settings = town.member().settings
    member = Member(town.folder / "ant", settings, *source.read(), source=source)
    member.accept(town.offer().sign(town.key))
    member.anchor(heads_for(town, "ant"))
    node = member.node()
    assert node.histories.shape == (21, len(ITEMS))
    assert member.node() is node
    store.erase_shopper("ann")
    assert source.is_stale
    fresh = member.node()
    assert fresh.histories.shape == (20, len(ITEMS))
    assert "ann" not in member.data.shoppers
    assert fresh.ledger is node.ledger
    store.append_events(bought("zoe", *ITEMS[:5]))
    assert member.node() is fresh  # new events wait for the next run
    member.accept(town.offer("run-2").sign(town.key))
    assert "zoe" in member.data.shoppers
    member.close()
