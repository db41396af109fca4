"""The bytes of secure aggregation: what a coordinator and a shop send each other, and nothing else is read.

All messages begin with the same header: magic, version, kind, digest of the run, and the batch or round that they
belong to. Lists are in the order of the roster, each shop once, so that a message has one encoding. Every length
follows from the parameters and the header, and is checked before anything is read: decoders raise `BadMessage` and
nothing else.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Mapping, Sized
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import pairwise

from fedrec.errors import BadMessage
from fedrec.secure_aggregation.keys import KEY_BYTES, SIGNATURE_BYTES
from fedrec.secure_aggregation.parameters import MOST_ROUNDS, Parameters
from fedrec.secure_aggregation.secret_sharing import SHARE_BYTES

VERSION = 1
DIGEST_BYTES = 32
NONCE_BYTES, TAG_BYTES = 12, 16

_MAGIC = b"fedrecSA"
_HEADER = struct.Struct("<8sHB32sQ")
_SPAN = struct.Struct("<QH")
_PLACE = struct.Struct("<H")
_MOST_NUMBER = 2**63


class Kind(IntEnum):
    """What a message is."""

    INVITE = 1
    ADVERT = 2
    ADVERTS = 3
    DEAL = 4
    DELIVERY = 5
    SURVIVORS = 6
    SIGNATURE = 7
    SIGNATURES = 8
    SHARES = 9


@dataclass(frozen=True)
class Batch:
    """The rounds that one set-up is for.

    Attributes:
        number: of the set-up within the run.
        first_round, num_rounds: the rounds, in order.
    """

    number: int
    first_round: int
    num_rounds: int

    @property
    def rounds(self) -> range:
        """Indices of the rounds."""
        return range(self.first_round, self.first_round + self.num_rounds)

    def to_bytes(self) -> bytes:
        """18 bytes, part of what is signed and derived."""
        return struct.pack("<Q", self.number) + _SPAN.pack(self.first_round, self.num_rounds)


@dataclass(frozen=True)
class Invite:
    """Coordinator to all: keys for these rounds, please."""

    run: bytes
    batch: Batch

    def to_bytes(self) -> bytes:
        """The message."""
        return _header(Kind.INVITE, self.run, self.batch.number) + _span(self.batch)

    @classmethod
    def from_bytes(cls, data: bytes, run: bytes, parameters: Parameters) -> Invite:
        """Raises BadMessage."""
        reader = _Reader(data, Kind.INVITE, run)
        batch = reader.batch(parameters)
        reader.end()
        return cls(run, batch)


@dataclass(frozen=True)
class Advert:
    """A shop's keys for a batch, signed.

    Attributes:
        place: of the shop on the roster.
        share_key: X25519 public key by which shares are encrypted to it.
        mask_keys: X25519 public keys, one a round.
        signature: Ed25519, over all of it.
    """

    run: bytes
    batch: Batch
    place: int
    share_key: bytes
    mask_keys: tuple[bytes, ...]
    signature: bytes = bytes(SIGNATURE_BYTES)

    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        parts = (_span(self.batch), _PLACE.pack(self.place), self.share_key, *self.mask_keys)
        return _header(Kind.ADVERT, self.run, self.batch.number) + b"".join(parts)

    def to_bytes(self) -> bytes:
        """The message."""
        return self.signed_bytes() + self.signature

    @classmethod
    def from_bytes(cls, data: bytes, run: bytes, parameters: Parameters) -> Advert:
        """Raises BadMessage; the signature is not checked."""
        reader = _Reader(data, Kind.ADVERT, run)
        batch = reader.batch(parameters)
        place, share_key = reader.place(parameters), reader.take(KEY_BYTES)
        keys = tuple(reader.take(KEY_BYTES) for _ in range(batch.num_rounds))
        advert = cls(run, batch, place, share_key, keys, reader.take(SIGNATURE_BYTES))
        reader.end()
        return advert

    @staticmethod
    def size(num_rounds: int) -> int:
        """Bytes of a message."""
        return _HEADER.size + _SPAN.size + _PLACE.size + (1 + num_rounds) * KEY_BYTES + SIGNATURE_BYTES


@dataclass(frozen=True)
class Adverts:
    """Coordinator to all: the adverts of everybody who sent one."""

    run: bytes
    batch: Batch
    adverts: tuple[Advert, ...]

    def to_bytes(self) -> bytes:
        """The message."""
        head = _header(Kind.ADVERTS, self.run, self.batch.number) + _span(self.batch) + _count(self.adverts)
        return head + b"".join(advert.to_bytes() for advert in self.adverts)

    @classmethod
    def from_bytes(cls, data: bytes, run: bytes, parameters: Parameters) -> Adverts:
        """Raises BadMessage; signatures are not checked."""
        reader = _Reader(data, Kind.ADVERTS, run)
        batch = reader.batch(parameters)
        count = reader.count(parameters, Advert.size(batch.num_rounds))
        adverts = tuple(
            Advert.from_bytes(reader.take(Advert.size(batch.num_rounds)), run, parameters) for _ in range(count)
        )
        reader.end()
        _check_ascending([advert.place for advert in adverts])
        if any(advert.batch != batch for advert in adverts):
            raise BadMessage("adverts of another batch")
        return cls(run, batch, adverts)

    @cached_property
    def digest(self) -> bytes:
        """sha256 of the message: everybody who deals has seen these very keys."""
        return hashlib.sha256(self.to_bytes()).digest()


def box_size(num_rounds: int) -> int:
    """Bytes of one shop's encrypted shares for another: a share of the mask key and of the seed for each round."""
    return NONCE_BYTES + 2 * SHARE_BYTES * num_rounds + TAG_BYTES


