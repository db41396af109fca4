"""Where events come from: a CSV or Parquet file, a database, a named public set, the generated marketplace."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from fedrec.data import columns as naming
from fedrec.data import public_sets
from fedrec.data.database import read_sql, sql_parts
from fedrec.data.events import (
    REASONS,
    SERVICE_CODES,
    CleaningReport,
    CleaningRules,
    Events,
    clean,
    service_code_pattern,
)
from fedrec.data.files import RawTable, column_names, parquet_parts, read_file
from fedrec.data.fingerprint import fingerprint
from fedrec.data.items import Items, build_items, clean_catalogue
from fedrec.data.marketplace import SyntheticSettings
from fedrec.data.parts import PART_ROWS, FirstEvents
from fedrec.data.row_by_row import check_rows
from fedrec.errors import ConfigError, DataError

SYNTHETIC = "synthetic"
Notes = tuple[tuple[str, int], ...]

_OWN_ID = frozenset({"item", "itemid", "ownid", "own"})


@dataclass(frozen=True)
class DataSettings:
    """What to read: exactly one of ``source``, ``events`` and ``url``.

    Attributes:
        source: a named set (see `list_sources`).
        events: a CSV or Parquet file.
        url, query: an SQLAlchemy URL, and the SELECT to run there.
        items: a file with items' text, category and price; for a named set it replaces the set's own.
        test: a file of test events, read and cleaned as the events are.
        columns: our role -> the file's column, for those that are not found by their usual names.
        item_key: the column, of the events or of the items file, that makes two shops' items the same; None or the
            item column itself: an item's own id does.
        min_rating: keep ratings of at least this; None keeps all.
        service_codes: items that are no goods; None: `SERVICE_CODES` where the items are stock codes, else none.
        in_parts: read Parquet or a database part by part, and keep the first event of each shopper and item alone: for
            tables larger than memory. Each row is read by itself.
        row_by_row: refuse cells that only a whole column says how to read (`fedrec.data.row_by_row`), and take every
            basket of a letter C and a number for a cancellation.
        folder: where named sets lie; None: the folder that FEDREC_DATA names.
        synthetic: what marketplace to generate.
    """

    source: str | None = None
    events: str | None = None
    url: str | None = None
    query: str | None = None
    items: str | None = None
    test: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    item_key: str | None = None
    min_rating: float | None = None
    service_codes: tuple[str, ...] | None = None
    in_parts: bool = False
    row_by_row: bool = False
    folder: str | None = None
    synthetic: SyntheticSettings = field(default_factory=SyntheticSettings)

    def __post_init__(self) -> None:
        given = [f"{name} = {value!r}" for name in ("source", "events", "url") if (value := getattr(self, name))]
        if len(given) != 1:
            raise ConfigError(f"give one of source, events and url; given: {' and '.join(given) or 'none'}")
        if bool(self.url) != bool(self.query):
            raise ConfigError(f"{'query' if self.url else 'url'} is missing; a database needs both url and query")
        if self.in_parts and (self.source or self.test):
            raise ConfigError("in_parts reads events or url alone, without test; leave it out for the rest")
        CleaningRules(min_rating=self.min_rating)
        naming.check_roles(self.columns)
        if self.source == SYNTHETIC:
            for name in ("items", "test", "columns", "item_key", "min_rating"):
                if getattr(self, name) not in (None, {}):
                    raise ConfigError(
                        f"source = '{SYNTHETIC}' takes no {name}; give a file with events, or leave it out"
                    )
        elif self.source is not None:
            public_sets.named_set(self.source)


@dataclass(frozen=True)
class Loaded:
    """Events ready to be divided into shops.

    Attributes:
        events: cleaned, items by their key.
        items: the catalogue; has every item of events and test.
        cleaning: what happened to the rows that were read.
        source: name, licence, origin, fingerprint, and columns (role -> column of the file); plain JSON values.
        test: events of the test file, or of the set's own test part; None where a split has to make them.
        test_cleaning: what happened to the rows of the test file.
    """

    events: Events
    items: Items
    cleaning: CleaningReport
    source: dict[str, Any]
    test: Events | None = None
    test_cleaning: CleaningReport | None = None


@dataclass(frozen=True)
class SourceInfo:
    """One line of ``fedrec data list``."""

    name: str
    summary: str
    licence: str
    homepage: str
    is_here: bool


def list_sources(folder: str | Path | None = None) -> tuple[SourceInfo, ...]:
    """Every name that ``source`` takes, and whether its data is on this machine."""
    made = SourceInfo(SYNTHETIC, "generated marketplace of ten shops; nothing to download", "none needed", "", True)
    sets = (
        SourceInfo(one.name, one.summary, one.licence, one.homepage, public_sets.is_here(one, folder))
        for one in public_sets.PUBLIC_SETS
    )
    return (made, *sets)


def load(
    settings: DataSettings, *, seed: int = 0, prepare: Callable[[pd.DataFrame], pd.DataFrame] | None = None
) -> Loaded:
    """Read, clean, and name items by their key.

    Args:
        settings: what to read.
        seed: of the generated marketplace; nothing else is random.
        prepare: changes the events' rows, columns named by our roles, before they are cleaned.
    Raises:
        ConfigError: the source, a role or a setting is unknown.
        DataError: a file is missing, empty or unreadable; a column is missing or ambiguous; no date can be read;
            nothing is left after cleaning.
    """
    if settings.source == SYNTHETIC:
        return _generate(settings.synthetic, seed)
    tables, about = _read(settings)
    if prepare is not None:
        if settings.in_parts:
            raise ConfigError("in_parts = true: rows that are changed before they are cleaned have to be whole")
        tables = dataclasses.replace(
            tables, events=dataclasses.replace(tables.events, frame=prepare(tables.events.frame))
        )
    _check_item_key(settings, tables)
    rules = _rules(settings, tables)
    if settings.in_parts:
        events, cleaning = _clean_parts(tables, rules)
    else:
        if settings.row_by_row:
            check_rows(tables.events.frame, tables.where)
        events, cleaning = _clean(tables.events, rules, tables.where)
    both, test_cleaning = [events], None
    if tables.test is not None:
        test, test_cleaning = _clean(tables.test, rules, tables.test_where)
        if "shop" in events.table and "shop" not in test.table:
            raise DataError(f"{tables.test_where}: there is no shop column, as the events have one; add it")
        both.append(test)
    catalogue, item_notes = _catalogue(tables.items, rules, settings.items or tables.where)
    is_gtin = naming.simple_name(settings.item_key or "") in naming.GTIN_NAMES
    named, items, key_notes = build_items(both, catalogue, is_gtin=is_gtin)
    handled = (*cleaning.handled, *tables.notes, *item_notes, *key_notes, *_test_notes(test_cleaning))
    about |= {"fingerprint": fingerprint(named, items), "columns": dict(tables.events.roles)}
    cleaning = dataclasses.replace(cleaning, handled=handled)
    return Loaded(named[0], items, cleaning, about, named[1] if len(named) > 1 else None, test_cleaning)


@dataclass(frozen=True)
class _Tables:
    """What was read, before cleaning; of events in parts, the first part."""

    events: RawTable
    items: RawTable | None
    test: RawTable | None
    where: str
    test_where: str = ""
    notes: tuple[tuple[str, int], ...] = ()
    has_stock_codes: bool = False
    other_parts: Iterable[RawTable] = ()


def _read(settings: DataSettings) -> tuple[_Tables, dict[str, Any]]:
    """Raw tables, and where they are from."""
    if settings.source is not None:
        tables, about = _read_named(settings, public_sets.named_set(settings.source))
    elif settings.in_parts:
        tables, about = _read_parts(settings)
    elif settings.events is not None:
        table = read_file(settings.events, partial(_event_roles, settings, settings.events))
        tables = _Tables(table, None, None, settings.events)
        about = {"name": Path(settings.events).name, "licence": "", "origin": settings.events}
    else:
        table, origin = read_sql(settings.url or "", settings.query or "", partial(_event_roles, settings))
        tables = _Tables(table, None, None, origin)
        about = {"name": origin, "licence": "", "origin": origin}
    if settings.items:
        items = read_file(settings.items, partial(_item_roles, settings, settings.items))
        tables = dataclasses.replace(tables, items=items)
    if settings.test:
        test = read_file(settings.test, partial(_test_roles, settings, settings.test))
        tables = dataclasses.replace(tables, test=test, test_where=settings.test)
    return tables, about


def _read_parts(settings: DataSettings) -> tuple[_Tables, dict[str, Any]]:
    """The first part, and the others to come."""
    parts: Iterator[tuple[RawTable, str]]
    if settings.events is not None:
        where = settings.events
        choose = partial(_part_roles, settings, where)
        parts = ((part, where) for part in parquet_parts(where, choose, PART_ROWS))
    else:
        parts = sql_parts(settings.url or "", settings.query or "", partial(_part_roles, settings), PART_ROWS)
    found = next(parts, None)
    if found is None:
        raise DataError(f"{settings.events or 'the query'}: there are no rows to read")
    first, origin = found
    about = {"name": Path(origin).name if settings.events else origin, "licence": "", "origin": origin}
    return _Tables(first, None, None, origin, other_parts=(part for part, _ in parts)), about


def _read_named(settings: DataSettings, chosen: public_sets.PublicSet) -> tuple[_Tables, dict[str, Any]]:
    found = public_sets.read_set(
        chosen,
        settings.folder,
        choose_events=partial(_event_roles, settings, chosen.name),
        choose_items=partial(_item_roles, settings, f"{chosen.name}'s items"),
    )
    if found.is_original and (settings.columns or settings.item_key):
        raise DataError(f"{chosen.name}: the public original has no column names; leave columns and item_key out")
    tables = _Tables(
        found.events, found.items, found.test, chosen.name, chosen.name, found.notes, chosen.has_stock_codes
    )
    return tables, {"name": chosen.name, "licence": chosen.licence, "origin": chosen.homepage}


def _event_roles(settings: DataSettings, where: str, names: list[str]) -> dict[str, str]:
    """Which columns of the events to read; those that the user names must be here or in the items file."""
    elsewhere = column_names(settings.items) if settings.items else []
    return _roles(settings, naming.EVENT_COLUMNS, where, names, elsewhere=elsewhere)


def _part_roles(settings: DataSettings, where: str, names: list[str]) -> dict[str, str]:
    """As `_event_roles`, without what changes nothing where only a pair's first event is kept."""
    roles = _event_roles(settings, where, names)
    is_invoice = "basket" in roles and naming.simple_name(roles["basket"]) in naming.INVOICE_NAMES
    unused = {"basket": not is_invoice, "rating": settings.min_rating is None}
    return {role: column for role, column in roles.items() if not unused.get(role, False)}


