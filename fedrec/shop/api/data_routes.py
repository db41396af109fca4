"""What a shop's systems send: events and items; and what a shopper may demand: her data, and to be forgotten."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from fedrec.errors import DataError
from fedrec.shop.api.documented import answers, body_of, named, problems
from fedrec.shop.api.problems import ApiError, findings
from fedrec.shop.api.reading import ByHand, json_answer, read_body, read_json, too_much
from fedrec.shop.api.schemas import (
    MOST_EVENTS,
    ErasureOut,
    EventBatch,
    EventIn,
    Hidden,
    ItemBatch,
    ItemIn,
    ItemsOut,
    ShopperOut,
    TakenOut,
)
from fedrec.shop.api.security import Guard
from fedrec.shop.store.rows import Event, EventKind, Item, KeyScope, check_id, check_not_ahead
from fedrec.shop.store.store import EventRow


def make_router(guard: Guard) -> APIRouter:
    """Routes under ``/v1`` that write, and those of one shopper's data."""
    router = APIRouter(prefix="/v1", tags=["data"], route_class=ByHand)

    @router.post(
        "/events",
        summary="What shoppers did",
        operation_id="send_events",
        responses=answers(TakenOut, 400, 413),
        openapi_extra=body_of(EventBatch),
    )
    async def send_events(request: Request) -> Response:
        shop = (await guard.admit(request.scope, KeyScope.WRITE)).shop
        body = await request.body()

        def take() -> dict[str, object]:
            rows, refused = read_events(body)
            done = shop.store.append_rows(rows)
            shop.metrics.took(accepted=done.accepted, duplicates=done.duplicates, refused=len(refused))
            return {
                "accepted": done.accepted,
                "duplicates": done.duplicates,
                "erased": done.erased,
                "refused": refused,
            }

        return json_answer(await run_in_threadpool(take))

    @router.put(
        "/items",
        summary="Add or replace items",
        operation_id="put_items",
        responses=answers(ItemsOut, 400, 413),
        openapi_extra=body_of(ItemBatch),
    )
    async def put_items(request: Request) -> Response:
        shop = (await guard.admit(request.scope, KeyScope.WRITE)).shop
        batch = await read_body(request, ItemBatch)
        items = [Item(**one.model_dump()) for one in batch.items]
        return json_answer({"stored": await run_in_threadpool(shop.store.put_items, items)})

    @router.patch(
        "/items/{item:name}",
        summary="Hide an item from all lists, or show it again",
        operation_id="hide_item",
        status_code=204,
        responses=problems(400, 404, 413),
        openapi_extra={**named("item"), **body_of(Hidden)},
    )
    async def hide_item(request: Request) -> Response:
        shop = (await guard.admit(request.scope, KeyScope.WRITE)).shop
        key, wanted = _name(request, "item"), await read_body(request, Hidden)
        if not await run_in_threadpool(shop.store.hide_items, [key], is_hidden=wanted.is_hidden):
            raise ApiError(404, "there is no such item")
        return Response(status_code=204)

    @router.delete(
        "/items/{item:name}",
        summary="Sell an item no more; its events stay",
        operation_id="delete_item",
        status_code=204,
        responses=problems(404),
        openapi_extra=named("item"),
    )
    async def delete_item(request: Request) -> Response:
        shop = (await guard.admit(request.scope, KeyScope.WRITE)).shop
        if not await run_in_threadpool(shop.store.delete_items, [_name(request, "item")]):
            raise ApiError(404, "there is no such item")
        return Response(status_code=204)

    @router.get(
        "/items/{item:name}",
        summary="An item",
        operation_id="item",
        responses=answers(ItemIn, 404),
        openapi_extra=named("item"),
    )
    async def item(request: Request) -> Response:
        shop = (await guard.admit(request.scope, KeyScope.READ)).shop
        found = await run_in_threadpool(shop.store.item, _name(request, "item"))
        if found is None:
            raise ApiError(404, "there is no such item")
        return json_answer(found)

    @router.get(
        "/shoppers/{shopper:name}",
        summary="All that the shop holds of a shopper",
        operation_id="export_shopper",
        responses=answers(ShopperOut, 404),
        openapi_extra=named("shopper"),
    )
    async def export_shopper(request: Request) -> Response:
        shop = (await guard.admit(request.scope, KeyScope.ADMIN)).shop
        found = await run_in_threadpool(shop.export, _name(request, "shopper"))
        if found is None:
            raise ApiError(404, "the shop holds nothing of this shopper")
        return json_answer(found)

    @router.delete(
        "/shoppers/{shopper:name}",
        summary="Forget a shopper",
        description="Her events, impressions, private vectors and lists; an event of hers from before is not taken "
        "again, from whatever file it comes. The answer says what past releases may still tell of her.",
        operation_id="erase_shopper",
        responses=answers(ErasureOut),
        openapi_extra=named("shopper"),
    )
    async def erase_shopper(request: Request) -> Response:
        shop = (await guard.admit(request.scope, KeyScope.ADMIN)).shop
        return json_answer(await run_in_threadpool(shop.erase, _name(request, "shopper")))

    return router


def read_events(body: bytes) -> tuple[list[EventRow], list[dict[str, object]]]:
    """A batch, event by event.

    Returns:
        Rows for the store, and what was refused, as `fedrec.shop.api.schemas.RefusedEvent`.
    Raises:
        ApiError: 400 no JSON, 422 no batch.
    """
    given = read_json(body)
    events = given.get("events") if isinstance(given, dict) and given.keys() == {"events"} else None
    if not isinstance(events, list) or not 0 < len(events) <= MOST_EVENTS:
        raise ApiError(422, f'give {{"events": [...]}} with 1 to {MOST_EVENTS:,} events, and nothing else')
    now = time.time()
    rows: list[EventRow] = []
    refused: list[dict[str, object]] = []
    for index, one in enumerate(events):
        try:
            if (found := too_much(EventIn, one)) is not None:
                raise DataError(f"{found['where']}: {found['message']}")
            event = EventIn.model_validate(one)
            at = now if event.timestamp is None else event.timestamp
            check_not_ahead(at, now)
            made = Event(
                event.shopper, event.item, EventKind(event.kind), at, event.value, event.event_id, event.list_id
            )
            rows.append((made.event_id, made.shopper, made.item, made.kind.value, made.value, at, made.list_id))
        except (ValidationError, DataError) as error:
            if isinstance(error, ValidationError):
                detail = "; ".join(f"{place['where']}: {place['message']}" for place in findings(error))
            else:
                detail = str(error)
            event_id = one.get("event_id") if isinstance(one, dict) else None
            known = event_id if isinstance(event_id, str) else None
            refused.append({"index": index, "event_id": known, "detail": detail})
    return rows, refused


def _name(request: Request, kind: str) -> str:
    return check_id(kind, request.path_params[kind])
