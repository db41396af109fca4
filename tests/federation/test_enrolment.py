"""Invitations, enrolments and offers: signed, exact, and refused in plain words when they are not."""

from __future__ import annotations

import dataclasses
import datetime
import json

import pytest

from fedrec.errors import BadMessage, BadSignature, ConfigError
from fedrec.federation.enrolment import (
    Enrolment,
    Invitation,
    Offer,
    roster_fingerprint,
    sign_document,
    verify_document,
)
from fedrec.federation.terms import Terms
from fedrec.secure_aggregation.keys import IdentityKey
from fedrec.secure_aggregation.parameters import Parameters

COORDINATOR, NORTH, SOUTH, STRANGER = (IdentityKey.from_bytes(bytes([number]) * 32) for number in range(4))
NOW = datetime.datetime(2026, 5, 1, tzinfo=datetime.UTC)
KEYS = {"north": NORTH.public, "south": SOUTH.public}
INVITATION = Invitation("books", "c.example:7443", "PEM", COORDINATOR.public.raw.hex(), "2026-05-02T00:00:00+00:00")
ENROLMENT = Enrolment(COORDINATOR.public.raw.hex(), "north", NORTH.public.raw.hex(), "PEM", 2000)


def offer(**changes: object) -> Offer:
    terms = json.loads(json.dumps(Terms(tuple(KEYS), run_id="r-1").to_json()))
    roster = {name: key.raw.hex() for name, key in KEYS.items()}
    items = {"keys": ["a", "b"], "titles": ["A", "B"], "categories": ["x", ""]}
    plain = Offer("fedrec.models.popularity:Popularity", {}, terms, roster, items)
    return dataclasses.replace(plain, **changes)


def test_what_was_signed_is_read_again():
    assert Invitation.read(INVITATION.sign(COORDINATOR), now=NOW) == INVITATION
    assert Enrolment.read(ENROLMENT.sign(NORTH)) == ENROLMENT
    found = Offer.read(offer().sign(COORDINATOR), COORDINATOR.public)
    assert found == offer()
    assert found.read_terms() == Terms(tuple(KEYS), run_id="r-1")
    assert found.keys() == KEYS
    assert found.public_inputs().items.tolist() == ["a", "b"]
    assert found.public_inputs().content is not None
    assert offer(items={"keys": ["a"], "titles": [], "categories": []}).public_inputs().content is None
    assert found.read_model().name == "popularity"


@pytest.mark.parametrize("field", ["federation", "address"])
@pytest.mark.parametrize(
    "text", ["b\x1b[8m", "b\ncompare with the coordinator by telephone: 0000", "", "b c", "b\u202e"]
)
def test_an_invitation_cannot_hide_the_fingerprint_that_is_compared(field, text):
    """Whoever changes the file on its way signs it himself; his words stand beside his own fingerprint."""
    invitation = dataclasses.replace(INVITATION, **{field: text})
    with pytest.raises(BadMessage, match="federation or address"):
        Invitation.read(invitation.sign(COORDINATOR), now=NOW)


def test_a_document_says_no_more_and_no_less_than_it_should():
    body = json.loads(ENROLMENT.sign(NORTH))
    assert set(body) == {"kind", "format", "signature", *(field.name for field in dataclasses.fields(Enrolment))}


