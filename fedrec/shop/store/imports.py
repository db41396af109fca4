"""Bulk loads into a shop's store: files of events and of items, with an account of every row that was left out.

An import that stops half-way is simply begun again: an event that is there already is not taken twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from fedrec.data import columns as naming
from fedrec.data import sources
from fedrec.data.cells import distinct, numbers
from fedrec.data.events import CANCEL_EVENTS
from fedrec.data.files import read_file
from fedrec.data.items import clean_catalogue
from fedrec.data.sources import DataSettings, Notes
from fedrec.errors import DataError
from fedrec.shop.enrol import rows_of_shop
from fedrec.shop.store.rows import MAX_AHEAD_S, MAX_NUMBER, EventKind, Item, check_id, content_id
from fedrec.shop.store.store import EventRow, Store

CHUNK_ROWS = 50_000
_PAUSE_S = 0.1
"""Between two chunks: SQLite asks for its lock every 0.1 s, so that a server that waits gets its turn."""
_SENT_BACK = "sent back"
_KIND_NAMES = {
    EventKind.VIEW: "view views viewed pageview productview itemview click clicked detail",
    EventKind.CART: "cart addtocart addedtocart addtobasket basket",
    EventKind.PURCHASE: "purchase purchased buy bought order ordered transaction sale sold checkout",
    EventKind.RATING: "rating rate rated review reviewed",
    EventKind.LIKE: "like liked favorite favourite fav wishlist addtowishlist",
    EventKind.DISLIKE: "dislike disliked",
    EventKind.RETURN: _SENT_BACK.replace(" ", ""),
}
_KIND_OF = {name: kind.value for kind, names in _KIND_NAMES.items() for name in names.split()}
_STOCK_NAMES = (("stock", "instock", "inventory", "stocklevel", "available", "availability"), ("quantity", "qty"))

OnRows = Callable[[int, int], None]
"""Told how many rows are stored, of how many."""


@dataclass(frozen=True)
class Imported:
    """What became of a file's rows.

    Attributes:
        rows_read: all of them.
        accepted: new events, or items.
        dropped: reasons and numbers of rows, those above 0; with accepted they make rows_read.
        handled: what was put right without dropping a row, with its count.
        items: new items of which the events' file said something.
    """

    rows_read: int
    accepted: int
    dropped: Notes
    handled: Notes = ()
    items: int = 0


def import_events(
    store: Store,
    settings: DataSettings,
    shop: str | None,
    *,
    kind: EventKind | None = None,
    is_forced: bool = False,
    is_declared: bool = False,
    on_rows: OnRows | None = None,
) -> Imported:
    """Read a file, a database or a named set, and store its events in the order in which they happened.

    Where the events' types have a column, they are told by their usual names; else an event with a rating is a rating
    and any other a purchase. Cancellations are no events, but where a column calls them returns.

    Args:
        settings: what to read.
        shop: rows of others are left out, where a column names shops; None takes them all.
        kind: of events that have no type.
        is_forced: take events of erased shoppers, too.
        is_declared: items come from the file of items alone, so that the catalogue depends on no shopper.
        on_rows: told after every chunk.
    Raises:
        DataError: the events cannot be read, or none is left.
        StoreError: the store cannot be written; what was stored before stays.
    """
    loaded = sources.load(settings, prepare=_keep_returns)
    table = loaded.events.table if shop is None else rows_of_shop(loaded.events.table, shop)
    dropped = dict(loaded.cleaning.dropped)
    dropped["of other shops"] = len(loaded.events) - len(table)
    rows = _event_rows(_with_kinds(table, kind, dropped), dropped)
    accepted = 0
    dropped |= {"there already": 0, "of an erased shopper": 0}
    for start in range(0, len(rows), CHUNK_ROWS):
        if start:
            time.sleep(_PAUSE_S)
        done = store.append_rows(rows[start : start + CHUNK_ROWS], is_forced=is_forced)
        accepted += done.accepted
        dropped["there already"] += done.duplicates
        dropped["of an erased shopper"] += done.erased
        if on_rows is not None:
            on_rows(min(start + CHUNK_ROWS, len(rows)), len(rows))
    if is_declared:
        named = {role: name for role, name in settings.columns.items() if role in (*naming.ITEM_COLUMNS, "stock")}
        num_items = import_items(store, settings.items, columns=named).accepted if settings.items else 0
    else:
        num_items = _add_items(store, loaded.items.table, is_update=bool(settings.items))
    return Imported(loaded.cleaning.rows_read, accepted, _counted(dropped), loaded.cleaning.handled, num_items)


def import_items(store: Store, path: str, *, columns: dict[str, str] | None = None) -> Imported:
    """Store the items of a file; what it does not say of an item stays as it was.

    Args:
        path: CSV or Parquet: an item's id, and title, category, price, stock where known.
        columns: our role -> the file's column, for those that are not found by their usual names.
    Raises:
        DataError: the file cannot be read, or no column has ids.
    """
    given = dict(columns or {})
    stock = given.pop("stock", None)
    usual = {**naming.ITEM_COLUMNS, "stock": _STOCK_NAMES}

    def choose(names: list[str]) -> dict[str, str]:
        wanted = naming.check_roles(given) | ({} if stock is None else {"stock": stock})
        return naming.find_columns(names, usual, where=path, given=wanted, required=("item",))

    raw = read_file(path, choose).frame.drop(columns="shop", errors="ignore")
    table, notes = clean_catalogue(raw)
    table = table.drop_duplicates("item").set_index("item")
    if "stock" in table:
        table["stock"] = numbers(table["stock"])[0]
    num_items = _add_items(store, table, is_update=True)
    dropped = {"no id, or the same item again": len(raw) - len(table)}
    if len(table) > num_items:
        dropped["id or text that cannot be one"] = len(table) - num_items
    return Imported(len(raw), num_items, _counted(dropped), notes)


def _keep_returns(raw: pd.DataFrame) -> pd.DataFrame:
    """Events that are called returns under a name that cleaning lets through."""
    if "event" not in raw:
        return raw
    codes, names = distinct(raw["event"])
    texts = [_SENT_BACK if str(name).strip().casefold() in CANCEL_EVENTS else name for name in names]
    return raw.assign(event=pd.Series(np.array([*texts, None], object)[codes], index=raw.index))


def _with_kinds(table: pd.DataFrame, kind: EventKind | None, dropped: dict[str, int]) -> pd.DataFrame:
    """Rows that say what happened, with columns ``kind`` (str) and ``value`` (float64, NaN = none)."""
    nothing = np.full(len(table), np.nan)
    rating = table["rating"].to_numpy(np.float64) if "rating" in table else nothing
    quantity = table["quantity"].to_numpy(np.float64) if "quantity" in table else nothing
    plain = np.where(np.isnan(rating), EventKind.PURCHASE.value, EventKind.RATING.value)
    if kind is not None:
        plain = np.full(len(table), kind.value)
    kinds = plain.astype(object)
    if "event" in table:
        cells = table["event"].cat
        named = np.array([_KIND_OF.get(naming.simple_name(name), "") for name in cells.categories], object)
        has_name = cells.codes.to_numpy() >= 0
        kinds[has_name] = named[cells.codes.to_numpy()[has_name]]
    is_rating = kinds == EventKind.RATING.value
    values = np.where(is_rating, rating, quantity)
    is_known = kinds != ""
    dropped["unknown type of event"] = int((~is_known).sum())
    is_unrated = is_rating & np.isnan(values)
    dropped["a rating without a value"] = int(is_unrated.sum())
    is_huge = np.abs(values) > MAX_NUMBER
    dropped["a value that is too large"] = int(is_huge.sum())
    keep = is_known & ~is_unrated & ~is_huge
    return table.assign(kind=kinds, value=values)[keep]


def _event_rows(table: pd.DataFrame, dropped: dict[str, int]) -> list[EventRow]:
    """Rows as the store takes them, the oldest first; those that it would refuse are counted."""
    times = table["timestamp"].fillna(0.0).to_numpy(np.float64) if "timestamp" in table else np.zeros(len(table))
    place = table["order"].to_numpy() if "order" in table else np.arange(len(table))
    shopper, is_shopper = _texts(table["shopper"])
    item, is_item = _texts(table["item"])
    is_ahead = times > time.time() + MAX_AHEAD_S
    dropped["before 1970"] = int((times < 0).sum())
    dropped["in the future"] = int(is_ahead.sum())
    dropped["an id that cannot be one"] = int((~is_shopper | ~is_item).sum())
    keep = (times >= 0) & ~is_ahead & is_shopper & is_item
    order = np.lexsort((place, times))
    order = order[keep[order]]
    values = table["value"].to_numpy()[order].tolist()
    columns = zip(
        shopper[order].tolist(),
        item[order].tolist(),
        table["kind"].to_numpy()[order].tolist(),
        [None if value != value else value for value in values],
        times[order].tolist(),
        strict=True,
    )
    return [
        (content_id(who, what, kind, value, when), who, what, kind, value, when, None)
        for who, what, kind, value, when in columns
    ]


def _texts(cells: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Texts of a column of categories, object (num_rows,), and which of them can be an id."""
    names = cells.cat.categories.to_numpy(dtype=object)
    codes = cells.cat.codes.to_numpy()
    return names[codes], np.array([_can_be(check_id, "id", name) for name in names], bool)[codes]


