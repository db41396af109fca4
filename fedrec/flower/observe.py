"""Health and Prometheus metrics of a coordinator or an agent, on 127.0.0.1 alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from fedrec.errors import ConfigError

Read = Callable[[], tuple[bool, Mapping[str, float]]]
"""Whether the process is well, and its figures by name."""


def observe_app(read: Read) -> Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]:
    """``/health`` (200 or 503) and ``/metrics``, as a WSGI application."""

    def answer(asked: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        kind, status = "text/plain", "200 OK"
        if asked["REQUEST_METHOD"] != "GET" or asked["PATH_INFO"] not in ("/health", "/metrics"):
            status, body = "404 Not Found", b"not found\n"
        else:
            is_well, figures = read()
            if asked["PATH_INFO"] == "/metrics":
                kind, body = CONTENT_TYPE_LATEST, _exposed({"up": float(is_well), **figures})
            elif is_well:
                body = b"ok\n"
            else:
                status, body = "503 Service Unavailable", b"unwell\n"
        start(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]

    return answer


@contextmanager
def serve_metrics(port: int, read: Read) -> Iterator[int]:
    """Serve them while the block runs; yields the port (0 asks for a free one).

    Raises:
        ConfigError: the port is in use.
    """
    try:
        server = make_server("127.0.0.1", port, observe_app(read), _Server, _Quiet)
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"127.0.0.1:{port}: cannot be listened on ({why}); is something running there?") from error
    with server:
        thread = threading.Thread(target=server.serve_forever, name=f"serve-{port}", daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


def _exposed(figures: Mapping[str, float]) -> bytes:
    registry = CollectorRegistry()
    for name, value in figures.items():
        Gauge(f"fedrec_{name}", name.replace("_", " "), registry=registry).set(value)
    return generate_latest(registry)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    timeout = 10.0  # seconds, of a line that says nothing

    def log_message(self, *_: Any) -> None:
        """Requests are not logged."""
