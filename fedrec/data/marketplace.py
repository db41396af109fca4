"""What the generated marketplace is before anybody buys: items, tastes, shops' assortments, all known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pandas as pd

from fedrec.data.items import Items
from fedrec.data.synthetic_words import BRAND_ENDS, BRAND_STARTS, CATEGORIES, STYLES, VARIANTS
from fedrec.errors import ConfigError, DataError

PERIODS = 8
"""Parts of the year; the assortment changes at the start of each."""

_VECTOR_SIZE = 16
_FAVOURITES = 3  # tastes of a shopper


class Stream(IntEnum):
    """What random numbers are for; each purpose and shop has a stream of its own."""

    MARKET = 0
    SHOP = 1
    ACTIVITY = 2
    TASTES = 3
    EVENTS = 4


@dataclass(frozen=True)
class SyntheticSettings:
    """What marketplace to generate.

    Attributes:
        num_shoppers: of all shops together.
        num_shops: their sizes are evenly spaced on a log scale, the largest ``size_ratio`` times the
            smallest.
        num_items: of all shops together.
        size_ratio: >= 1.
        mean_events: events of a shopper, on average; > 3.
        num_tastes: distributions over items that shoppers mix.
        focus: how strongly a taste prefers items near its centre; 0 = everybody buys what is popular.
        zipf: exponent of the items' popularity weights.
        drift: share of a shopper's taste that is another one by the end of the year, 0..1.
        new_items: share of items that appear during the year, 0..1 (1 excluded).
        complements: chance that a further item of a basket goes with its first item, 0..1.
        mean_basket: items of a basket, on average; >= 1.
    """

    num_shoppers: int = 15_000
    num_shops: int = 10
    num_items: int = 3_000
    size_ratio: float = 100.0
    mean_events: float = 14.0
    num_tastes: int = 64
    focus: float = 10.0
    zipf: float = 0.65
    drift: float = 0.3
    new_items: float = 0.2
    complements: float = 0.25
    mean_basket: float = 2.5

    def __post_init__(self) -> None:
        wholes = {"num_shoppers": self.num_shops, "num_shops": 1, "num_items": 1, "num_tastes": 1}
        for name, least in wholes.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} is {value}; it must be a whole number, at least {least}")
        limits = {
            "size_ratio": (1, 1e6),
            "mean_events": (3.01, 500),
            "focus": (0, 50),
            "zipf": (0, 3),
            "drift": (0, 1),
            "new_items": (0, 0.95),
            "complements": (0, 1),
            "mean_basket": (1, 50),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be from {low} to {high}")

    @property
    def shop_names(self) -> np.ndarray:
        """str (object), (num_shops,); from the smallest shop to the largest."""
        width = len(str(self.num_shops))
        return np.array([f"shop-{place:0{width}d}" for place in range(1, self.num_shops + 1)], dtype=object)

    @property
    def shop_sizes(self) -> np.ndarray:
        """int64, (num_shops,); number of shoppers of each shop, ascending."""
        weights = np.geomspace(1.0, self.size_ratio, self.num_shops)
        ends = np.cumsum(weights) / weights.sum() * (self.num_shoppers - self.num_shops)
        return 1 + np.diff(np.round(ends).astype(np.int64), prepend=0)


@dataclass(frozen=True)
class GroundTruth:
    """What the marketplace really is; items are rows of the item table, tastes the columns of ``affinity``.

    Attributes:
        settings: of the marketplace.
        seed: of the marketplace.
        popularity: float64, (num_items,); popularity weights, sum 1.
        vectors: float64, (num_items, 16); item vectors of length 1.
        centres: float64, (num_tastes, 16); taste centres of length 1.
        affinity: float64, (num_items, num_tastes + 1); unnormalised P(item | taste); the last taste is mere
            popularity.
        release: float64, (num_items,); share of the year after which the item is sold, 0 = from the start.
        complements: int32, (num_items, 2); items that go with each item.
        category: int64, (num_items,).
        price: float64, (num_items,).
    """

    settings: SyntheticSettings
    seed: int
    popularity: np.ndarray
    vectors: np.ndarray
    centres: np.ndarray
    affinity: np.ndarray
    release: np.ndarray
    complements: np.ndarray
    category: np.ndarray
    price: np.ndarray

    def __repr__(self) -> str:
        return f"GroundTruth({self.settings}, seed={self.seed})"

    def assortment(self, shop: str) -> np.ndarray:
        """int64, sorted: the items that the shop sells, by popularity with a tilt towards some categories."""
        place = self.place_of(shop)
        sizes = self.settings.shop_sizes
        share = 0.6 * (sizes[place] / sizes[-1]) ** 0.3
        count = max(1, min(self.settings.num_items, round(self.settings.num_items * share)))
        rng = random_stream(self.seed, Stream.SHOP, place)
        tilt = np.log(rng.gamma(2.0, size=len(CATEGORIES)) + 1e-2)
        score = np.log(self.popularity) + tilt[self.category] + rng.gumbel(size=len(self.popularity))
        score += 1e6 * (self.release == 0) * (score >= score[self.release == 0].max())  # one item is there at once
        return np.sort(np.argsort(-score, kind="stable")[:count])

    def tastes(self, shop: str) -> tuple[np.ndarray, np.ndarray]:
        """What the shop's shoppers like, at the start of the year and (by the share ``drift``) at its end.

        Returns:
            float64, (2, num_shop_shoppers, num_tastes + 1); rows sum to 1.
        """
        tastes, shares = self.favourites(self.place_of(shop))
        mixed = np.zeros((2, tastes.shape[1], self.settings.num_tastes + 1))
        rows = np.arange(tastes.shape[1])[:, None]
        for moment in (0, 1):
            np.add.at(mixed[moment], (rows, tastes[moment]), shares[moment])
        return mixed[0], mixed[1]

    def probability(
        self, shop: str, shoppers: Sequence[str] | np.ndarray | None = None, *, time: float = 1.0
    ) -> np.ndarray:
        """P(next item) by taste alone (no complement, nothing excluded that is known), computed when asked.

        Args:
            shop: name.
            shoppers: ids, in the order of the result's rows; None = all of the shop's, sorted.
            time: share of the year that has passed, 0..1.
        Returns:
            float64, (num_shoppers, num_items); rows sum to 1, 0 where the shop does not (yet) sell the item.
        """
        if not 0 <= time <= 1:
            raise ConfigError(f"time is {time}; it must be a share of the year, from 0 to 1")
        start, end = self.tastes(shop)
        if shoppers is not None:
            rows = self._rows(shop, shoppers)
            start, end = start[rows], end[rows]
        weight = self.settings.drift * time
        sold = self.assortment(shop)
        period = min(int(time * PERIODS), PERIODS - 1)
        result = np.zeros((len(start), self.settings.num_items))
        result[:, sold] = ((1 - weight) * start + weight * end) @ self.by_taste(sold, period)
        return result

    def place_of(self, shop: str) -> int:
        """The shop's number: 0 for the smallest."""
        found = np.flatnonzero(self.settings.shop_names == shop)
        if len(found) == 0:
            raise DataError(f"the marketplace has no shop '{shop}'; it has {', '.join(self.settings.shop_names)}")
        return int(found[0])

    def _rows(self, shop: str, shoppers: Sequence[str] | np.ndarray) -> np.ndarray:
        size = int(self.settings.shop_sizes[self.place_of(shop)])
        rows = pd.Index(shopper_names(size)).get_indexer(pd.Index(list(shoppers)))
        if (rows < 0).any():
            raise DataError(f"{int((rows < 0).sum())} of the shoppers are not in shop '{shop}'")
        return rows

    def by_taste(self, sold: np.ndarray, period: int) -> np.ndarray:
        """float64, (num_tastes + 1, num_sold): P(item | taste) among the items on sale in the period."""
        weights = self.affinity[sold].T * (self.release[sold] <= period / PERIODS)
        return weights / weights.sum(axis=1, keepdims=True)

    def favourites(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Tastes int64 and shares float64, (2, num_shop_shoppers, favourites + 1) each, at start and end of year."""
        settings = self.settings
        size = int(settings.shop_sizes[place])
        sold = self.assortment(str(settings.shop_names[place]))
        reach = self.affinity[sold, :-1].sum(axis=0) / self.affinity[:, :-1].sum(axis=0)
        rng = random_stream(self.seed, Stream.TASTES, place)
        ends = np.cumsum(reach) / reach.sum()
        shape = (2, size, _FAVOURITES)
        liked = np.minimum(np.searchsorted(ends, rng.random(shape), side="right"), settings.num_tastes - 1)
        popular = np.full((2, size, 1), settings.num_tastes)
        shares = rng.gamma(0.7, size=shape) + 1e-6
        shares *= 0.85 / shares.sum(axis=2, keepdims=True)
        return np.concatenate([liked, popular], axis=2), np.concatenate([shares, np.full((2, size, 1), 0.15)], axis=2)


def random_stream(seed: int, purpose: int, place: int = 0) -> np.random.Generator:
    """Random numbers for one purpose in one shop, by its place; independent of every other stream."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, place)))


def numbered(prefix: str, count: int) -> np.ndarray:
    """str (object), (count,): prefix1, prefix2, ... with leading zeros, so that they sort by number."""
    width = len(str(count))
    return np.array([f"{prefix}{number:0{width}d}" for number in range(1, count + 1)], dtype=object)


def shopper_names(count: int) -> np.ndarray:
    """str (object), (count,): a shop's customer numbers."""
    return np.array([f"c{number:07d}" for number in range(1, count + 1)], dtype=object)


def item_names(count: int) -> np.ndarray:
    """str (object), (count,): item keys, sorted."""
    return numbered("item-", count)


def make_market(settings: SyntheticSettings, seed: int) -> tuple[Items, GroundTruth]:
    """Items and tastes: what all shops have in common."""
    rng = random_stream(seed, Stream.MARKET)
    size = settings.num_items
    names = list(CATEGORIES)
    num_types = len(CATEGORIES[names[0]])
    weights = rng.permutation((1.0 + np.arange(size)) ** -settings.zipf)
    popularity = weights / weights.sum()
    kind = rng.integers(0, len(names) * num_types, size)  # type, over all categories
    category = kind // num_types
    style = rng.integers(0, len(STYLES), size)
    num_brands = len(BRAND_STARTS) * len(BRAND_ENDS)
    brand = (category * 5 + rng.integers(0, 8, size)) % num_brands  # neighbouring categories share some brands
    parts = {
        "category": rng.standard_normal((len(names), _VECTOR_SIZE)),
        "kind": rng.standard_normal((len(names) * num_types, _VECTOR_SIZE)),
        "style": rng.standard_normal((len(STYLES), _VECTOR_SIZE)),
        "brand": rng.standard_normal((num_brands, _VECTOR_SIZE)),
    }
    vectors = _unit(
        parts["category"][category]
        + 0.7 * parts["kind"][kind]
        + 0.7 * parts["style"][style]
        + 0.5 * parts["brand"][brand]
        + 0.4 * rng.standard_normal((size, _VECTOR_SIZE))
    )
    count = settings.num_tastes
    centres = _unit(
        parts["category"][rng.integers(0, len(names), count)]
        + 0.5 * parts["kind"][rng.integers(0, len(names) * num_types, count)]
        + 0.8 * parts["style"][rng.integers(0, len(STYLES), count)]
        + 0.5 * parts["brand"][rng.integers(0, num_brands, count)]
    )
    nearness = np.einsum("id,kd->ik", vectors, centres)  # not @: its rounding depends on the number of threads
    affinity = popularity[:, None] * np.exp(settings.focus * np.append(nearness, np.zeros((size, 1)), axis=1))
    release = np.where(rng.random(size) < settings.new_items, rng.random(size), 0.0)
    release[np.argmax(popularity)] = 0.0
    price = np.round(np.exp(rng.normal(2.8, 0.5, len(names))[category] + rng.normal(0, 0.4, size)), 2)
    complements = _complements(kind, style, popularity, num_types, rng)
    truth = GroundTruth(settings, seed, popularity, vectors, centres, affinity, release, complements, category, price)
    return _items(kind, style, brand, price, rng.integers(0, len(VARIANTS), size)), truth


def _complements(
    kind: np.ndarray, style: np.ndarray, popularity: np.ndarray, num_types: int, rng: np.random.Generator
) -> np.ndarray:
    """int32, (num_items, 2): popular items of the next type of the category, of the same style where there are any."""
    chosen = np.tile(np.arange(len(kind), dtype=np.int32)[:, None], 2)
    for one in np.unique(kind):
        partner = one - one % num_types + (one + 1) % num_types
        candidates = np.flatnonzero(kind == partner)
        rows = np.flatnonzero(kind == one)
        if len(candidates):
            likes = np.log(popularity[candidates]) + 3.0 * (style[rows][:, None] == style[candidates])
            likes = likes + rng.gumbel(size=(len(rows), len(candidates)))
            best = np.argsort(-likes, axis=1, kind="stable")[:, [0, min(1, len(candidates) - 1)]]
            chosen[rows] = candidates[best]
    return chosen


def _items(kind: np.ndarray, style: np.ndarray, brand: np.ndarray, price: np.ndarray, variant: np.ndarray) -> Items:
    """The public catalogue: titles say brand, style, type and variant."""
    labels = [(name, word) for name, words in CATEGORIES.items() for word in words]
    brands = [start + end for start in BRAND_STARTS for end in BRAND_ENDS]
    rows = zip(brand, style, kind, variant, strict=True)
    titles = [f"{brands[b]} {STYLES[s]} {labels[k][1]} {VARIANTS[v]}" for b, s, k, v in rows]
    table = pd.DataFrame(
        {
            "title": pd.array(titles, dtype="str"),
            "category": pd.array([labels[k][0] for k in kind], dtype="str"),
            "price": price.astype(np.float32),
            "is_shared": np.ones(len(kind), bool),
        },
        index=pd.Index(item_names(len(kind)), dtype="str", name="item"),
    )
    return Items(table)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
