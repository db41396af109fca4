"""What both sides of secure aggregation compute alike: digests, seeds, who holds whose shares."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping

from fedrec.errors import BadMessage, BadSignature, TooFewShops
from fedrec.secure_aggregation import masks
from fedrec.secure_aggregation.graph import Ring
from fedrec.secure_aggregation.messages import Adverts, Batch
from fedrec.secure_aggregation.parameters import Parameters

_PLACES = struct.Struct("<HH")


def run_digest(parameters: Parameters, run_id: str) -> bytes:
    """32 bytes that name a run and all that was agreed on for it; in every message."""
    return hashlib.sha256(b"fedrec secure run\0" + parameters.digest + run_id.encode()).digest()


def check_adverts(adverts: Adverts, batch: Batch, parameters: Parameters) -> None:
    """Check what all keys of a set-up must be.

    Raises:
        BadMessage: of another batch, wrongly signed, or with a key of low order or one that occurs twice.
        TooFewShops: fewer than n_min.
    """
    if adverts.batch != batch:
        raise BadMessage("adverts of another batch")
    if len(adverts.adverts) < parameters.min_shops:
        raise TooFewShops(f"{len(adverts.adverts)} shops advertised keys, {parameters.min_shops} are needed")
    seen: set[bytes] = set()
    for advert in adverts.adverts:
        try:
            parameters.key_at(advert.place).verify(advert.signed_bytes(), advert.signature)
        except BadSignature as error:
            name = parameters.names[advert.place]
            raise BadMessage(f"keys that shop {name!r} of the roster did not sign") from error
        for key in (advert.share_key, *advert.mask_keys):
            masks.check_public_key(key)
            if key in seen:
                raise BadMessage("a key that occurs twice")
            seen.add(key)


def ring_of(adverts: Adverts, parameters: Parameters) -> Ring:
    """The ring of the shops that advertised."""
    names = [parameters.names[advert.place] for advert in adverts.adverts]
    return Ring.of(names, adverts.digest, parameters.num_neighbours)


def holders(ring: Ring, place: int, parameters: Parameters) -> tuple[int, ...]:
    """Places of those who hold shares of a shop's secrets: its neighbours and itself, ascending."""
    neighbours = ring.neighbours(parameters.names[place])
    return tuple(sorted([place, *(parameters.place_of[name] for name in neighbours)]))


def share_threshold(ring: Ring, parameters: Parameters) -> int:
    """How many holders' shares give back a secret."""
    return ring.share_threshold(parameters.threshold, parameters.colluders)


def setup_digest(run: bytes, adverts: Adverts, deals: Mapping[int, bytes]) -> bytes:
    """32 bytes that name a set-up: everybody's keys, and what everybody in it dealt."""
    digest = hashlib.sha256(b"fedrec set-up\0" + run + adverts.digest)
    for place, deal in sorted(deals.items()):
        digest.update(place.to_bytes(2, "little") + deal)
    return digest.digest()


def round_context(setup: bytes, plan: bytes) -> bytes:
    """32 bytes that masks and signatures of a round are bound to.

    A plan names its set-up, yet nothing here hangs on that: what was signed under one set-up counts under no other.
    """
    return hashlib.sha256(b"fedrec round\0" + setup + plan).digest()


def commitment(run: bytes, index: int, seed: bytes) -> bytes:
    """What a shop publishes of a seed: sha256, which hides 256 random bits and fits one seed alone."""
    return hashlib.sha256(b"fedrec seed\0" + run + index.to_bytes(8, "little") + seed).digest()


def box_context(run: bytes, adverts: bytes, *, dealer: int, receiver: int) -> bytes:
    """What encrypted shares are bound to."""
    return run + adverts + _PLACES.pack(dealer, receiver)


def seed_of_pair(private: bytes, public: bytes, context: bytes, own: int, other: int) -> bytes:
    """The seed of two shops' mask in a round; both sides compute the same."""
    both = _PLACES.pack(min(own, other), max(own, other))
    return masks.pair_seed(private, public, "fedrec mask of a pair", context, both)


def pair_sign(own: int, other: int) -> int:
    """The earlier shop on the roster adds the mask, the later one subtracts it."""
    return 1 if own < other else -1


def self_seed(seed: bytes, context: bytes, place: int) -> bytes:
    """The seed of a shop's own mask in a round."""
    return masks.derive_seed(seed, "fedrec mask of a shop", context, place.to_bytes(2, "little"))
