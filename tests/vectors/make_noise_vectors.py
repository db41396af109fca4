"""Writes noise.json: the integers of a few keys by other means than fedrec's.

Run: python tests/vectors/make_noise_vectors.py
The key stream is AES-256 of single counter blocks (ECB), the arithmetic mpmath's with 100 digits. Keys are sha256 of a
name. The tampered cases change one bit of the key or one of the integers, and must not pass.
"""

import hashlib
import json
from pathlib import Path

import mpmath
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

mpmath.mp.dps = 100
PAIRS = 16384


def words(key: bytes, tag: int, count: int) -> list[int]:
    """Little-endian 64-bit words of AES-256 over the counter blocks tag, 0; tag, 1; ..."""
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    blocks = [ecb.update(tag.to_bytes(8, "big") + i.to_bytes(8, "big")) for i in range((count + 1) // 2)]
    stream = b"".join(blocks)
    return [int.from_bytes(stream[8 * i : 8 * i + 8], "little") for i in range(count)]


def signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def integers(key: bytes, sd: float, size: int) -> list[int]:
    """Radii from the first half of the words, angles from the second; all cosines, then all sines."""
    pairs = (size + 1) // 2
    assert pairs <= PAIRS, "one chunk only"
    drawn = [signed(word) for word in words(key, 0, 2 * pairs)]
    first, second = drawn[:pairs], drawn[pairs:]
    cosines, sines = [], []
    for across, along in zip(first, second, strict=True):
        v, angle = mpmath.mpf(across) / 2**63, mpmath.pi / 2 * along / 2**63
        radius = mpmath.sign(v) * sd * mpmath.sqrt(-2 * mpmath.log(abs(v)))
        cosines.append(int(mpmath.nint(radius * mpmath.cos(angle))))
        sines.append(int(mpmath.nint(radius * mpmath.sin(angle))))
    return (cosines + sines)[:size]


def coins(key: bytes, probability: float, size: int) -> list[int]:
    return [int(word < probability * 2**64) for word in words(key, 2, size)]


def case(name: str, sd: float, size: int, probability: float) -> dict:
    key = hashlib.sha256(name.encode()).digest()
    return {
        "key": key.hex(),
        "sd_units": sd,
        "integers": integers(key, sd, size),
        "probability": probability,
        "coins": coins(key, probability, size),
    }


def main() -> None:
    cases = [case("small", 3.0, 41, 0.5), case("usual", 2.0**18, 24, 0.125), case("large", 1.5e9, 16, 0.9)]
    other_key = dict(cases[1], key=(bytes.fromhex(cases[1]["key"])[:-1] + b"\0").hex())
    other_integer = dict(cases[0], integers=[cases[0]["integers"][0] + 1, *cases[0]["integers"][1:]])
    content = {"cases": cases, "tampered": [other_key, other_integer]}
    Path(__file__).with_name("noise.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
