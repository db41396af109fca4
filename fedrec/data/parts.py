"""Events that come in parts: of each shopper and item the first event is kept, so that no table is ever whole.

Histories are sets of items in the order of their first events, so repeats say nothing more. What is held are codes and
times of distinct pairs, some 24 bytes each, and every id once; a part's text is gone when the next part comes.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from fedrec.data.events import Events
from fedrec.errors import DataError

PART_ROWS = 50_000
_TEXTS = ("shop", "shopper", "item", "item_key", "category", "title")


class FirstEvents:
    """Gathers parts; `events` gives the table."""

    def __init__(self, *, has_order: bool) -> None:
        """Args: has_order: whether the parts come with a column that says each event's place."""
        self._has_order = has_order
        self._codes: dict[str, dict[str, int]] = {}
        self._parts: list[dict[str, np.ndarray]] = []
        self._num_rows = self._num_kept = self._num_undated = 0
        self.num_repeats = 0

    def add(self, events: Events) -> None:
        """Take a cleaned part in, in the order of the file."""
        table, columns = events.table, {}
        for name in _TEXTS:
            if name in table:
                cells, code = table[name].cat, self._codes.setdefault(name, {})
                place = np.array([code.setdefault(text, len(code)) for text in cells.categories], np.int32)
                columns[name] = np.append(place, np.int32(-1))[cells.codes.to_numpy()]
        if "timestamp" in table:
            columns["timestamp"] = table["timestamp"].to_numpy(np.float64)
        if self._has_order:
            columns["order"] = table["order"].to_numpy(np.int64)
        elif "timestamp" in table:  # undated events are older than all others, in the order of the file
            is_undated = np.isnan(columns["timestamp"])
            columns["order"] = np.where(is_undated, self._num_undated + np.cumsum(is_undated), 0)
            self._num_undated += int(is_undated.sum())
        self._parts.append(columns)
        self._num_rows += len(table)
        if self._num_rows > 2 * self._num_kept + PART_ROWS:
            self._compact()

    def events(self) -> Events:
        """All first events; texts as categories, sorted.

        Raises:
            DataError: there is none.
        """
        if not self._num_rows:
            raise DataError("nothing is left of the rows after cleaning; check which columns were taken")
        self._compact()
        (columns,) = self._parts
        if not self._has_order and "order" in columns:
            if self._num_undated:
                is_dated = ~np.isnan(columns["timestamp"])
                columns["order"] = np.where(is_dated, self._num_undated + 1, columns["order"])
            else:
                del columns["order"]
        return Events(pd.DataFrame({name: self._column(name, cells) for name, cells in columns.items()}, copy=False))

    def _compact(self) -> None:
        """Keep each pair's first event alone."""
        columns = {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}
        self._parts.clear()
        pair = columns["shopper"].astype(np.int64) << 32 | columns["item"]
        owner = columns.get("shop", np.zeros(len(pair), np.int8))
        keys = [owner, pair, *(_nan_first(columns[name]) for name in ("timestamp", "order") if name in columns)]
        rows = np.lexsort(keys[::-1])
        owner, pair = owner[rows], pair[rows]
        rows = rows[np.append(True, (pair[1:] != pair[:-1]) | (owner[1:] != owner[:-1]))]
        self._parts = [{name: cells[rows] for name, cells in columns.items()}]
        self.num_repeats += self._num_rows - len(rows)
        self._num_rows = self._num_kept = len(rows)

    def _column(self, name: str, cells: np.ndarray) -> np.ndarray | pd.Categorical:
        if name not in self._codes:
            return cells
        names = np.array(list(self._codes[name]), dtype=object)
        is_used = np.zeros(len(names), bool)
        is_used[cells[cells >= 0]] = True
        used = np.flatnonzero(is_used)
        used = used[np.argsort(names[used])]
        place = np.full(len(names) + 1, -1, np.int32)
        place[used] = np.arange(len(used), dtype=np.int32)
        return pd.Categorical.from_codes(place[cells], categories=pd.Index(names[used], dtype="str"))


def _nan_first(key: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(key), -np.inf, key) if key.dtype.kind == "f" else key
