"""Certificates of a federation's own authority: what is accepted, and what is refused with which words."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from fedrec.errors import StoreError
from fedrec.flower._agent_compat import FleetClient, new_key
from fedrec.flower.agent import _why
from fedrec.flower.certificates import CERTIFICATE_DAYS, TlsFiles, create_authority, days_left, issue
from fedrec.flower.fleet import serve

NOW = datetime.datetime.now(datetime.UTC)


def made(folder: Path, host: str = "127.0.0.1", **arguments: object) -> TlsFiles:
    folder.mkdir(exist_ok=True)
    files = TlsFiles.in_folder(folder)
    create_authority(files, folder.name)
    issue(files, host, **arguments)
    return files


def refusal(files: TlsFiles, authority: bytes, host: str = "127.0.0.1") -> str:
    """Why an agent does not connect; "" where it got as far as HTTP."""
    app = FastAPI()
    with serve(app, host="127.0.0.1", port=0, certificate=files.certificate, key=files.key) as port:
        client = FleetClient(f"{host}:{port}", authority, new_key(), {})
        try:
            client.connect()
        except httpx.HTTPStatusError:
            return ""
        except httpx.HTTPError as error:
            return _why(error)
        finally:
            client.close()
    raise AssertionError("an application without routes took a node")


def test_the_authoritys_certificate_is_accepted_under_its_name_and_on_the_loopback(tmp_path):
    files = made(tmp_path / "a", "books.example.org")
    for host in ("127.0.0.1", "localhost"):
        assert refusal(files, files.authority.read_bytes(), host) == ""


def test_an_expired_certificate_is_refused_and_a_renewed_one_accepted(tmp_path):
    files = made(tmp_path / "a", days=1, now=NOW - datetime.timedelta(days=3))
    assert days_left(files.certificate) == pytest.approx(-2, abs=0.1)
    found = refusal(files, files.authority.read_bytes())
    assert found == "the coordinator's certificate is refused: certificate has expired"
    issue(files, "127.0.0.1")
    assert days_left(files.certificate) == pytest.approx(CERTIFICATE_DAYS, abs=0.1)
    assert refusal(files, files.authority.read_bytes()) == ""


def test_a_certificate_of_tomorrow_is_refused(tmp_path):
    files = made(tmp_path / "a", now=NOW + datetime.timedelta(days=1))
    assert "not yet valid" in refusal(files, files.authority.read_bytes())


def test_another_authoritys_certificate_is_refused_even_under_the_same_name(tmp_path):
    for other in ("b", "a2"):
        files, wanted = made(tmp_path / other), tmp_path / f"pinned-{other}"
        pinned = made(wanted).authority.read_bytes()
        assert "certificate is refused" in refusal(files, pinned)


def test_a_certificate_for_another_host_is_refused(tmp_path, monkeypatch):
    import socket

    files = made(tmp_path / "a", "books.example.org")
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: resolve("127.0.0.1", *rest, **more)
    )  # "evil.example.org" leads here
    authority = files.authority.read_bytes()
    assert refusal(files, authority, "books.example.org") == ""
    assert "Hostname mismatch" in refusal(files, authority, "evil.example.org")


def test_keys_are_for_the_owner_alone_and_nothing_is_overwritten(tmp_path):
    files = made(tmp_path / "a")
    for path in (files.authority_key, files.key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(StoreError, match="is there already; it is not overwritten"):
        create_authority(files, "a")


def test_a_broken_authority_and_a_missing_certificate_are_named(tmp_path):
    files = made(tmp_path / "a")
    files.authority_key.write_text("x")
    with pytest.raises(StoreError, match="no readable certificate authority"):
        issue(files, "127.0.0.1")
    files.certificate.unlink()
    with pytest.raises(StoreError, match=r"coordinator\.pem: no readable certificate"):
        days_left(files.certificate)


def test_a_renewal_that_fails_leaves_the_old_certificate(tmp_path, monkeypatch):
    files = made(tmp_path / "a")
    before = (files.key.read_bytes(), files.certificate.read_bytes())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        issue(files, "127.0.0.1")
    assert (files.key.read_bytes(), files.certificate.read_bytes()) == before
