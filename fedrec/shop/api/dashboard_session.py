"""Sessions of the dashboard: a key is shown once, then a signed cookie stands for it for an hour.

**Guarantee:** the cookie names a shop and a key's public id; it holds no secret, and nobody makes one without this
process's own random key. A session ends after `SESSION_S`, when somebody logs out, when the server stops, and within
`fedrec.shop.api.security.KEY_AGE_S` of its key being revoked. A form counts only with the token of its own session,
sent from the dashboard's own pages.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from fedrec.shop.api.problems import ApiError

COOKIE = "fedrec_session"
SESSION_S = 3600


@dataclass(frozen=True, repr=False)
class Session:
    """Somebody who showed a key.

    Attributes:
        id: random.
        key_id: of the key.
        ends: seconds since 1970.
        shop: whose key it is.
    """

    id: str
    key_id: str
    ends: int
    shop: str

    @property
    def text(self) -> str:
        """What is signed; the shop's name, which may hold dots, is last."""
        return f"{self.id}.{self.key_id}.{self.ends}.{self.shop}"


class Sessions:
    """Makes sessions and knows its own."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._ended: dict[str, int] = {}

    def begin(self, shop: str, key_id: str) -> Session:
        """A session for a key that was found valid."""
        return Session(secrets.token_hex(16), key_id, int(time.time()) + SESSION_S, shop)

    def end(self, session: Session) -> None:
        """Make it invalid before its time."""
        now = time.time()
        self._ended = {one: ends for one, ends in self._ended.items() if ends > now} | {session.id: session.ends}

    def of(self, request: Request) -> Session | None:
        """The valid session of a request; None = there is none."""
        signature, _, text = request.cookies.get(COOKIE, "").partition(".")
        if not hmac.compare_digest(signature.encode(), self._sign("cookie", text).encode()):
            return None
        session_id, key_id, ends, shop = text.split(".", 3)
        session = Session(session_id, key_id, int(ends), shop)
        return None if session.ends <= time.time() or session.id in self._ended else session

    def give(self, answer: Response, session: Session, request: Request) -> None:
        """Put a session's cookie into an answer; over TLS, the proxy's too, it never travels in plain text."""
        is_secure = request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")
        value = f"{self._sign('cookie', session.text)}.{session.text}"
        answer.set_cookie(COOKIE, value, SESSION_S, httponly=True, samesite="strict", secure=is_secure)

    def form_token(self, session: Session) -> str:
        """What a form of this session must hold."""
        return self._sign("form", session.id)

    def check_form(self, session: Session, token: str) -> None:
        """Refuse a form that is not of this session.

        Raises:
            ApiError: 403.
        """
        if not hmac.compare_digest(token.encode(), self.form_token(session).encode()):
            raise ApiError(403, "this form is not of your session; go back, reload the page and send it again")

    def _sign(self, what: str, text: str) -> str:
        return hmac.new(self._key, f"{what} {text}".encode(), hashlib.sha256).hexdigest()


def check_origin(request: Request) -> None:
    """Refuse what another site's page sent.

    Raises:
        ApiError: 403.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise ApiError(403, "this form was sent by another site")
