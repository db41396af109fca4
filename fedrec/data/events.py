"""The table that every reader produces, and what cleaning did to get there."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from fedrec.data.cells import distinct, flags, ids_as_text, joined_lists, numbers, seconds
from fedrec.errors import ConfigError, DataError

SERVICE_CODES = (
    "POST",
    "DOT",
    "M",
    "C2",
    "C3",
    "D",
    "S",
    "B",
    "BANK CHARGES",
    "AMAZONFEE",
    "CRUK",
    "PADS",
    "GIFT",
    "ADJUST*",
    "TEST*",
    "GIFT_*",
)
"""Stock codes that are no goods: postage, manual entries, carriage, discounts, samples, bad debt, fees, commission,
padding, adjustments, tests, gift vouchers. "*" stands for anything. Source: Online Retail II's own descriptions."""

CANCEL_EVENTS = frozenset(
    {"cancel", "cancelled", "canceled", "cancellation", "refund", "refunded", "return", "returned"}
)
"""Event types that take a purchase back."""

REASONS = (
    "no shopper",
    "no item",
    "no shop",
    "bad date",
    "cancelled",
    "quantity not above 0",
    "price not above 0",
    "service code",
    "no rating of at least min_rating",
    "duplicate",
)
"""Why a row is dropped, in the order of looking: each row counts once, under the first that applies."""

_TEXT_ROLES = ("basket", "event", "category", "title", "item_key")
_NOT_COMPARED = frozenset({"title", "category", "item_key"})


@dataclass(frozen=True)
class Events:
    """Shoppers' events, one row each.

    Attributes:
        table: columns ``shop``, ``shopper``, ``item`` (categories of str; shop may be absent until shops are assigned)
            and, where known, ``timestamp`` (float64, seconds since 1970 UTC, NaN = unknown), ``order`` (int64, place in
            the shopper's history where there is no clock), ``rating``, ``quantity``, ``price`` (float32), ``basket``,
            ``event``, ``category`` (categories of str), ``title`` (str).
    """

    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)


@dataclass(frozen=True)
class CleaningReport:
    """What happened to the rows.

    Attributes:
        rows_read: before cleaning.
        dropped: each of `REASONS` with its number of rows, also where it is 0.
        rows_kept: rows_read minus all dropped.
        handled: what was put right without dropping a row, with its count.
    """

    rows_read: int
    dropped: tuple[tuple[str, int], ...]
    rows_kept: int
    handled: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class CleaningRules:
    """What is no event.

    Attributes:
        min_rating: keep ratings of at least this; None keeps all, and events without a rating.
        service_codes: items that are no goods (see `SERVICE_CODES`); capitals do not matter, "*" stands for anything.
        cancel_prefix: a basket of this letter and a number is a cancellation, unless most baskets are of that form.
        is_prefix_certain: it is one even then.
    """

    min_rating: float | None = None
    service_codes: tuple[str, ...] = ()
    cancel_prefix: str | None = None
    is_prefix_certain: bool = False

    def __post_init__(self) -> None:
        if self.min_rating is not None and not np.isfinite(self.min_rating):
            raise ConfigError(f"min_rating = {self.min_rating}: give a number")


@dataclass
class _Account:
    """Reasons of rows while they are looked at: 0 = kept, else 1 + place in `REASONS`."""

    reason: np.ndarray
    handled: list[tuple[str, int]] = field(default_factory=list)

    def drop(self, why: str, is_dropped: np.ndarray) -> None:
        self.reason[(self.reason == 0) & is_dropped] = 1 + REASONS.index(why)

    def note(self, what: str, count: int) -> None:
        if count:
            self.handled.append((what, int(count)))


