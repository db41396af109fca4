"""Messages: one encoding each, and bytes that are none raise BadMessage and nothing else.

The fuzz runs some hundreds of examples a message; the slow `test_a_long_fuzz_...` runs for
FEDREC_FUZZ_SECONDS, 60 unless told.
"""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.errors import BadMessage, ProtocolError
from fedrec.secure_aggregation.coordinator_session import CoordinatorSession
from fedrec.secure_aggregation.encoding import Kind
from fedrec.secure_aggregation.messages import (
    Advert,
    Adverts,
    Deal,
    Delivery,
    Invite,
    Opened,
    Shares,
    Signature,
    Signatures,
    Survivors,
)
from fedrec.secure_aggregation.shop_session import ShopSession

from .parties import RUN, SIZE, Parties, agreement, identity

KINDS = (Invite, Advert, Adverts, Deal, Delivery, Opened, Survivors, Signature, Signatures, Shares)
HEADER = {"magic": 0, "version": 8, "kind": 10, "run": 11, "highest byte of the number": 50}


def transcript() -> tuple[Parties, dict[type, bytes]]:
    """One message of each kind, of a round that shop-4 fell out of."""
    parties = Parties.of(agreement(5, min_shops=4, rounds_per_setup=2))
    coordinator, shop = parties.coordinator, parties.shops["shop-1"]
    found: dict[type, bytes] = {Invite: coordinator.invite(5, 2)}
    for name, one in parties.shops.items():
        coordinator.add_advert(name, one.advertise(found[Invite]))
    found[Advert], found[Adverts] = shop.advertise(found[Invite]), coordinator.adverts()
    for name, one in parties.shops.items():
        coordinator.add_deal(name, one.deal(found[Adverts]))
    coordinator.close_setup()
    found[Deal], found[Delivery] = shop.deal(found[Adverts]), coordinator.delivery("shop-1")
    opened = Opened.from_bytes(shop.check(found[Delivery]), parties.run, parties.parameters)
    found[Opened] = replace(opened, complaints=(0, 3)).to_bytes()
    parties.upload(6, dropped={"shop-4"})
    found[Survivors] = coordinator.survivors()
    found[Signature] = shop.sign(found[Survivors])
    found[Signatures] = parties.sign()
    found[Shares] = shop.reveal(found[Signatures])
    return parties, found


PARTIES, MESSAGES = transcript()


def decode(kind: type, data: bytes):
    return kind.from_bytes(data, PARTIES.run, PARTIES.parameters)


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_comes_back_as_it_was(kind):
    assert decode(kind, MESSAGES[kind]).to_bytes() == MESSAGES[kind]


def test_a_message_holds_what_was_said():
    survivors = decode(Survivors, MESSAGES[Survivors])
    assert (survivors.index, survivors.places, survivors.context) == (6, (0, 1, 2, 3), PARTIES.bound(6))
    shares = decode(Shares, MESSAGES[Shares])
    assert (shares.place, sorted(shares.seeds), sorted(shares.keys)) == (1, [0, 1, 2, 3], [4])
    batch = decode(Invite, MESSAGES[Invite]).batch
    assert list(batch.rounds) == [5, 6]
    assert decode(Advert, MESSAGES[Advert]).place == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_that_is_cut_anywhere_or_goes_on_is_refused(kind):
    whole = MESSAGES[kind]
    for end in range(len(whole)):
        with pytest.raises(BadMessage):
            decode(kind, whole[:end])
    for more in (b"\0", whole):
        with pytest.raises(BadMessage):
            decode(kind, whole + more)


@pytest.mark.parametrize("field", HEADER)
@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_the_header_is_checked(kind, field):
    changed = bytearray(MESSAGES[kind])
    changed[HEADER[field]] ^= 0x80
    with pytest.raises(BadMessage):
        decode(kind, bytes(changed))


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_stands_for_no_other_kind(kind):
    for other in KINDS:
        if other is not kind:
            with pytest.raises(BadMessage):
                decode(other, MESSAGES[kind])
    assert len(set(Kind)) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_of_another_run_or_another_agreement_is_refused(kind):
    with pytest.raises(BadMessage):
        kind.from_bytes(MESSAGES[kind], bytes(32), PARTIES.parameters)
    other = Parties.of(agreement(5, min_shops=5, rounds_per_setup=2))
    with pytest.raises(BadMessage):
        kind.from_bytes(MESSAGES[kind], other.run, other.parameters)


