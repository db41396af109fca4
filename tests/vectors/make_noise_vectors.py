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

mpmath.mp.dps = 60


def words(key: bytes, tag: int, count: int) -> list[int]:
    """Little-endian 64-bit words of AES-256 over the counter blocks of GCM: tag in 12 bytes; 2, 3, ... in 4."""
    ecb = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    blocks = [ecb.update(tag.to_bytes(12, "big") + i.to_bytes(4, "big")) for i in range(2, (count + 5) // 2)]
    stream = b"".join(blocks)
    return [int.from_bytes(stream[8 * i : 8 * i + 8], "little") for i in range(count)]


def staircase(sd: float) -> tuple[float, int, list[tuple[int, int | None]]]:
    """sd in columns, the curve's peak, and (column, floor) of each slot below the tails': floor None where sure."""
    ratio = mpmath.mpf(sd)
    while ratio >= 96:
        ratio /= 2
    while ratio < 48:
        ratio *= 2
    columns = int(5 * ratio) + 1
    curve = [mpmath.exp(-((j / ratio) ** 2) / 2) for j in range(columns + 1)]
    peak = max(c for c in range(200, 600) if 2 * sum(int(mpmath.ceil(c * h)) for h in curve[:-1]) < 2**16)
    sure, still_open = [], []
    for column in range(-columns, columns):
        near, far = sorted((abs(column), abs(column + 1)))
        low, high = int(mpmath.floor(peak * curve[far])), int(mpmath.ceil(peak * curve[near]))
        sure += [(column, None)] * low
        still_open += [(column, floor) for floor in range(low, high)]
    return ratio, peak, sure + still_open


def integers(key: bytes, sd: float, size: int) -> list[int]:
    """All values' words first; then those of points that were above the curve again, in their order."""
    ratio, peak, slots = staircase(sd)
    drawn, heights = iter(words(key, 0, 4 * size)), iter(words(key, 1, 4 * size))
    values: list[int] = [0] * size
    todo = list(range(size))
    while todo:
        points = [(i, *divmod(next(drawn), 2**48)) for i in todo]
        todo = []
        for i, slot, place in points:
            if slot >= len(slots):
                assert next(heights) > 2**60 or slot > len(slots), "a value in the tail: take another name"
                todo.append(i)
                continue
            column, floor = slots[slot]
            x = column + mpmath.mpf(place) / 2**48
            if floor is not None:
                above = peak * mpmath.exp(-((x / ratio) ** 2) / 2) - floor - mpmath.mpf(next(heights)) / 2**64
                assert abs(above) > 1e-6, "further digits are needed: take another name"
                if above < 0:
                    todo.append(i)
                    continue
            values[i] = int(mpmath.floor(x * sd / ratio + mpmath.mpf(1) / 2))
    return values


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
    cases = [case("small", 3.0, 201, 0.5), case("usual", 2.0**18, 200, 0.125), case("large", 1.5e9, 200, 0.9)]
    other_key = dict(cases[1], key=(bytes.fromhex(cases[1]["key"])[:-1] + b"\0").hex())
    other_integer = dict(cases[0], integers=[cases[0]["integers"][0] + 1, *cases[0]["integers"][1:]])
    content = {"cases": cases, "tampered": [other_key, other_integer]}
    Path(__file__).with_name("noise.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