def _test_roles(settings: DataSettings, where: str, names: list[str]) -> dict[str, str]:
    """The same of the test file, where columns that the user names may be missing."""
    return _roles(settings, naming.EVENT_COLUMNS, where, names)


def _item_roles(settings: DataSettings, where: str, names: list[str]) -> dict[str, str]:
    """Which columns of the items file to read; an item key can stand for the id."""
    return _roles(settings, naming.ITEM_COLUMNS, where, names)


def _roles(
    settings: DataSettings,
    usual: Mapping[str, naming.Names],
    where: str,
    names: list[str],
    *,
    elsewhere: Sequence[str] | None = None,
) -> dict[str, str]:
    given = naming.check_roles(settings.columns)
    if elsewhere is None:
        given = {role: column for role, column in given.items() if naming.match_column(column, names)}
    key = naming.match_column(settings.item_key, names) if settings.item_key else None
    required = ("shopper", "item") if "shopper" in usual else (() if key else ("item",))
    apart = [key] if key else []
    roles = naming.find_columns(
        names, usual, where=where, given=given, required=required, apart=apart, elsewhere=elsewhere or ()
    )
    if key is not None and key != roles.get("item"):
        roles["item_key"] = key
    return roles


def _check_item_key(settings: DataSettings, tables: _Tables) -> None:
    """Refuse an item key that is no column anywhere."""
    key, found = settings.item_key, [table for table in (tables.events, tables.items) if table is not None]
    if key is None or any("item_key" in table.roles for table in found):
        return
    is_own = naming.simple_name(key) in _OWN_ID or naming.match_column(key, [tables.events.roles["item"]])
    if not is_own:
        names = [name for table in found for name in table.columns]
        raise naming.missing_column(key, names, where=tables.where, what="the item key")


