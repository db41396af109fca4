"""A coordinator that means harm, towards a shop's app: what fails for some events and not for others stays inside."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from fedrec.errors import BadMessage, FedrecError, MessageTooLarge, RoundRefused, StoreError
from fedrec.federation.anchors import Receipt, SignedHead
from fedrec.federation.enrolment import Offer
from fedrec.federation.plan import RoundPlan, items_digest, model_settings
from fedrec.flower import _compat
from fedrec.flower.client_app import make_member_app
from fedrec.flower.exchange import MODEL_MESSAGE, bytes_from_record, model_to_record
from fedrec.models.co_occurrence import pack_lower
from fedrec.models.recommender import Layout, RoundKind, RoundSpec, State
from fedrec.privacy.ledger_entries import Costs, Head
from fedrec.secure_aggregation.keys import IdentityKey
from fedrec.shop.adoption import LOCAL, current_version
from fedrec.shop.member import MODELS_FOLDER, Member

from .town import NUM_ITEMS, Town


def handed(member: Member, run_id: str, state: State) -> Message:
    """The shop's reply to a finished model."""
    _compat.set_identity(1)
    message = Message(model_to_record(run_id, state), 5, MODEL_MESSAGE, group_id="0")
    _compat.set_message_id(message, "m0")
    return make_member_app(member)(message, Context(1, 5, {"shop": "ant"}, RecordDict(), {}))


def poisons() -> dict[str, State]:
    covered, popularity = np.arange(NUM_ITEMS), np.ones(NUM_ITEMS)
    size = NUM_ITEMS * (NUM_ITEMS + 1) // 2
    state = {"covered": covered, "popularity": popularity, "co_occurrence": np.zeros(size)}
    return {
        "not positive definite": {**state, "co_occurrence": np.full(size, -1e6)},
        "huge": {name: one * 1e300 if one.dtype.kind == "f" else one for name, one in state.items()},
        "wrong positions": {**state, "covered": covered + 1_000_000},
        "negative positions": {**state, "covered": covered - NUM_ITEMS},
        "not finite": {**state, "popularity": popularity * np.nan},
        "another shape": {**state, "co_occurrence": np.zeros((3, 5, 0))},
        "other arrays": {"x" * 1000: np.zeros(3)},
        "no arrays": {},
    }


@pytest.mark.parametrize("poison", poisons())
def test_whatever_becomes_of_a_model_the_answer_is_the_same(town: Town, poison: str):
    """Arrays can be made so that solving them with the shop's own sums fails exactly if a shopper bought an item."""
    member = town.member()
    member.accept(town.offer().sign(town.key))
    reply = handed(member, "run-1", poisons()[poison])
    assert not reply.has_error()
    assert bytes_from_record(reply.content) == b""
    assert current_version(member.folder / MODELS_FOLDER) == LOCAL
    assert not (member.folder / MODELS_FOLDER / "run-1").exists()
    member.close()


def test_a_model_of_a_run_that_was_not_agreed_to_is_refused(town: Town):
    member = town.member()
    assert handed(member, "run-1", {}).error.reason == "RoundRefused"


def changed(offer: Offer, **release: object) -> Offer:
    schedule = [{**one, **release} for one in offer.terms["schedule"]]
    return dataclasses.replace(offer, terms={**offer.terms, "schedule": schedule})


@pytest.mark.parametrize(
    "values",
    [
        {"clip_norm": -1.0},
        {"clip_norm": 0.0},
        {"noise_multiplier": -9.0},
        {"noise_multiplier": 0},
        {"sampling_rate": 1.5},
        {"sampling_rate": -0.5},
        {"local_steps": -1},
        {"local_steps": 1.001},
        {"local_steps": True},
    ],
)
def test_a_schedule_of_numbers_that_no_accountant_counts_is_refused(town: Town, values: dict[str, object]):
    member = town.member()
    with pytest.raises(FedrecError):
        member.accept(changed(town.offer(), **values).sign(town.key))
    assert member.run_id == ""


@pytest.mark.parametrize("run_id", ["local", "LOCAL", "current.json", "x.JSON", "..", "../x", "a/b", ".x", "x\n", ""])
def test_a_run_cannot_take_the_name_of_a_shops_own_file(town: Town, run_id: str):
    """A folder in the place of ``current.json`` would stop the shop from serving anything."""
    offer = town.offer()
    with pytest.raises(BadMessage, match="run id"):
        town.member().accept(dataclasses.replace(offer, terms={**offer.terms, "run_id": run_id}).sign(town.key))


