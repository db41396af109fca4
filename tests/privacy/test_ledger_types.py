"""Values of any type in any column of a ledger's database: refused in words, or without effect."""

from __future__ import annotations

import itertools
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedrec.errors import LedgerBehind, LedgerTampered
from fedrec.federation.anchors import AnchorBook, Anchored
from fedrec.privacy.ledger import Budget, Ledger
from fedrec.privacy.mechanisms import PlannedRelease
from fedrec.privacy.spec import Mode, PrivacySpec
from fedrec.reports.privacy_entries import read_source
from fedrec.secure_aggregation.keys import IdentityKey

SPEC = PrivacySpec(
    epsilon=3.0, delta=1e-5, mode=Mode.LOCAL, public_shoppers=100, max_shoppers=1000, min_shops=3, colluders=1
)
RELEASE = PlannedRelease("gram", 1.0, 16.0)
COLUMNS = {
    "ledger_entries": ("shop", "sequence", "text", "hash"),
    "ledger_payloads": ("shop", "run", "sequence", "payload"),
    "ledger_receipts": ("shop", "signer", "sequence", "receipt"),
}
VALUES = {
    "NULL": "NULL",
    "TEXT": "'x'",
    "empty TEXT": "''",
    "no UTF-8": "CAST(x'ff' AS TEXT)",
    "JSON": """'{"format":1}'""",
    "BLOB": "x'7b7d'",
    "deep JSON": f"CAST('{'[' * 20_000}' AS BLOB)",
    "REAL": "2.5",
    "a small number": "7",
    "a huge number": "9223372036854775807",
    "a negative number": "-5",
    "infinity": "9e999",
}


@dataclass(frozen=True)
class Book:
    """A database and what it holds when nobody changed it."""

    path: Path
    entries: tuple

    def copy(self, folder: Path) -> Path:
        return Path(shutil.copy(self.path, folder / "changed.db"))


@pytest.fixture(scope="module", params=["as fedrec makes it", "without types and constraints"])
def book(request, tmp_path_factory) -> Book:
    folder = tmp_path_factory.mktemp("book")
    ledger = Ledger.open(folder / "ledger.db", "north", budget=Budget(3.0, 1e-5))
    ledger.reserve("r", SPEC, (RELEASE,) * 3)
    for index in range(2):
        ledger.charge("r", index, b"p" * 32, RELEASE, f"payload {index}".encode())
    anchor = AnchorBook(folder / "coordinator.json", IdentityKey.generate())
    Anchored(IdentityKey.generate(), (anchor,)).keep(ledger)
    entries = ledger.entries()
    ledger.close()
    if request.param != "as fedrec makes it":
        with sqlite3.connect(folder / "ledger.db") as connection:
            for table in COLUMNS:
                connection.execute(f"ALTER TABLE {table} RENAME TO old")
                connection.execute(f"CREATE TABLE {table} ({', '.join(COLUMNS[table])})")
                connection.execute(f"INSERT INTO {table} SELECT {', '.join(COLUMNS[table])} FROM old")
                connection.execute("DROP TABLE old")
        connection.close()
    return Book(folder / "ledger.db", entries)


def change(path: Path, statement: str) -> bool:
    """Run a statement; False where the database itself refuses it."""
    connection = sqlite3.connect(path)
    try:
        with connection:
            return connection.execute(statement).rowcount > 0
    except sqlite3.IntegrityError:
        return False
    finally:
        connection.close()


@pytest.mark.parametrize("value", VALUES)
def test_a_value_of_any_type_in_any_column_is_refused_or_changes_nothing(book, tmp_path, value):
    refused = 0
    for table, columns in COLUMNS.items():
        for column, row in itertools.product(columns, ("min", "max")):
            path = book.copy(tmp_path)
            one = f"rowid = (SELECT {row}(rowid) FROM {table})"
            if not change(path, f"UPDATE {table} SET {column} = {VALUES[value]} WHERE {one}"):
                continue
            try:
                [found] = read_source(str(path))
            except (LedgerTampered, LedgerBehind):
                refused += 1
                continue
            assert [copy.entries for copy in found.shops] == [book.entries], (table, column, row)
            assert table != "ledger_entries", (column, row)
    assert refused >= 8 or value == "NULL"  # which the tables as fedrec makes them do not take


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("column", ["sequence", "text", "hash"])
def test_a_shop_does_not_release_by_a_ledger_with_a_value_of_another_type(book, tmp_path, value, column):
    for sequence in range(1, 5):
        path = book.copy(tmp_path)
        if change(path, f"UPDATE ledger_entries SET {column} = {VALUES[value]} WHERE sequence = {sequence}"):
            with pytest.raises(LedgerTampered):
                Ledger.open(path, "north")


@pytest.mark.parametrize("value", VALUES)
def test_a_payload_of_another_type_is_not_sent_again(book, tmp_path, value):
    path = book.copy(tmp_path)
    if change(path, f"UPDATE ledger_payloads SET payload = {VALUES[value]} WHERE sequence = 3"):
        ledger = Ledger.open(path, "north")
        if value == "NULL":
            assert ledger.stored("r", 0, b"p" * 32) is None
            return
        with pytest.raises(LedgerTampered):
            ledger.stored("r", 0, b"p" * 32)
        with pytest.raises(LedgerTampered):
            ledger.verify()