def _rules(settings: DataSettings, tables: _Tables) -> CleaningRules:
    """What is no event, by the names that columns came in under."""
    roles = {role: naming.simple_name(column) for role, column in tables.events.roles.items()}
    codes = settings.service_codes
    if codes is None:
        is_stock_code = tables.has_stock_codes or roles["item"] in naming.STOCK_CODE_NAMES
        codes = SERVICE_CODES if is_stock_code else ()
    is_invoice = tables.has_stock_codes or roles.get("basket") in naming.INVOICE_NAMES
    prefix = "C" if is_invoice else None
    is_by_row = settings.row_by_row or settings.in_parts
    return CleaningRules(settings.min_rating, tuple(codes), prefix, is_prefix_certain=is_by_row)


def _clean_parts(tables: _Tables, rules: CleaningRules) -> tuple[Events, CleaningReport]:
    """Clean part by part; the first events of all pairs, and the account of all rows."""
    gathered, dropped = FirstEvents(has_order="order" in tables.events.roles), Counter[str]()
    handled, num_rows = Counter[str](), 0
    for part in chain([tables.events], tables.other_parts):
        check_rows(part.frame, tables.where)
        events, report = _clean(part, rules, tables.where, is_part=True)
        gathered.add(events)
        num_rows += report.rows_read
        dropped.update(dict(report.dropped))
        handled.update(dict(report.handled))
    events = gathered.events()
    handled["events that repeat an item of their shopper, the first kept"] = gathered.num_repeats
    account = tuple((reason, dropped[reason]) for reason in REASONS)
    notes = tuple((what, count) for what, count in handled.items() if count)
    return events, CleaningReport(num_rows, account, num_rows - sum(dropped.values()), notes)


