"""Private Flower symbols of a deployed coordinator: the SuperLink's link state and Fleet API.

Written against Flower 1.41; a new Flower version is adopted by running tests/flower/test_link.py. Apart from
`_compat`, so that a simulation imports none of it.
"""

from __future__ import annotations

import binascii
import datetime
from base64 import b64decode
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from flwr.app import Error, Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import (
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
    ErrorCode,
)
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    FLWR_IN_MEMORY_DB_NAME,
    NOOP_FEDERATION_ID,
    NodeStatus,
    TaskType,
)
from flwr.supercore.date import now
from flwr.supercore.error import http_error_translator
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import (
    bytes_to_public_key,
    verify_signature,
)
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router as fleet_router

from fedrec.flower._agent_compat import HEARTBEAT_S
from fedrec.flower._replies_compat import Replies

SIGNATURE_WINDOW_S = TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
"""How far a shop's clock may be behind the coordinator's."""

_BEING_STORED, _LOST = "being stored", "lost"
"""In place of a message's time of delivery: neither is handed out."""


def new_link_state() -> InMemoryLinkState:
    """A link state in memory, with its store of arrays."""
    stores = ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
    state = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), stores).state()
    assert isinstance(state, InMemoryLinkState)
    return state


def create_node(state: InMemoryLinkState, name: str, public_key: bytes) -> int:
    """Enrol a key; its node is offline until its agent connects."""
    node = state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_key, HEARTBEAT_S, name=name)
    state.nodes[node].status = NodeStatus.OFFLINE  # takes messages, and answers them as one that is gone
    return node


def start_run(state: InMemoryLinkState) -> int:
    """A run without a bundle, running as long as the link state: it needs no heartbeat, being in the same process."""
    run_id = state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP)
    task_id = state.run_ids[run_id].run.primary_task_id
    assert task_id is not None
    if state.claim_task(task_id) is None or not state.activate_task(task_id):
        raise RuntimeError("Flower's link state did not start its run")
    state.task_token_store[task_id].active_until = datetime.datetime.max.replace(tzinfo=datetime.UTC)
    return run_id


def online_nodes(state: InMemoryLinkState, run_id: int) -> set[int]:
    """Nodes whose heartbeat came in time."""
    return state.get_nodes(run_id)


def restart_node(state: InMemoryLinkState, replies: Replies, node: int, *, is_same: bool) -> None:
    """Let a node connect again at once.

    Args:
        is_same: the same process, which gets again what it did not answer; for a new one all that counts as lost:
            it has not agreed to the run yet.
    """
    with state.lock:
        if state.nodes[node].status == NodeStatus.ONLINE:
            state.nodes[node].status = NodeStatus.OFFLINE
        for name, message in state.message_ins_store.items():
            if message.metadata.dst_node_id != node or replies.is_whole(name):
                continue
            replies.drop(name)
            if message.metadata.delivered_at != _BEING_STORED:
                message.metadata.delivered_at = "" if is_same else _LOST


def push(
    state: InMemoryLinkState, replies: Replies, run_id: int, messages: Iterable[Message], *, most_bytes: int
) -> list[str]:
    """Store messages and their arrays; arrays that several share are stored once. Their ids, in order.

    Args:
        most_bytes: how large a reply to each of them can be.
    """
    ids = []
    with no_object_id_recompute():
        for message in messages:
            session, name = state.start_session(run_id), message.object_id
            message.metadata.__dict__["_message_id"] = name
            bare, tree = remove_content_from_message(message), get_object_tree(message)
            with state.lock:
                is_stored, missing = state.store_message_and_object_tree(bare, tree, session)
                bare.metadata.delivered_at = _BEING_STORED  # not to be handed out before its arrays are here
            if not is_stored:
                raise RuntimeError("Flower's link state did not take a message")
            replies.expect(name, message.metadata.dst_node_id, most_bytes)
            if missing:
                objects = get_all_nested_objects(message)
                for part in missing:
                    state.store_object(run_id, session, part, objects[part].deflate())
            bare.metadata.delivered_at = ""
            ids.append(name)
    return ids


