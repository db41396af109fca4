"""A shop in a deployed federation: what it agrees to, what it keeps, and what stops it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import stat
from collections.abc import Sequence

import numpy as np
import pytest

from fedrec.errors import BadMessage, BadSignature, ConfigError, LedgerBehind, RoundRefused, StoreError
from fedrec.federation.anchors import Receipt, SignedHead, peer_of
from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.enrolment import Offer
from fedrec.federation.secure_round import ask_all, set_up, unmask
from fedrec.secure_aggregation.keys import IdentityKey
from fedrec.shop.enrol import enrol
from fedrec.shop.member import LEDGER_FILE, MASKS_FOLDER, Member, check_secrets

from .town import SHOPS, Town


def heads_for(town: Town, shop: str) -> bytes:
    """What the coordinator tells a shop about its ledger."""
    receipts = [one.to_bytes().hex() for one in town.book().receipts(shop)]
    return json.dumps({"receipts": receipts, "heads": []}).encode()


def keep_head(town: Town, member: Member) -> None:
    """The coordinator takes a shop's head."""
    answer = json.loads(member.anchor(heads_for(town, member.settings.name)))
    signed = SignedHead.from_json(answer["head"])
    town.book().countersign(signed, IdentityKey.load(member.folder / "identity.key").public)


def run_rounds(town: Town, members: Sequence[Member], offer: Offer) -> Coordinator:
    """All rounds of a run, messages handed over by hand."""
    coordinator = Coordinator(offer.read_model(), offer.public_inputs(), offer.read_terms())
    nodes = {member.settings.name: member.node() for member in members}
    secure = coordinator.secure
    assert secure is not None
    while count := coordinator.rounds_to_set_up() or 0:
        ask_all(set_up(secure, coordinator.index, count), lambda shop, step, data: nodes[shop].step(step, data))
        while not coordinator.rounds_to_set_up() and (plan := coordinator.next_plan()) is not None:
            for shop, node in nodes.items():
                coordinator.receive(shop, node.answer(plan, secure.delivery(shop)).to_bytes())
            ask_all(unmask(secure), lambda shop, step, data: nodes[shop].step(step, data))
            coordinator.close()
    return coordinator


def agreed(town: Town, offer: Offer, shops: Sequence[str] = SHOPS) -> list[Member]:
    members = [town.member(shop) for shop in shops]
    for member in members:
        member.accept(offer.sign(town.key))
        member.anchor(heads_for(town, member.settings.name))
    return members


def test_a_run_goes_from_offer_to_served_model(town):
    offer = town.offer()
    members = agreed(town, offer)
    coordinator = run_rounds(town, members, offer)
    for member in members:
        assert 1.8 < member.ledger().spent().epsilon <= 2.0
        adoption = member.adopt("run-1", coordinator.state)
        assert adoption.num_shoppers == 60
        assert not member.ledger().is_reserved("run-1")
        member.close()


def test_an_offer_signed_by_somebody_else_is_refused_and_nothing_is_kept(town):
    member = town.member()
    with pytest.raises(BadSignature, match="fedrec offer not signed by"):
        member.accept(town.offer().sign(IdentityKey.generate()))
    assert member.run_id == ""
    assert not (member.folder / "offer.json").exists()
    assert not member.has_ledger


def test_the_same_offer_again_changes_nothing_and_other_terms_under_its_name_are_refused(town):
    member, offer = town.member(), town.offer()
    data = offer.sign(town.key)
    member.accept(data)
    kept = (member.folder / "offer.json").read_bytes()
    member.accept(data)
    items = {**offer.items, "keys": offer.items["keys"][1:]}
    with pytest.raises(RoundRefused, match="'run-1' is offered on other terms than this shop agreed to"):
        member.accept(dataclasses.replace(offer, items=items).sign(town.key))
    assert (member.folder / "offer.json").read_bytes() == kept == data
    member.close()


def test_a_shop_that_starts_again_knows_its_run(town):
    member = town.member()
    member.accept(town.offer().sign(town.key))
    member.close()
    again = town.member()
    assert again.run_id == "run-1"
    with pytest.raises(RoundRefused, match="was not compared with the heads"):
        again.node()
    again.anchor(heads_for(town, "ant"))
    assert again.node().name == "ant"
    again.close()


def test_no_round_before_an_offer_and_no_private_round_before_the_anchors(town):
    member = town.member()
    with pytest.raises(RoundRefused, match="no run was agreed to"):
        member.node()
    with pytest.raises(RoundRefused, match="before a run was agreed to"):
        member.anchor(heads_for(town, "ant"))
    with pytest.raises(RoundRefused, match="which this shop did not agree to"):
        member.adopt("run-1", {})
    member.accept(town.offer().sign(town.key))
    with pytest.raises(RoundRefused, match="nothing is released"):
        member.node()
    member.close()


def test_a_restored_backup_is_refused_until_recover_has_charged_what_it_lacks(town):
    member = agreed(town, town.offer())[0]
    member.close()
    ledger = town.folder / "ant" / LEDGER_FILE
    shutil.copy(ledger, town.folder / "backup.sqlite")
    offer = town.offer()
    members = agreed(town, offer)
    run_rounds(town, members, offer)
    keep_head(town, members[0])
    spent = members[0].ledger().spent()
    for one in members:
        one.close()
    shutil.copy(town.folder / "backup.sqlite", ledger)

    restored = town.member()
    with pytest.raises(LedgerBehind):
        restored.anchor(heads_for(town, "ant"))
    with pytest.raises(RoundRefused, match="nothing is released"):
        restored.node()
    assert restored.recover() > 0
    found = restored.ledger().spent()
    assert found.epsilon >= spent.epsilon
    restored.anchor(heads_for(town, "ant"))
    assert restored.node().name == "ant"
    with pytest.raises(ConfigError, match="nothing to recover"):
        restored.recover()
    restored.close()


