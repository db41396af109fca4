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
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PushObjectRequest
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
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import NoObjectInStoreError, ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import (
    bytes_to_public_key,
    verify_signature,
)
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router as fleet_router

from fedrec.flower._agent_compat import HEARTBEAT_S

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


def restart_node(state: InMemoryLinkState, node: int, *, is_same: bool) -> None:
    """Let a node connect again at once.

    Args:
        is_same: the same process, which gets again what it did not answer; for a new one all that counts as lost:
            it has not agreed to the run yet.
    """
    with state.lock:
        if state.nodes[node].status == NodeStatus.ONLINE:
            state.nodes[node].status = NodeStatus.OFFLINE
        for name, message in state.message_ins_store.items():
            if message.metadata.dst_node_id != node:
                continue
            answer = state.message_ins_id_to_message_res_id.get(name)
            if answer is not None and _is_complete(state, answer):
                continue
            _drop_answer(state, name)
            if message.metadata.delivered_at != _BEING_STORED:
                message.metadata.delivered_at = "" if is_same else _LOST


def push(state: InMemoryLinkState, run_id: int, messages: Iterable[Message]) -> list[str]:
    """Store messages and their arrays; arrays that several share are stored once. Their ids, in order."""
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
            _own_parts(state, tree)
            if missing:
                objects = get_all_nested_objects(message)
                for part in missing:
                    state.store_object(run_id, session, part, objects[part].deflate())
            bare.metadata.delivered_at = ""
            ids.append(name)
    return ids


def pull(state: InMemoryLinkState, run_id: int, message_ids: Iterable[str]) -> list[Message]:
    """Complete replies, and errors for nodes that are gone; message and reply are deleted."""
    asked, online, replies = set(message_ids), online_nodes(state, run_id), []
    found: list[Message] = []
    with state.lock:
        for name in list(asked):
            message = state.message_ins_store.get(name)
            if message is None:  # Flower's link state forgets after twelve hours
                asked.discard(name)
                continue
            answer, node = state.message_ins_id_to_message_res_id.get(name), message.metadata.dst_node_id
            if message.metadata.delivered_at == _LOST:
                asked.discard(name)
                replies.append(Message(Error(ErrorCode.NODE_UNAVAILABLE, "restarted"), reply_to=message))
                give_up(state, [name])
            elif answer is not None and _is_complete(state, answer):
                asked.discard(name)  # Flower would not give it if its node is gone by now
                found.append(state.message_res_store[answer])
            elif answer is not None:
                if node in online:
                    asked.discard(name)
                else:  # it died half-way through its upload
                    _drop_answer(state, name)
        found += state.get_message_res(asked, run_id)
        for reply in found:
            replies.append(reply if reply.has_error() else _whole(state, reply))
            state.object_store.delete(reply.metadata.message_id)
        give_up(state, [reply.metadata.reply_to_message_id for reply in found])
    return replies


def give_up(state: InMemoryLinkState, message_ids: Iterable[str]) -> None:
    """Delete messages with their arrays and what came for them: nobody waits any more."""
    with state.lock:
        for name in message_ids:
            _drop_answer(state, name)
            state.delete_messages({name})
            state.object_store.delete(name)
    with state._lock_object_push_sessions:  # Flower keeps those of answers that came too late
        ended = [name for name, session in state._object_push_sessions.items() if session.expires_at <= now()]
        for name in ended:
            state._cleanup_push_session(name, cleanup_messages=False)


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


def refusal(state: InMemoryLinkState, request: Any, node: int, *, most_parts: int) -> str:
    """Why a node may not send a request; "" if it may.

    A push must be a single reply in the node's own name, under a name that nothing else has, whose tree of parts
    unfolds to no more than it says: the store keeps each part's children once, so parts that name others twice and are
    listed once would double at every level.
    """
    store, replies, asked = state.object_store, state.message_res_store, state.message_ins_store
    if isinstance(request, ConfirmMessageReceivedRequest):
        message = asked.get(request.message_object_id)
        is_own = message is not None and message.metadata.dst_node_id == node
        return "" if is_own or request.message_object_id not in store else "a message to another node"
    if not isinstance(request, PushMessagesRequest):
        return ""
    sent, trees = request.messages_list, request.message_object_trees
    if not len(sent) == len(trees) == 1 or sent[0].metadata.src_node_id != node:
        return "a message in another node's name"
    name, own = sent[0].metadata.message_id, replies.get(sent[0].metadata.message_id)
    if trees[0].object_id != name or (name in store and (own is None or own.metadata.src_node_id != node)):
        return "a reply under another message's name"
    children: dict[str, list[str]] = {}
    for count, part in enumerate(iterate_object_tree(trees[0])):
        below = [child.object_id for child in part.children]
        if count >= most_parts or children.setdefault(part.object_id, below) != below:
            return "a reply of too many parts, or of one that is told in two ways"
    return ""


def begins_reply(request: Any) -> bool:
    """Whether a request is the first of a reply."""
    return isinstance(request, PushMessagesRequest)


def pushed_bytes(request: Any) -> int:
    """What a request adds to the store of arrays."""
    return len(request.object_content) if isinstance(request, PushObjectRequest) else 0


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


def _own_parts(state: InMemoryLinkState, tree: ObjectTree) -> None:
    """Put right what a shop has said of parts that were not here yet: it can know their names."""
    store: Any = state.object_store
    with store.lock_store:
        for part in iterate_object_tree(tree):
            entry, below = store.store[part.object_id], [child.object_id for child in part.children]
            if entry.child_object_ids != below:
                for name, change in (*((name, -1) for name in entry.child_object_ids), *((name, 1) for name in below)):
                    store.store[name].ref_count += change
                entry.child_object_ids = below


def _whole(state: InMemoryLinkState, reply: Message) -> Message:
    """A reply with its arrays; an error where its bytes are no such reply: a shop may send anything."""
    store, name, asked = state.object_store, reply.metadata.message_id, reply.metadata.reply_to_message_id
    try:
        parts = {part.object_id for part in iterate_object_tree(store.get_object_tree(name))}
        whole = inflate_object_from_contents(name, {part: store.get(part) or b"" for part in parts})
        if not isinstance(whole, Message) or not whole.has_content():
            raise ValueError("no message")
        told = whole.metadata  # the link state has checked the reply's, not these
        if (told.reply_to_message_id, told.src_node_id) != (asked, reply.metadata.src_node_id):
            raise ValueError("a reply to another message than it was sent for")
    except Exception:
        return Message(Error(ErrorCode.UNKNOWN, "no message"), reply_to=state.message_ins_store[asked])
    whole.metadata.__dict__["_message_id"] = name
    return whole


def _drop_answer(state: InMemoryLinkState, message_id: str) -> None:
    """Delete what came for a message."""
    answer = state.message_ins_id_to_message_res_id.pop(message_id, None)
    if answer is not None:
        state.message_res_store.pop(answer, None)
        state.object_store.delete(answer)
        if session := state._object_push_session_by_root.get(answer):
            state._cleanup_push_session(session, cleanup_messages=False)


def _is_complete(state: InMemoryLinkState, name: str) -> bool:
    """Whether all arrays of a reply have come."""
    try:
        tree = state.object_store.get_object_tree(name)
    except NoObjectInStoreError:
        return True  # an error, which has none
    return all(state.object_store.get(part.object_id) for part in iterate_object_tree(tree))