@dataclass(frozen=True)
class Deal:
    """A shop's shares for its neighbours, encrypted, and its promises about the seeds, signed.

    Attributes:
        adverts: digest of the adverts that it dealt to.
        commitments: sha256 over each round's seed.
        boxes: encrypted shares by receiver's place, itself included.
    """

    run: bytes
    batch: Batch
    place: int
    adverts: bytes
    commitments: tuple[bytes, ...]
    boxes: Mapping[int, bytes]
    signature: bytes = bytes(SIGNATURE_BYTES)

    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        parts = [_span(self.batch), _PLACE.pack(self.place), self.adverts, *self.commitments, _count(self.boxes)]
        parts += [_PLACE.pack(place) + box for place, box in sorted(self.boxes.items())]
        return _header(Kind.DEAL, self.run, self.batch.number) + b"".join(parts)

    def to_bytes(self) -> bytes:
        """The message."""
        return self.signed_bytes() + self.signature

    @classmethod
    def from_bytes(cls, data: bytes, run: bytes, parameters: Parameters) -> Deal:
        """Raises BadMessage; the signature is not checked."""
        reader = _Reader(data, Kind.DEAL, run)
        batch = reader.batch(parameters)
        place, adverts = reader.place(parameters), reader.take(DIGEST_BYTES)
        commitments = tuple(reader.take(DIGEST_BYTES) for _ in range(batch.num_rounds))
        boxes = reader.by_place(parameters, box_size(batch.num_rounds))
        deal = cls(run, batch, place, adverts, commitments, boxes, reader.take(SIGNATURE_BYTES))
        reader.end()
        return deal

    @cached_property
    def digest(self) -> bytes:
        """sha256 of the message."""
        return hashlib.sha256(self.to_bytes()).digest()


