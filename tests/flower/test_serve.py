"""Serving: what is refused before anything is answered."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest
from fastapi import FastAPI

from fedrec.errors import ConfigError
from fedrec.flower.certificates import TlsFiles, create_authority, issue
from fedrec.flower.fleet import serve


@pytest.fixture
def tls(tmp_path: Path) -> TlsFiles:
    files = TlsFiles.in_folder(tmp_path)
    create_authority(files, "test")
    issue(files, "127.0.0.1")
    return files


def test_a_port_in_use_a_plain_port_off_the_loopback_and_a_broken_certificate_are_refused(tls):
    app, here = FastAPI(), "127.0.0.1"
    with serve(app, host=here, port=0) as port:
        for arguments, words in (
            ({"host": here, "port": port}, "something running there"),
            ({"host": "0.0.0.0", "port": 0}, "127.0.0.1 alone"),
            ({"host": "192.0.2.1", "port": 0, "certificate": tls.certificate, "key": tls.key}, "cannot be listened on"),
            ({"host": here, "port": 0, "certificate": tls.key.with_name("no.pem"), "key": tls.key}, "no certificate"),
            ({"host": here, "port": 0, "certificate": tls.authority, "key": tls.key}, "no certificate with its key"),
        ):
            with pytest.raises(ConfigError, match=words), serve(app, **arguments):
                pass


def test_tls_below_1_3_is_refused(tls):
    context = ssl.create_default_context(cafile=str(tls.authority))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        serve(FastAPI(), host="127.0.0.1", port=0, certificate=tls.certificate, key=tls.key) as port,
        socket.create_connection(("127.0.0.1", port)) as raw,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(raw, server_hostname="127.0.0.1")


def test_a_request_that_never_ends_does_not_delay_the_end():
    app = FastAPI()
    with socket.socket() as held:
        with serve(app, host="127.0.0.1", port=0) as port:
            held.connect(("127.0.0.1", port))
            held.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf")
            held.settimeout(30)
            assert held.recv(100).startswith(b"HTTP/1.1 404")
            held.sendall(b"POST / HTTP/1.1\r\n")
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("serve-")]
