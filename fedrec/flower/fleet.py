"""The coordinator's end of a deployment: Flower's link state and Fleet API in this process, and nothing else of it.

A stock SuperLink answers shops (Fleet), its own processes (Runtime) and whoever may start runs (Control) on one port.
Here there is no Runtime and no Control API to reach: the coordinator's app runs in this process and talks to the link
state itself. The port serves the eight Fleet routes that a shop's agent needs, over TLS, to enrolled keys alone.

**Guarantee:** a request without a fresh signature by an enrolled key is answered 401 before its body is read, whatever
its path, and its line closed; a signed one can act for its own node alone, and reply in no other's name. What one shop
can make the coordinator hold is bounded: bytes and parts of a reply, requests at a time and a second, seconds of each;
what an address can, its lines. Nothing is written to disk.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.types import ASGIApp, Receive, Scope, Send

from fedrec.errors import BadMessage, ConfigError, ProtocolError
from fedrec.flower import _compat, _link_compat
from fedrec.flower._replies_compat import Replies
from fedrec.flower.agent import INSTANCE_HEADER
from fedrec.flower.exchange import SMALL_REPLY_BYTES
from fedrec.flower.limits import MOST_LINES, Doorman
from fedrec.pace import Pace

MOST_BODY_BYTES = 8 * 1024**2
"""Of one request; Flower splits arrays into chunks of 5 MiB."""

MOST_REQUESTS = 8
"""Of one shop at a time; an agent has two."""

REQUESTS_PER_S, REQUESTS_AT_ONCE = 100.0, 400
"""Of one shop, whose further requests wait; an agent asks five times a second, and for each part of a message."""

MOST_REQUEST_S = 300.0
"""A request that takes longer to come is dropped."""

MOST_SILENCE_S = 15.0
"""A line on which the head of no request has come by then is closed."""

TWO_AGENTS_S = 8.0
"""An agent heard this recently is running: a second one with its key is turned away."""

_PREFIX = "/v1/fleet/"
_ROUTES = (
    *("activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages"),
    *("push-object", "pull-object", "confirm-message-received"),
)
_START_S, _END_S = 20.0, 3.0
_log = logging.getLogger("fedrec.coordinator")


@dataclass
class _Seen:
    """The agent that speaks for a shop: which one, and when it was heard last (monotonic seconds)."""

    instance: str
    heard: float


class Fleet:
    """All shops of a roster as nodes of a link state, and one run of the coordinator over them."""

    def __init__(self, shops: Mapping[str, bytes]) -> None:
        """Args:
        shops: name -> public key of its node, PEM (`fedrec.flower.certificates`).
        """
        self.state = _link_compat.new_link_state()
        self.nodes = {name: _link_compat.create_node(self.state, name, key) for name, key in shops.items()}
        self.run_id = _link_compat.start_run(self.state)
        self._name_of = {node: name for name, node in self.nodes.items()}
        self._seen: dict[int, _Seen] = {}
        self._started: set[str] = set()
        self._lock = threading.Lock()
        self.replies = Replies()

    def grid(self) -> LinkGrid:
        """For the coordinator's app."""
        _compat.set_identity(self.run_id)
        return LinkGrid(self)

    def online(self) -> tuple[str, ...]:
        """Shops whose agent is connected, in roster order."""
        ids = _link_compat.online_nodes(self.state, self.run_id)
        return tuple(name for name, node in self.nodes.items() if node in ids)

    def wait_for(self, num_shops: int, *, deadline_s: float, stop: threading.Event | None = None) -> tuple[str, ...]:
        """Wait until so many shops are connected.

        Raises:
            ProtocolError: after ``deadline_s`` there are fewer, or ``stop`` was set.
        """
        give_up_at = time.monotonic() + deadline_s
        while len(found := self.online()) < num_shops:
            if stop is not None and stop.is_set():
                raise ProtocolError("stopped while it waited for shops")
            if time.monotonic() >= give_up_at:
                missing = [name for name in self.nodes if name not in found]
                raise ProtocolError(
                    f"{len(found)} of {len(self.nodes)} shops connected within {deadline_s:g} s of {num_shops} needed; "
                    f"not seen: {', '.join(missing[:5])}"
                )
            time.sleep(0.05)
        return found

    def admit(self, node: int, instance: str, *, is_start: bool) -> str:
        """Whether an agent may speak for a node; "" or why not."""
        now = time.monotonic()
        with self._lock:
            seen = self._seen.get(node)
            if seen is not None and seen.instance != instance:
                if not is_start:
                    return "another agent took over this shop's key: stop one of the two"
                if now - seen.heard < TWO_AGENTS_S:
                    _log.warning("shop %s: a second agent with its key was turned away", self._name_of[node])
                    return "another agent with this shop's key is running: stop one of the two"
            elif seen is None and not is_start:
                return "the coordinator was started anew: connect again"
            if is_start:
                self._started.add(self._name_of[node])
            self._seen[node] = _Seen(instance, now)
        return ""

    def is_known(self, node: int, instance: str) -> bool:
        """Whether this agent spoke for the node last."""
        with self._lock:
            return node in self._seen and self._seen[node].instance == instance

    def take_started(self) -> set[str]:
        """Shops whose agent connected since this was asked last."""
        with self._lock:
            started, self._started = self._started, set()
        return started

    def forget(self, node: int) -> None:
        """The node's agent said goodbye."""
        with self._lock:
            self._seen.pop(node, None)


