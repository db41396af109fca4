"""Identity keys: who signed, and who can read the key."""

from __future__ import annotations

import os
import pickle
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedrec.errors import BadMessage, BadSignature, StoreError
from fedrec.secure_aggregation.keys import IdentityKey, PublicKey

# RFC 8032, section 7.1, test 2.
SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_the_published_vector_is_met():
    key = IdentityKey.from_bytes(SECRET)
    assert key.public == PublicKey(PUBLIC)
    assert key.sign(b"\x72") == SIGNATURE
    key.public.verify(b"\x72", SIGNATURE)


@pytest.mark.parametrize("place", [0, 31, 32, 63])
def test_a_changed_signature_message_or_key_is_refused(place):
    public = PublicKey(PUBLIC)
    changed = bytearray(SIGNATURE)
    changed[place] ^= 1
    for message, signature in ((b"\x72", bytes(changed)), (b"\x73", SIGNATURE), (b"\x72", SIGNATURE[:-1]), (b"", b"")):
        with pytest.raises(BadSignature):
            public.verify(message, signature)
    with pytest.raises(BadSignature):
        IdentityKey.generate().public.verify(b"\x72", SIGNATURE)


def test_every_identity_is_new_and_so_is_its_fingerprint():
    keys = [IdentityKey.generate() for _ in range(5)]
    assert len({key.public for key in keys}) == len({key.public.fingerprint() for key in keys}) == 5
    assert [len(part) for part in keys[0].public.fingerprint().split("-")] == [4] * 8


def test_a_key_file_is_its_owners_alone_and_gives_the_same_identity(tmp_path):
    key = IdentityKey.generate()
    mask = os.umask(0)
    try:
        key.save(tmp_path / "shop.pem")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "shop.pem").stat().st_mode) == 0o600
    assert IdentityKey.load(tmp_path / "shop.pem").public == key.public


def test_a_key_is_never_overwritten(tmp_path):
    first = IdentityKey.generate()
    first.save(tmp_path / "shop.pem")
    with pytest.raises(StoreError, match="already"):
        IdentityKey.generate().save(tmp_path / "shop.pem")
    assert IdentityKey.load(tmp_path / "shop.pem").public == first.public


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_read_is_refused(tmp_path, mode):
    IdentityKey.generate().save(tmp_path / "shop.pem")
    (tmp_path / "shop.pem").chmod(mode)
    with pytest.raises(StoreError, match="chmod 600"):
        IdentityKey.load(tmp_path / "shop.pem")


def test_what_is_no_key_is_refused(tmp_path):
    with pytest.raises(StoreError):
        IdentityKey.load(tmp_path / "missing.pem")
    with pytest.raises(StoreError):
        IdentityKey.generate().save(tmp_path / "no folder" / "shop.pem")
    other = X25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for name, content in (("empty", b""), ("text", b"not a key"), ("x25519", other)):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
        with pytest.raises(StoreError):
            IdentityKey.load(tmp_path / name)
    for length in (0, 31, 33):
        with pytest.raises(BadMessage):
            IdentityKey.from_bytes(bytes(length))
        with pytest.raises(BadMessage):
            PublicKey(bytes(length))


def test_nothing_that_is_printed_or_copied_shows_the_private_key():
    key = IdentityKey.from_bytes(SECRET)
    shown = f"{key!r} {key} {vars(type(key))}"
    assert SECRET.hex() not in shown
    assert repr(SECRET)[2:-1] not in shown
    with pytest.raises(TypeError):
        pickle.dumps(key)