@dataclass(frozen=True)
class Delivery:
    """Coordinator to one shop: who dealt, and what was dealt to it.

    Attributes:
        deals: digests of the deals by dealer's place; the same for everybody.
        boxes: encrypted shares by dealer's place.
    """

    run: bytes
    batch: Batch
    deals: Mapping[int, bytes]
    boxes: Mapping[int, bytes]

    def to_bytes(self) -> bytes:
        """The message."""
        parts = [_span(self.batch)]
        for entries in (self.deals, self.boxes):
            parts += [_count(entries), *(_PLACE.pack(place) + entry for place, entry in sorted(entries.items()))]
        return _header(Kind.DELIVERY, self.run, self.batch.number) + b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes, run: bytes, parameters: Parameters) -> Delivery:
        """Raises BadMessage."""
        reader = _Reader(data, Kind.DELIVERY, run)
        batch = reader.batch(parameters)
        deals = reader.by_place(parameters, DIGEST_BYTES)
        boxes = reader.by_place(parameters, box_size(batch.num_rounds))
        reader.end()
        return cls(run, batch, deals, boxes)


@dataclass(frozen=True)
class Survivors:
    """Coordinator to the survivors: whose uploads are in the sum of a round.

    Attributes:
        context: digest of the set-up and of the round's plan (`rules.round_context`).
        places: of the survivors, ascending.
    """

    run: bytes
    index: int
    context: bytes
    places: tuple[int, ...]

    def to_bytes(self) -> bytes:
        """The message; also what is signed, after the header of a signature."""
        head = _header(Kind.SURVIVORS, self.run, self.index) + self.context + _count(self.places)
        return head + b"".join(map(_PLACE.pack, self.places))

    @classmethod
    def from_bytes(cls, data: bytes, run: bytes, parameters: Parameters) -> Survivors:
        """Raises BadMessage."""
        reader = _Reader(data, Kind.SURVIVORS, run)
        context = reader.take(DIGEST_BYTES)
        count = reader.count(parameters, _PLACE.size)
        places = tuple(reader.place(parameters) for _ in range(count))
        reader.end()
        _check_ascending(places)
        return cls(run, reader.number, context, places)

    @cached_property
    def digest(self) -> bytes:
        """sha256 of the message."""
        return hashlib.sha256(self.to_bytes()).digest()

    def signed_bytes(self) -> bytes:
        """What each survivor signs."""
        return _header(Kind.SIGNATURE, self.run, self.index) + self.digest


@dataclass(frozen=True)
class Signature:
    """A shop's signature over a set of survivors."""

    run: bytes
    index: int
    place: int
    survivors: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """The message."""
        head = _header(Kind.SIGNATURE, self.run, self.index)
        return head + _PLACE.pack(self.place) + self.survivors + self.signature

    @classmethod
    def from_bytes(cls, data: bytes, run: bytes, parameters: Parameters) -> Signature:
        """Raises BadMessage; the signature is not checked."""
        reader = _Reader(data, Kind.SIGNATURE, run)
        place, digest = reader.place(parameters), reader.take(DIGEST_BYTES)
        signed = cls(run, reader.number, place, digest, reader.take(SIGNATURE_BYTES))
        reader.end()
        return signed


@dataclass(frozen=True)
class Signatures:
    """Coordinator to the survivors: signatures over one set of survivors, by place."""

    run: bytes
    index: int
    survivors: bytes
    signatures: Mapping[int, bytes]

    def to_bytes(self) -> bytes:
        """The message."""
        head = _header(Kind.SIGNATURES, self.run, self.index) + self.survivors + _count(self.signatures)
        return head + b"".join(_PLACE.pack(place) + entry for place, entry in sorted(self.signatures.items()))

    @classmethod
    def from_bytes(cls, data: bytes, run: bytes, parameters: Parameters) -> Signatures:
        """Raises BadMessage; the signatures are not checked."""
        reader = _Reader(data, Kind.SIGNATURES, run)
        digest = reader.take(DIGEST_BYTES)
        signatures = reader.by_place(parameters, SIGNATURE_BYTES)
        reader.end()
        return cls(run, reader.number, digest, signatures)


