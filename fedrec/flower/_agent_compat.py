"""Private Flower symbols of a shop's agent: its node's key, and the client of the Fleet API.

Written against Flower 1.41; a new Flower version is adopted by running tests/flower/test_link.py. Apart from
`_link_compat`, so that an agent that waits loads nothing of the coordinator's side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

HEARTBEAT_S = float(HEARTBEAT_MIN_INTERVAL)
"""An agent not heard for twice this long counts as gone."""


def new_key() -> bytes:
    """A node's private key (NIST P-384), PEM."""
    return private_key_to_bytes(generate_key_pairs()[0])


def public_of(private: bytes) -> bytes:
    """The public key of `new_key`'s, PEM."""
    return public_key_to_bytes(bytes_to_private_key(private).public_key())


_ANSWER_BYTES, _TREE_BYTES, _MOST_PARTS, _PART_HEAD_BYTES = 2**20, 4 * 2**20, 20_000, 2**12


class TooLarge(Exception):
    """A message that was not read to its end.

    Attributes:
        message: without content, to be answered.
    """

    def __init__(self, message: Message) -> None:
        super().__init__("a message that was not read to its end")
        self.message = message


class _TooMuch(ConnectionError):
    """An answer larger than any that is due."""


class FleetClient:
    """A shop's end of the Fleet API: one call each, no retries; errors are those of httpx.

    Guarantee: whatever the coordinator answers, it is dropped unread beyond the size that is due; it is not unpacked,
        and no redirection leads anywhere else.
    """

    def __init__(self, address: str, authority: bytes, private_key: bytes, headers: Mapping[str, str]) -> None:
        """Args:
        address: host:port.
        authority: the federation's CA certificate, PEM; no other is trusted.
        private_key: the node's, PEM.
        headers: sent with each request.
        """
        key = bytes_to_private_key(private_key)
        self._public_key = public_key_to_bytes(key.public_key())
        self._node = Node()
        self._client = FleetHttpClient.from_server_address(
            address,
            False,
            authority,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key, key.public_key()),
                _Headers(headers),
            ],
        )
        self._most_bytes = _ANSWER_BYTES
        self._client._client.follow_redirects = False
        self._client._client.event_hooks = {"response": [self._bound]}

    @property
    def node_id(self) -> int:
        """The node's id; 0 before `connect`."""
        return int(self._node.node_id)

    def connect(self) -> int:
        """Make the node active; its id."""
        asked = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=HEARTBEAT_S)
        self._node = Node(node_id=self._client.ActivateNode(asked).node_id)
        return self.node_id

    def disconnect(self) -> None:
        """Say goodbye."""
        self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.node_id))

    def beat(self) -> None:
        """The node's heartbeat."""
        self._client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S))

    def receive(self, most_bytes: Callable[[str], int] = lambda _: 2**30) -> Message | None:
        """The next message with all its arrays; it is handed out again to a node that restarts before `send`.

        Args:
            most_bytes: how large a message of a kind may be.
        Raises:
            TooLarge: it is larger.
            Exception: of any kind, if the coordinator sent what is none.
        """
        with self._up_to(_TREE_BYTES):
            found = self._client.PullMessages(PullMessagesRequest(node=self._node))
        if not found.messages_list:
            return None
        bare = message_from_proto(found.messages_list[0])
        left, contents = most_bytes(bare.metadata.message_type), dict[str, bytes]()
        for count, part in enumerate(iterate_object_tree(found.message_object_trees[0])):
            if part.object_id in contents:
                continue
            asked = PullObjectRequest(node=self._node, run_id=bare.metadata.run_id, object_id=part.object_id)
            try:
                with self._up_to(left + _PART_HEAD_BYTES):
                    answer = self._client.PullObject(asked)
            except _TooMuch as error:
                raise TooLarge(bare) from error
            if not answer.object_available:
                return None  # the coordinator gave the message up
            contents[part.object_id] = answer.object_content
            left -= len(answer.object_content)
            if left < 0 or count >= _MOST_PARTS:
                raise TooLarge(bare)
        whole = inflate_object_from_contents(bare.metadata.message_id, contents)
        if not isinstance(whole, Message) or not whole.has_content():
            raise ValueError("no message")
        whole.metadata.__dict__["_message_id"] = bare.metadata.message_id
        return whole

    def send(self, reply: Message) -> None:
        """A reply with all its arrays."""
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects, tree = get_all_nested_objects(reply), get_object_tree(reply)
            bare = remove_content_from_message(reply) if reply.has_content() else reply
            answer = self._client.PushMessages(
                PushMessagesRequest(
                    node=self._node,
                    messages_list=[message_to_proto(bare)],
                    message_object_trees=[tree],
                    clientapp_runtime_list=[0.0],
                )
            )
            for part in answer.objects_to_push:
                pushed = self._client.PushObject(
                    PushObjectRequest(
                        node=self._node,
                        run_id=reply.metadata.run_id,
                        object_id=part,
                        object_content=objects[part].deflate(),
                        session_id=answer.session_id,
                    )
                )
                if not pushed.stored:
                    raise ConnectionError("the coordinator no longer takes the answer")

    def confirm(self, message: Message) -> None:
        """The message was answered and need not be kept."""
        metadata = message.metadata
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._node, run_id=metadata.run_id, message_object_id=metadata.message_id
            )
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @contextmanager
    def _up_to(self, most_bytes: int) -> Iterator[None]:
        """For one answer; heartbeats in between are small, whatever the bound."""
        self._most_bytes = most_bytes
        try:
            yield
        finally:
            self._most_bytes = _ANSWER_BYTES

    def _bound(self, response: Any) -> None:
        """Let no more of an answer come in than is due; called before its body is read."""
        length = response.headers.get("content-length", "0")
        if "content-encoding" in response.headers or not length.isdecimal() or int(length) > self._most_bytes:
            raise _TooMuch("the coordinator's answer is packed, or larger than any that is due")
        response.stream = _Bounded(response.stream, self._most_bytes)


class _Bounded(httpx.SyncByteStream):
    """A body that ends with an error where it is too large."""

    def __init__(self, stream: Any, most_bytes: int) -> None:
        self._stream, self._left = stream, most_bytes

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            self._left -= len(chunk)
            if self._left < 0:
                raise _TooMuch("the coordinator's answer is larger than any that is due")
            yield chunk

    def close(self) -> None:
        """Close the line."""
        self._stream.close()


class _Headers:
    """Adds headers to each request."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = dict(headers)

    def intercept(self, context: Any, call_next: Any) -> Any:
        context.request.headers.update(self._headers)
        return call_next(context)
