"""Which events train, which choose, which test.

A shopper is a (shop, shopper) pair and one (shopper, item) pair never sits in two parts: it goes where its first event
goes. A history is ordered by timestamp (unknown ones first), then ``order``, then a seeded draw that depends on names
only, never on the order of rows (day timestamps tie, and files are often sorted in a way that gives the answer away).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, StrEnum

import numpy as np
import pandas as pd

from fedrec.data.events import Events
from fedrec.data.histories import Accounts, Groups, code_accounts, group, rank_within
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


@dataclass(frozen=True)
class Split:
    """Events and, for each, its part.

    Attributes:
        events: with a ``shop`` column.
        parts: int8, (num_events,); values of `Part`.
        description: how it was made, for the record (kind, parameters, what was random).
    """

    events: Events
    parts: np.ndarray
    description: dict[str, object]


_LEFT_OUT = -1  # in work arrays only: events that belong to no part
_TIE, _VALIDATION, _TEST = 0, 1, 2  # purposes of seeded draws
_DEFAULTS: dict[SplitKind, dict[str, object]] = {
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


def make_split(
    events: Events, kind: SplitKind | str, *, seed: int, validation: bool = True, **parameters: object
) -> Split:
    """Give every event its part.

    - ``leave-last``: of each shopper with at least ``min_items`` (3) distinct items the last one bought for the first
      time is test, the one before validation. Where only part of the timestamps exist, validation is drawn at random.
    - ``last-basket``: of each shopper with at least two invoices, test = items of the last one that she had not bought
      before and that the shop's training catalogue has; validation the same from the second-last invoice of shoppers
      with at least three. ``fold`` 1 tests the second-last invoice, 2 the third-last, ..., without what came after.
      New items that nobody else trains on are left out of test (dropped) or kept in training (validation).
    - ``random-share``: ``test_share`` (0.2) of each shopper's items at random, then ``validation_share`` (0.1) of the
      rest, rounded half up; every shopper keeps one item for training.
    - ``temporal``: items first bought at or after ``test_from`` (a date) are test, at or after ``validation_from``
      validation; without dates the cuts are quantiles so that the latest ``test_share`` (0.1) of all events, and
      ``validation_share`` (0.1) of those before, lie behind them. Unknown timestamps train.
    - ``strong``: ``test_shoppers`` (a share of each shop's shoppers, or a number over all shops) with at least
      ``min_items`` distinct items are never trained on: ``test_share`` (0.2) of their items is test, the rest fold-in;
      likewise ``validation_shoppers``.

    Args:
        events: with a ``shop`` column.
        kind: one of `SplitKind`.
        seed: of every draw.
        validation: False leaves those events in training.
        parameters: of the kind, as above.
    Raises:
        ConfigError: the kind or a parameter is unknown or out of range.
        DataError: the events lack what the split needs, or nothing could be tested.
    """
    chosen = _parse_kind(kind)
    settings = _check_parameters(chosen, parameters)
    if len(events) == 0:
        raise DataError("there are no events to split")
    accounts = code_accounts(events, seed=seed)
    _require_columns(events, chosen)
    parts, notes = _SPLITTERS[chosen](events, accounts, settings, validation)
    description = {
        "kind": str(chosen),
        "parameters": _plain(settings),
        "seed": seed,
        "validation": validation,
        **notes,
    }
    return _finish(events, accounts, parts, description)


def given_test(train_events: Events, test_events: Events, *, seed: int, validation: bool = True) -> Split:
    """A split whose test events come from a file of their own.

    Test events of items that the shopper already has in the training events are dropped (known items leave lists and
    test). Test shoppers without history stay: they are cold. Validation comes from the training events: the last item
    where all timestamps (or the order) are known, else one item at random, of shoppers with at least two.

    Raises:
        DataError: a table is empty, or nothing is left to test.
    """
    if len(train_events) == 0 or len(test_events) == 0:
        raise DataError("training and test events must both have rows")
    events = concatenate(train_events, test_events)
    accounts = code_accounts(events, seed=seed)
    is_test = np.arange(len(events)) >= len(train_events)
    pairs = group(accounts.account, accounts.item, accounts.num_accounts, [is_test])
    is_known = is_test & ~is_test[pairs.first_event][pairs.of_event]
    parts = np.where(is_test, Part.TEST, Part.TRAIN).astype(np.int8)
    notes: dict[str, object] = {
        "random": [],
        "dropped": {"test events of items already known": int(is_known.sum())},
    }
    if validation:
        train = Events(events.table.iloc[: len(train_events)])
        own = Accounts(
            accounts.account[~is_test],
            accounts.item[~is_test],
            accounts.shop_of,
            accounts.account_keys,
            accounts.item_keys,
        )
        settings: dict[str, object] = {"min_items": 2}
        parts[~is_test], left = _leave_last(train, own, settings, True, test=False)
        notes["random"] = left["random"]
    parts[is_known] = _LEFT_OUT
    description = {"kind": "given-test", "parameters": {}, "seed": seed, "validation": validation, **notes}
    return _finish(events, accounts, parts, description)


def concatenate(*tables: Events) -> Events:
    """Several events tables as one, rows in the given order; category columns get the sorted union of their categories."""
    frames = [events.table for events in tables]
    columns = list(dict.fromkeys(name for frame in frames for name in frame))
    joined = {}
    for name in columns:
        cells = [frame[name] if name in frame else pd.Series(np.nan, index=frame.index) for frame in frames]
        if any(isinstance(column.dtype, pd.CategoricalDtype) for column in cells):
            joined[name] = pd.Series(_union([column.astype("category") for column in cells]))
        else:
            joined[name] = pd.concat(cells, ignore_index=True)
    return Events(pd.DataFrame(joined))


def _union(columns: list[pd.Series]) -> pd.Categorical:
    """Category columns one after the other, with the sorted union of their (str) categories."""
    names = sorted(
        {str(name) for column in columns for name in column.cat.categories if column.notna().any()}
    )
    index = pd.Index(names, dtype="str")
    codes = []
    for column in columns:
        place = np.append(index.get_indexer(column.cat.categories.astype(str)), -1)
        codes.append(place[column.cat.codes.to_numpy()])
    return pd.Categorical.from_codes(np.concatenate(codes), categories=index)


# Each splitter returns parts int8 (num_events,) and notes for the description.
Splitter = Callable[[Events, Accounts, dict[str, object], bool], tuple[np.ndarray, dict[str, object]]]


def _leave_last(
    events: Events, accounts: Accounts, settings: dict[str, object], validation: bool, *, test: bool = True
) -> tuple[np.ndarray, dict[str, object]]:
    pairs = group(accounts.account, accounts.item, accounts.num_accounts, _history_keys(events, accounts))
    min_items = _whole(settings, "min_items", least=2)
    is_long = pairs.sizes >= min_items
    parts = np.zeros(len(pairs.account), np.int8)
    skipped = 0
    random = ["order of events at the same time"]
    if test:
        parts[(pairs.from_end == 0) & is_long[pairs.account]] = Part.TEST
        skipped = 1
    if validation:
        can_validate = is_long & (pairs.sizes >= 2 + skipped)
        if (
            _has_clock(events)
            and not _some_times_unknown(events)
            or not _has_clock(events)
            and "order" in events.table
        ):
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
    keys = _history_keys(events, accounts)
    baskets = group(accounts.account, _basket_codes(events), accounts.num_accounts, keys)
    from_end = baskets.from_end[baskets.of_event] - fold  # of each event's invoice; < 0 came after the fold's
    num_left = np.maximum(baskets.sizes - fold, 0)
    pairs = group(accounts.account, accounts.item, accounts.num_accounts, keys)
    place, owner = from_end[pairs.first_event], pairs.account
    is_test = (place == 0) & (num_left[owner] >= 2)
    is_later = place < 0
    cell = (
        accounts.shop_of[owner].astype(np.int64) * len(accounts.item_keys) + accounts.item[pairs.first_event]
    )
    is_unknown = is_test & ~_is_in(cell, cell[~is_test & ~is_later])
    parts = np.zeros(len(owner), np.int8)
    parts[is_test] = Part.TEST
    if validation:
        is_chosen = (place == 1) & (num_left[owner] >= 3)
        is_chosen &= _is_in(cell, cell[~is_test & ~is_later & ~is_chosen])
        parts[is_chosen] = Part.VALIDATION
    parts[is_unknown | is_later] = _LEFT_OUT
    event_parts = parts[pairs.of_event]
    event_parts[from_end < 0] = _LEFT_OUT
    return event_parts, {
        "random": ["order of invoices at the same time"],
        "too_short": {"shoppers": int((num_left < 2).sum()), "min_invoices": 2 + fold},
        "dropped": {
            "events after the fold's invoice": int((from_end < 0).sum()),
            "test items that the shop's training catalogue lacks": int(is_unknown.sum()),
        },
    }


def _random_share(
    events: Events, accounts: Accounts, settings: dict[str, object], validation: bool
) -> tuple[np.ndarray, dict[str, object]]:
    pairs = group(
        accounts.account, accounts.item, accounts.num_accounts, [accounts.draws(slice(None), _TEST)]
    )
    num_test = _round_share(pairs.sizes, _share(settings, "test_share"))
    parts = np.where(pairs.place < num_test[pairs.account], Part.TEST, Part.TRAIN).astype(np.int8)
    if validation:
        num_validation = _round_share(pairs.sizes - num_test, _share(settings, "validation_share"))
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
    pairs = group(accounts.account, accounts.item, accounts.num_accounts, _history_keys(events, accounts))
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
    pairs = group(
        accounts.account, accounts.item, accounts.num_accounts, [accounts.draws(slice(None), _TEST)]
    )
    min_items = _whole(settings, "min_items", least=2)
    share = _share(settings, "test_share")
    num_held = np.maximum(_round_share(pairs.sizes, share), 1)
    is_free = pairs.sizes >= min_items
    parts = np.zeros(len(pairs.account), np.int8)
    wanted = [("test_shoppers", Part.TEST)] + (
        [("validation_shoppers", Part.VALIDATION)] if validation else []
    )
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


_SPLITTERS: dict[SplitKind, Splitter] = {
    SplitKind.LEAVE_LAST: _leave_last,
    SplitKind.LAST_BASKET: _last_basket,
    SplitKind.RANDOM_SHARE: _random_share,
    SplitKind.TEMPORAL: _temporal,
    SplitKind.STRONG: _strong,
}


def _finish(events: Events, accounts: Accounts, parts: np.ndarray, description: dict[str, object]) -> Split:
    """Drop what belongs to no part, count the rest, refuse a split without training or test."""
    is_kept = parts != _LEFT_OUT
    counts = {part.name.lower(): int((parts == part).sum()) for part in Part}
    kind = description["kind"]
    if counts["test"] == 0:
        raise DataError(
            f"the {kind} split of {len(parts)} events leaves nothing to test: histories are too short; "
            "use another split or give a test file (--test)"
        )
    if counts["train"] == 0:
        raise DataError(
            f"the {kind} split of {len(parts)} events leaves nothing to train on; move its cuts or shares"
        )
    description["events"] = counts
    description["shoppers"] = {
        part.name.lower(): int(np.count_nonzero(np.bincount(accounts.account[parts == part])))
        for part in Part
    }
    if is_kept.all():
        return Split(events, parts.astype(np.int8, copy=False), description)
    return Split(
        Events(events.table[is_kept].reset_index(drop=True)), parts[is_kept].astype(np.int8), description
    )


def _history_keys(events: Events, accounts: Accounts) -> list[np.ndarray]:
    """Sort keys of a shopper's history, the most important first."""
    keys = []
    if _has_clock(events):
        keys.append(events.table["timestamp"].to_numpy(np.float64))
    if "order" in events.table:
        keys.append(events.table["order"].to_numpy())
    return [*keys, accounts.draws(slice(None), _TIE)]


def _has_clock(events: Events) -> bool:
    return "timestamp" in events.table and bool(events.table["timestamp"].notna().any())


def _some_times_unknown(events: Events) -> bool:
    return "timestamp" in events.table and bool(events.table["timestamp"].isna().any())


def _require_columns(events: Events, kind: SplitKind) -> None:
    """Refuse a split that the events' columns cannot carry, and say which ones they can."""
    has_time = _has_clock(events)
    has_order = has_time or "order" in events.table
    has_baskets = has_order and "basket" in events.table and bool(events.table["basket"].notna().any())
    works = {
        SplitKind.LEAVE_LAST: has_order,
        SplitKind.LAST_BASKET: has_baskets,
        SplitKind.RANDOM_SHARE: True,
        SplitKind.TEMPORAL: has_time,
        SplitKind.STRONG: True,
    }
    if works[kind]:
        return
    needs = {
        SplitKind.LEAVE_LAST: "timestamps or an order column",
        SplitKind.LAST_BASKET: "a basket column, and timestamps or an order column",
        SplitKind.TEMPORAL: "timestamps",
    }
    possible = ", ".join(split for split, can in works.items() if can)
    raise DataError(
        f"the split '{kind}' needs {needs[kind]}, which these events lack; possible here: {possible}"
    )


def _basket_codes(events: Events) -> np.ndarray:
    """int64, (num_events,): one code per basket id; an event without one is an invoice of its own."""
    cells = events.table["basket"]
    codes = (cells if isinstance(cells.dtype, pd.CategoricalDtype) else cells.astype("category")).cat.codes
    baskets = codes.to_numpy().astype(np.int64)
    missing = np.flatnonzero(baskets < 0)
    baskets[missing] = baskets.max() + 1 + np.arange(len(missing))
    return baskets


def _one_at_random(accounts: Accounts, pairs: Groups, is_candidate: np.ndarray) -> np.ndarray:
    """bool, (num_pairs,): one of each account's candidates."""
    rows = np.flatnonzero(is_candidate)
    draws = accounts.draws(pairs.first_event[rows], _VALIDATION)
    rank, _ = rank_within(pairs.account[rows], draws, accounts.num_accounts)
    is_chosen = np.zeros(len(is_candidate), bool)
    is_chosen[rows[rank == 0]] = True
    return is_chosen


def _choose_accounts(
    accounts: Accounts, is_free: np.ndarray, settings: dict[str, object], name: str
) -> np.ndarray:
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
    """The first second of the later part: a date, or the quantile that leaves about ``share`` of the events behind it."""
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


def _parse_kind(kind: SplitKind | str) -> SplitKind:
    try:
        return SplitKind(kind)
    except ValueError as error:
        raise ConfigError(f"unknown split '{kind}'; allowed: {', '.join(SplitKind)}") from error


def _check_parameters(kind: SplitKind, parameters: dict[str, object]) -> dict[str, object]:
    known = _DEFAULTS[kind]
    for name in parameters:
        if name not in known:
            raise ConfigError(f"the split '{kind}' has no parameter '{name}'; allowed: {', '.join(known)}")
    return {**known, **parameters}


def _share(settings: dict[str, object], name: str) -> float:
    value = settings[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ConfigError(f"{name} is {value}; it must be a share, above 0 and below 1")
    return float(value)


def _whole(settings: dict[str, object], name: str, *, least: int) -> int:
    value = settings[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value}; it must be a whole number, at least {least}")
    return value


def _plain(settings: dict[str, object]) -> dict[str, object]:
    """Parameters as JSON can hold them."""
    return {
        name: value if value is None or isinstance(value, int | float) else str(value)
        for name, value in settings.items()
    }
