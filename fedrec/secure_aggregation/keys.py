"""Who somebody is: Ed25519 keys that sign ledger heads, reports and invitations."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedrec.errors import BadMessage, BadSignature, StoreError

KEY_BYTES = 32
SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class PublicKey:
    """The part of an identity that everybody may know.

    Attributes:
        raw: (32,) bytes.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if not (isinstance(self.raw, bytes) and len(self.raw) == KEY_BYTES):
            raise BadMessage(f"a public key has {KEY_BYTES} bytes")

    def __repr__(self) -> str:
        return f"PublicKey({self.fingerprint()})"

    def fingerprint(self) -> str:
        """The first 128 bits of its sha256 in groups of four hex digits, for two people to compare by telephone."""
        digits = hashlib.sha256(b"fedrec identity\0" + self.raw).hexdigest()[:32]
        return "-".join(digits[i : i + 4] for i in range(0, 32, 4))

    def verify(self, message: bytes, signature: bytes) -> None:
        """Check a signature.

        Raises:
            BadSignature: it was not made for these bytes by this identity.
        Source: RFC 8032, section 5.1.7.
        """
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError, TypeError) as error:
            raise BadSignature(
                f"a signature over {len(message)} bytes is not by key {self.fingerprint()}: the bytes were changed or "
                "somebody else signed them"
            ) from error


class IdentityKey:
    """A private key; whoever has it is the shop or the coordinator.

    Guarantee: neither ``repr`` nor pickling shows it; `save` writes a file that only its owner can read.
    """

    __slots__ = ("_key", "public")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        """Use `generate`, `from_bytes` or `load`."""
        self._key = key
        self.public = PublicKey(
            key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        )

    def __repr__(self) -> str:
        return f"IdentityKey({self.public.fingerprint()})"

    def __reduce__(self) -> str:
        raise TypeError("an identity key is not copied by pickle: save it to a file")

    @classmethod
    def generate(cls) -> Self:
        """A new identity, from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """An identity from its 32 private bytes.

        Raises:
            BadMessage: another number of bytes.
        """
        if len(raw) != KEY_BYTES:
            raise BadMessage(f"a private key has {KEY_BYTES} bytes, not {len(raw)}")
        return cls(Ed25519PrivateKey.from_private_bytes(raw))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """An identity from its file.

        Raises:
            StoreError: the file is missing, readable by others, or holds no Ed25519 key.
        """
        path = Path(path)
        try:
            with open(path, "rb") as file:
                others = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077
                pem = file.read()
        except OSError as error:
            raise StoreError(f"{path}: the key cannot be read ({error.strerror})") from error
        if others and os.name == "posix":
            raise StoreError(f"{path}: the key can be read by others; chmod 600 {path}, and consider it known")
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise StoreError(f"{path}: holds no private key in PEM form") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise StoreError(f"{path}: holds another kind of key, Ed25519 is needed")
        return cls(key)

    def save(self, path: str | Path) -> None:
        """Write a PEM file with mode 0600; an existing file is never overwritten.

        Raises:
            StoreError: there is a file, or it cannot be written.
        """
        pem = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        try:
            write_new(path, pem, 0o600)
        except FileExistsError as error:
            raise StoreError(f"{path}: there is a key already; it is not overwritten") from error
        except OSError as error:
            raise StoreError(f"{path}: the key cannot be written ({error.strerror})") from error

    def sign(self, message: bytes) -> bytes:
        """A signature, (64,) bytes. Callers begin the message with what it is, so that none stands for another.

        Source: RFC 8032, section 5.1.6.
        """
        return self._key.sign(message)


def write_new(path: str | Path, data: bytes, mode: int) -> None:
    """Write a file that is not there yet; it is on disk, and was never open to others than ``mode`` says.

    Raises:
        FileExistsError: it is there; it is not overwritten.
        OSError: it cannot be written.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
