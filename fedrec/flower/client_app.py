"""The Flower app of a shop: a plan comes in, a release goes out; of what goes wrong inside an error code goes out.

Whatever else there is to say stays in the shop's own log: one line for a refusal, a traceback for a fault in the code.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Array, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedrec.errors import ConfigError, FedrecError, RoundRefused, one_line
from fedrec.federation.plan import RoundPlan
from fedrec.flower.exchange import (
    bytes_from_record,
    bytes_to_record,
    delivery_from_record,
    model_from_record,
    place_to_record,
    plan_from_record,
    release_to_record,
    step_from_record,
    step_to_record,
    unavailable,
)
from fedrec.shop.node import FederationFiles, ShopNode, read_shop_files

if TYPE_CHECKING:
    from fedrec.shop.member import Member

_log = logging.getLogger("fedrec.shop")

OpenNode = Callable[[Context], ShopNode]
"""How a process finds the shop that a message is for."""


@dataclass(frozen=True, repr=False)
class NodesInMemory:
    """Shops of a simulation in this process; ``partition-id`` is the place in the roster."""

    nodes: Sequence[ShopNode]

    def __call__(self, context: Context) -> ShopNode:
        return self.nodes[partition_id(context)]


@dataclass(frozen=True)
class NodesInFiles:
    """Shops opened from the files in a run directory, each process its own copy."""

    run_dir: str

    def __call__(self, context: Context) -> ShopNode:
        return _open_node(self.run_dir, partition_id(context))


def open_node_from_run_dir(context: Context) -> ShopNode:
    """The shop of this node, in the run directory that the run's configuration names (``run-dir``)."""
    return _open_node(run_dir_of(context), partition_id(context))


def make_client_app(open_node: OpenNode) -> ClientApp:
    """The app of a shop.

    Args:
        open_node: finds the shop; must be picklable where the engine uses other processes.
    """
    app = ClientApp()
    app.train("round")(_AnswerRound(open_node))
    app.query("secure")(_AnswerStep(open_node))
    app.query("hello")(_say_hello)
    return app


def make_member_app(member: Member) -> ClientApp:
    """The app of a shop in a deployed federation: rounds, and what comes before and after them."""

    def accept(content: RecordDict) -> RecordDict:
        member.accept(bytes_from_record(content))
        return bytes_to_record(b"")

    def anchor(content: RecordDict) -> RecordDict:
        return bytes_to_record(member.anchor(bytes_from_record(content)))

    def adopt(content: RecordDict) -> RecordDict:
        run_id, state = model_from_record(content)
        try:
            member.adopt(run_id, state)
        except RoundRefused:
            raise
        except Exception:  # arrays may be made so that they fail for some events and not for others: that stays too
            _log.exception("shop %s could not judge the model of run %s", member.settings.name, run_id)
        return bytes_to_record(b"")

    def open_node(_: Context) -> ShopNode:
        return member.node()

    app = ClientApp()
    app.train("round")(_AnswerRound(open_node))
    app.query("secure")(_AnswerStep(open_node))
    app.query("offer")(_Answer(accept, "did not agree to a run"))
    app.query("anchor")(_Answer(anchor, "could not compare its ledger"))
    app.train("model")(_Answer(adopt, "could not take a model over"))
    return app


def run_dir_of(context: Context) -> str:
    """The run directory in a run's or a node's configuration.

    Raises:
        ConfigError: neither names one.
    """
    run_dir = context.node_config.get("run-dir") or context.run_config.get("run-dir")
    if not run_dir:
        raise ConfigError("no run directory: give --run-config 'run-dir=\"/path/of/the/run\"'")
    return str(Path(str(run_dir)).absolute())


def partition_id(context: Context) -> int:
    """The place in the roster that the engine gave this node."""
    position = context.node_config.get("partition-id")
    if not isinstance(position, int):
        raise ConfigError(f"partition-id {position!r}: must be the shop's place in the roster, 0 or more")
    return position


@dataclass(frozen=True, repr=False)
class _AnswerRound:
    open_node: OpenNode

    def __call__(self, message: Message, context: Context) -> Message:
        is_private = False
        try:
            asked, delivery = delivery_from_record(message.content)
            plan = _read_plan(asked)
            is_private = plan.terms.privacy is not None
            content = release_to_record(self.open_node(context).answer(plan, delivery))
        except Exception as error:  # whatever it is: its text may hold a shopper's data, so it stays here
            _note(error, context, "could not answer a round")
            return unavailable(message, error, is_private=is_private)
        return Message(content, reply_to=message)


@dataclass(frozen=True, repr=False)
class _AnswerStep:
    """Exchanges of secure aggregation; their bytes say nothing about a shopper."""

    open_node: OpenNode

    def __call__(self, message: Message, context: Context) -> Message:
        try:
            step, data = step_from_record(message.content)
            content = step_to_record(step, self.open_node(context).step(step, data))
        except Exception as error:  # as for a round
            _note(error, context, "could not take part in an exchange of secure aggregation")
            return unavailable(message, error)
        return Message(content, reply_to=message)


@dataclass(frozen=True, repr=False)
class _Answer:
    """A message whose answer says nothing about a shopper."""

    answer: Callable[[RecordDict], RecordDict]
    failure: str

    def __call__(self, message: Message, context: Context) -> Message:
        try:
            return Message(self.answer(message.content), reply_to=message)
        except Exception as error:  # as for a round
            _note(error, context, self.failure)
            return unavailable(message, error)


def _say_hello(message: Message, context: Context) -> Message:
    try:
        return Message(place_to_record(partition_id(context)), reply_to=message)
    except ConfigError as error:
        _note(error, context, "has no place in the roster")
        return unavailable(message, error)


def _note(error: Exception, context: Context, what: str) -> None:
    """Say in the shop's own log what went wrong."""
    shop = context.node_config.get("shop", f"at place {context.node_config.get('partition-id')}")
    if isinstance(error, FedrecError):
        _log.warning("shop %s %s: %s: %s", shop, what, type(error).__name__, one_line(str(error)))
    else:
        _log.error("shop %s %s", shop, what, exc_info=error)


class _LastPlan:
    """The plan read last in this process, so that many shops of one process read one broadcast once."""

    def __init__(self) -> None:
        self._parts: list[object] = []
        self._plan: RoundPlan | None = None

    def read(self, content: RecordDict) -> RoundPlan:
        # bytes never change, so the same objects are the same plan; anything else is read and checked anew.
        parts: list[object] = []
        for key, record in content.items():
            parts.append(key)
            for name, value in record.items():
                parts += (name, value.data if isinstance(value, Array) else value)
        is_same = len(parts) == len(self._parts) and all(map(operator.is_, parts, self._parts))
        if self._plan is None or not is_same:
            self._plan = plan_from_record(content)
            self._parts = parts
        return self._plan


_read_plan = _LastPlan().read


@lru_cache(maxsize=4)
def _files(run_dir: str) -> FederationFiles:
    return read_shop_files(Path(run_dir))


@lru_cache(maxsize=64)
def _open_node(run_dir: str, position: int) -> ShopNode:
    return _files(run_dir).node(position)


app = make_client_app(open_node_from_run_dir)
