"""fedrec report where it must refuse: nothing is left behind, one line, no traceback."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..reports.privacy_ledgers import anchor, make_shop

Command = Callable[..., Any]


def test_a_key_that_is_not_there_leaves_no_folder(fedrec: Command, tmp_path: Path) -> None:
    make_shop(tmp_path / "shop.db").close()
    said = fedrec("report", "privacy", tmp_path / "shop.db", "--key", tmp_path / "none.key", "--out", tmp_path / "rk")
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert not (tmp_path / "rk").exists()


@pytest.mark.parametrize(
    ("option", "words"),
    [("--public-key", "--public-key zz: give the fingerprint"), ("--shop-key", "--shop-key zz: give a public key")],
)
def test_a_key_that_is_none_is_an_error_of_usage(fedrec: Command, tmp_path: Path, option: str, words: str) -> None:
    make_shop(tmp_path / "shop.db").close()
    fedrec("report", "privacy", tmp_path / "shop.db")
    said = fedrec("report", "verify", tmp_path / "privacy-report.json", option, "zz")
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert words in said.err


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("DELETE FROM ledger_entries WHERE sequence = 5", "was rolled back or edited"),
        ("DELETE FROM ledger_entries", "all its entries were removed"),
        ("UPDATE ledger_entries SET text = 'text' WHERE sequence = 2", "somebody edited the database"),
        ("UPDATE ledger_receipts SET receipt = 5", "somebody edited the database"),
    ],
)
def test_a_ledger_that_somebody_changed_is_not_reported(
    fedrec: Command, tmp_path: Path, statement: str, words: str
) -> None:
    ledger = make_shop(tmp_path / "shop.db", runs=2)
    anchor(ledger, tmp_path)
    ledger.close()
    assert fedrec("report", "privacy", tmp_path / "shop.db", "--out", tmp_path / "before").status == 0
    connection = sqlite3.connect(tmp_path / "shop.db")
    with connection:
        if "sequence = 5" in statement:
            connection.execute("DELETE FROM ledger_entries WHERE sequence > 5")
        connection.execute(statement)
    connection.close()
    said = fedrec("report", "privacy", tmp_path / "shop.db", "--out", tmp_path / "after")
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert words in said.err
    assert not (tmp_path / "after").exists()
    report = tmp_path / "before" / "privacy-report.json"
    said = fedrec("report", "verify", report, "--ledger", tmp_path / "shop.db")
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
