"""The OpenAPI description of routes that read their requests by hand, from the same models that check them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from fedrec.shop.api.problems import MEDIA_TYPE, Problem
from fedrec.shop.api.schemas import (
    CartQuery,
    ClickThroughOut,
    ErasureOut,
    EventBatch,
    HealthOut,
    Hidden,
    ItemBatch,
    ItemIn,
    ItemsOut,
    ListQuery,
    ModelsOut,
    PrivacyOut,
    RankedOut,
    SessionQuery,
    ShopperOut,
    TakenOut,
    ToVersion,
)
from fedrec.shop.store.rows import MAX_ID_LENGTH

_BY_HAND: tuple[type[BaseModel], ...] = (
    *(CartQuery, EventBatch, Hidden, ItemBatch, SessionQuery, ToVersion),
    *(ClickThroughOut, ErasureOut, HealthOut, ItemIn, ItemsOut, ModelsOut, PrivacyOut, RankedOut, ShopperOut, TakenOut),
    Problem,
)
_REFERENCE = "#/components/schemas/{model}"
_DESCRIPTIONS = {
    400: "The body is no JSON.",
    401: "No valid key.",
    403: "The key's scope is too small.",
    404: "There is none of that name.",
    409: "Not possible now.",
    413: "The body is too long.",
    422: "A parameter, or a place in the body, is not as documented.",
    429: "Too many requests with this key.",
    503: "The store cannot be reached or written now.",
}
ABOUT = """\
Recommendations of one shop. The key chooses the shop; every list says which model it is from, what anybody outside the
shop can learn of one shopper (`epsilon_outside`), and, with `explain`, why each item is on it. Refusals are problems
(RFC 9457). Names in paths are percent-encoded.
"""


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that can refuse so; those of every route with a key are added."""
    content = {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}}
    return {
        status: {"description": _DESCRIPTIONS[status], "content": content}
        for status in sorted({401, 403, 422, 429, 503, *statuses})
    }


def answers(model: type[BaseModel], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """As `problems`, and what is answered otherwise."""
    schema = {"$ref": _REFERENCE.format(model=model.__name__)}
    return {
        200: {"description": "As asked.", "content": {"application/json": {"schema": schema}}},
        **problems(*statuses),
    }


def named(*path: str) -> dict[str, Any]:
    """``openapi_extra``: names in the path."""
    schema = {"type": "string", "minLength": 1, "maxLength": MAX_ID_LENGTH}
    return {"parameters": [{"name": name, "in": "path", "required": True, "schema": schema} for name in path]}


def parameters_of(model: type[ListQuery], *path: str) -> dict[str, Any]:
    """``openapi_extra``: names in the path, and a parameter of the query for each field."""
    schema = model.model_json_schema()
    parameters: list[dict[str, Any]] = named(*path)["parameters"]
    for name, field in schema["properties"].items():
        about = field.pop("description", "")
        kinds = [one for one in field.pop("anyOf", []) if one.get("type") != "null"]
        if kinds:
            field |= kinds[0]
        if field.get("default") is None or field.get("default") == []:
            field.pop("default", None)
        field.pop("title", None)
        parameters.append({"name": name, "in": "query", "required": False, "description": about, "schema": field})
    return {"parameters": parameters}


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """``openapi_extra``: a JSON body."""
    schema = {"$ref": _REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _each_problem_once(found: dict[str, Any]) -> dict[str, Any]:
    """Put the problems of all routes in one place, and refer to it."""
    once: dict[str, Any] = {}
    for operation in (one for methods in found["paths"].values() for one in methods.values()):
        for status, response in operation["responses"].items():
            if MEDIA_TYPE in response.get("content", {}):
                once[status] = response
                operation["responses"][status] = {"$ref": f"#/components/responses/{status}"}
    return dict(sorted(once.items()))


def describe(app: FastAPI) -> None:
    """Make ``app.openapi`` complete: models read by hand, and the key."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, description=ABOUT, routes=app.routes)
            _, made = models_json_schema([(model, "validation") for model in _BY_HAND], ref_template=_REFERENCE)
            components = found.setdefault("components", {})
            components["schemas"] = dict(sorted({**made["$defs"], **components.get("schemas", {})}.items()))
            components["responses"] = _each_problem_once(found)
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": "fr_..."}}
            found["security"] = [{"key": []}]
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
