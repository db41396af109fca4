"""The sum of the survivors comes out exactly, whoever falls out and whenever; else the round ends with an error."""

from __future__ import annotations

import copy
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from fedrec.errors import BadMessage, ConfigError, ProtocolError, StoreError, TooFewShops
from fedrec.secure_aggregation.coordinator_session import CoordinatorSession
from fedrec.secure_aggregation.encoding import Batch
from fedrec.secure_aggregation.messages import Invite, Shares
from fedrec.secure_aggregation.shop_session import ShopSession

from .parties import DTYPES, RUN, SIZE, Parties, agreement, identity, plan_digest, vector


def crash(parties: Parties, name: str) -> None:
    """The shop comes back with nothing but what it stored."""
    stored = parties.shops[name].to_bytes()
    parties.shops[name] = ShopSession(parties.parameters, name, identity(name), RUN)
    parties.shops[name].restore(stored)


def crash_coordinator(parties: Parties) -> None:
    stored = parties.coordinator.to_bytes()
    parties.coordinator = CoordinatorSession(parties.parameters, RUN)
    parties.coordinator.restore(stored)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_is_the_plain_sum_bit_for_bit(dtype):
    parties = Parties.ready()
    for index in range(3):
        total = parties.round(index, dtype=dtype)
        assert total.dtype == np.dtype(dtype)
        assert np.array_equal(total, parties.expected(index, dtype=dtype))


def test_two_shops_are_enough():
    parties = Parties.ready(2, min_shops=2, colluders=1)
    assert np.array_equal(parties.round(0), parties.expected(0))


def test_an_upload_hides_the_vector_it_carries():
    parties = Parties.ready()
    parties.accept()
    assert not np.any(parties.masked("shop-0", 0) == vector("shop-0", 0))


@pytest.mark.parametrize("num_shops", [7, 40], ids=["complete graph", "ring"])
def test_shops_may_fall_out_at_every_step(num_shops):
    min_shops = 4 if num_shops == 7 else 36
    parties = Parties.of(agreement(num_shops, min_shops=min_shops, colluders=0 if num_shops == 7 else 2))
    first, second, third = "shop-0", "shop-3", "shop-5"
    parties.set_up(no_keys={first}, no_deal={second})
    assert first not in parties.coordinator.participants
    assert second not in parties.coordinator.participants
    total = parties.round(0, dropped={third}, no_signature={"shop-1"} if num_shops > 7 else ())
    assert np.array_equal(total, parties.expected(0, dropped={third}))
    total = parties.round(1, no_shares={"shop-2"})
    assert np.array_equal(total, parties.expected(1))


def test_a_large_federation_shares_masks_with_few_neighbours_and_sums_exactly():
    parties = Parties.ready(48, min_shops=40, colluders=2, num_rounds=2)
    assert 0 < parties.parameters.num_neighbours < 47
    dropped = {f"shop-{place}" for place in range(0, 48, 10)}
    assert np.array_equal(parties.round(0, dropped=dropped), parties.expected(0, dropped=dropped))
    assert np.array_equal(parties.round(1), parties.expected(1))


def test_a_shop_that_missed_a_round_is_in_the_next():
    parties = Parties.ready()
    assert np.array_equal(parties.round(0, dropped={"shop-4"}), parties.expected(0, dropped={"shop-4"}))
    assert np.array_equal(parties.round(1), parties.expected(1))


def test_rounds_of_a_batch_may_be_left_out():
    parties = Parties.ready()
    assert np.array_equal(parties.round(2), parties.expected(2))


def test_a_second_set_up_takes_the_place_of_the_first():
    parties = Parties.ready()
    parties.round(0)
    digest = parties.coordinator.setup_digest
    parties.set_up(first_round=3)
    assert parties.coordinator.setup_digest != digest
    assert np.array_equal(parties.round(3), parties.expected(3))


def test_fewer_than_the_fewest_shops_end_a_set_up_and_a_round():
    parties = Parties.of(agreement(5, min_shops=4))
    with pytest.raises(TooFewShops):
        parties.set_up(no_keys={"shop-0", "shop-1"})
    with pytest.raises(TooFewShops):
        parties.set_up(no_keys={"shop-0"}, no_deal={"shop-1"})
    parties.set_up()
    with pytest.raises(TooFewShops):
        parties.round(0, dropped={"shop-0", "shop-1"})
    with pytest.raises(TooFewShops):
        parties.round(1, no_signature={"shop-0", "shop-1"})
    with pytest.raises(TooFewShops):
        parties.round(2, no_shares={"shop-0", "shop-1"})


