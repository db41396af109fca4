"""Connections to a shop's store: SQLite by file, PostgreSQL by URL, the same statements for both.

Any number of threads read, each on a connection of its own; writers take turns, in this process by a lock and between
processes by the database's. What is committed is flushed to disk: it survives the end of the process and a loss of
power.

What differs between the two databases is here and in the words of `fedrec.shop.store.schema`: how a connection is
prepared, how a write transaction begins, how seconds become days, how texts are searched, and how deleted rows leave
the files.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from fedrec.errors import ConfigError, StoreError
from fedrec.shop.store.schema import CURRENT_VERSION, statements_since

LOCK_WAIT_S = 5.0
_MAX_IDLE = 64
_WRITER_CACHE_KIB, _READER_CACHE_KIB = 65_536, 4_096
"""A reader's rows come from the operating system's cache as quickly; and there is one reader a thread."""

_MAX_LOG_BYTES = 1 << 26


Text = tuple[str, Sequence[str]]
"""A statement as the driver takes it, and its parameters in the order in which they appear."""


class Transaction:
    """What a writer may do; parameters are written as :name."""

    def __init__(self, cursor: Any, text: Callable[[str], Text]) -> None:
        self._cursor, self._text = cursor, text

    def read(self, sql: str, **values: Any) -> list[Any]:
        """All rows of a query."""
        text, names = self._text(sql)
        self._cursor.execute(text, [values[name] for name in names])
        rows: list[Any] = self._cursor.fetchall()
        return rows

    def change(self, sql: str, **values: Any) -> int:
        """How many rows a statement changed."""
        text, names = self._text(sql)
        self._cursor.execute(text, [values[name] for name in names])
        return int(self._cursor.rowcount)

    def change_all(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        """How many rows a statement changed, repeated for each of rows: its parameters as they appear in it."""
        if not rows:
            return 0
        self._cursor.executemany(self._text(sql)[0], rows)
        return int(self._cursor.rowcount)


class Database:
    """One shop's database.

    Args:
        url: ``sqlite:///file`` or ``postgresql://…``.
    Raises:
        ConfigError: the URL or its driver does not work.
        StoreError: the database cannot be opened, is newer than this fedrec, or can be read by others.
    """

    def __init__(self, url: str) -> None:
        try:
            address = sa.make_url(url)
            self.name = address.render_as_string(hide_password=True)
            if address.get_backend_name() not in ("sqlite", "postgresql"):
                raise ConfigError(f"{self.name}: a store is SQLite or PostgreSQL; {_FORMS}")
            self.is_sqlite = address.get_backend_name() == "sqlite"
            if self.is_sqlite and address.database in (None, "", ":memory:"):
                raise ConfigError(f"{self.name}: a store in memory would be lost; {_FORMS}")
            if address.drivername == "postgresql":
                address = address.set(drivername="postgresql+psycopg")
            engine = sa.create_engine(address, paramstyle="qmark" if self.is_sqlite else "format")
        except sa.exc.ArgumentError as error:
            raise ConfigError(f"the store's URL cannot be read; {_FORMS}") from error
        except ImportError as error:
            raise ConfigError(f"{self.name}: the driver {error.name} is not installed; {_INSTALL}") from error
        self._dialect = engine.dialect
        self.path = Path(str(address.database)) if self.is_sqlite else None
        arguments, self._options = self._dialect.create_connect_args(address)
        self._arguments = tuple(arguments)
        assert self._dialect.dbapi is not None
        self._errors: type[Exception] = self._dialect.dbapi.Error
        self._texts: dict[str, Text] = {}
        self._idle: deque[Any] = deque()
        self._writer: Any = None
        self._writer_lock = threading.RLock()
        self._watcher: Any = None
        self._watcher_lock = threading.Lock()
        self._is_closed = False
        if self.path is not None:
            _make_private(self.path)
            self._place = _place_of(self.path)
        try:
            self._use_write_ahead_log()
            self._migrate()
        except BaseException:
            self.close()
            raise

    def read(self, sql: str, **values: Any) -> list[Any]:
        """All rows of a query, whose parameters are written as :name.

        Raises:
            StoreError: the database cannot be read.
        """
        text, names = self._text(sql)
        try:
            connection, was_idle = self._idle.pop(), True
        except IndexError:
            with self._plain_errors():
                connection, was_idle = self._connect(), False
        try:
            rows: list[Any] = connection.execute(text, [values[name] for name in names]).fetchall()
        except self._errors as error:
            is_lost = was_idle and self._is_lost(connection)
            connection.close()
            if is_lost:
                return self.read(sql, **values)
            raise self._plain(error) from error
        if self._is_closed or len(self._idle) >= _MAX_IDLE:
            connection.close()
        else:
            self._idle.append(connection)
        return rows

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        """What writes in a transaction that no other writer overlaps; on disk when the block ends.

        Raises:
            StoreError: the database cannot be written; nothing of the block is in it.
        """
        with self._writer_lock, self._plain_errors():
            self._check_place()
            cursor = self._begin()
            try:
                if not self.is_sqlite:  # so that events become visible in the order of their sequence
                    cursor.execute("SELECT pg_advisory_xact_lock(hashtext('fedrec store ' || current_schema()))")
                yield Transaction(cursor, self._text)
                cursor.execute("COMMIT")
                cursor.close()
            except BaseException:
                self._forget_writer()
                raise

    def _begin(self) -> Any:
        """The writer's cursor in a new transaction."""
        is_new = self._writer is None
        if is_new:
            self._writer = self._connect(_WRITER_CACHE_KIB)
        try:
            # In PostgreSQL every statement must see what was committed before the lock was free.
            begin = "BEGIN IMMEDIATE" if self.is_sqlite else "BEGIN ISOLATION LEVEL READ COMMITTED"
            return self._writer.execute(begin)
        except self._errors:
            is_lost = not is_new and self._is_lost(self._writer)
            self._forget_writer()
            if is_lost:
                return self._begin()
            raise

    def _is_lost(self, connection: Any) -> bool:
        """Whether the server has closed a connection since it was used last: nothing was asked of it yet."""
        return not self.is_sqlite and bool(connection.closed)

    def version_of_data(self) -> int | None:
        """Another number after every commit of anybody, in microseconds; None: this database has no such number.

        Raises:
            StoreError: the database cannot be read.
        Source: SQLite's documentation of ``PRAGMA data_version``: it differs on one connection when another one, of
            this process or another, has committed.
        """
        if not self.is_sqlite:
            return None
        self._check_place()
        with self._watcher_lock:
            try:
                if self._watcher is None:
                    self._watcher = self._connect()
                return int(self._watcher.execute("PRAGMA data_version").fetchone()[0])
            except self._errors as error:
                raise self._plain(error) from error

    def forget_deleted(self) -> bool:
        """Take what was deleted out of the database's files; False = not yet, since a reader still needs it.

        SQLite overwrites deleted rows with zeros (secure_delete) and cuts its log off here; PostgreSQL frees their
        space for new rows, and its own log and backups keep them for as long as they are kept.
        """
        with self._writer_lock, self._plain_errors():
            if self._writer is None:
                self._writer = self._connect(_WRITER_CACHE_KIB)
            if self.is_sqlite:
                return not self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            self._writer.execute("VACUUM events, impressions").close()
            return True

    def day_of(self, timestamp: str) -> str:
        """SQL of the whole days since 1970 in a column of seconds."""
        days = f"{timestamp} / 86400" if self.is_sqlite else f"floor({timestamp} / 86400)"  # SQLite's cast cuts off
        return f"CAST({days} AS INTEGER)"

    def holds(self, text: str, part: str) -> str:
        """SQL: whether one text is in another."""
        return f"{'instr' if self.is_sqlite else 'strpos'}({text}, {part}) > 0"

    def close(self) -> None:
        """Close all connections."""
        self._is_closed = True
        with self._writer_lock:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
        with self._watcher_lock:
            if self._watcher is not None:
                self._watcher.close()
                self._watcher = None
        while self._idle:
            self._idle.pop().close()

    def _text(self, sql: str) -> Text:
        if (text := self._texts.get(sql)) is None:
            compiled = sa.text(sql).compile(dialect=self._dialect)
            text = self._texts[sql] = str(compiled), getattr(compiled, "positiontup", None) or ()
        return text

    def _connect(self, cache_kib: int = _READER_CACHE_KIB) -> Any:
        if self._is_closed:
            raise StoreError(f"{self.name}: the store was closed")
        if not self.is_sqlite:
            connection = self._dialect.connect(*self._arguments, **self._options, autocommit=True)
            connection.execute(f"SET lock_timeout = {int(LOCK_WAIT_S * 1000)}")
            connection.execute(_FLUSHES)
            return connection
        options = {**self._options, "timeout": LOCK_WAIT_S, "check_same_thread": False, "isolation_level": None}
        connection = self._dialect.connect(*self._arguments, **options)
        for name, value in {**_PRAGMAS, "cache_size": -cache_kib}.items():
            connection.execute(f"PRAGMA {name} = {value}").close()
        return connection

    def _use_write_ahead_log(self) -> None:
        """Readers and the writer then don't wait for each other; SQLite does not wait for this lock by itself."""
        deadline = time.monotonic() + LOCK_WAIT_S
        while self.is_sqlite and self.read("PRAGMA journal_mode")[0][0] != "wal":
            try:
                self.read("PRAGMA journal_mode = WAL")
            except StoreError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _check_place(self) -> None:
        """Refuse a file that is no longer where it was opened: what is written to it would be found by nobody."""
        if self.path is not None and _place_of(self.path) != self._place:
            raise StoreError(
                f"{self.name}: the file was replaced or removed while it was in use; start this process again"
            )

    def _forget_writer(self) -> None:
        """A connection in an unknown state is closed, which rolls back."""
        writer, self._writer = self._writer, None
        writer.close()

    def _version(self) -> int:
        """Of the schema; 0 = an empty database."""
        if self.is_sqlite:
            there = self.read("SELECT 1 FROM sqlite_master WHERE name = 'schema_version'")
        else:
            there = self.read("SELECT 1 WHERE to_regclass('schema_version') IS NOT NULL")
        return int(self.read("SELECT max(version) FROM schema_version")[0][0]) if there else 0

    def _migrate(self) -> None:
        if self._version() == CURRENT_VERSION:
            return
        with self.writing() as transaction:  # another process may have done it meanwhile
            for statement in statements_since(self._version(), self._dialect.name):
                transaction.change(statement)

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise self._plain(error) from error

    def _plain(self, error: Exception) -> StoreError:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        hint = next((hint for word, hint in _HINTS.items() if word in reason), "")
        return StoreError(f"{self.name}: the store cannot be used ({reason}){hint}")


