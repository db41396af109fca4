"""A data set's fingerprint: the same for the same events and items, in whatever order, run or machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from fedrec.data.events import Events
from fedrec.data.items import Items


def fingerprint(tables: Sequence[Events], items: Items) -> str:
    """SHA-256 over sorted 64-bit hashes of the rows of each table, with its column names.

    Args:
        tables: cleaned events (and test events, where there are).
        items: the catalogue.
    Returns:
        "sha256:" and 64 hexadecimal digits.
    """
    digest = hashlib.sha256(b"fedrec data 1")
    catalogue = items.table.reset_index()
    for table in (*(events.table for events in tables), catalogue):
        names = sorted(table.columns)
        digest.update(repr((len(table), names)).encode())
        digest.update(np.sort(_row_hashes(table, names)).astype("<u8").tobytes())
    return f"sha256:{digest.hexdigest()}"


def _row_hashes(table: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """uint64, (num_rows,)."""
    mixed = np.zeros(len(table), np.uint64)
    for name in names:
        cells = table[name]
        if isinstance(cells.dtype, pd.CategoricalDtype):
            hashes = np.append(_text_hashes(cells.cat.categories), np.uint64(0))[cells.cat.codes.to_numpy()]
        elif isinstance(cells.dtype, pd.StringDtype):
            codes, texts = pd.factorize(cells)
            hashes = np.append(_text_hashes(pd.Index(texts)), np.uint64(0))[codes]
        else:
            hashes = _number_hashes(cells.to_numpy())
        mixed = pd.util.hash_array(mixed ^ hashes)
    return mixed


def _text_hashes(texts: pd.Index) -> np.ndarray:
    if len(texts) == 0:
        return np.zeros(0, np.uint64)
    return pd.util.hash_array(texts.to_numpy(dtype=object), categorize=False)


def _number_hashes(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64) + 0.0  # -0.0 is 0.0
    return pd.util.hash_array(np.where(np.isnan(values), np.nan, values).view(np.uint64))
