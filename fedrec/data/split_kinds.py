"""How each kind of split gives events their parts."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, StrEnum

import numpy as np
import pandas as pd

from fedrec.data.events import Events
from fedrec.data.histories import Accounts, Groups, basket_codes, group, has_clock, history_keys, rank_within
from fedrec.errors import ConfigError, DataError


class Part(IntEnum):
    """What an event is used for."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2
    FOLD_IN = 3


class SplitKind(StrEnum):
    """How a split is made; `make_split` says what each one does."""

    LEAVE_LAST = "leave-last"
    LAST_BASKET = "last-basket"
    RANDOM_SHARE = "random-share"
    TEMPORAL = "temporal"
    STRONG = "strong"


LEFT_OUT = -1  # in work arrays only: events that belong to no part
_VALIDATION, _TEST = 1, 2  # purposes of draws; 0 breaks ties
DEFAULTS: dict[SplitKind, dict[str, object]] = {
    SplitKind.LEAVE_LAST: {"min_items": 3},
    SplitKind.LAST_BASKET: {"fold": 0},
    SplitKind.RANDOM_SHARE: {"test_share": 0.2, "validation_share": 0.1},
    SplitKind.TEMPORAL: {
        "test_share": 0.1,
        "validation_share": 0.1,
        "test_from": None,
        "validation_from": None,
    },
    SplitKind.STRONG: {"test_shoppers": 0.1, "validation_shoppers": 0.1, "test_share": 0.2, "min_items": 3},
}


# Each splitter returns parts int8 (num_events,) and notes for the description.
Splitter = Callable[[Events, Accounts, dict[str, object], bool], tuple[np.ndarray, dict[str, object]]]


def leave_last(
    events: Events, accounts: Accounts, settings: dict[str, object], validation: bool, *, test: bool = True
) -> tuple[np.ndarray, dict[str, object]]:
    pairs = group(accounts.account, accounts.item, accounts.num_accounts, history_keys(events, accounts))
    min_items = _whole(settings, "min_items", least=2)
    is_long = pairs.sizes >= min_items
    parts = np.zeros(len(pairs.account), np.int8)
    skipped = 0
    random = ["order of events at the same time"]
    if test:
        parts[(pairs.from_end == 0) & is_long[pairs.account]] = Part.TEST
        skipped = 1
    times_known = not has_clock(events) or bool(events.table["timestamp"].notna().all())
    if not times_known:
        random.append("order of each shopper's events without a time")
    if validation:
        can_validate = is_long & (pairs.sizes >= 2 + skipped)
        if times_known and (has_clock(events) or "order" in events.table):
            is_chosen = pairs.from_end == skipped
        else:
            is_chosen = _one_at_random(accounts, pairs, parts == Part.TRAIN)
            random.append("validation item of each shopper: not all timestamps are known")
        parts[is_chosen & can_validate[pairs.account]] = Part.VALIDATION
    too_short = int((~is_long & (pairs.sizes > 0)).sum())
    return parts[pairs.of_event], {
        "random": random,
        "too_short": {"shoppers": too_short, "min_items": min_items},
    }


def _last_basket(
    events: Events, accounts: Accounts, settings: dict[str, object], validation: bool
) -> tuple[np.ndarray, dict[str, object]]:
    fold = _whole(settings, "fold", least=0)
    keys = history_keys(events, accounts)
    baskets = group(accounts.account, basket_codes(events), accounts.num_accounts, keys)
    from_end = baskets.from_end[baskets.of_event] - fold  # of each event's invoice; < 0 came after the fold's
    num_left = np.maximum(baskets.sizes - fold, 0)
    pairs = group(accounts.account, accounts.item, accounts.num_accounts, keys)
    place, owner = from_end[pairs.first_event], pairs.account
    is_test = (place == 0) & (num_left[owner] >= 2)
    is_later = place < 0
    cell = accounts.shop_of[owner].astype(np.int64) * len(accounts.item_keys) + accounts.item[pairs.first_event]
    is_past = (place > 0) & (num_left[owner] >= 2)
    is_unknown = is_test & ~_is_in(cell, cell[is_past])
    parts = np.zeros(len(owner), np.int8)
    parts[is_test] = Part.TEST
    if validation:
        is_chosen = (place == 1) & (num_left[owner] >= 3)
        is_chosen &= _is_in(cell, cell[is_past & ~is_chosen])
        parts[is_chosen] = Part.VALIDATION
    is_single = (place == 0) & (num_left[owner] == 1)
    parts[is_unknown | is_later | is_single] = LEFT_OUT
    event_parts = parts[pairs.of_event]
    event_parts[from_end < 0] = LEFT_OUT
    return event_parts, {
        "random": ["order of invoices at the same time"],
        "too_short": {"shoppers": int((num_left < 2).sum()), "min_invoices": 2 + fold},
        "dropped": {
            "events after the fold's invoice": int((from_end < 0).sum()),
            "items of shoppers with a single invoice, which is their last": int(is_single.sum()),
            "test items that the shop's training catalogue lacks": int(is_unknown.sum()),
        },
    }


