"""What a shop's agent trains on when its events are in a store.

**Guarantee:** data read after an erasure is what it would be had the shopper never been there; `StoreData.is_stale`
says when it has to be read again.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd

from fedrec.data.events import Events
from fedrec.data.items import Items, build_items, clean_catalogue
from fedrec.data.shops import ShopData
from fedrec.errors import DataError
from fedrec.models.content import content_features
from fedrec.models.recommender import PublicInputs
from fedrec.shop.enrol import own_data
from fedrec.shop.store.rows import NEGATIVE_KINDS, TRAINING_KINDS, EventKind, Item
from fedrec.shop.store.store import Store


class NothingToTrainOn(DataError):
    """A store without an event that says that a shopper has an item."""


class StoreData:
    """A store's events as training data.

    Args:
        store: the shop's.
        shop: its name.
        validation: see `fedrec.shop.enrol.read_own_data`.
        kinds: events that say that a shopper has an item.
        min_rating: ratings below it say no such thing; None = all do.
    """

    def __init__(
        self,
        store: Store,
        shop: str,
        *,
        validation: str,
        kinds: Collection[EventKind] = TRAINING_KINDS,
        min_rating: float | None = None,
    ) -> None:
        self._store, self._shop, self._validation = store, shop, validation
        self._kinds, self._min_rating = kinds, min_rating
        self._generation: int | None = None

    @property
    def is_stale(self) -> bool:
        """Whether a shopper was erased since it was read, so that nothing may be released from it any more."""
        return self._store.generation() != self._generation

    def read(self) -> tuple[ShopData, PublicInputs]:
        """As `fedrec.shop.enrol.read_own_data`.

        Raises:
            NothingToTrainOn: no event is one to train on.
        """
        self._generation = self._store.generation()  # first: who is erased meanwhile makes it stale
        events = training_events(self._store, self._kinds, self._min_rating)
        named, items = _with_catalogue(self._store, events)
        return own_data(named, items, self._shop, validation=self._validation)


def training_events(
    store: Store, kinds: Collection[EventKind] = TRAINING_KINDS, min_rating: float | None = None
) -> Events:
    """A store's events to train on, the oldest first.

    An item that she sent back or disliked after she last took it is none of hers.

    Args:
        kinds: events that say that a shopper has an item.
        min_rating: ratings below it say no such thing; None = all do.
    Raises:
        NothingToTrainOn: there is none.
    """
    rows = store.training_rows(kinds)
    columns = list(zip(*rows, strict=True)) or [()] * 5
    shopper, item = (pd.Categorical(column) for column in columns[:2])
    is_negative = np.array([kind in NEGATIVE_KINDS for kind in columns[2]], bool)
    value = np.array(columns[3], np.float64)  # None becomes NaN
    is_rating = np.array([kind == EventKind.RATING for kind in columns[2]], bool)
    is_low = is_rating & (value < (-np.inf if min_rating is None else min_rating))
    pair = shopper.codes.astype(np.int64) * max(len(item.categories), 1) + item.codes
    is_wanted = ~is_negative & ~is_low & ~_is_taken_back(pair, is_negative)
    if not is_wanted.any():
        raise NothingToTrainOn(
            f"the store has no event of kind {', '.join(sorted(kinds))} to train on; import events with "
            "fedrec shop import, or name other kinds as train_on in [data]"
        )
    timestamp = np.array(columns[4], np.float64)
    table = pd.DataFrame(
        {
            "shopper": shopper,
            "item": item,
            "timestamp": np.where(timestamp > 0, timestamp, np.nan),
            "order": np.arange(len(rows)),
            "rating": np.where(is_rating, value, np.nan).astype(np.float32),
        }
    )[is_wanted].reset_index(drop=True)
    for name in ("shopper", "item"):
        table[name] = table[name].cat.remove_unused_categories()
    return Events(table)


def catalogue_of(store: Store) -> PublicInputs:
    """The items that are sold, with their texts; nothing of what happened to them."""
    known = sorted(_sold(store), key=lambda one: one.key)
    keys = np.array([one.key for one in known], dtype=object)
    return PublicInputs(keys, content_features([one.title for one in known], [one.category for one in known]))


def _sold(store: Store) -> list[Item]:
    """All items that are sold, in the order of their last change."""
    return [change.item for change in store.items_after(0, limit=2**31 - 1) if not change.is_deleted]


def _is_taken_back(pair: np.ndarray, is_negative: np.ndarray) -> np.ndarray:
    """bool, (num_rows,): rows whose (shopper, item) pair is a negative one the last time that it occurs."""
    last = pd.Series(is_negative).groupby(pair).last()
    return last.loc[pair].to_numpy() if len(pair) else np.zeros(0, bool)


def _with_catalogue(store: Store, events: Events) -> tuple[Events, Items]:
    """The events, and all items that they or the store's catalogue name."""
    known = _sold(store)
    catalogue = None
    if known:
        rows = pd.DataFrame([(one.key, one.title, one.category, one.price) for one in known])
        catalogue = clean_catalogue(rows.set_axis(["item", "title", "category", "price"], axis=1))[0]
    (named,), items, _ = build_items([events], catalogue)
    return named, items
