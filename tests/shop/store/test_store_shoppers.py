"""Erasure, export, lists that were shown and keys: the same suite on SQLite and on PostgreSQL."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedrec.errors import ConfigError, StoreError
from fedrec.shop.store.keys import read_scope
from fedrec.shop.store.rows import (
    KEEP_IMPRESSIONS_S,
    Appended,
    ClickThrough,
    Event,
    EventKind,
    Impression,
    Key,
    KeyScope,
)
from fedrec.shop.store.store import Store

NOON = 1_700_000_000.0
ANN = "ann-of-green-gables"


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store.open(store_url) as found:
        yield found


def seen(shopper: str, item: str = "tea", timestamp: float = NOON, **rest: object) -> Event:
    return Event(shopper, item, EventKind.PURCHASE, timestamp, **rest)  # type: ignore[arg-type]


def shown(list_id: str, shopper: str | None = None, **rest: object) -> Impression:
    about = {"list_name": "home", "version": "v1", "arm": "", "timestamp": NOON, **rest}
    return Impression(list_id, shopper=shopper, **about)  # type: ignore[arg-type]


def test_an_export_has_all_that_is_known_of_her_and_nothing_of_others(store: Store) -> None:
    store.append_events([seen(ANN, value=2.0, event_id="e1", list_id="l1"), seen("bob")])
    store.add_impressions([shown("l1", ANN, items=("tea", "a cup")), shown("l2", "bob"), shown("l3")])
    items = {"items": ["tea", "a cup"]}
    assert store.export_shopper(ANN) == {
        "shopper": ANN,
        "events": [
            {
                **{"event_id": "e1", "item": "tea", "kind": "purchase", "value": 2.0},
                **{"timestamp": NOON, "list_id": "l1"},
            }
        ],
        "impressions": [{"list_id": "l1", "list": "home", "version": "v1", "arm": "", "timestamp": NOON, **items}],
        "erased_at": None,
    }


def test_after_her_erasure_there_is_nothing_of_her_and_the_others_are_as_they_were(store: Store) -> None:
    store.append_events([seen(ANN), seen(ANN, "cup"), seen("bob")])
    store.add_impressions([shown("l1", ANN), shown("l2", "bob")])
    before = store.generation()
    erased = store.erase_shopper(ANN)
    assert (erased.num_events, erased.num_impressions, erased.is_wiped) == (2, 1, True)
    exported = store.export_shopper(ANN)
    assert (exported["events"], exported["impressions"], exported["erased_at"]) == ([], [], erased.erased_at)
    assert store.shoppers() == ["bob"]
    assert store.generation() == before + 1
    assert sum(row.shown for row in store.click_through(good_rating=4.0)) == 1


def test_an_old_export_does_not_bring_her_back_but_what_she_does_now_is_taken(store_url: str) -> None:
    old = [seen(ANN), seen(ANN, "cup", 0.0), seen("bob")]
    with Store.open(store_url) as server, Store.open(store_url) as command:
        server.append_events(old)
        command.erase_shopper(ANN)
        assert server.append_events(old) == Appended(accepted=0, duplicates=1, erased=2)
        assert server.add_impressions([shown("l1", ANN)]) == 0
        assert server.append_events([seen(ANN, timestamp=time.time() + 1)]) == Appended(1, 0)
        assert server.append_events(old, is_forced=True) == Appended(accepted=2, duplicates=1)


def test_a_clock_ahead_does_not_save_events_from_a_later_import(store: Store) -> None:
    ahead = seen(ANN, timestamp=time.time() + 1800)
    store.append_events([ahead])
    store.erase_shopper(ANN)
    assert store.append_events([ahead]).erased == 1


def test_sequences_are_not_used_again_after_an_erasure(store: Store) -> None:
    store.append_events([seen("bob"), seen(ANN)])
    last = store.last_sequence()
    store.erase_shopper(ANN)
    store.append_events([seen("cat")])
    assert [row.shopper for row in store.events_after(last)] == ["cat"]


def test_no_byte_of_her_is_left_in_the_files_of_sqlite(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path / 'store.sqlite'}") as store:
        store.append_events([seen("bob", event_id=f"b{number}") for number in range(500)])
        store.append_events([seen(ANN, event_id=f"a{number}") for number in range(500)])
        store.add_impressions([shown("l1", ANN)])
        assert any(ANN.encode() in path.read_bytes() for path in tmp_path.iterdir())
        store.erase_shopper(ANN)
        assert [path.name for path in tmp_path.iterdir() if ANN.encode() in path.read_bytes()] == []
        assert store.num_events() == 500


def test_a_restored_backup_does_not_bring_her_back(tmp_path: Path) -> None:
    url, backup = f"sqlite:///{tmp_path / 'store.sqlite'}", tmp_path / "backup"
    with Store.open(url) as store:
        store.append_events([seen(ANN), seen("bob")])
    shutil.copy(tmp_path / "store.sqlite", backup)
    with Store.open(url) as store:
        store.erase_shopper(ANN)
        store.append_events([seen(ANN, timestamp=time.time() + 1)])
    shutil.copy(backup, tmp_path / "store.sqlite")
    with Store.open(url) as store:
        assert store.shoppers() == ["bob"]
        assert store.append_events([seen(ANN)]).erased == 1
        assert store.generation() == 1


def test_a_new_database_beside_the_tombstones_does_not_take_her_back_either(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    with Store.open(url) as store:
        store.append_events([seen(ANN)])
        store.erase_shopper(ANN)
    (tmp_path / "store.sqlite").unlink()
    with Store.open(url) as store:
        assert store.append_events([seen(ANN), seen("bob")]) == Appended(1, 0, erased=1)


def test_an_erasure_that_could_not_be_finished_is_finished_at_the_next_start(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    with Store.open(url) as store:
        store.append_events([seen(ANN), seen("bob")])
        with sqlite3.connect(tmp_path / "store.sqlite") as other:
            other.execute("CREATE TRIGGER broken BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'broken'); END")
        with pytest.raises(StoreError, match="broken"):
            store.erase_shopper(ANN)
        assert store.num_events() == 2
        other.execute("DROP TRIGGER broken")
        other.close()
    with Store.open(url) as store:
        assert store.shoppers() == ["bob"]
        assert store.export_shopper(ANN)["erased_at"] is not None


def test_lost_tombstones_are_written_again_from_the_database(tmp_path: Path) -> None:
    url, path = f"sqlite:///{tmp_path / 'store.sqlite'}", tmp_path / "store.tombstones"
    with Store.open(url) as store:
        store.erase_shopper(ANN)
    text = path.read_text()
    assert ANN not in text
    assert path.stat().st_mode & 0o077 == 0
    path.unlink()
    Store.open(url).close()
    assert path.read_text() == text


def test_tombstones_of_another_store_and_broken_ones_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Store.open(f"sqlite:///{tmp_path / name}.sqlite").close()
    url, path = f"sqlite:///{tmp_path / 'one.sqlite'}", tmp_path / "one.tombstones"
    shutil.copy(tmp_path / "two.tombstones", path)
    with pytest.raises(StoreError, match="of another store"):
        Store.open(url)
    path.write_text("something else\n")
    with pytest.raises(StoreError, match="no file of tombstones"):
        Store.open(url)


def test_clicks_are_counted_once_a_list_by_day_list_version_and_arm(store: Store) -> None:
    day = int(NOON // 86_400)
    lists = [shown("l1", ANN), shown("l2", "bob"), shown("l3", timestamp=NOON + 86_400), shown("l4", arm="new")]
    assert store.add_impressions(lists) == 4
    assert store.add_impressions(lists[:1]) == 0
    store.append_events([seen(ANN, list_id="l1"), seen(ANN, "cup", list_id="l1"), seen("eve", list_id="l3"), seen("x")])
    rows = store.click_through(good_rating=4.0)
    assert rows == [
        ClickThrough(day, "home", "v1", "", shown=2, clicked=1),
        ClickThrough(day, "home", "v1", "new", shown=1, clicked=0),
        ClickThrough(day + 1, "home", "v1", "", shown=1, clicked=1),
    ]
    assert store.click_through(NOON + 1, good_rating=4.0) == rows[2:]
    store.add_impressions([shown("l5", timestamp=NOON + KEEP_IMPRESSIONS_S + 1)])
    assert [row.day for row in store.click_through(good_rating=4.0)] == [day + 1, day + 90]


def test_a_click_is_for_an_item_of_the_list_by_whoever_it_was_for(store: Store) -> None:
    view = EventKind.VIEW
    shoppers, items = {"nobody's": None, "eve's": "eve"}, {"unnoted": None, "empty": ()}
    told = {  # by list: item, kind, value
        **{kind.value: ("tea", kind, None) for kind in EventKind if kind is not EventKind.RATING},
        **{"rated well": ("tea", EventKind.RATING, 4.0), "rated low": ("tea", EventKind.RATING, 3.5)},
        **{"last": ("old pot", view, None), "other item": ("pot", view, None)},
        **dict.fromkeys([*shoppers, *items], ("tea", view, None)),
    }
    store.add_impressions(
        shown(name, shoppers.get(name, ANN), list_name=name, items=items.get(name, ("cup", "tea", "old pot")))
        for name in told
    )
    store.append_events(
        [Event(ANN, item, kind, NOON, value, list_id=name) for name, (item, kind, value) in told.items()]
    )
    refused = {"dislike", "return", "rated low", "other item", "eve's", "empty"}
    assert {row.list_name for row in store.click_through(good_rating=4.0) if not row.clicked} == refused


def test_a_key_is_shown_once_and_kept_as_a_hash(store: Store, tmp_path: Path) -> None:
    key, secret = store.new_key("north", "website", KeyScope.WRITE)
    assert secret.startswith("fr_north_")
    assert len(secret) == len("fr_north_") + 64
    assert store.key_of(secret) == key
    assert store.keys() == [key]
    for wrong in ("", secret[:-1], secret.upper(), secret.replace("north", "south"), key.id, "\ud800"):
        assert store.key_of(wrong) is None
    assert not any(secret[9:].encode() in path.read_bytes() for path in tmp_path.iterdir())


def test_a_revoked_key_opens_nothing_any_more(store: Store) -> None:
    (first, secret), (second, other) = (store.new_key("north", name, KeyScope.READ) for name in ("a", "b"))
    store.revoke_key(first.id)
    assert store.key_of(secret) is None
    assert store.key_of(other) == second
    listed = store.keys()
    assert [key.revoked is None for key in listed] == [False, True]
    with pytest.raises(ConfigError, match="no valid key"):
        store.revoke_key(first.id)


def test_scopes_are_in_order() -> None:
    assert KeyScope.READ < KeyScope.WRITE < KeyScope.ADMIN
    assert read_scope("write") is KeyScope.WRITE
    assert "secret" not in Key.__dataclass_fields__
