"""What a coordinator of ill will may try in a round, with t shops on its side: an honest shop refuses.

Tried are: replays, two sets of survivors, too few signatures or others' ones, a shop without neighbours, both shares.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from fedrec.errors import BadMessage, ProtocolError, TooFewShops
from fedrec.secure_aggregation import masks
from fedrec.secure_aggregation.messages import (
    Adverts,
    Deal,
    Delivery,
    Shares,
    Signature,
    Signatures,
    Survivors,
)
from fedrec.secure_aggregation.rules import ring_of, round_context, seed_of_pair, self_seed
from fedrec.secure_aggregation.shop_session import ShopSession

from .parties import RUN, SIZE, Parties, agreement, identity, vector


def signatures_over(parties: Parties, survivors: bytes, names: list[str]) -> bytes:
    """Real signatures over any set, by the identity keys of these shops."""
    chosen = Survivors.from_bytes(survivors, parties.run, parties.parameters)
    given = {parties.parameters.place_of[name]: identity(name).sign(chosen.signed_bytes()) for name in names}
    return Signatures(parties.run, chosen.index, chosen.digest, given).to_bytes()


def uploaded(num_shops: int = 5, min_shops: int = 4, colluders: int = 1) -> Parties:
    """A round in which everybody has sent an upload."""
    parties = Parties.ready(num_shops, min_shops=min_shops, colluders=colluders)
    parties.upload(0)
    return parties


def test_a_round_is_masked_once():
    parties = uploaded()
    shop = parties.shops["shop-0"]
    before = parties.masked("shop-0", 0)
    other = vector("shop-0", 0)
    other[3] += np.uint64(1)
    with pytest.raises(ProtocolError, match="used once"):
        shop.mask(0, parties.context(0), other)
    assert not np.any(other), "a second vector under the same masks stays in the caller's array"
    with pytest.raises(ProtocolError, match="another plan"):
        parties.masked("shop-0", 0, context=bytes(32))
    assert np.array_equal(parties.masked("shop-0", 0), before)


def test_a_round_that_is_over_is_never_masked_again():
    parties = uploaded()
    parties.reveal(parties.sign())
    with pytest.raises(ProtocolError, match="over"):
        parties.masked("shop-0", 0)
    parties.upload(2)
    for index in (0, 1):
        with pytest.raises(ProtocolError, match="over"):
            parties.masked("shop-0", index)


def test_a_crash_does_not_make_a_shop_forget_what_it_masked_and_signed():
    parties = Parties.ready(7, min_shops=5)
    parties.upload(0)
    parties.shops["shop-0"].sign(parties.survivors_message(0, range(6)))
    stored = parties.shops["shop-0"].to_bytes()
    shop = ShopSession(parties.parameters, "shop-0", identity("shop-0"), RUN)
    shop.restore(stored)
    with pytest.raises(ProtocolError, match="used once"):
        shop.mask(0, parties.context(0), np.zeros(SIZE, "<u8"))
    with pytest.raises(ProtocolError, match="signs one"):
        shop.sign(parties.survivors_message(0, range(7)))


def test_a_shop_signs_one_set_of_survivors_a_round():
    parties = Parties.ready(7, min_shops=5)
    parties.upload(0)
    shop = parties.shops["shop-0"]
    first, second = parties.survivors_message(0, range(6)), parties.survivors_message(0, range(7))
    signature = shop.sign(first)
    with pytest.raises(ProtocolError, match="signs one"):
        shop.sign(second)
    assert shop.sign(first) == signature
    with pytest.raises(BadMessage, match="another set"):
        shop.reveal(signatures_over(parties, second, list(parties.parameters.names)))


@pytest.mark.parametrize(("num_shops", "min_shops", "colluders"), [(7, 5, 1), (7, 6, 3), (6, 5, 2), (9, 8, 4)])
def test_two_sets_of_one_round_never_both_gather_enough_signatures(num_shops, min_shops, colluders):
    """The honest ones split as best the coordinator can; colluders sign everything."""
    parties = Parties.ready(num_shops, min_shops=min_shops, colluders=colluders)
    parties.upload(0)
    names = parties.parameters.names
    colluding, honest = list(names[:colluders]), list(names[colluders:])
    sets = [parties.survivors_message(0, range(num_shops)), parties.survivors_message(0, range(num_shops - 1))]
    for part in range(len(honest) + 1):
        signers = [colluding + honest[:part], colluding + honest[part:]]
        assert min(map(len, signers)) < parties.parameters.threshold
    # And the shops themselves: half of them sign the one set, half the other; neither half reveals.
    half = len(honest) // 2
    for chosen, group in zip(sets, (honest[:half], honest[half:-1]), strict=True):
        for name in group:
            parties.shops[name].sign(chosen)
        for name in group:
            with pytest.raises((TooFewShops, BadMessage)):
                parties.shops[name].reveal(signatures_over(parties, chosen, colluding + group))


def test_a_signature_of_one_set_up_counts_under_no_other():
    """Some shops are set up again under the very same plan and round: they sign another set, in another name."""
    parties = Parties.ready(7, min_shops=5)
    plan = bytes(range(32))
    parties.accept()
    for name in parties.parameters.names:
        parties.masked(name, 0, context=plan)
    before = parties.coordinator.setup_digest
    first = parties.survivors_message(0, range(6), round_context(before, plan))
    for name in parties.parameters.names[:6]:
        parties.shops[name].sign(first)
    parties.set_up()
    parties.accept()
    parties.masked("shop-0", 0, context=plan)
    for digest in (before, bytes(32)):
        with pytest.raises(BadMessage, match="set-up"):
            parties.shops["shop-0"].sign(parties.survivors_message(0, range(7), round_context(digest, plan)))
    now = round_context(parties.coordinator.setup_digest, plan)
    parties.shops["shop-0"].sign(parties.survivors_message(0, range(7), now))


def test_signatures_of_too_few_shops_open_nothing():
    parties = uploaded()
    survivors = parties.coordinator.survivors()
    shop = parties.shops["shop-0"]
    with pytest.raises(ProtocolError, match="signed"):
        shop.reveal(signatures_over(parties, survivors, list(parties.parameters.names)))
    shop.sign(survivors)
    names = list(parties.parameters.names)
    for count in range(parties.parameters.threshold):
        with pytest.raises(TooFewShops):
            shop.reveal(signatures_over(parties, survivors, names[:count]))
    shop.reveal(signatures_over(parties, survivors, names[: parties.parameters.threshold]))


def test_signatures_are_counted_by_survivors_of_the_set_alone():
    parties = Parties.ready(7, min_shops=5)
    parties.upload(0, dropped={"shop-5", "shop-6"})
    survivors = parties.coordinator.survivors()
    shop = parties.shops["shop-0"]
    shop.sign(survivors)
    with pytest.raises(BadMessage, match="not among the survivors"):
        shop.reveal(signatures_over(parties, survivors, ["shop-0", "shop-1", "shop-2", "shop-5", "shop-6"]))


def test_a_signature_that_does_not_hold_opens_nothing():
    parties = uploaded()
    survivors = parties.coordinator.survivors()
    shop = parties.shops["shop-0"]
    shop.sign(survivors)
    names = list(parties.parameters.names)
    good = Signatures.from_bytes(signatures_over(parties, survivors, names), parties.run, parties.parameters)
    forged = {**good.signatures, 2: good.signatures[1]}
    with pytest.raises(BadMessage, match="did not make"):
        shop.reveal(replace(good, signatures=forged).to_bytes())


@pytest.mark.parametrize("change", ["another round", "another plan", "another set", "another run"])
def test_signatures_over_something_else_open_nothing(change):
    parties = Parties.ready(7, min_shops=5)
    parties.upload(0, dropped={"shop-6"})
    survivors = parties.coordinator.survivors()
    shop = parties.shops["shop-0"]
    shop.sign(survivors)
    chosen = Survivors.from_bytes(survivors, parties.run, parties.parameters)
    other = {
        "another round": replace(chosen, index=1),
        "another plan": replace(chosen, context=bytes(32)),
        "another set": replace(chosen, places=chosen.places[:-1]),
        "another run": replace(chosen, run=bytes(32)),
    }[change]
    names = list(parties.parameters.names[:6])
    stolen = {parties.parameters.place_of[name]: identity(name).sign(other.signed_bytes()) for name in names}
    # Under their own labels, and relabelled for the set that the shop signed.
    with pytest.raises(BadMessage):
        shop.reveal(Signatures(other.run, other.index, other.digest, stolen).to_bytes())
    with pytest.raises(BadMessage, match="did not make"):
        shop.reveal(Signatures(parties.run, chosen.index, chosen.digest, stolen).to_bytes())


def test_sets_of_survivors_that_a_shop_refuses():
    parties = Parties.of(agreement(7, min_shops=5))
    parties.set_up(no_deal={"shop-6"})
    parties.upload(0)
    shop = parties.shops["shop-0"]
    with pytest.raises(TooFewShops):
        shop.sign(parties.survivors_message(0, range(4)))
    with pytest.raises(BadMessage, match="without this shop"):
        shop.sign(parties.survivors_message(0, range(1, 6)))
    with pytest.raises(BadMessage, match="not in the round"):
        shop.sign(parties.survivors_message(0, range(7)))
    with pytest.raises(BadMessage, match="another round"):
        shop.sign(parties.survivors_message(1, range(6)))
    with pytest.raises(BadMessage, match="plan"):
        shop.sign(parties.survivors_message(0, range(6), bound=bytes(32)))
    shop.sign(parties.survivors_message(0, range(6)))


def test_a_set_that_isolates_a_shop_on_the_ring_is_refused():
    """More than n_min survivors, yet none of one shop's neighbours: its vector alone would open."""
    parties = Parties.of(agreement(160, min_shops=96, colluders=1, rounds_per_setup=1))
    parties.advertise()
    adverts = Adverts.from_bytes(parties.coordinator.adverts(), parties.run, parties.parameters)
    ring, shop = ring_of(adverts, parties.parameters), parties.shops["shop-0"]
    beside = ring.neighbours("shop-0")
    deals = {name: parties.shops[name].deal(adverts.to_bytes()) for name in ("shop-0", *beside)}
    dealt = {
        parties.parameters.place_of[name]: Deal.from_bytes(deal, parties.run, parties.parameters)
        for name, deal in deals.items()
    }
    # The shop sees no more of the others' deals than a digest, so any will do here.
    digests = {place: dealt[place].digest if place in dealt else bytes(32) for place in range(160)}
    boxes = {place: deal.boxes[0] for place, deal in dealt.items()}
    setup = shop.accept(Delivery(parties.run, adverts.batch, digests, boxes).to_bytes())
    shop.mask(0, bytes(32), vector("shop-0", 0))
    bound = round_context(setup, bytes(32))
    gone = {parties.parameters.place_of[name] for name in beside}
    left = sorted(set(range(160)) - gone)
    assert len(left) >= parties.parameters.min_shops
    with pytest.raises(TooFewShops, match="come apart"):
        shop.sign(parties.survivors_message(0, left, bound))
    # One neighbour on either side, who may be the one that colludes.
    near = {parties.parameters.place_of[beside[0]], parties.parameters.place_of[beside[-1]]}
    with pytest.raises(TooFewShops, match="come apart"):
        shop.sign(parties.survivors_message(0, [*left, *near], bound))
    shop.sign(parties.survivors_message(0, range(160), bound))


