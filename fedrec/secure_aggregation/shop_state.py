"""What a shop remembers between the messages of secure aggregation, and the bytes that it stores it as."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from fedrec.errors import StoreError
from fedrec.secure_aggregation.encoding import Batch

STATE_FORMAT = 1


@dataclass(repr=False)
class ShopRound:
    """What the shop did in the round that is open."""

    index: int
    context: bytes
    upload: bytes
    survivors: bytes = b""
    answer: bytes = b""


@dataclass(repr=False)
class ShopSetup:
    """One batch: secrets by round index, gone once their round is over."""

    batch: Batch
    share_key: bytes
    mask_keys: dict[int, bytes]
    seeds: dict[int, bytes]
    advert: bytes
    adverts: bytes = b""
    deal: bytes = b""
    digest: bytes = b""
    participants: tuple[int, ...] = ()
    shares: dict[int, dict[int, tuple[bytes, bytes]]] = field(default_factory=dict)
    """By round: by dealer's place, shares of its mask key and of its seed."""


@dataclass
class Past:
    """What outlasts a set-up: the highest round that was ever masked, and how many were masked again under new keys."""

    highest: int = -1
    repeats: int = 0


_SETUP_BYTES = ("share_key", "advert", "adverts", "deal", "digest")
_ROUND_BYTES = ("context", "upload", "survivors", "answer")


def stored(run: bytes, setup: ShopSetup | None, current: ShopRound | None, past: Past) -> bytes:
    """The state as bytes; they hold secrets of the rounds that are not over."""
    fields: dict[str, Any] = {"format": STATE_FORMAT, "run": run.hex(), "setup": None, "round": None}
    fields["past"] = [past.highest, past.repeats]
    if setup is not None:
        fields["setup"] = {
            "batch": [setup.batch.number, setup.batch.first_round, setup.batch.num_rounds],
            "participants": list(setup.participants),
            "mask_keys": {str(index): key.hex() for index, key in setup.mask_keys.items()},
            "seeds": {str(index): seed.hex() for index, seed in setup.seeds.items()},
            "shares": {
                str(index): {str(place): [share.hex() for share in pair] for place, pair in of_round.items()}
                for index, of_round in setup.shares.items()
            },
            **{name: getattr(setup, name).hex() for name in _SETUP_BYTES},
        }
    if current is not None:
        fields["round"] = {"index": current.index, **{name: getattr(current, name).hex() for name in _ROUND_BYTES}}
    return json.dumps(fields).encode()


def restored(run: bytes, data: bytes) -> tuple[ShopSetup | None, ShopRound | None, Past]:
    """A state from its bytes.

    Raises:
        StoreError: not a state of this run, or of another version.
    """
    try:
        fields = json.loads(data)
        if fields["format"] != STATE_FORMAT or fields["run"] != run.hex():
            raise StoreError("stored keys of another run or version")
        setup, current = fields["setup"], fields["round"]
        highest, repeats = fields["past"]
        return (
            None if setup is None else _setup_from(setup),
            None if current is None else _round_from(current),
            Past(int(highest), int(repeats)),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"stored keys that cannot be read ({type(error).__name__})") from error


def _round_from(fields: dict[str, Any]) -> ShopRound:
    return ShopRound(fields["index"], **{name: bytes.fromhex(fields[name]) for name in _ROUND_BYTES})


def _setup_from(fields: dict[str, Any]) -> ShopSetup:
    return ShopSetup(
        batch=Batch(*fields["batch"]),
        participants=tuple(fields["participants"]),
        mask_keys={int(index): bytes.fromhex(key) for index, key in fields["mask_keys"].items()},
        seeds={int(index): bytes.fromhex(seed) for index, seed in fields["seeds"].items()},
        shares={
            int(index): {
                int(place): (bytes.fromhex(key), bytes.fromhex(seed)) for place, (key, seed) in of_round.items()
            }
            for index, of_round in fields["shares"].items()
        },
        **{name: bytes.fromhex(fields[name]) for name in _SETUP_BYTES},
    )
