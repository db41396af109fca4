"""What a coordinator of ill will may try before a round: others' keys, different things to different shops.

An honest shop refuses; where it cannot see what is wrong, the masks do not cancel and nothing opens.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedrec.errors import BadMessage, TooFewShops
from fedrec.secure_aggregation import masks
from fedrec.secure_aggregation.encoding import Batch
from fedrec.secure_aggregation.messages import (
    Advert,
    Adverts,
    Deal,
    Delivery,
    Invite,
)
from fedrec.secure_aggregation.shop_session import ShopSession

from .parties import RUN, SIZE, Parties, agreement, identity, vector

ORDER_EIGHT = 325606250916557431795983626356110631294008115727848805560023387167927233504
LOW_ORDER = [value.to_bytes(32, "little") for value in (0, 1, ORDER_EIGHT, 2**255 - 20, 2**255 - 19, 2**255 - 18)]


def adverts_of(parties: Parties) -> Adverts:
    parties.advertise()
    return Adverts.from_bytes(parties.coordinator.adverts(), parties.run, parties.parameters)


def signed(advert: Advert, name: str) -> Advert:
    """Signed by whoever has this name's identity key."""
    return replace(advert, signature=identity(name).sign(advert.signed_bytes()))


def swapped(adverts: Adverts, advert: Advert) -> bytes:
    """The keys with one shop's replaced."""
    entries = {one.place: one for one in adverts.adverts} | {advert.place: advert}
    return replace(adverts, adverts=tuple(entries[place] for place in sorted(entries))).to_bytes()


# Keys: inserted shops, men in the middle.


def test_a_shop_that_the_roster_lacks_cannot_be_inserted():
    parties = Parties.of(agreement(5, min_shops=4))
    larger = Parties.of(agreement(6, min_shops=4))
    foreign = adverts_of(larger)
    parties.advertise()
    with pytest.raises(BadMessage, match="another run, or for another roster"):
        parties.shops["shop-0"].deal(foreign.to_bytes())
    forged = replace(foreign, run=parties.run, adverts=tuple(replace(one, run=parties.run) for one in foreign.adverts))
    with pytest.raises(BadMessage):
        parties.shops["shop-0"].deal(forged.to_bytes())


def test_one_shops_keys_do_not_count_for_two():
    parties = Parties.of(agreement(5, min_shops=4))
    adverts = adverts_of(parties)
    twice = signed(replace(adverts.adverts[1], place=2), "shop-1")
    with pytest.raises(BadMessage, match="did not sign"):
        parties.shops["shop-0"].deal(swapped(adverts, twice))
    # Two colluding shops that give the same keys are one: nobody can tell how many stand behind them.
    copied = signed(replace(adverts.adverts[1], place=2), "shop-2")
    with pytest.raises(BadMessage, match="twice"):
        parties.shops["shop-0"].deal(swapped(adverts, copied))


@pytest.mark.parametrize("which", ["share_key", "mask_keys"])
def test_a_man_in_the_middle_is_refused(which):
    parties = Parties.of(agreement(5, min_shops=4))
    adverts = adverts_of(parties)
    own = masks.public_key(bytes(range(32)))
    advert = adverts.adverts[1]
    keys = own if which == "share_key" else (own, *advert.mask_keys[1:])
    for name in ("shop-0", "coordinator"):
        with pytest.raises(BadMessage, match="did not sign"):
            parties.shops["shop-0"].deal(swapped(adverts, signed(replace(advert, **{which: keys}), name)))
    with pytest.raises(BadMessage, match="did not sign"):
        parties.shops["shop-0"].deal(swapped(adverts, replace(advert, **{which: keys})))


def test_a_shops_own_keys_cannot_be_changed_or_left_out():
    parties = Parties.of(agreement(5, min_shops=4))
    adverts = adverts_of(parties)
    without = replace(adverts, adverts=adverts.adverts[1:])
    with pytest.raises(BadMessage, match="own"):
        parties.shops["shop-0"].deal(without.to_bytes())
    # Signed by the shop itself, but other keys: as from a copy of the machine.
    other = ShopSession(parties.parameters, "shop-0", identity("shop-0"), RUN)
    copy = other.advertise(Invite(parties.run, adverts.batch).to_bytes())
    with pytest.raises(BadMessage, match="own"):
        parties.shops["shop-0"].deal(swapped(adverts, Advert.from_bytes(copy, parties.run, parties.parameters)))