def test_shares_that_come_after_a_vain_try_complete_the_sum():
    parties = Parties.ready()
    parties.upload(0, dropped={"shop-4"})
    signatures = parties.sign()
    parties.reveal(signatures, silent={"shop-2"})
    with pytest.raises(TooFewShops):
        # One too few: nothing may have been subtracted already.
        parties.coordinator.total()
    parties.coordinator.add_shares("shop-2", parties.shops["shop-2"].reveal(signatures))
    assert np.array_equal(parties.coordinator.total(), parties.expected(0, dropped={"shop-4"}))


def test_a_sum_is_taken_once():
    parties = Parties.ready()
    parties.round(0)
    with pytest.raises(ProtocolError):
        parties.coordinator.total()
    with pytest.raises(ProtocolError, match="opened before"):
        parties.coordinator.open_round(0, parties.context(0), SIZE, np.dtype("<u8"))


@pytest.mark.parametrize("what", ["seeds", "keys"])
def test_a_wrong_share_ends_the_round_rather_than_give_a_wrong_sum(what):
    parties = Parties.ready()
    parties.upload(0, dropped={"shop-4"})
    signatures = parties.sign()
    for name in parties.coordinator.survivor_names:
        answer = parties.shops[name].reveal(signatures)
        if name == "shop-1":
            given = Shares.from_bytes(answer, parties.run, parties.parameters)
            # Not in the lowest byte: X25519 ignores the three lowest bits of a key, and the sum would come out right.
            entries = {
                place: share[:9] + bytes([share[9] ^ 1]) + share[10:] for place, share in getattr(given, what).items()
            }
            answer = replace(given, **{what: entries}).to_bytes()
        parties.coordinator.add_shares(name, answer)
    with pytest.raises(ProtocolError, match="wrong"):
        parties.coordinator.total()


def test_every_step_answers_a_repeated_request_with_the_same_bytes():
    parties = Parties.of(agreement(5, min_shops=4))
    shop, coordinator = parties.shops["shop-0"], parties.coordinator
    invite = coordinator.invite(0, 3)
    adverts = {name: one.advertise(invite) for name, one in parties.shops.items()}
    assert shop.advertise(invite) == adverts["shop-0"]
    for name, advert in adverts.items():
        assert coordinator.add_advert(name, advert)
        assert not coordinator.add_advert(name, advert)
    deals = {name: one.deal(coordinator.adverts()) for name, one in parties.shops.items()}
    assert shop.deal(coordinator.adverts()) == deals["shop-0"]
    for name, deal in deals.items():
        assert coordinator.add_deal(name, deal)
        assert not coordinator.add_deal(name, deal)
    assert coordinator.close_setup() == coordinator.close_setup()
    parties.accept()
    parties.upload(0)
    again = parties.masked("shop-0", 0)
    assert np.array_equal(again, parties.masked("shop-0", 0))
    assert not coordinator.add_upload("shop-0", parties.context(0), again)
    survivors = coordinator.survivors()
    assert shop.sign(survivors) == shop.sign(survivors)
    signatures = parties.sign()
    assert not coordinator.add_signature("shop-0", shop.sign(survivors))
    parties.reveal(signatures)
    assert shop.reveal(signatures) == shop.reveal(signatures)
    assert not coordinator.add_shares("shop-0", shop.reveal(signatures))
    assert np.array_equal(coordinator.total(), parties.expected(0))


def test_what_comes_late_is_refused_and_changes_nothing():
    parties = Parties.of(agreement(5, min_shops=3, colluders=0))
    coordinator, late = parties.coordinator, parties.shops["shop-4"]
    invite = coordinator.invite(0, 3)
    for name in parties.parameters.names[:-1]:
        coordinator.add_advert(name, parties.shops[name].advertise(invite))
    adverts = coordinator.adverts()
    with pytest.raises(BadMessage, match="after"):
        coordinator.add_advert("shop-4", late.advertise(invite))
    for name in coordinator.advertised[:-1]:
        coordinator.add_deal(name, parties.shops[name].deal(adverts))
    coordinator.close_setup()
    with pytest.raises(BadMessage, match="late"):
        coordinator.add_deal("shop-3", parties.shops["shop-3"].deal(adverts))
    assert coordinator.participants == ("shop-0", "shop-1", "shop-2")
    with pytest.raises(BadMessage):
        coordinator.add_upload("shop-0", parties.context(0), vector("shop-0", 0))
    assert np.array_equal(parties.round(0), parties.expected(0))
    with pytest.raises(BadMessage, match="not in this set-up"):
        coordinator.add_upload("shop-3", parties.context(0), vector("shop-3", 0))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_plan_is_named_by_a_whole_digest(size):
    parties = Parties.ready()
    parties.accept()
    with pytest.raises(BadMessage, match="digest of a plan"):
        parties.masked("shop-0", 0, context=bytes(size))


