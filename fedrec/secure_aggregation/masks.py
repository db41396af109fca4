"""Masks: long vectors of ring elements from 256-bit seeds, and the seeds that two shops or one shop alone can know.

Source: Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning", section 4 (masks
of pairs and of oneself); seeds from X25519 (RFC 7748) by HKDF-SHA256 (RFC 5869). The stream is AES-256 in counter mode
with the counter from zero: a seed serves one stream. Where the processor has instructions for it, ChaCha20 takes 1.2
times as long; in pieces of 128 KiB either makes 10^7 values of four bytes in 6 ms.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedrec.errors import BadMessage

SEED_BYTES = 32
RING_DTYPES = (np.dtype("<u4"), np.dtype("<u8"))
"""Elements of the rings of 2^32 and of 2^64."""

_CHUNK_BYTES = 2**17
"""Stream bytes at a time: stream and values stay in the second-level cache."""
_BLOCK_BYTES = 16
_ZEROS = bytes(_CHUNK_BYTES)

_FIELD_PRIME = 2**255 - 19
_LOW_ORDER = frozenset(
    (
        0,
        1,
        _FIELD_PRIME - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    )
)
"""Points of order 1, 2, 4 and 8 on the curve and its twist."""


def add_mask(values: np.ndarray, seed: bytes, *, sign: int) -> None:
    """Add (or subtract) the seed's mask in place, modulo the ring's size.

    Args:
        values: <u4 or <u8, (num_values,), contiguous.
        seed: 32 bytes that nobody else knows, used for no other vector.
        sign: 1 or -1.
    Guarantee: for who does not know the seed the result cannot be told from uniform elements of the ring, as long as
        AES-256 cannot be told from a random permutation (and the stream is shorter than 2^64 blocks).
    """
    if values.dtype not in RING_DTYPES or values.ndim != 1 or not values.flags.c_contiguous:
        raise TypeError(f"masks go on one contiguous row of ring elements, not on {values.dtype} {values.shape}")
    if len(seed) != SEED_BYTES or sign not in (1, -1):
        raise ValueError(f"a seed of {len(seed)} bytes with sign {sign}: {SEED_BYTES} bytes, and 1 or -1")
    stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(_BLOCK_BYTES))).encryptor()
    buffer = bytearray(_CHUNK_BYTES + _BLOCK_BYTES)
    size = values.itemsize
    elements = np.frombuffer(buffer, values.dtype, count=_CHUNK_BYTES // size)
    for start in range(0, len(values), _CHUNK_BYTES // size):
        part = values[start : start + _CHUNK_BYTES // size]
        stream.update_into(_ZEROS[: part.nbytes], buffer)
        if sign == 1:
            np.add(part, elements[: len(part)], out=part)
        else:
            np.subtract(part, elements[: len(part)], out=part)


def derive_seed(secret: bytes, label: str, *parts: bytes) -> bytes:
    """32 bytes from a secret, bound to what they are for.

    Args:
        secret: of at least 256 bits of entropy.
        label: names the purpose.
        parts: the context; each is length-prefixed, so that no two lists of parts are the same bytes.
    Source: RFC 5869 (HKDF), without salt, since secrets are fresh and uniform, or results of X25519.
    """
    info = b"".join(len(part).to_bytes(4, "little") + part for part in (label.encode(), *parts))
    return HKDF(hashes.SHA256(), SEED_BYTES, salt=None, info=info).derive(secret)


def pair_seed(private: bytes, public: bytes, label: str, *parts: bytes) -> bytes:
    """The seed that two key pairs have in common; the parts must name both sides in an order both know.

    Args:
        private: (32,) bytes, one's own X25519 key.
        public: (32,) bytes, the other's.
    Raises:
        BadMessage: the other's key is no point of large order: everybody would know the result.
    """
    return derive_seed(_exchange(private, public), label, *parts)


def public_key(private: bytes) -> bytes:
    """The X25519 public key, (32,) bytes, of (32,) private ones."""
    point = X25519PrivateKey.from_private_bytes(private).public_key()
    return point.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def check_public_key(public: bytes) -> None:
    """Refuse a key of low order, whose exchanges everybody could compute; `pair_seed` refuses it too, but later.

    Raises:
        BadMessage: it is one, or no key at all.
    """
    # RFC 7748, section 5, would take numbers from the prime on, and a highest bit: other spellings of the same keys.
    number = int.from_bytes(public, "little")
    if len(public) != SEED_BYTES or number >= _FIELD_PRIME or number in _LOW_ORDER:
        raise BadMessage("a public key of low order, or no X25519 key")


def _exchange(private: bytes, public: bytes) -> bytes:
    """X25519; private keys are multiples of 8, so a point of low order gives zeros, which the library refuses."""
    try:
        return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise BadMessage("a public key of low order, or no X25519 key") from error
