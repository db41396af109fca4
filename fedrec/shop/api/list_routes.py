"""Lists: read by hand and answered as bytes, since they are what a page waits for."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from fedrec.shop.api.documented import answers, body_of, parameters_of
from fedrec.shop.api.kept_lists import ListName
from fedrec.shop.api.reading import ByHand, query_of, read_body
from fedrec.shop.api.schemas import CartQuery, ListQuery, RankedOut, SessionQuery
from fedrec.shop.api.security import Guard
from fedrec.shop.store.rows import KeyScope


def make_router(guard: Guard) -> APIRouter:
    """Routes under ``/v1`` that answer a list."""
    router = APIRouter(prefix="/v1", tags=["lists"], route_class=ByHand)

    def listed(path: str, name: ListName, summary: str, *names: str) -> None:
        async def handler(request: Request) -> Response:
            shop = (await guard.admit(request.scope, KeyScope.READ)).shop
            subject = request.path_params[names[0]] if names else ""
            raw = request.scope["query_string"]
            return Response(await shop.answer(name, subject, raw), media_type="application/json")

        router.add_api_route(
            path,
            handler,
            summary=summary,
            operation_id=name.value.replace("-", "_"),
            responses=answers(RankedOut, *([404] if name in (ListName.SIMILAR, ListName.TOGETHER) else [])),
            openapi_extra=parameters_of(ListQuery, *names),
        )

    listed("/shoppers/{shopper:name}/recommendations", ListName.HOME, "A shopper's list", "shopper")
    listed("/items/{item:name}/similar", ListName.SIMILAR, "Items like an item", "item")
    listed("/items/{item:name}/bought-together", ListName.TOGETHER, "What the same shoppers bought", "item")
    listed("/popular", ListName.POPULAR, "What most shoppers bought")
    listed("/trending", ListName.TRENDING, "What is popular lately")
    listed("/new", ListName.NEW, "What is new in the catalogue")

    @router.post(
        "/session",
        summary="For somebody unknown",
        responses=answers(RankedOut, 400, 413),
        operation_id="session",
        openapi_extra=body_of(SessionQuery),
    )
    async def session(request: Request) -> Response:
        shop = (await guard.admit(request.scope, KeyScope.READ)).shop
        query = await read_body(request, SessionQuery)
        return Response(
            await shop.answer_for(ListName.SESSION, query.items, None, query_of(query)), media_type="application/json"
        )

    @router.post(
        "/cart",
        summary="What goes with a cart",
        responses=answers(RankedOut, 400, 413),
        operation_id="cart",
        openapi_extra=body_of(CartQuery),
    )
    async def cart(request: Request) -> Response:
        shop = (await guard.admit(request.scope, KeyScope.READ)).shop
        query = await read_body(request, CartQuery)
        body = await shop.answer_for(ListName.CART, query.items, query.shopper, query_of(query))
        return Response(body, media_type="application/json")

    return router
