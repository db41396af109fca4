"""A shop's agent: it stays connected to the coordinator and answers with the shop's app, one message after the other.

Five times a second it looks for messages while a round is under way, every two seconds when nothing has come for a
while. Whatever happens to the network, it tries again with growing pauses; a refusal that will not pass by itself (an
unknown key, a second agent, an expired certificate, a wrong clock) is said in one line and tried again slowly.

An agent that waits needs nothing of what a run needs: the app, its events and its libraries, is opened by the first
message, and `Agent.run` returns when it has been without use for a while, so that the process can begin anew.
"""

from __future__ import annotations

import datetime
import email.utils
import logging
import math
import secrets
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedrec.errors import FedrecError, MessageTooLarge, one_line
from fedrec.flower import _agent_compat, _compat

INSTANCE_HEADER = "fedrec-agent"
"""Names one running agent, so that two with the same key are told apart."""

BUSY_POLL_S = 0.2
IDLE_POLL_S = 2.0
BUSY_FOR_S = 20.0
"""After a message it looks five times a second for this long."""

MOST_MESSAGE_BYTES = 2**30
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
_MOST_CLOCK_S, _MOST_KINDS = 60.0, 20
_log = logging.getLogger("fedrec.shop")


@dataclass
class Traffic:
    """What an agent has seen, for status and metrics.

    Attributes:
        connected: whether the last request was answered.
        answered: messages, by kind.
        refused: those of them that the shop refused.
        last_error: why it is not connected, in one line; "" while it is.
        bytes_up: size of what left, messages' arrays included.
    """

    connected: bool = False
    answered: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    last_error: str = ""
    bytes_up: int = 0


