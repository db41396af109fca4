"""The catalogue: what is publicly known about items, and which items two shops share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fedrec.data.cells import ids_as_text, joined_lists, numbers
from fedrec.data.events import Events
from fedrec.errors import DataError

_UNKNOWN_SHOP = "local"
_NO_KEY = frozenset({"0", "-", "--", "unknown", "?"})


@dataclass(frozen=True)
class Items:
    """Public item data.

    Attributes:
        table: one row per item key, index ``item`` (str, unique, sorted); columns ``title``, ``category`` (str, "" =
            unknown; several categories joined by "|"), ``price`` (float32, NaN = unknown), ``is_shared`` (bool: the key
            means the same thing in every shop; False = known to one shop alone). Where items are matched by a key of
            their own, also ``item_id`` (str): the shops' own id, the most frequent where they differ.
    """

    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)


@dataclass(frozen=True)
class _Names:
    """What (shop, own item id) pairs are called: the pair's item key, or "<shop>/<id>" for an item of one shop.

    Attributes:
        pairs: int64, sorted; shop * num_ids + id.
        item: int64, same shape; place in ``items``.
        items: str, sorted.
        is_shared: bool, one for each of ``items``.
    """

    pairs: np.ndarray
    item: np.ndarray
    items: pd.Index
    is_shared: np.ndarray

    def of(self, pairs: np.ndarray) -> np.ndarray:
        """Places in ``items`` of pairs that are known."""
        return self.item[np.searchsorted(self.pairs, pairs)]


def clean_catalogue(raw: pd.DataFrame) -> tuple[pd.DataFrame, tuple[tuple[str, int], ...]]:
    """A file of items with ids as text and prices as numbers; rows without an id (or key) fall away.

    Args:
        raw: columns ``item`` and, where known, ``shop``, ``title``, ``category``, ``price``, ``item_key``.
    Returns:
        The table (categories of str, price float32), and what was put right with its count.
    """
    columns: dict[str, object] = {}
    for role in raw.columns:
        if role == "price":
            columns[role] = numbers(raw[role])[0].astype(np.float32)
        else:
            cells = joined_lists(raw[role]) if role in ("title", "category") else raw[role]
            columns[role] = ids_as_text(cells, keeps_na=role in ("shop", "title", "category"))[0]
    table = pd.DataFrame(columns)
    has_id = table[[name for name in ("item", "item_key") if name in table]].notna().any(axis=1)
    notes = [("rows of the items file without an id, left out", int((~has_id).sum()))]
    table = table[has_id].reset_index(drop=True)
    if len(table) == 0:
        raise DataError("the items file has no row with an item id; check which column was taken")
    ids = [name for name in ("shop", "item") if name in table]
    if "item" in table:
        notes.append(
            ("rows of the items file that repeat an item, first known value taken", int(table.duplicated(ids).sum()))
        )
    return table, tuple((what, count) for what, count in notes if count)


def build_items(
    tables: Sequence[Events], catalogue: pd.DataFrame | None, *, is_gtin: bool = False
) -> tuple[list[Events], Items, tuple[tuple[str, int], ...]]:
    """Name items by their key, and gather what is publicly known about them.

    Without an ``item_key`` column, in the events or the catalogue, an item's own id is its key and means the same in
    every shop. With one, an item of a shop is called by the catalogue's key, else by its most frequent one of the
    events; an item without a key is called "<shop>/<id>" and is known to that shop alone. Title and category are the
    catalogue's, else the most frequent ones of the events; the price is the catalogue's, else the median of the events.

    Args:
        tables: cleaned events, training events first; facts of later tables fill what is unknown.
        catalogue: see `clean_catalogue`; None where there is none.
        is_gtin: keys are GTINs; those of 8 to 14 digits are the same number with zeros in front.
    Returns:
        The tables with ``item`` renamed and without ``title`` and ``item_key``; the catalogue, which also holds the
        items of the items file that no event mentions; what was put right with its count.
    """
    frames = [events.table for events in tables]
    catalogue = None if catalogue is None else catalogue.copy()
    all_frames = frames if catalogue is None else [*frames, catalogue]
    has_key = any("item_key" in frame for frame in all_frames)
    ids = _union([frame["item"] for frame in all_frames if "item" in frame])
    shops = _union([frame["shop"] for frame in all_frames if "shop" in frame] if has_key else [])
    pairs = [_pair_codes(frame, shops, ids) for frame in frames]
    notes: list[tuple[str, int]] = []
    names = _names_by_key(frames, pairs, catalogue, shops, ids, is_gtin, notes) if has_key else _names_by_id(ids)
    places = [names.of(pair) for pair in pairs]
    facts = _Facts(names, keeps_id=has_key)
    if catalogue is not None:
        facts.add(catalogue, _catalogue_places(catalogue, names, shops, ids, has_key, is_gtin), takes_first=True)
    for frame, place in zip(frames, places, strict=True):
        facts.add(frame, place, takes_first=False)
    renamed = [_renamed(frame, place, names.items) for frame, place in zip(frames, places, strict=True)]
    return renamed, facts.items(), tuple(note for note in notes if note[1])


def _names_by_id(ids: pd.Index) -> _Names:
    everything = np.arange(len(ids), dtype=np.int64)
    return _Names(everything, everything, ids, np.ones(len(ids), bool))


def _names_by_key(
    frames: Sequence[pd.DataFrame],
    pairs: Sequence[np.ndarray],
    catalogue: pd.DataFrame | None,
    shops: pd.Index,
    ids: pd.Index,
    is_gtin: bool,
    notes: list[tuple[str, int]],
) -> _Names:
    """Each pair's key: the catalogue's, for that shop where it names shops; else the events' most frequent one.

    What is declared comes first, so that no shopper's rows can rename an item of everybody.
    """
    known = np.unique(np.concatenate([*pairs, *_catalogue_pairs(catalogue, shops, ids)]))
    keyed = [(frame, pair) for frame, pair in zip(frames, pairs, strict=True) if "item_key" in frame]
    keyed_catalogue = catalogue is not None and {"item_key", "item"} <= set(catalogue.columns)
    sources = [frame["item_key"] for frame, _ in keyed]
    if catalogue is not None and "item_key" in catalogue:
        sources.append(catalogue["item_key"])
    keys = pd.Index(sorted({_key(text, is_gtin) for text in _union(sources)} - {""}), dtype="str")
    chosen = np.full(len(known), -1, np.int64)
    if keyed:
        group = np.searchsorted(known, np.concatenate([pair for _, pair in keyed]))
        value = np.concatenate([_key_codes(frame["item_key"], keys, is_gtin) for frame, _ in keyed])
        chosen, num_keys = _most_frequent(group, value, len(known), len(keys))
        notes.append(("items with several keys in one shop, most frequent taken", int((num_keys > 1).sum())))
    if keyed_catalogue:
        assert catalogue is not None
        value = _key_codes(catalogue["item_key"], keys, is_gtin)
        place = ids.get_indexer(pd.Index(catalogue["item"]))
        if "shop" in catalogue:
            own = _first(np.searchsorted(known, _pair_codes(catalogue, shops, ids)), value, len(known))
        else:
            own = _first(place, value, len(ids))[known % max(len(ids), 1)]
        chosen = np.where(own < 0, chosen, own)
    shop_names = shops if len(shops) else pd.Index([_UNKNOWN_SHOP], dtype="str")
    local = np.flatnonzero(chosen < 0)
    local_names = shop_names[known[local] // len(ids)] + "/" + ids[known[local] % len(ids)]
    notes.append(("items without a key, known to one shop alone", len(local)))
    items = keys.union(pd.Index(local_names, dtype="str")).sort_values()
    item = np.empty(len(known), np.int64)
    item[local] = items.get_indexer(pd.Index(local_names, dtype="str"))
    has_key = chosen >= 0
    item[has_key] = items.get_indexer(keys)[chosen[has_key]]
    return _Names(known, item, items, items.isin(keys))


def _catalogue_pairs(catalogue: pd.DataFrame | None, shops: pd.Index, ids: pd.Index) -> list[np.ndarray]:
    """Pairs of a catalogue that says whose items it lists."""
    if catalogue is None or not {"shop", "item"} <= set(catalogue.columns):
        return []
    return [_pair_codes(catalogue, shops, ids)]


def _catalogue_places(
    catalogue: pd.DataFrame, names: _Names, shops: pd.Index, ids: pd.Index, has_key: bool, is_gtin: bool
) -> np.ndarray:
    """Place in ``names.items`` of each row of the catalogue, -1 = nobody's."""
    if not has_key:
        return ids.get_indexer(pd.Index(catalogue["item"]))
    if "item_key" in catalogue:
        texts = catalogue["item_key"].cat.categories
        place = np.append(names.items.get_indexer(pd.Index([_key(text, is_gtin) for text in texts], dtype="str")), -1)
        result = place[catalogue["item_key"].cat.codes.to_numpy()]
    else:
        result = np.full(len(catalogue), -1, np.int64)
    if "item" not in catalogue:
        return result
    if "shop" in catalogue:
        return np.where(result < 0, names.of(_pair_codes(catalogue, shops, ids)), result)
    # Without a shop a row speaks of all items of that id; it lends its text to the first of them.
    first = np.full(len(ids), -1, np.int64)
    first[(names.pairs % len(ids))[::-1]] = names.item[::-1]
    return np.where(result < 0, first[ids.get_indexer(pd.Index(catalogue["item"]))], result)


