"""Who is a shop, and what one shop holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from fedrec.data.events import Events
from fedrec.data.histories import codes_of, name_keys
from fedrec.data.items import Items
from fedrec.data.partitions import by_category, divide, divide_skewed, taste_groups
from fedrec.data.split import Part, Split, concatenate
from fedrec.errors import ConfigError, DataError

_DEFAULT_ALPHA = 0.5


@dataclass(frozen=True)
class ShopData:
    """What one shop holds, in its own item space (its catalogue).

    Attributes:
        name: shop id.
        shoppers: str, (num_shoppers,); ids, sorted.
        items: str, (num_shop_items,); keys of the shop's catalogue, sorted.
        positions: int64, (num_shop_items,): place in the federation's shared item list, -1 = known here
            alone.
        train, validation, test, fold_in: float32 CSR, (num_shoppers, num_shop_items); 1 where the shopper
            had the item in that part of the split (explicit zeros never). ``fold_in`` is history of
            shoppers that must not be trained on (split ``strong``), else empty.
        missing_test: int64, (num_shoppers,): test rows whose item is not in the shop's catalogue.
    """

    name: str
    shoppers: np.ndarray
    items: np.ndarray
    positions: np.ndarray
    train: sparse.csr_matrix
    validation: sparse.csr_matrix
    test: sparse.csr_matrix
    fold_in: sparse.csr_matrix
    missing_test: np.ndarray

    def shared(self, histories: sparse.csr_matrix, num_shared: int) -> sparse.csr_matrix:
        """The same rows in the federation's item space, (num_shoppers, num_shared); own items fall away."""
        coo = histories.tocoo()
        columns = self.positions[coo.col]
        keep = columns >= 0
        return sparse.csr_matrix(
            (coo.data[keep], (coo.row[keep], columns[keep])), shape=(histories.shape[0], num_shared)
        )


def final_rows(
    train: sparse.csr_matrix, validation: sparse.csr_matrix, fold_in: sparse.csr_matrix
) -> sparse.csr_matrix:
    """What a final model may learn from: training and validation items, none of shoppers that are only folded in.

    Args:
        train, validation, fold_in: float32 CSR, (num_shoppers, num_items), as in `ShopData`.
    """
    is_trained = np.diff(fold_in.indptr) == 0
    return (train + sparse.diags(is_trained.astype(np.float32)) @ validation).tocsr()


def assign(events: Events, rule: str | None, *, seed: int, items: Items | None = None) -> Events:
    """Say which shop each event belongs to.

    - ``column`` (or None): the ``shop`` column as it is.
    - ``random:N``: shoppers at random in N shops of equal size (to within one).
    - ``skewed:N`` or ``skewed:N:ALPHA``: shops differ in taste and size. Shoppers are grouped by the
      category they bought most (without categories: by clusters of what they bought); each group is divided
      over the N shops by a draw from Dirichlet(ALPHA), default 0.5: the smaller, the more skewed. Every
      shop gets at least one shopper.
      Source: label skew of Li et al. 2022, arXiv:2102.02079, with groups in place of labels.
    - ``category``: an event belongs to the shop of its item's first category; a shopper who buys in several
      categories has an account in several shops.

    The random and skewed rules replace a ``shop`` column; where the same shopper id occurs in two old shops
    the ids become "<old shop>/<id>", so that two people stay two.

    Args:
        events: cleaned events.
        rule: as above.
        seed: of the draws; they depend on names, not on the order of rows.
        items: catalogue whose categories the rules ``skewed`` and ``category`` use first; else the events'
            own.
    Raises:
        ConfigError: the rule, N or ALPHA is unknown or out of range.
        DataError: no shop column, or no categories where the rule needs them.
    """
    name, numbers = _parse_rule(rule)
    if name == "column":
        codes_of(events, "shop")
        return events
    if len(events) == 0:
        raise DataError("there are no events to divide into shops")
    if name == "category":
        codes, names = by_category(events, items)
        return _with_shop(events.table, codes, names)
    table = _unique_shoppers(events)
    shopper, shopper_names = codes_of(Events(table), "shopper")
    is_present = np.bincount(shopper, minlength=len(shopper_names)) > 0
    num_shops = int(numbers[0])
    if num_shops > int(is_present.sum()):
        raise ConfigError(f"'{rule}' wants {num_shops} shops, but there are only {int(is_present.sum())} shoppers")
    keys = name_keys(shopper_names, seed)
    if name == "random":
        shop_of = divide(keys, is_present, num_shops)
    else:
        groups = taste_groups(Events(table), items, shopper, len(shopper_names), seed)
        alpha = numbers[1] if len(numbers) > 1 else _DEFAULT_ALPHA
        shop_of = divide_skewed(keys, groups, is_present, num_shops, alpha, seed)
    width = len(str(num_shops))
    names = np.array([f"shop-{number:0{width}d}" for number in range(1, num_shops + 1)], dtype=object)
    return _with_shop(table, shop_of[shopper], names)


