"""Masks: the stream is the standard's, they cancel exactly, and seeds are bound to their purpose."""

from __future__ import annotations

import hashlib
import hmac
import itertools

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from fedrec.errors import BadMessage
from fedrec.secure_aggregation.masks import add_mask, check_public_key, derive_seed, pair_seed, public_key

SEED = bytes(range(32))
DTYPES = ("<u4", "<u8")
# The stream is made in pieces of 2^17 bytes: around their ends, and beyond several of them.
SIZES = (0, 1, 3, 2**14 - 1, 2**14, 2**14 + 1, 2**15 - 1, 2**15, 2**15 + 1, 100_003)

# RFC 7748, section 6.1.
ALICE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
ALICE_PUBLIC = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
BOB_PUBLIC = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
SHARED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")

PRIME = 2**255 - 19
ORDER_EIGHT = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
LOW_ORDER = (0, 1, *ORDER_EIGHT, PRIME - 1, PRIME, PRIME + 1)


def mask_of(size: int, dtype: str, seed: bytes = SEED) -> np.ndarray:
    values = np.zeros(size, dtype)
    add_mask(values, seed, sign=1)
    return values


def test_the_published_block_of_aes_is_met():
    # The known answer of AES-256 for a key and a block of zeros.
    assert mask_of(4, "<u4", bytes(32)).tobytes().hex() == "dc95c078a2408989ad48a21492842087"
    assert mask_of(2, "<u8", bytes(32)).tobytes().hex() == "dc95c078a2408989ad48a21492842087"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_the_mask_is_one_unbroken_stream(size, dtype):
    stream = Cipher(algorithms.AES(SEED), modes.CTR(bytes(16))).encryptor().update(bytes(8 * size))
    expected = np.frombuffer(stream, dtype)[:size]
    assert np.array_equal(mask_of(size, dtype), expected)
    taken = np.full(size, 7, dtype)
    add_mask(taken, SEED, sign=-1)
    assert np.array_equal(taken, np.full(size, 7, dtype) - expected)


@given(num_shops=st.integers(2, 6), size=st.integers(0, 50), dtype=st.sampled_from(DTYPES), data=st.data())
def test_masks_of_pairs_cancel_in_the_sum(num_shops, size, dtype, data):
    highest = int(np.iinfo(dtype).max)
    element = st.integers(0, highest) | st.just(highest)
    rows = [np.array(data.draw(st.lists(element, min_size=size, max_size=size)), dtype) for _ in range(num_shops)]
    plain = np.sum(rows, axis=0, dtype=dtype)
    for earlier, later in itertools.combinations(range(num_shops), 2):
        seed = hashlib.sha256(bytes([earlier, later])).digest()
        add_mask(rows[earlier], seed, sign=1)
        add_mask(rows[later], seed, sign=-1)
    assert np.array_equal(np.sum(rows, axis=0, dtype=dtype), plain)


def test_the_bytes_of_a_mask_are_uniform():
    counts = np.bincount(mask_of(2**18, "<u4").view(np.uint8), minlength=256)
    expected = 2**20 / 256
    # Chi squared with 255 degrees of freedom: mean 255, sd 22.6; the seed is fixed, so there is no false alarm.
    assert np.sum((counts - expected) ** 2 / expected) < 350


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(4, "<i4"),
        np.zeros(4, "<u2"),
        np.zeros(4, ">u4"),
        np.zeros(4, "<f8"),
        np.zeros((2, 2), "<u4"),
        np.zeros(8, "<u4")[::2],
    ],
    ids=["signed", "short", "big-endian", "float", "table", "strided"],
)
def test_only_a_contiguous_row_of_ring_elements_is_masked(values):
    with pytest.raises(TypeError):
        add_mask(values, SEED, sign=1)
    assert not values.any()


@pytest.mark.parametrize(("seed", "sign"), [(SEED[:16], 1), (SEED + b"\0", 1), (b"", 1), (SEED, 0), (SEED, 2)])
def test_short_seeds_and_other_signs_are_refused(seed, sign):
    values = np.zeros(4, "<u4")
    with pytest.raises(ValueError, match="seed of"):
        add_mask(values, seed, sign=sign)
    assert not values.any()


def test_a_derived_seed_is_hkdf_without_salt():
    # RFC 5869 by hand: extract with a key of zeros, expand to one block.
    info = b"".join(len(part).to_bytes(4, "little") + part for part in (b"label", b"one", b""))
    extracted = hmac.digest(bytes(32), SHARED, "sha256")
    assert derive_seed(SHARED, "label", b"one", b"") == hmac.digest(extracted, info + b"\1", "sha256")


def test_other_secrets_labels_and_parts_give_other_seeds():
    asked = [
        (SEED, "label", b"ab", b"c"),
        (SEED, "label", b"a", b"bc"),
        (SEED, "label", b"abc"),
        (SEED, "label", b"abc", b""),
        (SEED, "labela", b"bc"),
        (SEED, "other", b"ab", b"c"),
        (bytes(32), "label", b"ab", b"c"),
    ]
    assert len({derive_seed(*each) for each in asked}) == len(asked)


def test_both_sides_of_a_pair_come_to_the_same_seed():
    assert public_key(ALICE) == ALICE_PUBLIC
    assert public_key(BOB) == BOB_PUBLIC
    seed = pair_seed(ALICE, BOB_PUBLIC, "masks", b"context")
    assert seed == pair_seed(BOB, ALICE_PUBLIC, "masks", b"context") == derive_seed(SHARED, "masks", b"context")
    assert seed != pair_seed(ALICE, BOB_PUBLIC, "masks", b"another context")


@pytest.mark.parametrize("high_bit", [0, 2**255], ids=["", "high bit set"])
@pytest.mark.parametrize("point", LOW_ORDER)
def test_points_of_low_order_are_refused(point, high_bit):
    key = (point + high_bit).to_bytes(32, "little")
    with pytest.raises(BadMessage, match="low order"):
        pair_seed(ALICE, key, "masks")
    with pytest.raises(BadMessage, match="low order"):
        check_public_key(key)


@pytest.mark.parametrize("key", [b"", ALICE_PUBLIC[:31], ALICE_PUBLIC + b"\0"])
def test_keys_of_another_length_are_refused(key):
    with pytest.raises(BadMessage):
        pair_seed(ALICE, key, "masks")
    with pytest.raises(BadMessage):
        check_public_key(key)


def test_a_good_key_passes_the_check():
    check_public_key(ALICE_PUBLIC)
    check_public_key(BOB_PUBLIC)
