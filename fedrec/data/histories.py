"""Shoppers' histories as integer codes: who bought what first, whatever the order of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedrec.data.events import Events
from fedrec.errors import DataError

_TIE = 0  # purpose of the draws that break ties


@dataclass(frozen=True)
class Accounts:
    """Events as codes. An account is one (shop, shopper) pair: the same id in two shops is two shoppers.

    Attributes:
        account: int32, (num_events,); dense account code of each event.
        item: int32, (num_events,); the event's item, as code of the table's ``item`` column.
        shop_of: int32, (num_accounts,); each account's shop, as code of the ``shop`` column.
        account_keys: uint64, (num_accounts,); seeded hashes of the accounts' names.
        item_keys: uint64, (num_item_names,); seeded hashes of the items' names.
        seed: of the hashes.
    """

    account: np.ndarray
    item: np.ndarray
    shop_of: np.ndarray
    account_keys: np.ndarray
    item_keys: np.ndarray
    seed: int

    @property
    def num_accounts(self) -> int:
        """Number of (shop, shopper) pairs with an event."""
        return len(self.shop_of)

    def draws(self, rows: np.ndarray | slice, purpose: int) -> np.ndarray:
        """uint64, one for each row of ``rows``: random, but a function of seed, shopper, item and purpose only."""
        salt = np.uint64((purpose * 0x9E3779B97F4A7C15) % 2**64)
        return _scramble(self.account_keys[self.account[rows]] ^ _scramble(self.item_keys[self.item[rows]] + salt))


@dataclass(frozen=True)
class Groups:
    """The distinct (account, thing) pairs of the events, sorted by account and then by first occurrence.

    Attributes:
        account: int32, (num_groups,).
        first_event: int64, (num_groups,); row of the first event of the pair.
        place: int64, (num_groups,); 0, 1, ... within the account.
        sizes: int64, (num_accounts,); number of distinct things of each account.
        of_event: int64, (num_events,); the pair that each event belongs to.
    """

    account: np.ndarray
    first_event: np.ndarray
    place: np.ndarray
    sizes: np.ndarray
    of_event: np.ndarray

    @property
    def from_end(self) -> np.ndarray:
        """int64, (num_groups,): 0 for the account's last thing, 1 for the one before, ..."""
        return self.sizes[self.account] - 1 - self.place