_FORMS = "write it as sqlite:///store.sqlite or postgresql://user@host/name"
_INSTALL = 'pip install "fedrec[postgres]"'
_FLUSHES = """SELECT set_config('synchronous_commit', 'on', false)
WHERE current_setting('synchronous_commit') = 'off'"""
_PRAGMAS = {
    "synchronous": "FULL",
    "fullfsync": "ON",
    "secure_delete": "ON",
    "journal_size_limit": _MAX_LOG_BYTES,
}
_HINTS = {
    "locked": f"; another process has written for longer than {LOCK_WAIT_S:.0f} s: wait, or stop it",
    "lock timeout": f"; another process has written for longer than {LOCK_WAIT_S:.0f} s: wait, or stop it",
    "full": "; free some disk space",
    "disk I/O error": "; the disk may be full, or failing",
    "malformed": "; restore it from a backup",
    "not a database": "; give a store's file, or restore it from a backup",
}


def _place_of(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file; None = there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _make_private(path: Path) -> None:
    """Make the file where it is missing, for this user alone.

    Raises:
        StoreError: it can be read by others, or not be made.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        if os.name == "posix" and path.stat().st_mode & 0o077:
            raise StoreError(f"{path}: can be read by others; chmod 600 {path}, and consider it known")
    except OSError as error:
        raise StoreError(f"{path}: cannot be opened ({error.strerror})") from error
