"""What shops say of their ledgers: nothing of it stops the coordinator, fills its folder or forges its log."""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import replace

import pytest

from fedrec.cli.logs import log_to_stderr
from fedrec.federation.anchors import AnchorBook, Receipt, SignedHead, peer_of
from fedrec.flower.deployment import HEADS_FILE, _Anchors, read_enrolments
from fedrec.flower.exchange import Reply
from fedrec.flower.fleet import Fleet
from fedrec.privacy.ledger_entries import Costs, Head
from fedrec.secure_aggregation.keys import IdentityKey

from .town import SHOPS, Town

HEAD = {"shop": "ant", "sequence": 1, "hash": "00" * 32, "parent": [0, "00" * 32]}
HUGE = {"head": {**HEAD, "spent": {"gdp": 10**4000, "renyi": 1.0}}, "signature": ""}


class Answered(_Anchors):
    """The exchange, with replies in place of what shops would send."""

    answers: dict[str, bytes]

    def ask(self, messages, most_bytes=0):
        return (Reply(shop, data) for shop, data in self.answers.items())


def exchange(town: Town, answers: dict[str, bytes]) -> Answered:
    offer, enrolments = town.offer(), read_enrolments(town.coordinator)
    fleet = Fleet({shop: enrolments[shop].node_key.encode() for shop in SHOPS})
    fleet.grid()
    book = AnchorBook(town.coordinator / HEADS_FILE, town.key)
    run_dir = town.coordinator / "runs" / "run-1"
    found = Answered(fleet, offer.read_terms(), offer, book, run_dir, threading.Event(), 1.0)
    found.answers = answers
    found.answered = found.exchange(set(answers))
    return found


@pytest.mark.parametrize(
    "answer",
    [
        b"[" * 100_000,
        b"7",
        b"null",
        b'{"head": null}',
        b'{"head": null, "receipts": 7}',
        b'{"head": null, "receipts": ["%s"]}' % (b"[" * 100_000).hex().encode(),
        json.dumps({"head": HUGE, "receipts": []}).encode(),
        b'{"head": %s, "receipts": []}' % (b"[" * 900 + b"]" * 900),
    ],
)
def test_an_answer_that_is_none_stops_nobody_but_its_shop(town: Town, answer: bytes):
    found = exchange(town, {"ant": answer, "bee": b'{"head": null, "receipts": []}'})
    assert found.answered == {"bee"}
    assert found.refused == {"ant"}


def kept_by_bee(town: Town, anchor: str | None = None, number: int = 0, *, is_given: bool = True) -> bytes:
    """A receipt of the neighbour for a head of its ward's, which the coordinator gave it; the same several times."""
    ward = next(shop for shop in SHOPS if peer_of(shop, sorted(SHOPS)) == "bee")
    keys = {shop: IdentityKey.load(town.folder / shop / "identity.key") for shop in (ward, "bee")}
    signed = SignedHead.sign(Head(ward, 1, bytes(32), Costs(1.0, 1.0)), keys[ward])
    if is_given:
        town.book().countersign(signed, keys[ward].public)
    receipt = Receipt.sign(signed, keys["bee"])
    receipt = receipt if anchor is None else replace(receipt, anchor=anchor)
    return json.dumps({"head": None, "receipts": [receipt.to_bytes().hex()] * (number + 1)}).encode()


def test_a_shops_words_stay_within_their_line_of_the_log(town: Town, capsys):
    root, level = logging.getLogger(), logging.getLogger("fedrec").level
    handlers = root.handlers[:]
    try:
        log_to_stderr("text")
        exchange(town, {"bee": kept_by_bee(town, "x\n2026-11-21T00:00:00.000+00:00 info    all is well\x1b[2J")})
        logging.getLogger("fedrec.coordinator").warning("forged\n%s\x1b[31m", "line")
    finally:
        root.handlers[:] = handlers
        logging.getLogger("fedrec").setLevel(level)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["warning", "warning"]
    assert all(line.isprintable() for line in lines)


def test_a_neighbour_that_signs_again_and_again_leaves_one_receipt(town: Town, monkeypatch):
    """Ed25519 lets a signer make any number of signatures that all hold; here they hold because nobody looks."""
    monkeypatch.setattr(Receipt, "verify", lambda *_: None)
    first = exchange(town, {"bee": kept_by_bee(town)})
    for number in range(3):
        answer = json.loads(kept_by_bee(town))
        receipt = Receipt.from_bytes(bytes.fromhex(answer["receipts"][0]))
        answer["receipts"] = [replace(receipt, signature=bytes([number]) * 64).to_bytes().hex()]
        exchange(town, {"bee": json.dumps(answer).encode()})
    (path,) = town.coordinator.glob("peer-heads-*.json")
    assert len(json.loads(path.read_bytes())) == 1
    assert first.answered == {"bee"}


@pytest.mark.parametrize(("number", "is_given"), [(1, True), (0, False), (200_000, True)])
def test_receipts_are_taken_for_the_very_heads_that_were_given_and_one_each(
    town: Town, number: int, is_given: bool, caplog
):
    found = exchange(town, {"bee": kept_by_bee(town, number=number, is_given=is_given)})
    assert found.refused == {"bee"}
    assert list(town.coordinator.glob("peer-heads-*.json")) == []
    assert "in answer to 1 heads" in caplog.text or number < 2
