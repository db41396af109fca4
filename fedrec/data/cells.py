"""Cells of somebody's table as ids, seconds and numbers; everything is decided on distinct values, never row by row."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import pandas as pd

_MISSING = frozenset({"", "nan", "null", "none", "<na>", "nat", "\\n"})
_WHOLE = re.compile(r"[+-]?\d+\.0+")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
_FRACTION = re.compile(r"[+-]?\d+\.\d+")
_COMMA_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:\.\d{3})+|\d+),\d+")
MISSING_IDS = _MISSING | {"na", "n/a", "#n/a"}
"""What an empty cell may say, in small letters."""

_YEAR_9999_S = 253_402_300_800.0

_DATE_FORMATS = (
    "%Y/%m/%d",
    "%Y.%m.%d",
    "%d.%m.%Y",
    "%d.%m.%y",
    "%d-%b-%Y",
    "%d %b %Y",
    "%b %d, %Y",
    "%B %d, %Y",
    "%m %d, %Y",
)
_SLASH_DATES = (("%m/%d/%Y", "%m/%d/%y", "%m-%d-%Y"), ("%d/%m/%Y", "%d/%m/%y", "%d-%m-%Y"))
_CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p")


@dataclass(frozen=True)
class Times:
    """Times of rows.

    Attributes:
        seconds: float64, (num_rows,); since 1970 UTC, NaN = unknown.
        is_bad: bool, (num_rows,); there is a value, but it is no time.
        is_ambiguous: month and day could be the other way round everywhere.
    """

    seconds: np.ndarray
    is_bad: np.ndarray
    is_ambiguous: bool


def distinct(cells: pd.Series) -> tuple[np.ndarray, pd.Index]:
    """Codes (num_rows,), -1 = missing, and the distinct values."""
    if isinstance(cells.dtype, pd.CategoricalDtype):
        return cells.cat.codes.to_numpy(), cells.cat.categories
    try:
        codes, values = pd.factorize(cells)
    except TypeError:  # lists, dicts and the like have no hash
        codes, values = pd.factorize(cells.map(str, na_action="ignore"))
    return codes, pd.Index(values)


def ids_as_text(cells: pd.Series, *, keeps_na: bool = False) -> tuple[pd.Categorical, int]:
    """Ids as text, whatever they were: 123, 123.0 and "123 " are all "123", "007" stays "007".

    In a column of text ".0" is cut off only where no number of the column has another fraction.

    Args:
        cells: any dtype.
        keeps_na: "NA" is an id (North America), not a missing value.
    Returns:
        Categorical with sorted str categories in use, and the number of rows of the rarer type (text among numbers or
        numbers among text; 0 where all are of one type).
    """
    codes, values = distinct(cells)
    texts = _texts(values)
    missing = _MISSING if keeps_na else MISSING_IDS
    is_missing = texts.str.casefold().isin(missing).to_numpy(bool)
    is_used = np.bincount(codes[codes >= 0], minlength=len(texts)).astype(bool) & ~is_missing
    names = pd.Index(texts[is_used].unique(), dtype="str").sort_values()
    place = np.append(np.where(is_used, names.get_indexer(pd.Index(texts)), -1), -1).astype(np.int32)
    is_number = texts.str.fullmatch(_NUMBER).to_numpy(bool)
    kinds = [int(np.append(is_used & kind, False)[codes].sum()) for kind in (is_number, ~is_number)]
    return pd.Categorical.from_codes(place[codes], categories=names), min(kinds)


def joined_lists(cells: pd.Series) -> pd.Series:
    """Lists in cells as text joined by "|"."""
    if not pd.api.types.is_object_dtype(cells.dtype):
        return cells
    return cells.map(lambda cell: "|".join(map(str, cell)) if isinstance(cell, list | tuple | np.ndarray) else cell)


def seconds(cells: pd.Series) -> Times:
    """Times as seconds since 1970 UTC.

    Reads unix seconds, milliseconds, micro- and nanoseconds (told apart by size), whole numbers like 20111209 and 2011,
    ISO dates, the usual forms with month names, dots and slashes, and datetimes; a time without a zone is UTC.
    """
    if pd.api.types.is_datetime64_any_dtype(cells.dtype):
        utc = cells.dt.tz_localize("UTC") if cells.dt.tz is None else cells.dt.tz_convert("UTC")
        values = _since_1970(utc.to_numpy("datetime64[us]"))
        return Times(values, np.zeros(len(cells), bool), False)
    if pd.api.types.is_numeric_dtype(cells.dtype):
        return _numeric_times(cells.to_numpy(np.float64, na_value=np.nan))
    codes, names = distinct(cells)
    if (known := _as_floats(names)) is not None:
        return _numeric_times(np.append(known, np.nan)[codes])
    parsed, is_missing, is_ambiguous = _parse_times(names)
    values, is_missing = np.append(parsed, np.nan)[codes], np.append(is_missing, True)[codes]
    return Times(values, ~is_missing & np.isnan(values), is_ambiguous)


def numbers(cells: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Numbers as float64 (num_rows,), NaN = unknown, and where there is a value that is no number.

    Text may have a decimal comma, where no cell of the column has a decimal point.
    """
    if pd.api.types.is_numeric_dtype(cells.dtype):
        values = cells.to_numpy(np.float64, na_value=np.nan)
        return np.where(np.isfinite(values), values, np.nan), np.isinf(values)
    codes, names = distinct(cells)
    parsed = _as_floats(names)
    is_missing = np.asarray(names.isna())
    if parsed is None:
        texts = _texts(names)
        is_missing = texts.str.casefold().isin(MISSING_IDS).to_numpy(bool)
        parsed = _parse_numbers(texts)
    parsed = np.where(np.isfinite(parsed), parsed, np.nan)
    values = np.append(parsed, np.nan)[codes]
    return values, np.isnan(values) & ~np.append(is_missing, True)[codes]