@dataclass(frozen=True)
class Shares:
    """A shop's shares of one round: of survivors' seeds, and of the mask keys of those that dropped out.

    Attributes:
        place: of the shop.
        survivors: digest of the set of survivors.
        seeds, keys: shares by the place of the shop whose secret they are of; no place in both.
    """

    run: bytes
    index: int
    place: int
    survivors: bytes
    seeds: Mapping[int, bytes]
    keys: Mapping[int, bytes]

    def to_bytes(self) -> bytes:
        """The message."""
        parts = [_PLACE.pack(self.place), self.survivors]
        for entries in (self.seeds, self.keys):
            parts += [_count(entries), *(_PLACE.pack(place) + entry for place, entry in sorted(entries.items()))]
        return _header(Kind.SHARES, self.run, self.index) + b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes, run: bytes, parameters: Parameters) -> Shares:
        """Raises BadMessage."""
        reader = _Reader(data, Kind.SHARES, run)
        place, digest = reader.place(parameters), reader.take(DIGEST_BYTES)
        seeds = reader.by_place(parameters, SHARE_BYTES)
        keys = reader.by_place(parameters, SHARE_BYTES)
        reader.end()
        if seeds.keys() & keys.keys():
            raise BadMessage("both shares of one shop")
        return cls(run, reader.number, place, digest, seeds, keys)


class _Reader:
    """Takes a message apart; every lack or surplus is a `BadMessage`."""

    def __init__(self, data: bytes, kind: Kind, run: bytes) -> None:
        if not isinstance(data, bytes) or len(data) < _HEADER.size:
            raise BadMessage(f"no message of secure aggregation: at least {_HEADER.size} bytes")
        magic, version, found, of_run, self.number = _HEADER.unpack_from(data)
        if magic != _MAGIC or version != VERSION:
            raise BadMessage(f"no message of secure aggregation of version {VERSION}")
        if found != kind:
            raise BadMessage(f"a message of kind {found} where {kind.name.lower()} ({int(kind)}) is due")
        if of_run != run:
            raise BadMessage("a message of another run, or for another roster or threshold")
        if self.number >= _MOST_NUMBER:
            raise BadMessage("a batch or round beyond any run")
        self._data = data
        self._at = _HEADER.size

    def take(self, size: int) -> bytes:
        if len(self._data) - self._at < size:
            raise BadMessage("a truncated message")
        self._at += size
        return self._data[self._at - size : self._at]

    def batch(self, parameters: Parameters) -> Batch:
        first, count = _SPAN.unpack(self.take(_SPAN.size))
        if not 1 <= count <= min(parameters.rounds_per_setup, MOST_ROUNDS) or first >= _MOST_NUMBER:
            raise BadMessage(f"a set-up for {count} rounds: from 1 to {parameters.rounds_per_setup}")
        return Batch(self.number, first, count)

    def place(self, parameters: Parameters) -> int:
        place = int(_PLACE.unpack(self.take(_PLACE.size))[0])
        if place >= len(parameters.names):
            raise BadMessage(f"place {place} on a roster of {len(parameters.names)} shops")
        return place

    def count(self, parameters: Parameters, entry_bytes: int) -> int:
        """How many entries follow; refused at once where they cannot all be there."""
        count = int(_PLACE.unpack(self.take(_PLACE.size))[0])
        if count > len(parameters.names) or count * entry_bytes > len(self._data) - self._at:
            raise BadMessage("more entries than shops, or than the message holds")
        return count

    def by_place(self, parameters: Parameters, entry_bytes: int) -> dict[int, bytes]:
        count = self.count(parameters, _PLACE.size + entry_bytes)
        entries = [(self.place(parameters), self.take(entry_bytes)) for _ in range(count)]
        _check_ascending([place for place, _ in entries])
        return dict(entries)

    def end(self) -> None:
        if self._at != len(self._data):
            raise BadMessage("a message with bytes left over")


def _check_ascending(places: Collection[int]) -> None:
    if any(after <= before for before, after in pairwise(places)):
        raise BadMessage("shops out of order, or twice")


def _header(kind: Kind, run: bytes, number: int) -> bytes:
    return _HEADER.pack(_MAGIC, VERSION, kind, run, number)


def _span(batch: Batch) -> bytes:
    return _SPAN.pack(batch.first_round, batch.num_rounds)


def _count(entries: Sized) -> bytes:
    return _PLACE.pack(len(entries))
