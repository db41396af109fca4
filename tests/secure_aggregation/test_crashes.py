"""A coordinator or a shop that falls over within a set-up or a round: the exact sum later on, or an error."""

from __future__ import annotations

import numpy as np
import pytest

from fedrec.errors import ProtocolError, TooFewShops
from fedrec.secure_aggregation.coordinator_session import CoordinatorSession
from fedrec.secure_aggregation.shop_session import ShopSession

from .parties import RUN, SIZE, Parties, agreement, identity

MOMENTS = ("opened", "some uploads", "uploads", "survivors", "some signatures", "signatures", "some shares", "shares")


def crash_coordinator(parties: Parties) -> None:
    """It comes back with nothing but what it stored."""
    stored = parties.coordinator.to_bytes()
    parties.coordinator = CoordinatorSession(parties.parameters, RUN)
    parties.coordinator.restore(stored)


def open_round(parties: Parties) -> None:
    parties.coordinator.open_round(0, parties.context(0), SIZE, np.dtype("<u8"))


def run_until(parties: Parties, moment: str) -> dict[str, np.ndarray]:
    """Round 0 up to a moment; gives the uploads, which shops keep to send them again."""
    coordinator, until = parties.coordinator, MOMENTS.index(moment)
    parties.accept()
    uploads = {name: parties.masked(name, 0) for name in coordinator.participants}
    open_round(parties)
    for name in coordinator.participants[: (0, 2, 5)[min(until, 2)]]:
        coordinator.add_upload(name, parties.context(0), uploads[name])
    if until >= 3:
        survivors = coordinator.survivors()
        for name in coordinator.survivor_names[: (0, 2, 5)[min(until - 3, 2)]]:
            coordinator.add_signature(name, parties.shops[name].sign(survivors))
    if until >= 5:
        signatures = coordinator.signatures()
        for name in coordinator.survivor_names[: (0, 2, 5)[min(until - 5, 2)]]:
            coordinator.add_shares(name, parties.shops[name].reveal(signatures))
    return uploads


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_coordinator_that_crashes_in_a_round_gets_the_same_sum_from_the_same_uploads(moment):
    parties = Parties.ready()
    uploads = run_until(parties, moment)
    crash_coordinator(parties)
    open_round(parties)
    for name, values in uploads.items():
        assert parties.coordinator.add_upload(name, parties.context(0), values)
    parties.reveal(parties.sign())
    assert np.array_equal(parties.coordinator.total(), parties.expected(0))


@pytest.mark.parametrize("moment", MOMENTS)
def test_after_a_crash_another_set_of_survivors_opens_only_where_nobody_had_signed(moment):
    parties = Parties.ready()
    uploads = run_until(parties, moment)
    crash_coordinator(parties)
    open_round(parties)
    for name in ("shop-0", "shop-1", "shop-2", "shop-3"):
        parties.coordinator.add_upload(name, parties.context(0), uploads[name])
    survivors, num_refused = parties.coordinator.survivors(), 0
    for name in parties.coordinator.survivor_names:
        try:
            parties.coordinator.add_signature(name, parties.shops[name].sign(survivors))
        except ProtocolError:
            num_refused += 1
    assert num_refused == {"some signatures": 2}.get(moment, 0 if MOMENTS.index(moment) < 4 else 4)
    if num_refused:
        with pytest.raises(TooFewShops):
            parties.coordinator.signatures()
    else:
        parties.reveal(parties.coordinator.signatures())
        assert np.array_equal(parties.coordinator.total(), parties.expected(0, dropped={"shop-4"}))


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_round_that_a_crash_cost_leaves_the_next_one_exact(moment):
    parties = Parties.ready()
    run_until(parties, moment)
    crash_coordinator(parties)
    assert np.array_equal(parties.round(1), parties.expected(1))


@pytest.mark.parametrize("moment", ["invited", "keys", "keys sent", "shares", "closed"])
def test_a_coordinator_that_crashes_in_a_set_up_has_none_until_it_is_closed(moment):
    parties = Parties.of(agreement(5, min_shops=4))
    if moment == "invited":
        parties.coordinator.invite(0, 3)
    else:
        parties.advertise()
    if moment not in ("invited", "keys"):
        adverts = parties.coordinator.adverts()
        if moment != "keys sent":
            for name, shop in parties.shops.items():
                parties.coordinator.add_deal(name, shop.deal(adverts))
        if moment == "closed":
            parties.coordinator.close_setup()
    crash_coordinator(parties)
    assert parties.coordinator.covers(0) == (moment == "closed")
    if moment != "closed":
        with pytest.raises(ProtocolError):
            parties.round(0)
        parties.set_up()
    assert np.array_equal(parties.round(0), parties.expected(0))


@pytest.mark.parametrize("after", ["keys", "deal", "delivery", "upload", "signature"])
def test_a_shop_that_lost_its_state_gives_nothing_and_the_others_sum_is_exact(after):
    """It comes back empty: with its state its secrets are gone, and it must not guess."""
    parties = Parties.of(agreement(5, min_shops=4))
    empty = ShopSession(parties.parameters, "shop-4", identity("shop-4"), RUN)
    parties.set_up(no_deal={"shop-4"} if after == "keys" else ())
    message: bytes
    if after == "keys":
        message, step, dropped = parties.coordinator.adverts(), empty.deal, set()
    elif after == "deal":
        message, step, dropped = parties.coordinator.delivery("shop-4"), empty.accept, {"shop-4"}
    elif after == "delivery":
        with pytest.raises(ProtocolError):
            empty.mask(0, parties.context(0), np.zeros(SIZE, "<u8"))
        message, step, dropped = b"", empty.sign, {"shop-4"}
    else:
        message, step, dropped = b"", empty.sign, set()
    parties.upload(0, dropped=dropped)
    if after in ("delivery", "upload"):
        message = parties.coordinator.survivors()
    signed = parties.sign(silent={"shop-4"} if after != "signature" else ())
    if after == "signature":
        message, step = signed, empty.reveal
    with pytest.raises(ProtocolError):
        step(message)
    parties.reveal(signed, silent={"shop-4"})
    assert np.array_equal(parties.coordinator.total(), parties.expected(0, dropped=dropped))