def clean(
    raw: pd.DataFrame, *, rules: CleaningRules | None = None, is_part: bool = False
) -> tuple[Events, CleaningReport]:
    """Turn somebody's rows into events, with an account of each row that is no event.

    A repeat of a purchase at another time or in another basket is an event of its own. A duplicate agrees with an
    earlier row in everything that is known about it (shop, shopper, item, time, order, basket, event type, quantity,
    price, rating). An event whose rating is missing or no number is kept without a rating: it says that the shopper
    had the item. A row with an empty date is kept as older than all dated ones; one whose date is no date is dropped.

    Args:
        raw: columns named by our roles (see `Events`; also ``is_cancel`` and ``item_key``), cells of any type.
        rules: what is no event beyond that.
        is_part: there are more rows elsewhere: of these none need be left, and none need have a date.
    Returns:
        Events with the raw table's columns (``item_key`` included), rows in the given order; and the account.
    Raises:
        DataError: no shopper or item column, no rows, not one date, or nothing left.
    """
    rules = rules or CleaningRules()
    for role in ("shopper", "item"):
        if role not in raw:
            raise DataError(f"there is no {role} column; columns are {', '.join(map(str, raw.columns))}")
    if len(raw) == 0:
        raise DataError("there are no rows to read; give a file with at least one event below its header")
    account = _Account(np.zeros(len(raw), np.int8))
    columns = _read_ids(raw, account)
    if "timestamp" in raw:
        columns["timestamp"] = _read_times(raw["timestamp"], account, is_part=is_part)
    columns |= _read_numbers(raw, account)
    _drop_cancelled(raw, columns, account, rules)
    _drop_service_codes(columns["item"], account, rules)
    _apply_min_rating(columns, account, rules)
    table = pd.DataFrame(columns, copy=False)
    account.reason[_is_duplicate(table, account.reason == 0)] = 1 + REASONS.index("duplicate")
    counts = np.bincount(account.reason, minlength=len(REASONS) + 1)
    dropped = tuple(zip(REASONS, map(int, counts[1:]), strict=True))
    if counts[0] == 0 and not is_part:
        why = ", ".join(f"{reason} {count}" for reason, count in dropped if count)
        raise DataError(f"nothing is left of {len(raw)} rows after cleaning ({why}); check which columns were taken")
    if counts[0] < len(raw):
        table = table[account.reason == 0].reset_index(drop=True)
        for name in [name for name in table if isinstance(table[name].dtype, pd.CategoricalDtype)]:
            table[name] = table[name].cat.remove_unused_categories()
    table = _with_order(table, account)
    return Events(table), CleaningReport(len(raw), dropped, len(table), tuple(account.handled))


def service_code_pattern(codes: tuple[str, ...]) -> re.Pattern[str]:
    """One expression for all service codes."""
    parts = [".*".join(re.escape(part) for part in code.split("*")) for code in codes]
    return re.compile("|".join(parts), re.IGNORECASE)


def _read_ids(raw: pd.DataFrame, account: _Account) -> dict[str, Any]:
    """Id and text columns as categories of str; drops rows without shopper, item or shop."""
    columns: dict[str, Any] = {}
    for role in ("shop", "shopper", "item", *_TEXT_ROLES):
        if role in raw:
            cells = joined_lists(raw[role]) if role in ("title", "category") else raw[role]
            columns[role], num_other = ids_as_text(cells, keeps_na=role in ("shop", "title", "category"))
            if role in ("shop", "shopper", "item"):
                account.note(f"{role} ids of mixed types, read as text", num_other)
    for role in ("shopper", "item", "shop"):
        if role in columns:
            account.drop(f"no {role}", columns[role].codes < 0)
    return columns


def _read_times(cells: pd.Series, account: _Account, *, is_part: bool) -> np.ndarray:
    times = seconds(cells)
    if np.isnan(times.seconds).all() and not is_part:
        example = next((" ".join(str(value).split())[:40] for value in distinct(cells)[1]), "")
        raise DataError(
            f"not one of {len(cells)} dates can be read, the first is '{example}'; write them as 2024-12-31 23:59 or "
            "unix seconds, or name another column with --columns timestamp=NAME"
        )
    account.drop("bad date", times.is_bad)
    if times.is_ambiguous:
        account.note("dates read as month/day/year (day/month/year would fit too)", len(cells))
    return times.seconds


def _read_numbers(raw: pd.DataFrame, account: _Account) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for role in ("rating", "quantity", "price"):
        if role in raw:
            values, is_bad = numbers(raw[role])
            columns[role] = values.astype(np.float32)
            account.note(f"{role} that is no number, event kept without it", int(is_bad.sum()))
            if role == "rating":
                is_unknown = np.isnan(columns[role]) & ~is_bad
                account.note("events without a rating (NaN), kept", int(is_unknown.sum()))
    if "order" in raw:
        columns["order"] = _read_order(raw["order"], account)
    return columns


