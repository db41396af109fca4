"""A flood from an enrolled shop or from one address: it waits or is shut out, and the others finish their round."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, suppress

import httpx
import pytest
from flwr.app import Message
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fedrec.flower import fleet, limits
from fedrec.flower.exchange import exchange
from fedrec.flower.limits import Doorman, peer_of

from .test_link import Link, answer_to, data_of, link, signed, tls  # noqa: F401 - fixtures

PER_S, AT_ONCE = 20.0, 10


def test_one_address_holds_few_lines_and_a_closed_one_makes_room(monkeypatch):
    monkeypatch.setattr(limits, "NEW_LINES_PER_S", 1e6)
    with Doorman(("127.0.0.1", 0), most_lines=2) as doorman, ExitStack() as far:

        def line() -> socket.socket:
            far.enter_context(socket.create_connection(doorman.getsockname()))
            return doorman.accept()[0]

        first, second = line(), line()
        with pytest.raises(ConnectionAbortedError):
            line()
        first.close()
        first.close()
        third = line()
        with pytest.raises(ConnectionAbortedError):
            line()
        second.close()
        third.close()
        assert doorman._open.total() == 0


def test_all_addresses_of_one_ipv6_network_count_as_one_and_those_of_ipv4_each():
    assert peer_of("2001:db8::1") == peer_of("2001:db8::ffff:2%eth0") != peer_of("2001:db8:0:1::1")
    assert len({peer_of(one) for one in ("::ffff:10.0.0.1", "::ffff:10.0.0.2", "10.0.0.1", "10.0.0.2", "::1")}) == 5


def test_one_address_opens_few_lines_a_second():
    with Doorman(("127.0.0.1", 0), most_lines=3) as doorman:
        opened = 0
        for _ in range(6):
            far = socket.create_connection(doorman.getsockname())
            with suppress(ConnectionAbortedError):
                doorman.accept()[0].close()
                opened += 1
            far.close()
        assert 3 <= opened < 6


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Link:
    monkeypatch.setattr(fleet, "REQUESTS_PER_S", PER_S)
    monkeypatch.setattr(fleet, "REQUESTS_AT_ONCE", AT_ONCE)
    return request.getfixturevalue("link")


def test_a_shop_that_floods_waits_for_its_turns_and_the_others_finish_their_rounds(paced: Link):
    """Six lines of an enrolled key ask as fast as they can, with answers that matter to nobody."""
    bee, over = paced.client("bee"), threading.Event()
    bee.connect()
    paced.client("ant").connect()
    served: list[int] = []
    asked = PullMessagesRequest(node=Node(node_id=paced.fleet.nodes["ant"])).SerializeToString()
    headers = {**signed(paced.keys["ant"]), "content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}

    def flood() -> None:
        with paced.http() as http:
            while not over.is_set():
                with suppress(httpx.HTTPError):
                    served.append(http.post("/v1/fleet/pull-messages", content=asked, headers=headers).status_code)

    def work() -> None:
        while not over.is_set():
            if (message := bee.receive()) is None:
                time.sleep(0.3)
                continue
            bee.send(answer_to(message))
            bee.confirm(message)

    threads = [threading.Thread(target=flood, daemon=True) for _ in range(6)]
    threads.append(threading.Thread(target=work, daemon=True))
    began = time.monotonic()
    for thread in threads:
        thread.start()
    try:
        for size in range(3):
            messages: dict[str, Message] = paced.ask(size + 1, shops=("bee",))
            (reply,) = exchange(paced.grid, messages, deadline_s=120, read=data_of)
            assert reply.data == b"answer"
    finally:
        over.set()
        for thread in threads:
            thread.join(timeout=30)
    most = AT_ONCE + PER_S * (time.monotonic() - began) + fleet.MOST_REQUESTS
    assert 0 < served.count(200) <= most
    assert set(served) <= {200, 429}