def pull(state: InMemoryLinkState, replies: Replies, run_id: int, message_ids: Iterable[str]) -> list[Message]:
    """Whole replies, and errors for nodes that are gone; message and reply are deleted."""
    asked, online = set(message_ids), online_nodes(state, run_id)
    found: list[Message] = []
    with state.lock:
        for name in list(asked):
            message = state.message_ins_store.get(name)
            if message is None:  # Flower's link state forgets after twelve hours
                asked.discard(name)
            elif message.metadata.delivered_at == _LOST:
                asked.discard(name)
                found.append(Message(Error(ErrorCode.NODE_UNAVAILABLE, "restarted"), reply_to=message))
            elif (reply := replies.whole(message)) is not None:
                asked.discard(name)  # Flower would not give it if its node is gone by now
                found.append(reply)
            elif replies.is_begun(name):
                if message.metadata.dst_node_id in online:
                    asked.discard(name)
                else:  # it died half-way through its upload
                    replies.drop(name)
        for error in state.get_message_res(asked, run_id):  # the link state stores its own, too
            state.object_store.delete(error.metadata.message_id)
            found.append(error)
        give_up(state, replies, [reply.metadata.reply_to_message_id for reply in found])
    return found


def give_up(state: InMemoryLinkState, replies: Replies, message_ids: Iterable[str]) -> None:
    """Delete messages with their arrays and what came for them: nobody waits any more."""
    with state.lock:
        for name in message_ids:
            replies.forget(name)
            state.delete_messages({name})
            state.object_store.delete(name)


def is_signed(state: InMemoryLinkState, headers: Mapping[str, str]) -> bool:
    """Whether an enrolled key signed a request's time, and the time is now."""
    try:
        public_key = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER.lower()], validate=True)
        signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER.lower()], validate=True)
        timestamp = headers[TIMESTAMP_HEADER.lower()]
        if state.get_node_id_by_public_key(public_key) is None:
            return False
        age_s = (now() - datetime.datetime.fromisoformat(timestamp)).total_seconds()
        if not -SYSTEM_TIME_TOLERANCE < age_s < SIGNATURE_WINDOW_S:
            return False
        return verify_signature(bytes_to_public_key(public_key), timestamp.encode("ascii"), signature)
    except (KeyError, ValueError, TypeError, UnicodeError, binascii.Error):
        return False


def node_of(state: InMemoryLinkState, request: Any) -> int:
    """The node that a Fleet request is for; the stock middleware has compared it with the key."""
    if isinstance(request, ActivateNodeRequest):
        return state.get_node_id_by_public_key(request.public_key) or 0
    return int(request.node.node_id if hasattr(request, "node") else request.node_id)


def key_in(headers: Mapping[str, str]) -> str:
    """The public key that a signed request names."""
    return headers[FLEET_HTTP_PUBLIC_KEY_HEADER.lower()]


def refusal(state: InMemoryLinkState, request: Any, node: int) -> str:
    """Why a node may not send a request; "" if it may. What brings replies is for `Replies` to judge."""
    if not isinstance(request, ConfirmMessageReceivedRequest):
        return ""
    message = state.message_ins_store.get(request.message_object_id)
    is_own = message is not None and message.metadata.dst_node_id == node
    return "" if is_own or request.message_object_id not in state.object_store else "a message to another node"


def include_fleet(app: FastAPI, state: InMemoryLinkState) -> None:
    """Flower's Fleet routes on an application."""

    class OneState:
        def state(self) -> InMemoryLinkState:
            return state

    app.state.linkstate_factory = OneState()
    app.state.enable_supernode_auth = True
    app.include_router(fleet_router)


def fleet_middlewares() -> tuple[Any, ...]:
    """From the outside in: errors as Flower's clients read them, protobuf, signature and node."""
    return (ProtobufTranslationMiddleware, NodeAuthMiddleware)


error_translator = http_error_translator
