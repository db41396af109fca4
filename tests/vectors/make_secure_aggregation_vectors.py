"""Writes secure_aggregation.json: a set-up and two rounds of four shops, computed without fedrec.

Run: python tests/vectors/make_secure_aggregation_vectors.py
Layouts, X25519 (RFC 7748), HKDF (RFC 5869), counter mode from single AES blocks, and secret sharing are written out;
Ed25519, ChaCha20-Poly1305 and the AES block are the cryptography package's. Shops draw from SHAKE-256 of their names.
Round 3 has everybody, round 4 loses shop-2. The tampered messages change one thing each, and must not pass.
"""

import hashlib
import hmac
import json
import struct
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

NAMES = [f"shop-{place}" for place in range(4)]
RUN_ID, MIN_SHOPS, COLLUDERS, THRESHOLD, NUM_ROUNDS = "vectors", 3, 1, 3, 2
BATCH, FIRST = 11, 3
ROUNDS = {3: ("<u4", [0, 1, 2, 3]), 4: ("<u8", [0, 1, 3])}
SIZE = 20
CURVE, FIELD = 2**255 - 19, 2**256 + 297
INVITE, ADVERT, ADVERTS, DEAL, DELIVERY, SURVIVORS, SIGNATURE, SIGNATURES, SHARES = range(1, 10)


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def x25519(scalar: bytes, point: bytes) -> bytes:
    """RFC 7748, section 5: the ladder."""
    k = (int.from_bytes(scalar, "little") & ~7 & (2**255 - 1)) | 2**254
    u = int.from_bytes(point, "little") % 2**255
    x2, z2, x3, z3 = 1, 0, u, 1
    for bit in reversed(range(255)):
        one = k >> bit & 1
        if one:
            x2, z2, x3, z3 = x3, z3, x2, z2
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        x3, z3 = (d * a + c * b) ** 2 % CURVE, u * (d * a - c * b) ** 2 % CURVE
        e = a * a - b * b
        x2, z2 = a * a * b * b % CURVE, e * (a * a + 121665 * e) % CURVE
        if one:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return (x2 * pow(z2, CURVE - 2, CURVE) % CURVE).to_bytes(32, "little")


def derive(secret: bytes, label: str, *parts: bytes) -> bytes:
    """HKDF-SHA256, one block, without salt."""
    info = b"".join(struct.pack("<I", len(part)) + part for part in (label.encode(), *parts))
    extracted = hmac.new(bytes(32), secret, "sha256").digest()
    return hmac.new(extracted, info + b"\1", "sha256").digest()


def mask(seed: bytes, dtype: str) -> list[int]:
    """Counter mode of AES-256, the counter big-endian from zero; elements little-endian."""
    block = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()
    stream = b"".join(block.update(at.to_bytes(16, "big")) for at in range(SIZE))
    size = int(dtype[2])
    return [int.from_bytes(stream[size * at : size * (at + 1)], "little") for at in range(SIZE)]


def values_of(name: str, index: int, dtype: str) -> list[int]:
    stream = hashlib.shake_256(f"values {name} {index}".encode()).digest(8 * SIZE)
    return [int.from_bytes(stream[8 * at : 8 * at + 8], "little") % 256 ** int(dtype[2]) for at in range(SIZE)]


class Draws:
    """The bytes that a shop draws, in order."""

    def __init__(self, name: str) -> None:
        self._bytes, self._at = hashlib.shake_256(name.encode()).digest(10**5), 0

    def __call__(self, size: int) -> bytes:
        self._at += size
        return self._bytes[self._at - size : self._at]

    def element(self) -> int:
        while (value := int.from_bytes(self(33), "little") % 2**257) >= FIELD:
            pass
        return value


def header(kind: int, number: int) -> bytes:
    return b"fedrecSA" + struct.pack("<HB", 1, kind) + RUN + struct.pack("<Q", number)


def entries(by_place: dict[int, bytes]) -> bytes:
    listed = b"".join(struct.pack("<H", place) + entry for place, entry in sorted(by_place.items()))
    return struct.pack("<H", len(by_place)) + listed


IDENTITIES = [Ed25519PrivateKey.from_private_bytes(sha256(b"identity of ", name.encode())) for name in NAMES]
PUBLIC = [
    key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex()
    for key in IDENTITIES
]
PARAMETERS = {
    "names": NAMES,
    "keys": PUBLIC,
    "min_shops": MIN_SHOPS,
    "colluders": COLLUDERS,
    "threshold": THRESHOLD,
    "rounds_per_setup": NUM_ROUNDS,
}
AGREED = sha256(b"fedrec secure aggregation\0", json.dumps(PARAMETERS, sort_keys=True, separators=(",", ":")).encode())
RUN = sha256(b"fedrec secure run\0", AGREED, RUN_ID.encode())
SPAN = struct.pack("<QH", FIRST, NUM_ROUNDS)