def flags(cells: pd.Series) -> np.ndarray:
    """Yes or no, bool (num_rows,): true, 1, yes, y, t, x; anything else, and a missing cell, is no."""
    codes, names = distinct(cells)
    is_yes = [str(name).strip().casefold() in {"true", "1", "1.0", "yes", "y", "t", "x"} for name in names]
    return np.append(np.array(is_yes, bool), False)[codes]


def _as_floats(values: pd.Index) -> np.ndarray | None:
    """Distinct values as float64 if they are numbers one and all, else None."""
    if pd.api.types.is_numeric_dtype(values.dtype):
        return values.to_numpy(np.float64, na_value=np.nan)
    if pd.api.types.is_object_dtype(values.dtype) and all(isinstance(one, int | float | Decimal) for one in values):
        return np.array([float(one) for one in values], np.float64)
    return None


def _parse_numbers(texts: pd.Series) -> np.ndarray:
    """float64; a comma is a decimal comma where no number of the column has a point."""
    parsed = pd.to_numeric(texts, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    has_comma = texts.str.fullmatch(_COMMA_NUMBER).to_numpy(bool)
    has_point = texts.str.contains(".", regex=False).to_numpy(bool) & ~np.isnan(parsed)
    if not has_comma.any() or has_point.any():
        return parsed
    swapped = texts.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
    return np.where(has_comma, pd.to_numeric(swapped, errors="coerce").to_numpy(np.float64, na_value=np.nan), parsed)


def _texts(values: pd.Index) -> pd.Series:
    """Distinct values as stripped text; whole numbers without ".0"."""
    if pd.api.types.is_integer_dtype(values.dtype):
        return pd.Series(values.astype("str"), dtype="str")
    if isinstance(values.dtype, pd.StringDtype):
        texts = pd.Series(values, dtype="str").str.strip()
    else:
        texts = pd.Series([_text(value) for value in values], dtype="str")
    has_fraction = texts.str.fullmatch(_FRACTION).to_numpy(bool)
    if has_fraction.any():
        is_whole = texts.str.fullmatch(_WHOLE).to_numpy(bool)
        if (is_whole == has_fraction).all():
            texts = texts.where(~is_whole, texts.str.replace(r"\.0+$", "", regex=True))
    return texts


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace").strip()
    if isinstance(value, float | np.floating | Decimal):
        if not np.isfinite(float(value)):
            return ""
        return str(int(value)) if value == int(value) else str(value)
    return str(value).strip()


def _numeric_times(values: np.ndarray) -> Times:
    result = _from_numbers(values)
    return Times(result, ~np.isnan(values) & np.isnan(result), False)


def _from_numbers(values: np.ndarray) -> np.ndarray:
    """Seconds from numbers whose unit their size tells."""
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return np.full(len(values), np.nan)
    middle = float(np.median(np.abs(known)))
    if known.min() >= 19_000_101 and known.max() <= 21_001_231 and (known == np.floor(known)).all():
        texts = pd.Series(np.where(np.isfinite(values), values, 0).astype(np.int64)).astype("str")
        dates = pd.to_datetime(texts, format="%Y%m%d", errors="coerce", utc=True)
        if dates.notna().sum() == len(known):
            return _since_1970(dates.to_numpy("datetime64[us]"))
    if known.min() >= 1900 and known.max() <= 2100 and (known == np.floor(known)).all():
        years = np.where(np.isfinite(values), values, 1970).astype(np.int64) - 1970
        return np.where(
            np.isfinite(values), _since_1970(years.astype("datetime64[Y]").astype("datetime64[us]")), np.nan
        )
    unit = next((unit for limit, unit in ((1e11, 1.0), (1e14, 1e3), (1e17, 1e6)) if middle < limit), 1e9)
    result = values / unit
    return np.where(np.isfinite(result) & (np.abs(result) < _YEAR_9999_S), result, np.nan)


def _parse_times(names: pd.Index) -> tuple[np.ndarray, np.ndarray, bool]:
    """Seconds of distinct values, which of them are missing, and whether month and day are a guess."""
    if not isinstance(names.dtype, pd.StringDtype) and not any(isinstance(name, str | bytes) for name in names):
        moments = pd.to_datetime(names, errors="coerce", utc=True)
        return _since_1970(moments.to_numpy("datetime64[us]")), np.asarray(names.isna()), False
    texts = _texts(names)
    is_missing = texts.str.casefold().isin(MISSING_IDS).to_numpy(bool)
    plain = pd.to_numeric(texts, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    if np.isfinite(plain).sum() * 2 > (~is_missing).sum():
        return _from_numbers(plain), is_missing, False
    dates: pd.Series = pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=True)
    left = texts[dates.isna() & ~is_missing]
    is_ambiguous = False
    if len(left):
        by_month, by_day = (_try_formats(left, formats) for formats in _SLASH_DATES)
        is_month = by_month.notna().sum() >= by_day.notna().sum()
        both = by_month.notna() & by_day.notna() & (by_month != by_day)
        is_ambiguous = bool(both.any()) and by_month.notna().sum() == by_day.notna().sum()
        dates.loc[left.index] = by_month if is_month else by_day
        left = left[dates[left.index].isna()]
        dates.loc[left.index] = _try_formats(left, _DATE_FORMATS)
    return _since_1970(dates.to_numpy("datetime64[us]")), is_missing, is_ambiguous


def _try_formats(texts: pd.Series, formats: tuple[str, ...]) -> pd.Series:
    """The first format that fits each text, with or without a time of day."""
    dates = pd.Series(pd.NaT, index=texts.index, dtype="datetime64[us, UTC]")
    for date in formats:
        for clock in _CLOCKS:
            left = dates.index[dates.isna()]
            if len(left) == 0:
                return dates
            dates.loc[left] = pd.to_datetime(texts[left], format=date + clock, errors="coerce", utc=True)
    return dates


def _since_1970(dates: np.ndarray) -> np.ndarray:
    """float64 seconds of datetime64[us] values, NaT becomes NaN."""
    ticks = dates.astype(np.int64).astype(np.float64) / 1e6
    return np.where(np.isnat(dates), np.nan, ticks)
