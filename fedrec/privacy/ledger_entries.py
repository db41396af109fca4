"""What a privacy ledger holds: entries in a hash chain, and the heads of it that others keep.

Pure: bytes in, bytes out. An entry is one line of canonical JSON; its hash covers the hash before it, so that an entry
cannot be changed, removed or moved without changing every hash after it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

from fedrec.errors import BadAssumption, BadDelta, BadEpsilon, LedgerTampered, LedgerTooNew

FORMAT = 1
"""Version of an entry's content. The table's columns never change; a newer content has a higher number."""

START = bytes(32)
"""The hash before the first entry."""

_HASH_DOMAIN = b"fedrec ledger entry\0"


class Kind(StrEnum):
    """What an entry records."""

    OPEN = "open"
    RESERVE = "reserve"
    CHARGE = "charge"
    FINISH = "finish"
    RECOVER = "recover"
    YEAR = "year"
    CLOCK = "clock"


class Period(StrEnum):
    """How long a budget lasts."""

    LIFETIME = "lifetime"
    YEAR = "year"


class Counting(StrEnum):
    """What bounds the releases of a period."""

    GDP = "gdp"
    RENYI = "renyi"
    FIXED = "fixed"


@dataclass(frozen=True)
class Budget:
    """What a shop is willing to spend on each of its shoppers.

    Attributes:
        epsilon: > 0.
        delta: in (0, 1).
        period: ``lifetime``, or ``year``: again each year of ledger time, by an entry of its own.
        max_aborts: repeated rounds that one run may charge; >= 0.
    """

    epsilon: float
    delta: float
    period: Period | str = Period.LIFETIME
    max_aborts: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise BadEpsilon(f"budget: epsilon = {self.epsilon}; give a number above 0")
        if not 0 < self.delta < 1:
            raise BadDelta(f"budget: delta = {self.delta}; give a number between 0 and 1")
        if self.period not in set(Period):
            raise BadAssumption(f"budget: period = {self.period!r}; give {' or '.join(map(repr, map(str, Period)))}")
        if not (isinstance(self.max_aborts, int) and self.max_aborts >= 0):
            raise BadAssumption(f"budget: max_aborts = {self.max_aborts}; give a whole number of at least 0")
        object.__setattr__(self, "period", Period(self.period))


@dataclass(frozen=True)
class Costs:
    """What releases cost, in units that add up.

    Attributes:
        gdp: sum of 1 / sigma^2; infinite where a release was sampled (q < 1), which is not Gaussian.
        renyi: Renyi divergence at the ledger's one order.
    """

    gdp: float = 0.0
    renyi: float = 0.0

    def __add__(self, other: Costs) -> Costs:
        return Costs(self.gdp + other.gdp, self.renyi + other.renyi)

    def since(self, earlier: Costs) -> Costs:
        """What came on top of an earlier state of the same chain; never below 0."""
        gdp = math.inf if math.isinf(self.gdp) else max(0.0, self.gdp - earlier.gdp)
        return Costs(gdp, max(0.0, self.renyi - earlier.renyi))

    def to_json(self) -> dict[str, float | None]:
        """JSON values; infinity is null."""
        return {"gdp": self.gdp if math.isfinite(self.gdp) else None, "renyi": self.renyi}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: not such JSON, or a cost that is negative or not finite.
        """
        gdp, renyi = fields["gdp"], fields["renyi"]
        costs = cls(math.inf if gdp is None else float(gdp), float(renyi))
        if not (costs.gdp >= 0 and 0 <= costs.renyi < math.inf):
            raise ValueError("a cost below 0")
        return costs


def total(costs: Iterable[Costs]) -> Costs:
    """Their sum, exactly rounded."""
    pairs = tuple(costs)
    return Costs(math.fsum(cost.gdp for cost in pairs), math.fsum(cost.renyi for cost in pairs))


