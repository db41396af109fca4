"""Files of events and items into a store, and the account of every row."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from fedrec.data.sources import DataSettings
from fedrec.errors import DataError
from fedrec.shop.store import imports
from fedrec.shop.store.imports import Imported, import_events, import_items
from fedrec.shop.store.rows import EventKind, Item
from fedrec.shop.store.store import Store

NOON = 1_700_000_000


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store.open(store_url) as found:
        yield found


@pytest.fixture
def load(store: Store, tmp_path: Path) -> Callable[..., Imported]:
    def load(rows: list[dict[str, object]], **settings: object) -> Imported:
        path = tmp_path / "events.csv"
        pd.DataFrame(rows).to_csv(path, index=False)
        read = {name: settings.pop(name) for name in ("items", "columns") if name in settings}
        shop = settings.pop("shop", "north")
        return import_events(store, DataSettings(events=str(path), **read), shop, **settings)  # type: ignore[arg-type]

    return load


def row(shopper: object = "ann", item: object = "tea", when: object = NOON, **rest: object) -> dict[str, object]:
    return {"customer_id": shopper, "product_id": item, "date": when, **rest}


def test_events_are_stored_in_the_order_in_which_they_happened(store: Store, load: Callable[..., Imported]) -> None:
    done = load([row(when=NOON + 5), row(item="cup"), row("bob", quantity=3)])
    assert (done.rows_read, done.accepted, done.dropped, done.items) == (3, 3, (), 2)
    assert [(one.shopper, one.item, one.value) for one in store.events_after(0)] == [
        ("ann", "cup", None),
        ("bob", "tea", 3.0),
        ("ann", "tea", None),
    ]
    assert {one.kind for one in store.events_after(0)} == {EventKind.PURCHASE}


def test_kinds_are_read_from_a_column_and_returns_are_kept(store: Store, load: Callable[..., Imported]) -> None:
    names = ["Page View", "add_to_cart", "BUY", "rate", "favourite", "dislike", "Returned", "unheard-of"]
    done = load([row(item=f"i{place}", event=name, rating=place) for place, name in enumerate(names)])
    assert [one.kind for one in store.history("ann")] == list(EventKind)
    assert [one.value for one in store.history("ann")] == [None, None, None, 3.0, None, None, None]
    assert done.dropped == (("unknown type of event", 1),)


def test_ratings_without_a_type_are_ratings_and_other_kinds_can_be_given(
    store: Store, load: Callable[..., Imported]
) -> None:
    load([row(rating=4), row(item="cup", rating=None)])
    assert [one.kind for one in store.history("ann")] == [EventKind.RATING, EventKind.PURCHASE]
    load([row("bob")], kind=EventKind.VIEW)
    assert store.history("bob")[0].kind is EventKind.VIEW


def test_every_row_is_accounted_for(load: Callable[..., Imported]) -> None:
    rows = [
        *(row(), row(), row(shopper=None), row(item=""), row(when=time.time() + 86_400), row(when=-5)),
        *(row(item="x" * 300), row(item="cup", quantity=0)),
    ]
    done = load(rows)
    assert dict(done.dropped) == {
        "no shopper": 1,
        "no item": 1,
        "quantity not above 0": 1,
        "duplicate": 1,
        "before 1970": 1,
        "in the future": 1,
        "an id that cannot be one": 1,
    }
    assert done.rows_read == done.accepted + sum(count for _, count in done.dropped)
    again = load(rows)
    assert again.accepted == 0
    assert dict(again.dropped)["there already"] == 1


def test_an_import_that_stopped_goes_on_where_it_was(
    store: Store, load: Callable[..., Imported], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "CHUNK_ROWS", 3)
    rows = [row(f"s{place}") for place in range(10)]
    told = []

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(rows, on_rows=stop)
    assert store.num_events() == 6
    done = load(rows)
    assert (done.accepted, dict(done.dropped)) == (4, {"there already": 6})
    assert told == [(3, 10), (6, 10)]


def test_an_erased_shopper_does_not_come_back_unless_forced(store: Store, load: Callable[..., Imported]) -> None:
    rows = [row(), row("bob")]
    load(rows)
    store.erase_shopper("ann")
    assert dict(load(rows).dropped) == {"there already": 1, "of an erased shopper": 1}
    assert {one.shopper for one in store.events_after(0)} == {"bob"}
    assert load(rows, is_forced=True).accepted == 1


def test_rows_of_other_shops_are_left_out(store: Store, load: Callable[..., Imported]) -> None:
    done = load([row(shop="north"), row("bob", shop="south")])
    assert dict(done.dropped) == {"of other shops": 1}
    assert {one.shopper for one in store.events_after(0)} == {"ann"}
    with pytest.raises(DataError, match="none of them is 'north'; the largest are south"):
        load([row(shop="south")])
    assert load([row("bob", shop="south"), row("cat", shop="west")], shop=None).accepted == 2


def test_events_say_something_of_new_items_but_change_none(store: Store, load: Callable[..., Imported]) -> None:
    store.put_items([Item("tea", "Green tea", stock=2)])
    done = load([row(title="Tea, black", unit_price=2.5), row(item="cup", title="Cup", unit_price=7.0)])
    assert done.items == 1
    assert store.item("tea") == Item("tea", "Green tea", stock=2, created=store.item("tea").created)  # type: ignore[union-attr]
    cup = store.item("cup")
    assert cup is not None
    assert (cup.title, cup.price) == ("Cup", 7.0)


def test_a_file_of_items_changes_what_it_says_and_nothing_else(store: Store, tmp_path: Path) -> None:
    store.put_items([Item("tea", "Green tea", "food", 4.0, 2, is_hidden=True, created=5.0)])
    path = tmp_path / "items.csv"
    rows = [
        {"product_id": "tea", "title": "Black tea", "price": "", "stock": 9},
        {"product_id": "cup", "title": "Cup", "price": 7, "stock": ""},
        {"product_id": "tea", "title": "again", "price": 1, "stock": 1},
        {"product_id": "pot", "title": "a pot", "price": -1, "stock": 1},
        {"product_id": "", "title": "nothing", "price": 1, "stock": 1},
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    done = import_items(store, str(path))
    assert store.item("tea") == Item("tea", "Black tea", "food", 4.0, 9, is_hidden=True, created=5.0)
    cup = store.item("cup")
    assert cup is not None
    assert (cup.title, cup.price, cup.stock) == ("Cup", 7.0, None)
    assert (done.rows_read, done.accepted) == (5, 2)
    assert dict(done.dropped) == {"no id, or the same item again": 2, "id or text that cannot be one": 1}