def test_a_shop_never_gives_both_shares_of_anybody():
    parties = Parties.ready(7, min_shops=5)
    parties.upload(0, dropped={"shop-6"})
    signatures = parties.sign()
    for name in parties.coordinator.survivor_names:
        given = Shares.from_bytes(parties.shops[name].reveal(signatures), parties.run, parties.parameters)
        assert sorted(given.seeds) == [0, 1, 2, 3, 4, 5]
        assert sorted(given.keys) == [6]
    # Asked again as if shop-5 were gone: the round is over, and was never about another set.
    second = parties.survivors_message(0, range(5))
    with pytest.raises(ProtocolError, match="signs one"):
        parties.shops["shop-0"].sign(second)
    with pytest.raises(BadMessage, match="another set"):
        parties.shops["shop-0"].reveal(signatures_over(parties, second, list(parties.parameters.names[:5])))


def test_the_coordinator_refuses_both_shares_of_one_shop():
    parties = uploaded()
    signatures = parties.sign()
    answer = Shares.from_bytes(parties.shops["shop-0"].reveal(signatures), parties.run, parties.parameters)
    with pytest.raises(BadMessage, match="both"):
        parties.coordinator.add_shares("shop-0", replace(answer, keys={1: bytes(33)}).to_bytes())


def test_shares_of_a_round_that_is_over_are_not_kept():
    parties = uploaded()
    held = {name: json.loads(shop.to_bytes())["setup"] for name, shop in parties.shops.items()}
    parties.reveal(parties.sign())
    for name, shop in parties.shops.items():
        setup = json.loads(shop.to_bytes())["setup"]
        assert setup["share_key"] == "", "it opens the boxes of all rounds of the batch"
        for kind in ("mask_keys", "seeds", "shares"):
            assert sorted(held[name][kind]) == ["0", "1", "2"]
            assert sorted(setup[kind]) == ["1", "2"]
        # Of others' secrets the answer holds the one share that was given; their keys' shares are gone.
        key_share, seed_share = held[name]["shares"]["0"]["1"]
        assert key_share.encode() not in shop.to_bytes()
        assert seed_share.encode() in shop.to_bytes()
        for secret in (held[name]["mask_keys"]["0"], held[name]["seeds"]["0"]):
            assert secret.encode() not in shop.to_bytes()


