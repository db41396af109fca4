"""Randomness that belongs to one shopper: a keyed function of who she is, never of her place in a table.

A contribution may use random numbers (which shoppers a step samples, negatives, dropout, latent noise). Were they drawn
in table order, removing one shopper would move everybody after her; so each is a pseudo-random function of a secret key
and the shopper's id.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_BLOCK = 16
_WORDS_A_BLOCK = 4


def shopper_digests(ids: Sequence[object] | np.ndarray) -> np.ndarray:
    """uint8, (num_shoppers, 16): BLAKE2b of each id; distinct ids get distinct digests, up to 2^-64 at a billion."""
    joined = b"".join(hashlib.blake2b(str(one).encode(), digest_size=_BLOCK).digest() for one in ids)
    return np.frombuffer(joined, np.uint8).reshape(-1, _BLOCK)


@dataclass(frozen=True, repr=False)
class Draws:
    """All random numbers of a shop's shoppers in one round.

    Attributes:
        key: 32 bytes; secret where sampling must be (a private round takes fresh ones of the operating system).
        digests: uint8, (num_shoppers, 16), from `shopper_digests`, in the order of the histories.
    Guarantee: AES-256 under a key derived from ``key`` and the purpose, applied to a shopper's own digest (and a
        counter): what one shopper draws does not depend on any other, and without the key nothing can be told from
        uniform bits (AES as a pseudo-random permutation).
    """

    key: bytes = field(repr=False)
    digests: np.ndarray

    def __post_init__(self) -> None:
        if len(self.key) != 32 or self.digests.ndim != 2 or self.digests.shape[1] != _BLOCK:
            raise ValueError("draws need a key of 32 bytes and digests of 16 bytes a shopper")

    def __len__(self) -> int:
        return len(self.digests)

    @classmethod
    def fresh(cls, digests: np.ndarray) -> Draws:
        """Draws under a new secret key."""
        return cls(secrets.token_bytes(32), digests)

    @classmethod
    def seeded(cls, seed: str, digests: np.ndarray) -> Draws:
        """Draws that anybody who knows ``seed`` can repeat: for research, never for a private round."""
        return cls(hashlib.blake2b(seed.encode(), digest_size=32, person=b"fedrec draws").digest(), digests)

    def of(self, purpose: str) -> Draws:
        """Draws of their own for one purpose."""
        derived = hashlib.blake2b(purpose.encode(), key=self.key, digest_size=32, person=b"fedrec purpose").digest()
        return replace(self, key=derived)

    def take(self, rows: np.ndarray) -> Draws:
        """The draws of some shoppers."""
        return replace(self, digests=self.digests[rows])

    def words(self, width: int) -> np.ndarray:
        """uint32, (num_shoppers, width): uniform."""
        num_blocks = -(-width // _WORDS_A_BLOCK)
        blocks = np.repeat(self.digests[:, None, :], num_blocks, axis=1)
        halves = blocks.view(np.uint64)  # (num_shoppers, num_blocks, 2)
        halves[:, :, 1] ^= np.arange(num_blocks, dtype=np.uint64)
        cipher = Cipher(algorithms.AES(self.key), modes.ECB()).encryptor()  # each block is used once: a plain function
        words = np.frombuffer(cipher.update(blocks.data.cast("B")) if blocks.size else b"", np.uint32)
        return words.reshape(len(self), num_blocks * _WORDS_A_BLOCK)[:, :width]

    def uniforms(self, width: int) -> np.ndarray:
        """float64, (num_shoppers, width): in (0, 1), multiples of 2^-32 plus 2^-33."""
        return (self.words(width) + 0.5) * 2.0**-32

    def normals(self, width: int) -> np.ndarray:
        """float32, (num_shoppers, width): standard normal (Box-Muller); for models, not for noise that protects."""
        uniforms = self.uniforms(2 * width)
        radius = np.sqrt(-2 * np.log(uniforms[:, :width]))
        return (radius * np.cos(2 * np.pi * uniforms[:, width:])).astype(np.float32)

    def coins(self, rate: float) -> np.ndarray:
        """bool, (num_shoppers,): each True with probability ``rate``, to 2^-64; independent of each other."""
        if rate >= 1:
            return np.ones(len(self), bool)
        pairs = np.ascontiguousarray(self.words(2)).view(np.uint64).ravel()
        return pairs < np.uint64(min(int(rate * 2.0**64), 2**64 - 1))

    def order(self) -> np.ndarray:
        """int64, (num_shoppers,): a random order of the shoppers' rows, the same whatever order they stand in."""
        pairs = np.ascontiguousarray(self.words(2)).view(np.uint64).ravel()
        return np.argsort(pairs, kind="stable")