def test_lists_have_one_order_and_each_shop_once():
    survivors = decode(Survivors, MESSAGES[Survivors])
    for places in ((1, 0, 2), (0, 0, 1), (0, 1, 5)):
        with pytest.raises(BadMessage):
            decode(Survivors, replace(survivors, places=places).to_bytes())
    adverts = decode(Adverts, MESSAGES[Adverts])
    for order in ((1, 0, 2, 3, 4), (0, 1, 1, 2, 3)):
        with pytest.raises(BadMessage):
            decode(Adverts, replace(adverts, adverts=tuple(adverts.adverts[at] for at in order)).to_bytes())


def test_both_shares_of_one_shop_are_no_message():
    shares = decode(Shares, MESSAGES[Shares])
    with pytest.raises(BadMessage, match="both"):
        decode(Shares, replace(shares, keys={**shares.keys, 1: bytes(33)}).to_bytes())


def test_a_great_count_costs_no_memory():
    parties = Parties.of(agreement(5, min_shops=4, rounds_per_setup=2))
    head = MESSAGES[Adverts][: 51 + 10]
    tracemalloc.start()
    with pytest.raises(BadMessage):
        Adverts.from_bytes(head + b"\xff\xff", parties.run, parties.parameters)
    assert tracemalloc.get_traced_memory()[1] < 10**5
    tracemalloc.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_bytes_is_refused(kind):
    for data in (None, "text", 7, bytearray(MESSAGES[kind]), [1, 2]):
        with pytest.raises(BadMessage):
            decode(kind, data)


def shop_moments() -> tuple[list[bytes], list[bytes]]:
    """A shop's stored states before each of its answers, and the messages that are due there."""
    parties = Parties.of(PARTIES.parameters)
    coordinator, shop = parties.coordinator, parties.shops["shop-1"]
    stored, due = [shop.to_bytes()], [coordinator.invite(5, 2)]
    for name, one in parties.shops.items():
        coordinator.add_advert(name, one.advertise(due[0]))
    stored.append(shop.to_bytes())
    due.append(coordinator.adverts())
    for name, one in parties.shops.items():
        coordinator.add_deal(name, one.deal(due[1]))
    coordinator.close_setup()
    stored.append(shop.to_bytes())
    due.append(coordinator.delivery("shop-1"))
    parties.upload(6, dropped={"shop-4"})
    stored.append(shop.to_bytes())
    due.append(coordinator.survivors())
    due.append(parties.sign())
    stored.append(shop.to_bytes())
    return stored, due


STATES, DUE = shop_moments()
ENTRIES = ("advertise", "deal", "check", "sign", "reveal")


def shop_at(step: int) -> ShopSession:
    """A shop, by its stored state, at each of the five moments."""
    shop = ShopSession(PARTIES.parameters, "shop-1", identity("shop-1"), RUN)
    shop.restore(STATES[step])
    return shop


def coordinator_moments() -> list[tuple[CoordinatorSession, str, bytes]]:
    """A coordinator at the moment when each of a shop's answers is due, and an honest answer."""
    moments = []
    for stage in ("add_advert", "add_deal", "add_opened", "add_signature", "add_shares"):
        parties = Parties.of(PARTIES.parameters)
        if stage == "add_advert":
            answer = parties.shops["shop-1"].advertise(parties.coordinator.invite(5, 2))
        elif stage == "add_deal":
            parties.advertise(5)
            answer = parties.shops["shop-1"].deal(parties.coordinator.adverts())
        elif stage == "add_opened":
            parties.set_up(5)
            answer = parties.shops["shop-1"].check(parties.coordinator.delivery("shop-1"))
        else:
            parties.set_up(5)
            parties.upload(5, dropped={"shop-4"})
            if stage == "add_signature":
                answer = parties.shops["shop-1"].sign(parties.coordinator.survivors())
            else:
                answer = parties.shops["shop-1"].reveal(parties.sign())
        moments.append((parties.coordinator, stage, answer))
    return moments


