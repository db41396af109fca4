"""`fedrec shop init | import | export | erase | key` from the command line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from fedrec.role_config import open_store, read_shop

from .conftest import Said

Call = Callable[..., Said]


def test_a_shop_of_its_own_loads_exports_and_erases(shop: Path, fedrec: Call) -> None:
    said = fedrec("shop", "import", shop, "events.csv", "--items", "items.csv")
    assert said.status == 0, said.err
    assert re.search(r"rows read +150", said.out)
    assert re.search(r"new events +150", said.out)
    assert re.search(r"new items +20", said.out)
    exported = json.loads(fedrec("shop", "export", shop, "u1").out)
    assert [one["item"] for one in exported["events"]] == ["i3", "i4", "i5", "i6", "i7"]
    said = fedrec("shop", "erase", shop, "u1")
    assert "erased: 5 events, 0 lists" in said.out
    assert "nothing has left the shop" in said.out
    said = fedrec("shop", "import", shop, "events.csv")
    assert re.search(r"left out: of an erased shopper +5", said.out)
    assert re.search(r"left out: there already +145", said.out)
    assert re.search(r"new events +5", fedrec("shop", "import", shop, "events.csv", "--force").out)
    assert re.search(r"new items +20", fedrec("shop", "import", shop, "--items", "items.csv").out)


def test_keys_are_made_listed_and_revoked(shop: Path, fedrec: Call) -> None:
    said = fedrec("shop", "key", shop, "add", "--scope", "admin", "--name", "owner")
    key_id, secret = re.search(r"key (\w+) \(owner, admin\).*\n(fr_north_\w{64})\n", said.out).groups()  # type: ignore[union-attr]
    listed = fedrec("shop", "key", shop, "list").out
    assert key_id in listed
    assert secret not in listed
    with open_store(shop, read_shop(shop)) as store:
        assert store.key_of(secret) is not None
        assert fedrec("shop", "key", shop, "revoke", key_id).status == 0
        assert store.key_of(secret) is None


def test_a_shop_joins_a_federation_later_and_keeps_its_settings(shop: Path, fedrec: Call) -> None:
    path = shop / "shop.toml"
    path.write_text(path.read_text().replace("min_shops = 3", "min_shops = 4"))
    assert fedrec("coordinator", "init", "c", "--items", "items.csv", "--name", "books").status == 0
    assert fedrec("coordinator", "invite", "c").status == 0
    join = ("shop", "enrol", shop, "--invitation", "invitation.json", "--shoppers", 31)
    assert "holds a shop already, north with 0 shoppers declared" in fedrec(*join, "--name", "south").err
    assert "leave --events" in fedrec(*join, "--name", "north", "--events", "events.csv").err
    assert "is in no federation" in fedrec("shop", "recover", shop).err
    said = fedrec(*join, "--name", "north")
    assert said.status == 0, said.err
    settings = read_shop(shop)
    assert (settings.public_shoppers, settings.policy.min_shops, settings.data.store) == (30, 4, True)
    assert "no event of kind like, purchase, rating to train on" in fedrec("shop", "recover", shop).err


def test_what_cannot_be_is_refused_in_one_line(shop: Path, fedrec: Call) -> None:
    shutil.copy(shop / "shop.toml", "good.toml")
    text = (shop / "shop.toml").read_text()
    for arguments, message in [
        (("init", shop, "--name", "north"), "holds a shop already"),
        (("privacy", shop), "has no ledger"),
        (("init", "new", "--name", "a b"), "letters, digits"),
        (("import", shop), "give a file of events"),
        (("import", shop, "none.csv"), "there is no such file"),
        (("import", shop, "events.csv", "--kind", "sold"), "give one of view, cart"),
        (("import", "nowhere", "events.csv"), "shop.toml"),
        (("key", shop, "revoke"), "revoke takes the id of a key"),
        (("key", shop, "revoke", "none"), "no valid key has the id 'none'"),
        (("key", shop, "add", "--scope", "all"), "give one of read, write, admin"),
    ]:
        said = fedrec("shop", *arguments)
        assert said.status == 2, arguments
        assert message in said.err
        assert said.err.count("\n") == 1
    for wrong, message in [
        (text.replace("store = true", 'store = true\nevents = "events.csv"'), "store = true takes no events"),
        (text.replace("# train_on", "train_on").replace('"like"]', '"return"]'), "does not have an item"),
        (text.replace("sqlite:///store.sqlite", "mysql://host/name"), "SQLite or PostgreSQL"),
    ]:
        (shop / "shop.toml").write_text(wrong)
        assert message in fedrec("shop", "export", shop, "u1").err
