"""A coordinator's folder and four enrolled shops with small histories; messages are handed over by the tests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from fedrec.data.shops import ShopData
from fedrec.federation.anchors import AnchorBook
from fedrec.federation.enrolment import Offer, roster_fingerprint
from fedrec.flower.deployment import (
    HEADS_FILE,
    IDENTITY_FILE,
    make_offer,
    read_enrolments,
)
from fedrec.models.recommender import PublicInputs
from fedrec.role_config import COORDINATOR_FILE, SHOP_FILE, read_coordinator, read_shop
from fedrec.secure_aggregation.keys import IdentityKey
from fedrec.shop.member import Member

NUM_ITEMS = 30
SHOPS = ("ant", "bee", "cat", "dog")
ITEMS = np.array([f"item-{place:02d}" for place in range(NUM_ITEMS)], dtype=object)


def small_shop(name: str, *, num_shoppers: int = 60, seed: int = 0) -> ShopData:
    """Shoppers who buy neighbours on a ring of items; one bought item of each is held back to judge models on."""
    rng = np.random.default_rng([seed, *name.encode()])
    train = np.zeros((num_shoppers, NUM_ITEMS), np.float32)
    validation = np.zeros_like(train)
    for row in range(num_shoppers):
        start = rng.integers(NUM_ITEMS)
        bought = (start + np.arange(6)) % NUM_ITEMS
        validation[row, bought[rng.integers(6)]] = 1
        train[row, bought] = 1
    train[validation > 0] = 0
    none = sparse.csr_matrix(train.shape, dtype=np.float32)
    shoppers = np.array([f"{name}-{row}" for row in range(num_shoppers)])
    missing = np.zeros(num_shoppers, np.int64)
    positions = np.arange(NUM_ITEMS)
    parts = (sparse.csr_matrix(train), sparse.csr_matrix(validation))
    return ShopData(name, shoppers, ITEMS, positions, *parts, none, none, missing)


@dataclass(frozen=True)
class Town:
    """The folders of a federation."""

    folder: Path

    @property
    def coordinator(self) -> Path:
        return self.folder / "coordinator"

    @property
    def key(self) -> IdentityKey:
        return IdentityKey.load(self.coordinator / IDENTITY_FILE)

    def change(self, shop: str | None, **values: object) -> None:
        """Rewrite lines of a shop's file, or of the coordinator's."""
        path = self.coordinator / COORDINATOR_FILE if shop is None else self.folder / shop / SHOP_FILE
        text = path.read_text()
        for name, value in values.items():
            written = f'"{value}"' if isinstance(value, str) else str(value).lower()
            text, count = re.subn(rf"(?m)^{name} = [^#\n]*", f"{name} = {written}  ", text)
            assert count == 1, name
        path.write_text(text)

    def fingerprint(self) -> str:
        return roster_fingerprint({name: one.key for name, one in read_enrolments(self.coordinator).items()})

    def offer(self, run_id: str = "run-1") -> Offer:
        return make_offer(read_coordinator(self.coordinator), read_enrolments(self.coordinator), run_id)

    def member(self, shop: str = "ant", **data: Any) -> Member:
        settings = read_shop(self.folder / shop)
        return Member(self.folder / shop, settings.member(), small_shop(shop, **data), PublicInputs(ITEMS))

    def book(self) -> AnchorBook:
        """The heads that the coordinator keeps."""
        return AnchorBook(self.coordinator / HEADS_FILE, self.key)