def test_a_late_upload_of_a_dropped_shop_stays_masked_by_its_own_seed():
    """Its mask key of the round is opened, its seed is not: what is left is its own mask and its vector."""
    parties = Parties.ready()
    parties.accept()
    late = parties.masked("shop-4", 0)
    parties.upload(0, dropped={"shop-4"})
    parties.reveal(parties.sign())
    key = parties.shops["shop-4"]._setup.mask_keys[0]
    adverts = parties.coordinator._setup.adverts
    for place in range(4):
        seed = seed_of_pair(key, adverts[place].mask_keys[0], parties.bound(0), 4, place)
        masks.add_mask(late, seed, sign=1)  # the last on the roster has subtracted them all
    assert not np.any(late == vector("shop-4", 0))
    masks.add_mask(late, self_seed(parties.shops["shop-4"]._setup.seeds[0], parties.bound(0), 4), sign=-1)
    assert np.array_equal(late, vector("shop-4", 0)), "the attack as such is computed rightly"


def test_strangers_messages_are_refused_by_the_coordinator():
    parties = uploaded()
    survivors = parties.coordinator.survivors()
    good = Signature.from_bytes(parties.shops["shop-0"].sign(survivors), parties.run, parties.parameters)
    with pytest.raises(BadMessage, match="another shop"):
        parties.coordinator.add_signature("shop-1", good.to_bytes())
    with pytest.raises(BadMessage, match="did not make"):
        parties.coordinator.add_signature("shop-1", replace(good, place=1).to_bytes())
    with pytest.raises(BadMessage, match="another set"):
        parties.coordinator.add_signature("shop-0", replace(good, survivors=bytes(32)).to_bytes())


