"""A table whose every cell is read by itself, so that nobody's rows change how somebody else's are read.

Elsewhere a column as a whole says which unit its times have, whether the month or the day comes first, and what a comma
in a number means. Where events are trained on under a promise, that would let one shopper move the contributions of
all.

**Guarantee:** rows of a table that `check_rows` accepts are cleaned alike in every part of the table.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from fedrec.data.cells import MISSING_IDS, distinct, numbers
from fedrec.errors import DataError

_FRACTION = re.compile(r"\s*[+-]?\d+\.\d+\s*")
_NUMBER = re.compile(r"\s*[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?\s*")
_TWO_ORDERS = re.compile(r"\s*\d{1,2}[/-]\d{1,2}[/-]\d{2,4}\b.*", re.DOTALL)
_UNITS = ((0.0, 1e11), (1e11, 1e14), (1e14, 1e17), (1e17, 1e20))
"""Seconds, and milli-, micro- and nanoseconds since 1973, told apart by their size."""
_DATE_LIKE = ((1900, 2100), (19_000_101, 21_001_231))


def check_rows(frame: pd.DataFrame, where: str) -> None:
    """Refuse cells that only a whole column says how to read.

    Args:
        frame: columns named by our roles, before cleaning.
        where: the table, for people.
    Raises:
        DataError: times of several units or as 5/6/2024, an order that is no whole number, ids with a decimal point,
            numbers with a comma, item keys in the events.
    """
    if "timestamp" in frame:
        _check_times(frame["timestamp"], where)
    for role in ("shopper", "item"):
        if role in frame and any(map(_FRACTION.fullmatch, _texts(frame[role]))):
            raise DataError(f"{where}: ids of a {role} have no decimal point; make them whole numbers or text")
    for role in ("rating", "quantity", "price"):
        if role in frame and any("," in text for text in _texts(frame[role])):
            raise DataError(f"{where}: a {role} with a comma; write numbers with a point, 1234.5")
    if "order" in frame:
        order, is_bad = numbers(frame["order"])
        if is_bad.any() or not (np.abs(order) < 2**53).all() or (order != np.floor(order)).any():
            raise DataError(f"{where}: the order of events is a whole number in every row")
    if "item_key" in frame:
        raise DataError(f"{where}: the items' keys belong in a file of items, as items = in [data], not in the events")


def _check_times(cells: pd.Series, where: str) -> None:
    if pd.api.types.is_datetime64_any_dtype(cells.dtype):
        return
    texts = _texts(cells)
    is_number = [bool(_NUMBER.fullmatch(text)) for text in texts]
    if texts and not any(is_number):
        if any(map(_TWO_ORDERS.fullmatch, texts)):
            raise DataError(f"{where}: times like 5/6/2024 can be read in two ways; write them as 2024-06-05 23:59")
        return
    values = numbers(cells)[0]
    sizes = np.abs(values[np.isfinite(values)])
    has_one_unit = any(((sizes >= low) & (sizes < high)).all() for low, high in _UNITS)
    if not all(is_number) or not has_one_unit:
        raise DataError(f"{where}: times are all of one kind: unix seconds, or milliseconds since 1973, or text")
    if any(((sizes >= low) & (sizes <= high)).any() for low, high in _DATE_LIKE):
        raise DataError(f"{where}: times like 2024 or 20240605 can be read in two ways; write them as 2024-06-05")


def _texts(cells: pd.Series) -> list[str]:
    """The distinct values that are not missing, as text; none of a column of numbers."""
    if pd.api.types.is_numeric_dtype(cells.dtype):
        return []
    texts = (str(one).strip() for one in distinct(cells)[1] if not isinstance(one, float) or np.isfinite(one))
    return [one for one in texts if one.casefold() not in MISSING_IDS]