def _random_share(
    events: Events, accounts: Accounts, settings: dict[str, object], validation: bool
) -> tuple[np.ndarray, dict[str, object]]:
    pairs = group(accounts.account, accounts.item, accounts.num_accounts, [accounts.draws(slice(None), _TEST)])
    num_test = _round_share(pairs.sizes, _share(settings, "test_share"))
    parts = np.where(pairs.place < num_test[pairs.account], Part.TEST, Part.TRAIN).astype(np.int8)
    if validation:
        num_validation = _round_share(pairs.sizes - num_test, _share(settings, "validation_share", may_be_none=True))
        is_chosen = (pairs.place >= num_test[pairs.account]) & (
            pairs.place < (num_test + num_validation)[pairs.account]
        )
        parts[is_chosen] = Part.VALIDATION
    too_short = {"shoppers": int((num_test == 0).sum()), "rule": "no test item after rounding"}
    return parts[pairs.of_event], {"random": ["which items of each shopper"], "too_short": too_short}


def _temporal(
    events: Events, accounts: Accounts, settings: dict[str, object], validation: bool
) -> tuple[np.ndarray, dict[str, object]]:
    time = events.table["timestamp"].to_numpy(np.float64)
    pairs = group(accounts.account, accounts.item, accounts.num_accounts, history_keys(events, accounts))
    first_time = time[pairs.first_event]
    test_from = _cut(time, settings["test_from"], _share(settings, "test_share"), "test_from")
    is_test = first_time >= test_from  # False where unknown
    parts = np.where(is_test, Part.TEST, Part.TRAIN).astype(np.int8)
    random: list[str] = []
    cuts: dict[str, object] = {"test_from": _iso(test_from)}
    share = _share(settings, "validation_share")
    if validation and np.isnan(time).any():
        left, draws = ~is_test, accounts.draws(pairs.first_event, _VALIDATION)
        rank, sizes = rank_within(pairs.account[left], draws[left], accounts.num_accounts)
        chosen = np.flatnonzero(left)[rank < _round_share(sizes, share)[pairs.account[left]]]
        parts[chosen] = Part.VALIDATION
        random.append("validation items of each shopper: not all timestamps are known")
    elif validation:
        validation_from = _cut(time[time < test_from], settings["validation_from"], share, "validation_from")
        if not validation_from < test_from:
            raise ConfigError(
                f"validation_from ({_iso(validation_from)}) must lie before test_from ({_iso(test_from)})"
            )
        parts[~is_test & (first_time >= validation_from)] = Part.VALIDATION
        cuts["validation_from"] = _iso(validation_from)
    has_train = np.bincount(pairs.account[parts == Part.TRAIN], minlength=accounts.num_accounts) > 0
    return parts[pairs.of_event], {
        "random": random,
        "cuts": cuts,
        "too_short": {"shoppers": int((~has_train).sum()), "rule": "no training item before the cut"},
    }


def _strong(
    events: Events, accounts: Accounts, settings: dict[str, object], validation: bool
) -> tuple[np.ndarray, dict[str, object]]:
    pairs = group(accounts.account, accounts.item, accounts.num_accounts, [accounts.draws(slice(None), _TEST)])
    min_items = _whole(settings, "min_items", least=2)
    share = _share(settings, "test_share")
    num_held = np.maximum(_round_share(pairs.sizes, share), 1)
    is_free = pairs.sizes >= min_items
    parts = np.zeros(len(pairs.account), np.int8)
    wanted = [("test_shoppers", Part.TEST)] + ([("validation_shoppers", Part.VALIDATION)] if validation else [])
    shoppers: dict[str, object] = {}
    for name, part in wanted:
        is_chosen = _choose_accounts(accounts, is_free, settings, name)
        is_free = is_free & ~is_chosen
        held = is_chosen[pairs.account]
        parts[held] = np.where(pairs.place < num_held[pairs.account], part, Part.FOLD_IN)[held]
        shoppers[name] = int(is_chosen.sum())
    return parts[pairs.of_event], {
        "random": ["which shoppers", "which of their items"],
        "chosen": shoppers,
        "too_short": {"shoppers": int((pairs.sizes < min_items).sum()), "min_items": min_items},
    }


