"""What a coordinator of secure aggregation holds of a set-up and of a round, and the set-up as bytes."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from fedrec.errors import ProtocolError, StoreError
from fedrec.secure_aggregation.encoding import Batch
from fedrec.secure_aggregation.messages import Advert, Adverts, Deal, Shares, Survivors
from fedrec.secure_aggregation.parameters import Parameters
from fedrec.secure_aggregation.rules import setup_digest

STATE_FORMAT = 1


class Step(IntEnum):
    """What is awaited in a round."""

    UPLOADS = 1
    SIGNATURES = 2
    SHARES = 3
    OVER = 4


@dataclass(repr=False)
class Setup:
    """One batch: what the shops sent, by place; `digest` once it is finished; `complaints` of dealers, by shop."""

    batch: Batch
    adverts: dict[int, Advert] = field(default_factory=dict)
    sent: Adverts | None = None
    deals: dict[int, Deal] = field(default_factory=dict)
    digest: bytes = b""
    complaints: dict[int, tuple[int, ...]] = field(default_factory=dict)


@dataclass(repr=False)
class Round:
    """One round: the sum of the uploads so far, and what its shops, by place, sent besides."""

    index: int
    context: bytes
    total: np.ndarray
    step: Step = Step.UPLOADS
    uploaded: set[int] = field(default_factory=set)
    survivors: Survivors | None = None
    signatures: dict[int, bytes] = field(default_factory=dict)
    shares: dict[int, Shares] = field(default_factory=dict)


def stored(run: bytes, setup: Setup | None) -> bytes:
    """A finished set-up as bytes; none where there is none, or it is not finished."""
    fields: dict[str, Any] = {"format": STATE_FORMAT, "run": run.hex(), "setup": None}
    if setup is not None and setup.sent is not None and setup.digest:
        fields["setup"] = {
            "batch": [setup.batch.number, setup.batch.first_round, setup.batch.num_rounds],
            "adverts": setup.sent.to_bytes().hex(),
            "deals": [setup.deals[place].to_bytes().hex() for place in sorted(setup.deals)],
        }
    return json.dumps(fields).encode()


def restored(run: bytes, data: bytes, parameters: Parameters) -> Setup | None:
    """A finished set-up from its bytes; None where none was stored.

    Raises:
        StoreError: not of this run, or of another version.
    """
    try:
        fields = json.loads(data)
        if fields["format"] != STATE_FORMAT or fields["run"] != run.hex():
            raise StoreError("a stored set-up of another run or version")
        if (found := fields["setup"]) is None:
            return None
        sent = Adverts.from_bytes(bytes.fromhex(found["adverts"]), run, parameters)
        dealt = [Deal.from_bytes(bytes.fromhex(deal), run, parameters) for deal in found["deals"]]
        setup = Setup(Batch(*found["batch"]), {advert.place: advert for advert in sent.adverts}, sent)
        setup.deals = {deal.place: deal for deal in dealt}
        setup.digest = setup_digest(run, sent, {deal.place: deal.digest for deal in dealt})
        return setup
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, ProtocolError) as error:
        raise StoreError(f"a stored set-up that cannot be read ({type(error).__name__})") from error
