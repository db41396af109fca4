"""A generated marketplace with known tastes, so that everything runs and can be checked with nothing
downloaded.

Every shopper mixes a few tastes, every taste is a distribution over items, and a shop sells part of the
items: P(item | shop, shopper, time) = sum over tastes of share(shopper, taste, time) x P(item | shop,
taste, period). Further items of a basket are, now and then, complements of its first item.

Each shop's events depend on the settings, the seed and the shop's number alone, so shops can be generated
one by one; nothing depends on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedrec.data.events import Events
from fedrec.data.items import Items
from fedrec.data.marketplace import (
    PERIODS,
    GroundTruth,
    Stream,
    SyntheticSettings,
    item_names,
    make_market,
    numbered,
    random_stream,
    shopper_names,
)

__all__ = ["GroundTruth", "SyntheticSettings", "generate", "generate_shop"]

_START_S = 1_704_067_200.0  # 2024-01-01 UTC
_YEAR_S = 365 * 86_400.0
_MAX_EVENTS = 1_000  # of a shopper


def generate(settings: SyntheticSettings, *, seed: int) -> tuple[Events, Items, GroundTruth]:
    """Generate the whole marketplace, shop by shop into preallocated columns.

    Returns:
        Events with shop, shopper, item, timestamp, quantity, price and basket (numbered within a shopper);
        items with titles, categories and prices, all shared; and what is true. Shopper ids repeat between
        shops: they are customer numbers, and the same number in two shops is two people.
    """
    items, truth = make_market(settings, seed)
    counts = [_activity(settings, seed, place) for place in range(settings.num_shops)]
    columns = _Columns.empty(sum(int(count.sum()) for count in counts))
    start = 0
    for place, count in enumerate(counts):
        stop = start + int(count.sum())
        _fill_shop(truth, place, count, columns.view(start, stop))
        start = stop
    return columns.events(settings), items, truth


def generate_shop(truth: GroundTruth, shop: str) -> Events:
    """One shop's events alone: the same rows as in the whole marketplace."""
    place = truth.place_of(shop)
    counts = _activity(truth.settings, truth.seed, place)
    columns = _Columns.empty(int(counts.sum()))
    _fill_shop(truth, place, counts, columns)
    return columns.events(truth.settings)


@dataclass(frozen=True)
class _Columns:
    """The events table as bare arrays, (num_events,) each."""

    shop: np.ndarray
    shopper: np.ndarray
    item: np.ndarray
    timestamp: np.ndarray
    quantity: np.ndarray
    price: np.ndarray
    basket: np.ndarray

    @classmethod
    def empty(cls, size: int) -> _Columns:
        kinds = (np.int32, np.int32, np.int32, np.float64, np.float32, np.float32, np.int16)
        return cls(*(np.empty(size, kind) for kind in kinds))

    def view(self, start: int, stop: int) -> _Columns:
        return _Columns(*(column[start:stop] for column in vars(self).values()))

    def events(self, settings: SyntheticSettings) -> Events:
        names = {
            "shop": settings.shop_names,
            "shopper": shopper_names(int(settings.shop_sizes.max())),
            "item": item_names(settings.num_items),
            "basket": numbered("basket-", _MAX_EVENTS),
        }
        table = {
            name: pd.Categorical.from_codes(column, categories=pd.Index(names[name], dtype="str"))
            if name in names
            else column
            for name, column in vars(self).items()
        }
        return Events(pd.DataFrame(table, copy=False))


def _activity(settings: SyntheticSettings, seed: int, place: int) -> np.ndarray:
    """int64, (num_shop_shoppers,): number of events of each shopper; long-tailed, at least 3."""
    rng = random_stream(seed, Stream.ACTIVITY, place)
    spread = 0.8
    level = np.log(settings.mean_events - 2.5) - spread**2 / 2
    extra = rng.lognormal(level, spread, size=int(settings.shop_sizes[place]))
    return np.minimum(3 + extra.astype(np.int64), _MAX_EVENTS)


