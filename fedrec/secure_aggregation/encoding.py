"""How messages of secure aggregation are laid out: their header, and a reader that refuses whatever is amiss."""

from __future__ import annotations

import struct
from collections.abc import Collection, Sized
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

from fedrec.errors import BadMessage
from fedrec.secure_aggregation.parameters import MOST_ROUNDS, Parameters

VERSION = 1

_MAGIC = b"fedrecSA"
HEADER = struct.Struct("<8sHB32sQ")
SPAN = struct.Struct("<QH")
PLACE = struct.Struct("<H")
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
    OPENED = 10


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
        return struct.pack("<Q", self.number) + SPAN.pack(self.first_round, self.num_rounds)


class Reader:
    """Takes a message apart; every lack or surplus is a `BadMessage`."""

    def __init__(self, data: bytes, kind: Kind, run: bytes) -> None:
        """Reads the header; its number is a batch's or a round's."""
        if not isinstance(data, bytes) or len(data) < HEADER.size:
            raise BadMessage(f"no message of secure aggregation: at least {HEADER.size} bytes")
        magic, version, found, of_run, self.number = HEADER.unpack_from(data)
        if magic != _MAGIC or version != VERSION:
            raise BadMessage(f"no message of secure aggregation of version {VERSION}")
        if found != kind:
            raise BadMessage(f"a message of kind {found} where {kind.name.lower()} ({int(kind)}) is due")
        if of_run != run:
            raise BadMessage("a message of another run, or for another roster or threshold")
        if self.number >= _MOST_NUMBER:
            raise BadMessage("a batch or round beyond any run")
        self._data = data
        self._at = HEADER.size

    def take(self, size: int) -> bytes:
        """The next bytes."""
        if len(self._data) - self._at < size:
            raise BadMessage("a truncated message")
        self._at += size
        return self._data[self._at - size : self._at]

    def batch(self, parameters: Parameters) -> Batch:
        """The rounds of a batch, no more than were agreed on."""
        first, count = SPAN.unpack(self.take(SPAN.size))
        if not 1 <= count <= min(parameters.rounds_per_setup, MOST_ROUNDS) or first >= _MOST_NUMBER:
            raise BadMessage(f"a set-up for {count} rounds: from 1 to {parameters.rounds_per_setup}")
        return Batch(self.number, first, count)

    def place(self, parameters: Parameters) -> int:
        """A shop of the roster."""
        place = int(PLACE.unpack(self.take(PLACE.size))[0])
        if place >= len(parameters.names):
            raise BadMessage(f"place {place} on a roster of {len(parameters.names)} shops")
        return place

    def count(self, parameters: Parameters, entry_bytes: int) -> int:
        """How many entries follow; refused at once where they cannot all be there."""
        count = int(PLACE.unpack(self.take(PLACE.size))[0])
        if count > len(parameters.names) or count * entry_bytes > len(self._data) - self._at:
            raise BadMessage("more entries than shops, or than the message holds")
        return count

    def places(self, parameters: Parameters) -> tuple[int, ...]:
        """Shops of the roster, each once, in its order."""
        found = tuple(self.place(parameters) for _ in range(self.count(parameters, PLACE.size)))
        check_ascending(found)
        return found

    def by_place(self, parameters: Parameters, entry_bytes: int) -> dict[int, bytes]:
        """Entries of one size, each with its shop."""
        count = self.count(parameters, PLACE.size + entry_bytes)
        entries = [(self.place(parameters), self.take(entry_bytes)) for _ in range(count)]
        check_ascending([place for place, _ in entries])
        return dict(entries)

    def end(self) -> None:
        """Nothing may be left."""
        if self._at != len(self._data):
            raise BadMessage("a message with bytes left over")


def check_ascending(places: Collection[int]) -> None:
    """Refuse places out of order: a list has one encoding."""
    if any(after <= before for before, after in pairwise(places)):
        raise BadMessage("shops out of order, or twice")


def header(kind: Kind, run: bytes, number: int) -> bytes:
    """What every message begins with."""
    return HEADER.pack(_MAGIC, VERSION, kind, run, number)


def span(batch: Batch) -> bytes:
    """The rounds of a batch."""
    return SPAN.pack(batch.first_round, batch.num_rounds)


def count_of(entries: Sized) -> bytes:
    """How many entries follow."""
    return PLACE.pack(len(entries))
