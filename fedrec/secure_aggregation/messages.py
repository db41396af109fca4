"""The bytes of secure aggregation: what a coordinator and a shop send each other, and nothing else is read.

All messages begin with the same header: magic, version, kind, digest of the run, and the batch or round that they
belong to. Lists are in the order of the roster, each shop once, so that a message has one encoding. Every length
follows from the parameters and the header, and is checked before anything is read: decoders raise `BadMessage` and
nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from fedrec.errors import BadMessage
from fedrec.secure_aggregation.encoding import (
    HEADER,
    PLACE,
    SPAN,
    Batch,
    Kind,
    Reader,
    check_ascending,
    count_of,
    header,
    span,
)
from fedrec.secure_aggregation.keys import KEY_BYTES, SIGNATURE_BYTES
from fedrec.secure_aggregation.parameters import Parameters
from fedrec.secure_aggregation.secret_sharing import SHARE_BYTES

DIGEST_BYTES = 32
NONCE_BYTES, TAG_BYTES = 12, 16


@dataclass(frozen=True)
class Invite:
    """Coordinator to all: keys for these rounds, please."""

    run: bytes
    batch: Batch

    def to_bytes(self) -> bytes:
        """The message."""
        return header(Kind.INVITE, self.run, self.batch.number) + span(self.batch)

    @classmethod
    def from_bytes(cls, data: bytes, run: bytes, parameters: Parameters) -> Invite:
        """Raises BadMessage."""
        reader = Reader(data, Kind.INVITE, run)
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
        parts = (span(self.batch), PLACE.pack(self.place), self.share_key, *self.mask_keys)
        return header(Kind.ADVERT, self.run, self.batch.number) + b"".join(parts)

    def to_bytes(self) -> bytes:
        """The message."""
        return self.signed_bytes() + self.signature

    @classmethod
    def from_bytes(cls, data: bytes, run: bytes, parameters: Parameters) -> Advert:
        """Raises BadMessage; the signature is not checked."""
        reader = Reader(data, Kind.ADVERT, run)
        batch = reader.batch(parameters)
        place, share_key = reader.place(parameters), reader.take(KEY_BYTES)
        keys = tuple(reader.take(KEY_BYTES) for _ in range(batch.num_rounds))
        advert = cls(run, batch, place, share_key, keys, reader.take(SIGNATURE_BYTES))
        reader.end()
        return advert

    @staticmethod
    def size(num_rounds: int) -> int:
        """Bytes of a message."""
        return HEADER.size + SPAN.size + PLACE.size + (1 + num_rounds) * KEY_BYTES + SIGNATURE_BYTES


@dataclass(frozen=True)
class Adverts:
    """Coordinator to all: the adverts of everybody who sent one."""

    run: bytes
    batch: Batch
    adverts: tuple[Advert, ...]

    def to_bytes(self) -> bytes:
        """The message."""
        head = header(Kind.ADVERTS, self.run, self.batch.number) + span(self.batch) + count_of(self.adverts)
        return head + b"".join(advert.to_bytes() for advert in self.adverts)

    @classmethod
    def from_bytes(cls, data: bytes, run: bytes, parameters: Parameters) -> Adverts:
        """Raises BadMessage; signatures are not checked."""
        reader = Reader(data, Kind.ADVERTS, run)
        batch = reader.batch(parameters)
        count = reader.count(parameters, Advert.size(batch.num_rounds))
        adverts = tuple(
            Advert.from_bytes(reader.take(Advert.size(batch.num_rounds)), run, parameters) for _ in range(count)
        )
        reader.end()
        check_ascending([advert.place for advert in adverts])
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


def most_message_bytes(parameters: Parameters) -> int:
    """The largest message that a coordinator has for a shop: everybody's keys, or what neighbours dealt, with room."""
    rounds, num_shops = parameters.rounds_per_setup, len(parameters.names)
    dealt = (1 + parameters.num_neighbours) * (PLACE.size + box_size(rounds))
    return 2**16 + num_shops * max(Advert.size(rounds), PLACE.size + SIGNATURE_BYTES) + dealt


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
        parts = [span(self.batch), PLACE.pack(self.place), self.adverts, *self.commitments, count_of(self.boxes)]
        parts += [PLACE.pack(place) + box for place, box in sorted(self.boxes.items())]
        return header(Kind.DEAL, self.run, self.batch.number) + b"".join(parts)

    def to_bytes(self) -> bytes:
        """The message."""
        return self.signed_bytes() + self.signature

    @classmethod
    def from_bytes(cls, data: bytes, run: bytes, parameters: Parameters) -> Deal:
        """Raises BadMessage; the signature is not checked."""
        reader = Reader(data, Kind.DEAL, run)
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
        parts = [span(self.batch)]
        for entries in (self.deals, self.boxes):
            parts += [count_of(entries), *(PLACE.pack(place) + entry for place, entry in sorted(entries.items()))]
        return header(Kind.DELIVERY, self.run, self.batch.number) + b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes, run: bytes, parameters: Parameters) -> Delivery:
        """Raises BadMessage."""
        reader = Reader(data, Kind.DELIVERY, run)
        batch = reader.batch(parameters)
        deals = reader.by_place(parameters, DIGEST_BYTES)
        boxes = reader.by_place(parameters, box_size(batch.num_rounds))
        reader.end()
        return cls(run, batch, deals, boxes)


