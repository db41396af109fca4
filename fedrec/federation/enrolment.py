"""How shops and a coordinator get to know each other: signed files that people hand over, and what a run offers.

    coordinator --invitation--> shop --enrolment--> coordinator       once, out of band
    coordinator --offer (model, promise, items, roster)--> shop       at the start of each run, over the wire

A file is canonical JSON with a signature over everything else in it. Who signed is known by the key's fingerprint,
which two people compare by telephone; from then on the key is pinned.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np

from fedrec.errors import BadMessage, BadSignature
from fedrec.federation.plan import canonical_json
from fedrec.federation.terms import Terms
from fedrec.models import load_model
from fedrec.models.content import content_features
from fedrec.models.recommender import PublicInputs, Recommender
from fedrec.secure_aggregation.keys import IdentityKey, PublicKey

FORMAT = 1
SHOP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
RUN_ID = re.compile(r"(?!local$|.*\.json$)[a-z0-9][a-z0-9._-]{0,99}", re.IGNORECASE)
"""A shop names folders after a run, beside files of its own; ``local`` is its own model."""

_ADDRESS = re.compile(r"[A-Za-z0-9.:\[\]-]{1,300}")
"""What a terminal shows beside the fingerprint to compare must not be able to hide it."""

_MOST_ITEMS = 10_000_000


@dataclass(frozen=True)
class Invitation:
    """What a shop needs to reach a coordinator and to know that it is the right one.

    Attributes:
        federation: its name.
        address: host:port.
        authority: PEM certificate; the coordinator's certificate is accepted under this authority alone.
        coordinator: hexadecimal public key that signs everything the coordinator offers.
        expires: ISO time with zone; later the invitation is refused.
    """

    federation: str
    address: str
    authority: str
    coordinator: str
    expires: str

    @property
    def key(self) -> PublicKey:
        """The coordinator's."""
        return _public(self.coordinator)

    def sign(self, key: IdentityKey) -> bytes:
        """The file."""
        return sign_document("invitation", asdict(self), key)

    @classmethod
    def read(cls, data: bytes, *, now: datetime.datetime) -> Self:
        """An invitation from its file.

        Raises:
            BadMessage: no invitation, or an expired one.
            BadSignature: changed since it was signed.
        """
        found = cls(**_fields("invitation", data, cls))
        if not SHOP_NAME.fullmatch(found.federation) or not _ADDRESS.fullmatch(found.address):
            raise BadMessage(
                "an invitation whose federation or address holds other signs than a name's or an address's"
            )
        verify_document(data, found.key)
        if _time(found.expires) < now:
            raise BadMessage(f"the invitation expired on {found.expires[:10]}: ask the coordinator for a new one")
        return found


@dataclass(frozen=True)
class Enrolment:
    """A shop's answer: its keys, and what it declares.

    Attributes:
        federation: the coordinator's public key, hexadecimal: whose invitation it answers.
        shop: its name on the roster.
        identity: hexadecimal public key that signs the shop's part of secure aggregation and its ledger's heads.
        node_key: PEM public key that signs its requests.
        public_shoppers: declared number of shoppers, one significant digit.
    """

    federation: str
    shop: str
    identity: str
    node_key: str
    public_shoppers: int

    @property
    def key(self) -> PublicKey:
        """The shop's identity."""
        return _public(self.identity)

    def sign(self, key: IdentityKey) -> bytes:
        """The file."""
        return sign_document("enrolment", asdict(self), key)

    @classmethod
    def read(cls, data: bytes) -> Self:
        """An enrolment from its file.

        Raises:
            BadMessage: no enrolment, or values out of range.
            BadSignature: not signed with the identity that it names.
        """
        found = cls(**_fields("enrolment", data, cls))
        if not SHOP_NAME.fullmatch(found.shop):
            raise BadMessage(f"shop name {found.shop!r}: letters, digits, '.', '_' and '-', at most 60")
        if type(found.public_shoppers) is not int or found.public_shoppers < 1:
            raise BadMessage(f"public_shoppers = {found.public_shoppers!r}: declare a whole number of at least 1")
        verify_document(data, found.key)
        return found


def roster_fingerprint(keys: Mapping[str, PublicKey]) -> str:
    """Of all shops with their keys, for people to compare: groups of four hexadecimal digits, 128 bits."""
    entries = sorted((name, key.raw.hex()) for name, key in keys.items())
    digits = hashlib.sha256(b"fedrec roster\0" + canonical_json(entries)).hexdigest()[:32]
    return "-".join(digits[start : start + 4] for start in range(0, 32, 4))


