"""Replies of shops as they come in, part by part, apart from all that the coordinator has stored to send.

Written against Flower 1.41; a new Flower version is adopted by running tests/flower/test_link.py.

**Guarantee:** a shop can leave nothing but one reply to each message that waits for its answer, no larger than that
message's own bound; whatever it says twice or in another way takes the place of what it said before; nothing that one
shop says touches what is kept of another; all of it goes with the message.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest, PushObjectResponse
from flwr.supercore.inflatable.inflatable_object import get_object_id, is_valid_sha256_hash, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedrec.errors import BadMessage

_SMALL_PARTS, _PART_BYTES, _SLACK_BYTES = 64, 2**20, 2**20


@dataclass(repr=False)
class _Reply:
    """What has come of a reply: its message without content, its parts' children by name, their bytes by name."""

    bare: Message
    root: str
    children: Mapping[str, list[str]]
    parts: dict[str, bytes] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        return [part for part in self.children if part not in self.parts]


@dataclass(repr=False)
class _Asked:
    """A message that waits for its answer."""

    node: int
    most_bytes: int
    reply: _Reply | None = None


class Replies:
    """By the id of the message asked; several threads may use it."""

    def __init__(self) -> None:
        self._asked: dict[str, _Asked] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._asked)

    def size_bytes(self, node: int) -> int:
        """What is held of one node's replies."""
        with self._lock:
            replies = [one.reply for one in self._asked.values() if one.node == node and one.reply]
        return sum(len(content) for reply in replies for content in list(reply.parts.values()))

    def expect(self, message_id: str, node: int, most_bytes: int) -> None:
        """A message goes out to a node; its reply can be this large."""
        with self._lock:
            self._asked.setdefault(message_id, _Asked(node, most_bytes))

    def forget(self, message_id: str) -> None:
        """Nobody waits for the answer any more."""
        with self._lock:
            self._asked.pop(message_id, None)

    def drop(self, message_id: str) -> None:
        """Forget what has come, if it is not all; the answer may still come."""
        with self._lock:
            if (asked := self._asked.get(message_id)) is not None and asked.reply is not None and asked.reply.missing:
                asked.reply = None

    def answer(self, node: int, request: object) -> PushMessagesResponse | PushObjectResponse | None:
        """Take a request that brings a reply or a part of one; None for all others.

        Raises:
            BadMessage: the node may not send this.
        """
        if isinstance(request, PushMessagesRequest):
            return self._begin(node, request)
        return self._take(node, request) if isinstance(request, PushObjectRequest) else None

    def is_begun(self, message_id: str) -> bool:
        """Whether something has come, be it all or not."""
        with self._lock:
            return message_id in self._asked and self._asked[message_id].reply is not None

    def is_whole(self, message_id: str) -> bool:
        """Whether all of a reply has come."""
        with self._lock:
            asked = self._asked.get(message_id)
            return asked is not None and asked.reply is not None and not asked.reply.missing

    def whole(self, message: Message) -> Message | None:
        """The reply to a message once all of it has come; an error where its bytes are no such reply."""
        with self._lock:
            asked = self._asked.get(message.metadata.message_id)
            reply = None if asked is None else asked.reply
        if asked is None or reply is None or reply.missing:
            return None
        if reply.bare.has_error():
            return reply.bare
        try:
            found = inflate_object_from_contents(reply.root, dict(reply.parts))
            if not isinstance(found, Message) or not found.has_content():
                raise ValueError("no message")
            told = found.metadata  # that of the bare message was checked, not this
            if (told.reply_to_message_id, told.src_node_id) != (message.metadata.message_id, asked.node):
                raise ValueError("a reply to another message than it was sent for")
        except Exception:
            return Message(Error(ErrorCode.UNKNOWN, "no message"), reply_to=message)
        found.metadata.__dict__["_message_id"] = reply.root
        return found

    def _begin(self, node: int, request: PushMessagesRequest) -> PushMessagesResponse:
        sent, trees = request.messages_list, request.message_object_trees
        if not len(sent) == len(trees) == 1 or sent[0].metadata.src_node_id != node:
            raise BadMessage("a message in another node's name")
        root, name = sent[0].metadata.message_id, sent[0].metadata.reply_to_message_id
        with self._lock:
            if (asked := self._asked.get(name)) is None:
                return PushMessagesResponse(results={root: 0})  # it came too late, and matters no more
            if asked.node != node or trees[0].object_id != root:
                raise BadMessage("a reply to another node's message, or under another name than its own")
            children = _children(trees[0], most_parts=_SMALL_PARTS + asked.most_bytes // _PART_BYTES)
            known = asked.reply
            if known is None or (known.missing and (known.root, known.children) != (root, children)):
                asked.reply = known = _Reply(_bare(request), root, children)
            elif known.root != root or known.children != children:
                raise BadMessage("a second reply to a message that was answered")
            return PushMessagesResponse(results={root: 0}, objects_to_push=known.missing, session_id=name)

    def _take(self, node: int, request: PushObjectRequest) -> PushObjectResponse:
        name, content = request.object_id, request.object_content
        is_itself = get_object_id(content) == name
        with self._lock:
            asked = self._asked.get(request.session_id)
            if asked is None or asked.node != node or asked.reply is None or name not in asked.reply.children:
                return PushObjectResponse(stored=False)
            parts = asked.reply.parts
            if name in parts:
                return PushObjectResponse(stored=True)
            if sum(map(len, parts.values())) + len(content) > asked.most_bytes + _SLACK_BYTES:
                raise BadMessage("a reply larger than any that is due")
            if is_itself and content:
                parts[name] = content
            return PushObjectResponse(stored=is_itself)


def _children(tree: ObjectTree, *, most_parts: int) -> dict[str, list[str]]:
    """By part's name its children's.

    Parts that name others twice and are listed once would double at every level where the tree is unfolded.
    """
    children: dict[str, list[str]] = {}
    for count, part in enumerate(iterate_object_tree(tree)):
        below = [child.object_id for child in part.children]
        if count >= most_parts or children.setdefault(part.object_id, below) != below:
            raise BadMessage("a reply of too many parts, or of one that is told in two ways")
        if not is_valid_sha256_hash(part.object_id):
            raise BadMessage("a reply with a part that has no name")
    return children


def _bare(request: PushMessagesRequest) -> Message:
    try:
        return message_from_proto(request.messages_list[0])
    except Exception as error:
        raise BadMessage("a reply that is no message") from error
