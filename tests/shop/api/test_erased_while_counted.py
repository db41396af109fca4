"""A shopper erased while events are counted is in no count that is put in place, and taken out of none twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from fedrec.shop.api.live_shop import LiveShop
from fedrec.shop.lists.trends import Trends
from fedrec.shop.store.rows import Erasure, Event, EventKind
from fedrec.shop.store.store import Store

from .conftest import NOON, NUM_ITEMS, Corner


@pytest.fixture
def live(corner: Corner) -> Iterator[LiveShop]:
    """Ann and Bob bought d; nothing is counted yet."""
    corner.store.append_events(Event(name, "d", EventKind.PURCHASE, NOON) for name in ("ann", "bob"))
    corner.live._catch_up()
    yield corner.live
    asyncio.run(corner.live.close())


def counted(live: LiveShop) -> Trends:
    return live._counting.begin(live._shelf, live.store.last_sequence()).result()


def want_d(trends: Trends | None) -> float | None:
    """How many; None = nothing is counted."""
    return None if trends is None else float(trends.popular(NUM_ITEMS)[3])


def test_a_count_begun_before_her_erasure_is_not_put_in_place(live: LiveShop, corner: Corner) -> None:
    live._count()
    assert live._counted is not None
    live._counted.result()
    with Store.open(corner.url) as other:
        other.erase_shopper("ann")
    asyncio.run(live._watch())
    assert want_d(live._trends) in (None, 1.0)  # not yet, or by the count begun since
    if live._counted is not None:
        live._counted.result()
        asyncio.run(live._watch())
    assert want_d(live._trends) == 1.0


def test_she_is_not_taken_out_of_counts_made_without_her(live: LiveShop, monkeypatch: pytest.MonkeyPatch) -> None:
    live._trends = before = counted(live)
    erase = live.store.erase_shopper

    def erased_and_counted_anew(shopper: str) -> Erasure:
        found = erase(shopper)
        live._trends = counted(live)  # as the watcher may at this moment
        return found

    monkeypatch.setattr(live.store, "erase_shopper", erased_and_counted_anew)
    live.erase("ann")
    assert (want_d(before), want_d(live._trends)) == (1.0, 1.0)