def test_receipts_that_no_trusted_anchor_signed_are_refused(town):
    offer = town.offer()
    members = agreed(town, offer)
    run_rounds(town, members, offer)
    answer = json.loads(members[0].anchor(heads_for(town, "ant")))
    receipt = Receipt.sign(SignedHead.from_json(answer["head"]), IdentityKey.generate())
    forged = json.dumps({"receipts": [receipt.to_bytes().hex()], "heads": []}).encode()
    with pytest.raises(BadSignature, match="no anchor that this shop trusts"):
        members[0].anchor(forged)
    with pytest.raises(RoundRefused):
        members[0].node()
    for member in members:
        member.close()


def test_a_shop_keeps_its_wards_heads_and_no_others(town):
    offer = town.offer()
    members = {member.settings.name: member for member in agreed(town, offer)}
    run_rounds(town, list(members.values()), offer)
    ward = next(shop for shop in SHOPS if peer_of(shop, SHOPS) == "ant")
    other = next(shop for shop in SHOPS if shop not in (ward, "ant"))
    heads = {shop: json.loads(member.anchor(heads_for(town, shop)))["head"] for shop, member in members.items()}
    answer = json.loads(members["ant"].anchor(json.dumps({"receipts": [], "heads": [heads[ward]]}).encode()))
    receipt = Receipt.from_bytes(bytes.fromhex(answer["receipts"][0]))
    receipt.verify(offer.keys()[ward], offer.keys()["ant"])
    with pytest.raises(BadMessage, match=f"'{other}', whose peer this shop is not"):
        members["ant"].anchor(json.dumps({"receipts": [], "heads": [heads[other]]}).encode())
    for member in members.values():
        member.close()


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"receipts": ["zz"], "heads": []}', b'{"receipts": 1, "heads": 2}']
)
def test_bytes_that_are_no_heads_are_refused(town, data):
    member = town.member()
    member.accept(town.offer().sign(town.key))
    with pytest.raises(BadMessage):
        member.anchor(data)
    member.close()


def test_leaving_frees_the_reservation_and_the_masks_and_a_second_time_does_nothing(town):
    offer = town.offer()
    members = agreed(town, offer)
    run_rounds(town, members[:], offer)
    member = members[0]
    assert list((member.folder / MASKS_FOLDER).glob("*.masking"))
    member.leave()
    assert not list((member.folder / MASKS_FOLDER).glob("*.masking"))
    assert not member.ledger().is_reserved("run-1")
    assert member.run_id == ""
    member.leave()
    for one in members:
        one.close()


def test_a_new_run_takes_the_place_of_the_old_one_whose_masks_and_reservation_go(town):
    offer = town.offer()
    members = agreed(town, offer)
    run_rounds(town, members, offer)
    for member in members:
        member.accept(town.offer("run-2").sign(town.key))
        assert member.run_id == "run-2"
        assert not list((member.folder / MASKS_FOLDER).glob("run-1*.masking"))
        assert not member.ledger().is_reserved("run-1")
        with pytest.raises(RoundRefused, match="nothing is released"):
            member.node()
        member.close()


def test_a_crash_between_two_runs_leaves_neither_the_old_ones_reservation_nor_its_keys(town, monkeypatch):
    offer = town.offer()
    members = agreed(town, offer)
    run_rounds(town, members, offer)
    member, end = members[0], Member._end
    half_written = member.folder / MASKS_FOLDER / "run-1.masking-part"
    half_written.write_bytes(b"keys")
    monkeypatch.setattr(Member, "_end", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        member.accept(town.offer("run-2").sign(town.key))
    monkeypatch.setattr(Member, "_end", end)
    for one in members:
        one.close()
    again = town.member()
    assert again.run_id == "run-2"
    assert not again.ledger().is_reserved("run-1")
    assert not list((again.folder / MASKS_FOLDER).glob("run-1.[!l]*"))
    again.close()


def test_arrays_of_another_shape_are_not_adopted(town):
    offer = town.offer()
    members = agreed(town, offer)
    state = run_rounds(town, members, offer).state
    with pytest.raises(BadMessage, match="are not its model's"):
        members[0].adopt("run-1", {name: np.zeros(2, one.dtype) for name, one in state.items()})
    for member in members:
        member.close()


def test_all_secrets_are_for_the_owner_alone_and_a_folder_where_they_are_not_is_refused(town):
    offer = town.offer()
    members = agreed(town, offer)
    run_rounds(town, members, offer)
    for member in members:
        member.close()
    folder = town.folder / "ant"
    secret = [path for path in folder.rglob("*") if path.suffix in (".key", ".sqlite", ".masking")]
    assert {path.suffix for path in secret} == {".key", ".sqlite", ".masking"}
    check_secrets(folder)
    for path in secret:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        path.chmod(0o640)
        with pytest.raises(StoreError, match=f"{path.name}: can be read by others; chmod 600"):
            check_secrets(folder)
        path.chmod(0o600)


def test_a_folder_that_holds_a_shop_is_not_overwritten(town):
    invitation = (town.folder / "ant" / "invitation.json").read_bytes()
    with pytest.raises(StoreError, match="holds a shop already"):
        enrol(
            town.folder / "ant",
            invitation,
            name="ant",
            public_shoppers=100,
            settings_file=("shop.toml", b""),
            new_node_key=lambda: (b"", b""),
        )
    member = town.member()
    with pytest.raises(StoreError, match="no shop here; make one with fedrec shop enrol"):
        Member(town.coordinator, member.settings, member.data, member._shop_public)