def test_steps_inside_the_shop_count_as_noisy_sums(town: Town):
    """Else a plan of one round keeps the shop computing for ever."""
    town.change("ant", require_masks=False, min_shops=1)
    town.change(None, secure=False, mode="local")
    member, offer = town.member(), town.offer()
    asked = changed(offer, local_steps=10**9)
    asked = dataclasses.replace(asked, terms={**asked.terms, "shop_shoppers": [100] * 4})
    with pytest.raises(RoundRefused, match=r"2000000000 noisy sums are asked; policy.max_rounds is 200"):
        member.accept(asked.sign(town.key))


def test_a_document_of_brackets_is_none(town: Town):
    with pytest.raises(BadMessage):
        town.member().accept(b"[" * 100_000)


def test_models_that_are_not_taken_over_do_not_fill_the_disk(town: Town):
    member = town.member()
    draws = np.random.default_rng(0).normal(size=(NUM_ITEMS, NUM_ITEMS))
    state = {"covered": np.arange(NUM_ITEMS), "popularity": np.ones(NUM_ITEMS)}
    state["co_occurrence"] = pack_lower(1e6 * draws @ draws.T)
    noise = {"released": np.arange(NUM_ITEMS), "popularity_noise": np.ones(1), "ridge": np.ones(1)}
    for run_id in ("run-1", "run-2", "run-3"):
        member.accept(town.offer(run_id).sign(town.key))
        assert not member.adopt(run_id, {**state, **noise, "content_weight": np.zeros(1)}).is_adopted
    assert sorted(path.name for path in (member.folder / MODELS_FOLDER).iterdir()) == ["current.json", "run-3"]
    member.close()


def test_a_run_is_agreed_to_once_whatever_is_offered_in_between(town: Town):
    """Else its masks would begin anew, and other terms under its name would go unseen."""
    town.change("ant", allow_research=True)
    town.change(None, epsilon=2.0)
    member, first = town.member(), town.offer("run-1").sign(town.key)
    member.accept(first)
    member.accept(first)
    member.accept(town.offer("run-2").sign(town.key))
    with pytest.raises(RoundRefused, match="after this shop left it for another"):
        member.accept(first)
    town.change(None, epsilon=1.0)
    for run_id in ("run-1", "run-2"):
        with pytest.raises(RoundRefused, match="on other terms"):
            member.accept(town.offer(run_id).sign(town.key))
    assert town.member().run_id == "run-2"
    member.close()


def test_an_acceptance_that_was_cut_short_is_made_good(town: Town, monkeypatch):
    from fedrec.shop import member as module

    member, offers = town.member(), [town.offer(run_id).sign(town.key) for run_id in ("run-1", "run-2")]
    member.accept(offers[0])
    write = module.write_atomically

    def full(path: Path, data: bytes) -> None:
        if path.name == module.OFFER_FILE:
            raise StoreError("the disk is full")
        write(path, data)

    monkeypatch.setattr(module, "write_atomically", full)
    with pytest.raises(StoreError):
        member.accept(offers[1])
    monkeypatch.undo()
    again = town.member()
    assert again.run_id == "run-1"
    again.accept(offers[1])
    assert again.run_id == "run-2"


def test_a_plan_of_a_huge_sum_is_refused_before_anything_is_made(town: Town):
    member = town.member()
    member.accept(town.offer().sign(town.key))
    spec = RoundSpec(RoundKind.STATISTICS, "popularity", Layout((("popularity", (10**11,)),)), {})
    offer = town.offer()
    model = offer.read_model()
    plan = RoundPlan(
        0, spec, model.name, model_settings(model), items_digest(offer.public_inputs()), offer.read_terms(), "ab" * 32
    )
    member.anchor(b'{"receipts": [], "heads": []}')
    with pytest.raises(MessageTooLarge, match="100,000,000,000 values"):
        member.node().answer(plan)
    member.close()


@pytest.mark.parametrize("asked", [b"[" * 100_000, b"7", b'{"receipts": 7, "heads": []}', b"\xff"])
def test_ledger_heads_that_are_none_are_a_bad_message(town: Town, asked: bytes):
    member = town.member()
    member.accept(town.offer().sign(town.key))
    with pytest.raises(BadMessage):
        member.anchor(asked)
    member.close()


def test_the_same_head_is_looked_at_once(town: Town):
    """Each costs two signatures to check, or one to make: a message of many would keep the shop busy for hours."""
    member = town.member()
    member.accept(town.offer().sign(town.key))
    key = IdentityKey.load(member.folder / "identity.key")
    receipt = Receipt.sign(SignedHead.sign(Head("ant", 1, bytes(32), Costs(1.0, 1.0)), key), town.key)
    asked = {"receipts": [receipt.to_bytes().hex()] * 2, "heads": []}
    with pytest.raises(BadMessage, match="twice"):
        member.anchor(json.dumps(asked).encode())
    member.close()
