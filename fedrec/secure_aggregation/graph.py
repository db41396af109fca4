"""Who shares a mask with whom: everybody with everybody up to 30 shops, beyond that neighbours on a ring.

The shops stand on a ring, each shares masks with the k / 2 next ones on either side (a Harary graph). What opens is the
sum over every connected part of the honest survivors, so they must all be connected. The check is exact: **if every
stretch of k / 2 consecutive places holds more than t survivors**, then, whichever t shops collude, every stretch holds
an honest survivor, so each of them has the next one within reach, and all are connected.

Source: Bell et al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", section 3. Deviation: they
choose k so that a random graph stays connected with high probability for drop-outs chosen without knowledge of it; but
a coordinator knows the graph and may call anybody dropped. Here every shop checks the very set that it signs. Nothing
hangs on luck, so no failure probability is added to delta, and the order on the ring needs no randomness that the
coordinator cannot influence: a bad order makes a round fail, never open. Chance matters for being able to finish, and
the rule for k is about that alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache

COMPLETE_UP_TO = 30
"""With so many shops or fewer everybody is everybody's neighbour."""

_ONE_IN = 10**6
"""Independent drop-outs make a round of a sampled graph fail once in so many, at most."""


@lru_cache
def num_neighbours(num_shops: int, min_shops: int, colluders: int) -> int:
    """k by a rule on public numbers: the least even one with which drop-outs seldom make a round fail.

    A round fails where a stretch of k / 2 places keeps t survivors or fewer, or a shop fewer neighbours than its
    secrets have a threshold; both are bounded by a binomial tail for each shop, in whole numbers: every shop must come
    to the same k.

    Args:
        num_shops: n, on the roster.
        min_shops: n_min, of a sum; the share n_min / n is expected to answer, independently.
        colluders: t.
    Returns:
        k < n - 1, or n - 1 where everybody is a neighbour.
    """
    if num_shops > COMPLETE_UP_TO:
        # Where only t are expected to answer, a stretch fails half the time.
        least = max(colluders + 1, colluders * num_shops // min_shops)
        for reach in range(least, (num_shops - 1) // 2):
            apart = _at_most(colluders, reach, min_shops, num_shops) * num_shops**reach
            closed = _at_most(_ring_threshold(reach, colluders) - 1, 2 * reach, min_shops, num_shops)
            if _ONE_IN * num_shops * (apart + closed) <= num_shops ** (2 * reach):
                return 2 * reach
    return num_shops - 1


@dataclass(frozen=True)
class Ring:
    """Shops in a public order.

    Attributes:
        order: their names; the last is beside the first.
        reach: neighbours on either side, >= 1; as many as there are others or more = the complete graph.
    """

    order: tuple[str, ...]
    reach: int

    @classmethod
    def of(cls, names: Iterable[str], digest: bytes, neighbours: int) -> Ring:
        """The ring of these shops, ordered by sha256 of (digest, name).

        Args:
            digest: of what all of them sent at the set-up.
            neighbours: k, of `num_neighbours`.
        """
        order = sorted(names, key=lambda name: hashlib.sha256(b"fedrec ring\0" + digest + name.encode()).digest())
        return cls(tuple(order), max(1, neighbours // 2) if neighbours < len(order) - 1 else len(order))

    @property
    def is_complete(self) -> bool:
        """Whether everybody is everybody's neighbour."""
        return 2 * self.reach >= len(self.order) - 1

    def neighbours(self, name: str) -> tuple[str, ...]:
        """Who shares masks with this shop, in the order of the ring."""
        if self.is_complete:
            return tuple(other for other in self.order if other != name)
        place, size = self.order.index(name), len(self.order)
        return tuple(self.order[(place + step) % size] for step in range(-self.reach, self.reach + 1) if step)

    def share_threshold(self, threshold: int, colluders: int) -> int:
        """How many holders' shares give back a shop's secret of one round.

        In the complete graph the protocol's own threshold T. On the ring a quarter of the k neighbours and more than
        t: an honest holder gives shares for the one set of survivors that T shops have signed, so the t colluders' own
        are all that anybody has too many.
        """
        return threshold if self.is_complete else _ring_threshold(self.reach, colluders)

    def keeps_connected(self, survivors: Collection[str], colluders: int) -> bool:
        """Whether the survivors who do not collude are connected, whoever the ``colluders`` shops are.

        **Guarantee:** true only if so, and if there is such a survivor. On the ring it may be false though they are.
        """
        present = frozenset(survivors)
        alive = [name in present for name in self.order]
        if self.is_complete:
            return sum(alive) > colluders
        inside = sum(alive[: self.reach])
        for place in range(len(alive)):
            if inside <= colluders:
                return False
            inside += alive[(place + self.reach) % len(alive)] - alive[place]
        return True


def _ring_threshold(reach: int, colluders: int) -> int:
    return max(colluders + 1, math.ceil(reach / 2))


def _at_most(successes: int, tries: int, part: int, whole: int) -> int:
    """P[Binomial(tries, part / whole) <= successes] x whole^tries, exactly."""
    if successes >= tries:
        return whole**tries
    if part == whole:
        return 0
    term = total = (whole - part) ** tries
    for hits in range(successes):
        term = term * ((tries - hits) * part) // ((hits + 1) * (whole - part))
        total += term
    return total
