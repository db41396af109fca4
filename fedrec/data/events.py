"""The table that every reader produces."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


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
