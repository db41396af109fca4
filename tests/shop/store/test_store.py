"""One suite that the store passes on SQLite and on PostgreSQL."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest

from fedrec.errors import ConfigError, DataError, StoreError
from fedrec.shop.store.database import Database
from fedrec.shop.store.rows import Appended, Event, EventKind, Item, content_id
from fedrec.shop.store.store import Store

NOON = 1_700_000_000.0


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store.open(store_url) as found:
        yield found


def seen(shopper: str = "ann", item: str = "tea", timestamp: float = NOON, **rest: object) -> Event:
    return Event(shopper, item, rest.pop("kind", EventKind.VIEW), timestamp, **rest)  # type: ignore[arg-type]


def test_events_come_back_as_they_were_stored(store: Store) -> None:
    first = seen(value=4.5, kind=EventKind.RATING, event_id="order 7/1", list_id="list-ä")
    assert store.append_events([first, seen("bob")]) == Appended(2, 0)
    (row,) = store.history("ann")
    assert row[1:] == ("order 7/1", "ann", "tea", EventKind.RATING, 4.5, NOON, "list-ä")
    assert store.num_events() == 2


def test_the_same_event_counts_once(store: Store) -> None:
    assert store.append_events([seen(event_id="one"), seen(), seen()]) == Appended(2, 1)
    assert store.append_events([seen(item="other", event_id="one"), seen()]) == Appended(0, 2)
    assert [row.item for row in store.history("ann")] == ["tea", "tea"]


def test_history_is_the_newest_events_with_the_newest_last(store: Store) -> None:
    times = [NOON + 5, NOON, NOON + 9, NOON + 9, 0.0]
    store.append_events(seen(item=f"item-{place}", timestamp=when) for place, when in enumerate(times))
    store.append_events([seen("bob", "item-9")])
    assert [row.item for row in store.history("ann")] == ["item-4", "item-1", "item-0", "item-2", "item-3"]
    assert [row.item for row in store.history("ann", limit=2)] == ["item-2", "item-3"]
    assert store.history("eve") == []


def test_lists_are_told_what_the_history_says(store: Store) -> None:
    kinds = (EventKind.VIEW, EventKind.RATING, EventKind.CART)
    store.append_events(
        Event("ann", f"i{place}", kind, 9.0 - place, value=2.0, event_id=f"e{place}")
        for place, kind in enumerate(kinds)
    )
    told = [(one.item, one.kind, one.value) for one in store.history("ann", limit=2)]
    assert told == [("i1", "rating", 2.0), ("i0", "view", 2.0)]
    assert store.said("ann", limit=2) == told


def test_a_reader_keeps_little_of_the_file_in_memory(tmp_path: Path) -> None:
    with closing(Database(f"sqlite:///{tmp_path / 'store.sqlite'}")) as database:
        assert database.read("PRAGMA cache_size") == [(-4096,)]


def test_another_connection_finds_what_came_after(store_url: str, store: Store) -> None:
    store.append_events([seen()])
    last = store.last_sequence()
    with Store.open(store_url) as other:
        other.append_events([seen("bob"), seen("cat")])
    rows = store.events_after(last)
    assert [row.shopper for row in rows] == ["bob", "cat"]
    assert [row.shopper for row in store.events_after(0, limit=2)] == ["ann", "bob"]
    assert store.events_after(rows[-1].sequence) == []


def test_threads_write_side_by_side_and_sequences_only_rise(store: Store) -> None:
    found: list[int] = []
    done = threading.Event()

    def follow() -> None:
        while True:
            is_last = done.is_set()
            rows = store.events_after(found[-1] if found else 0)
            found.extend(row.sequence for row in rows)
            if is_last and not rows:
                return

    def write(name: str) -> None:
        for number in range(20):
            assert store.append_events([seen(name, f"item-{number}"), seen(name, "tea")]).accepted >= 1

    follower = threading.Thread(target=follow)
    writers = [threading.Thread(target=write, args=(f"shopper-{number}",)) for number in range(4)]
    for thread in (follower, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    follower.join()
    assert len(found) == store.num_events() == 4 * 21
    assert found == sorted(set(found))


def test_what_has_not_happened_yet_is_refused_and_nothing_of_its_batch_is_stored(store: Store) -> None:
    with pytest.raises(DataError, match="ahead of this machine's clock"):
        store.append_events([seen(), seen(timestamp=time.time() + 7200)])
    assert store.num_events() == 0
    store.append_events([seen(timestamp=time.time() + 60)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shopper": ""}, "shopper: give text"),
        ({"shopper": "x" * 257}, "shopper: give text of 1 to 256"),
        ({"item": "a\nb"}, "item: has control characters"),
        ({"item": "a\0"}, "item: has control characters"),
        ({"item": "\ud800"}, "cannot be printed"),
        ({"kind": "sold"}, "give one of view, cart"),
        ({"timestamp": float("nan")}, "give a finite number"),
        ({"timestamp": -1.0}, "seconds since 1970"),
        ({"timestamp": NOON * 1000}, "seconds since 1970"),
        ({"value": float("inf")}, "give a finite number"),
        ({"value": True}, "give a finite number"),
        ({"kind": EventKind.RATING}, "a rating has no value"),
        ({"list_id": ""}, "list_id: give text"),
    ],
)
def test_events_that_cannot_be_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        seen(**wrong)  # type: ignore[arg-type]


def test_an_id_that_cannot_be_is_refused_when_it_is_asked_for(store: Store) -> None:
    asked = [store.history, store.item, store.export_shopper, store.erase_shopper]
    for ask in asked:
        for wrong in ("", "a\0b", "\ud800"):
            with pytest.raises(DataError, match=r"give text|cannot be printed"):
                ask(wrong)


def test_ids_made_from_the_content_tell_events_apart() -> None:
    events = [("a", "b", "view", None, 1.0), ("ab", "", "view", None, 1.0), ("a", "b", "view", 1.0, 1.0)]
    events += [("a", "b", "cart", None, 1.0), ("a", "b", "view", None, 2.0)]
    assert len({content_id(*one) for one in events}) == len(events)
    assert seen().event_id == seen().event_id != seen(list_id="l").event_id


def test_items_are_put_changed_hidden_and_deleted(store: Store) -> None:
    tea, cup = Item("tea", "Green tea", "food|tea", 4.5, 3), Item("cup", created=NOON)
    assert store.put_items([tea, cup]) == 2
    found = store.item("tea")
    assert found is not None
    assert (found.title, found.category, found.price, found.stock, found.is_hidden) == tea_fields(tea)
    store.put_items([Item("tea", "Black tea")])
    changed = store.item("tea")
    assert changed is not None
    assert (changed.title, changed.price, changed.created) == ("Black tea", None, found.created)
    assert store.hide_items(["cup", "pot"]) == 1
    assert store.delete_items(["tea", "pot"]) == 1
    assert store.item("tea") is None
    assert store.item("pot") is None
    hidden = store.item("cup")
    assert hidden == Item("cup", is_hidden=True, created=NOON)
    store.put_items([Item("tea", "White tea")])
    assert store.item("tea") == Item("tea", "White tea", created=found.created)


def tea_fields(item: Item) -> tuple[object, ...]:
    return item.title, item.category, item.price, item.stock, item.is_hidden


def test_changes_of_items_are_found_behind_a_cursor(store: Store) -> None:
    store.put_items([Item("a"), Item("b"), Item("c")])
    first = store.items_after(0)
    assert [change.item.key for change in first] == ["a", "b", "c"]
    cursor = first[-1].sequence
    assert store.items_after(cursor) == []
    store.hide_items(["b"])
    store.delete_items(["a"])
    assert [(one.item.key, one.item.is_hidden, one.is_deleted) for one in store.items_after(cursor)] == [
        ("b", True, False),
        ("a", False, True),
    ]
    assert [one.item.key for one in store.items_after(0)] == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"price": -1.0}, "price"), ({"stock": -1}, "stock"), ({"title": "a\0b"}, "control"), ({"key": ""}, "item: give")],
)
def test_items_that_cannot_be_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Item(**{"key": "tea", **wrong})  # type: ignore[arg-type]


def test_what_was_stored_is_there_when_it_is_opened_again(store_url: str) -> None:
    with Store.open(store_url) as store:
        store.append_events([seen()])
    with Store.open(store_url) as store:
        assert len(store.history("ann")) == 1
    with pytest.raises(StoreError, match="closed"):
        store.history("ann")


def test_urls_that_are_no_store_are_refused() -> None:
    for url, message in [
        ("sqlite://", "in memory"),
        ("mysql://host/name", "SQLite or PostgreSQL"),
        ("store.sqlite", "cannot be read"),
        ("postgresql://nobody@127.0.0.1:1/none", "cannot be used"),
        ("sqlite:////nowhere/at/all/store.sqlite", "cannot be opened"),
    ]:
        with pytest.raises((ConfigError, StoreError), match=message):
            Store.open(url)


def test_a_missing_driver_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"the driver psycopg is not installed; pip install \"fedrec\[postgres\]\""):
        Store.open("postgresql://someone:secret@127.0.0.1/none")


def test_printing_a_store_or_an_event_shows_no_shopper_and_no_password(store: Store) -> None:
    store.append_events([seen()])
    assert "ann" not in repr(seen()) + repr(store)


def test_the_mark_moves_with_every_write_of_anybody(store_url: str, store: Store) -> None:
    marks = [store.mark()]
    assert store.mark() == marks[0]
    with Store.open(store_url) as other:
        for write in (
            lambda: store.append_events([seen()]),
            lambda: other.append_events([seen("bob")]),
            lambda: store.put_items([Item("tea")]),
            lambda: other.hide_items(["tea"]),
        ):
            write()
            marks.append(store.mark())
            assert store.mark() == marks[-1]
    assert all(before != after for before, after in pairwise(marks))
