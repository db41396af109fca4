"""A federation's own certificate authority, and the coordinator's certificate under it.

Shops trust this authority and no other for the coordinator's address, so nobody else's certificate is accepted. EC
P-256; authority ten years, certificate 397 days.
"""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedrec.errors import StoreError
from fedrec.secure_aggregation.keys import write_new

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 397
_EARLIER = datetime.timedelta(minutes=10)
"""Certificates begin this much in the past: clocks differ."""


@dataclass(frozen=True)
class TlsFiles:
    """Where a coordinator keeps its certificates.

    Attributes:
        authority, certificate: PEM, public.
        authority_key, key: PEM, mode 0600.
    """

    authority: Path
    authority_key: Path
    certificate: Path
    key: Path

    @classmethod
    def in_folder(cls, folder: Path) -> TlsFiles:
        """The usual names."""
        return cls(
            *(folder / name for name in ("authority.pem", "authority.key", "coordinator.pem", "coordinator-tls.key"))
        )


def create_authority(files: TlsFiles, name: str, *, now: datetime.datetime | None = None) -> None:
    """Write a new authority.

    Args:
        name: of the federation.
    Raises:
        StoreError: there is one, or the folder cannot be written.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedrec {name}"[:64])])
    certificate = (
        _begin(subject, subject, key.public_key(), days=AUTHORITY_DAYS, now=now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(files.authority_key, _private(key), 0o600)
    _write(files.authority, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def issue(
    files: TlsFiles, host: str, *, days: int = CERTIFICATE_DAYS, now: datetime.datetime | None = None
) -> x509.Certificate:
    """Write a certificate for the coordinator's host, with a new key; replaces the one before.

    Args:
        host: name or address under which shops reach it.
        days: lifetime.
    Raises:
        StoreError: the authority cannot be read.
    """
    try:
        authority = x509.load_pem_x509_certificate(files.authority.read_bytes())
        authority_key = serialization.load_pem_private_key(files.authority_key.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise StoreError(f"{files.authority}: no readable certificate authority ({type(error).__name__})") from error
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = []
    for one in dict.fromkeys((host, "localhost", "127.0.0.1")):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(one)))
        except ValueError:
            names.append(x509.DNSName(one))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    certificate = (
        _begin(subject, authority.subject, key.public_key(), days=days, now=now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    new = [path.with_name(f".{path.name}.new") for path in (files.key, files.certificate)]
    for path in new:
        path.unlink(missing_ok=True)
    _write(new[0], _private(key), 0o600)
    _write(new[1], certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    for path, target in zip(new, (files.key, files.certificate), strict=True):
        path.replace(target)
    return certificate


def days_left(certificate: Path, *, now: datetime.datetime | None = None) -> float:
    """Days until a certificate ends; negative when it has ended.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        ends = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        raise StoreError(f"{certificate}: no readable certificate ({type(error).__name__})") from error
    return (ends - (now or datetime.datetime.now(datetime.UTC))).total_seconds() / 86400


def _begin(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, days: int, now: datetime.datetime | None
) -> x509.CertificateBuilder:
    start = now or datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _EARLIER)
        .not_valid_after(start + datetime.timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """A new file; one that is there is not overwritten."""
    try:
        write_new(path, data, mode)
    except FileExistsError as error:
        raise StoreError(f"{path}: is there already; it is not overwritten") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror})") from error