def assign_both(
    train_events: Events, test_events: Events, rule: str | None, *, seed: int, items: Items | None = None
) -> tuple[Events, Events]:
    """`assign` for training events and a test file of their own: a shopper of both goes to the same shop in both."""
    if rule in (None, "column"):
        return assign(train_events, rule, seed=seed), assign(test_events, rule, seed=seed)
    table = assign(concatenate(train_events, test_events), rule, seed=seed, items=items).table
    size = len(train_events)
    return Events(table.iloc[:size]), Events(table.iloc[size:].reset_index(drop=True))


Declared = pd.DataFrame | Mapping[str, Iterable[str]]


def build_shops(
    split: Split, items: Items, *, declared: Declared | None = None
) -> tuple[np.ndarray, tuple[ShopData, ...]]:
    """Give every shop its own data, and the federation its shared item list.

    Args:
        split: events with shops, and their parts.
        items: item table that holds every item of the events and of ``declared``.
        declared: catalogues that shops declare beyond what they sold: a table with columns ``shop`` and
            ``item``, or item keys by shop.
    Returns:
        shared_items: str (object), (num_shared,); sorted keys of the shared items in at least one shop's
            catalogue.
        shops: sorted by name.
    Raises:
        DataError: an item that is not merely tested is not in the item table, or a declared shop has no events.
    """
    shop, shop_names = codes_of(split.events, "shop")
    shopper, shopper_names = codes_of(split.events, "shopper")
    shopper_order = np.argsort(shopper_names)
    shopper_names, shopper = shopper_names[shopper_order], _inverse(shopper_order)[shopper]
    item_names = items.table.index.to_numpy(dtype=object)
    item = _item_places(split, items)
    order = np.argsort(shop.astype(np.int16) if len(shop_names) < 2**15 else shop, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(shop, minlength=len(shop_names)))])
    del shop
    extra = _declared_places(declared, items, set(shop_names[np.diff(bounds) > 0]))
    drafts = []
    for code in np.argsort(shop_names):
        if bounds[code] < bounds[code + 1]:
            rows = order[bounds[code] : bounds[code + 1]]
            name = str(shop_names[code])
            catalogue = extra.get(name, np.zeros(0, np.int32))
            drafts.append(_Draft.of(name, shopper[rows], item[rows], split.parts[rows], catalogue))
    is_shared = items.table["is_shared"].to_numpy(bool)
    is_listed = np.zeros(len(item_names), bool)
    for draft in drafts:
        is_listed[draft.catalogue] = True
    is_listed &= is_shared
    position = np.where(is_listed, np.cumsum(is_listed) - 1, -1)
    shops = tuple(draft.finish(shopper_names, item_names, position) for draft in drafts)
    return item_names[is_listed], shops


def stack(shops: Iterable[ShopData], parts: Iterable[Part], num_shared: int) -> sparse.csr_matrix:
    """All shops' rows of these parts in the shared item space, shops in the given order: what a pooled model sees."""
    wanted = [part.name.lower() for part in parts]
    rows = []
    for shop in shops:
        total = sum((getattr(shop, name) for name in wanted[1:]), start=getattr(shop, wanted[0]))
        rows.append(shop.shared(total, num_shared))
    return sparse.vstack(rows, format="csr", dtype=np.float32)


@dataclass(frozen=True)
class _Draft:
    """A shop whose rows are known, before the shared item list is; arrays as in `ShopData`, items as table places."""

    name: str
    shoppers: np.ndarray
    catalogue: np.ndarray
    histories: dict[Part, sparse.csr_matrix]
    missing_test: np.ndarray

    @classmethod
    def of(cls, name: str, shopper: np.ndarray, item: np.ndarray, parts: np.ndarray, extra: np.ndarray) -> _Draft:
        shoppers, row = np.unique(shopper, return_inverse=True)
        catalogue = np.unique(np.concatenate([item[parts != Part.TEST], extra]))
        column = np.searchsorted(catalogue, item)
        is_known = column < len(catalogue)
        is_known[is_known] = catalogue[column[is_known]] == item[is_known]
        shape = (len(shoppers), len(catalogue))
        histories = {}
        for part in Part:
            chosen = (parts == part) & is_known
            matrix = sparse.csr_matrix(
                (np.ones(int(chosen.sum()), np.float32), (row[chosen], column[chosen])), shape=shape
            )
            matrix.sum_duplicates()
            matrix.data.fill(1.0)
            histories[part] = matrix
        missing = np.unique(np.stack([row[~is_known], item[~is_known]]), axis=1)[0]
        return cls(name, shoppers, catalogue, histories, np.bincount(missing, minlength=len(shoppers)))

    def finish(self, shopper_names: np.ndarray, item_names: np.ndarray, position: np.ndarray) -> ShopData:
        return ShopData(
            name=self.name,
            shoppers=shopper_names[self.shoppers],
            items=item_names[self.catalogue],
            positions=position[self.catalogue].astype(np.int64),
            train=self.histories[Part.TRAIN],
            validation=self.histories[Part.VALIDATION],
            test=self.histories[Part.TEST],
            fold_in=self.histories[Part.FOLD_IN],
            missing_test=self.missing_test.astype(np.int64),
        )


