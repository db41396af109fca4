"""What every shop of a secure run agrees to, and pins: who takes part, with which keys, and who may collude."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

from fedrec.errors import BadAssumption, ConfigError, NoColluders, TooFewHonestShops
from fedrec.secure_aggregation.graph import num_neighbours
from fedrec.secure_aggregation.keys import PublicKey

MOST_SHOPS = 10_000
MOST_ROUNDS = 256
USUAL_ROUNDS = 8


def usual_threshold(num_shops: int, colluders: int) -> int:
    """The least T with (n + t) / 2 < T: two sets of survivors can never both be signed by T shops."""
    return (num_shops + colluders) // 2 + 1


@dataclass(frozen=True)
class Parameters:
    """The agreement on secure aggregation.

    Attributes:
        names: the roster, in its order; 2 to 10,000 shops.
        keys: their Ed25519 public keys, hexadecimal, in the same order.
        min_shops: n_min, fewest shops of a sum.
        colluders: t, shops that may work together with the coordinator; 0 for benchmarks alone.
        threshold: T, signatures over one set of survivors, and in the complete graph shares of a secret.
        rounds_per_setup: rounds for which keys are dealt at once, at most; 1 to 256.

    Guarantee: (n + t) / 2 < T <= n_min. An honest shop signs one set of survivors a round, so T signatures hold more
        than (n - t) / 2 of the n - t honest ones: for no second set are T left, whatever the coordinator does.
    """

    names: tuple[str, ...]
    keys: tuple[str, ...]
    min_shops: int
    colluders: int
    threshold: int
    rounds_per_setup: int = USUAL_ROUNDS

    def __post_init__(self) -> None:
        self._check_types()
        num_shops = len(self.names)
        if num_shops < 2:
            raise TooFewHonestShops(f"secure aggregation of {num_shops} shop: there is no sum to hide in")
        if num_shops > MOST_SHOPS or len(set(self.names)) != num_shops:
            raise ConfigError(f"a roster of {num_shops} shops: at most {MOST_SHOPS:,}, each once")
        if len(self.keys) != num_shops or len(set(self.keys)) != num_shops:
            raise ConfigError(f"{len(set(self.keys))} keys for {num_shops} shops: each shop needs a key of its own")
        for key in self.keys:
            if PublicKey(_from_hex(key)).raw.hex() != key:
                raise ConfigError("keys are written in lower-case hexadecimal digits, with nothing between")
        if not self.colluders >= 0:
            raise NoColluders(f"colluders = {self.colluders}: give 1 or more")
        if not self.min_shops - self.colluders >= 1 or self.min_shops > num_shops:
            raise TooFewHonestShops(
                f"min_shops = {self.min_shops} with {self.colluders} colluders among {num_shops} shops: at least one "
                "honest shop must be in every sum"
            )
        least = usual_threshold(num_shops, self.colluders)
        if not self.min_shops >= least:
            raise BadAssumption(
                f"min_shops = {self.min_shops}: sums of {num_shops} shops, {self.colluders} of them colluding, need "
                f"more than ({num_shops} + {self.colluders}) / 2 under secure aggregation; give {least} to {num_shops}"
            )
        if not least <= self.threshold <= self.min_shops:
            raise BadAssumption(
                f"threshold = {self.threshold}: must be above ({num_shops} + {self.colluders}) / 2 and at most "
                f"min_shops = {self.min_shops}"
            )
        if not 1 <= self.rounds_per_setup <= MOST_ROUNDS:
            raise ConfigError(f"rounds_per_setup = {self.rounds_per_setup}: from 1 to {MOST_ROUNDS}")

    def _check_types(self) -> None:
        """All shops compute the same digest: 4 and 4.0, or a list and a tuple, must not both pass."""
        for texts in (self.names, self.keys):
            if type(texts) is not tuple or not all(type(text) is str and text.isprintable() and text for text in texts):
                raise ConfigError("names and keys are tuples of printable strings that are not empty")
        for number in (self.min_shops, self.colluders, self.threshold, self.rounds_per_setup):
            if type(number) is not int:
                raise ConfigError(f"min_shops, colluders, threshold and rounds_per_setup are integers, not {number!r}")

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        keys: Sequence[PublicKey],
        *,
        min_shops: int,
        colluders: int,
        rounds_per_setup: int = USUAL_ROUNDS,
    ) -> Self:
        """With the usual threshold."""
        threshold = usual_threshold(len(names), colluders)
        in_hex = tuple(key.raw.hex() for key in keys)
        return cls(tuple(names), in_hex, min_shops, colluders, threshold, rounds_per_setup)

    @cached_property
    def digest(self) -> bytes:
        """sha256 of all of it, 32 bytes."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(b"fedrec secure aggregation\0" + text.encode()).digest()

    @cached_property
    def place_of(self) -> dict[str, int]:
        """Each shop's place on the roster, from 0."""
        return {name: place for place, name in enumerate(self.names)}

    @property
    def num_neighbours(self) -> int:
        """k, with how many others a shop shares masks."""
        return num_neighbours(len(self.names), self.min_shops, self.colluders)

    @property
    def is_pair(self) -> bool:
        """Whether each of two shops can subtract its own part from the sum: reports warn of it."""
        return len(self.names) == 2

    def key_at(self, place: int) -> PublicKey:
        """The identity of the shop at this place."""
        return PublicKey(_from_hex(self.keys[place]))

    def to_json(self) -> dict[str, Any]:
        """JSON values; `from_json` makes equal parameters of them."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Parameters from their JSON values.

        Raises:
            KeyError, TypeError: not the fields of parameters.
            ConfigError, PrivacyError: values out of range.
        """
        known = dict(fields)
        names, keys = tuple(known.pop("names")), tuple(known.pop("keys"))
        return cls(names=names, keys=keys, **known)


def _from_hex(key: str) -> bytes:
    try:
        return bytes.fromhex(key)
    except ValueError as error:
        raise ConfigError("keys are written in hexadecimal digits") from error