class _Facts:
    """Gathers one title, category and price for each item; what is known first stays."""

    def __init__(self, names: _Names, *, keeps_id: bool) -> None:
        self._names = names
        num_items = len(names.items)
        roles = ("title", "category", "item_id") if keeps_id else ("title", "category")
        self._texts = {role: np.full(num_items, "", dtype=object) for role in roles}
        self._price = np.full(num_items, np.nan, np.float32)

    def add(self, table: pd.DataFrame, place: np.ndarray, *, takes_first: bool) -> None:
        """Learn from a table's rows: their first known value (a catalogue), or the most frequent (events)."""
        num_items = len(self._names.items)
        for role, texts in self._texts.items():
            column = "item" if role == "item_id" else role
            if column in table:
                cells = table[column].cat
                codes = np.where(place < 0, -1, cells.codes.to_numpy().astype(np.int64))
                if takes_first:
                    best = _first(place, codes, num_items)
                else:
                    best = _most_frequent(place, codes, num_items, len(cells.categories))[0]
                fill = (texts == "") & (best >= 0)
                texts[fill] = cells.categories.to_numpy(dtype=object)[best[fill]]
        if "price" in table:
            prices = table["price"].to_numpy()
            rows = (place >= 0) & (prices > 0)
            medians = pd.Series(prices[rows]).groupby(place[rows]).median()
            is_new = np.isnan(self._price[medians.index])
            self._price[medians.index[is_new]] = medians.to_numpy()[is_new]

    def items(self) -> Items:
        """All of it as a catalogue."""
        columns: dict[str, Any] = {role: pd.array(texts, dtype="str") for role, texts in self._texts.items()}
        index = pd.Index(self._names.items, dtype="str", name="item")
        columns |= {"price": self._price, "is_shared": self._names.is_shared}
        order = ["title", "category", "price", "is_shared", *(["item_id"] if "item_id" in columns else [])]
        return Items(pd.DataFrame(columns, index=index)[order])


