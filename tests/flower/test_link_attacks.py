"""A shop that means harm, and an outsider who holds lines open: neither takes memory, time or others' words."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import time
from collections.abc import Iterator

import pytest
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_object_tree, iterate_object_tree
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fedrec.flower import _compat, fleet

from .test_link import Link, answer_to, data_of, link, post, received, signed, tls  # noqa: F401 - fixtures


def begun(link: Link, message: Message, tree: ObjectTree, name: str = "") -> tuple[int, PushMessagesResponse]:  # noqa: F811
    """A reply whose parts the attacker made up."""
    bare = message_to_proto(remove_content_from_message(answer_to(message)))
    bare.metadata.message_id = name or tree.object_id
    request = PushMessagesRequest(
        node=Node(node_id=link.fleet.nodes["ant"]),
        messages_list=[bare],
        message_object_trees=[tree],
        clientapp_runtime_list=[0.0],
    )
    answer = post(link, "push-messages", request, signed(link.keys["ant"]))
    return answer.status_code, PushMessagesResponse.FromString(answer.content if answer.is_success else b"")


def part(name: object, *children: ObjectTree) -> ObjectTree:
    return ObjectTree(object_id=hashlib.sha256(str(name).encode()).hexdigest(), children=children)


def test_a_small_tree_that_unfolds_into_a_huge_one_is_refused(link):  # noqa: F811
    asked = link.ask(shops=("ant",))
    message = received(link, "ant", asked)
    tree = part(0)
    for level in range(1, 40):  # each part twice below the next: once whole, once by its name alone
        tree = part(level, tree, ObjectTree(object_id=tree.object_id))
    assert begun(link, message, tree)[0] == 403
    started = time.monotonic()
    assert list(link.grid.pull_messages([asked["ant"].metadata.message_id])) == []
    assert time.monotonic() - started < 5


def contents_of(count: int, size: int = 3_000_000) -> list[bytes]:
    """What the parts of a reply are made of."""
    return [b"ArrayChunk  %d\x00" % size + bytes([number]) * size for number in range(count)]


def named(content: bytes) -> ObjectTree:
    return ObjectTree(object_id=hashlib.sha256(content).hexdigest())


def push_parts(link: Link, answer: PushMessagesResponse, contents: list[bytes]) -> list[int]:  # noqa: F811
    taken = []
    for content in contents:
        request = PushObjectRequest(
            node=Node(node_id=link.fleet.nodes["ant"]),
            run_id=link.fleet.run_id,
            object_id=named(content).object_id,
            object_content=content,
            session_id=answer.session_id,
        )
        taken.append(post(link, "push-object", request, signed(link.keys["ant"])).status_code)
    return taken


def held(link: Link) -> int:  # noqa: F811
    """Bytes of the attacker's replies at the coordinator."""
    return link.fleet.replies.size_bytes(link.fleet.nodes["ant"])


def bounded(link: Link, most_bytes: int) -> Message:  # noqa: F811
    """A message to the attacker with a bound of its own; large ones were asked for before, and are still open."""
    client, asked = link.client("ant"), link.ask(shops=("ant",))
    node = client.connect()
    link.grid.push_bounded(asked.values(), most_bytes=most_bytes)
    link.grid.push_bounded(link.ask(9, shops=("ant",)).values(), most_bytes=100_000_000)
    message = client.receive()
    assert message is not None
    assert message.metadata.message_id == asked["ant"].metadata.message_id
    _compat.set_identity(message.metadata.run_id, node)
    return message


def test_the_parts_and_bytes_of_a_reply_are_bounded_by_what_its_own_message_can_need(link):  # noqa: F811
    message = bounded(link, 4_000_000)
    assert begun(link, message, part("root", *map(part, range(100_000))))[0] == 403
    contents = contents_of(3)
    status, answer = begun(link, message, part("root", *map(named, contents)))
    assert status == 200
    assert push_parts(link, answer, contents) == [200, 403, 403]


def test_a_bound_goes_with_its_message(link):  # noqa: F811
    message = bounded(link, 4_000_000)
    link.grid.give_up([message.metadata.message_id])
    assert len(link.fleet.replies) == 1
    status, answer = begun(link, message, part("root", *map(named, contents_of(1))))
    assert (status, list(answer.objects_to_push)) == (200, [])  # it came too late
    push_parts(link, answer, contents_of(1))
    assert held(link) == 0


def test_a_reply_that_is_begun_again_leaves_nothing_of_the_first_behind(link):  # noqa: F811
    message = bounded(link, 4_000_000)
    for number in range(5):
        contents = contents_of(5)[number:]
        status, answer = begun(link, message, part("root", *map(named, contents)), name=part("root").object_id)
        assert status == 200
        assert push_parts(link, answer, contents[:1]) == [200]
        assert held(link) == len(contents[0])
    again = begun(link, message, part("root", *map(named, contents)))[1]
    assert list(again.objects_to_push) == [part("root").object_id]  # the same once more: what has come is kept
    link.grid.give_up([message.metadata.message_id])
    assert held(link) == 0


def test_a_whole_reply_is_not_taken_back(link):  # noqa: F811
    message = bounded(link, 4_000_000)
    link.opened[-1].send(answer_to(message, b"first"))
    assert begun(link, message, part("root", *map(named, contents_of(1))))[0] == 403
    _compat.set_identity(link.fleet.run_id)
    (reply,) = link.grid.pull_messages([message.metadata.message_id])
    assert data_of(reply.content) == b"first"


