"""The end of a round at the coordinator: secrets come back from shares, are checked, and their masks go off the sum."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from fedrec.errors import BadMessage, ProtocolError, TooFewShops
from fedrec.secure_aggregation import masks
from fedrec.secure_aggregation.graph import Ring
from fedrec.secure_aggregation.messages import Advert, Deal, Shares
from fedrec.secure_aggregation.parameters import Parameters
from fedrec.secure_aggregation.rules import commitment, holders, pair_sign, seed_of_pair, self_seed, share_threshold
from fedrec.secure_aggregation.secret_sharing import Combiner


@dataclass(repr=False)
class Opening:
    """One round, as far as the shares have come.

    Attributes:
        parameters, run, ring: of the run and its set-up.
        adverts, deals: of the set-up, by place.
        offset: of the round within the batch.
        index, context: of the round.
        survivors: places of the shops whose vectors are in the sum.
        shares: that survivors gave, by their place.
    """

    parameters: Parameters
    run: bytes
    ring: Ring
    adverts: Mapping[int, Advert]
    deals: Mapping[int, Deal]
    offset: int
    index: int
    context: bytes
    survivors: Collection[int]
    shares: Mapping[int, Shares]
    _combiners: dict[tuple[int, ...], Combiner] = field(default_factory=dict)

    def take_masks_off(self, total: np.ndarray) -> None:
        """Subtract, in place, the survivors' own masks and what the dropped shops' masks in common have left.

        Raises:
            TooFewShops: too few shares of a secret came back.
            ProtocolError: a secret is not the one that its shop published.
        Guarantee: where it raises, the sum is as it was.
        """
        seeds = {place: self._seed(place) for place in sorted(self.survivors)}
        gone = [place for place in sorted(self.deals) if place not in self.survivors]
        keys = {place: self._mask_key(place) for place in gone if self._survivors_beside(place)}
        for place, seed in seeds.items():
            masks.add_mask(total, self_seed(seed, self.context, place), sign=-1)
        for place, key in keys.items():
            for one in self._survivors_beside(place):
                pair = seed_of_pair(key, self.adverts[one].mask_keys[self.offset], self.context, place, one)
                masks.add_mask(total, pair, sign=-pair_sign(one, place))

    def _seed(self, place: int) -> bytes:
        """A survivor's seed of this round, which it promised."""
        promised = self.deals[place].commitments[self.offset]
        shares = {one: given.seeds for one, given in self.shares.items()}
        return self._secret(place, shares, lambda seed: commitment(self.run, self.index, seed) == promised)

    def _mask_key(self, place: int) -> bytes:
        """A dropped shop's mask key of this round, which belongs to its public one."""
        public = self.adverts[place].mask_keys[self.offset]
        shares = {one: given.keys for one, given in self.shares.items()}
        return self._secret(place, shares, lambda key: masks.public_key(key) == public)

    def _secret(
        self, place: int, shares: Mapping[int, Mapping[int, bytes]], is_right: Callable[[bytes], bool]
    ) -> bytes:
        """A shop's secret of this round, from the first shares that suffice; else without one holder after the other.

        So one holder that gives wrong shares costs time and not the round, where others can stand in for it.
        """
        needed = share_threshold(self.ring, self.parameters)
        came = [one for one in self._holders(place) if one in shares and place in shares[one]]
        if len(came) < needed:
            name = self.parameters.names[place]
            raise TooFewShops(f"{len(came)} shares of a secret of shop {name!r} came back, {needed} are needed")
        for left_out in (None, *came) if len(came) > needed else (None,):
            chosen = [one for one in came if one != left_out][:needed]
            points = tuple(one + 1 for one in chosen)
            if points not in self._combiners:
                self._combiners[points] = Combiner(points)
            try:
                secret = self._combiners[points].secret({one + 1: shares[one][place] for one in chosen})
            except BadMessage:
                continue
            if is_right(secret):
                return secret
        raise self._wrong(place)

    def _holders(self, place: int) -> tuple[int, ...]:
        return holders(self.ring, place, self.parameters)

    def _survivors_beside(self, place: int) -> list[int]:
        return [one for one in self._holders(place) if one in self.survivors]

    def _wrong(self, place: int) -> ProtocolError:
        return ProtocolError(
            f"the shares of shop {self.parameters.names[place]!r} do not give the secret that it published: a shop "
            "gave or dealt a wrong one; the round is given up"
        )
