"""A shop of the built-in marketplace, ready to be served: what ``fedrec shop serve --demo`` shows."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from fedrec.data.marketplace import SyntheticSettings, make_market
from fedrec.data.synthetic import generate_shop
from fedrec.federation.run_record import write_atomically
from fedrec.role_config import SHOP_FILE, open_store, read_shop, shop_toml
from fedrec.shop.store.rows import Item, KeyScope, content_id
from fedrec.shop.store.store import Store

NAME = "demo"
_MARKET_SHOP = "shop-07"
_SEED = 7

_WORDS = """
keys, shown this once:
  read   {read}
  admin  {admin}

try:
  KEY={admin}
  curl -s -H "Authorization: Bearer $KEY" "URL/v1/shoppers/{shopper}/recommendations?n=3&explain=true"
  curl -s -H "Authorization: Bearer $KEY" "URL/v1/items/{item}/similar?n=3"
  curl -s -H "Authorization: Bearer $KEY" "URL/v1/shoppers/you/recommendations?n=3"
  curl -s -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" URL/v1/events \\
    -d '{{"events": [{{"event_id": "1", "shopper": "you", "item": "{item}", "kind": "purchase"}}]}}'
  curl -s -H "Authorization: Bearer $KEY" "URL/v1/shoppers/you/recommendations?n=3"
dashboard: URL with one of the keys; description: URL/openapi.json; Ctrl-C ends the server"""


def make_demo(folder: Path) -> str:
    """A folder to serve, made where it is none; new keys of it, and what can be asked, with URL for the address."""
    is_new = not (folder / SHOP_FILE).exists()
    if is_new:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(folder / SHOP_FILE, shop_toml(NAME, public_shoppers=0, events=None, items=None).encode())
    settings = read_shop(folder)
    with open_store(folder, settings) as store:
        if is_new:
            _fill(store)
        keys = {
            name: store.new_key(settings.name, "demo", scope)[1]
            for name, scope in (("read", KeyScope.READ), ("admin", KeyScope.ADMIN))
        }
        first = store.events_after(0, 1)[0]
    return _WORDS.format(**keys, shopper=first.shopper, item=first.item)


def _fill(store: Store) -> None:
    """The events of one generated shop, the last of them now, and the items of all."""
    items, truth = make_market(SyntheticSettings(), _SEED)
    table = generate_shop(truth, _MARKET_SHOP).table.sort_values("timestamp", kind="stable")
    times = table["timestamp"].to_numpy(np.float64)
    times = times + (time.time() - times[-1])
    sold = set(table["item"].cat.categories[np.unique(table["item"].cat.codes)])
    first = dict(zip(table["item"].astype(str)[::-1], times[::-1].tolist(), strict=True))
    prices = dict(zip(items.table.index, items.table["price"].to_numpy(np.float64).tolist(), strict=True))
    store.put_items(
        Item(str(row.Index), str(row.title), str(row.category), prices[row.Index], created=first[str(row.Index)])
        for row in items.table.itertuples()
        if row.Index in sold
    )
    columns = zip(table["shopper"].astype(str), table["item"].astype(str), times.tolist(), strict=True)
    rows = [
        (f"{number}-{content_id(shopper, item, 'purchase', None, at)}", shopper, item, "purchase", None, at, None)
        for number, (shopper, item, at) in enumerate(columns)
    ]
    store.append_rows(rows)
