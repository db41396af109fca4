"""Shops that deal or give wrong shares: a round may end, but it never gives a wrong sum."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import event, given, settings
from hypothesis import strategies as st

from fedrec.errors import BadMessage, ProtocolError, TooFewShops
from fedrec.federation.secure_round import ask_all, set_up, shop_step
from fedrec.secure_aggregation import masks
from fedrec.secure_aggregation.messages import NONCE_BYTES, Delivery, Opened, Shares
from fedrec.secure_aggregation.rules import box_context
from fedrec.secure_aggregation.secret_sharing import SHARE_BYTES
from fedrec.secure_aggregation.shop_session import ShopSession

from .parties import RUN, SIZE, Parties, agreement, identity

DISHONEST = "shop-4"


class WrongDealer(ShopSession):
    """Publishes one secret for each round and deals shares of another."""

    wrong = ""

    def _boxes(self, setup, known, receivers, threshold):
        others = {index: os.urandom(32) for index in setup.batch.rounds}
        return super()._boxes(replace(setup, **{self.wrong: others}), known, receivers, threshold)


class WrongBox(ShopSession):
    """Sends the first shop bytes that are no box."""

    def _boxes(self, setup, known, receivers, threshold):
        boxes = super()._boxes(setup, known, receivers, threshold)
        return {**boxes, 0: bytes(len(boxes[0]))}


def with_wrong_dealer(wrong: str) -> Parties:
    parties = Parties.of(agreement(5, min_shops=4))
    dealer = WrongDealer(parties.parameters, DISHONEST, identity(DISHONEST), RUN)
    dealer.wrong = wrong
    parties.shops[DISHONEST] = dealer
    parties.set_up()
    return parties


@pytest.mark.parametrize(("wrong", "dropped"), [("seeds", set()), ("mask_keys", {DISHONEST})])
def test_shares_dealt_of_another_secret_end_the_round_where_the_secret_is_needed(wrong, dropped):
    with pytest.raises(ProtocolError, match="that it published"):
        with_wrong_dealer(wrong).round(0, dropped=dropped)


@pytest.mark.parametrize(("wrong", "dropped"), [("mask_keys", set()), ("seeds", {DISHONEST})])
def test_shares_dealt_of_another_secret_cost_nothing_where_it_is_not_needed(wrong, dropped):
    parties = with_wrong_dealer(wrong)
    assert np.array_equal(parties.round(0, dropped=dropped), parties.expected(0, dropped=dropped))


def test_a_box_that_does_not_open_keeps_its_receiver_out_and_the_sum_exact():
    parties = Parties.of(agreement(5, min_shops=4))
    parties.shops[DISHONEST] = WrongBox(parties.parameters, DISHONEST, identity(DISHONEST), RUN)
    parties.set_up()
    # The dealer's signature holds, so the coordinator cannot see it; the receiver does.
    with pytest.raises(BadMessage, match="not made for this one"):
        parties.shops["shop-0"].accept(parties.coordinator.delivery("shop-0"))
    others = parties.parameters.names[1:]
    parties.accept(others)
    parties.coordinator.open_round(0, parties.context(0), SIZE, np.dtype("<u8"))
    for name in others:
        parties.coordinator.add_upload(name, parties.context(0), parties.masked(name, 0))
    parties.reveal(parties.sign())
    assert np.array_equal(parties.coordinator.total(), parties.expected(0, dropped={"shop-0"}))


class BadDealer(ShopSession):
    """Sends some shops boxes that do not open, or that hold no shares."""

    to: tuple[int, ...] = ()
    opens = False

    def _boxes(self, setup, known, receivers, threshold):
        boxes = super()._boxes(setup, known, receivers, threshold)
        if self.opens:
            return {**boxes, **{place: self._nonsense(setup, known, place) for place in self.to}}
        return {**boxes, **{place: bytes(len(boxes[place])) for place in self.to}}

    def _nonsense(self, setup, known, place):
        keys = {advert.place: advert.share_key for advert in known.adverts}
        context = box_context(self._run, known.digest, dealer=self.place, receiver=place)
        key = masks.pair_seed(setup.share_key, keys[place], "fedrec shares", context)
        shares = b"\xff" * (2 * SHARE_BYTES * setup.batch.num_rounds)
        return bytes(NONCE_BYTES) + ChaCha20Poly1305(key).encrypt(bytes(NONCE_BYTES), shares, context)


class Accuser(ShopSession):
    """Takes everything, and complains of everybody who dealt, or of another shop each time."""

    one_by_one = False
    times = -1

    def check(self, delivery):
        said = Opened.from_bytes(super().check(delivery), self._run, self.parameters)
        dealt = Delivery.from_bytes(delivery, self._run, self.parameters).deals
        self.times += 1
        whom = (self.times,) if self.one_by_one else tuple(sorted(dealt.keys() - {self.place}))
        return replace(said, complaints=whom).to_bytes()


def set_up_with(parties: Parties, name: str, kind: type[ShopSession], late: str = "", **about: object) -> Parties:
    """The whole set-up as a coordinator runs it, one shop being of another kind, one away when it is first asked."""
    shop = parties.shops[name] = kind(parties.parameters, name, identity(name), RUN)
    vars(shop).update(about)
    away = [late]

    def answer(who, step, data):
        if who in away:
            return away.clear()
        return shop_step(parties.shops[who], step, data)

    ask_all(set_up(parties.coordinator, 0, 3), answer)
    return parties


@pytest.mark.parametrize("opens", [False, True])
def test_a_dealer_of_whom_more_shops_complain_than_can_collude_is_left_out_and_the_others_sum(opens, caplog):
    parties = Parties.of(agreement(5, min_shops=4))
    set_up_with(parties, DISHONEST, BadDealer, to=(0, 2), opens=opens)
    assert parties.coordinator.left_out == (DISHONEST,)
    assert "shop shop-4 dealt shares of its keys that do not open at shop-0, shop-2" in caplog.text
    assert parties.coordinator.participants == parties.parameters.names[:4]
    assert np.array_equal(parties.round(0), parties.expected(0))
    ask_all(set_up(parties.coordinator, 3, 3), lambda who, step, data: shop_step(parties.shops[who], step, data))
    assert DISHONEST not in parties.coordinator.advertised  # nor does it come back with the next keys


def test_shops_that_can_lie_together_put_nobody_out():
    parties = set_up_with(Parties.of(agreement(5, min_shops=4)), DISHONEST, Accuser, one_by_one=True)
    assert parties.coordinator.left_out == ()
    others = parties.parameters.names[:4]
    parties.coordinator.open_round(0, parties.context(0), SIZE, np.dtype("<u8"))
    for name in others:
        parties.coordinator.add_upload(name, parties.context(0), parties.masked(name, 0))
    parties.reveal(parties.sign())
    assert np.array_equal(parties.coordinator.total(), parties.expected(0, dropped={DISHONEST}))


def test_of_few_complaints_the_dealer_is_left_out_where_the_round_could_not_do_without_those_who_complain():
    parties = Parties.of(agreement(6, min_shops=5, colluders=2))
    set_up_with(parties, "shop-5", BadDealer, to=(0, 1))
    assert parties.coordinator.left_out == ("shop-5",)
    assert np.array_equal(parties.round(0), parties.expected(0))


@pytest.mark.parametrize("one_by_one", [False, True])
def test_a_shop_that_complains_of_more_shops_than_can_lie_is_left_out_itself_and_they_are_not(one_by_one, caplog):
    """While another shop is away the round cannot do without it, so that each of its words would put a shop out."""
    parties = Parties.of(agreement(5, min_shops=4))
    set_up_with(parties, DISHONEST, Accuser, late="shop-3", one_by_one=one_by_one)
    assert parties.coordinator.left_out == (DISHONEST,)
    assert "shop shop-4 complains of more shops than can have dealt wrong" in caplog.text
    assert ("shop-0 dealt shares of its keys that do not open at shop-4, or so they say" in caplog.text) is one_by_one
    assert np.array_equal(parties.round(0), parties.expected(0))
    assert parties.coordinator.participants == parties.parameters.names[:4]


def test_a_set_up_that_cannot_do_without_the_bad_dealer_ends_with_its_name():
    with pytest.raises(TooFewShops, match=r"3 .* 4 are needed; left out for bad shares or complaints: shop-3"):
        set_up_with(Parties.of(agreement(4, min_shops=4)), "shop-3", BadDealer, to=(0, 1))


def test_complaints_of_shops_that_dealt_nothing_are_refused():
    parties = Parties.of(agreement(5, min_shops=4))
    parties.set_up(no_deal={DISHONEST})
    said = parties.shops["shop-0"].check(parties.coordinator.delivery("shop-0"))
    opened = Opened.from_bytes(said, parties.run, parties.parameters)
    for wrong in (replace(opened, complaints=(4,)), replace(opened, place=1)):
        with pytest.raises(BadMessage):
            parties.coordinator.add_opened("shop-0", wrong.to_bytes())
    assert parties.coordinator.add_opened("shop-0", said)
    assert not parties.coordinator.add_opened("shop-0", said)


def before_the_shares() -> tuple[Parties, dict[str, Shares]]:
    """A round without the last shop, up to the survivors' shares."""
    parties = Parties.ready()
    parties.upload(0, dropped={DISHONEST})
    signatures = parties.sign()
    names = parties.coordinator.survivor_names
    answers = {name: parties.shops[name].reveal(signatures) for name in names}
    return parties, {
        name: Shares.from_bytes(answer, parties.run, parties.parameters) for name, answer in answers.items()
    }


