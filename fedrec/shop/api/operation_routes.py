"""What whoever runs the shop asks: health, metrics, models, privacy, click-through."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from fedrec.shop.api.documented import answers, body_of, problems
from fedrec.shop.api.live_shop import LiveShop
from fedrec.shop.api.metrics import MEDIA_TYPE
from fedrec.shop.api.reading import json_answer, read_body
from fedrec.shop.api.schemas import ClickThroughOut, HealthOut, ModelsOut, PrivacyOut, ToVersion
from fedrec.shop.api.security import Guard
from fedrec.shop.store.rows import KeyScope


def make_router(guard: Guard, shops: Mapping[str, LiveShop]) -> APIRouter:
    """Health without a key; everything else with one."""
    router = APIRouter()
    _add_health(router, shops)

    @router.get(
        "/metrics",
        summary="Figures of the shop, for Prometheus",
        tags=["operation"],
        operation_id="metrics",
        description="With a key, not by address: behind a reverse proxy everybody comes from this machine.",
        responses={200: {"description": "As asked.", "content": {"text/plain": {}}}, **problems()},
    )
    async def metrics(request: Request) -> Response:
        shop = (await guard.admit(request.scope, KeyScope.READ)).shop
        return Response(await run_in_threadpool(shop.metrics_text), media_type=MEDIA_TYPE)

    @router.get(
        "/v1/models", summary="Model versions", tags=["operation"], operation_id="models", responses=answers(ModelsOut)
    )
    async def models(request: Request) -> Response:
        shop = (await guard.admit(request.scope, KeyScope.READ)).shop
        return json_answer(await run_in_threadpool(shop.models))

    @router.post(
        "/v1/models/roll-back",
        summary="Serve the model before the current one again, or the one named",
        tags=["operation"],
        operation_id="roll_back",
        responses=answers(ModelsOut, 400, 409, 413),
        openapi_extra=body_of(ToVersion),
    )
    async def roll_back(request: Request) -> Response:
        shop = (await guard.admit(request.scope, KeyScope.ADMIN)).shop
        wanted = await read_body(request, ToVersion)
        return json_answer(await run_in_threadpool(shop.roll_back, wanted.version))

    @router.get(
        "/v1/privacy",
        summary="What is promised, spent and left",
        tags=["operation"],
        operation_id="privacy",
        responses=answers(PrivacyOut),
    )
    async def privacy(request: Request) -> Response:
        shop = (await guard.admit(request.scope, KeyScope.READ)).shop
        return json_answer(await run_in_threadpool(shop.privacy))

    @router.get(
        "/v1/click-through",
        summary="Lists shown and clicked, by day, list, model version and arm",
        tags=["operation"],
        operation_id="click_through",
        description="A click is an event with the list's `list_id` that names an item of that list, of the shopper "
        "whose list it was (of anybody where it was nobody's), and that speaks for the item: no dislike, no return, no "
        "rating below the shop's `good_rating`. Of lists from before their items were noted any item counts.",
        responses=answers(ClickThroughOut),
    )
    async def click_through(request: Request) -> Response:
        shop = (await guard.admit(request.scope, KeyScope.READ)).shop
        return json_answer({"rows": await run_in_threadpool(shop.click_through)})

    return router


def _add_health(router: APIRouter, shops: Mapping[str, LiveShop]) -> None:
    @router.get(
        "/health/live",
        summary="Whether the process answers",
        tags=["operation"],
        operation_id="live",
        responses={200: answers(HealthOut)[200]},
        openapi_extra={"security": []},
    )
    async def live() -> Response:
        return json_answer({"status": "ok"})

    @router.get(
        "/health/ready",
        summary="Whether lists can be served",
        tags=["operation"],
        operation_id="ready",
        description="`degraded`, with 200: lists are served, but by the last good model, not by the newest, or "
        "by none that any event taught, or without one whose scores are not finite, or the store takes no events.",
        responses={200: answers(HealthOut)[200], 503: problems()[503]},
        openapi_extra={"security": []},
    )
    async def ready() -> Response:
        for shop in shops.values():
            await run_in_threadpool(shop.store.mark)  # without its store no list can be served: 503
        troubles = [trouble for shop in shops.values() for trouble in shop.troubles[:1]]
        if not troubles:
            return json_answer({"status": "ok"})
        return json_answer({"status": "degraded", "detail": f"{len(troubles)} of {len(shops)} shops: {troubles[0]}"})
