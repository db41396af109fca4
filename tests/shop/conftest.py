"""A town of enrolled shops for the tests of a deployed shop, and empty stores for those of the store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedrec.flower.deployment import admit, create_coordinator, invite
from fedrec.flower.keys import new_node_key
from fedrec.role_config import SHOP_FILE, shop_toml
from fedrec.shop.enrol import enrol

from .postgres import binaries, cluster
from .town import ITEMS, SHOPS, Town


@pytest.fixture
def town(tmp_path: Path) -> Town:
    """Four enrolled shops, whose policies confirm the roster."""
    items = tmp_path / "items.csv"
    items.write_text("item\n" + "\n".join(ITEMS) + "\n")
    found = Town(tmp_path)
    create_coordinator(found.coordinator, "town", public_host="127.0.0.1", items=str(items))
    invitation, _ = invite(found.coordinator)
    for shop in SHOPS:
        text = shop_toml(shop, public_shoppers=100, events="events.csv", items=None)
        _, answer = enrol(
            tmp_path / shop,
            invitation,
            name=shop,
            public_shoppers=100,
            settings_file=(SHOP_FILE, text.encode()),
            new_node_key=new_node_key,
        )
        admit(found.coordinator, answer.read_bytes())
    for shop in SHOPS:
        found.change(shop, roster=found.fingerprint())
    return found


@pytest.fixture(scope="session")
def postgres() -> Iterator[Iterator[str]]:
    """URLs of empty places in a PostgreSQL of our own."""
    programs = binaries()
    if programs is None:
        pytest.skip("no PostgreSQL here: install the package postgresql")
    psycopg = pytest.importorskip("psycopg")
    with cluster(programs) as url:

        def places() -> Iterator[str]:
            for number in itertools.count():
                with psycopg.connect(url, autocommit=True) as connection:
                    connection.execute(f"CREATE SCHEMA store{number}")
                yield f"{url}&options=-csearch_path%3Dstore{number}"

        yield places()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty store: every test that asks for it runs on both databases."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.sqlite'}"
    return str(next(request.getfixturevalue("postgres")))