def test_a_reply_cannot_take_the_name_of_anothers_message_nor_confirm_it_away(link):  # noqa: F811
    link.client("bee").connect()
    asked = link.ask()
    message = received(link, "ant", asked)
    others = asked["bee"].metadata.message_id
    assert begun(link, message, part("root"), name=others)[0] == 403
    assert begun(link, message, ObjectTree(object_id=others))[0] == 200  # among its own replies alone
    request = ConfirmMessageReceivedRequest(
        node=Node(node_id=link.fleet.nodes["ant"]), run_id=message.metadata.run_id, message_object_id=others
    )
    assert post(link, "confirm-message-received", request, signed(link.keys["ant"])).status_code == 403
    bee = link.client("bee")
    bee.connect()
    assert bee.receive() is not None


def test_parts_that_a_shop_lied_about_do_not_spoil_the_coordinators_messages(link):  # noqa: F811
    """Contents are sent again (offers, models), so a shop knows the names of parts to come."""
    bee = link.client("bee")
    bee.connect()
    message = received(link, "ant", link.ask(size=9, shops=("ant",)))
    _compat.set_identity(link.fleet.run_id)
    again = link.ask(size=7, shops=("bee",))
    content = again["bee"].content
    known = iterate_object_tree(get_object_tree(content))
    lies = [ObjectTree(object_id=one.object_id, children=[part("never sent")]) for one in known]
    assert begun(link, message, part("root", *lies))[0] == 200
    _compat.set_identity(link.fleet.run_id)
    link.grid.push_messages(again.values())
    found = bee.receive()
    assert found is not None
    assert data_of(found.content) == data_of(content)
    link.grid.give_up([one.metadata.message_id for one in again.values()])


def test_parts_that_a_shop_lied_about_do_not_spoil_anothers_reply(link):  # noqa: F811
    """Replies are often the same bytes (an agreement, an empty list), so a shop knows the parts of others' to come."""
    bee, asked = link.client("bee"), link.ask()
    node = bee.connect()
    message = received(link, "ant", asked)
    known = iterate_object_tree(get_object_tree(answer_to(message).content))
    lies = [ObjectTree(object_id=one.object_id, children=[part("never sent")]) for one in known]
    assert begun(link, message, part("root", *lies))[0] == 200
    other = bee.receive()
    _compat.set_identity(link.fleet.run_id, node)
    bee.send(answer_to(other))
    _compat.set_identity(link.fleet.run_id)
    (reply,) = link.grid.pull_messages([asked["bee"].metadata.message_id])
    assert data_of(reply.content) == b"answer"
    link.grid.give_up([one.metadata.message_id for one in asked.values()])
    assert link.is_empty()


def test_a_body_that_comes_too_slowly_is_dropped_and_a_shop_has_few_requests_open(link, line, monkeypatch):  # noqa: F811
    monkeypatch.setattr(fleet, "MOST_REQUESTS", 1)
    monkeypatch.setattr(fleet, "MOST_REQUEST_S", 3.0)
    lines = [f"{name}: {value}" for name, value in signed(link.keys["ant"]).items()]
    kinds = [f"content-type: {PROTOBUF_MEDIA_TYPE}", "content-length: 9"]
    line.sendall(
        "\r\n".join(["POST /v1/fleet/push-object HTTP/1.1", "host: x", *kinds, *lines]).encode() + b"\r\n\r\n."
    )
    give_up_at = time.monotonic() + 2.5
    second = 200
    while second != 429 and time.monotonic() < give_up_at:
        second = post(link, "pull-messages", PullMessagesRequest(), signed(link.keys["ant"])).status_code
    assert second == 429
    assert line.recv(100).split()[1] == b"408"
    assert post(link, "pull-messages", PullMessagesRequest(), signed(link.keys["bee"])).status_code != 429


@pytest.fixture
def line(link: Link) -> Iterator[ssl.SSLSocket]:  # noqa: F811
    context = ssl.create_default_context(cafile=str(link.tls.authority))
    raw = socket.create_connection(("127.0.0.1", link.port), timeout=20)
    with context.wrap_socket(raw, server_hostname="127.0.0.1") as found:
        yield found


@pytest.mark.parametrize(
    "extra",
    [
        ["content-length: 1", "transfer-encoding: chunked"],
        ["transfer-encoding: chunked", "content-length: 1"],
        ["content-length: 1", "content-length: 99999999"],
        ["content-length: \xb2"],
        ["content-length: " + "9" * 5000],
        ["content-length: -1"],
        ["content-length: +1"],
    ],
)
def test_lengths_that_can_be_read_in_two_ways_are_refused(link, line, extra):  # noqa: F811
    lines = [f"{name}: {value}" for name, value in signed(link.keys["ant"]).items()] + extra
    head = "\r\n".join(["POST /v1/fleet/push-object HTTP/1.1", "host: x", *lines]) + "\r\n\r\n"
    line.sendall(head.encode("latin-1"))
    assert line.recv(100).split()[1] in (b"400", b"411", b"413")


def test_a_line_on_which_no_request_comes_is_closed(link, monkeypatch):  # noqa: F811
    monkeypatch.setattr(fleet, "MOST_SILENCE_S", 0.3)
    context = ssl.create_default_context(cafile=str(link.tls.authority))
    for sent in (b"", b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: x\r\n"):
        raw = socket.create_connection(("127.0.0.1", link.port), timeout=20)
        with context.wrap_socket(raw, server_hostname="127.0.0.1") as held:
            held.sendall(sent)
            with contextlib.suppress(ConnectionResetError, ssl.SSLError):
                assert held.recv(1) == b""
