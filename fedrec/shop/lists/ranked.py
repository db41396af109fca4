"""What is asked of the shop's lists, and what they answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from fedrec.errors import ConfigError
from fedrec.shop.lists.serving_model import Attribution, Served
from fedrec.shop.lists.shelf import Wanted


class Source(StrEnum):
    """Where an item on a list, or a whole list, comes from."""

    PERSONAL = "personal"
    """What she had, through the model."""
    SESSION = "session"
    """What an anonymous visitor looked at, through the model; or what a cart holds."""
    CONTENT = "content"
    """Titles and categories like those of what she had: the model knows none of it, or not this item."""
    POPULAR = "popular"
    """What most shoppers want."""
    TRENDING = "trending"
    """What most shoppers want lately."""
    NEWEST = "newest"
    """What came last."""
    SIMILAR = "similar"
    """Like one item, through the model."""
    BOUGHT_TOGETHER = "bought_together"
    """Bought by the same shoppers."""
    NEW = "new"
    """An item that the model does not know, in a place reserved for such."""
    PINNED = "pinned"
    """The shop put it there."""


@dataclass(frozen=True)
class Query:
    """What is asked of a list.

    Attributes:
        n: length, >= 1.
        offset: how many to leave out at its beginning, >= 0.
        wanted: filters.
        exclude: keys that are left out.
        include_bought: lists what she had, too.
        diversity: 0 = best first; up to 1 = as unlike what stands above as can be (MMR).
        boost: by key; added to an item's score, in standard deviations of the list's scores. Negative = less of it.
        pin: keys at the beginning of the list, in this order, where the filters allow them.
        explain: says for each item where its score comes from.
        seed: orders equal scores at random by it; None = by place in the catalogue.
    """

    n: int = 10
    offset: int = 0
    wanted: Wanted = field(default_factory=Wanted)
    exclude: frozenset[str] = frozenset()
    include_bought: bool = False
    diversity: float = 0.0
    boost: Mapping[str, float] = field(default_factory=dict)
    pin: tuple[str, ...] = ()
    explain: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.n >= 1:
            raise ConfigError(f"n = {self.n}: a list needs at least 1 item")
        if not self.offset >= 0:
            raise ConfigError(f"offset = {self.offset}: give 0 or more")
        if not 0 <= self.diversity <= 1:
            raise ConfigError(f"diversity = {self.diversity}: give a number from 0 to 1")
        if not all(np.isfinite(value) for value in self.boost.values()):
            raise ConfigError("boost: give finite numbers")
        if self.seed is not None and not self.seed >= 0:
            raise ConfigError(f"seed = {self.seed}: give 0 or more")


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one item of the history adds to a score."""

    item: str
    title: str
    value: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """A score taken apart: base + boost + the contributions + others = the score.

    Attributes:
        base: what no item of the history brings; for leave-one-out what the contributions leave over.
        boost: what the query asked for.
        contributions: of the history, greatest size first.
        others: sum of those of the history that are not listed.
        attribution: how they were found.
    """

    base: float
    boost: float
    contributions: tuple[Contribution, ...]
    others: float
    attribution: Attribution


class ListedItem(NamedTuple):
    """One item of a list.

    Attributes:
        item: key.
        score: comparable among items of one source in one list; not a probability.
        source: where it comes from.
        position: in the whole list, 0 = first.
        explanation: where it was asked for.
    """

    item: str
    score: float
    source: Source
    position: int
    explanation: Explanation | None = None


@dataclass(frozen=True, slots=True)
class RankedList:
    """A list, and what every answer says.

    Attributes:
        items: best first; shorter than asked where the filters leave no more.
        reason: where the list comes from; items that fill it up say their own source.
        served: version, mode, epsilon_outside and inside_shop.
        trouble: why the model has no say in it, where it should; None = it has.
    """

    items: tuple[ListedItem, ...]
    reason: Source
    served: Served
    trouble: str | None = None

    @property
    def keys(self) -> list[str]:
        """Of the items, in order."""
        return [one.item for one in self.items]
