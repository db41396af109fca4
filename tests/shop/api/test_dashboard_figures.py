"""The dashboard's figures against counts by hand and the ledger itself, and where its plots put them."""

from __future__ import annotations

import asyncio
import sqlite3
import time

import pytest

from fedrec.errors import LedgerTampered
from fedrec.privacy.ledger import Budget, Ledger
from fedrec.privacy.mechanisms import PlannedRelease
from fedrec.privacy.spec import Mode, PrivacySpec
from fedrec.shop.api.dashboard_figures import DAYS, Coverage, Figures, Rate, clicks
from fedrec.shop.api.dashboard_plots import HEIGHT, Line, plot
from fedrec.shop.member import LEDGER_FILE
from fedrec.shop.store.rows import Event, EventKind, Impression, Item

from .conftest import Corner

DAY_S = 86_400.0
NOON = time.time() // DAY_S * DAY_S - DAY_S / 2


def show(corner: Corner, *shown: tuple[str, str, float, bool], name: str = "home") -> None:
    """Lists of (version, arm, time, is clicked)."""
    for place, (version, arm, at, is_clicked) in enumerate(shown):
        list_id = f"{name}-{place}"
        corner.store.add_impressions([Impression(list_id, name, version, arm, at, "ann")])
        if is_clicked:
            corner.store.append_events([Event("ann", "a", EventKind.VIEW, at + 1, list_id=list_id)])


def test_click_through_is_counted_by_list_and_day(corner: Corner) -> None:
    show(corner, ("r1", "", NOON, True), ("r1", "", NOON, False), ("r1", "", NOON - 2 * DAY_S, False))
    show(corner, ("r1", "", NOON, True), ("r1", "", NOON - (DAYS + 2) * DAY_S, True), name="cart")
    found = clicks(corner.live)
    assert [(one.name, one.shown, one.clicked) for one in found.by_list] == [("home", 3, 1), ("cart", 1, 1)]
    (line,) = found.lines
    assert [y for _, y, _ in line.points] == [0.0, pytest.approx(2 / 3)]
    assert [count for _, count, _ in found.shown] == [1.0, 3.0]
    assert found.by_arm == []


def test_arms_have_lines_of_their_own(corner: Corner) -> None:
    show(corner, ("r1", "a", NOON, True), ("local", "b", NOON, False), ("r1", "a", NOON, True))
    show(corner, ("r1", "", NOON, True), name="popular")  # of somebody unknown: in no arm
    found = clicks(corner.live)
    assert [(one.name, one.shown, one.clicked) for one in found.by_arm] == [("a: r1", 2, 2), ("b: local", 1, 0)]
    assert [line.name for line in found.lines] == ["a: r1", "b: local"]


@pytest.mark.parametrize(
    ("shown", "clicked", "low", "high"), [(100, 10, 0.0552, 0.1744), (10, 0, 0.0, 0.2775), (5, 5, 0.5655, 1.0)]
)
def test_shares_have_wilsons_interval(shown: int, clicked: int, low: float, high: float) -> None:
    rate = Rate("", shown, clicked)
    assert (rate.low, rate.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_coverage_counts_what_can_be_listed_is_known_and_is_listed(corner: Corner) -> None:
    corner.store.put_items([Item("new", "Something new")])
    corner.store.hide_items(["l"])
    corner.store.append_events([Event("ann", "a", EventKind.PURCHASE, 1.0)])
    found = asyncio.run(Figures().coverage(corner.live))
    # 13 items, one hidden; the model knows a to l; ann, the only shopper, is shown 10 of those that she has not.
    assert found == Coverage(items=12, known=11, listed=10, shoppers=1, hidden=1)


def test_the_budget_is_the_ledgers(corner: Corner) -> None:
    path = corner.live.folder / LEDGER_FILE
    assert Figures().budget(corner.live) is None
    spec = PrivacySpec(1.0, 1e-6, Mode.DISTRIBUTED, public_shoppers=400, max_shoppers=400, min_shops=3, colluders=1)
    release = PlannedRelease("popularity", 1.0, 9.0)
    book = Ledger.open(path, corner.name, budget=Budget(4.0, 2e-6))
    figures = Figures()
    book.reserve("run", spec, [release, release], is_masked=True)
    seen = []
    for place in range(2):
        book.charge("run", place, b"p" * 32, release, b"sum")
        found = figures.budget(corner.live)
        assert found is not None
        assert (found.spent, found.epsilon, found.releases) == (book.spent().epsilon, 4.0, place + 1)
        seen.append(found.spent)
    assert [round(y, 9) for _, y, _ in found.line.points] == [0.0, *(round(one, 9) for one in seen), round(seen[1], 9)]
    assert 0 < found.left < 4.0
    book.close()
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM ledger_entries WHERE sequence = 3")
    database.close()
    with pytest.raises(LedgerTampered):
        Figures().budget(corner.live)


def test_a_plot_puts_values_where_they_belong() -> None:
    days = [0.0, 10 * DAY_S, 40 * DAY_S]
    line = Line("x", [(day, y, "") for day, y in zip(days, (0.0, 3.0, 4.0), strict=True)])
    found = plot([line], width=600, value=lambda y: f"{y:g}", limit=4.0)
    marks = found.lines[0].marks
    assert [mark.x for mark in marks] == [
        found.left,
        pytest.approx(found.left + (found.right - found.left) / 4),
        found.right,
    ]
    assert marks[0].y == found.floor < HEIGHT
    assert found.floor - marks[1].y == pytest.approx(0.75 * (found.floor - marks[2].y), abs=0.1)
    assert marks[2].y == found.limit == found.y_labels[-1][0]
    assert [text for _, text in found.y_labels] == ["0", "1", "2", "3", "4"]
    assert 2 <= len(found.x_labels) <= 6


@pytest.mark.parametrize("most", [0.0, 1e-9, 0.07, 0.999, 1.0, 7.3, 12345.0])
def test_a_plots_axis_covers_its_values(most: float) -> None:
    found = plot([Line("x", [(0.0, most, "")])], width=340, value=str)
    labels = [float(text) for _, text in found.y_labels]
    assert labels[0] == 0
    assert labels[-1] >= most * (1 - 1e-9)
    assert 2 <= len(labels) <= 6
    assert found.left < found.lines[0].marks[0].x < found.right


def test_steps_hold_until_the_next_point() -> None:
    step = plot([Line("x", [(0.0, 1.0, ""), (DAY_S, 2.0, "")], is_step=True)], width=340, value=str).lines[0]
    assert "H" in step.path
    assert "L" not in step.path