def _add_items(store: Store, table: pd.DataFrame, *, is_update: bool) -> int:
    """Store what a table says of items, index their ids; how many. What it does not say stays as it was.

    Args:
        is_update: change items that the store knows, too.
    """
    known = {change.item.key: change for change in store.items_after(0, limit=2**31 - 1)}
    items = []
    for row in table.reset_index(names="key").to_dict("records"):
        before = known.get(row["key"])
        if before is not None and not is_update:
            continue
        said = {
            name: int(value) if name == "stock" else float(f"{value:.7g}") if name == "price" else value
            for name in ("title", "category", "price", "stock")
            if (value := row.get(name)) is not None and value == value and value != ""
        }
        key = row["key"]
        if (made := _made(before.item if before and not before.is_deleted else None, key, said)) is not None:
            items.append(made)
    for start in range(0, len(items), CHUNK_ROWS):
        store.put_items(items[start : start + CHUNK_ROWS])
    return len(items)


def _made(before: Item | None, key: str, said: dict[str, object]) -> Item | None:
    """An item with what is said of it; None = it cannot be one."""
    try:
        return replace(Item(key) if before is None else before, **said)  # type: ignore[arg-type]
    except DataError:
        return None


def _can_be(check: Callable[[str, str], object], name: str, value: str) -> bool:
    try:
        check(name, value)
    except DataError:
        return False
    return True


def _counted(dropped: dict[str, int]) -> Notes:
    return tuple((reason, count) for reason, count in dropped.items() if count)
