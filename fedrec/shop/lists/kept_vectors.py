"""Vectors of item texts in a file of the shop's folder, so that a restart encodes nothing again.

It holds what can be made again from public texts: a file that is no database, or another encoder's, is begun anew.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from fedrec.errors import StoreError

_log = logging.getLogger("fedrec.shop.lists")
_FORMAT = "1"
_TABLES = """
CREATE TABLE IF NOT EXISTS about (format TEXT, encoder TEXT, dimension INTEGER);
CREATE TABLE IF NOT EXISTS vectors (digest BLOB PRIMARY KEY, half BLOB) WITHOUT ROWID;
"""


class KeptVectors:
    """The file of one encoder."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self._path, self._fingerprint = path, fingerprint

    def dimension(self) -> int | None:
        """Of the encoder's vectors; None = nothing of it is kept here.

        Raises:
            StoreError: the file cannot be read.
        """
        if not self._path.exists():
            return None
        try:
            with self._opened() as file:
                found = file.execute("SELECT format, encoder, dimension FROM about").fetchall()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "no such table" not in str(error):
                raise self._unusable(error) from error
            _log.warning("%s is no file of vectors: item texts are encoded anew", self._path)
            return None
        if len(found) != 1 or found[0][:2] != (_FORMAT, self._fingerprint):
            _log.info("%s is of another encoder: item texts are encoded anew", self._path)
            return None
        return int(found[0][2])

    def begin(self, dimension: int) -> None:
        """An empty file of this encoder; what was there is gone.

        Raises:
            StoreError: it cannot be written.
        """
        try:
            for path in (self._path, Path(f"{self._path}-journal")):
                path.unlink(missing_ok=True)
            with self._opened() as file:
                file.executescript(_TABLES)
                file.execute("INSERT INTO about VALUES (?, ?, ?)", (_FORMAT, self._fingerprint, dimension))
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error

    def recall(self, wanted: Collection[bytes], dimension: int) -> tuple[list[bytes], np.ndarray]:
        """What is kept of these texts: digests, and float16 (num_found, dimension). What is kept of others is erased.

        Raises:
            StoreError: the file cannot be read.
        """
        digests: list[bytes] = []
        halves: list[bytes] = []
        others: list[tuple[bytes]] = []
        try:
            with self._opened() as file:
                for digest, half in file.execute("SELECT digest, half FROM vectors"):
                    if digest in wanted and len(half) == 2 * dimension:
                        digests.append(digest)
                        halves.append(half)
                    else:
                        others.append((digest,))
                file.executemany("DELETE FROM vectors WHERE digest = ?", others)
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return digests, np.frombuffer(b"".join(halves), "<f2").reshape(-1, dimension)

    def add(self, digests: Sequence[bytes], halves: np.ndarray) -> None:
        """Keep these too.

        Args:
            halves: float16, (len(digests), dimension).
        Raises:
            StoreError: the file cannot be written, or another encoder began it anew.
        """
        rows = [(digest, half.tobytes()) for digest, half in zip(digests, halves.astype("<f2"), strict=True)]
        try:
            with self._opened() as file:
                file.execute("BEGIN IMMEDIATE")
                if file.execute("SELECT encoder FROM about").fetchall() != [(self._fingerprint,)]:
                    raise StoreError(f"{self._path}: is another encoder's by now; start the server again")
                file.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path)) as file, file:
            yield file

    def _unusable(self, error: Exception) -> StoreError:
        return StoreError(f"{self._path}: cannot be used ({error}); free some disk space, or delete the file")
