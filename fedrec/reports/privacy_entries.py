"""Copies of shops' privacy ledgers, as a report carries them: every entry in full, so that anybody can count again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fedrec.errors import BadMessage, ConfigError, LedgerBehind, LedgerTampered, StoreError
from fedrec.federation.anchors import Receipt
from fedrec.federation.run_record import read_record
from fedrec.privacy import ledger_rules as rules
from fedrec.privacy.ledger import Ledger
from fedrec.privacy.ledger_account import Account
from fedrec.privacy.ledger_entries import START, Entry, Kind, read_entry

_RUN_LEDGERS = "privacy/eps-*/ledger.sqlite"
_RUN_MODELS = ("popularity", "federated")


@dataclass(frozen=True, repr=False)
class ShopLedger:
    """One shop's ledger.

    Attributes:
        shop: whose.
        entries: all of them, in order.
        receipts: the latest countersignature of each anchor, as the shop keeps them.
    """

    shop: str
    entries: tuple[Entry, ...]
    receipts: tuple[Receipt, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON values: of each entry its text as it was hashed, and its hash."""
        return {
            "shop": self.shop,
            "entries": [
                {"sequence": entry.sequence, "text": entry.text().decode(), "hash": entry.hash.hex()}
                for entry in self.entries
            ],
            "receipts": [json.loads(receipt.to_bytes()) for receipt in self.receipts],
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`; the chain is checked on the way.

        Raises:
            BadMessage: not such JSON.
            LedgerTampered, LedgerTooNew: the chain does not hold.
        """
        try:
            shop, previous, entries = str(fields["shop"]), START, []
            for one in fields["entries"]:
                own, text = bytes.fromhex(one["hash"]), one["text"].encode()
                entries.append(read_entry(shop, int(one["sequence"]), text, own, previous))
                previous = own
            receipts = tuple(Receipt.from_bytes(json.dumps(one).encode()) for one in fields["receipts"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadMessage(f"not the copy of a ledger ({type(error).__name__})") from error
        return cls(shop, tuple(entries), receipts)


@dataclass(frozen=True, repr=False)
class Book:
    """The ledgers that one database holds; each book of a report is a promise of its own.

    Attributes:
        name: of the database within what is reported.
        shops: their ledgers.
    """

    name: str
    shops: tuple[ShopLedger, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {"name": self.name, "shops": [shop.to_json() for shop in self.shops]}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            BadMessage: not such JSON.
            LedgerTampered, LedgerTooNew: a chain does not hold.
        """
        try:
            return cls(str(fields["name"]), tuple(ShopLedger.from_json(one) for one in fields["shops"]))
        except (KeyError, TypeError) as error:
            raise BadMessage(f"not the copy of a book of ledgers ({type(error).__name__})") from error


def counted(copy: ShopLedger) -> Account:
    """What a copy's entries add up to.

    Raises:
        LedgerTampered: an entry does not follow from those before, or a cost not from its parameters.
    """
    account = Account(copy.shop)
    for entry in copy.entries:
        account.apply(entry)
        if entry.kind is Kind.RESERVE:
            rules.check_costs(account, entry)
    if account.budget is None:
        raise LedgerTampered(f"the ledger of shop {copy.shop!r} has lost its first entry")
    return account


def read_source(source: str, shop: str | None = None) -> tuple[Book, ...]:
    """All ledgers of a run directory, or of a database.

    Args:
        source: a run directory, a SQLite file, or a database's URL.
        shop: this one's alone.
    Raises:
        ConfigError: a run that promises nothing, or no such shop.
        StoreError: nothing can be read there.
        LedgerTampered, LedgerTooNew: a ledger is not to be trusted, or cannot be read.
        LedgerBehind: an anchor countersigned an entry that is not in its ledger any more.
    """
    path = Path(source)
    if "://" in source or not path.is_dir():
        return (_read_book("ledger", source, shop),)
    files = sorted(path.glob(_RUN_LEDGERS), key=_epsilon_of_folder)
    if not files:
        _refuse_run(path)
    books = tuple(_read_book(file.parent.name, str(file), shop) for file in files)
    if shop is None:
        _check_roster(path, books)
    return books


def notes_of(source: str) -> list[str]:
    """What a run's own record adds, for people: which inputs count as declared, and whose ledgers these are.

    Raises:
        StoreError: the record cannot be read.
    """
    record = Path(source) / "run.json"
    if "://" in source or not record.is_file():
        return []
    about = read_record(record).privacy or {}
    notes = [f"Public inputs: {about['public_inputs']}."] if about.get("public_inputs") else []
    if (draws := about.get("noise_draws", 1)) > 1:
        notes.append(
            f"These are the ledgers of the first of {draws} noise draws; each paid the whole promise from ledgers of "
            "its own, as only a simulation may."
        )
    return notes


def _read_book(name: str, place: str, shop: str | None) -> Book:
    from fedrec.privacy.ledger_store import shops_in  # so that nothing else waits for the database library

    found = shops_in(place)
    if shop is not None and shop not in found:
        raise ConfigError(f"no ledger of shop {shop!r} there; there are {', '.join(map(repr, found[:10]))}")
    return Book(name, tuple(_read_shop(place, one) for one in (found if shop is None else (shop,))))


def _read_shop(place: str, shop: str) -> ShopLedger:
    try:
        ledger = Ledger.open(place, shop)
    except ConfigError as error:
        raise LedgerTampered(
            f"ledger of shop {shop!r}: all its entries were removed, while payloads or receipts of it are left; "
            "nothing is reported. Restore the ledger and recover what others have seen of it"
        ) from error
    try:
        account = ledger.verify()
        copy = ShopLedger(shop, ledger.entries(), tuple(_receipt(shop, one) for one in ledger.receipts()))
    finally:
        ledger.close()
    _check_receipts(account, copy)
    return copy


def _receipt(shop: str, data: bytes) -> Receipt:
    try:
        return Receipt.from_bytes(data)
    except (BadMessage, RecursionError, OverflowError) as error:
        raise LedgerTampered(
            f"ledger of shop {shop!r}: the receipt of an anchor cannot be read; somebody edited the database"
        ) from error


def _check_receipts(account: Account, copy: ShopLedger) -> None:
    """Refuse a ledger that lacks what an anchor has countersigned."""
    for receipt in copy.receipts:
        head = receipt.signed.head
        if head.shop != copy.shop:
            raise LedgerTampered(f"ledger of shop {copy.shop!r}: holds a receipt of shop {head.shop!r}'s ledger")
        if rules.lost(account, [head]):
            raise LedgerBehind(
                f"ledger of shop {copy.shop!r}: it was rolled back or edited. Anchor {receipt.anchor} has "
                f"countersigned entry {head.sequence}, which is not among its {len(copy.entries)} entries; "
                "nothing is reported. Restore the ledger, or recover what the anchors have seen (Ledger.recover)"
            )


def _check_roster(path: Path, books: tuple[Book, ...]) -> None:
    """Refuse a finished run whose ledgers lack one of its shops; one that was never heard may have begun none."""
    if not (path / "run.json").is_file():
        return
    record = read_record(path / "run.json")
    models = [run.get(name) or {} for run in (record.privacy or {}).get("runs", []) for name in _RUN_MODELS]
    if any(one["failed"] for model in models for one in model.get("rounds", [])):
        return
    roster = {str(row["shop"]) for row in record.data["shops"]}
    for book in books:
        if missing := sorted(roster - {copy.shop for copy in book.shops}):
            raise LedgerTampered(
                f"{path.name}, {book.name}: the ledger of shop {missing[0]!r} was removed, which took part in the run; "
                "nothing is reported. Restore the run's ledgers"
            )


def _refuse_run(path: Path) -> None:
    if not (path / "run.json").is_file():
        raise StoreError(f"{path}: holds neither a run nor a ledger; give a run directory or a ledger's database")
    if read_record(path / "run.json").privacy is None:
        raise ConfigError(
            f"{path}: this run promises nothing, so there is no ledger to report; a private one is made by fedrec "
            "simulate --epsilon NUMBER --delta NUMBER"
        )
    raise StoreError(f"{path}: this run left no ledgers (its wanted columns keep none, or they were removed)")


def _epsilon_of_folder(file: Path) -> tuple[float, str]:
    name = file.parent.name
    try:
        return float(name.removeprefix("eps-")), name
    except ValueError:
        return float("inf"), name