@pytest.mark.parametrize("key", LOW_ORDER, ids=range(len(LOW_ORDER)))
@pytest.mark.parametrize("which", ["share_key", "mask_keys"])
def test_keys_of_low_order_are_refused_on_both_sides(which, key):
    parties = Parties.of(agreement(5, min_shops=4))
    adverts = adverts_of(parties)
    advert = adverts.adverts[1]
    keys = key if which == "share_key" else (advert.mask_keys[0], key, advert.mask_keys[2])
    weak = signed(replace(advert, **{which: keys}), "shop-1")
    with pytest.raises(BadMessage, match="low order"):
        parties.shops["shop-0"].deal(swapped(adverts, weak))
    fresh = Parties.of(parties.parameters)
    invite = Invite.from_bytes(fresh.coordinator.invite(0, 3), parties.run, parties.parameters)
    with pytest.raises(BadMessage, match="low order"):
        fresh.coordinator.add_advert("shop-1", signed(replace(weak, batch=invite.batch), "shop-1").to_bytes())


def test_keys_of_another_batch_or_round_are_refused():
    parties = Parties.of(agreement(5, min_shops=4))
    old = adverts_of(parties)
    new = adverts_of(parties)
    with pytest.raises(BadMessage, match="another batch"):
        parties.shops["shop-0"].deal(old.to_bytes())
    with pytest.raises(BadMessage):
        parties.shops["shop-0"].deal(swapped(new, old.adverts[1]))
    relabelled = replace(old.adverts[1], batch=new.batch)
    with pytest.raises(BadMessage, match="did not sign"):
        parties.shops["shop-0"].deal(swapped(new, relabelled))


def test_fewer_keys_than_the_fewest_shops_are_refused():
    parties = Parties.of(agreement(5, min_shops=4))
    adverts = adverts_of(parties)
    few = replace(adverts, adverts=adverts.adverts[:3])
    with pytest.raises(TooFewShops):
        parties.shops["shop-0"].deal(few.to_bytes())


def test_a_set_up_is_dealt_once():
    parties = Parties.of(agreement(6, min_shops=4))
    adverts = adverts_of(parties)
    shop = parties.shops["shop-0"]
    shop.deal(adverts.to_bytes())
    with pytest.raises(BadMessage, match="dealt"):
        shop.deal(replace(adverts, adverts=adverts.adverts[:5]).to_bytes())


def test_a_batch_number_does_not_come_back_with_other_rounds():
    parties = Parties.of(agreement(5, min_shops=4))
    shop = parties.shops["shop-0"]
    shop.advertise(Invite(parties.run, Batch(7, 0, 3)).to_bytes())
    with pytest.raises(BadMessage, match="other rounds"):
        shop.advertise(Invite(parties.run, Batch(7, 1, 3)).to_bytes())


def test_the_same_invite_again_gives_fresh_keys_once_another_was_between():
    parties = Parties.of(agreement(5, min_shops=4))
    shop = parties.shops["shop-0"]
    first, second = (Invite(parties.run, Batch(number, 0, 3)).to_bytes() for number in (7, 8))
    before = shop.advertise(first)
    shop.advertise(second)
    assert shop.advertise(first) != before


# Different things to different shops.


def test_other_adverts_for_some_shops_open_nothing():
    parties = Parties.of(agreement(7, min_shops=5))
    adverts = adverts_of(parties)
    fewer = replace(adverts, adverts=adverts.adverts[:6])
    deals = {}
    for place, name in enumerate(parties.parameters.names):
        message = fewer if place < 3 else adverts
        deals[name] = parties.shops[name].deal(message.to_bytes())
    for name in ("shop-3", "shop-4", "shop-5", "shop-6"):
        parties.coordinator.add_deal(name, deals[name])
    with pytest.raises(BadMessage, match="other keys"):
        parties.coordinator.add_deal("shop-0", deals["shop-0"])
    # The coordinator leaves its own checks out: at the shops the boxes of those with other adverts do not open.
    dealt = {name: Deal.from_bytes(deal, parties.run, parties.parameters) for name, deal in deals.items()}
    given = {parties.parameters.place_of[name]: deal.digest for name, deal in dealt.items() if name != "shop-6"}
    boxes = {parties.parameters.place_of[name]: deal.boxes[0] for name, deal in dealt.items() if name != "shop-6"}
    delivery = Delivery(parties.run, adverts.batch, given, boxes)
    with pytest.raises(BadMessage, match="not made for this one"):
        parties.shops["shop-0"].accept(delivery.to_bytes())


