"""A town of enrolled shops for the tests of a deployed shop."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedrec.flower.deployment import admit, create_coordinator, invite
from fedrec.flower.keys import new_node_key
from fedrec.role_config import SHOP_FILE, shop_toml
from fedrec.shop.enrol import enrol

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
