"""A rate by name: turns, what a pause allows, and how much of it is remembered."""

from __future__ import annotations

from fedrec import pace as paces
from fedrec.pace import Pace


def test_a_pace_gives_each_name_its_turns_and_counts_no_refused_one():
    now = [100.0]
    pace = Pace(2.0, 3, clock=lambda: now[0])
    assert [pace.wait_s("ant") for _ in range(5)] == [0.0, 0.0, 0.0, 0.5, 1.0]
    assert pace.wait_s("bee") == 0.0
    assert pace.wait_s("ant", most_s=1.0) == 1.5
    now[0] += 1.5
    assert pace.wait_s("ant", most_s=0.0) == 0.0  # the refused one took no turn


def test_a_pace_forgets_names_that_are_long_gone():
    now = [0.0]
    pace = Pace(1000.0, 1, clock=lambda: now[0])
    for number in range(paces._MOST_NAMES + 2):
        now[0] += 1.0
        pace.wait_s(number)
    assert len(pace._due) < 3
