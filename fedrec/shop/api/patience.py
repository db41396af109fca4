"""How long, how much and how many: what a connection may cost before anybody knows whose it is.

**Guarantee:** a connection that has not brought a whole request within `REQUEST_S`, or brings a head of more than
`MOST_HEAD_BYTES`, is closed; so is a new one where `Patience.most_connections` are open. Nobody without a key holds the
server's memory or all of its connections for longer.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

import uvicorn.protocols.http.httptools_impl as uvicorn_http

REQUEST_S = 30.0
"""A body of 4 MiB needs 1.2 Mbit/s."""

MOST_HEAD_BYTES = 64 * 1024
_MOST_FILES = 65_536
_SHARE_OF_FILES = 0.8  # the rest for stores


class Patience(uvicorn_http.HttpToolsProtocol):
    """One connection."""

    most_connections: ClassVar[int] = 800
    _until: asyncio.TimerHandle | None = None
    _head_bytes: int | None = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            transport.abort()
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some of a request."""
        if self._head_bytes is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes is not None and self._head_bytes > MOST_HEAD_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._head_bytes = 0
        self._wait()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its body follows."""
        self._head_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """All of it is here."""
        self._head_bytes = 0
        self._wait_no_more()
        super().on_message_complete()

    def _wait(self) -> None:
        self._wait_no_more()
        self._until = self.loop.call_later(REQUEST_S, self.transport.abort)

    def _wait_no_more(self) -> None:
        if self._until is not None:
            self._until.cancel()
            self._until = None


def open_files() -> None:
    """Let this process open as many files as it may, and take connections for most of them."""
    try:
        import resource
    except ImportError:  # Windows has no such bound
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    Patience.most_connections = int(_SHARE_OF_FILES * max(wanted, min(soft, _MOST_FILES)))
