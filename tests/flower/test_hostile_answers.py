"""A coordinator that means harm, towards an agent: what it answers is bounded, not unpacked, and leads nowhere."""

from __future__ import annotations

import gzip
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from flwr.app import Message
from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesResponse

from fedrec.flower import _agent_compat
from fedrec.flower.certificates import TlsFiles
from fedrec.flower.exchange import bytes_from_record, bytes_to_record, exchange
from fedrec.flower.fleet import serve

from .test_agent import ask, coordinator, echo_app, made, running, tls  # noqa: F401 - fixture

PROTOBUF = (b"content-type", b"application/protobuf")


def answering(status: int, headers: list[tuple[bytes, bytes]], body: Callable[[], Iterator[bytes]]) -> Any:
    """A coordinator that answers every request like this."""

    async def app(scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for chunk in body():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


@contextmanager
def client_of(tls: TlsFiles, app: Any) -> Iterator[_agent_compat.FleetClient]:  # noqa: F811
    with serve(app, host="127.0.0.1", port=0, certificate=tls.certificate, key=tls.key) as port:
        authority = tls.authority.read_bytes()
        client = _agent_compat.FleetClient(f"127.0.0.1:{port}", authority, _agent_compat.new_key(), {})
        yield client
        client.close()


def endless() -> Iterator[bytes]:
    for _ in range(2_000):
        yield bytes(2**16)


@pytest.mark.parametrize("status", [200, 401])
def test_an_answer_without_end_is_dropped(tls, status):  # noqa: F811
    app = answering(status, [PROTOBUF], endless)
    with client_of(tls, app) as client, pytest.raises(ConnectionError, match="larger than any that is due"):
        client.connect()


def test_an_answer_that_says_it_is_large_is_not_read(tls):  # noqa: F811
    app = answering(200, [PROTOBUF, (b"content-length", b"%d" % (2_000 * 2**16))], endless)
    with client_of(tls, app) as client, pytest.raises(ConnectionError, match="larger than any that is due"):
        client.connect()


def test_a_packed_answer_is_not_unpacked(tls):  # noqa: F811
    packed = gzip.compress(bytes(50_000_000))
    app = answering(200, [PROTOBUF, (b"content-encoding", b"gzip")], lambda: iter([packed]))
    with client_of(tls, app) as client, pytest.raises(ConnectionError, match="packed"):
        client.connect()


def test_a_redirection_is_not_followed_to_other_machines_of_the_shop(tls):  # noqa: F811
    """Else a coordinator could post into the shop's own network, and have the shop's upload sent there in clear."""
    with socket.create_server(("127.0.0.1", 0)) as inside:
        inside.settimeout(0.2)
        target = b"http://127.0.0.1:%d/admin" % inside.getsockname()[1]
        app = answering(307, [(b"location", target)], lambda: iter([]))
        with client_of(tls, app) as client, pytest.raises(httpx.HTTPStatusError, match="307"):
            client.connect()
        with pytest.raises(TimeoutError):
            inside.accept()


def test_bytes_that_are_no_message_are_a_failed_connection_and_the_agent_tries_again(tls):  # noqa: F811
    for found in (b"\xff" * 100, PullMessagesResponse(messages_list=[{}]).SerializeToString()):
        answers = iter([ActivateNodeResponse(node_id=5).SerializeToString()])
        app = answering(200, [PROTOBUF], lambda answers=answers, found=found: iter([next(answers, found)]))
        with serve(app, host="127.0.0.1", port=0, certificate=tls.certificate, key=tls.key) as port:
            one, seen = made(tls, _agent_compat.new_key(), port, echo_app())
            with running(one):
                over = threading.Event()
                for _ in range(300):
                    if one.traffic.last_error:
                        break
                    over.wait(0.05)
        assert one.traffic.last_error
        assert seen


def test_a_message_larger_than_its_kind_may_be_is_refused_unread_by_a_fixed_code(tls, caplog):  # noqa: F811
    key = _agent_compat.new_key()
    with coordinator(tls, key) as (grid, port, fleet):
        one, _ = made(tls, key, port, echo_app(), most_bytes=lambda kind: 10_000 if kind == "query.echo" else 0)
        with running(one):
            fleet.wait_for(1, deadline_s=60)
            with caplog.at_level(logging.WARNING, "fedrec.shop"):
                for size in (11_000, 3_000_000):
                    grid = fleet.grid()  # in one process with an agent: the coordinator speaks
                    message = Message(bytes_to_record(bytes(size)), fleet.nodes["ant"], "query.echo")
                    (reply,) = exchange(grid, {"ant": message}, deadline_s=60, read=bytes_from_record)
                    assert (reply.data, reply.refusal) == (None, "MessageTooLarge")
            assert ask(grid, fleet, b"ab") == b"ba"  # and the agent goes on
    assert "refused a message of kind query.echo unread: more than 10,000 bytes" in caplog.text
    assert one.traffic.refused == 2