class LinkGrid(Grid):
    """Flower's Grid over a link state in this process."""

    def __init__(self, fleet: Fleet) -> None:
        self._state, self._run_id = fleet.state, fleet.run_id
        self._run = _compat.empty_run(fleet.run_id)
        self._fleet = fleet

    @property
    def run(self) -> Any:
        """Run without a bundle."""
        return self._run

    def set_run(self, run: Any) -> None:
        """Flower's processes call this; here the run is made with the grid."""
        raise ProtocolError("the run of a LinkGrid is its fleet's")

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As Flower's."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Ids of the connected nodes."""
        return sorted(_link_compat.online_nodes(self._state, self._run_id))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Leave messages for their nodes; a node that never connected answers "unavailable" at once."""
        return self.push_bounded(messages, most_bytes=SMALL_REPLY_BYTES)

    def push_bounded(self, messages: Iterable[Message], *, most_bytes: int) -> Iterable[str]:
        """As `push_messages`, and say how large a reply to these messages can be."""
        return _link_compat.push(self._state, self._fleet.replies, self._run_id, messages, most_bytes=most_bytes)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are complete, and errors for nodes that are gone; each once."""
        return _link_compat.pull(self._state, self._fleet.replies, self._run_id, message_ids)

    def give_up(self, message_ids: Iterable[str]) -> None:
        """Forget messages that nobody waits for any more; a shop that has not begun with one never sees it."""
        _link_compat.give_up(self._state, self._fleet.replies, message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, then pull until every reply is there or ``timeout`` seconds are over."""
        waiting = set(self.push_messages(messages))
        give_up_at = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (give_up_at is None or time.monotonic() < give_up_at):
            found = list(self.pull_messages(waiting))
            replies += found
            waiting -= {reply.metadata.reply_to_message_id for reply in found}
            if not found:
                time.sleep(0.05)
        return replies


def fleet_app(fleet: Fleet) -> ASGIApp:
    """The web application that shops' agents talk to."""
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=_link_compat.error_translator),
            *(Middleware(kind) for kind in _link_compat.fleet_middlewares()),
            Middleware(_OwnNode, fleet=fleet),
        ],
    )
    _link_compat.include_fleet(app, fleet.state)
    return _Gate(app, fleet)