def _renamed(table: pd.DataFrame, place: np.ndarray, items: pd.Index) -> Events:
    """The events by the items' names."""
    is_used = np.zeros(len(items), bool)
    is_used[place] = True
    code = (np.cumsum(is_used) - 1).astype(np.int32)
    item = pd.Categorical.from_codes(code[place], categories=pd.Index(items[is_used], dtype="str"))
    return Events(table.assign(item=item).drop(columns=["title", "item_key"], errors="ignore"))


def _union(columns: Sequence[pd.Series]) -> pd.Index:
    """Sorted union of categories of str."""
    names = pd.Index([], dtype="str")
    for column in columns:
        names = names.union(pd.Index(column.cat.categories, dtype="str"))
    return names.sort_values()


def _pair_codes(table: pd.DataFrame, shops: pd.Index, ids: pd.Index) -> np.ndarray:
    """int64, (num_rows,): shop * num_ids + id; without shops the id alone."""
    pair = ids.get_indexer(table["item"].cat.categories)[table["item"].cat.codes.to_numpy()].astype(np.int64)
    if len(shops) and "shop" in table:
        pair += shops.get_indexer(table["shop"].cat.categories)[table["shop"].cat.codes.to_numpy()] * len(ids)
    return pair


def _key(text: str, is_gtin: bool) -> str:
    """A key in its one form; "" where it says that there is none."""
    if text.strip("0") == "" or text.casefold() in _NO_KEY:
        return ""
    digits = text.replace("-", "").replace(" ", "")
    return digits.zfill(14) if is_gtin and digits.isdigit() and 8 <= len(digits) <= 14 else text


def _key_codes(cells: pd.Series, keys: pd.Index, is_gtin: bool) -> np.ndarray:
    place = keys.get_indexer(pd.Index([_key(text, is_gtin) for text in cells.cat.categories], dtype="str"))
    return np.append(place, -1)[cells.cat.codes.to_numpy()]


def _most_frequent(
    group: np.ndarray, value: np.ndarray, num_groups: int, num_values: int
) -> tuple[np.ndarray, np.ndarray]:
    """Each group's most frequent value (-1 = none; ties: the smallest), and its number of distinct values."""
    is_known = value >= 0
    width = max(num_values, 1)
    distinct, counts = np.unique(group[is_known].astype(np.int64) * width + value[is_known], return_counts=True)
    order = np.lexsort((distinct % width, counts * -1, distinct // width))
    owner = (distinct // width)[order]
    is_best = np.ones(len(owner), bool)
    is_best[1:] = owner[1:] != owner[:-1]
    best = np.full(num_groups, -1, np.int64)
    best[owner[is_best]] = (distinct % width)[order[is_best]]
    return best, np.bincount(owner, minlength=num_groups)


def _first(group: np.ndarray, value: np.ndarray, num_groups: int) -> np.ndarray:
    """Each group's first known value, -1 = none."""
    rows = np.flatnonzero((value >= 0) & (group >= 0))[::-1]
    best = np.full(num_groups, -1, np.int64)
    best[group[rows]] = value[rows]
    return best
