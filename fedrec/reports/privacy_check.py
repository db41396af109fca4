"""Whether a privacy report is true: its signature, its ledgers' chains, and every figure counted again.

What a check can know: the signature says who vouches for the file; the chain, that no entry was changed, removed or
moved after the last hash was fixed; the figures, that they follow from the entries. That the entries are *all* of the
shop's is known only from its own database, or from somebody outside who kept the ledger's head.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from string import hexdigits
from typing import Any, Self

from fedrec.errors import BadMessage, BadSignature, ConfigError, FedrecError, StoreError
from fedrec.federation.anchors import Receipt, SignedHead
from fedrec.privacy import ledger_rules as rules
from fedrec.privacy.ledger_entries import Head
from fedrec.reports.privacy_entries import Book, ShopLedger, counted, read_source
from fedrec.reports.privacy_figures import differences, document, num_figures
from fedrec.reports.privacy_report import KIND, REPORT_FORMAT, Report, render_json, signed_bytes
from fedrec.secure_aggregation.keys import PublicKey

_FINGERPRINT_DIGITS, _KEY_DIGITS = 32, 64
_FIELDS = {"kind", "format", "created_utc", "fedrec", "source", "notes", "document", "ledgers", "signature"}


class Verdict(StrEnum):
    """How a check came out."""

    HOLDS = "holds"
    FAILS = "fails"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True)
class Check:
    """One line of a verification."""

    name: str
    verdict: Verdict
    text: str


def read_report(path: Path) -> tuple[dict[str, Any], bytes]:
    """A report as parsed, and the file's bytes.

    Raises:
        StoreError: no such file, not JSON, not a privacy report, or of a newer format.
    """
    try:
        data = path.read_bytes()
        fields = json.loads(data, parse_constant=_refuse_constant)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: is not JSON; give the .json file that fedrec report privacy wrote") from error
    if not isinstance(fields, dict) or fields.get("kind") != KIND:
        raise StoreError(f"{path}: is not a privacy report; give the .json file that fedrec report privacy wrote")
    version = fields.get("format")
    if type(version) is int and version > REPORT_FORMAT:
        raise StoreError(
            f"{path}: privacy report of format {version}, this version reads up to {REPORT_FORMAT}: install a newer "
            "version of fedrec"
        )
    return fields, data


def verify(
    report: Report,
    data: bytes,
    *,
    public_key: str | None = None,
    ledger: str | None = None,
    anchor: Path | None = None,
    shop_key: str | None = None,
    anchor_key: str | None = None,
) -> list[Check]:
    """Check a report.

    Args:
        report, data: from `read_report`.
        public_key: fingerprint, or the key itself in hex, as the shop told it by another way.
        ledger: the shop's own database or run directory, to compare with.
        anchor: what an anchor kept of the ledger: its file of heads, or one receipt.
        shop_key: public key (hex) of the shop's identity, which signs the heads of its ledger; without it the key that
            signed the report is tried, and the check says whether it fitted.
        anchor_key: public key (hex) of the anchor, which countersigns heads in receipts.
    Raises:
        ConfigError, StoreError: what to compare with cannot be used.
        LedgerTampered, LedgerBehind: the database to compare with is not to be trusted.
    """
    wanted = None if public_key is None else _key_or_fingerprint(public_key)
    keys = _AnchorKeys.of(report, shop_key, anchor_key)
    checks = [_form(report, data), _signature(report, wanted)]
    books, chain = _chains(report)
    checks.append(chain)
    if books is None:
        skipped = "the entries cannot be trusted"
        names = ("figures", "accountants", "ledger", "anchor")
        return [*checks, *(Check(name, Verdict.NOT_CHECKED, skipped) for name in names)]
    checks += _figures(report, books)
    checks.append(_ledger(books, ledger))
    return [*checks, _anchor(books, anchor, keys)]


def _form(report: Report, data: bytes) -> Check:
    if report.keys() != _FIELDS or report["format"] != REPORT_FORMAT:
        return Check("form", Verdict.FAILS, f"not the fields of a privacy report of format {REPORT_FORMAT}")
    if render_json(report).encode() != data:
        return Check("form", Verdict.FAILS, "the file is not spelled as fedrec writes it: something was edited")
    text = f"format {REPORT_FORMAT}, by fedrec {report['fedrec']}, {report['created_utc']}"
    return Check("form", Verdict.HOLDS, text)


def _signature(report: Report, wanted: str | None) -> Check:
    try:
        about = report["signature"]
        key = PublicKey(bytes.fromhex(about["public_key"]))
        if about["algorithm"] != "Ed25519" or about["fingerprint"] != key.fingerprint():
            raise BadSignature("the fingerprint is not that of the public key")
        key.verify(signed_bytes(report), bytes.fromhex(about["value"]))
    except (BadSignature, BadMessage, KeyError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, FedrecError) else "no readable signature"
        return Check("signature", Verdict.FAILS, reason)
    if wanted is None:
        text = f"by key {key.fingerprint()}; whose it is, ask the shop (--public-key)"
        return Check("signature", Verdict.HOLDS, text)
    if wanted not in (_plain(key.fingerprint()), key.raw.hex()):
        return Check("signature", Verdict.FAILS, f"by key {key.fingerprint()}, which is not {wanted}")
    return Check("signature", Verdict.HOLDS, f"by key {key.fingerprint()}, as given")


def _chains(report: Report) -> tuple[list[Book] | None, Check]:
    try:
        books = [Book.from_json(one) for one in report["ledgers"]]
        entries = 0
        for copy in _shops(books):
            counted(copy)
            entries += len(copy.entries)
    except (FedrecError, KeyError, TypeError) as error:
        reason = str(error) if isinstance(error, FedrecError) else "the ledgers cannot be read"
        return None, Check("chain", Verdict.FAILS, reason)
    num_ledgers = sum(1 for _ in _shops(books))
    text = (
        f"{entries:,} entries in {num_ledgers} {'ledger' if num_ledgers == 1 else 'ledgers'}: each follows from the "
        "one before, every charge was reserved"
    )
    return books, Check("chain", Verdict.HOLDS, text)


def _figures(report: Report, books: Sequence[Book]) -> list[Check]:
    try:
        computed = document(books)
    except FedrecError as error:
        return [
            Check("figures", Verdict.NOT_CHECKED, "the accountants do not agree"),
            Check("accountants", Verdict.FAILS, str(error)),
        ]
    wrong = differences(report["document"], computed)
    if wrong:
        more = f"; and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        figures = Check("figures", Verdict.FAILS, f"{wrong[0]}{more}")
    else:
        text = f"{num_figures(computed):,} figures and all sentences follow from the entries"
        figures = Check("figures", Verdict.HOLDS, text)
    runs = [run for book in computed["books"] for run in book["runs"]]
    return [figures, Check("accountants", Verdict.HOLDS, _agreement(runs))]


def _agreement(runs: Sequence[Mapping[str, Any]]) -> str:
    if not runs:
        return "no run to count"
    found = [run["accountants"] for run in runs]
    apart = max((abs(one["prv"] - one["pld"]) for one in found if one["prv"] is not None), default=0.0)
    unable = sum(one["prv"] is None for one in found)
    text = f"PLD, Rényi and PRV agree on {len(runs)} {'run' if len(runs) == 1 else 'runs'} (PRV within {apart:.2g})"
    return f"{text}; PRV could not answer for {unable}" if unable else text


def _ledger(books: Sequence[Book], source: str | None) -> Check:
    if source is None:
        return Check("ledger", Verdict.NOT_CHECKED, "give the shop's database by --ledger to compare with it")
    own = {(book.name, copy.shop): copy for book in read_source(source) for copy in book.shops}
    if len(books) == 1:  # a database has no name of its own
        own = {(books[0].name, shop): copy for (_, shop), copy in own.items()}
    later = 0
    for book in books:
        for copy in book.shops:
            found = own.get((book.name, copy.shop))
            if found is None:
                return Check("ledger", Verdict.FAILS, f"{source} holds no ledger of shop {copy.shop!r}")
            if found.entries[: len(copy.entries)] != copy.entries:
                return Check(
                    "ledger",
                    Verdict.FAILS,
                    f"shop {copy.shop!r}: the report's {len(copy.entries)} entries are not those of {source}",
                )
            later += len(found.entries) - len(copy.entries)
    text = "the same entries as in the shop's database"
    return Check("ledger", Verdict.HOLDS, f"{text}, which has {later} more by now" if later else text)


@dataclass(frozen=True)
class _AnchorKeys:
    """Whose signatures heads and receipts must have.

    Attributes:
        shop: of `verify`, or else the key that signed the report; None = no readable one.
        is_given: whether it is that of `verify`.
        anchor: of `verify`; never without the shop's.
    """

    shop: PublicKey | None
    is_given: bool
    anchor: PublicKey | None

    @classmethod
    def of(cls, report: Report, shop_key: str | None, anchor_key: str | None) -> Self:
        if shop_key is not None:
            anchor = None if anchor_key is None else _public_key(anchor_key, "--anchor-key")
            return cls(_public_key(shop_key, "--shop-key"), True, anchor)
        if anchor_key is not None:
            raise ConfigError("--anchor-key: an anchor countersigns what the shop signed; give --shop-key too")
        try:
            return cls(PublicKey(bytes.fromhex(report["signature"]["public_key"])), False, None)
        except (BadMessage, KeyError, TypeError, ValueError):
            return cls(None, False, None)

    def refusal(self, heads: Sequence[SignedHead], receipts: Sequence[Receipt]) -> str:
        """The first signature that is not by a key of `verify`; "" = none, or no key was given."""
        if not self.is_given or self.shop is None:
            return ""
        for signed in heads:
            if not self._has_signed(signed):
                return f"{_place(signed.head)}: the head is not signed by the key of --shop-key"
        if self.anchor is None:
            return ""
        for receipt in receipts:
            try:
                receipt.verify(self.shop, self.anchor)
            except BadSignature:
                return f"{_place(receipt.signed.head)}: the receipt is not signed by the key of --anchor-key"
        return ""

    def about(self, heads: Sequence[SignedHead], receipts: Sequence[Receipt]) -> str:
        """What is known of the signatures after `refusal`."""
        if self.is_given:
            own = "signed by the key of --shop-key"
        elif all(self._has_signed(signed) for signed in heads):
            own = "signed by the key that signed the report"
        else:
            own = "signatures not checked (give --shop-key)"
        if not receipts:
            return own
        return f"{own}, countersignatures {'too' if self.anchor else 'not checked (give --anchor-key)'}"

    def _has_signed(self, signed: SignedHead) -> bool:
        try:
            if self.shop is not None:
                signed.verify(self.shop)
        except BadSignature:
            return False
        return self.shop is not None


def _anchor(books: Sequence[Book], anchor: Path | None, keys: _AnchorKeys) -> Check:
    receipts = [receipt for copy in _shops(books) for receipt in copy.receipts]
    shops = {copy.shop for copy in _shops(books)}
    if keys.is_given and len(shops) > 1:
        raise ConfigError(f"--shop-key: the report is of {len(shops)} shops, each with a key of its own")
    own = [receipt.signed for receipt in receipts]
    if lost := _first_lost(books, own):
        return Check("anchor", Verdict.FAILS, f"a countersigned head in the report is not in its chain: {lost}")
    if anchor is None:
        if not receipts:
            return Check("anchor", Verdict.NOT_CHECKED, "no head was kept outside: rollback not detectable")
        if refusal := keys.refusal(own, receipts):
            return Check("anchor", Verdict.FAILS, refusal)
        text = f"{len(receipts)} countersigned heads in the report fit; {keys.about(own, receipts)}"
        return Check("anchor", Verdict.NOT_CHECKED, f"{text}; give what the anchor keeps by --anchor")
    heads, given = _read_anchor(anchor)
    kept = [signed for signed in heads if signed.head.shop in shops]
    if not kept:
        return Check("anchor", Verdict.FAILS, f"{anchor} keeps no head of {', '.join(sorted(shops)[:3])}")
    if refusal := keys.refusal(kept, given):
        return Check("anchor", Verdict.FAILS, f"{anchor}: {refusal}")
    if lost := _first_lost(books, kept):
        return Check("anchor", Verdict.FAILS, f"the anchor has seen more than the report tells: {lost}")
    text = f"all {len(kept)} heads that the anchor keeps are in the chain; {keys.about(kept, given)}"
    return Check("anchor", Verdict.HOLDS, text)


def _first_lost(books: Sequence[Book], heads: Sequence[SignedHead]) -> str:
    """The first head that no ledger of its shop has; "" = none."""
    for signed in heads:
        copies = [copy for copy in _shops(books) if copy.shop == signed.head.shop]
        if copies and all(_is_lost(copy, signed.head) for copy in copies):
            return _place(signed.head)
    return ""


def _is_lost(copy: ShopLedger, head: Head) -> bool:
    return bool(rules.lost(counted(copy), [head]))


def _place(head: Head) -> str:
    return f"shop {head.shop!r}, entry {head.sequence}"


def _read_anchor(path: Path) -> tuple[tuple[SignedHead, ...], tuple[Receipt, ...]]:
    """Heads of an anchor's file; or the head of one receipt, and that receipt."""
    try:
        data = path.read_bytes()
        fields = json.loads(data)
        if "heads" in fields:
            return tuple(SignedHead.from_json(one) for one in fields["heads"]), ()
        receipt = Receipt.from_bytes(data)
        return (receipt.signed,), (receipt,)
    except OSError as error:
        raise StoreError(f"--anchor {path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, OverflowError, RecursionError, BadMessage) as error:
        raise ConfigError(f"--anchor {path}: holds no ledger heads; give an anchor's file, or a receipt") from error


def _shops(books: Sequence[Book]) -> list[ShopLedger]:
    return [copy for book in books for copy in book.shops]


def _key_or_fingerprint(text: str) -> str:
    """Its hex digits alone."""
    plain = _plain(text)
    if len(plain) not in (_FINGERPRINT_DIGITS, _KEY_DIGITS) or not set(plain) <= set(hexdigits):
        raise ConfigError(
            f"--public-key {text}: give the fingerprint (eight groups of four hex digits, as fedrec report privacy "
            f"prints it) or the key itself ({_KEY_DIGITS} hex digits)"
        )
    return plain


def _public_key(text: str, option: str) -> PublicKey:
    try:
        return PublicKey(bytes.fromhex(_plain(text)))
    except (ValueError, BadMessage) as error:
        raise ConfigError(f"{option} {text}: give a public key, {_KEY_DIGITS} hex digits") from error


def _plain(key: str) -> str:
    return key.strip().lower().replace("-", "").replace(":", "").replace(" ", "")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no figure")