def _clean(
    table: RawTable, rules: CleaningRules, where: str, *, is_part: bool = False
) -> tuple[Events, CleaningReport]:
    """Clean, name the table in errors, and count the lines that were no rows."""
    try:
        events, report = clean(table.frame, rules=rules, is_part=is_part)
    except DataError as error:
        lines = f"; {table.broken_lines} lines have another number of fields than the header" * bool(table.broken_lines)
        raise DataError(f"{where}: {error}{lines}") from error
    if table.broken_lines:
        dropped = (("broken line", table.broken_lines), *report.dropped)
        report = dataclasses.replace(report, rows_read=report.rows_read + table.broken_lines, dropped=dropped)
    return events, report


def _catalogue(table: RawTable | None, rules: CleaningRules, where: str) -> tuple[pd.DataFrame | None, Notes]:
    """The items file with ids as text, without service codes."""
    if table is None:
        return None, ()
    try:
        catalogue, notes = clean_catalogue(table.frame)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    if rules.service_codes and "item" in catalogue:
        matches = service_code_pattern(rules.service_codes).fullmatch
        codes = [name for name in catalogue["item"].cat.categories if matches(name)]
        catalogue = catalogue[~catalogue["item"].isin(codes)].reset_index(drop=True)
        catalogue["item"] = catalogue["item"].cat.remove_unused_categories()
    return catalogue, notes


def _test_notes(report: CleaningReport | None) -> Notes:
    if report is None:
        return ()
    dropped = ((f"test rows dropped: {reason}", rows) for reason, rows in report.dropped if rows)
    return (*dropped, *((f"test rows: {what}", count) for what, count in report.handled))


def _generate(settings: SyntheticSettings, seed: int) -> Loaded:
    from fedrec.data.synthetic import generate

    events, items, _ = generate(settings, seed=seed)
    report = CleaningReport(len(events), tuple((reason, 0) for reason in REASONS), len(events))
    about = {"name": SYNTHETIC, "licence": "none needed", "origin": f"generated with seed {seed}"}
    return Loaded(events, items, report, {**about, "fingerprint": fingerprint([events], items), "columns": {}})
