"""Known answers, computed by other means than fedrec's, and tampered ones that must not pass."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrec.errors import ProtocolError
from fedrec.secure_aggregation.coordinator_session import CoordinatorSession
from fedrec.secure_aggregation.keys import IdentityKey
from fedrec.secure_aggregation.parameters import Parameters
from fedrec.secure_aggregation.rules import run_digest
from fedrec.secure_aggregation.shop_session import ShopSession

KNOWN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "secure_aggregation.json").read_text(encoding="utf-8")
)
PARAMETERS = Parameters.from_json(KNOWN["parameters"])
SETUP: dict[str, Any] = KNOWN["setup"]
TAMPERED = KNOWN["tampered"]


class Stream:
    """A shop's draws: SHAKE-256 of its name."""

    def __init__(self, name: str) -> None:
        self._bytes, self._at = hashlib.shake_256(name.encode()).digest(10**5), 0

    def __call__(self, size: int) -> bytes:
        self._at += size
        return self._bytes[self._at - size : self._at]


def shop_at(place: int, step: str = "") -> ShopSession:
    """A shop that has answered all before a step; with its draws from the start."""
    name, identity = PARAMETERS.names[place], IdentityKey.from_bytes(bytes.fromhex(KNOWN["identities"][place]))
    shop = ShopSession(PARAMETERS, name, identity, KNOWN["run_id"], randomness=Stream(name))
    last = KNOWN["rounds"][-1]
    values = np.array(last["values"].get(name, last["values"]["shop-0"]), last["dtype"])
    steps = {
        "advertise": lambda: shop.advertise(due("advertise", place)),
        "deal": lambda: shop.deal(due("deal", place)),
        "accept": lambda: shop.accept(due("accept", place)),
        "mask": lambda: shop.mask(last["index"], bytes.fromhex(last["plan"]), values),
        "sign": lambda: shop.sign(due("sign", place)),
    }
    for one, act in steps.items():
        if one == step:
            break
        act()
    return shop


def due(step: str, place: int) -> bytes:
    last = KNOWN["rounds"][-1]
    message = {
        "advertise": SETUP["invite"],
        "deal": SETUP["adverts"],
        "accept": SETUP["deliveries"][place],
        "sign": last["survivors"],
        "reveal": last["signatures"],
    }[step]
    return bytes.fromhex(message)


def coordinator() -> CoordinatorSession:
    """With the known set-up."""
    session = CoordinatorSession(PARAMETERS, KNOWN["run_id"])
    setup = {"batch": [11, 3, 2], "adverts": SETUP["adverts"], "deals": SETUP["deals"]}
    session.restore(json.dumps({"format": 1, "run": KNOWN["run_digest"], "setup": setup}).encode())
    return session


def test_the_agreement_and_the_run_have_the_known_digests():
    assert PARAMETERS.digest.hex() == KNOWN["parameters_digest"]
    assert run_digest(PARAMETERS, KNOWN["run_id"]).hex() == KNOWN["run_digest"]


@pytest.mark.parametrize("place", range(4))
def test_a_shop_answers_with_the_known_bytes(place):
    shop, name = shop_at(place, "advertise"), PARAMETERS.names[place]
    assert shop.advertise(due("advertise", place)).hex() == KNOWN["adverts_by_shop"][place]
    assert shop.deal(due("deal", place)).hex() == SETUP["deals"][place]
    assert shop.accept(due("accept", place)).hex() == SETUP["digest"]
    for known in KNOWN["rounds"]:
        if name not in known["values"]:
            continue
        values = np.array(known["values"][name], known["dtype"])
        shop.mask(known["index"], bytes.fromhex(known["plan"]), values)
        assert values.tolist() == known["uploads"][name]
        shop.sign(bytes.fromhex(known["survivors"]))
        assert shop.reveal(bytes.fromhex(known["signatures"])).hex() == known["shares"][name]


def test_the_coordinator_delivers_and_opens_the_known_bytes():
    session = coordinator()
    assert session.setup_digest.hex() == SETUP["digest"]
    for name, delivery in zip(PARAMETERS.names, SETUP["deliveries"], strict=True):
        assert session.delivery(name).hex() == delivery
    shops = [shop_at(place, "mask") for place in range(4)]
    for known in KNOWN["rounds"]:
        total = run_known_round(session, shops, known)
        assert total.tolist() == known["total"]


def run_known_round(session: CoordinatorSession, shops: list[ShopSession], known: dict[str, Any]) -> np.ndarray:
    dtype, context = np.dtype(known["dtype"]), bytes.fromhex(known["plan"])
    session.open_round(known["index"], context, len(known["total"]), dtype)
    for name, upload in known["uploads"].items():
        shops[PARAMETERS.place_of[name]].mask(known["index"], context, np.array(known["values"][name], dtype))
        session.add_upload(name, context, np.array(upload, dtype))
    assert session.survivors().hex() == known["survivors"]
    for name in known["uploads"]:
        session.add_signature(name, shops[PARAMETERS.place_of[name]].sign(session.survivors()))
    assert session.signatures().hex() == known["signatures"]
    for name, shares in known["shares"].items():
        session.add_shares(name, bytes.fromhex(shares))
    return session.total()


@pytest.mark.parametrize("case", TAMPERED, ids=[f"{case['step']}: {case['what']}" for case in TAMPERED])
def test_a_tampered_message_is_refused_and_the_honest_one_still_answered(case):
    shop, honest = shop_at(0, case["step"]), shop_at(0, case["step"])
    act, same = getattr(shop, case["step"]), getattr(honest, case["step"])
    with pytest.raises(ProtocolError):
        act(bytes.fromhex(case["message"]))
    assert act(due(case["step"], 0)) == same(due(case["step"], 0))


@pytest.mark.parametrize("name", ["shop-0", "shop-1", "shop-3"])
def test_a_tampered_share_never_gives_another_sum(name):
    known = dict(KNOWN["rounds"][-1])
    changed = bytearray.fromhex(known["shares"][name])
    changed[-17] ^= 1  # not of the lowest three bits, which X25519 does not look at
    known["shares"] = {**known["shares"], name: changed.hex()}
    shops = [shop_at(place, "mask") for place in range(4)]
    with pytest.raises(ProtocolError, match="wrong"):
        run_known_round(coordinator(), shops, known)
