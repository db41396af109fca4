"""A busy shop on the generated marketplace: weeks of clicks, two models, a comparison, and a ledger."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from fedrec.data.marketplace import SyntheticSettings
from fedrec.data.synthetic import generate
from fedrec.models import load_model
from fedrec.models.recommender import train_alone
from fedrec.privacy.ledger import Budget, Ledger
from fedrec.privacy.mechanisms import PlannedRelease
from fedrec.privacy.spec import Mode, PrivacySpec
from fedrec.shop.adoption import LOCAL, judge_and_keep
from fedrec.shop.api.live_shop import LiveShop
from fedrec.shop.lists.serving_files import PreparationSettings, open_serving, prepare
from fedrec.shop.lists.serving_settings import ServingSettings, Split
from fedrec.shop.member import LEDGER_FILE, MODELS_FOLDER
from fedrec.shop.own_data import StoreData
from fedrec.shop.personalise import ShopPersonalisation
from fedrec.shop.store.rows import Event, EventKind, Impression, Item, KeyScope
from fedrec.shop.store.store import Store

NAME = "nordmarkt"
RUN = "spring-20261021T081500Z-4e648a"
NUM_DAYS = 30
DAY_S = 86_400.0
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"


class Bazaar:
    """The shop's folder, its open shop and its keys."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder, self.name = folder, NAME
        self.store = Store.open(f"sqlite:///{folder / 'store.sqlite'}")
        self.keys = {scope: self.store.new_key(NAME, scope.name.lower(), scope)[1] for scope in KeyScope}
        self.now = time.time()
        self.shoppers = self._fill()
        self.spent = self._spend()
        self._train()
        self._show()
        self.live = LiveShop(
            NAME,
            folder,
            self.store,
            ServingSettings(split=Split(LOCAL, 0.3)),
            open_model=open_serving,
            split_key=b"k" * 32,
        )

    def _fill(self) -> list[str]:
        market = SyntheticSettings(num_shoppers=900, num_shops=2, num_items=320, size_ratio=8, num_tastes=16)
        events, items, _ = generate(market, seed=4)
        self.events, self.items = events, items
        table = events.table
        own = table[table["shop"] == table["shop"].cat.categories[0]]
        late = self.now - own["timestamp"].max() - 3600  # the marketplace's year ends an hour ago
        self.store.append_events(
            Event(str(row.shopper), str(row.item), EventKind.PURCHASE, float(row.timestamp) + late)
            for row in own.itertuples()
        )
        sold = {*own["item"].astype(str), *items.table.index[:12]}  # some of them nobody bought yet
        self.store.put_items(
            Item(str(row.Index), str(row.title), str(row.category), price=float(row.price))
            for row in items.table.loc[sorted(sold)].itertuples()
        )
        self.store.put_items([Item("hostile", HOSTILE, "<b>bold</b>", price=1.0)])
        return sorted(set(own["shopper"].astype(str)))

    def _train(self) -> None:
        """The shop's own model, and one of everybody's events, judged and served instead."""
        models, personal = self.folder / MODELS_FOLDER, ShopPersonalisation()
        data, public = StoreData(self.store, NAME, validation="leave-last").read()
        place = {str(key): position for position, key in enumerate(public.items.tolist())}
        table = self.events.table
        known = table[table["item"].astype(str).isin(place)]
        codes = (known["shop"].astype(str) + known["shopper"].astype(str)).astype("category").cat.codes
        rows = np.zeros((codes.max() + 1, public.num_items), np.float32)
        rows[codes, [place[item] for item in known["item"].astype(str)]] = 1
        model = load_model("ease")
        everybody = train_alone(model, data.train.__class__(rows), public)
        judge_and_keep(
            models,
            RUN,
            model,
            everybody,
            public,
            data=data,
            positions=np.arange(public.num_items),
            shop_public=public,
            settings=personal,
            mode="distributed",
        )
        for version in (LOCAL, RUN):
            prepare(
                models,
                version,
                data.train,
                public,
                settings=PreparationSettings(),
                personalisation=personal,
                spent_epsilon=self.spent,
            )

    def _spend(self) -> float:
        """Two private runs, a fortnight apart."""
        now = datetime.fromtimestamp(self.now, UTC) - timedelta(days=NUM_DAYS)
        ledger = Ledger.open(self.folder / LEDGER_FILE, NAME, budget=Budget(4.0, 2e-6), clock=lambda: now)
        spec = PrivacySpec(1.0, 1e-6, Mode.DISTRIBUTED, public_shoppers=400, max_shoppers=400, min_shops=3, colluders=1)
        for run in ("winter-20260914T071000Z-0d1c77", RUN):
            releases = [PlannedRelease("popularity", 1.0, 9.0), *[PlannedRelease("statistics", 1.0, 7.0)] * 3]
            ledger.reserve(run, spec, releases, is_masked=True)
            for place, release in enumerate(releases):
                now += timedelta(hours=20)
                ledger.charge(run, place, b"p" * 32, release, b"sum")
            ledger.finish(run)
            now += timedelta(days=13)
        spent = ledger.spent().epsilon
        ledger.close()
        return spent

    def _show(self) -> None:
        rng = np.random.default_rng(7)
        impressions, clicks = [], []
        midnight = self.now - self.now % DAY_S
        items = sorted({one.item for one in self.store.events_after(0)})
        for day in range(NUM_DAYS):
            for place in range(int(rng.integers(70, 130))):
                at = midnight - (NUM_DAYS - day) * DAY_S + 600.0 * place
                name = str(rng.choice(["home", "similar", "cart"], p=[0.6, 0.3, 0.1]))
                arm = "b" if rng.random() < 0.3 else "a"
                shopper = str(rng.choice(self.shoppers))
                list_id = f"list-{day}-{place}"
                version = LOCAL if arm == "b" else RUN
                impressions.append(Impression(list_id, name, version, arm, at, shopper))
                if rng.random() < {"a": 0.16, "b": 0.12}[arm] + 0.002 * day:
                    clicks.append(Event(shopper, str(rng.choice(items)), EventKind.VIEW, at + 9, list_id=list_id))
        self.store.add_impressions(impressions)
        self.store.append_events(clicks)