def _read_order(cells: pd.Series, account: _Account) -> np.ndarray:
    """int64, (num_rows,): whole numbers as they are, others by rank; unknown ones before all others."""
    order, _ = numbers(cells)
    is_unknown = np.isnan(order)
    account.note("events without a place in the order, taken as the oldest", int(is_unknown.sum()))
    known = order[~is_unknown]
    if not (np.abs(known) < 2**53).all() or (known != np.floor(known)).any():
        order[~is_unknown] = np.unique(known, return_inverse=True)[1]
    order[is_unknown] = np.min(order[~is_unknown], initial=0.0) - 1
    return order.astype(np.int64)


def _drop_cancelled(raw: pd.DataFrame, columns: dict[str, Any], account: _Account, rules: CleaningRules) -> None:
    """Cancellations by flag, basket or event type; then what was sold in no quantity or for no price."""
    if "is_cancel" in raw:
        account.drop("cancelled", flags(raw["is_cancel"]))
    if rules.cancel_prefix and "basket" in columns:
        is_cancel = _matches(
            columns["basket"], re.compile(re.escape(rules.cancel_prefix) + r"\d+", re.IGNORECASE).fullmatch
        )
        if rules.is_prefix_certain or is_cancel.mean() < 0.5:
            account.drop("cancelled", is_cancel)
    if "event" in columns:
        account.drop("cancelled", _matches(columns["event"], lambda name: name.casefold() in CANCEL_EVENTS))
    for role in ("quantity", "price"):
        if role in columns:
            account.drop(f"{role} not above 0", columns[role] <= 0)


def _drop_service_codes(items: pd.Categorical, account: _Account, rules: CleaningRules) -> None:
    if rules.service_codes:
        account.drop("service code", _matches(items, service_code_pattern(rules.service_codes).fullmatch))


def _apply_min_rating(columns: dict[str, Any], account: _Account, rules: CleaningRules) -> None:
    if rules.min_rating is None:
        return
    if "rating" not in columns:
        raise DataError(
            f"min_rating = {rules.min_rating}, but there is no rating column; leave min_rating out, or name the column "
            "with --columns rating=NAME"
        )
    account.drop("no rating of at least min_rating", ~(columns["rating"] >= rules.min_rating))


def _matches(cells: pd.Categorical, test: Callable[[str], object]) -> np.ndarray:
    """Rows of a Categorical whose text passes a test."""
    is_match = np.array([bool(test(name)) for name in cells.categories], bool)
    return np.append(is_match, False)[cells.codes]


def _is_duplicate(table: pd.DataFrame, is_kept: np.ndarray) -> np.ndarray:
    """Rows that repeat an earlier kept row in everything; hashes find candidates, values decide."""
    compared = [name for name in table if name not in _NOT_COMPARED]
    rows = np.flatnonzero(is_kept)
    mixed = np.zeros(len(rows), np.uint64)
    for name in compared:
        mixed = pd.util.hash_array(mixed ^ _bits(table[name])[rows])
    rows = rows[pd.Series(mixed).duplicated(keep=False).to_numpy()]
    result = np.zeros(len(table), bool)
    if len(rows):
        candidates = pd.DataFrame({name: _bits(table[name])[rows] for name in compared})
        result[rows] = candidates.duplicated(keep="first").to_numpy()
    return result


def _bits(cells: pd.Series) -> np.ndarray:
    """uint64, (num_rows,): equal where the cells are equal; all unknown cells are alike."""
    if isinstance(cells.dtype, pd.CategoricalDtype):
        return cells.cat.codes.to_numpy().astype(np.int64).view(np.uint64)
    values = cells.to_numpy()
    if values.dtype.kind != "f":
        return values.astype(np.int64).view(np.uint64)
    values = values.astype(np.float64) + 0.0  # -0.0 is 0.0
    return np.where(np.isnan(values), np.nan, values).view(np.uint64)


def _with_order(table: pd.DataFrame, account: _Account) -> pd.DataFrame:
    """An order for events without a date."""
    if "timestamp" not in table:
        return table
    is_undated = table["timestamp"].isna().to_numpy()
    account.note(
        "events without a date, taken as older than all others, in the order of the file", int(is_undated.sum())
    )
    if is_undated.any() and "order" not in table:
        place = np.cumsum(is_undated) - 1
        table["order"] = np.where(is_undated, place, int(is_undated.sum())).astype(np.int64)
    return table
