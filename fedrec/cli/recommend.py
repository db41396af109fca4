"""``fedrec recommend``: lists from a finished run."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrec.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from fedrec.shop.recommend import Recommendation


def recommend(
    run: Annotated[Path, typer.Option(metavar="DIR", help="Run directory that fedrec simulate left.")],
    shop: Annotated[str | None, typer.Option(help="A shop of the run.")] = None,
    shopper: Annotated[str | None, typer.Option(help="A shopper of that shop.")] = None,
    n: Annotated[int, typer.Option("-n", "--length", min=1, help="Length of a list.")] = 10,
    all_: Annotated[bool, typer.Option("--all", help="Every shopper (of --shop, if given) into --out.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --all: a .csv or .parquet file that does not exist yet.")
    ] = None,
) -> None:
    """Recommend to one shopper with reasons, or to all shoppers into a file.

    Scores come now from everything the shop knows about the shopper, test events included.

    \b
    [bold]Examples[/]
      fedrec recommend --run runs/x --shop uk --shopper A2X7 -n 10
      fedrec recommend --run runs/x --all --out lists.parquet
      fedrec recommend --run runs/x --all --shop uk -n 5 --out uk.csv
    """
    if all_:
        if out is None:
            raise ConfigError("--all needs --out FILE: a .csv or .parquet file")
        if shopper is not None:
            raise ConfigError(f"--all and --shopper {shopper}: give one of them")
        _write_all(run, shop, n, out)
        return
    if shop is None or shopper is None:
        raise ConfigError("give --shop and --shopper, or --all with --out FILE")
    if out is not None:
        raise ConfigError(f"--out {out} goes with --all; one shopper's list is printed")
    from fedrec.shop.recommend import recommend as best

    _print_list(shop, shopper, best(run, shop, shopper, n))


def _print_list(shop: str, shopper: str, lines: list[Recommendation]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not lines:
        console.print(Text(f"nothing for {shopper} at {shop}: the shop has no item that this shopper has not had"))
        return
    has_reasons = any(line.because for line in lines)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold")
    table.add_column("", justify="right", style="dim")
    table.add_column("item", no_wrap=True, style="cyan")
    table.add_column("title")
    table.add_column("score", justify="right")
    if has_reasons:
        table.add_column("because of", style="dim")
    for line in lines:
        why = "\n".join(f"{reason.title or reason.item} ({reason.share:.0%})" for reason in line.because)
        cells = [str(line.rank), line.item, line.title, f"{line.score:.4f}"]
        table.add_row(*(Text(cell) for cell in [*cells, *([why] if has_reasons else [])]))
    console.print(Text(f"for {shopper} at {shop}", style="bold"))
    console.print(table)


def _write_all(run: Path, shop: str | None, n: int, out: Path) -> None:
    """Shop by shop into a temporary file beside the target, renamed when complete."""
    if out.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"--out {out}: the name must end in .csv or .parquet")
    if out.exists():
        raise ConfigError(f"--out {out}: exists already; give another file")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}")
    import pyarrow as pa
    from pyarrow import csv, parquet

    from fedrec.shop.recommend import recommend_all

    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    writer: csv.CSVWriter | parquet.ParquetWriter | None = None
    rows = 0
    try:
        for lists in recommend_all(run, n, shop=shop):
            table = pa.Table.from_pandas(lists, schema=_schema(pa), preserve_index=False)
            if writer is None:
                kind = csv.CSVWriter if out.suffix == ".csv" else parquet.ParquetWriter
                writer = kind(str(temporary), table.schema)
            writer.write_table(table)
            rows += table.num_rows
        if writer is not None:
            writer.close()
            temporary.rename(out)
    except OSError as error:
        raise StoreError(f"--out {out}: cannot be written ({_why(error)}); give another file") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    typer.echo(f"{rows:,} rows written to {out}")


def _why(error: OSError) -> str:
    """The system's word for it; Arrow's errors carry a number at most."""
    return os.strerror(error.errno) if error.errno else "the system refuses"


def _schema(pa: object) -> object:
    types = {"shop": "string", "shopper": "string", "rank": "int32", "item": "string", "title": "string"}
    return pa.schema([(name, getattr(pa, kind)()) for name, kind in {**types, "score": "float32"}.items()])  # type: ignore[attr-defined]
