"""Requests, read by hand after the key was checked, so that nobody without one makes the server parse anything."""

from __future__ import annotations

from typing import TypeVar
from urllib.parse import parse_qsl

import orjson
from fastapi import Request, Response
from pydantic import BaseModel, ValidationError

from fedrec.shop.api.problems import ApiError, findings
from fedrec.shop.api.schemas import ListQuery

M = TypeVar("M", bound=BaseModel)
_SEVERAL = frozenset(name for name, field in ListQuery.model_fields.items() if field.default == ())
_MOST_QUERY_BYTES = 8_192


def read_query(raw: bytes) -> ListQuery:
    """The parameters of a list.

    Args:
        raw: the query string.
    Raises:
        ApiError: 422, with what is wrong where.
    """
    if len(raw) > _MOST_QUERY_BYTES:
        raise ApiError(422, f"a query of at most {_MOST_QUERY_BYTES:,} bytes; POST to /v1/session or /v1/cart instead")
    given: dict[str, str | list[str]] = {}
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise ApiError(422, "the query is not percent-encoded UTF-8") from error
    for name, value in pairs:
        if name in _SEVERAL:
            given.setdefault(name, []).append(value)  # type: ignore[union-attr]
        elif name in given:
            raise ApiError(422, "a parameter is given twice", errors=[{"where": name[:40], "message": "give it once"}])
        else:
            given[name] = value
    return checked(ListQuery, given)


async def read_body(request: Request, model: type[M]) -> M:
    """A JSON body.

    Raises:
        ApiError: 400 no JSON, 422 not as documented.
    """
    return checked(model, read_json(await request.body()))


def read_json(body: bytes) -> object:
    """The content of a JSON body.

    Raises:
        ApiError: 400, it is none.
    """
    try:
        return orjson.loads(body)
    except ValueError as error:
        raise ApiError(400, "the body is no JSON") from error


def checked(model: type[M], given: object) -> M:
    """What was given, as documented.

    Raises:
        ApiError: 422, with what is wrong where.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise ApiError(422, "the request is not as documented", errors=findings(error)) from None


def json_answer(found: object) -> Response:
    """200 with it."""
    return Response(orjson.dumps(found), media_type="application/json")
