"""Health and Prometheus metrics of a coordinator or an agent, on 127.0.0.1 alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from fastapi import FastAPI, Response
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from fedrec.flower.fleet import serve

Read = Callable[[], tuple[bool, Mapping[str, float]]]
"""Whether the process is well, and its figures by name."""


def observe_app(read: Read) -> FastAPI:
    """``/health`` (200 or 503) and ``/metrics``."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    def health() -> Response:
        is_well, _ = read()
        return Response("ok\n" if is_well else "unwell\n", 200 if is_well else 503, media_type="text/plain")

    @app.get("/metrics")
    def metrics() -> Response:
        registry = CollectorRegistry()
        is_well, figures = read()
        for name, value in {"up": float(is_well), **figures}.items():
            Gauge(f"fedrec_{name}", name.replace("_", " "), registry=registry).set(value)
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


@contextmanager
def serve_metrics(port: int, read: Read) -> Iterator[int]:
    """Serve them while the block runs; yields the port.

    Raises:
        ConfigError: the port is in use.
    """
    with serve(observe_app(read), host="127.0.0.1", port=port) as bound:
        yield bound
