"""Requests, read by hand after the key was checked, so that nobody without one makes the server parse anything."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TypeVar, get_args, get_origin
from urllib.parse import parse_qsl, unquote

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.types import Receive, Scope, Send

from fedrec.shop.api.problems import ApiError, findings
from fedrec.shop.api.schemas import ListQuery
from fedrec.shop.lists.ranked import Query
from fedrec.shop.lists.shelf import Wanted

M = TypeVar("M", bound=BaseModel)


class _Name(StringConvertor):
    """A name in a path, whatever is in it: `fedrec.shop.api.security.Edge` leaves the path percent-encoded, so that a
    slash in a name is none of the path's. What is no UTF-8 is no name, and is refused in words as an empty one is.
    """

    regex = "[^/]*"

    def convert(self, value: str) -> str:
        """The name itself."""
        try:
            return unquote(value, errors="strict")
        except ValueError:
            return ""


register_url_convertor("name", _Name())


class ByHand(APIRoute):
    """A route whose endpoint reads the request itself: FastAPI describes it, and adds nothing to its time."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The endpoint as it is; errors become problems where the application's do."""
        if scope["method"] in (self.methods or ()):
            response: Response = await self.endpoint(Request(scope, receive, send))
            await response(scope, receive, send)
        else:
            await super().handle(scope, receive, send)


_SEVERAL = frozenset(name for name, field in ListQuery.model_fields.items() if field.default == ())
_MOST_QUERY_BYTES = 8_192
MOST_BOOST = 1_000.0


@lru_cache(maxsize=512)  # a website asks with the same few
def read_query(raw: bytes) -> Query:
    """What list the parameters ask for.

    Args:
        raw: the query string.
    Raises:
        ApiError: 422, with what is wrong where.
    """
    return query_of(_read_parameters(raw))


def query_of(wanted: ListQuery) -> Query:
    """What the lists are asked.

    Raises:
        ApiError: 422, a boost that cannot be read.
    """
    boost = {}
    for one in wanted.boost:
        key, _, number = one.rpartition("=")
        try:
            boost[key] = float(number)
        except ValueError:
            boost[key] = float("nan")
        if not key or not abs(boost[key]) <= MOST_BOOST:
            raise ApiError(422, f"boost: give item=number, the number from -{MOST_BOOST:g} to {MOST_BOOST:g}")
    return Query(
        n=wanted.n,
        offset=wanted.offset,
        wanted=Wanted(
            categories_in=frozenset(wanted.category),
            categories_out=frozenset(wanted.not_category),
            price_min=wanted.price_min,
            price_max=wanted.price_max,
            is_in_stock=wanted.in_stock,
        ),
        exclude=frozenset(wanted.exclude),
        include_bought=wanted.include_bought,
        diversity=wanted.diversity,
        boost=boost,
        pin=wanted.pin,
        explain=wanted.explain,
        seed=wanted.seed,
    )


def _read_parameters(raw: bytes) -> ListQuery:
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
    if (found := too_much(model, given)) is not None:
        raise ApiError(422, "the request is not as documented", errors=[found])
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise ApiError(422, "the request is not as documented", errors=findings(error)) from None


def too_much(model: type[BaseModel], given: object) -> dict[str, str] | None:
    """The first place with more names or members than the model takes; None = there is none.

    Asked before anybody looks at the parts: to say what is wrong with each of a million of them takes half a minute.
    """
    if not isinstance(given, dict):
        return None
    names, lists = _bounds(model)
    if len(given) > len(names):
        unknown = next(str(name) for name in given if name not in names)
        return {"where": unknown[:40], "message": "there is no such field"}
    for name, (most, member) in lists.items():
        if isinstance(value := given.get(name), list):
            if len(value) > most:
                return {"where": name, "message": f"at most {most:,}"}
            for place, one in enumerate(value if member is not None else ()):
                if (found := too_much(member, one)) is not None:  # type: ignore[arg-type]
                    return {**found, "where": f"{name}.{place}.{found['where']}"}
    return None


@cache
def _bounds(model: type[BaseModel]) -> tuple[frozenset[str], dict[str, tuple[int, type[BaseModel] | None]]]:
    """A model's fields, and of its lists the longest length and the model of a member."""
    lists = {}
    for name, field in model.model_fields.items():
        most = next((one.max_length for one in field.metadata if hasattr(one, "max_length")), None)
        if most is not None and get_origin(field.annotation) is tuple:
            member = get_args(field.annotation)[0]
            is_model = isinstance(member, type) and issubclass(member, BaseModel)
            lists[name] = most, member if is_model else None
    return frozenset(model.model_fields), lists


def json_answer(found: object) -> Response:
    """200 with it."""
    return Response(orjson.dumps(found), media_type="application/json")
