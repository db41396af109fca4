"""What a shop's file says about serving."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedrec.errors import ConfigError
from fedrec.shop.lists.filling import ListSettings
from fedrec.shop.lists.trends import TrendSettings


@dataclass(frozen=True)
class Split:
    """Two models compared: some shoppers are served another one than the current.

    Attributes:
        version: served in arm ``b``.
        share: of shoppers in it, in (0, 1).
    """

    version: str
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"share = {self.share}: give the share of shoppers in arm b, between 0 and 1")


@dataclass(frozen=True)
class ServingSettings:
    """How a shop is served.

    Attributes:
        requests_per_s: of one key, on average; twice as many at once. 0 = no limit.
        split: a comparison of two models; None = everybody gets the current one.
        lists, trends: see there.
    """

    requests_per_s: float = 1_000.0
    split: Split | None = None
    lists: ListSettings = field(default_factory=ListSettings)
    trends: TrendSettings = field(default_factory=TrendSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.requests_per_s < float("inf"):
            raise ConfigError(f"requests_per_s = {self.requests_per_s}: give 0 or more")
