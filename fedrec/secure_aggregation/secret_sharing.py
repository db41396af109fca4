"""Shamir's secret sharing of 32-byte secrets.

**Guarantee:** fewer shares than the threshold say nothing about the secret, whatever computing power is at hand.
**Source:** Shamir 1979, "How to share a secret", CACM 22(11). The field is that of the prime 2^256 + 297, the least
above 2^256, so that every 32-byte string is an element.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence

from fedrec.errors import BadMessage

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33

RandomElement = Callable[[], int]
"""A uniform element of the field."""


def random_element() -> int:
    """A uniform element of the field, from the operating system's randomness."""
    return secrets.randbelow(PRIME)


def split(
    secret: bytes, threshold: int, points: Sequence[int], *, random_element: RandomElement = random_element
) -> list[bytes]:
    """One share for each point.

    Args:
        secret: (32,) bytes.
        threshold: so many shares give the secret back; 1 <= threshold <= number of points.
        points: distinct, from 1 on: the holders' places. 0 is the secret's own place.
        random_element: other than the operating system's for known-answer vectors only.
    Returns:
        (33,) bytes each, little-endian, in the order of the points.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret of {len(secret)} bytes: {SECRET_BYTES} are shared")
    if len(set(points)) != len(points) or not all(1 <= point < PRIME for point in points):
        raise ValueError("points must be distinct and above 0: the place 0 is the secret's own")
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold {threshold} of {len(points)} shares: from 1 to all of them")
    coefficients = [int.from_bytes(secret, "little"), *(random_element() for _ in range(threshold - 1))]
    shares = []
    for point in points:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * point + coefficient) % PRIME
        shares.append(value.to_bytes(SHARE_BYTES, "little"))
    return shares


class Combiner:
    """Gives back secrets that the same holders have shares of; the weights are computed once for all of them."""

    def __init__(self, points: Sequence[int]) -> None:
        """Args: points: of the holders, as many as the threshold, distinct, from 1 on."""
        if len(set(points)) != len(points) or not points or not all(1 <= point < PRIME for point in points):
            raise BadMessage("shares of the same holder twice, of none, or of the secret's own place")
        self._weights = {point: _lagrange_at_zero(point, points) for point in points}

    def secret(self, shares: Mapping[int, bytes]) -> bytes:
        """The secret, (32,) bytes.

        Args:
            shares: by point; those of all the points are needed, others are not looked at.
        Raises:
            BadMessage: a share is missing or no element of the field, or together they give no 32-byte secret.
        """
        total = 0
        for point, weight in self._weights.items():
            total += weight * _element(shares.get(point))
        total %= PRIME
        if total >= 2**256:
            raise BadMessage("shares that give no secret: some of them are wrong")
        return total.to_bytes(SECRET_BYTES, "little")


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret from ``threshold`` of the shares (the first by point).

    Raises:
        BadMessage: too few shares, or wrong ones.
    """
    if len(shares) < threshold:
        raise BadMessage(f"{len(shares)} shares of the {threshold} that are needed")
    return Combiner(sorted(shares)[:threshold]).secret(shares)


def _lagrange_at_zero(point: int, points: Sequence[int]) -> int:
    above, below = 1, 1
    for other in points:
        if other != point:
            above = above * other % PRIME
            below = below * (other - point) % PRIME
    return above * pow(below, -1, PRIME) % PRIME


def _element(share: bytes | None) -> int:
    if share is None or len(share) != SHARE_BYTES:
        raise BadMessage(f"a share is missing, or not of {SHARE_BYTES} bytes")
    value = int.from_bytes(share, "little")
    if value >= PRIME:
        raise BadMessage("a share that is no element of the field")
    return value