def test_signatures_and_shares_that_come_early_or_late_are_refused():
    parties = Parties.of(agreement(7, min_shops=5))
    parties.set_up()
    parties.accept()
    coordinator, late = parties.coordinator, "shop-6"
    with pytest.raises(ProtocolError, match="masked nothing"):
        parties.shops[late].sign(parties.survivors_message(0, range(7)))
    parties.upload(0)
    signature = parties.shops[late].sign(parties.survivors_message(0, range(7)))
    with pytest.raises(BadMessage, match="early"):
        coordinator.add_signature(late, signature)
    signatures = parties.sign(silent={late})
    shares = parties.shops[late].reveal(signatures)
    with pytest.raises(BadMessage, match="late"):
        coordinator.add_signature(late, signature)
    parties.reveal(signatures, silent={late})
    assert np.array_equal(coordinator.total(), parties.expected(0))
    with pytest.raises(BadMessage, match="late"):
        coordinator.add_shares(late, shares)


def test_shares_before_the_signatures_went_out_are_refused():
    parties = Parties.ready()
    parties.upload(0)
    survivors = parties.coordinator.survivors()
    for name, shop in parties.shops.items():
        parties.coordinator.add_signature(name, shop.sign(survivors))
    ahead = copy.deepcopy(parties.coordinator).signatures()
    with pytest.raises(BadMessage, match="early"):
        parties.coordinator.add_shares("shop-0", parties.shops["shop-0"].reveal(ahead))
    parties.reveal(parties.coordinator.signatures())
    assert np.array_equal(parties.coordinator.total(), parties.expected(0))


@pytest.mark.parametrize("num_rounds", [0, 4, 65535])
def test_a_set_up_for_no_rounds_or_more_than_agreed_is_refused(num_rounds):
    parties = Parties.of(agreement(5, min_shops=4, rounds_per_setup=3))
    with pytest.raises(BadMessage, match="from 1 to 3"):
        parties.shops["shop-0"].advertise(Invite(parties.run, Batch(1, 0, num_rounds)).to_bytes())


def test_an_upload_for_another_plan_is_refused():
    parties = Parties.ready()
    parties.accept()
    late = parties.masked("shop-0", 0)
    parties.coordinator.open_round(1, parties.context(1), SIZE, np.dtype("<u8"))
    with pytest.raises(BadMessage, match="another plan"):
        parties.coordinator.add_upload("shop-0", parties.context(0), late)


def test_an_upload_after_the_survivors_were_named_is_refused():
    parties = Parties.ready()
    parties.upload(0, dropped={"shop-4"})
    signatures = parties.sign()
    with pytest.raises(BadMessage, match="late"):
        parties.coordinator.add_upload("shop-4", parties.context(0), parties.masked("shop-4", 0))
    parties.reveal(signatures)
    assert np.array_equal(parties.coordinator.total(), parties.expected(0, dropped={"shop-4"}))


def test_messages_of_one_round_are_refused_in_the_next():
    parties = Parties.ready()
    parties.upload(0)
    survivors = parties.coordinator.survivors()
    signature = parties.shops["shop-0"].sign(survivors)
    signatures = parties.sign()
    shares = parties.shops["shop-0"].reveal(signatures)
    parties.upload(1)
    parties.coordinator.survivors()
    with pytest.raises(BadMessage):
        parties.coordinator.add_signature("shop-0", signature)
    parties.sign()
    with pytest.raises(BadMessage):
        parties.coordinator.add_shares("shop-0", shares)
    with pytest.raises(BadMessage):
        parties.shops["shop-0"].sign(survivors)


def test_a_shop_that_crashes_after_every_step_comes_back():
    parties = Parties.of(agreement(5, min_shops=5, colluders=2))
    parties.advertise()
    crash(parties, "shop-1")
    adverts = parties.coordinator.adverts()
    for name, shop in parties.shops.items():
        parties.coordinator.add_deal(name, shop.deal(adverts))
    crash(parties, "shop-1")
    parties.coordinator.close_setup()
    for index in range(3):
        parties.upload(index)
        crash(parties, "shop-1")
        assert not parties.coordinator.add_upload("shop-1", parties.context(index), parties.masked("shop-1", index))
        signatures = parties.sign()
        crash(parties, "shop-1")
        parties.reveal(signatures)
        answer = parties.shops["shop-1"].reveal(signatures)
        crash(parties, "shop-1")
        assert parties.shops["shop-1"].reveal(signatures) == answer
        assert np.array_equal(parties.coordinator.total(), parties.expected(index))


