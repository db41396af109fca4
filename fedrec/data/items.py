"""The catalogue: what is publicly known about items, and which items two shops share."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Items:
    """Public item data.

    Attributes:
        table: one row per item key, index ``item`` (str, unique, sorted); columns ``title``, ``category`` (str, "" =
            unknown; several categories joined by "|"), ``price`` (float32, NaN = unknown), ``is_shared`` (bool: the key
            means the same thing in every shop; False = known to one shop alone).
    """

    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)