def _item_places(split: Split, items: Items) -> np.ndarray:
    """int32, (num_events,): each event's item as a row of the item table; what is only tested may lie beyond it."""
    codes, names = codes_of(split.events, "item")
    place = items.table.index.get_indexer(pd.Index(names, dtype=items.table.index.dtype))
    is_needed = np.bincount(codes[split.parts != Part.TEST], minlength=len(names)) > 0
    unknown = np.flatnonzero(is_needed & (place < 0))
    if len(unknown):
        raise DataError(
            f"{len(unknown)} items of the events are not in the item table (add them), first '{names[unknown[0]]}'"
        )
    beyond = np.flatnonzero(place < 0)
    place[beyond] = len(items) + np.arange(len(beyond))
    return place.astype(np.int32)[codes]


def _declared_places(declared: Declared | None, items: Items, shops: set[str]) -> dict[str, np.ndarray]:
    """Rows of the item table that each shop declares as its catalogue."""
    if declared is None:
        return {}
    if isinstance(declared, pd.DataFrame):
        declared = {str(shop): rows for shop, rows in declared.groupby("shop", observed=True)["item"]}
    places = {}
    for shop, keys in declared.items():
        if shop not in shops:
            raise DataError(f"a catalogue is declared for shop '{shop}', which has no events")
        names = pd.Index([str(key) for key in keys], dtype=items.table.index.dtype)
        place = items.table.index.get_indexer(names)
        if (place < 0).any():
            raise DataError(f"shop '{shop}' declares item '{names[place < 0][0]}', which is not in the item table")
        places[shop] = place.astype(np.int32)
    return places


def _parse_rule(rule: str | None) -> tuple[str, list[float]]:
    """Name and numbers of a rule."""
    allowed = "allowed: column, random:N, skewed:N, skewed:N:ALPHA, category"
    name, *texts = (rule or "column").split(":")
    limits = {"column": (0, 0), "category": (0, 0), "random": (1, 1), "skewed": (1, 2)}
    if name not in limits or not limits[name][0] <= len(texts) <= limits[name][1]:
        raise ConfigError(f"unknown rule '{rule}' for shops; {allowed}")
    try:
        numbers = [float(int(text)) if place == 0 else float(text) for place, text in enumerate(texts)]
    except ValueError as error:
        raise ConfigError(f"'{rule}' holds no number where one is due; {allowed}") from error
    if not all(0 < number < 1e9 for number in numbers):
        raise ConfigError(f"'{rule}': the number of shops must be at least 1 and ALPHA above 0; {allowed}")
    return name, numbers


def _with_shop(table: pd.DataFrame, codes: np.ndarray, names: np.ndarray) -> Events:
    """The table with a shop column of the names in use, sorted."""
    used = np.flatnonzero(np.bincount(codes, minlength=len(names)))
    used = used[np.argsort(names[used])]
    place = np.full(len(names), -1, np.int32)
    place[used] = np.arange(len(used))
    shop = pd.Categorical.from_codes(place[codes], categories=pd.Index(names[used], dtype="str"))
    return Events(table.assign(shop=shop))


def _unique_shoppers(events: Events) -> pd.DataFrame:
    """The table, with shopper ids that mean one person even without the old shop column."""
    if "shop" not in events.table:
        return events.table
    shop, shop_names = codes_of(events, "shop")
    shopper, names = codes_of(events, "shopper")
    pairs, codes = np.unique(shop.astype(np.int64) * len(names) + shopper, return_inverse=True)
    if len(pairs) == len(np.unique(shopper)):
        return events.table
    new_names = shop_names[pairs // len(names)] + "/" + names[pairs % len(names)]
    shoppers = pd.Categorical.from_codes(codes, categories=pd.Index(new_names, dtype="str"))
    return events.table.assign(shopper=shoppers)


def _inverse(order: np.ndarray) -> np.ndarray:
    """int32: the permutation that undoes ``order``."""
    inverse = np.empty(len(order), np.int32)
    inverse[order] = np.arange(len(order), dtype=np.int32)
    return inverse
