"""Shops and a coordinator in one process, with the real sessions on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from fedrec.secure_aggregation.coordinator_session import CoordinatorSession
from fedrec.secure_aggregation.keys import IdentityKey
from fedrec.secure_aggregation.messages import Survivors
from fedrec.secure_aggregation.parameters import Parameters
from fedrec.secure_aggregation.rules import round_context, run_digest
from fedrec.secure_aggregation.shop_session import ShopSession

RUN = "a-run"
SIZE = 40
DTYPES = ("<u4", "<u8")


def identity(name: str) -> IdentityKey:
    """The same key for the same name; making thousands of them afresh would only cost time."""
    return IdentityKey.from_bytes(hashlib.sha256(b"identity of " + name.encode()).digest())


def agreement(num_shops: int, *, min_shops: int, colluders: int = 1, rounds_per_setup: int = 3) -> Parameters:
    names = [f"shop-{place}" for place in range(num_shops)]
    keys = [identity(name).public for name in names]
    return Parameters.of(names, keys, min_shops=min_shops, colluders=colluders, rounds_per_setup=rounds_per_setup)


def plan_digest(setup: bytes, index: int, rest: bytes = b"") -> bytes:
    """Stands for the digest of a plan: it covers the set-up's digest, the round and everything else."""
    return hashlib.sha256(b"plan" + setup + index.to_bytes(8, "little") + rest).digest()


def vector(shop: str, index: int, dtype: str = "<u8", size: int = SIZE) -> np.ndarray:
    """Values of a shop in a round, anywhere in the ring."""
    seed = int.from_bytes(hashlib.sha256(f"{shop} {index}".encode()).digest()[:8], "little")
    return np.random.default_rng(seed).integers(0, 2**64, size, np.uint64).astype(dtype)


@dataclass
class Parties:
    """A coordinator and its shops by name."""

    parameters: Parameters
    coordinator: CoordinatorSession
    shops: dict[str, ShopSession]

    @classmethod
    def of(cls, parameters: Parameters) -> Parties:
        shops = {name: ShopSession(parameters, name, identity(name), RUN) for name in parameters.names}
        return cls(parameters, CoordinatorSession(parameters, RUN), shops)

    @classmethod
    def ready(cls, num_shops: int = 5, *, min_shops: int = 4, colluders: int = 1, num_rounds: int = 3) -> Parties:
        """After a set-up that all shops took part in."""
        rule = agreement(num_shops, min_shops=min_shops, colluders=colluders, rounds_per_setup=num_rounds)
        parties = cls.of(rule)
        parties.set_up()
        return parties

    @property
    def run(self) -> bytes:
        return run_digest(self.parameters, RUN)

    def set_up(self, first_round: int = 0, *, no_keys: Collection[str] = (), no_deal: Collection[str] = ()) -> None:
        """Keys and shares; some shops fall out before they send theirs."""
        self.advertise(first_round, no_keys=no_keys)
        adverts = self.coordinator.adverts()
        for name in self.coordinator.advertised:
            if name not in no_deal:
                self.coordinator.add_deal(name, self.shops[name].deal(adverts))
        self.coordinator.close_setup()

    def advertise(self, first_round: int = 0, *, no_keys: Collection[str] = ()) -> None:
        invite = self.coordinator.invite(first_round, self.parameters.rounds_per_setup)
        for name, shop in self.shops.items():
            if name not in no_keys:
                self.coordinator.add_advert(name, shop.advertise(invite))

    def accept(self, names: Iterable[str] | None = None) -> None:
        for name in self.coordinator.participants if names is None else names:
            assert self.shops[name].accept(self.coordinator.delivery(name)) == self.coordinator.setup_digest

    def context(self, index: int) -> bytes:
        return plan_digest(self.coordinator.setup_digest, index)

    def masked(self, name: str, index: int, dtype: str = "<u8", context: bytes | None = None) -> np.ndarray:
        """A shop's upload."""
        values = vector(name, index, dtype)
        self.shops[name].mask(index, self.context(index) if context is None else context, values)
        return values

    def upload(self, index: int, *, dropped: Collection[str] = (), dtype: str = "<u8") -> None:
        """The first exchange of a round."""
        self.accept()
        self.coordinator.open_round(index, self.context(index), SIZE, np.dtype(dtype))
        for name in self.coordinator.participants:
            if name not in dropped:
                self.coordinator.add_upload(name, self.context(index), self.masked(name, index, dtype))

    def sign(self, *, silent: Collection[str] = ()) -> bytes:
        """The second exchange; gives the signatures that go out in the third."""
        survivors = self.coordinator.survivors()
        for name in self.coordinator.survivor_names:
            if name not in silent:
                self.coordinator.add_signature(name, self.shops[name].sign(survivors))
        return self.coordinator.signatures()

    def reveal(self, signatures: bytes, *, silent: Collection[str] = ()) -> None:
        """The third exchange."""
        for name in self.coordinator.survivor_names:
            if name not in silent:
                self.coordinator.add_shares(name, self.shops[name].reveal(signatures))

    def round(
        self,
        index: int,
        *,
        dropped: Collection[str] = (),
        no_signature: Collection[str] = (),
        no_shares: Collection[str] = (),
        dtype: str = "<u8",
    ) -> np.ndarray:
        """A whole round; who gives no signature gives no shares."""
        self.upload(index, dropped=dropped, dtype=dtype)
        self.reveal(self.sign(silent=no_signature), silent={*no_signature, *no_shares})
        return self.coordinator.total()

    def expected(self, index: int, *, dropped: Collection[str] = (), dtype: str = "<u8") -> np.ndarray:
        """The plain sum over the participants that did not drop out."""
        names = [name for name in self.coordinator.participants if name not in dropped]
        return np.sum([vector(name, index, dtype) for name in names], axis=0, dtype=dtype)

    def bound(self, index: int) -> bytes:
        """What masks and signatures are bound to: the plan and the set-up."""
        return round_context(self.coordinator.setup_digest, self.context(index))

    def survivors_message(self, index: int, places: Iterable[int], bound: bytes | None = None) -> bytes:
        """A set of survivors as a coordinator of ill will might name it."""
        digest = self.bound(index) if bound is None else bound
        return Survivors(self.run, index, digest, tuple(sorted(places))).to_bytes()
