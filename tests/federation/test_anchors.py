"""Heads kept by others: what they accept, what they sign, and what a shop believes."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime

import pytest

from fedrec.errors import BadMessage, BadSignature, LedgerBehind, StoreError
from fedrec.federation.anchors import AnchorBook, Anchors, Receipt, SignedHead, check_receipts, heads_of, peer_of
from fedrec.privacy.ledger import Budget, Ledger
from fedrec.privacy.ledger_entries import START, Costs, Head
from fedrec.privacy.mechanisms import PlannedRelease
from fedrec.privacy.spec import Mode, PrivacySpec
from fedrec.secure_aggregation.keys import IdentityKey

SHOP, COORDINATOR, PEER, STRANGER = (IdentityKey.from_bytes(bytes([number]) * 32) for number in range(4))
ANCHORS = (COORDINATOR.public, PEER.public)
SPEC = PrivacySpec(3.0, 1e-5, Mode.LOCAL, public_shoppers=100, max_shoppers=1000, min_shops=3)
RELEASE = PlannedRelease("gram", 1.0, 16.0)


def head(sequence, parent=(0, START), name="a", shop="north"):
    return Head(shop, sequence, name.encode() * 32, Costs(sequence / 256, sequence / 64), parent)


def signed(*args, **kwargs):
    return SignedHead.sign(head(*args, **kwargs), SHOP)


def spend(ledger, rounds):
    """Charge rounds of a run, one after the other; the head after each."""
    ledger.reserve("r", SPEC, (RELEASE,) * 9)
    return [ledger.charge("r", index, b"p" * 32, RELEASE, f"{index}".encode()) for index in rounds]


def new_ledger(shop="north"):
    clock = datetime(2026, 1, 1, tzinfo=UTC)
    return Ledger.open("sqlite://", shop, budget=Budget(3.0, 1e-5), clock=lambda: clock)


def test_heads_of_one_ledger_are_kept_in_order_and_again_at_no_change():
    anchors, heads = Anchors(), spend(new_ledger(), range(3))
    for one in heads:
        assert anchors.keep(SignedHead.sign(one, SHOP))
        assert not anchors.keep(SignedHead.sign(one, SHOP))
    assert not anchors.keep(SignedHead.sign(heads[0], SHOP))  # a late re-send
    assert [one.head for one in anchors.signed_heads("north")] == heads
    assert anchors.last("north").head == heads[-1]
    assert anchors.last("south") is None


def test_heads_whose_forerunners_were_lost_on_the_way_are_kept():
    anchors, heads = Anchors(), spend(new_ledger(), range(4))
    for one in (heads[0], heads[3]):
        assert anchors.keep(SignedHead.sign(one, SHOP))


@pytest.mark.parametrize(
    "second",
    [
        signed(4, (3, b"p" * 32), name="b"),
        signed(3, (2, b"p" * 32), name="b"),
        signed(5, (3, b"p" * 32), name="b"),
        signed(5, (4, b"x" * 32), name="b"),
    ],
    ids=["another at the same place", "an earlier one", "one that left before", "one after another"],
)
def test_a_head_that_does_not_follow_is_refused(second):
    anchors = Anchors([signed(4, (3, b"p" * 32))])
    with pytest.raises(LedgerBehind, match="restored backup or a cloned machine"):
        anchors.keep(second)
    assert anchors.last("north").head.hash == b"a" * 32


def test_the_head_of_a_recovery_follows_what_was_lost():
    whole, restored = new_ledger(), new_ledger()
    lost = spend(whole, range(3))
    anchors = Anchors(SignedHead.sign(one, SHOP) for one in lost)
    with pytest.raises(LedgerBehind):
        anchors.keep(SignedHead.sign(spend(restored, range(1))[0], SHOP))
    assert anchors.keep(SignedHead.sign(restored.recover(lost), SHOP))


def test_a_head_before_the_first_release_is_no_head_to_keep():
    with pytest.raises(BadMessage):
        Anchors().keep(SignedHead.sign(new_ledger().head(), SHOP))


def test_heads_survive_their_bytes_and_nothing_else_is_a_head():
    one = spend(new_ledger(), range(2))[1]
    assert Head.from_bytes(one.to_bytes()) == one
    fields = json.loads(one.to_bytes())
    broken = [
        {**fields, "more": 1},
        {**fields, "sequence": -1},
        {**fields, "sequence": 1.5},
        {**fields, "sequence": True},
        {**fields, "hash": "00"},
        {**fields, "spent": {"gdp": -1, "renyi": 0}},
        {**fields, "parent": [1]},
        {**fields, "shop": 7},
    ]
    for wrong in broken:
        with pytest.raises(ValueError):
            Head.from_bytes(json.dumps(wrong, sort_keys=True, separators=(",", ":")).encode())
    for data in (b"", b"{}", b"[]", b"7", one.to_bytes() + b" "):
        with pytest.raises(ValueError):
            Head.from_bytes(data)


def test_an_anchor_countersigns_what_the_shop_signed_and_only_that(tmp_path):
    book = AnchorBook(tmp_path / "heads.json", COORDINATOR)
    receipt = book.countersign(signed(4), SHOP.public)
    receipt.verify(SHOP.public, COORDINATOR.public)
    assert Receipt.from_bytes(receipt.to_bytes()) == receipt
    forged = dataclasses.replace(signed(5, (4, b"a" * 32)), signature=STRANGER.sign(b"x"))
    with pytest.raises(BadSignature):
        book.countersign(forged, SHOP.public)
    assert len(book.receipts("north")) == 1


def test_an_anchor_remembers_over_restarts(tmp_path):
    heads = spend(new_ledger(), range(3))
    book = AnchorBook(tmp_path / "heads.json", COORDINATOR)
    for one in heads:
        book.countersign(SignedHead.sign(one, SHOP), SHOP.public)
    again = AnchorBook(tmp_path / "heads.json", COORDINATOR)
    assert [receipt.signed.head for receipt in again.receipts("north")] == heads
    with pytest.raises(LedgerBehind):
        again.countersign(signed(3, name="z"), SHOP.public)
    assert SHOP.public.raw not in (tmp_path / "heads.json").read_bytes()


def test_no_receipt_is_given_for_a_head_that_is_not_on_disk(tmp_path):
    book = AnchorBook(tmp_path / "gone" / "heads.json", COORDINATOR)
    with pytest.raises(StoreError):
        book.countersign(signed(4), SHOP.public)
    assert book.receipts("north") == ()


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format":2,"heads":[]}', b'{"format":1,"heads":[{}]}'], ids=repr)
def test_a_damaged_or_newer_file_of_heads_is_refused(tmp_path, content):
    (tmp_path / "heads.json").write_bytes(content)
    with pytest.raises(StoreError):
        AnchorBook(tmp_path / "heads.json", COORDINATOR)


def test_a_shop_believes_its_anchors_and_keeps_their_latest_word():
    ledger = new_ledger()
    heads = spend(ledger, range(3))
    receipts = [Receipt.sign(SignedHead.sign(one, SHOP), key) for one in heads for key in (PEER, COORDINATOR)]
    assert not ledger.spent().rollback_detectable
    assert set(check_receipts(ledger, receipts, SHOP.public, ANCHORS)) == set(heads)
    assert ledger.spent().rollback_detectable
    kept = [Receipt.from_bytes(data) for data in ledger.receipts()]
    assert {receipt.anchor for receipt in kept} == {key.fingerprint() for key in ANCHORS}
    assert [receipt.signed.head for receipt in kept] == [heads[-1]] * 2


def test_a_shop_that_is_behind_stops_and_recovers_from_its_receipts():
    whole, restored = new_ledger(), new_ledger()
    receipts = [Receipt.sign(SignedHead.sign(one, SHOP), COORDINATOR) for one in spend(whole, range(3))]
    with pytest.raises(LedgerBehind):
        check_receipts(restored, receipts, SHOP.public, ANCHORS)
    recovered = restored.recover(heads_of(receipts, SHOP.public, ANCHORS))
    assert recovered.spent == whole.head().spent
    check_receipts(restored, receipts, SHOP.public, ANCHORS)


def test_no_anchor_can_make_a_head_up_or_speak_for_another():
    ledger = new_ledger()
    made_up = SignedHead(head(1000), COORDINATOR.sign(head(1000).to_bytes()))
    by_stranger = Receipt.sign(signed(3), STRANGER)
    renamed = dataclasses.replace(by_stranger, anchor=COORDINATOR.public.fingerprint())
    moved = dataclasses.replace(Receipt.sign(signed(3), PEER), signed=signed(4))
    for receipt in (Receipt.sign(made_up, COORDINATOR), by_stranger, renamed, moved):
        with pytest.raises(BadSignature):
            check_receipts(ledger, [receipt], SHOP.public, ANCHORS)
    ledger.reserve("r", SPEC, (RELEASE,))  # and the ledger is not stopped by it


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"format":1}'], ids=repr)
def test_bytes_that_are_no_receipt_are_refused(data):
    with pytest.raises(BadMessage):
        Receipt.from_bytes(data)


def test_every_shop_has_a_peer_that_is_another_shop():
    roster = ("north", "south", "west")
    assert [peer_of(shop, roster) for shop in roster] == ["south", "west", "north"]
    assert peer_of("north", ("north",)) is None
    with pytest.raises(BadMessage):
        peer_of("east", roster)