class Shop:
    """One shop's secrets and messages."""

    def __init__(self, place: int) -> None:
        self.place, self.draw = place, Draws(NAMES[place])
        self.share_key = self.draw(32)
        self.mask_keys = {index: self.draw(32) for index in ROUNDS}
        self.seeds = {index: self.draw(32) for index in ROUNDS}
        base = (9).to_bytes(32, "little")
        self.share_public = x25519(self.share_key, base)
        self.mask_public = {index: x25519(key, base) for index, key in self.mask_keys.items()}
        keys = self.share_public + b"".join(self.mask_public.values())
        self.advert = self.signed(header(ADVERT, BATCH) + SPAN + struct.pack("<H", place) + keys)

    def signed(self, message: bytes) -> bytes:
        return message + IDENTITIES[self.place].sign(message)

    def deal(self, adverts: bytes, publics: list[bytes]) -> None:
        """Shares at the points place + 1, encrypted to everybody and itself."""
        self.shares: dict[tuple[int, str, int], bytes] = {}
        boxes = dict.fromkeys(range(4), b"")
        for index in ROUNDS:
            for what, secret in (("key", self.mask_keys[index]), ("seed", self.seeds[index])):
                polynomial = [int.from_bytes(secret, "little"), *(self.draw.element() for _ in range(THRESHOLD - 1))]
                for place in range(4):
                    value = sum(part * (place + 1) ** power for power, part in enumerate(polynomial)) % FIELD
                    self.shares[index, what, place] = value.to_bytes(33, "little")
                    boxes[place] += self.shares[index, what, place]
        for place, opened in boxes.items():
            context = RUN + sha256(adverts) + struct.pack("<HH", self.place, place)
            key = derive(x25519(self.share_key, publics[place]), "fedrec shares", context)
            nonce = self.draw(12)
            boxes[place] = nonce + ChaCha20Poly1305(key).encrypt(nonce, opened, context)
        self.boxes = boxes
        promises = [sha256(b"fedrec seed\0", RUN, struct.pack("<Q", index), seed) for index, seed in self.seeds.items()]
        head = header(DEAL, BATCH) + SPAN + struct.pack("<H", self.place) + sha256(adverts)
        self.dealt = self.signed(head + b"".join(promises) + entries(boxes))

    def upload(self, index: int, context: bytes, shops: list["Shop"]) -> list[int]:
        dtype, _ = ROUNDS[index]
        ring = 256 ** int(dtype[2])
        total = values_of(NAMES[self.place], index, dtype)
        own = derive(self.seeds[index], "fedrec mask of a shop", context, struct.pack("<H", self.place))
        parts = [(1, own)]
        for other in shops:
            if other is not self:
                pair = struct.pack("<HH", min(self.place, other.place), max(self.place, other.place))
                secret = x25519(self.mask_keys[index], other.mask_public[index])
                sign = 1 if self.place < other.place else -1
                parts.append((sign, derive(secret, "fedrec mask of a pair", context, pair)))
        for sign, seed in parts:
            total = [(value + sign * word) % ring for value, word in zip(total, mask(seed, dtype), strict=True)]
        return total


def setup_messages(shops: list[Shop]) -> dict:
    adverts = header(ADVERTS, BATCH) + SPAN + struct.pack("<H", 4) + b"".join(shop.advert for shop in shops)
    for shop in shops:
        shop.deal(adverts, [other.share_public for other in shops])
    digests = {shop.place: sha256(shop.dealt) for shop in shops}
    dealt = b"".join(struct.pack("<H", place) + digest for place, digest in digests.items())
    return {
        "invite": (header(INVITE, BATCH) + SPAN).hex(),
        "adverts": adverts.hex(),
        "deals": [shop.dealt.hex() for shop in shops],
        "deliveries": [
            (
                header(DELIVERY, BATCH)
                + SPAN
                + entries(digests)
                + entries({shop.place: shop.boxes[place] for shop in shops})
            ).hex()
            for place in range(4)
        ],
        "digest": sha256(b"fedrec set-up\0", RUN, sha256(adverts), dealt).hex(),
    }


def signatures_over(index: int, survivors: bytes, places: list[int]) -> bytes:
    message = header(SIGNATURE, index) + sha256(survivors)
    signed = {place: IDENTITIES[place].sign(message) for place in places}
    return header(SIGNATURES, index) + sha256(survivors) + entries(signed)


