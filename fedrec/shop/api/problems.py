"""Every refusal as problem+json.

**Guarantee:** a problem says what the caller did and can do; it never holds a stack trace, a file path, a key, or
another caller's data, and without a valid key it names no shop.
**Source:** RFC 9457.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from fedrec.errors import ConfigError, DataError, FedrecError, StoreError

MEDIA_TYPE = "application/problem+json"
_MOST_FINDINGS = 8
_NOT_SHOWN = ("include_url", "include_context", "include_input")
_log = logging.getLogger("fedrec.shop.api")


class Finding(BaseModel):
    """One thing wrong with a request."""

    where: str = Field(description="Parameter or place in the body, such as `events.3.kind`.")
    message: str


class Problem(BaseModel):
    """Why a request was refused (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[Finding] | None = None


class ApiError(FedrecError):
    """A refusal with its HTTP status."""

    def __init__(
        self, status: int, detail: str, *, errors: list[dict[str, str]] | None = None, headers: Mapping[str, str] = {}
    ) -> None:
        """Args:
        status: 4xx or 5xx.
        detail: what is wrong and what to give.
        errors: findings, as `Finding`.
        headers: of the answer.
        """
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, errors, dict(headers)


def problem(
    status: int, detail: str, *, errors: list[dict[str, str]] | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer that refuses."""
    body: dict[str, Any] = {"type": "about:blank", "title": _title(status), "status": status, "detail": detail}
    if errors:
        body["errors"] = errors
    return Response(orjson.dumps(body), status, dict(headers or {}), MEDIA_TYPE)


def findings(error: ValidationError | RequestValidationError) -> list[dict[str, str]]:
    """What pydantic found, without the values that it found it in."""
    found = []
    plain = {} if isinstance(error, RequestValidationError) else dict.fromkeys(_NOT_SHOWN, False)
    for entry in error.errors(**plain)[:_MOST_FINDINGS]:
        place = [str(part) for part in entry["loc"] if part not in ("body", "query", "path")]
        found.append({"where": ".".join(place) or "body", "message": str(entry["msg"])})
    return found


def unexpected(error: Exception) -> Response:
    """The answer to what nobody foresaw; the log gets the places in the code, never a value."""
    if isinstance(error, StoreError):
        _log.error("the store did not answer: %s", type(error.__cause__ or error).__name__)
        return problem(
            503, "the shop's store cannot be reached or written now; try again", headers={"Retry-After": "1"}
        )
    places = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(traceback.extract_tb(error.__traceback__)))
    _log.error("unexpected %s at %s", type(error).__name__, places)
    return problem(500, "the server failed; its log says where")


def install(app: FastAPI) -> None:
    """Turn every error of the routes into a problem."""

    def refused(_: Request, error: Exception) -> Response:
        if isinstance(error, ApiError):
            return problem(error.status, error.detail, errors=error.errors, headers=error.headers)
        if isinstance(error, RequestValidationError):
            return problem(422, "the request is not as documented", errors=findings(error))
        if isinstance(error, HTTPException):
            return problem(error.status_code, _http_detail(error), headers=error.headers)
        if isinstance(error, DataError | ConfigError):
            return problem(422, str(error))
        return unexpected(error)

    for kind in (ApiError, RequestValidationError, HTTPException, FedrecError):
        app.add_exception_handler(kind, refused)


def _http_detail(error: HTTPException) -> str:
    known = {404: "there is no such path", 405: "this path does not take this method"}
    return known.get(error.status_code, str(error.detail))


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Refused"