def codes_of(events: Events, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes int32 (num_events,) and names (object array of str) of a category column.

    Raises:
        DataError: the column is missing or has empty cells.
    """
    if column not in events.table:
        hint = "; say who is a shop with --shops" if column == "shop" else ""
        raise DataError(f"the events have no column '{column}'{hint}")
    cells = events.table[column]
    if not isinstance(cells.dtype, pd.CategoricalDtype):
        cells = cells.astype(str).where(cells.notna()).astype("category")
    codes = cells.cat.codes.to_numpy()
    if (missing := int((codes < 0).sum())) > 0:
        raise DataError(f"{missing} of {len(codes)} events have no {column}; clean the events first")
    return codes.astype(np.int32, copy=False), cells.cat.categories.to_numpy(dtype=object)


def name_keys(names: np.ndarray, seed: int) -> np.ndarray:
    """uint64, one for each name: a seeded hash, the same on every machine and in every run."""
    if len(names) == 0:
        return np.zeros(0, np.uint64)
    return _scramble(pd.util.hash_array(np.asarray(names, dtype=object), categorize=False) ^ _seed_key(seed))


def code_accounts(events: Events, *, seed: int) -> Accounts:
    """Events as integer codes, with seeded hashes for draws that depend on names and never on the order of rows."""
    shop, shop_names = codes_of(events, "shop")
    shopper, shopper_names = codes_of(events, "shopper")
    item, item_names = codes_of(events, "item")
    width = max(len(shopper_names), 1)
    pairs, account = _dense(shop.astype(np.int64) * width + shopper, len(shop_names) * width)
    shop_of = (pairs // width).astype(np.int32)
    shopper_keys = name_keys(shopper_names, seed)
    shop_keys = name_keys(shop_names, seed + 1)
    keys = _scramble(shopper_keys[pairs % width] + shop_keys[shop_of])
    return Accounts(account, item, shop_of, keys, name_keys(item_names, seed + 2), seed)


def group(account: np.ndarray, thing: np.ndarray, num_accounts: int, keys: Sequence[np.ndarray]) -> Groups:
    """Distinct (account, thing) pairs in the order of their first events.

    Args:
        account: int32, (num_events,).
        thing: int, (num_events,), >= 0; item or basket codes.
        num_accounts: all codes in ``account`` are smaller.
        keys: arrays (num_events,) that order an account's events, the most important first; NaN comes first.
    """
    num_events = len(account)
    history = np.lexsort((*[_nan_first(key) for key in reversed(keys)], account))
    width = int(thing.max()) + 1 if num_events else 1
    pair = account[history].astype(np.int64)
    pair *= width
    pair += thing[history]
    by_pair = np.argsort(pair, kind="stable")
    pair = pair[by_pair]
    is_first = np.ones(num_events, bool)
    is_first[1:] = pair[1:] != pair[:-1]
    del pair
    firsts = by_pair[is_first]
    by_history = np.argsort(firsts, kind="stable")
    rank = np.empty(len(firsts), np.int64)
    rank[by_history] = np.arange(len(firsts))
    of_event = np.empty(num_events, np.int64)
    of_event[history[by_pair]] = rank[np.cumsum(is_first) - 1]
    first_event = history[firsts[by_history]]
    owner = account[first_event]
    sizes = np.bincount(owner, minlength=num_accounts)
    place = np.arange(len(owner)) - (np.cumsum(sizes) - sizes)[owner]
    return Groups(owner, first_event, place, sizes, of_event)


def rank_within(account: np.ndarray, draws: np.ndarray, num_accounts: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row's place among its account's rows by ascending draw, and each account's number of rows."""
    order = np.lexsort((draws, account))
    sizes = np.bincount(account, minlength=num_accounts)
    rank = np.empty(len(account), np.int64)
    rank[order] = np.arange(len(account)) - (np.cumsum(sizes) - sizes)[account[order]]
    return rank, sizes


def history_keys(events: Events, accounts: Accounts) -> list[np.ndarray]:
    """Sort keys of a shopper's history, the most important first: time, order, invoice, then a draw."""
    keys = []
    if has_clock(events):
        keys.append(events.table["timestamp"].to_numpy(np.float64))
    if "order" in events.table:
        keys.append(events.table["order"].to_numpy())
    draws = accounts.draws(slice(None), _TIE)
    if "basket" in events.table:  # invoices at the same time do not mix
        codes, names = _basket_cells(events)
        of_invoice = name_keys(np.append(names, ""), accounts.seed)[codes]
        keys.append(np.where(codes < 0, draws, _scramble(of_invoice ^ accounts.account_keys[accounts.account])))
    return [*keys, draws]


def has_clock(events: Events) -> bool:
    """Whether any timestamp is known."""
    return "timestamp" in events.table and bool(events.table["timestamp"].notna().any())


def basket_codes(events: Events) -> np.ndarray:
    """int64, (num_events,): one code per basket id; an event without one is an invoice of its own."""
    baskets = _basket_cells(events)[0].astype(np.int64)
    missing = np.flatnonzero(baskets < 0)
    baskets[missing] = baskets.max(initial=0) + 1 + np.arange(len(missing))
    return baskets


def _basket_cells(events: Events) -> tuple[np.ndarray, np.ndarray]:
    """Codes (-1 = unknown) and names of the baskets."""
    cells = events.table["basket"]
    if not isinstance(cells.dtype, pd.CategoricalDtype):
        cells = cells.astype(str).where(cells.notna()).astype("category")
    return cells.cat.codes.to_numpy(), cells.cat.categories.to_numpy(dtype=object)


def _dense(values: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct values (int64, all below ``limit``) and the int32 position of each value among them."""
    if limit > 1 << 28:
        distinct, position = np.unique(values, return_inverse=True)
        return distinct, position.astype(np.int32)
    is_present = np.zeros(limit, bool)
    is_present[values] = True
    return np.flatnonzero(is_present), (np.cumsum(is_present, dtype=np.int32) - 1)[values]


def _nan_first(key: np.ndarray) -> np.ndarray:
    """The sort key with NaN below every number."""
    if key.dtype.kind != "f":
        return key
    return np.where(np.isnan(key), -np.inf, key)


def _seed_key(seed: int) -> np.uint64:
    return np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]


def _scramble(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: a bijection of uint64 whose output bits look independent. Source: Steele et al. 2014."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