def survivors_of(index: int, context: bytes, places: list[int]) -> bytes:
    listed = b"".join(struct.pack("<H", place) for place in places)
    return header(SURVIVORS, index) + context + struct.pack("<H", len(places)) + listed


def round_messages(shops: list[Shop], index: int, setup: bytes) -> dict:
    dtype, alive = ROUNDS[index]
    gone = sorted(set(range(4)) - set(alive))
    plan = sha256(b"plan", struct.pack("<Q", index))
    context = sha256(b"fedrec round\0", setup, plan)
    survivors = survivors_of(index, context, alive)
    answers = {}
    for place in alive:
        seeds = {other: shops[other].shares[index, "seed", place] for other in alive}
        keys = {other: shops[other].shares[index, "key", place] for other in gone}
        head = header(SHARES, index) + struct.pack("<H", place) + sha256(survivors)
        answers[NAMES[place]] = (head + entries(seeds) + entries(keys)).hex()
    inputs = {NAMES[place]: values_of(NAMES[place], index, dtype) for place in alive}
    ring = 256 ** int(dtype[2])
    return {
        "index": index,
        "dtype": dtype,
        "plan": plan.hex(),
        "context": context.hex(),
        "values": inputs,
        "uploads": {NAMES[place]: shops[place].upload(index, context, shops) for place in alive},
        "survivors": survivors.hex(),
        "signatures": signatures_over(index, survivors, alive).hex(),
        "shares": answers,
        "total": [sum(column) % ring for column in zip(*inputs.values(), strict=True)],
    }


def flipped(message: str, at: int) -> str:
    changed = bytearray.fromhex(message)
    changed[at] ^= 1
    return changed.hex()


def tampered(setup: dict, last: dict) -> list[dict]:
    """Messages that shop-0 must refuse where the honest ones are due; `last` is round 4."""
    context, index, good = bytes.fromhex(last["context"]), last["index"], last["survivors"]
    advert = len(setup["adverts"]) // 2 - 4 * 222
    cases = [
        ("advertise", "another magic", flipped(setup["invite"], 0)),
        ("advertise", "another version", flipped(setup["invite"], 8)),
        ("advertise", "another run", flipped(setup["invite"], 11)),
        ("advertise", "a byte more", setup["invite"] + "00"),
        ("deal", "another batch", flipped(setup["adverts"], 43)),
        ("deal", "another share key of shop-1", flipped(setup["adverts"], advert + 222 + 63)),
        ("deal", "another mask key of shop-1", flipped(setup["adverts"], advert + 222 + 63 + 32)),
        ("deal", "another signature of shop-1", flipped(setup["adverts"], advert + 2 * 222 - 1)),
        ("deal", "cut", setup["adverts"][:-2]),
        ("accept", "another box of shop-3", flipped(setup["deliveries"][0], -1)),
        ("accept", "another digest of its own deal", flipped(setup["deliveries"][0], 51 + 10 + 2 + 2)),
        ("accept", "for another shop", setup["deliveries"][1]),
        ("sign", "two survivors", survivors_of(index, context, [0, 1]).hex()),
        ("sign", "without shop-0", survivors_of(index, context, [1, 2, 3]).hex()),
        ("sign", "another plan", flipped(good, 51)),
        ("sign", "another round", flipped(good, 43)),
        ("sign", "out of order", survivors_of(index, context, [1, 0, 3]).hex()),
        ("reveal", "two signatures", signatures_over(index, bytes.fromhex(good), [0, 1]).hex()),
        ("reveal", "by a dropped shop", signatures_over(index, bytes.fromhex(good), [0, 1, 2, 3]).hex()),
        (
            "reveal",
            "over another set",
            signatures_over(index, survivors_of(index, context, [0, 1, 2, 3]), [0, 1, 3]).hex(),
        ),
        ("reveal", "another signature", flipped(last["signatures"], -1)),
    ]
    return [{"step": step, "what": what, "message": message} for step, what, message in cases]


def main() -> None:
    shops = [Shop(place) for place in range(4)]
    setup = setup_messages(shops)
    rounds = [round_messages(shops, index, bytes.fromhex(setup["digest"])) for index in ROUNDS]
    found = {
        "parameters": PARAMETERS,
        "parameters_digest": AGREED.hex(),
        "run_id": RUN_ID,
        "run_digest": RUN.hex(),
        "identities": [sha256(b"identity of ", name.encode()).hex() for name in NAMES],
        "adverts_by_shop": [shop.advert.hex() for shop in shops],
        "setup": setup,
        "rounds": rounds,
        "tampered": tampered(setup, rounds[-1]),
    }
    path = Path(__file__).with_name("secure_aggregation.json")
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
