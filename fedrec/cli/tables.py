"""The comparison at the end of a run, as terminal tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedrec.federation.run_record import epsilon_of
from fedrec.reports import summary
from fedrec.reports.summary import Record

_BAR_CELLS = 16
_CELLS_WITHOUT_NAME_AND_BAR = 61
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_MAX_SHOP_ROWS = 15
_WIDE = 100
"""Terminals of fewer cells get tables without bars and side figures."""


def print_comparison(run_dir: Path, record: Record, console: Console) -> None:
    """What was run, the columns, the shops, the summary; the run directory last."""
    console.print()
    console.print(Text(summary.what_was_run(record), style="bold"))
    is_wide = console.width >= _WIDE
    console.print(column_table(record, is_wide=is_wide, width=console.width))
    if (shops := shop_table(record, is_wide=is_wide)) is not None:
        console.print(shops)
    if (epsilons := epsilon_table(record)) is not None:
        console.print(epsilons)
    for text in [*account_lines(record), "", *summary.sentences(record), "", cost_line(record)]:
        console.print(Text(text))
    console.print(Text(f"guarantee: {record['guarantee']}", style="dim"))
    console.print(Text(f"report: {run_dir / 'report.html'}"), soft_wrap=True)
    console.print(Text(f"run directory: {run_dir}"), soft_wrap=True)


def column_table(record: Record, *, is_wide: bool = True, width: int = 120) -> Table:
    """Column × NDCG@10 with interval, HR@10 and coverage; macro means over shops.

    Args:
        width: cells of the terminal; long names of columns make the bars shorter.
    """
    longest = max((len(summary.title_of(name)) for name in record["columns"]), default=0)
    bar_cells = max(0, min(_BAR_CELLS, width - _CELLS_WITHOUT_NAME_AND_BAR - longest))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold")
    side = {"HR@10": "hr@10", "MRR@10": "mrr@10", "cover@10": "coverage@10"}
    if not is_wide:
        del side["cover@10"]
    table.add_column("column", no_wrap=True)
    table.add_column("NDCG@10", justify="right", no_wrap=True)
    if is_wide and bar_cells:
        table.add_column("", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    for title in side:
        table.add_column(title, justify="right", no_wrap=True)
    means = {name: summary.mean(record, name, "ndcg@10") for name in record["columns"]}
    top = max((value for value in means.values() if value is not None), default=0.0)
    for name in record["columns"]:
        is_main = name == record["main_column"]
        colour = "green" if is_main else "cyan"
        table.add_row(
            summary.title_of(name) if is_wide else summary.short_title_of(name),
            summary.score(means[name]),
            *([Text(bar(means[name] or 0.0, top, bar_cells), style=colour)] if is_wide and bar_cells else []),
            summary.interval(summary.estimate(record, name, "ndcg@10")),
            *(summary.score(summary.mean(record, name, metric)) for metric in side.values()),
            style="bold" if is_main else "",
        )
    return table


def shop_table(record: Record, *, is_wide: bool = True) -> Table | None:
    """What each shop gains by joining, the largest first; of many shops those with a test, largest and smallest."""
    gain = record.get("gain")
    if not gain or not gain.get("shops"):
        return None
    shops = sorted(gain["shops"].items(), key=lambda entry: (-entry[1]["shoppers"], entry[0]))
    num_shops = len(shops)
    if num_shops > _MAX_SHOP_ROWS:
        shops = [entry for entry in shops if entry[1]["test_shoppers"]]
    if len(shops) > _MAX_SHOP_ROWS:
        half = _MAX_SHOP_ROWS // 2
        shops = [*shops[: _MAX_SHOP_ROWS - half], *shops[-half:]]
    left_out = num_shops - len(shops)
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
        header_style="bold",
        caption=f"the largest and the smallest; {summary.plural(left_out, 'more shop')} in the report"
        if left_out
        else None,
        caption_style="dim",
    )
    table.add_column("shop", no_wrap=True, max_width=None if is_wide else 11)
    titles = ("shoppers", "tested", "alone", "joined", "gain", "95 % interval", "decision")
    shown = [n for n, title in enumerate(titles) if is_wide or title != "tested"]
    for n in shown:
        table.add_column(titles[n], justify="right" if n < 5 else "left", no_wrap=True)
    for name, row in shops:
        cells = _shop_cells(record, gain, name, row)
        if not is_wide and row["decision"] != "joins":
            cells[-1] = Text("local", style="dim")
        table.add_row(name, *(cells[n] for n in shown))
    return table


def epsilon_table(record: Record) -> Table | None:
    """Gain from joining at each epsilon: over all shops and by size of shop; None for fewer than two epsilons."""
    gains = record.get("gain_by_epsilon") or []
    if len(gains) < 2:
        return None
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column(f"gain in {gains[0]['metric'].upper()}", no_wrap=True)
    table.add_column("shops", justify="right")
    for gain in gains:
        table.add_column(f"ε {epsilon_of(gain['of'])}", justify="right", no_wrap=True)
    table.add_row(
        "all shops",
        summary.count(sum(row["mean"] is not None for row in gains[0]["shops"].values())),
        *(_gain_cell(gain["macro"]) for gain in gains),
        style="bold",
    )
    for name, first in gains[0]["classes"].items():
        table.add_row(name, summary.count(first["shops"]), *(_gain_cell(gain["classes"][name]) for gain in gains))
    joining = [sum(row.get("decision") == "joins" for row in gain["shops"].values()) for gain in gains]
    table.add_row("join, harmed", "", *(f"{n}, {gain['harmed_shops']}" for n, gain in zip(joining, gains, strict=True)))
    return table


def _gain_cell(row: Mapping[str, Any]) -> Text:
    return Text(summary.signed(row["mean"]), style=_gain_style(row))


def _shop_cells(record: Record, gain: Mapping[str, Any], name: str, row: Mapping[str, Any]) -> list[Text]:
    metric = gain["metric"]
    means = [summary.shop_mean(record, column, name, metric) for column in (gain["over"], gain["of"])]
    joins = row["decision"] == "joins"
    return [
        Text(summary.count(row["shoppers"])),
        Text(summary.count(row["test_shoppers"])),
        *(Text(summary.score(value)) for value in means),
        Text(summary.signed(row["mean"]), style=_gain_style(row)),
        Text(summary.signed_interval(row), style="dim"),
        Text(row["decision"], style="green" if joins else "dim"),
    ]


def _gain_style(row: Mapping[str, Any]) -> str:
    if row["low"] is not None and row["low"] > 0:
        return "green"
    return "yellow" if row["high"] is not None and row["high"] < 0 else ""


def account_lines(record: Record) -> list[str]:
    """What cleaning dropped and what was handled, in one line each."""
    data = record["data"]
    lines = []
    if dropped := [f"{row['reason']} {summary.count(row['rows'])}" for row in data["dropped"] if row["rows"]]:
        lines.append(f"dropped of {summary.count(data['rows_read'])} rows: {', '.join(dropped)}")
    if handled := [f"{row['what']} {summary.count(row['count'])}" for row in data["handled"] if row["count"]]:
        lines.append(f"handled: {', '.join(handled)}")
    return lines


def cost_line(record: Record) -> str:
    """Rounds, bytes, time and memory."""
    rounds = record["rounds"]
    sent = record["bytes"]
    return (
        f"{summary.plural(len(rounds), 'round')}, {summary.size(sent.get('up'))} up and "
        f"{summary.size(sent.get('down'))} down; {summary.duration(record['seconds'].get('total'))} in all, "
        f"{summary.size(record['peak_memory_bytes'])} of memory at most"
    )


def bar(value: float, top: float, cells: int = _BAR_CELLS) -> str:
    """A bar of ``cells`` cells for ``top``, drawn in eighths of a cell."""
    eighths = round(max(0.0, min(value / top, 1.0)) * cells * 8) if top > 0 else 0
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(cells)