def _fill_shop(truth: GroundTruth, place: int, counts: np.ndarray, out: _Columns) -> None:
    """Write one shop's events, sorted by shopper and time."""
    settings = truth.settings
    rng = random_stream(truth.seed, Stream.EVENTS, place)
    num_events = int(counts.sum())
    shopper = np.repeat(np.arange(len(counts)), counts)
    starts_basket = rng.random(num_events) < 1 / settings.mean_basket
    starts_basket[np.cumsum(counts) - counts] = True
    basket = np.cumsum(starts_basket) - 1
    owner = shopper[starts_basket]
    # Sorting owner + share sorts the baskets of each shopper by time.
    moment = np.sort(owner + rng.random(len(owner)) * (1 - 1e-9)) - owner
    joined = 0.6 * rng.random(len(counts))[owner]
    time = (joined + (1 - joined) * moment).clip(0, 1 - 1e-9)
    first_basket = np.searchsorted(owner, np.arange(len(counts)))
    sold = truth.assortment(str(settings.shop_names[place]))
    chosen = _draw_items(truth, place, sold, shopper, time[basket], rng)
    chosen = _add_complements(truth, sold, chosen, starts_basket, basket, time[basket], rng)
    out.shop[:] = place
    out.shopper[:] = shopper
    out.item[:] = chosen
    out.timestamp[:] = _START_S + np.floor(time * _YEAR_S)[basket]
    out.quantity[:] = rng.geometric(0.75, num_events)
    level = 0.95 + 0.1 * rng.random()
    is_sale = rng.random(num_events) < 0.1
    out.price[:] = np.round(truth.price[chosen] * level * np.where(is_sale, 0.8, 1.0), 2)
    out.basket[:] = basket - first_basket[shopper]


def _draw_items(
    truth: GroundTruth,
    place: int,
    sold: np.ndarray,
    shopper: np.ndarray,
    time: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """int64, (num_events,): an item for each event by the shopper's tastes at the time."""
    tastes, shares = truth.favourites(place)
    num_events, num_tastes = len(shopper), truth.settings.num_tastes + 1
    at_end = (rng.random(num_events) < truth.settings.drift * time).astype(np.int64)
    ends = np.cumsum(shares, axis=2)[..., :-1]  # (2, num_shoppers, favourites)
    which = (rng.random(num_events)[:, None] >= ends[at_end, shopper]).sum(axis=1)
    taste = tastes[at_end, shopper, which]
    period = np.minimum((time * PERIODS).astype(np.int64), PERIODS - 1)
    # One sorted list of all cumulative distributions, the g-th shifted by g, needs a single search.
    table = np.stack([truth.by_taste(sold, number) for number in range(PERIODS)])
    ladder = np.cumsum(table, axis=2).reshape(PERIODS * num_tastes, len(sold))
    ladder /= ladder[:, -1:]
    ladder += np.arange(len(ladder))[:, None]
    row = period * num_tastes + taste
    found = np.searchsorted(ladder.ravel(), row + rng.random(num_events) * (1 - 1e-9), side="right")
    return sold[np.minimum(found - row * len(sold), len(sold) - 1)]


def _add_complements(
    truth: GroundTruth,
    sold: np.ndarray,
    chosen: np.ndarray,
    starts_basket: np.ndarray,
    basket: np.ndarray,
    time: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """The items, some replaced by a complement of the basket's first item where the shop sells it at the time."""
    first = chosen[starts_basket][basket]
    other = truth.complements[first, rng.integers(0, truth.complements.shape[1], len(chosen))]
    is_sold = np.zeros(truth.settings.num_items, bool)
    is_sold[sold] = True
    takes = ~starts_basket & (rng.random(len(chosen)) < truth.settings.complements)
    takes &= is_sold[other] & (truth.release[other] <= np.floor(time * PERIODS) / PERIODS)
    return np.where(takes, other, chosen)
