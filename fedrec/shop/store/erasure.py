"""Erasing a shopper for good: her rows go, and a tombstone keeps her from coming back by accident.

A tombstone is a keyed hash of her id and a time; what she did until then is never taken again. It stands in the
database and in a file beside it, so that neither an old export nor a restored backup brings her back: what the file
knows and the database does not is erased again when the store is opened. The key is in both, and both are this user's
alone: who has them can test whether an id that he guesses was erased, and nobody else can.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedrec.errors import StoreError
from fedrec.shop.store.database import Database, Transaction
from fedrec.shop.store.rows import Erasure

GENERATION = "SELECT number FROM facts WHERE name = 'generation'"
_SECRET = "SELECT secret FROM facts WHERE name = 'hash key'"
_PUT_SECRET = "INSERT INTO facts (name, number, secret) VALUES ('hash key', 0, :secret) ON CONFLICT (name) DO NOTHING"
_TOMBSTONES = "SELECT shopper_hash, erased_at FROM tombstones"
_PUT_TOMBSTONE = """INSERT INTO tombstones (shopper_hash, erased_at) VALUES (:shopper_hash, :erased_at)
ON CONFLICT (shopper_hash) DO UPDATE SET erased_at = excluded.erased_at"""
_HEADER = "fedrec tombstones 1"

Tombstones = Mapping[bytes, float]
"""Keyed hash of a shopper's id -> when she was erased, seconds since 1970 UTC."""


class Erasures:
    """The tombstones of a store.

    Args:
        database: the store's.
        path: the file beside it; None = there is none, and a restored backup is not noticed.
    Raises:
        StoreError: the file is another store's, or cannot be read or written.
    """

    def __init__(self, database: Database, path: Path | None) -> None:
        self._database, self._path = database, path
        self._known: Tombstones = {}
        self._known_of: int | None = None
        kept = _read(path)
        found = database.read(_SECRET)
        is_new = not found
        if is_new or (path and kept != (bytes(found[0][0]), _tombstones(database.read(_TOMBSTONES)))):
            with database.writing() as transaction:
                self._reconcile(transaction)
        self._key = bytes(database.read(_SECRET)[0][0])

    def erase(self, shopper: str) -> Erasure:
        """Delete all rows of a shopper and leave her tombstone.

        Raises:
            StoreError: nothing was erased.
        """
        with self._database.writing() as transaction:
            newest = transaction.read("SELECT max(timestamp) FROM events WHERE shopper = :shopper", shopper=shopper)
            erased_at = max(time.time(), newest[0][0] or 0.0)
            tombstones = {**_tombstones(transaction.read(_TOMBSTONES)), self.hash(shopper): erased_at}
            self._write(tombstones, self._key)  # first: a crash from here on ends in her erasure at the next start
            gone = _delete(transaction, shopper, erased_at)
            transaction.change(_PUT_TOMBSTONE, shopper_hash=self.hash(shopper), erased_at=erased_at)
            _next_generation(transaction)
        try:
            is_wiped = self._database.forget_deleted()
        except StoreError:  # she is erased, whatever becomes of the pages
            is_wiped = False
        return Erasure(*gone, erased_at, is_wiped)

    def when(self, shopper: str) -> float | None:
        """When a shopper was erased, seconds since 1970 UTC; None = never."""
        return _tombstones(self._database.read(_TOMBSTONES)).get(self.hash(shopper))

    def without_erased(
        self, transaction: Transaction, rows: Sequence[tuple[Any, ...]], shopper: int, timestamp: int
    ) -> Sequence[tuple[Any, ...]]:
        """Rows but those of erased shoppers from before their erasure.

        Args:
            rows: any.
            shopper, timestamp: places in a row; a shopper that is None was never erased.
        """
        generation = transaction.read(GENERATION)[0][0]
        if generation != self._known_of:
            self._known, self._known_of = _tombstones(transaction.read(_TOMBSTONES)), generation
        if not self._known:
            return rows
        named = {row[shopper] for row in rows} - {None}
        until = {name: when for name in named if (when := self._known.get(self.hash(name))) is not None}
        return [row for row in rows if row[timestamp] > until.get(row[shopper], -1.0)]

    def hash(self, shopper: str) -> bytes:
        """What stays of an erased shopper."""
        return _hash(self._key, shopper)

    def _reconcile(self, transaction: Transaction) -> None:
        """Agree on a key, and erase again whoever only one of the two knows as erased."""
        kept, found = _read(self._path), transaction.read(_SECRET)
        if not found:
            transaction.change(_PUT_SECRET, secret=kept[0] if kept else secrets.token_bytes(32))
        key = bytes(transaction.read(_SECRET)[0][0])
        if kept and kept[0] != key:
            raise StoreError(
                f"{self._path}: these tombstones are of another store than {self._database.name}; put the store's own "
                "file there, or move this one away if nobody was erased"
            )
        known = _tombstones(transaction.read(_TOMBSTONES))
        tombstones = {**known, **(kept[1] if kept else {})}
        missing = {one: when for one, when in tombstones.items() if known.get(one) != when}
        if missing:
            for (shopper,) in transaction.read("SELECT DISTINCT shopper FROM events"):
                if (when := missing.get(_hash(key, shopper))) is not None:
                    _delete(transaction, shopper, when)
            transaction.change_all(_PUT_TOMBSTONE, list(missing.items()))
            _next_generation(transaction)
        self._write(tombstones, key)

    def _write(self, tombstones: Tombstones, key: bytes) -> None:
        if self._path is None:
            return
        lines = [f"{_HEADER} {key.hex()}", *(f"{one.hex()} {when!r}" for one, when in sorted(tombstones.items()))]
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        try:
            with open(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
                file.write("\n".join(lines) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be written ({error.strerror})") from error


def _read(path: Path | None) -> tuple[bytes, dict[bytes, float]] | None:
    """Key and tombstones of a file; None = there is none."""
    if path is None or not path.exists():
        return None
    try:
        header, *lines = path.read_text().splitlines()
        name, _, key = header.rpartition(" ")
        if name != _HEADER:
            raise ValueError
        pairs = (line.split(" ") for line in lines)
        return bytes.fromhex(key), {bytes.fromhex(one): float(when) for one, when in pairs}
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: is no file of tombstones that can be read; restore it from a backup") from error


def _tombstones(rows: Sequence[tuple[bytes, float]]) -> dict[bytes, float]:
    return {bytes(one): when for one, when in rows}


def _hash(key: bytes, shopper: str) -> bytes:
    return hashlib.blake2b(shopper.encode(), key=key, digest_size=16).digest()


def _delete(transaction: Transaction, shopper: str, until: float) -> tuple[int, int]:
    """Delete a shopper's events and impressions up to a time; how many there were."""
    both = [
        transaction.change(
            f"DELETE FROM {table} WHERE shopper = :shopper AND timestamp <= :until", shopper=shopper, until=until
        )
        for table in ("events", "impressions")
    ]
    return both[0], both[1]


def _next_generation(transaction: Transaction) -> None:
    transaction.change("UPDATE facts SET number = number + 1 WHERE name = 'generation'")