@pytest.mark.parametrize("field", ["federation", "shop", "identity", "node_key", "public_shoppers", "signature"])
def test_any_changed_field_of_an_enrolment_is_noticed(field):
    body = json.loads(ENROLMENT.sign(NORTH))
    changed = {"public_shoppers": 3000, "identity": SOUTH.public.raw.hex(), "signature": "00" * 64}
    body[field] = changed.get(field, f"{body[field]}x")
    with pytest.raises(BadSignature, match="not signed by"):
        Enrolment.read(json.dumps(body).encode())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a fedrec enrolment"),
        (b"[]", "not a fedrec enrolment"),
        (b"\xff", "not a fedrec enrolment"),
        (b'{"kind": "fedrec enrolment"}', "not a fedrec enrolment"),
        (INVITATION.sign(COORDINATOR), "fedrec invitation of format 1 in place of a fedrec enrolment"),
        (sign_document("enrolment", {"shop": "north"}, NORTH), "missing or unknown fields"),
        (
            sign_document("enrolment", {**dataclasses.asdict(ENROLMENT), "admin": True}, NORTH),
            r"missing or unknown fields: \['admin'\]",
        ),
        (dataclasses.replace(ENROLMENT, shop=1).sign(NORTH), "whose shop is no text"),
        (dataclasses.replace(ENROLMENT, shop="../north").sign(NORTH), "letters, digits"),
        (dataclasses.replace(ENROLMENT, shop="").sign(NORTH), "letters, digits"),
        (dataclasses.replace(ENROLMENT, public_shoppers=0).sign(NORTH), "at least 1"),
        (dataclasses.replace(ENROLMENT, public_shoppers=True).sign(NORTH), "at least 1"),
        (dataclasses.replace(ENROLMENT, identity="zz").sign(NORTH), "a public key that is none"),
    ],
)
def test_what_is_no_enrolment_is_refused_in_words(data, words):
    with pytest.raises(BadMessage, match=words):
        Enrolment.read(data)


def test_an_invitation_ends_and_names_its_key():
    data = INVITATION.sign(COORDINATOR)
    with pytest.raises(BadMessage, match="expired on 2026-05-02"):
        Invitation.read(data, now=NOW + datetime.timedelta(days=2))
    with pytest.raises(BadSignature):
        Invitation.read(INVITATION.sign(STRANGER), now=NOW)
    for expires in ("tomorrow", "2026-05-02T00:00:00"):
        with pytest.raises(BadMessage, match="a time"):
            Invitation.read(dataclasses.replace(INVITATION, expires=expires).sign(COORDINATOR), now=NOW)


def test_an_offer_of_somebody_else_is_refused():
    with pytest.raises(BadSignature, match=COORDINATOR.public.fingerprint()):
        Offer.read(offer().sign(STRANGER), COORDINATOR.public)
    with pytest.raises(BadSignature):
        verify_document(offer().sign(COORDINATOR).replace(b'"A"', b'"C"'), COORDINATOR.public)


def secure_terms(keys: list[IdentityKey]) -> dict[str, object]:
    secure = Parameters.of(tuple(KEYS), [key.public for key in keys], min_shops=2, colluders=0)
    return json.loads(json.dumps(Terms(tuple(KEYS), 2, "r-1", secure=secure).to_json()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"roster": {"north": NORTH.public.raw.hex()}}, "roster and terms name different shops"),
        ({"roster": {"north": "00", "south": "11"}}, "a public key has 32 bytes"),
        ({"terms": secure_terms([NORTH, STRANGER])}, "secure aggregation name different keys"),
        ({"terms": {}}, "not an offer"),
        ({"terms": 5}, "not an offer"),
        ({"items": {"keys": []}}, "empty or of different lengths"),
        ({"items": {"keys": ["a", "b"], "titles": ["A"], "categories": []}}, "empty or of different lengths"),
        ({"items": {}}, "not an offer"),
        *(
            ({"terms": {**Terms(tuple(KEYS)).to_json(), "run_id": run_id}}, "run id")
            for run_id in ("../../../etc/x", "", "a/b", "x" * 101)
        ),
    ],
)
def test_an_offer_that_contradicts_itself_is_refused_in_words(changes, words):
    with pytest.raises(BadMessage, match=words):
        Offer.read(offer(**changes).sign(COORDINATOR), COORDINATOR.public)


def test_terms_that_promise_the_impossible_are_refused():
    terms = {**Terms(tuple(KEYS), run_id="r").to_json(), "min_shops": 9}
    with pytest.raises(ConfigError, match="min_shops = 9"):
        Offer.read(offer(terms=terms).sign(COORDINATOR), COORDINATOR.public)


def test_the_rosters_fingerprint_changes_with_a_name_and_with_a_key_and_not_with_the_order():
    found = roster_fingerprint(KEYS)
    assert len(found) == 39
    assert roster_fingerprint(dict(reversed(KEYS.items()))) == found
    others = [{**KEYS, "south": STRANGER.public}, {"north": NORTH.public, "west": SOUTH.public}]
    others.append({"north": NORTH.public})
    assert len({found, *map(roster_fingerprint, others)}) == 4