def test_the_coordinator_asks_for_shares_once_enough_have_signed():
    parties = uploaded()
    survivors = parties.coordinator.survivors()
    names = parties.parameters.names
    for name in names[: parties.parameters.threshold - 1]:
        parties.coordinator.add_signature(name, parties.shops[name].sign(survivors))
    with pytest.raises(TooFewShops, match="signed"):
        parties.coordinator.signatures()
    last = names[parties.parameters.threshold - 1]
    parties.coordinator.add_signature(last, parties.shops[last].sign(survivors))
    parties.coordinator.signatures()


def test_the_coordinator_refuses_shares_of_another_shop_round_or_set():
    parties = uploaded()
    data = parties.shops["shop-1"].reveal(parties.sign())
    shares = Shares.from_bytes(data, parties.run, parties.parameters)
    for wrong in (replace(shares, place=2), replace(shares, index=1), replace(shares, survivors=bytes(32))):
        with pytest.raises(BadMessage, match="another shop, round or set"):
            parties.coordinator.add_shares("shop-1", wrong.to_bytes())
    fewer = {place: share for place, share in shares.seeds.items() if place != 3}
    with pytest.raises(BadMessage, match="other secrets"):
        parties.coordinator.add_shares("shop-1", replace(shares, seeds=fewer).to_bytes())
    assert parties.coordinator.add_shares("shop-1", data)