@dataclass(frozen=True)
class Opened:
    """A shop's word on what was dealt to it: nothing to complain of, or whose shares do not open.

    Attributes:
        place: of the shop.
        complaints: places of dealers, ascending.
    """

    run: bytes
    batch: Batch
    place: int
    complaints: tuple[int, ...]

    def to_bytes(self) -> bytes:
        """The message."""
        parts = (span(self.batch), PLACE.pack(self.place), count_of(self.complaints), *map(PLACE.pack, self.complaints))
        return header(Kind.OPENED, self.run, self.batch.number) + b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes, run: bytes, parameters: Parameters) -> Opened:
        """Raises BadMessage."""
        reader = Reader(data, Kind.OPENED, run)
        batch, place = reader.batch(parameters), reader.place(parameters)
        complaints = reader.places(parameters)
        reader.end()
        return cls(run, batch, place, complaints)


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
        head = header(Kind.SURVIVORS, self.run, self.index) + self.context + count_of(self.places)
        return head + b"".join(map(PLACE.pack, self.places))

    @classmethod
    def from_bytes(cls, data: bytes, run: bytes, parameters: Parameters) -> Survivors:
        """Raises BadMessage."""
        reader = Reader(data, Kind.SURVIVORS, run)
        context = reader.take(DIGEST_BYTES)
        places = reader.places(parameters)
        reader.end()
        return cls(run, reader.number, context, places)

    @cached_property
    def digest(self) -> bytes:
        """sha256 of the message."""
        return hashlib.sha256(self.to_bytes()).digest()

    def signed_bytes(self) -> bytes:
        """What each survivor signs."""
        return header(Kind.SIGNATURE, self.run, self.index) + self.digest


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
        head = header(Kind.SIGNATURE, self.run, self.index)
        return head + PLACE.pack(self.place) + self.survivors + self.signature

    @classmethod
    def from_bytes(cls, data: bytes, run: bytes, parameters: Parameters) -> Signature:
        """Raises BadMessage; the signature is not checked."""
        reader = Reader(data, Kind.SIGNATURE, run)
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
        head = header(Kind.SIGNATURES, self.run, self.index) + self.survivors + count_of(self.signatures)
        return head + b"".join(PLACE.pack(place) + entry for place, entry in sorted(self.signatures.items()))

    @classmethod
    def from_bytes(cls, data: bytes, run: bytes, parameters: Parameters) -> Signatures:
        """Raises BadMessage; the signatures are not checked."""
        reader = Reader(data, Kind.SIGNATURES, run)
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
        parts = [PLACE.pack(self.place), self.survivors]
        for entries in (self.seeds, self.keys):
            parts += [count_of(entries), *(PLACE.pack(place) + entry for place, entry in sorted(entries.items()))]
        return header(Kind.SHARES, self.run, self.index) + b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes, run: bytes, parameters: Parameters) -> Shares:
        """Raises BadMessage."""
        reader = Reader(data, Kind.SHARES, run)
        place, digest = reader.place(parameters), reader.take(DIGEST_BYTES)
        seeds = reader.by_place(parameters, SHARE_BYTES)
        keys = reader.by_place(parameters, SHARE_BYTES)
        reader.end()
        if seeds.keys() & keys.keys():
            raise BadMessage("both shares of one shop")
        return cls(run, reader.number, place, digest, seeds, keys)
