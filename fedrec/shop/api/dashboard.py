"""The dashboard at ``/``: what the shop serves and what it has cost, for people; plain pages without a script.

**Guarantee:** nothing of a shop is on a page without a key of that shop; whatever comes from a shop (titles, names,
shoppers) is text on it and never markup, and the browser is told to run no script and to load nothing from elsewhere.
A key or a shopper is in no address, so in no history and no log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from fedrec.errors import DataError, FedrecError, StoreError
from fedrec.reports.privacy_words import number
from fedrec.shop.api import dashboard_figures as figures
from fedrec.shop.api.dashboard_plots import plot
from fedrec.shop.api.dashboard_session import COOKIE, Session, Sessions, check_origin
from fedrec.shop.api.problems import ApiError, unexpected
from fedrec.shop.api.security import Grant, Guard
from fedrec.shop.store.rows import KeyScope, check_id

_FOLDER = Path(__file__).parent / "templates"
_SAFE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_WIDTHS = {"wide": 680.0, "narrow": 340.0}
_OPENING_S = 10.0
_AGAIN = "this key opens no shop here; give one that begins with fr_ and was not revoked"


def make_router(guard: Guard) -> APIRouter:
    """Pages for people."""
    router = APIRouter(include_in_schema=False)
    desk = _Desk(guard)
    router.add_api_route("/", desk.page, methods=["GET"])
    router.add_api_route("/dashboard/style.css", desk.style, methods=["GET"])
    router.add_api_route("/dashboard/login", desk.log_in, methods=["POST"])
    router.add_api_route("/dashboard/logout", desk.form(KeyScope.READ, desk.log_out), methods=["POST"])
    router.add_api_route("/dashboard/shopper", desk.form(KeyScope.READ, desk.look_up), methods=["POST"])
    router.add_api_route("/dashboard/roll-back", desk.form(KeyScope.ADMIN, desk.roll_back), methods=["POST"])
    return router


Form = dict[str, str]
Handler = Callable[[Grant, Session, Form], Awaitable[Response]]


class _Desk:
    """The pages of all shops; a session decides which shop's."""

    def __init__(self, guard: Guard) -> None:
        self._guard, self._sessions, self._figures = guard, Sessions(), figures.Figures()
        self._style = (_FOLDER / "dashboard.css").read_bytes()
        self._pages = Environment(
            loader=FileSystemLoader(_FOLDER),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._pages.filters |= {"number": number, "percent": lambda share: f"{100 * share:.1f}\u00a0%"}

    async def style(self) -> Response:
        """The pages' style; the same for everybody."""
        return Response(self._style, media_type="text/css", headers={"Cache-Control": "max-age=300"})

    async def page(self, request: Request) -> Response:
        """The dashboard, or the form that asks for a key."""
        if (session := self._sessions.of(request)) is None:
            return self._login(200, "")
        try:
            grant = await self._guard.admit_session(request.scope, KeyScope.READ, session.shop, session.key_id)
            return await self._dashboard(grant, session)
        except Exception as error:
            return self._refused(error)

    async def log_in(self, request: Request) -> Response:
        """Begin a session."""
        try:
            check_origin(request)
            header = f"Bearer {(await _read(request)).get('key', '').strip()}".encode("ascii", "replace")
            scope = {"headers": [(b"authorization", header)]}
            grant = await self._guard.admit(scope, KeyScope.READ)
        except Exception as error:
            return self._refused(error, _AGAIN)
        request.scope["fedrec.shop"] = grant.shop
        answer = RedirectResponse("/", 303)
        self._sessions.give(answer, self._sessions.begin(grant.shop.name, grant.key_id), request)
        return answer

    def form(self, needed: KeyScope, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """A handler of a form that somebody with a session sends."""

        async def answered(request: Request) -> Response:
            try:
                check_origin(request)
                if (session := self._sessions.of(request)) is None:
                    return self._login(401, "the session is over; give your key again")
                form = await _read(request)
                self._sessions.check_form(session, form.get("token", ""))
                grant = await self._guard.admit_session(request.scope, needed, session.shop, session.key_id)
                return await handler(grant, session, form)
            except Exception as error:
                return self._refused(error)

        return answered

    async def log_out(self, grant: Grant, session: Session, form: Form) -> Response:
        """End the session."""
        self._sessions.end(session)
        answer = RedirectResponse("/", 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    async def look_up(self, grant: Grant, session: Session, form: Form) -> Response:
        """A shopper's list, with reasons; what she did is for those who may export it."""
        shopper = check_id("shopper", form.get("shopper", "").strip())
        found = await figures.look_up(grant.shop, shopper)
        is_admin = grant.scope >= KeyScope.ADMIN
        return self._answer("shopper.html", 200, **self._common(grant, session), found=found, is_admin=is_admin)

    async def roll_back(self, grant: Grant, session: Session, form: Form) -> Response:
        """Serve another version; answers once it is served, or cannot be."""
        version = check_id("version", form.get("version", ""))
        await run_in_threadpool(grant.shop.roll_back, version)
        deadline = time.monotonic() + _OPENING_S
        while grant.shop.current != version and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return RedirectResponse("/#versions", 303)

    async def _dashboard(self, grant: Grant, session: Session) -> Response:
        shop = grant.shop
        clicks = await run_in_threadpool(figures.clicks, shop)
        try:
            budget, trouble = await run_in_threadpool(self._figures.budget, shop), ""
        except FedrecError as error:
            budget, trouble = None, str(error)
        plots: dict[str, Any] = {"clicks": {}, "budget": {}}
        for name, width in _WIDTHS.items():
            if clicks.lines:
                plots["clicks"][name] = plot(
                    clicks.lines, width=width, value=lambda y: f"{100 * y:.3g}\u00a0%", bars=clicks.shown
                )
            if budget is not None:
                plots["budget"][name] = plot([budget.line], width=width, value=lambda y: f"{y:g}", limit=budget.epsilon)
        return self._answer(
            "dashboard.html",
            200,
            **self._common(grant, session),
            served=(await shop.lists_for(None)).model.served,
            models=await run_in_threadpool(shop.models),
            judged=await run_in_threadpool(figures.judged, shop),
            coverage=await self._figures.coverage(shop),
            clicks=clicks,
            days=figures.DAYS,
            list_length=figures.LIST_LENGTH,
            budget=budget,
            ledger_trouble=trouble,
            plots=plots,
            is_admin=grant.scope >= KeyScope.ADMIN,
        )

    def _common(self, grant: Grant, session: Session) -> dict[str, Any]:
        return {
            "shop": grant.shop.name,
            "scope": grant.scope.name.lower(),
            "trouble": grant.shop.trouble,
            "token": self._sessions.form_token(session),
        }

    def _login(self, status: int, message: str) -> Response:
        return self._answer("login.html", status, message=message)

    def _refused(self, error: Exception, about_key: str = "") -> Response:
        """The page for what went wrong; nothing of the error's inside is on it."""
        if isinstance(error, ApiError) and error.status == 401:
            return self._login(401, about_key or "this key is no longer valid; give another one")
        if isinstance(error, ApiError):
            return self._answer("problem.html", error.status, message=str(error))
        if isinstance(error, HTTPException):
            return self._answer("problem.html", error.status_code, message=str(error.detail))
        if isinstance(error, DataError):
            return self._answer("problem.html", 422, message=str(error))
        logged = unexpected(error).status_code
        message = "the shop's store cannot be reached now" if isinstance(error, StoreError) else "the server failed"
        return self._answer("problem.html", logged, message=f"{message}; its log says more. Try again")

    def _answer(self, template: str, status: int, **values: Any) -> Response:
        return HTMLResponse(self._pages.get_template(template).render(values), status, _SAFE)


async def _read(request: Request) -> Form:
    try:
        return dict(parse_qsl((await request.body()).decode("ascii"), keep_blank_values=True, errors="strict"))
    except ValueError as error:
        raise DataError("the form cannot be read; go back and send it again") from error