class Agent:
    """Runs until `stop` is set, or its app is no longer used."""

    def __init__(
        self,
        open_app: Callable[[], ClientApp],
        *,
        shop: str,
        address: str,
        authority: bytes,
        node_key: bytes,
        on_change: Callable[[Traffic], None] | None = None,
        app: ClientApp | None = None,
        idle_after_s: float = math.inf,
        traffic: Traffic | None = None,
        most_bytes: Callable[[str], int] = lambda _: MOST_MESSAGE_BYTES,
    ) -> None:
        """Args:
        open_app: gives the app of the shop (`make_member_app`) when the first message comes.
        shop: its name, for logs.
        address: host:port of the coordinator.
        authority: PEM certificate of the federation's authority.
        node_key: PEM private key of the node.
        on_change: called after every message and every change of connection.
        app: that app, where it is open already.
        idle_after_s: an open app without use for so long ends `run`; a run's breaks are use while connected.
        traffic: to go on counting from.
        most_bytes: how large a message of a kind may be; a larger one is refused unread.
        """
        self.stop = threading.Event()
        self.traffic = traffic or Traffic()
        self._open_app, self._app, self._shop, self._address = open_app, app, shop, address
        self._idle_after_s, self._used, self._is_in_run = idle_after_s, time.monotonic(), False
        self._authority, self._node_key = authority, node_key
        self._on_change, self._most_bytes = on_change or (lambda _: None), most_bytes
        self._instance = secrets.token_hex(16)

    def run(self) -> None:
        """Connect, answer, connect again."""
        pause_s = _FIRST_PAUSE_S
        while not self._is_done():
            client = None
            try:
                client = _agent_compat.FleetClient(
                    self._address, self._authority, self._node_key, {INSTANCE_HEADER: self._instance}
                )
                node = client.connect()
                _log.info("shop %s is connected to %s", self._shop, self._address)
                self._note(connected=True, error="")
                pause_s = _FIRST_PAUSE_S
                self._answer_all(client, node)
            except (httpx.HTTPError, ssl.SSLError, OSError, ValueError) as error:
                why = _why(error)
                if why != self.traffic.last_error:
                    _log.warning("shop %s is not connected: %s", self._shop, why)
                self._note(connected=False, error=why)
                self.stop.wait(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            finally:
                if client is not None:
                    _goodbye(client, is_last=self._is_done())
                self._is_in_run = False

    def _is_done(self) -> bool:
        is_open = self._app is not None and not self._is_in_run
        return self.stop.is_set() or (is_open and time.monotonic() - self._used > self._idle_after_s)

    def _answer_all(self, client: _agent_compat.FleetClient, node: int) -> None:
        context = Context(run_id=0, node_id=node, node_config={"shop": self._shop}, state=RecordDict(), run_config={})
        self._used = last_beat = time.monotonic()
        while not self._is_done():
            if time.monotonic() - last_beat > _agent_compat.HEARTBEAT_S / 2:
                client.beat()
                last_beat = time.monotonic()
            try:
                message, reply = _receive(client, self._most_bytes), None
            except _agent_compat.TooLarge as error:
                message, reply = error.message, self._too_large(error.message, node)
            if message is None:
                is_busy = time.monotonic() - self._used < BUSY_FOR_S
                self.stop.wait(BUSY_POLL_S if is_busy else IDLE_POLL_S)
                continue
            with _Beating(client):  # an answer may take longer than a heartbeat
                client.send(reply or self._reply(message, context, node))
            client.confirm(message)
            self._used, self._is_in_run = time.monotonic(), True
            self._on_change(self.traffic)

    def _reply(self, message: Message, context: Context, node: int) -> Message:
        _compat.set_identity(message.metadata.run_id, node)
        kind = message.metadata.message_type
        try:
            self._app = self._app or self._open_app()
            reply = self._app(message, context)
        except (FedrecError, ValueError) as error:
            from fedrec.flower.exchange import unavailable  # more than an agent needs that waits

            if isinstance(error, FedrecError):  # folder, settings or events were changed while it waited
                _log.error("shop %s cannot take part: %s", self._shop, " ".join(str(error).split()))
            else:  # Flower's, of a kind that the app does not know: another version's coordinator
                _log.warning("shop %s cannot answer messages of kind %s", self._shop, one_line(kind))
            reply = unavailable(message, error)
        self._count(kind, is_refused=reply.has_error())
        if not reply.has_error():
            self.traffic.bytes_up += sum(_size(record) for record in reply.content.values())
        return reply

    def _too_large(self, message: Message, node: int) -> Message:
        from fedrec.flower.exchange import unavailable

        _compat.set_identity(message.metadata.run_id, node)
        kind = message.metadata.message_type
        error = MessageTooLarge(f"more than {self._most_bytes(kind):,} bytes; policy.max_message_mb bounds all")
        _log.warning("shop %s refused a message of kind %s unread: %s", self._shop, one_line(kind), error)
        self._count(kind, is_refused=True)
        return unavailable(message, error)

    def _count(self, kind: str, *, is_refused: bool) -> None:
        """Count a message by its kind, which is the coordinator's word: only so many, and each short."""
        name, known = one_line(kind), self.traffic.answered
        name = name if name in known or len(known) < _MOST_KINDS else "other"
        known[name] = known.get(name, 0) + 1
        self.traffic.refused += is_refused

    def _note(self, *, connected: bool, error: str) -> None:
        self.traffic.connected, self.traffic.last_error = connected, error
        self._on_change(self.traffic)


class _Beating:
    """Heartbeats from a thread of its own, over a connection of the same client."""

    def __init__(self, client: _agent_compat.FleetClient) -> None:
        self._client, self._done = client, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._done.wait(_agent_compat.HEARTBEAT_S / 2):
            try:
                self._client.beat()
            except httpx.HTTPError:  # the answer itself will meet it too
                return


def _receive(client: _agent_compat.FleetClient, most_bytes: Callable[[str], int]) -> Message | None:
    """The next message; what is none counts as a failure of the connection, whatever the coordinator has sent."""
    try:
        return client.receive(most_bytes)
    except (httpx.HTTPError, OSError, _agent_compat.TooLarge):
        raise
    except Exception as error:
        raise ConnectionError(f"the coordinator sent what is no message ({type(error).__name__})") from error


def _goodbye(client: _agent_compat.FleetClient, *, is_last: bool) -> None:
    """Leave at once rather than by a missed heartbeat."""
    try:
        if is_last and client.node_id:
            client.disconnect()
    except (httpx.HTTPError, OSError, ValueError):
        pass  # the coordinator will notice by itself
    finally:
        client.close()


def _why(error: Exception) -> str:
    """One line on why there is no connection."""
    if isinstance(error, httpx.HTTPStatusError):
        response = error.response
        try:
            body = response.json()
            detail = one_line(str(body.get("detail") or body.get("message") or ""))
        except (ValueError, AttributeError, RecursionError):
            detail = ""
        if response.status_code == httpx.codes.UNAUTHORIZED and (clock := _clock_difference(response)):
            return clock
        return f"the coordinator answers {response.status_code}: {detail or one_line(response.reason_phrase)}"
    text = one_line(str(error)) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        reason = text.rpartition("verify failed:")[2].split("(")[0].strip() or "not under the pinned authority"
        return f"the coordinator's certificate is refused: {reason}"
    return f"no connection: {text}"


def _clock_difference(response: httpx.Response) -> str:
    """What the coordinator's clock says about this one; "" where they agree."""
    try:
        there = email.utils.parsedate_to_datetime(response.headers["date"])
    except (KeyError, ValueError, TypeError):
        return ""
    behind_s = (there - datetime.datetime.now(datetime.UTC)).total_seconds()
    if abs(behind_s) < _MOST_CLOCK_S:
        return ""
    return f"this machine's clock is {abs(behind_s):.0f} s {'behind' if behind_s > 0 else 'ahead of'} the coordinator's"


def _size(record: Any) -> int:
    values = [getattr(value, "data", value) for value in record.values()]
    return sum(len(value) for value in values if isinstance(value, bytes))