def test_a_delivery_without_a_neighbours_shares_or_ones_own_deal_is_refused():
    parties = Parties.ready(6, min_shops=4)
    whole = Delivery.from_bytes(parties.coordinator.delivery("shop-0"), parties.run, parties.parameters)
    shop = parties.shops["shop-0"]

    def without(entries, *places):
        return {place: entry for place, entry in entries.items() if place not in places}

    with pytest.raises(BadMessage, match="all neighbours"):
        shop.accept(replace(whole, boxes=without(whole.boxes, 3)).to_bytes())
    with pytest.raises(BadMessage, match="own deal"):
        shop.accept(replace(whole, deals=without(whole.deals, 0), boxes=without(whole.boxes, 0)).to_bytes())
    with pytest.raises(BadMessage, match="own deal"):
        shop.accept(replace(whole, deals={**whole.deals, 0: bytes(32)}).to_bytes())
    with pytest.raises(BadMessage, match="not made for this one"):
        shop.accept(replace(whole, boxes={**whole.boxes, 1: whole.boxes[2], 2: whole.boxes[1]}).to_bytes())
    with pytest.raises(TooFewShops):
        shop.accept(replace(whole, deals=without(whole.deals, 3, 4, 5), boxes=without(whole.boxes, 3, 4, 5)).to_bytes())
    shop.accept(whole.to_bytes())
    with pytest.raises(BadMessage, match="accepted"):
        shop.accept(replace(whole, deals=without(whole.deals, 5), boxes=without(whole.boxes, 5)).to_bytes())


def test_other_participants_for_some_shops_give_another_set_up():
    parties = Parties.ready(7, min_shops=5)
    whole = Delivery.from_bytes(parties.coordinator.delivery("shop-0"), parties.run, parties.parameters)
    fewer = replace(
        whole,
        deals={place: deal for place, deal in whole.deals.items() if place != 6},
        boxes={place: box for place, box in whole.boxes.items() if place != 6},
    )
    assert parties.shops["shop-0"].accept(fewer.to_bytes()) != parties.coordinator.setup_digest
    parties.masked("shop-0", 0)
    with pytest.raises(BadMessage, match="set-up"):
        parties.shops["shop-0"].sign(parties.survivors_message(0, range(7)))


def test_masks_of_other_plans_do_not_cancel_and_the_set_is_not_signed():
    parties = Parties.ready()
    parties.accept()
    parties.coordinator.open_round(0, parties.context(0), SIZE, np.dtype("<u8"))
    for name in parties.parameters.names:
        context = bytes(32) if name == "shop-2" else None
        parties.coordinator.add_upload(name, parties.context(0), parties.masked(name, 0, context=context))
    survivors = parties.coordinator.survivors()
    with pytest.raises(BadMessage, match="plan"):
        parties.shops["shop-2"].sign(survivors)
    signatures = parties.sign(silent={"shop-2"})
    parties.reveal(signatures, silent={"shop-2"})
    # Everybody else was honest and answered, yet what comes out is not the sum.
    opened = parties.coordinator.total()
    assert not np.any(opened == parties.expected(0))
    others = sum(vector(name, 0) for name in parties.parameters.names if name != "shop-2")
    assert not np.any(opened == others)


def test_the_coordinator_refuses_keys_under_another_name_or_batch():
    parties = Parties.of(agreement(5, min_shops=4))
    batch = Invite.from_bytes(parties.coordinator.invite(0, 3), parties.run, parties.parameters).batch
    data = parties.shops["shop-1"].advertise(Invite(parties.run, batch).to_bytes())
    advert = Advert.from_bytes(data, parties.run, parties.parameters)
    other = replace(batch, number=batch.number ^ 1)
    for wrong in (replace(advert, place=2), replace(advert, batch=other)):
        with pytest.raises(BadMessage, match="another shop or batch"):
            parties.coordinator.add_advert("shop-1", signed(wrong, "shop-1").to_bytes())
    with pytest.raises(BadMessage, match="did not sign"):
        parties.coordinator.add_advert("shop-1", signed(advert, "shop-2").to_bytes())
    assert parties.coordinator.add_advert("shop-1", data)


def test_the_coordinator_refuses_shares_under_another_name_for_other_keys_or_holders():
    parties = Parties.of(agreement(5, min_shops=4))
    adverts = adverts_of(parties)
    data = parties.shops["shop-1"].deal(adverts.to_bytes())
    deal = Deal.from_bytes(data, parties.run, parties.parameters)
    some = {place: box for place, box in deal.boxes.items() if place != 3}
    for wrong, message in (
        (replace(deal, place=2), "another shop"),
        (replace(deal, batch=replace(deal.batch, first_round=1)), "another shop or batch"),
        (replace(deal, adverts=bytes(32)), "other keys"),
        (replace(deal, boxes=some), "neighbours"),
    ):
        forged = replace(wrong, signature=identity("shop-1").sign(wrong.signed_bytes()))
        with pytest.raises(BadMessage, match=message):
            parties.coordinator.add_deal("shop-1", forged.to_bytes())
    with pytest.raises(BadMessage, match="did not sign"):
        parties.coordinator.add_deal("shop-1", replace(deal, commitments=deal.commitments[::-1]).to_bytes())
    assert parties.coordinator.add_deal("shop-1", data)
