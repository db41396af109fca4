"""Which events train, which choose, which test.

A shopper is a (shop, shopper) pair and one (shopper, item) pair never sits in two parts: it goes where its
first event goes. A history is ordered by timestamp (unknown ones first), then ``order``, then a seeded draw
that depends on names only, never on the order of rows (day timestamps tie, and files are often sorted in a
way that gives the answer away).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from fedrec.data.events import Events
from fedrec.data.histories import Accounts, code_accounts, group, has_clock
from fedrec.data.split_kinds import DEFAULTS, LEFT_OUT, SPLITTERS, Part, SplitKind, leave_last
from fedrec.errors import ConfigError, DataError

__all__ = ["Part", "Split", "SplitKind", "concatenate", "given_test", "make_split"]

_GIVEN = "given-test"


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


def make_split(
    events: Events, kind: SplitKind | str, *, seed: int, validation: bool = True, **parameters: object
) -> Split:
    """Give every event its part.

    - ``leave-last``: of each shopper with at least ``min_items`` (3) distinct items the last one bought for
      the first time is test, the one before validation. Where only part of the timestamps exist, validation
      is drawn at random.
    - ``last-basket``: of each shopper with at least two invoices, test = items of the last one that she had
      not bought before and that the shop's training catalogue has; validation the same from the second-last
      invoice of shoppers with at least three. ``fold`` 1 tests the second-last invoice, 2 the third-last,
      ..., without what came after. New items that nobody else trains on are left out of test (dropped) or
      kept in training (validation).
    - ``random-share``: ``test_share`` (0.2) of each shopper's items at random, then ``validation_share``
      (0.1; 0 = none) of the rest, rounded half up; every shopper keeps one item for training.
    - ``temporal``: items first bought at or after ``test_from`` (a date) are test, at or after
      ``validation_from`` validation; without dates the cuts are quantiles so that the latest ``test_share``
      (0.1) of all events, and ``validation_share`` (0.1) of those before, lie behind them. Unknown
      timestamps train.
    - ``strong``: ``test_shoppers`` (a share of each shop's shoppers, or a number over all shops) with at
      least ``min_items`` distinct items are never trained on: ``test_share`` (0.2) of their items is test,
      the rest fold-in; likewise ``validation_shoppers``.

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
    parts, notes = SPLITTERS[chosen](events, accounts, settings, validation)
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

    Test events of items that the shopper already has in the training events are dropped (known items leave
    lists and test). Test shoppers without history stay: they are cold. Validation comes from the training
    events: the last item where all timestamps (or the order) are known, else one item at random, of
    shoppers with at least two.

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
        own = replace(accounts, account=accounts.account[~is_test], item=accounts.item[~is_test])
        settings: dict[str, object] = {"min_items": 2}
        parts[~is_test], left = leave_last(train, own, settings, True, test=False)
        notes["random"] = left["random"]
    parts[is_known] = LEFT_OUT
    description = {"kind": _GIVEN, "parameters": {}, "seed": seed, "validation": validation, **notes}
    return _finish(events, accounts, parts, description)


def concatenate(*tables: Events) -> Events:
    """Several events tables as one, in the given order; categories become their sorted union."""
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
    names = sorted({str(name) for column in columns for name in column.cat.categories if column.notna().any()})
    index = pd.Index(names, dtype="str")
    codes = []
    for column in columns:
        place = np.append(index.get_indexer(column.cat.categories.astype(str)), -1)
        codes.append(place[column.cat.codes.to_numpy()])
    return pd.Categorical.from_codes(np.concatenate(codes), categories=index)


def _finish(events: Events, accounts: Accounts, parts: np.ndarray, description: dict[str, object]) -> Split:
    """Drop what belongs to no part, count the rest, refuse a split without training or test."""
    is_kept = parts != LEFT_OUT
    counts = {part.name.lower(): int((parts == part).sum()) for part in Part}
    kind = description["kind"]
    if counts["test"] == 0:
        if kind == _GIVEN:
            raise DataError(
                f"the test file leaves nothing to test: its {(~is_kept).sum()} events repeat items that their "
                "shoppers already have; give later events"
            )
        raise DataError(
            f"the {kind} split of {len(parts)} events leaves nothing to test: histories are too short; "
            "use another split or give a test file (--test)"
        )
    if counts["train"] == 0:
        raise DataError(f"the {kind} split of {len(parts)} events leaves nothing to train on; move its cuts or shares")
    description["events"] = counts
    description["shoppers"] = {
        part.name.lower(): int(np.count_nonzero(np.bincount(accounts.account[parts == part]))) for part in Part
    }
    if is_kept.all():
        return Split(events, parts.astype(np.int8, copy=False), description)
    return Split(Events(events.table[is_kept].reset_index(drop=True)), parts[is_kept].astype(np.int8), description)


def _require_columns(events: Events, kind: SplitKind) -> None:
    """Refuse a split that the events' columns cannot carry, and say which ones they can."""
    has_time = has_clock(events)
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
    raise DataError(f"the split '{kind}' needs {needs[kind]}, which these events lack; possible here: {possible}")


def _parse_kind(kind: SplitKind | str) -> SplitKind:
    try:
        return SplitKind(kind)
    except ValueError as error:
        raise ConfigError(f"unknown split '{kind}'; allowed: {', '.join(SplitKind)}") from error


def _check_parameters(kind: SplitKind, parameters: dict[str, object]) -> dict[str, object]:
    known = DEFAULTS[kind]
    for name in parameters:
        if name not in known:
            raise ConfigError(f"the split '{kind}' has no parameter '{name}'; allowed: {', '.join(known)}")
    return {**known, **parameters}


def _plain(settings: dict[str, object]) -> dict[str, object]:
    """Parameters as JSON can hold them."""
    return {
        name: value if value is None or isinstance(value, int | float) else str(value)
        for name, value in settings.items()
    }
