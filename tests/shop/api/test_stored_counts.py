"""What `/metrics` counts, and how often."""

from __future__ import annotations

from pathlib import Path

from fedrec.shop.api.stored_counts import LEAST_AGE_S, StoredCounts
from fedrec.shop.store.rows import Event, EventKind, Impression
from fedrec.shop.store.store import Store


def test_rows_are_counted_once_in_a_while(tmp_path: Path) -> None:
    now = 100.0
    with Store.open(f"sqlite:///{tmp_path / 'store.sqlite'}") as store:
        counts = StoredCounts(store, 4.0, clock=lambda: now)
        assert (counts.newest().num_events, counts.newest().shown) == (0, {})
        store.append_events([Event("ann", "d", EventKind.VIEW, 1.0, list_id="one")])
        store.add_impressions([Impression(one, "home", "r1", "a", 1.0, "ann") for one in ("one", "two")])
        now += LEAST_AGE_S
        assert counts.newest().num_events == 0
        now += 0.1
        found = counts.newest()
        assert (found.num_events, found.shown, found.made) == (1, {("r1", "a"): (2, 1)}, now)
