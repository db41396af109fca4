"""``fedrec shop init | import | export | erase | key``: a shop's store."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedrec.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from fedrec.role_config import ShopSettings
    from fedrec.shop.store.imports import Imported
    from fedrec.shop.store.store import Store

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The shop's folder.")]
Shopper = Annotated[str, typer.Argument(help="Her id, as events say it.")]


class KeyAction(StrEnum):
    """What to do with keys."""

    ADD = "add"
    LIST = "list"
    REVOKE = "revoke"


def init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="Name of the shop.")],
) -> None:
    """Make a shop that is in no federation: it serves a model of its own, and can join one later with enrol.

    \b
    [bold]Example[/]
      fedrec shop init myshop --name north
      fedrec shop import myshop events.csv
    """
    from fedrec.federation.run_record import write_atomically
    from fedrec.role_config import SHOP_FILE, open_store, read_shop, shop_toml
    from fedrec.shop.policy import check_name

    text = shop_toml(check_name(name), public_shoppers=0, events=None, items=None)
    if (folder / SHOP_FILE).exists():
        raise StoreError(f"{folder}: holds a shop already; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written ({error.strerror})") from error
    write_atomically(folder / SHOP_FILE, text.encode())
    open_store(folder, read_shop(folder)).close()
    typer.echo(f"shop {name}; load its events with fedrec shop import {folder} FILE")


def import_file(
    folder: Folder,
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="Events, CSV or Parquet, or a named set.")
    ] = None,
    items: Annotated[str | None, typer.Option(metavar="FILE", help="Titles, categories, prices, stock.")] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="OURS=THEIRS,…", help="As in fedrec simulate: shopper=kunde,item=artikel.")
    ] = None,
    item_key: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="What items are called here, in place of their own ids.")
    ] = None,
    shop: Annotated[
        str | None,
        typer.Option(help="Where a column names shops: whose rows, or all; else those of this shop's name."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="What rows without a type are: view, cart, purchase, like, …")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Take events of erased shoppers, too.")] = False,
) -> None:
    """Load events and items; what is there already is not taken twice, so that an import can be begun again.

    \b
    [bold]Examples[/]
      fedrec shop import myshop events.csv --items items.csv
      fedrec shop import myshop clicks.parquet --kind view --columns shopper=visitor
      fedrec shop import myshop --items items.csv
    """
    from rich.console import Console

    from fedrec.cli.progress import progress_on
    from fedrec.cli.simulate import parse_columns
    from fedrec.data.sources import DataSettings
    from fedrec.shop.lists.serving_model import InsideShop
    from fedrec.shop.store.imports import import_events, import_items
    from fedrec.shop.store.rows import read_kind

    if file is None and items is None:
        raise ConfigError("give a file of events, or --items FILE")
    given = {} if columns is None else parse_columns(columns)
    store, settings = open_shop_store(folder)
    console = Console()
    with store:
        if file is None:
            print_account(console, str(items), "items", import_items(store, str(items), columns=given))
            return
        is_file = Path(file).suffix or Path(file).exists()
        what = DataSettings(
            source=None if is_file else file,
            events=file if is_file else None,
            items=items,
            columns=given,
            item_key=item_key,
        )
        with progress_on(console) as progress:
            progress.phase("read", None)
            done = 0

            def on_rows(stored: int, total: int) -> None:
                nonlocal done
                progress.phase("store", total)
                progress.advance(stored - done)
                done = stored

            imported = import_events(
                store,
                what,
                None if shop == "all" else shop or settings.name,
                kind=None if kind is None else read_kind(kind),
                is_forced=force,
                is_declared=settings.serving.inside_shop is InsideShop.JOINT_DP,
                on_rows=on_rows,
            )
        print_account(console, file, "events", imported)


def export(folder: Folder, shopper: Shopper) -> None:
    """All that the store holds of a shopper, as JSON."""
    store, _ = open_shop_store(folder)
    with store:
        typer.echo(json.dumps(store.export_shopper(shopper), indent=1, ensure_ascii=False))


def erase(folder: Folder, shopper: Shopper) -> None:
    """Delete all that the store holds of a shopper, for good; what the shop trains from now on is without her.

    She leaves a tombstone: no old file and no restored backup brings her back by accident.
    """
    from fedrec.shop.api.forgetting import what_is_left

    store, settings = open_shop_store(folder)
    with store:
        erased = store.erase_shopper(shopper)
        generation, of_store = store.generation(), settings.data.store
    left = what_is_left(folder, settings.name, erased, set(), generation=generation, trains_on_store=of_store)
    typer.echo(f"erased: {erased.num_events} events, {erased.num_impressions} lists that she was shown")
    if settings.data.store:
        typer.echo("what the shop trains and contributes from now on is without her")
    for one in left["still_held"]:
        typer.echo(f"still held: {one}")
    typer.echo(left["past_releases"])


def key(
    folder: Folder,
    action: Annotated[KeyAction, typer.Argument(metavar="add|list|revoke")],
    key_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="The key to revoke.")] = None,
    name: Annotated[str, typer.Option(help="What a new key is for.")] = "website",
    scope: Annotated[str, typer.Option(help="What a new key allows: read, write or admin.")] = "write",
) -> None:
    """Keys of the shop's API: make one, which is shown once; list them; make one invalid.

    \b
    [bold]Examples[/]
      fedrec shop key myshop add --scope read --name website
      fedrec shop key myshop list
      fedrec shop key myshop revoke 1f0c9a7e
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from fedrec.shop.store.keys import read_scope

    if (action is KeyAction.REVOKE) != (key_id is not None):
        raise ConfigError("revoke takes the id of a key, add and list take none: see fedrec shop key DIR list")
    store, settings = open_shop_store(folder)
    with store:
        if action is KeyAction.ADD:
            made, secret = store.new_key(settings.name, name, read_scope(scope))
            typer.echo(f"key {made.id} ({made.name}, {scope}), shown this once:\n{secret}")
        elif key_id is not None:
            store.revoke_key(key_id)
            typer.echo(f"key {key_id} is invalid from now on")
        else:
            table = Table("id", "name", "scope", "made", "revoked", box=box.SIMPLE_HEAD, header_style="bold")
            for one in store.keys():  # noqa: SIM118 - it is no dictionary
                table.add_row(one.id, one.name, one.scope.name.lower(), _day(one.created), _day(one.revoked))
            Console().print(table)


def open_shop_store(folder: Path) -> tuple[Store, ShopSettings]:
    """The store of a shop's folder, and its settings."""
    from fedrec.role_config import open_store, read_shop

    settings = read_shop(folder)
    return open_store(folder, settings), settings


def print_account(console: object, what: str, kind: str, imported: Imported) -> None:
    """What became of a file's rows."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    assert isinstance(console, Console)
    table = Table(box=box.SIMPLE, show_header=False, title=Text(what), title_justify="left")
    rows = [
        ("rows read", imported.rows_read),
        *((f"left out: {reason}", count) for reason, count in imported.dropped),
        *((f"handled: {about}", count) for about, count in imported.handled),
        (f"new {kind}", imported.accepted),
        *([("new items", imported.items)] if imported.items else []),
    ]
    for name, count in rows:
        table.add_row(Text(name), f"{count:,}")
    console.print(table)


def _day(seconds: float | None) -> str:
    from datetime import UTC, datetime

    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