@dataclass(frozen=True)
class Head:
    """A ledger's state after a release, as others keep it.

    Attributes:
        shop: whose ledger.
        sequence: of the entry that recorded the release; 0 = nothing was ever released.
        hash: of that entry, (32,) bytes.
        spent: of all releases so far, over the ledger's whole life.
        parent: sequence and hash of the head before this one.
    """

    shop: str
    sequence: int
    hash: bytes
    spent: Costs
    parent: tuple[int, bytes] = (0, START)

    @property
    def place(self) -> tuple[int, bytes]:
        """Sequence and hash."""
        return self.sequence, self.hash

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "shop": self.shop,
            "sequence": self.sequence,
            "hash": self.hash.hex(),
            "spent": self.spent.to_json(),
            "parent": [self.parent[0], self.parent[1].hex()],
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: not such JSON.
        """
        if set(fields) != {"shop", "sequence", "hash", "spent", "parent"}:
            raise ValueError("not the fields of a ledger head")
        sequence, ancestor = fields["sequence"], fields["parent"][0]
        places = (fields["hash"], fields["parent"][1])
        if not all(type(number) is int and number >= 0 for number in (sequence, ancestor)):
            raise ValueError("a ledger's sequence is a whole number of at least 0")
        if not (isinstance(fields["shop"], str) and all(len(place) == 64 for place in places)):
            raise ValueError("not a ledger's hash")
        own, parent = (bytes.fromhex(place) for place in places)
        return cls(fields["shop"], sequence, own, Costs.from_json(fields["spent"]), (ancestor, parent))

    def to_bytes(self) -> bytes:
        """Canonical JSON: what is signed and sent."""
        return canonical(self.to_json())

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The inverse of `to_bytes`.

        Raises:
            ValueError: other bytes.
        """
        try:
            head = cls.from_json(json.loads(data))
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
            raise ValueError("not a ledger head") from error
        if head.to_bytes() != data:
            raise ValueError("not a ledger head in canonical form")
        return head


@dataclass(frozen=True)
class Entry:
    """One line of a ledger.

    Attributes:
        shop: whose ledger.
        sequence: from 1; without gaps, but where a recovery skips what a lost copy had used.
        kind: what it records.
        utc: when, by the shop's clock.
        code: version of fedrec that wrote it.
        what: the rest, JSON values: run, round, mechanism, parameters, costs.
        hash: sha256 over the hash before and this entry's text.
    """

    shop: str
    sequence: int
    kind: Kind
    utc: datetime
    code: str
    what: Mapping[str, Any]
    hash: bytes

    def __repr__(self) -> str:
        return f"Entry({self.shop!r}, {self.sequence}, {str(self.kind)!r}, {self.utc.isoformat()})"

    @property
    def place(self) -> tuple[int, bytes]:
        """Sequence and hash."""
        return self.sequence, self.hash

    def text(self) -> bytes:
        """Canonical JSON, as it is stored and hashed."""
        return _text(self.shop, self.sequence, self.kind, self.utc, self.code, self.what)


def make_entry(
    shop: str, sequence: int, kind: Kind, utc: datetime, code: str, what: Mapping[str, Any], previous: bytes
) -> Entry:
    """An entry after the one whose hash is ``previous``."""
    text = _text(shop, sequence, kind, utc, code, what)
    return Entry(shop, sequence, kind, utc, code, json.loads(text)["what"], chain(previous, text))


def read_entry(shop: str, sequence: int, text: bytes, stored_hash: bytes, previous: bytes) -> Entry:
    """An entry as it is stored, checked against the chain.

    Raises:
        LedgerTampered: the text was changed, moved, or is another shop's.
        LedgerTooNew: a newer version wrote it.
    """
    where = f"ledger of shop {shop!r}, entry {sequence}"
    if chain(previous, text) != stored_hash:
        raise LedgerTampered(
            f"{where}: its hash does not follow from its text and the entry before; an entry was edited, removed or "
            "moved. Nothing is released; restore the ledger and recover what others have seen of it"
        )
    try:
        fields = json.loads(text)
        version = fields["format"]
        if isinstance(version, int) and version > FORMAT:
            raise LedgerTooNew(
                f"{where} has format {version}, this version reads up to {FORMAT}: install the version of fedrec that "
                "wrote it, or a newer one"
            )
        if version != FORMAT or fields["shop"] != shop or fields["sequence"] != sequence:
            raise LedgerTampered(f"{where} was written for shop {fields['shop']!r}, entry {fields['sequence']!r}")
        utc = datetime.fromisoformat(fields["utc"])
        entry = Entry(shop, sequence, Kind(fields["kind"]), utc, fields["code"], fields["what"], stored_hash)
        if entry.text() != text:
            raise LedgerTampered(f"{where} is not in canonical form")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise LedgerTampered(f"{where} cannot be read ({type(error).__name__})") from error
    return entry


def chain(previous: bytes, text: bytes) -> bytes:
    """An entry's hash: sha256 over a fixed prefix, the 32 bytes before, and its text."""
    return hashlib.sha256(_HASH_DOMAIN + previous + text).digest()


def canonical(value: Mapping[str, Any]) -> bytes:
    """One spelling of a JSON object: sorted keys, no spaces, no NaN, shortest floats, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True).encode()


def _text(shop: str, sequence: int, kind: Kind, utc: datetime, code: str, what: Mapping[str, Any]) -> bytes:
    stamp = utc.astimezone(UTC).isoformat(timespec="microseconds")
    fields = {"shop": shop, "sequence": sequence, "kind": str(kind), "utc": stamp, "code": code, "what": dict(what)}
    return canonical({"format": FORMAT, **fields})