@dataclass(frozen=True)
class Offer:
    """What a run asks of its shops: everything that a shop agrees to before its first round.

    Attributes:
        model: ``package.module:Class``, which the shop has installed; code never travels.
        settings: its own fields.
        terms: as `Terms.to_json`.
        roster: name -> hexadecimal identity.
        items: one list each of keys, titles and categories; the last two are empty without item text.
    """

    model: str
    settings: Mapping[str, Any]
    terms: Mapping[str, Any]
    roster: Mapping[str, str]
    items: Mapping[str, Sequence[str]]

    def sign(self, key: IdentityKey) -> bytes:
        """The message."""
        return sign_document("offer", asdict(self), key)

    @classmethod
    def read(cls, data: bytes, coordinator: PublicKey) -> Self:
        """An offer from its bytes.

        Raises:
            BadMessage: no offer, or one that contradicts itself.
            BadSignature: another than the pinned coordinator signed it.
        """
        found = cls(**_fields("offer", data, cls))
        verify_document(data, coordinator)
        try:
            terms = Terms.from_json(found.terms)
            if not RUN_ID.fullmatch(terms.run_id):
                raise BadMessage(
                    f"run id {terms.run_id[:40]!r}: letters, digits, '.', '_' and '-', at most 100, no file's name"
                )
            if sorted(found.roster) != sorted(terms.roster):
                raise BadMessage("an offer whose roster and terms name different shops")
            keys = {name: _public(value) for name, value in found.roster.items()}
            if terms.secure is not None and any(
                terms.secure.key_at(place) != keys[name] for place, name in enumerate(terms.secure.names)
            ):
                raise BadMessage("an offer whose roster and secure aggregation name different keys")
            if not 0 < len(found.items["keys"]) <= _MOST_ITEMS or len(set(map(len, found.items.values())) - {0}) > 1:
                raise BadMessage("an offer whose item lists are empty or of different lengths")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadMessage(f"not an offer ({type(error).__name__})") from error
        return found

    def read_terms(self) -> Terms:
        """Who takes part, and what is promised."""
        return Terms.from_json(self.terms)

    def read_model(self) -> Recommender:
        """The model, from what is installed here.

        Raises:
            ConfigError: it is not installed, or takes no such settings.
        """
        return load_model(self.model, dict(self.settings))

    def keys(self) -> dict[str, PublicKey]:
        """The shops' identities."""
        return {name: _public(value) for name, value in self.roster.items()}

    def public_inputs(self) -> PublicInputs:
        """The federation's item space; content is computed here, from the titles."""
        keys = np.array(list(self.items["keys"]), dtype=object)
        if not self.items.get("titles"):
            return PublicInputs(keys)
        return PublicInputs(keys, content_features(list(self.items["titles"]), list(self.items["categories"])))


def sign_document(kind: str, fields: Mapping[str, Any], key: IdentityKey) -> bytes:
    """Canonical JSON of kind, format, fields and the signature over the rest."""
    body = {"kind": f"fedrec {kind}", "format": FORMAT, **fields}
    signature = key.sign(_signed(body))
    return canonical_json({**body, "signature": signature.hex()})


def verify_document(data: bytes, key: PublicKey) -> None:
    """Check a document's signature.

    Raises:
        BadMessage: no signed document.
        BadSignature: somebody else's, or changed.
    """
    try:
        body = json.loads(data)
        signature = bytes.fromhex(body.pop("signature"))
        signed = _signed(body)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadMessage("not a signed fedrec document") from error
    try:
        key.verify(signed, signature)
    except BadSignature as error:
        raise BadSignature(f"{body.get('kind', 'a document')} not signed by {key.fingerprint()}, or changed") from error


def _signed(body: Mapping[str, Any]) -> bytes:
    return b"fedrec document\0" + canonical_json(body)


def _fields(kind: str, data: bytes, cls: Any) -> dict[str, Any]:
    """The fields of a document of this kind, with the types of the class's first level."""
    try:
        body = json.loads(data)
        found = (body.pop("kind"), body.pop("format"))
        body.pop("signature")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadMessage(f"not a fedrec {kind}") from error
    if found != (f"fedrec {kind}", FORMAT):
        raise BadMessage(f"{found[0]} of format {found[1]} in place of a fedrec {kind} of format {FORMAT}")
    wanted = {field.name for field in fields(cls)}
    if set(body) != wanted:
        raise BadMessage(f"a fedrec {kind} with missing or unknown fields: {sorted(set(body) ^ wanted)[:3]}")
    for field in fields(cls):
        if field.type == "str" and not isinstance(body[field.name], str):
            raise BadMessage(f"a fedrec {kind} whose {field.name} is no text")
    return body


def _public(text: str) -> PublicKey:
    try:
        return PublicKey(bytes.fromhex(text))
    except (ValueError, TypeError) as error:
        raise BadMessage("a public key that is none") from error


def _time(text: str) -> datetime.datetime:
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise BadMessage(f"a time that is none: {text!r}") from error
    if found.tzinfo is None:
        raise BadMessage(f"a time without its zone: {text!r}")
    return found
