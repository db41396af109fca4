"""The comparison at the end of a run."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedrec.cli.tables import bar, column_table, epsilon_table, print_comparison


def record(num_shops: int) -> dict[str, Any]:
    """A record with two columns, whose shop i has 10 (i + 1) shoppers and gains (i - 1) / 100."""
    names = [f"shop-{place:02d}" for place in range(num_shops)]

    def column(mean: float) -> dict[str, Any]:
        one = {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}
        macro = dict.fromkeys(("ndcg@10", "hr@10", "mrr@10", "coverage@10"), one)
        return {"macro": macro, "micro": macro, "shops": {name: {"ndcg@10": one} for name in names}}

    gains = {
        name: {
            "mean": (place - 1) / 100,
            "low": (place - 2) / 100,
            "high": place / 100,
            "decision": "joins" if place else "stays local",
            "shoppers": 10 * (place + 1),
            "test_shoppers": 7,
        }
        for place, name in enumerate(names)
    }
    return {
        "columns": ["local", "federated_personal"],
        "main_column": "federated_personal",
        "scores": {"local": column(0.1), "federated_personal": column(0.2)},
        "gain": {
            "metric": "ndcg@10",
            "of": "federated_personal",
            "over": "local",
            "macro": {"mean": 0.1, "low": 0.05, "high": 0.15},
            "shops": gains,
            "harmed_shops": 0,
            "worst": {"shop": "shop-00", "mean": -0.01},
        },
        "data": {
            "source": "mine",
            "shops": [{"shop": name} for name in names],
            "shoppers": 1234,
            "items": 56,
            "events": 7890,
            "rows_read": 8000,
            "dropped": [{"reason": "bad date", "rows": 110}, {"reason": "no item", "rows": 0}],
            "handled": [],
        },
        "model": {"name": "ease"},
        "rounds": [{}],
        "bytes": {"up": 1500, "down": 20},
        "seconds": {"total": 12.3},
        "peak_memory_bytes": 5e8,
        "guarantee": "none: research mode",
    }


def shown(num_shops: int) -> list[str]:
    console = Console(file=io.StringIO(), width=120)
    print_comparison(Path("runs/x"), record(num_shops), console)
    assert isinstance(console.file, io.StringIO)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize(("title", "cells"), [("federated_personal", 16), ("federated_dp_personal@0.125", 7)])
def test_the_columns_fit_into_100_cells_with_shorter_bars_beside_longer_names(title: str, cells: int) -> None:
    made = record(2)
    made["columns"] = [title]
    made["main_column"] = title
    made["scores"] = {title: made["scores"]["local"]}
    console = Console(file=io.StringIO(), width=100)
    console.print(column_table(made, width=100))
    assert isinstance(console.file, io.StringIO)
    line = next(line for line in console.file.getvalue().splitlines() if "█" in line)
    assert line.count("█") == cells
    assert "…" not in console.file.getvalue()


def test_the_last_line_is_the_run_directory() -> None:
    assert shown(3)[-1] == "run directory: runs/x"


def test_a_column_shows_its_mean_with_a_bar_and_its_interval() -> None:
    lines = shown(3)
    assert next(line for line in lines if line.startswith("alone")).startswith("alone .1000 ████████ .0900–.1100")
    assert any(line.startswith("federated + personal .2000 ████████████████ .1900–.2100") for line in lines)


def test_each_shop_shows_its_gain_largest_first() -> None:
    lines = shown(3)
    shops = [line for line in lines if line.startswith("shop-")]
    assert shops == [
        "shop-02 30 7 .1000 .2000 +.0100 0 to +.0200 joins",
        "shop-01 20 7 .1000 .2000 0 −.0100 to +.0100 joins",
        "shop-00 10 7 .1000 .2000 −.0100 −.0200 to 0 stays local",
    ]


def test_of_many_shops_the_largest_and_smallest_are_shown_and_the_rest_counted() -> None:
    lines = shown(40)
    shops = [line.split()[0] for line in lines if line.startswith("shop-")]
    assert len(shops) == 15
    assert shops[0] == "shop-39"
    assert shops[-1] == "shop-00"
    assert any("25 more shops in the report" in line for line in lines)


def test_dropped_rows_are_counted_and_empty_classes_left_out() -> None:
    assert "dropped of 8,000 rows: bad date 110" in shown(3)


@pytest.mark.parametrize(
    ("value", "top", "text"),
    [(1, 1, "████"), (0.5, 1, "██  "), (0, 1, "    "), (0.28125, 1, "█▏  "), (2, 1, "████"), (1, 0, "    ")],
)
def test_a_bar_is_drawn_in_eighths(value: float, top: float, text: str) -> None:
    assert bar(value, top, cells=4) == text


def test_several_epsilons_are_set_side_by_side_by_size_of_shop() -> None:
    made = record(3)
    assert epsilon_table(made) is None
    gains = []
    for epsilon, mean in (("0.5", -0.01), ("2", 0.03)):
        macro = {"mean": mean, "low": mean - 0.005, "high": mean + 0.005}
        classes = {"under 100 shoppers": {**macro, "mean": mean * 2, "shops": 3, "test_shoppers": 21}}
        gains.append({**made["gain"], "of": f"federated_dp_personal@{epsilon}", "macro": macro, "classes": classes})
    made["gain_by_epsilon"] = gains[:1]
    assert epsilon_table(made) is None
    made["gain_by_epsilon"] = gains
    console = Console(file=io.StringIO(), width=80)
    print_comparison(Path("runs/x"), made, console)
    assert isinstance(console.file, io.StringIO)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "gain in NDCG@10 shops ε 0.5 ε 2" in lines
    assert "all shops 3 −.0100 +.0300" in lines
    assert "under 100 shoppers 3 −.0200 +.0600" in lines
    assert "join, harmed 2, 0 2, 0" in lines
