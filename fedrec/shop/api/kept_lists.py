"""Lists as they were answered, until somebody's event or item makes them another."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from fedrec.shop.lists.ranked import ListedItem, RankedList
from fedrec.shop.lists.shelf import Shelf

MOST_SUBJECTS = 20_000
MOST_BYTES = 64 * 1024**2
"""Of all lists, what was asked for them and `_OVERHEAD_BYTES`: whoever asks for long ones does not fill the memory."""

_OVERHEAD_BYTES = 700
"""Of a list beside its bytes: the objects and tables that hold it."""

MOST_QUERIES = 8
"""Of one subject."""

KEPT_S = 60.0
"""A list is computed again after so long, whatever happened: popularity moves on."""


class ListName(StrEnum):
    """The lists there are."""

    HOME = "home"
    SESSION = "session"
    CART = "cart"
    SIMILAR = "similar"
    TOGETHER = "bought-together"
    POPULAR = "popular"
    TRENDING = "trending"
    NEW = "new"


@dataclass(frozen=True, slots=True)
class KeptList:
    """An answer, but its list id.

    Attributes:
        name: which list.
        body: JSON after the id.
        reason, version, arm: for metrics and impressions.
        items: keys, a line each, for impressions.
        made: monotonic seconds.
    """

    name: str
    body: bytes
    reason: str
    version: str
    arm: str
    items: str
    made: float


def kept_list(name: str, ranked: RankedList, arm: str, shelf: Shelf) -> KeptList:
    """A list of this moment as an answer.

    Args:
        shelf: where the titles are; it holds all listed items.
    """
    served = ranked.served
    about = {
        "list_name": name,
        "reason": ranked.reason,
        "model_version": served.version,
        "mode": served.mode,
        "epsilon_outside": served.epsilon_outside,
        "inside_shop": served.inside_shop,
        "items": [_line(one, shelf.titles[shelf.position(one.item)]) for one in ranked.items],
    }
    body, items = b"," + orjson.dumps(about)[1:], "\n".join(ranked.keys)
    return KeptList(name, body, ranked.reason, served.version, arm, items, time.monotonic())


def _line(one: ListedItem, title: str) -> dict[str, Any]:
    line = {"position": one.position, "item": one.item, "title": title, "score": one.score, "source": one.source}
    if one.explanation is not None:
        line["explanation"] = one.explanation
    return line


class KeptLists:
    """By subject (a list's name and a shopper, an item, or nothing), then by query; the longest unused go first."""

    def __init__(self) -> None:
        self._subjects: OrderedDict[tuple[str, str], dict[bytes, KeptList]] = OrderedDict()
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._subjects)

    def get(self, name: str, subject: str, query: bytes) -> KeptList | None:
        """An unchanged list, or None."""
        queries = self._subjects.get((name, subject))
        found = None if queries is None else queries.get(query)
        if found is None or time.monotonic() - found.made > KEPT_S:
            return None
        self._subjects.move_to_end((name, subject))
        return found

    def put(self, subject: str, query: bytes, one: KeptList) -> None:
        """Keep a list."""
        place = one.name, subject
        if len(self._subjects.get(place, ())) >= MOST_QUERIES:
            self.drop(*place)
        queries = self._subjects.setdefault(place, {})
        if (old := queries.get(query)) is not None:
            self._num_bytes -= _size(query, old)
        queries[query] = one
        self._num_bytes += _size(query, one)
        while len(self._subjects) > MOST_SUBJECTS or self._num_bytes > MOST_BYTES:
            self.drop(*next(iter(self._subjects)))

    def drop(self, name: str, subject: str) -> None:
        """All of a subject's."""
        gone = self._subjects.pop((name, subject), {})
        self._num_bytes -= sum(_size(query, one) for query, one in gone.items())

    def clear(self) -> None:
        """All."""
        self._subjects.clear()
        self._num_bytes = 0


def _size(query: bytes, one: KeptList) -> int:
    return len(query) + len(one.body) + len(one.items) + _OVERHEAD_BYTES