PARTIES, ANSWERS = before_the_shares()


def flipped(shares: Mapping[int, bytes], place: int, bit: int) -> dict[int, bytes]:
    changed = int.from_bytes(shares[place], "little") ^ (1 << bit)
    return {**shares, place: changed.to_bytes(len(shares[place]), "little")}


@settings(max_examples=100, deadline=None)
@given(giver=st.sampled_from(sorted(ANSWERS)), of=st.integers(0, 4), bit=st.integers(0, 8 * 33 - 1))
def test_any_wrong_bit_of_any_share_gives_the_exact_sum_or_an_error(giver, of, bit):
    coordinator = copy.deepcopy(PARTIES.coordinator)
    for name, answer in ANSWERS.items():
        what = "seeds" if of in answer.seeds else "keys"
        changed = replace(answer, **{what: flipped(getattr(answer, what), of, bit)})
        coordinator.add_shares(name, (changed if name == giver else answer).to_bytes())
    try:
        total = coordinator.total()
    except ProtocolError:
        event("an error")
    else:
        # X25519 ignores some bits of a key: another number, but the same masks.
        assert of == 4
        assert np.array_equal(total, PARTIES.expected(0, dropped={DISHONEST}))


@settings(max_examples=30, deadline=None)
@given(giver=st.sampled_from(sorted(ANSWERS)), size=st.integers(0, 2000), data=st.data())
def test_shares_of_any_other_form_are_refused_and_the_honest_ones_still_counted(giver, size, data):
    coordinator = copy.deepcopy(PARTIES.coordinator)
    honest = ANSWERS[giver].to_bytes()
    if size != len(honest):
        with pytest.raises(BadMessage):
            coordinator.add_shares(giver, (honest + bytes(2000))[:size])
    other = data.draw(st.sampled_from(sorted(set(ANSWERS) - {giver})))
    with pytest.raises(BadMessage):
        coordinator.add_shares(giver, ANSWERS[other].to_bytes())
    for name, answer in ANSWERS.items():
        assert coordinator.add_shares(name, answer.to_bytes())
    assert np.array_equal(coordinator.total(), PARTIES.expected(0, dropped={DISHONEST}))