MOMENTS = coordinator_moments()


def mutate(data: bytes, generator: random.Random) -> bytes:
    """Bits flipped, bytes set, parts cut, doubled or swapped; often after the header, where decoders read on."""
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 5))):
        low = 51 if generator.random() < 0.8 and len(changed) > 52 else 0
        at = generator.randrange(low, len(changed)) if len(changed) > low else 0
        way = generator.randrange(6)
        if way == 0 and changed:
            changed[at] ^= 1 << generator.randrange(8)
        elif way == 1 and changed:
            changed[at] = generator.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif way == 2:
            del changed[at : at + generator.choice((1, 2, 32, 64, 1000))]
        elif way == 3:
            changed[at:at] = generator.randbytes(generator.choice((1, 2, 32, 64)))
        elif way == 4:
            changed[at:at] = changed[at : at + generator.choice((2, 34, 35, 66))]
        else:
            changed[at : at + 2] = generator.choice((b"\xff\xff", b"\0\0", b"\1\0"))
    return bytes(changed)


def try_decoders(generator: random.Random) -> None:
    kind = generator.choice(KINDS)
    data = mutate(MESSAGES[kind], generator)
    try:
        message = decode(kind, data)
    except BadMessage:
        return
    assert message.to_bytes() == data, "two encodings of one message"


def try_shop(generator: random.Random) -> None:
    step = generator.randrange(len(ENTRIES))
    shop, data = shop_at(step), mutate(DUE[step], generator)
    try:
        getattr(shop, ENTRIES[step])(data)
    except ProtocolError:
        assert shop.to_bytes() == STATES[step], "a refused message changed the state"
    else:
        # Other rounds, survivors or deals of strangers may be named; keys and signatures are what they were.
        assert ENTRIES[step] in ("advertise", "check", "sign") or data == DUE[step]


def try_coordinator(generator: random.Random) -> None:
    coordinator, stage, honest = generator.choice(MOMENTS)
    data = mutate(honest, generator)
    if data == honest or stage in ("add_opened", "add_shares"):
        return  # neither is signed: a changed share is found when the secret is not the published one
    with pytest.raises(BadMessage):
        getattr(coordinator, stage)("shop-1", data)


TRIES = (try_decoders, try_shop, try_coordinator)


@pytest.mark.parametrize("attempt", TRIES)
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_mutated_messages_are_refused_or_are_messages(attempt, seed):
    attempt(random.Random(seed))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50, deadline=None)
@given(noise=st.binary(max_size=400), keep_header=st.booleans())
def test_noise_is_refused(kind, noise, keep_header):
    try:
        message = decode(kind, MESSAGES[kind][:51] * keep_header + noise)
    except BadMessage:
        return
    assert keep_header
    assert message.to_bytes() == MESSAGES[kind][:51] + noise


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_a_long_fuzz_finds_nothing_but_refusals():
    end = time.monotonic() + float(os.environ.get("FEDREC_FUZZ_SECONDS", "60"))
    generator, count = random.Random(), 0
    while time.monotonic() < end:
        seed = generator.getrandbits(64)
        try:
            TRIES[count % len(TRIES)](random.Random(seed))
        except BaseException:
            print(f"{TRIES[count % len(TRIES)].__name__} with seed {seed}")
            raise
        count += 1
    print(f"{count} messages")
    assert count > 0


def test_an_upload_of_wrong_kind_is_refused():
    parties = Parties.ready()
    parties.coordinator.open_round(0, parties.context(0), SIZE, np.dtype("<u8"))
    with pytest.raises(BadMessage):
        parties.coordinator.add_upload("shop-0", parties.context(0), np.zeros(SIZE, "<f8"))
