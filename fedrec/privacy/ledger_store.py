"""The tables in which a shop's privacy ledger lies: SQLite by default, PostgreSQL by URL.

Every write happens in one transaction that holds the ledger's lock from its first read to its commit, so that two
processes never decide on the same state. SQLite: ``BEGIN IMMEDIATE``, write-ahead log, and a flush to disk at every
commit. PostgreSQL: an advisory lock on the shop.
"""

from __future__ import annotations

import hashlib
import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import QueuePool, StaticPool

from fedrec.errors import ConfigError, LedgerTampered, StoreError

_LOCK_WAIT_S = 30.0
_DAMAGE = ("malformed", "not a database", "no such column", "no such table", "file is encrypted", "Could not decode")

_METADATA = sa.MetaData()
_ENTRIES = sa.Table(
    "ledger_entries",
    _METADATA,
    sa.Column("shop", sa.Text, primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("text", sa.LargeBinary, nullable=False),
    sa.Column("hash", sa.LargeBinary(32), nullable=False),
)
_PAYLOADS = sa.Table(
    "ledger_payloads",
    _METADATA,
    sa.Column("shop", sa.Text, primary_key=True),
    sa.Column("run", sa.Text, primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
)
_RECEIPTS = sa.Table(
    "ledger_receipts",
    _METADATA,
    sa.Column("shop", sa.Text, primary_key=True),
    sa.Column("signer", sa.Text, primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("receipt", sa.LargeBinary, nullable=False),
)


@dataclass(frozen=True, repr=False)
class Row:
    """One entry as it is stored."""

    sequence: int
    text: bytes
    hash: bytes


class Transaction:
    """What one shop's ledger may do inside a transaction."""

    def __init__(self, connection: sa.Connection, shop: str) -> None:
        self._connection = connection
        self._shop = shop

    def rows(self, first: int) -> list[Row]:
        """Entries from a sequence on, in order.

        Raises:
            LedgerTampered: values of other types than any ledger writes.
        """
        table = _ENTRIES.c
        query = sa.select(_raw(table.sequence), _raw(table.text), _raw(table.hash)).where(table.shop == self._shop)
        is_due = (table.sequence >= first) | (table.sequence < 1) | table.sequence.is_(None)
        found = self._connection.execute(query.where(is_due).order_by(table.sequence)).all()
        if any(type(sequence) is not int or sequence < 1 for sequence, _, _ in found):
            raise LedgerTampered(_changed_by_others(f"ledger of shop {self._shop!r}: an entry's sequence"))
        return [
            Row(sequence, self._bytes(text, f"text of entry {sequence}"), self._bytes(hash_, f"hash of {sequence}"))
            for sequence, text, hash_ in found
        ]

    def append(self, sequence: int, text: bytes, hash_: bytes) -> None:
        """Add an entry."""
        values = {"shop": self._shop, "sequence": sequence, "text": text, "hash": hash_}
        self._connection.execute(sa.insert(_ENTRIES).values(values))

    def put_payload(self, run: str, sequence: int, payload: bytes) -> None:
        """Keep the bytes of a charge for a re-send."""
        values = {"shop": self._shop, "run": run, "sequence": sequence, "payload": payload}
        self._connection.execute(sa.insert(_PAYLOADS).values(values))

    def payload(self, run: str, sequence: int) -> bytes | None:
        """The bytes of a charge; None = erased."""
        table = _PAYLOADS.c
        is_it = (table.shop == self._shop) & (table.run == run) & (table.sequence == sequence)
        found = self._connection.execute(sa.select(_raw(table.payload)).where(is_it)).scalar()
        return None if found is None else self._bytes(found, f"payload of entry {sequence}")

    def erase_payloads(self, run: str) -> None:
        """Drop all bytes of a run."""
        table = _PAYLOADS.c
        self._connection.execute(sa.delete(_PAYLOADS).where((table.shop == self._shop) & (table.run == run)))

    def put_receipt(self, signer: str, sequence: int, receipt: bytes) -> None:
        """Keep a signer's latest receipt in place of the ones before."""
        table = _RECEIPTS.c
        self._connection.execute(sa.delete(_RECEIPTS).where((table.shop == self._shop) & (table.signer == signer)))
        values = {"shop": self._shop, "signer": signer, "sequence": sequence, "receipt": receipt}
        self._connection.execute(sa.insert(_RECEIPTS).values(values))

    def receipts(self) -> list[bytes]:
        """The latest receipt of each signer."""
        table = _RECEIPTS.c
        query = sa.select(_raw(table.receipt)).where(table.shop == self._shop).order_by(table.signer)
        return [self._bytes(receipt, "receipt of an anchor") for receipt in self._connection.execute(query).scalars()]

    def check_file(self) -> None:
        """Let the database check its own pages.

        Raises:
            LedgerTampered: pages are damaged.
        """
        if self._connection.dialect.name == "sqlite":
            answer = self._connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            if answer != "ok":
                raise LedgerTampered(f"the ledger's database is damaged ({answer}); restore it and recover")

    def _bytes(self, value: object, what: str) -> bytes:
        if not isinstance(value, bytes | memoryview):
            raise LedgerTampered(_changed_by_others(f"ledger of shop {self._shop!r}: the {what}"))
        return bytes(value)


class LedgerStore:
    """A database that holds any number of shops' ledgers."""

    def __init__(self, place: str | Path) -> None:
        """Connect, and make the tables where they are missing.

        Args:
            place: a file, or an SQLAlchemy URL (``sqlite://`` = in memory).
        Raises:
            ConfigError: the URL or its driver does not work.
            StoreError: the database cannot be opened.
            LedgerTampered: the file is no database, or a damaged one.
        """
        url = str(place) if "://" in str(place) else f"sqlite:///{place}"
        try:
            address = sa.make_url(url)
            self._name = address.render_as_string(hide_password=True)
            self._engine = _engine(address)
        except sa.exc.ArgumentError as error:
            raise ConfigError(
                "the ledger's URL cannot be read; write it as sqlite:///ledger.db or postgresql://host/name"
            ) from error
        except ImportError as error:
            raise ConfigError(f"{self._name}: the driver {error.name} is not installed; pip install it") from error
        self._pid = os.getpid()
        weakref.finalize(self, _dispose, self._engine, self._pid)
        with self._transaction(is_write=True) as connection:
            for table in _METADATA.sorted_tables:
                connection.execute(sa.schema.CreateTable(table, if_not_exists=True))

    def __repr__(self) -> str:
        return f"LedgerStore({self._name!r})"

    @contextmanager
    def writing(self, shop: str) -> Iterator[Transaction]:
        """A transaction that no other writer of this ledger overlaps; committed to disk when the block ends."""
        with self._transaction(is_write=True) as connection:
            if connection.dialect.name == "postgresql":
                key = int.from_bytes(hashlib.sha256(f"fedrec ledger {shop}".encode()).digest()[:8], signed=True)
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))
            yield Transaction(connection, shop)

    @contextmanager
    def reading(self, shop: str) -> Iterator[Transaction]:
        """A transaction that sees one state of the ledger."""
        with self._transaction(is_write=False) as connection:
            yield Transaction(connection, shop)

    def close(self) -> None:
        """Close the connections; a database in memory is gone."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, *, is_write: bool) -> Iterator[sa.Connection]:
        if os.getpid() != self._pid:  # a forked child must not use its parent's connection
            self._engine.dispose(close=False)
            self._pid = os.getpid()
        try:
            with self._engine.connect() as connection:
                connection = connection.execution_options(is_ledger_write=is_write)
                with connection.begin():
                    yield connection
        except sa.exc.SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            if any(word in reason for word in _DAMAGE):
                raise LedgerTampered(
                    f"{self._name}: the ledger's database is damaged ({reason}); nothing is released. Restore it and "
                    "recover what others have seen of it"
                ) from error
            raise StoreError(f"{self._name}: the ledger cannot be used ({reason})") from error


def shops_in(place: str | Path) -> tuple[str, ...]:
    """Whose ledgers a database holds, in order of their names; makes neither a file nor tables.

    Args:
        place: as in `LedgerStore`.
    Returns:
        Also shops of whose ledger all entries are gone, while payloads or receipts of it are left.
    Raises:
        ConfigError: the URL or its driver does not work.
        StoreError: there is no such database, or no ledger in it.
        LedgerTampered: a shop without a name.
    """
    url = str(place) if "://" in str(place) else f"sqlite:///{place}"
    try:
        address = sa.make_url(url)
        name = address.render_as_string(hide_password=True)
        is_file = address.get_backend_name() == "sqlite" and address.database not in (None, "", ":memory:")
        if is_file and not Path(str(address.database)).is_file():
            raise StoreError(f"{address.database}: there is no such file; give a run directory or a ledger's database")
        engine = sa.create_engine(address)
        try:
            with engine.connect() as connection:
                there = sa.inspect(engine)
                tables = [table for table in _METADATA.sorted_tables if there.has_table(table.name)]
                queries = [sa.select(_raw(table.c.shop)).distinct() for table in tables]
                found = {shop for query in queries for shop in connection.execute(query).scalars()}
        finally:
            engine.dispose()
    except sa.exc.ArgumentError as error:
        raise ConfigError("the ledger's URL cannot be read; write it as sqlite:///ledger.db") from error
    except ImportError as error:
        raise ConfigError(f"{url}: the driver {error.name} is not installed; pip install it") from error
    except sa.exc.SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        if "Could not decode" in reason:
            raise LedgerTampered(_changed_by_others(f"{name}: the name of a shop")) from error
        raise StoreError(f"{name}: holds no privacy ledger that can be read ({reason})") from error
    if not found:
        raise StoreError(f"{name}: holds no privacy ledger")
    if any(not isinstance(shop, str) for shop in found):
        raise LedgerTampered(_changed_by_others(f"{name}: the name of a shop"))
    return tuple(sorted(found))


def _raw(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """What the database holds, whatever its type: SQLite takes any value in any column."""
    return sa.type_coerce(column, sa.types.NullType())


def _changed_by_others(what: str) -> str:
    return f"{what} is none that a ledger writes: somebody edited the database. Restore it and recover"


def _dispose(engine: sa.Engine, pid: int) -> None:
    engine.dispose(close=os.getpid() == pid)  # a forked child leaves its parent's connections alone


def _engine(address: sa.URL) -> sa.Engine:
    if address.get_backend_name() != "sqlite":
        return sa.create_engine(address, pool_size=1, isolation_level="READ COMMITTED")
    is_memory = address.database in (None, "", ":memory:")
    options: dict[str, Any] = {"poolclass": StaticPool} if is_memory else {"poolclass": QueuePool, "pool_size": 1}
    engine = sa.create_engine(address, connect_args={"timeout": _LOCK_WAIT_S, "check_same_thread": False}, **options)

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN would be a deferred one
        if not is_memory:
            _use_write_ahead_log(connection)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA fullfsync = ON")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        is_write = connection.get_execution_options().get("is_ledger_write", True)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")

    return engine


def _use_write_ahead_log(connection: Any) -> None:
    """Switch the file over; SQLite does not wait for a lock here by itself."""
    import sqlite3

    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