def test_a_coordinator_comes_back_between_rounds():
    parties = Parties.ready()
    parties.round(0)
    crash_coordinator(parties)
    assert np.array_equal(parties.round(1, dropped={"shop-2"}), parties.expected(1, dropped={"shop-2"}))


def test_a_coordinator_that_forgot_everything_sets_up_again():
    parties = Parties.ready()
    parties.round(0)
    parties.coordinator = CoordinatorSession(parties.parameters, RUN)
    parties.set_up(first_round=1)
    assert np.array_equal(parties.round(1), parties.expected(1))


def test_stored_states_of_another_run_or_cut_ones_are_refused():
    parties = Parties.ready()
    shop, coordinator = parties.shops["shop-0"], parties.coordinator
    for session in (shop, coordinator):
        stored = session.to_bytes()
        for bad in (b"", b"{}", b"[]", b"7", stored[:-20], stored.replace(b'"format": 1', b'"format": 2')):
            with pytest.raises(StoreError):
                session.restore(bad)
    with pytest.raises(StoreError):
        ShopSession(parties.parameters, "shop-0", identity("shop-0"), "another-run").restore(shop.to_bytes())
    with pytest.raises(StoreError):
        CoordinatorSession(parties.parameters, "another-run").restore(coordinator.to_bytes())


def test_the_coordinator_holds_one_vector_whatever_the_number_of_shops():
    parties = Parties.ready(12, min_shops=12, colluders=1)
    size = 200_000
    parties.accept()
    parties.coordinator.open_round(0, parties.context(0), size, np.dtype("<u4"))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for name in parties.coordinator.participants:
        values = np.zeros(size, "<u4")
        parties.shops[name].mask(0, parties.context(0), values)
        parties.coordinator.add_upload(name, parties.context(0), values)
    signatures = parties.sign()
    parties.reveal(signatures)
    del values
    held = tracemalloc.get_traced_memory()[0] - before
    assert np.array_equal(parties.coordinator.total(), np.zeros(size, "<u4"))
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert held < 4 * size
    assert peak < 3 * 4 * size


def test_uploads_of_another_size_or_ring_are_refused():
    parties = Parties.ready()
    parties.coordinator.open_round(0, parties.context(0), SIZE, np.dtype("<u8"))
    for values in (np.zeros(SIZE - 1, "<u8"), np.zeros(SIZE, "<u4"), np.zeros((1, SIZE), "<u8")):
        with pytest.raises(BadMessage, match="size or ring"):
            parties.coordinator.add_upload("shop-0", parties.context(0), values)
    with pytest.raises(BadMessage, match="roster"):
        parties.coordinator.add_upload("shop-9", parties.context(0), np.zeros(SIZE, "<u8"))


def test_a_shop_refuses_to_begin_with_a_foreign_name_or_key():
    parameters = agreement(5, min_shops=4)
    with pytest.raises(ConfigError, match="not on the roster"):
        ShopSession(parameters, "shop-9", identity("shop-9"), RUN)
    with pytest.raises(ConfigError, match="another key"):
        ShopSession(parameters, "shop-0", identity("shop-1"), RUN)


def test_steps_out_of_order_are_refused():
    parties = Parties.of(agreement(5, min_shops=4))
    shop, coordinator = parties.shops["shop-0"], parties.coordinator
    context = plan_digest(b"", 0)
    with pytest.raises(ProtocolError):
        shop.mask(0, context, vector("shop-0", 0))
    for step in (shop.deal, shop.accept, shop.sign, shop.reveal):
        with pytest.raises(ProtocolError):
            step(b"")
    for act in (coordinator.adverts, coordinator.close_setup, coordinator.survivors, coordinator.signatures):
        with pytest.raises(ProtocolError):
            act()
    with pytest.raises(ProtocolError):
        coordinator.open_round(0, context, SIZE, np.dtype("<u8"))
    parties.set_up()
    with pytest.raises(ProtocolError):
        coordinator.open_round(3, context, SIZE, np.dtype("<u8"))
    parties.upload(0)
    with pytest.raises(ProtocolError, match="signed"):
        coordinator.total()
    with pytest.raises(ProtocolError):
        coordinator.signatures()
