"""What the store holds that a server has not seen yet: read apart from where it is taken in, so that a thread can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from starlette.concurrency import run_in_threadpool

from fedrec.shop.store.rows import ItemChange, StoredEvent
from fedrec.shop.store.store import Store

_PAGE = 2_000
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Seen:
    """How far a server has seen its store.

    Attributes:
        mark: see `Store.mark`.
        events, items: sequence of the last one seen.
        is_behind: there are more events than were read.
    """

    mark: object
    events: int
    items: int
    is_behind: bool


@dataclass(frozen=True)
class News:
    """What was written since; it may overlap with what another reader found meanwhile.

    Attributes:
        mark: of before everything else here was read.
        events: in the order of arrival, a page at most.
        is_page: there may be more events.
        items: all changes, in order, in pages; an item may have changed again in a later one.
        generation: see `Store.generation`.
    """

    mark: object
    events: Sequence[StoredEvent]
    is_page: bool
    items: Sequence[Sequence[ItemChange]]
    generation: int


def read_news(store: Store, seen: Seen) -> News | None:
    """What is new; None = nothing.

    Raises:
        StoreError: the store cannot be read.
    """
    mark = store.mark()
    if mark == seen.mark and not seen.is_behind:
        return None
    events = store.events_after(seen.events, _PAGE)
    pages: list[Sequence[ItemChange]] = []
    while changes := store.items_after(pages[-1][-1].sequence if pages else seen.items):
        pages.append(changes)
    return News(mark, events, len(events) == _PAGE, pages, store.generation())


async def waiting(store: Store, read: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """What a read of a store finds: SQLite is read here, in microseconds; for what may wait a thread does."""
    if store.is_file:
        return read(*given, **named)
    return await run_in_threadpool(read, *given, **named)