@dataclass(frozen=True)
class _Gate:
    """Lets through what an enrolled key signed, before anything is read; see the module's guarantee."""

    app: ASGIApp
    fleet: Fleet
    paths: frozenset[str] = field(default=frozenset(_PREFIX + route for route in _ROUTES))
    open: Counter[str] = field(default_factory=Counter)
    pace: Pace = field(default_factory=lambda: Pace(REQUESTS_PER_S, REQUESTS_AT_ONCE))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            refused = self._refusal(scope, headers)
            if refused is None:
                await self._pass(scope, receive, send, _link_compat.key_in(headers))
            else:
                status, detail = refused
                close = {"connection": "close"}  # an outsider holds no line; for a new one its address must wait
                await JSONResponse({"detail": detail}, status, close)(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send, key: str) -> None:
        """One of the few requests that a shop may have open."""
        self.open[key] += 1
        sent: list[Any] = []

        async def noted(message: Any) -> None:
            sent.append(message["type"])
            await send(message)

        try:
            async with asyncio.timeout(MOST_REQUEST_S):
                await asyncio.sleep(self.pace.wait_s(key))
                await self.app(scope, receive, noted)
        except TimeoutError:
            if sent:  # half an answer: the line is closed
                raise
            late = JSONResponse({"detail": "the request took too long"}, 408, {"connection": "close"})
            await late(scope, receive, send)
        finally:
            self.open[key] -= 1

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> tuple[int, str] | None:
        if not _link_compat.is_signed(self.fleet.state, headers):
            return 401, "no enrolled key signed this request, or the clocks differ by more than five minutes"
        if scope["method"] != "POST" or scope["path"] not in self.paths:
            return 404, "not found"
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdecimal()) or "transfer-encoding" in headers:
            return 411, "content-length is missing"
        if len(length) > len(str(MOST_BODY_BYTES)) or int(length) > MOST_BODY_BYTES:
            return 413, f"a request of more than {MOST_BODY_BYTES} bytes"
        if self.open[_link_compat.key_in(headers)] >= MOST_REQUESTS:
            return 429, f"{MOST_REQUESTS} requests of this shop are open"
        return None


class _OwnNode(BaseHTTPMiddleware):
    """One running agent a node, which speaks for that node alone; one that comes back gets its messages again."""

    def __init__(self, app: ASGIApp, fleet: Fleet) -> None:
        super().__init__(app)
        self._fleet = fleet

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        asked = request.state.protobuf_request
        state, is_start = self._fleet.state, request.url.path == _PREFIX + "activate-node"
        node = _link_compat.node_of(state, asked)
        if why := _link_compat.refusal(state, asked, node):
            return JSONResponse({"detail": why}, status_code=403)
        instance = request.headers.get(INSTANCE_HEADER, "")
        is_same = self._fleet.is_known(node, instance)
        if why := self._fleet.admit(node, instance, is_start=is_start):
            return JSONResponse({"detail": why}, status_code=409)
        if is_start:
            _link_compat.restart_node(state, self._fleet.replies, node, is_same=is_same)
        try:
            answer = await run_in_threadpool(self._fleet.replies.answer, node, asked)
        except BadMessage as error:
            return JSONResponse({"detail": str(error)}, status_code=403)
        if answer is not None:
            request.state.protobuf_response = answer
            return Response()
        response = await call_next(request)
        if request.url.path == _PREFIX + "deactivate-node":
            self._fleet.forget(node)
        return response


@contextmanager
def serve(
    app: ASGIApp,
    *,
    host: str,
    port: int,
    certificate: Path | None = None,
    key: Path | None = None,
    most_lines: int = MOST_LINES,
) -> Iterator[int]:
    """Serve an application in a thread of this process; yields the port (0 asks for a free one).

    Args:
        certificate, key: PEM files; TLS 1.3. None = plain, for the loopback interface alone.
        most_lines: of one address.
    Raises:
        ConfigError: the address is in use or not this machine's, plain off the loopback, or a certificate not readable.
    """
    if certificate is None and host not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigError(f"{host}: a plain port is served on 127.0.0.1 alone")
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_certfile=None if certificate is None else str(certificate),
        ssl_keyfile=None if key is None else str(key),
        timeout_keep_alive=75,
        lifespan="off",
        ws="none",
        loop="asyncio",  # another would not ask the doorman
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{certificate}: no certificate with its key ({error})") from error
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    config.http_protocol_class = _impatient(config.http_protocol_class)
    server = uvicorn.Server(config)
    try:
        listener = Doorman((host, port), most_lines=most_lines)
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"{host}:{port}: cannot be listened on ({why}); is something running there?") from error
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name=f"serve-{port}", daemon=True)
    thread.start()
    give_up_at = time.monotonic() + _START_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > give_up_at:
            raise ConfigError(f"{host}:{port}: the server did not start")
        time.sleep(0.01)
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(timeout=_END_S)
        for held in list(server.server_state.connections):  # what agents hold open is not waited for
            held.loop.call_soon_threadsafe(held.transport.abort)
        thread.join(timeout=_END_S)
        listener.close()


def _impatient(protocol: Any) -> Any:
    """The protocol of a line, which closes one on which the head of no request comes."""

    class Impatient(protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(MOST_SILENCE_S, lambda: self.cycle is None and transport.abort())

    return Impatient
