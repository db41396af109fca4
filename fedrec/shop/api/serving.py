"""Runs the application until it is told to stop."""

from __future__ import annotations

import gc
import ipaddress
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from fedrec.errors import ConfigError
from fedrec.shop.api.patience import Patience, open_files

_SWITCH_S = 0.0005
"""Longest that a thread (writing events, opening a model) keeps the event loop waiting for Python's lock."""


@dataclass(frozen=True)
class Address:
    """Where to listen.

    Attributes:
        host, port: port 0 = a free one.
        certificate, private_key: PEM files; None = plain HTTP.
        is_behind_proxy: plain HTTP may leave the loopback, since something else ends TLS.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    certificate: Path | None = None
    private_key: Path | None = None
    is_behind_proxy: bool = False

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise ConfigError("give both a certificate and its private key, or neither")
        if self.certificate is None and not self.is_behind_proxy and not _is_loopback(self.host):
            raise ConfigError(
                f"{self.host}: keys would travel in plain text; give --certificate and --private-key, or "
                "--behind-proxy where something else ends TLS"
            )


def serve(make_app: Callable[[], ASGIApp], address: Address, announce: Callable[[str], None]) -> None:
    """Serve in this thread until SIGTERM or Ctrl-C; answers under way are finished first.

    Args:
        make_app: makes the application once the port is ours.
        announce: is told the address once it answers.
    Raises:
        ConfigError: the address is in use or not this machine's, or the certificate cannot be read.
    """
    with _listener(address) as listener:
        config = uvicorn.Config(
            make_app(),
            http=Patience,
            log_config=None,
            access_log=False,  # its lines would name shoppers
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="on",
            timeout_keep_alive=75,
            timeout_graceful_shutdown=10,
            ssl_certfile=None if address.certificate is None else str(address.certificate),
            ssl_keyfile=None if address.private_key is None else str(address.private_key),
        )
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"{address.certificate}: no certificate with its key ({error})") from error
        if config.ssl is not None:
            config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
        open_files()
        sys.setswitchinterval(_SWITCH_S)
        gc.collect()
        gc.freeze()  # catalogue and model stay: no collection has to look at them
        _Server(config, lambda: announce(_url(address, listener))).run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end the server, and a server that ended as asked has not failed."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start()


def _listener(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family, backlog=2048)
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(
            f"{address.host}:{address.port}: cannot be listened on ({why}); is something running there?"
        ) from error


def _url(address: Address, listener: socket.socket) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"http{'' if address.certificate is None else 's'}://{host}:{listener.getsockname()[1]}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