SPLITTERS: dict[SplitKind, Splitter] = {
    SplitKind.LEAVE_LAST: leave_last,
    SplitKind.LAST_BASKET: _last_basket,
    SplitKind.RANDOM_SHARE: _random_share,
    SplitKind.TEMPORAL: _temporal,
    SplitKind.STRONG: _strong,
}


def _one_at_random(accounts: Accounts, pairs: Groups, is_candidate: np.ndarray) -> np.ndarray:
    """bool, (num_pairs,): one of each account's candidates."""
    rows = np.flatnonzero(is_candidate)
    draws = accounts.draws(pairs.first_event[rows], _VALIDATION)
    rank, _ = rank_within(pairs.account[rows], draws, accounts.num_accounts)
    is_chosen = np.zeros(len(is_candidate), bool)
    is_chosen[rows[rank == 0]] = True
    return is_chosen


def _choose_accounts(accounts: Accounts, is_free: np.ndarray, settings: dict[str, object], name: str) -> np.ndarray:
    """bool, (num_accounts,): drawn among the free ones, a share within each shop or a number over all shops."""
    value = settings[name]
    free = np.flatnonzero(is_free)
    is_number = isinstance(value, int)
    shop = np.zeros(len(free), np.int32) if is_number else accounts.shop_of[free]
    rank, _ = rank_within(shop, accounts.account_keys[free], int(shop.max(initial=0)) + 1)
    if is_number:
        limit = np.full(len(free), _whole(settings, name, least=1))
        if int(limit.max(initial=0)) > len(free):
            raise DataError(f"{name} is {value}, but only {len(free)} shoppers have enough items")
    else:
        limit = np.floor(np.bincount(accounts.shop_of) * _share(settings, name) + 0.5)[shop]
    is_chosen = np.zeros(accounts.num_accounts, bool)
    is_chosen[free[rank < limit]] = True
    return is_chosen


def _round_share(sizes: np.ndarray, share: float) -> np.ndarray:
    """``share`` of each size, rounded half up, at least one left."""
    return np.clip(np.floor(sizes * share + 0.5).astype(np.int64), 0, np.maximum(sizes - 1, 0))


def _is_in(cells: np.ndarray, known: np.ndarray) -> np.ndarray:
    """bool: which cells (int64 >= 0) are among the known ones."""
    known = np.unique(known)
    if len(known) == 0:
        return np.zeros(len(cells), bool)
    return known[np.minimum(np.searchsorted(known, cells), len(known) - 1)] == cells


def _cut(time: np.ndarray, given: object, share: float, name: str) -> float:
    """The first second of the later part: a date, or the quantile with ``share`` of the events behind it."""
    if given is not None:
        return _seconds(given, name)
    known = np.sort(time[~np.isnan(time)])
    if len(known) == 0:
        raise DataError(f"no event lies before the test period, so {name} cannot be set; move test_from")
    return float(known[min(int(np.floor(len(known) * (1 - share))), len(known) - 1)])


def _seconds(given: object, name: str) -> float:
    """Seconds since 1970 UTC of a number, date or ISO text."""
    if isinstance(given, int | float) and not isinstance(given, bool) and np.isfinite(given):
        return float(given)
    try:
        return float(pd.to_datetime(str(given), utc=True).timestamp())
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name} is '{given}', which is no date; write it as 2026-01-31") from error


def _iso(seconds: float) -> str:
    return pd.Timestamp(seconds, unit="s", tz="UTC").isoformat()


def _share(settings: dict[str, object], name: str, *, may_be_none: bool = False) -> float:
    value = settings[name]
    is_none = may_be_none and value == 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < 1 or is_none):
        raise ConfigError(f"{name} is {value}; it must be a share, above 0 and below 1")
    return float(value)


def _whole(settings: dict[str, object], name: str, *, least: int) -> int:
    value = settings[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value}; it must be a whole number, at least {least}")
    return value
