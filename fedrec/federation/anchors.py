"""Ledger heads kept outside a shop, so that it notices when its own ledger is an older copy.

With each upload a shop sends its ledger's head, signed. The coordinator and one peer shop each keep it and
countersign. At start and with each plan the shop gets back what they have kept, and `Ledger.check_anchor` compares: a
restored backup lacks heads, a cloned machine has others. Heads hold sequence, hash and costs, nothing about a shopper.

The shop's own signature keeps an anchor from inventing heads: a made-up one would stop a shop for good.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fedrec.errors import BadMessage, BadSignature, LedgerBehind, StoreError
from fedrec.federation.run_record import write_atomically
from fedrec.privacy.ledger import Head, Ledger
from fedrec.secure_aggregation.keys import IdentityKey, PublicKey

ANCHORS_FORMAT = 1
_HEAD = b"fedrec ledger head\0"
_RECEIPT = b"fedrec ledger head kept\0"


@dataclass(frozen=True)
class SignedHead:
    """A ledger head and the shop's signature over it."""

    head: Head
    signature: bytes

    @classmethod
    def sign(cls, head: Head, key: IdentityKey) -> Self:
        """Sign one's own head."""
        return cls(head, key.sign(_HEAD + head.to_bytes()))

    def verify(self, shop_key: PublicKey) -> None:
        """Raise BadSignature if the shop did not sign this head."""
        shop_key.verify(_HEAD + self.head.to_bytes(), self.signature)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {"head": self.head.to_json(), "signature": self.signature.hex()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            BadMessage: not such JSON.
        """
        try:
            if set(fields) != {"head", "signature"}:
                raise ValueError("unknown fields")
            return cls(Head.from_json(fields["head"]), bytes.fromhex(fields["signature"]))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            raise BadMessage("not a signed ledger head") from error


@dataclass(frozen=True)
class Receipt:
    """An anchor's word that it keeps a head.

    Attributes:
        signed: what it keeps.
        anchor: fingerprint of the anchor's key.
        signature: the anchor's, over head and the shop's signature.
    """

    signed: SignedHead
    anchor: str
    signature: bytes

    @classmethod
    def sign(cls, signed: SignedHead, key: IdentityKey) -> Self:
        """Countersign."""
        return cls(signed, key.public.fingerprint(), key.sign(_kept(signed)))

    def verify(self, shop_key: PublicKey, anchor_key: PublicKey) -> None:
        """Check both signatures.

        Raises:
            BadSignature: the shop never signed this head, or the anchor never countersigned it.
        """
        self.signed.verify(shop_key)
        if self.anchor != anchor_key.fingerprint():
            raise BadSignature(f"a receipt of anchor {self.anchor!r} in place of {anchor_key.fingerprint()}")
        anchor_key.verify(_kept(self.signed), self.signature)

    def to_bytes(self) -> bytes:
        """JSON, for a message or a file."""
        fields = {"signed": self.signed.to_json(), "anchor": self.anchor, "signature": self.signature.hex()}
        return json.dumps({"format": ANCHORS_FORMAT, **fields}, sort_keys=True, allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The inverse of `to_bytes`.

        Raises:
            BadMessage: other bytes, or another version's.
        """
        try:
            fields = json.loads(data)
            if set(fields) != {"format", "signed", "anchor", "signature"} or fields["format"] != ANCHORS_FORMAT:
                raise ValueError("unknown fields or format")
            signature = bytes.fromhex(fields["signature"])
            return cls(SignedHead.from_json(fields["signed"]), str(fields["anchor"]), signature)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise BadMessage(f"not a receipt of format {ANCHORS_FORMAT}") from error


class Anchors:
    """What one anchor keeps: the heads of each shop, oldest first.

    All of them, not the last alone: when a copy's releases have to be charged, they tell where it parted from the
    ledger, so that nothing is charged twice. A head takes some 300 bytes.
    """

    def __init__(self, kept: Iterable[SignedHead] = ()) -> None:
        """Args: kept: what `signed_heads` gave, shop by shop."""
        self._kept: dict[str, list[SignedHead]] = {}
        for signed in kept:
            self.keep(signed)

    def keep(self, signed: SignedHead) -> bool:
        """Keep a head whose signature was checked; False if it was kept before (a re-send).

        Raises:
            LedgerBehind: it does not come after the last that was kept: two copies of the shop's ledger are at work,
                or an old one was restored. The upload is not to be used, and the shop is told what is kept.
        """
        head, kept = signed.head, self._kept.get(signed.head.shop, [])
        if any(one.head.place == head.place for one in kept):
            return False
        if head.sequence < 1:
            raise BadMessage(f"a ledger head of shop {head.shop!r} before its first release")
        last = kept[-1].head if kept else None
        if last is not None and not _follows(head, last):
            raise LedgerBehind(
                f"the ledger of shop {head.shop!r} is at release {head.sequence} and does not follow from release "
                f"{last.sequence}, which is kept here: a restored backup or a cloned machine; it must recover first"
            )
        self._kept[head.shop] = [*kept, signed]
        return True

    def last(self, shop: str) -> SignedHead | None:
        """The last head of a shop."""
        kept = self._kept.get(shop)
        return kept[-1] if kept else None

    def signed_heads(self, shop: str | None = None) -> tuple[SignedHead, ...]:
        """All heads of a shop, or of all shops, oldest first."""
        shops = sorted(self._kept) if shop is None else [shop]
        return tuple(signed for name in shops for signed in self._kept.get(name, ()))


class AnchorBook:
    """An anchor with its key and its file; several threads may use it.

    Guarantee: a receipt is given only once the head is on disk.
    """

    def __init__(self, path: str | Path, key: IdentityKey) -> None:
        """Open the book, or begin it where there is no file.

        Raises:
            StoreError: the file is not of this version.
        """
        self._path = Path(path)
        self._key = key
        self._lock = threading.Lock()
        self._anchors = Anchors(_read_book(self._path))

    def __repr__(self) -> str:
        return f"AnchorBook({str(self._path)!r}, {self._key.public.fingerprint()})"

    @property
    def public(self) -> PublicKey:
        """The anchor's public key."""
        return self._key.public

    def countersign(self, signed: SignedHead, shop_key: PublicKey) -> Receipt:
        """Check, keep and countersign a shop's head.

        Args:
            signed: as the shop sent it.
            shop_key: of the roster.
        Raises:
            BadSignature: the shop did not sign it.
            LedgerBehind: it does not come after the last that was kept.
            StoreError: the file cannot be written.
        """
        signed.verify(shop_key)
        with self._lock:
            anchors = Anchors(self._anchors.signed_heads())
            if anchors.keep(signed):
                heads = [one.to_json() for one in anchors.signed_heads()]
                write_atomically(self._path, json.dumps({"format": ANCHORS_FORMAT, "heads": heads}).encode())
                self._anchors = anchors
        return Receipt.sign(signed, self._key)

    def signed_heads(self, shop: str) -> tuple[SignedHead, ...]:
        """What is kept of a shop, oldest first."""
        with self._lock:
            return self._anchors.signed_heads(shop)

    def receipts(self, shop: str) -> tuple[Receipt, ...]:
        """What is kept of a shop, countersigned; the shop compares with it at start and before each round."""
        with self._lock:
            return tuple(Receipt.sign(signed, self._key) for signed in self._anchors.signed_heads(shop))


@dataclass(frozen=True, repr=False)
class Anchored:
    """A shop's identity and the anchors that keep its ledger's heads, where all of them are in this process.

    Attributes:
        key: the shop's own.
        books: of the coordinator and of one peer.
    """

    key: IdentityKey
    books: tuple[AnchorBook, ...]

    def check(self, ledger: Ledger) -> None:
        """Refuse to go on with a ledger that is behind what the anchors have seen; see `check_receipts`."""
        receipts = [receipt for book in self.books for receipt in book.receipts(ledger.shop)]
        check_receipts(ledger, receipts, self.key.public, [book.public for book in self.books])

    def keep(self, ledger: Ledger) -> None:
        """Let every anchor keep the ledger's head, and keep their receipts with the ledger."""
        signed = SignedHead.sign(ledger.head(), self.key)
        for book in self.books:
            receipt = book.countersign(signed, self.key.public)
            ledger.keep_receipt(receipt.anchor, signed.head.sequence, receipt.to_bytes())


def anchored_shops(folder: Path, roster: Sequence[str]) -> dict[str, Anchored]:
    """The identities and anchors of a simulation's shops, in files of a folder; made where they are missing.

    Args:
        folder: gets ``coordinator.json``, ``peer-00000.json``, ... and their keys (0600).
        roster: names of the shops.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    coordinator = AnchorBook(folder / "coordinator.json", _key_in(folder / "coordinator.key"))
    keys = shop_keys(folder, len(roster))
    peers = {shop: AnchorBook(folder / f"peer-{place:05d}.json", keys[place]) for place, shop in enumerate(roster)}
    anchored = {}
    for place, shop in enumerate(roster):
        peer = peer_of(shop, roster)
        books = (coordinator,) if peer is None else (coordinator, peers[peer])
        anchored[shop] = Anchored(keys[place], books)
    return anchored


def shop_keys(folder: Path, num_shops: int) -> tuple[IdentityKey, ...]:
    """The identities of a simulation's shops, in files of a folder (0600); made where they are missing."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return tuple(_key_in(Path(folder) / f"peer-{place:05d}.key") for place in range(num_shops))


def peer_of(shop: str, roster: Sequence[str]) -> str | None:
    """The shop that keeps another's heads: the next on the roster; None where there is no other."""
    if shop not in roster:
        raise BadMessage(f"shop {shop!r} is not on the roster")
    return roster[(roster.index(shop) + 1) % len(roster)] if len(roster) > 1 else None


def check_receipts(
    ledger: Ledger, receipts: Iterable[Receipt], shop_key: PublicKey, anchor_keys: Iterable[PublicKey]
) -> tuple[Head, ...]:
    """Compare a shop's ledger with what its anchors have kept, and keep their latest receipts with it.

    Args:
        ledger: the shop's.
        receipts: as the anchors sent them.
        shop_key: the shop's own.
        anchor_keys: of the anchors that the shop trusts.
    Returns:
        All heads, for `Ledger.recover`; `heads_of` gives them where this raises.
    Raises:
        BadSignature: a receipt of somebody else, or a changed one.
        LedgerBehind: somebody has seen a release that the ledger lacks.
    """
    given = tuple(receipts)
    heads = heads_of(given, shop_key, anchor_keys)
    ledger.check_anchor(heads)
    latest: dict[str, Receipt] = {}
    for receipt in sorted(given, key=lambda one: one.signed.head.sequence):
        latest[receipt.anchor] = receipt
    for anchor, receipt in latest.items():
        ledger.keep_receipt(anchor, receipt.signed.head.sequence, receipt.to_bytes())
    return heads


def heads_of(receipts: Iterable[Receipt], shop_key: PublicKey, anchor_keys: Iterable[PublicKey]) -> tuple[Head, ...]:
    """The heads of receipts whose signatures hold.

    Raises:
        BadSignature: a receipt of somebody else, or a changed one.
    """
    keys = {key.fingerprint(): key for key in anchor_keys}
    heads = []
    for receipt in receipts:
        if receipt.anchor not in keys:
            raise BadSignature(f"a receipt of {receipt.anchor!r}, which is no anchor that this shop trusts")
        receipt.verify(shop_key, keys[receipt.anchor])
        heads.append(receipt.signed.head)
    return tuple(heads)


def _follows(head: Head, last: Head) -> bool:
    """Whether a head can be a later state of the same ledger; uploads between them may have been lost."""
    sequence, hash_ = head.parent
    if head.sequence <= last.sequence or sequence < last.sequence:
        return False
    return sequence > last.sequence or hash_ == last.hash


def _kept(signed: SignedHead) -> bytes:
    return _RECEIPT + signed.signature + signed.head.to_bytes()


def _key_in(path: Path) -> IdentityKey:
    """The key in a file, made where there is none."""
    if not path.exists():
        part = path.with_name(f".{path.name}.tmp")
        part.unlink(missing_ok=True)
        IdentityKey.generate().save(part)
        part.rename(path)  # so that no interruption leaves half a key
    return IdentityKey.load(path)


def _read_book(path: Path) -> tuple[SignedHead, ...]:
    if not path.exists():
        return ()
    try:
        fields = json.loads(path.read_bytes())
        if fields["format"] != ANCHORS_FORMAT:
            raise StoreError(f"{path}: ledger heads of format {fields['format']!r}, expected {ANCHORS_FORMAT}")
        return tuple(SignedHead.from_json(one) for one in fields["heads"])
    except (OSError, ValueError, KeyError, TypeError, BadMessage) as error:
        raise StoreError(f"{path}: no readable ledger heads ({type(error).__name__})") from error
