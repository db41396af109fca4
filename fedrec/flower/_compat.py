"""Every private Flower symbol that fedrec uses, each behind one function with a contract test.

Written against Flower 1.41. A new Flower version is adopted by running tests/flower/test_compat.py.
"""

from __future__ import annotations

from flwr.app import Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

COORDINATOR_NODE_ID = SUPERLINK_NODE_ID
"""Node id of the coordinator; also the source of errors that the SuperLink reports for a shop."""

NODE_UNAVAILABLE = ErrorCode.NODE_UNAVAILABLE
CLIENT_APP_FAILED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION


def set_identity(run_id: int, node_id: int = COORDINATOR_NODE_ID) -> None:
    """Say who this process is; ``Message(...)`` refuses to be built without it."""
    TaskIdentity.run_id = run_id
    TaskIdentity.task_id = 1
    TaskIdentity.node_id = node_id


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message its id, as a SuperLink would when it takes the message in."""
    message.metadata.__dict__["_message_id"] = message_id


def empty_run(run_id: int) -> Run:
    """A run without a bundle, for a Grid that runs in this process."""
    return Run.create_empty(run_id=run_id)


def with_content(message: Message, content: RecordDict) -> Message:
    """The same message (id, sender, time) with another content object."""
    copy = Message.__new__(Message)
    copy.__dict__.update(message.__dict__)
    copy.__dict__["_content"] = content
    return copy


def copy_containers(content: RecordDict) -> RecordDict:
    """The same arrays and values in records of their own; Flower's checks of each entry are not repeated."""
    copy = content.copy()
    copy.__dict__["_data"] = {key: record.copy() for key, record in content.items()}
    return copy


def set_source(message: Message, node_id: int) -> None:
    """Say who sent a message; a SuperLink's errors on behalf of a shop carry its own node id."""
    message.metadata.__dict__["_src_node_id"] = node_id
