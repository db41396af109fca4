"""Private Flower symbols of a shop's agent: its node's key, and the client of the Fleet API.

Written against Flower 1.41; a new Flower version is adopted by running tests/flower/test_link.py. Apart from
`_link_compat`, so that an agent that waits loads nothing of the coordinator's side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


class FleetClient:
    """A shop's end of the Fleet API: one call each, no retries; errors are those of httpx."""

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

    def receive(self) -> Message | None:
        """The next message with all its arrays; it is handed out again to a node that restarts before `send`.

        Raises:
            Exception: of any kind, if the coordinator sent what is none.
        """
        found = self._client.PullMessages(PullMessagesRequest(node=self._node))
        if not found.messages_list:
            return None
        bare = message_from_proto(found.messages_list[0])
        contents = {}
        for part in iterate_object_tree(found.message_object_trees[0]):
            asked = PullObjectRequest(node=self._node, run_id=bare.metadata.run_id, object_id=part.object_id)
            answer = self._client.PullObject(asked)
            if not answer.object_available:
                return None  # the coordinator gave the message up
            contents[part.object_id] = answer.object_content
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


class _Headers:
    """Adds headers to each request."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = dict(headers)

    def intercept(self, context: Any, call_next: Any) -> Any:
        context.request.headers.update(self._headers)
        return call_next(context)
