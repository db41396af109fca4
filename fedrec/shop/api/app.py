"""The application: several shops behind one port, each reached by its own keys alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

import fedrec
from fedrec.shop.api import dashboard, data_routes, list_routes, operation_routes
from fedrec.shop.api.documented import describe
from fedrec.shop.api.live_shop import LiveShop
from fedrec.shop.api.problems import install
from fedrec.shop.api.security import Edge, Guard

MOST_BODY_BYTES = 4 * 1024**2


def make_app(
    shops: Mapping[str, LiveShop], *, origins: Sequence[str] = (), most_body_bytes: int = MOST_BODY_BYTES
) -> FastAPI:
    """An ASGI application.

    Args:
        shops: open ones, by name; at least one. They are watched for new models while the application runs, and closed
            when it ends.
        origins: web pages that browsers may call it from, ``https://shop.example.org``.
        most_body_bytes: a longer body is refused.
    """

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        for shop in shops.values():
            shop.start()
        try:
            yield
        finally:
            for shop in shops.values():
                await shop.close()

    app = FastAPI(
        title="fedrec shop",
        version=fedrec.__version__,
        lifespan=running,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # an answer that repeats the Host header leads wherever the caller says
        separate_input_output_schemas=False,
    )
    guard = Guard(shops)
    app.include_router(list_routes.make_router(guard))
    app.include_router(data_routes.make_router(guard))
    app.include_router(operation_routes.make_router(guard, shops))
    app.include_router(dashboard.make_router(guard))
    describe(app)
    install(app)
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"], allow_headers=["Authorization"]
        )
    app.add_middleware(Edge, most_body_bytes=most_body_bytes)
    return app
