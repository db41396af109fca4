"""``fedrec data``: which data sets there are, and what is in one."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from fedrec.data.sources import Loaded

_MAX_SHOPS = 30

data_app = typer.Typer(no_args_is_help=True, help="Which data sets there are, and what is in one.")


@data_app.command("list")
def list_sets() -> None:
    """Show the named data sets that --source takes, their licences, and which are on this machine.

    Sets are read from the folder that FEDREC_DATA names (our Parquet form or the public original), else downloaded
    where the licence lets one.

    \b
    [bold]Examples[/]
      fedrec data list
      FEDREC_DATA=~/datasets fedrec data list
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from fedrec.data.sources import list_sources

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold")
    table.add_column("--source", style="bold cyan", no_wrap=True)
    table.add_column("here", justify="center")
    for title in ("what it is", "licence"):
        table.add_column(title)
    for one in list_sources():
        table.add_row(one.name, "[green]✓[/]" if one.is_here else "[dim]–[/]", one.summary, one.licence)
    Console().print(table)


@data_app.command("describe")
def describe(
    what: Annotated[str, typer.Argument(metavar="FILE|SOURCE", help="A CSV or Parquet file, or a named set.")],
    columns: Annotated[
        str | None, typer.Option(metavar="OURS=THEIRS,…", help="As in fedrec simulate: shopper=kunde,item=artikel.")
    ] = None,
    item_key: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="What makes two shops' items the same.")
    ] = None,
    items: Annotated[str | None, typer.Option(metavar="FILE", help="Item text, category and price.")] = None,
) -> None:
    """Read events as a run would: what was found, what cleaning dropped and why, shops, shoppers, items.

    \b
    [bold]Examples[/]
      fedrec data describe my.csv
      fedrec data describe my.csv --columns shopper=kunde,item=artikel --items items.csv
      fedrec data describe ml-100k
    """
    from rich.console import Console
    from rich.text import Text

    from fedrec.cli.simulate import parse_columns
    from fedrec.config import settings_from_options
    from fedrec.data.sources import load

    key = "data.events" if Path(what).suffix or Path(what).exists() else "data.source"
    options = {
        key: what,
        "data.columns": None if columns is None else parse_columns(columns),
        "data.item_key": item_key,
        "data.items": items,
    }
    settings = settings_from_options(None, options)
    loaded = load(settings.data_settings(), seed=settings.seed)
    console = Console()
    console.print(Text(what, style="bold"))
    console.print(_facts(loaded))
    if (shops := _shops(loaded)) is not None:
        console.print(shops)


def _facts(loaded: Loaded) -> Table:
    """What was found, and what cleaning did."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    events, cleaning, found = loaded.events.table, loaded.cleaning, loaded.source.get("columns") or {}
    rows = [
        ("rows read", f"{cleaning.rows_read:,}"),
        *((f"dropped: {reason}", f"{count:,}") for reason, count in cleaning.dropped if count),
        *((f"handled: {what}", f"{count:,}") for what, count in cleaning.handled if count),
        ("events", f"{len(events):,}"),
        ("shoppers", f"{events['shopper'].nunique():,}"),
        ("items", f"{events['item'].nunique():,}"),
        ("items known by a shared key", f"{int(loaded.items.table['is_shared'].sum()):,}"),
        ("columns", ", ".join(f"{role} ({name})" for role, name in found.items()) or ", ".join(events.columns)),
    ]
    if "timestamp" in events and events["timestamp"].notna().any():
        days = [f"{datetime.fromtimestamp(end, UTC):%Y-%m-%d}" for end in events["timestamp"].agg(["min", "max"])]
        rows.append(
            ("time", f"{days[0]} to {days[1]}; known for {events['timestamp'].notna().mean():.1%} of the events")
        )
    rows += [(key, str(loaded.source[key])) for key in ("licence", "origin", "fingerprint") if loaded.source.get(key)]
    table = Table(box=box.SIMPLE, padding=(0, 1), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def _shops(loaded: Loaded) -> Table | None:
    """Shoppers, items and events of each shop, largest first; None where no shop is known."""
    from rich import box
    from rich.table import Table

    events = loaded.events.table
    if "shop" not in events:
        return None
    groups = events.groupby("shop", observed=True)
    sizes = groups.agg(shoppers=("shopper", "nunique"), items=("item", "nunique"), events=("item", "size"))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold")
    table.add_column("shop")
    for title in sizes.columns:
        table.add_column(title, justify="right")
    for name, row in sizes.sort_values("shoppers", ascending=False).head(_MAX_SHOPS).iterrows():
        table.add_row(str(name), *(f"{int(value):,}" for value in row))
    if len(sizes) > _MAX_SHOPS:
        table.add_row(f"… {len(sizes) - _MAX_SHOPS:,} more")
    return table
