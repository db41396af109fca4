"""Stores of older and newer versions, and several that open a new one at once."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedrec.errors import StoreError
from fedrec.shop.store import schema as store_schema
from fedrec.shop.store.rows import Event, EventKind, Impression, Item, KeyScope
from fedrec.shop.store.store import Store

NOON = 1_700_000_000.0


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file of version 1."""
    path = tmp_path / "old.sqlite"
    path.touch(mode=0o600)
    with sqlite3.connect(path) as connection:
        connection.executescript((Path(__file__).parent / "store_v1.sql").read_text())
    connection.close()
    return path


def asked(path: Path, sql: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(path) as connection:
        rows = connection.execute(sql).fetchall()
    connection.close()
    return rows


def test_a_store_of_version_1_is_upgraded_with_all_that_it_holds(old: Path, tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{old}") as store:
        assert [row.event_id for row in store.events_after(0)] == ["order 1", "view 1"]
        assert store.item("tea") == Item("tea", "Green tea", "food", 4.5, 3, created=1_600_000_000.0)
        store.add_impressions([Impression("list-1", "home", "v1", "", NOON)])
        assert store.click_through(good_rating=4.0)[0].clicked == 1
        assert store.key_of(store.new_key("north", "website", KeyScope.READ)[1]) is not None
        assert store.erase_shopper("ann").num_events == 1
    Store.open(f"sqlite:///{tmp_path / 'new.sqlite'}").close()
    schema = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name"
    assert asked(old, schema) == asked(tmp_path / "new.sqlite", schema)
    versions = [version for (version,) in asked(old, "SELECT version FROM schema_version ORDER BY version")]
    assert versions == list(range(1, store_schema.CURRENT_VERSION + 1))


def test_an_upgrade_that_fails_leaves_the_store_as_it_was(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = asked(old, "SELECT sql FROM sqlite_master")
    broken = {**store_schema._MIGRATIONS, 2: (*store_schema._MIGRATIONS[2], "CREATE NONSENSE")}
    monkeypatch.setattr(store_schema, "_MIGRATIONS", broken)
    with pytest.raises(StoreError, match="cannot be used"):
        Store.open(f"sqlite:///{old}")
    assert asked(old, "SELECT sql FROM sqlite_master") == before
    monkeypatch.undo()
    Store.open(f"sqlite:///{old}").close()


def test_a_newer_store_is_refused(store_url: str) -> None:
    with Store.open(store_url) as store, store._database.writing() as transaction:
        transaction.change("INSERT INTO schema_version (version, at) VALUES (99, 0)")
    with pytest.raises(StoreError, match=r"has schema 99, this fedrec knows .* install a newer"):
        Store.open(store_url)


def test_several_may_open_a_new_store_at_once(store_url: str) -> None:
    def use(number: int) -> bytes:
        with Store.open(store_url) as store:
            store.append_events([Event(f"s{number}", "tea", EventKind.VIEW, NOON)])
            return store._erasures.hash("ann")

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(use, range(4)))) == 1
    with Store.open(store_url) as store:
        assert store.num_events() == 4
