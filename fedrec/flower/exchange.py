"""Plans and releases as Flower records, and one exchange of messages with many shops.

Arrays travel as raw typed buffers. All messages of a round share one set of Flower arrays, so a plan is
serialised once however many shops get it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedrec.errors import (
    BadMessage,
    BadSignature,
    BudgetExhausted,
    ClockWentBack,
    ConfigError,
    LedgerBehind,
    LedgerTampered,
    LedgerTooNew,
    MessageTooLarge,
    PrivacyError,
    ProtocolError,
    RoundRefused,
    StoreError,
    TooFewShops,
    TooManyAborts,
    one_line,
)
from fedrec.federation.plan import WIRE_DTYPES, RoundPlan, read_plan
from fedrec.federation.release import Release
from fedrec.federation.secure_round import Ask, Step
from fedrec.flower import _compat

ROUND_MESSAGE = "train.round"
SECURE_MESSAGE = "query.secure"
HELLO_MESSAGE = "query.hello"
OFFER_MESSAGE = "query.offer"
ANCHOR_MESSAGE = "query.anchor"
MODEL_MESSAGE = "train.model"
UNAVAILABLE = "unavailable"
"""What leaves a shop of any failure that is no refusal."""

REFUSALS = {
    kind.__name__: kind
    for kind in (
        BadMessage,
        BadSignature,
        BudgetExhausted,
        ClockWentBack,
        ConfigError,
        LedgerBehind,
        LedgerTampered,
        LedgerTooNew,
        MessageTooLarge,
        PrivacyError,
        ProtocolError,
        RoundRefused,
        StoreError,
        TooFewShops,
        TooManyAborts,
    )
}
"""Error codes that may leave a shop: of plans, terms, keys, ledgers, files; never of data (`NotFinite`, `DataError`).

Where anything protects a sum, no such error depends on a shopper: from the reservation on, what fails for some data and
not for other leaves as zeros (`ShopNode`).
"""

POLL_S = 0.5
"""Longest pause between two looks for replies."""

SMALL_REPLY_BYTES = 8 * 1024**2
"""A reply of this size is taken whatever was asked: keys, shares, ledger heads."""

WAITING_BYTES = 512 * 1024**2
"""Releases of a round that may wait at the coordinator for those of shops before them in the roster."""

_RAW = "fedrec.raw"


@dataclass(frozen=True, repr=False)
class Reply:
    """One shop's answer.

    Attributes:
        shop: its name.
        data: bytes of a release or of another step; None when the shop is unavailable.
        refusal: why it answers nothing, as far as it says; "" for a shop that is not heard.
    """

    shop: str
    data: bytes | None
    refusal: str = ""


def plan_to_record(plan: RoundPlan) -> RecordDict:
    """The plan as a message's content."""
    return RecordDict({"plan": ConfigRecord({"header": plan.header}), "inputs": _array_record(plan.spec.inputs)})


def plan_from_record(content: RecordDict) -> RoundPlan:
    """The plan in a message's content.

    Raises:
        BadMessage: the content is not a plan.
    """
    if set(content) != {"plan", "inputs"}:
        raise BadMessage(f"content {sorted(content)}: a plan has 'plan' and 'inputs'")
    header, inputs = content["plan"], content["inputs"]
    if not isinstance(header, ConfigRecord) or not isinstance(inputs, ArrayRecord) or set(header) != {"header"}:
        raise BadMessage("content is not a plan: records of the wrong kind")
    raw = header["header"]
    if not isinstance(raw, bytes):
        raise BadMessage("content is not a plan: the header is not bytes")
    return read_plan(raw, {name: _array(array) for name, array in inputs.items()})


def with_delivery(content: RecordDict, delivery: bytes) -> RecordDict:
    """A plan's content, shared with other messages, and what was dealt to one shop."""
    return RecordDict({**content, "delivery": ConfigRecord({"data": delivery})})


def delivery_from_record(content: RecordDict) -> tuple[RecordDict, bytes]:
    """The plan's content, and the delivery beside it; empty without one.

    Raises:
        BadMessage: the delivery is none.
    """
    if "delivery" not in content:
        return content, b""
    rest = RecordDict({name: record for name, record in content.items() if name != "delivery"})
    return rest, _only_bytes(content["delivery"], "data")


def step_to_record(step: Step, data: bytes) -> RecordDict:
    """A message of secure aggregation, either way."""
    return RecordDict({"secure": ConfigRecord({"step": step.value, "data": data})})


def step_from_record(content: RecordDict) -> tuple[Step, bytes]:
    """Step and bytes of a message of secure aggregation.

    Raises:
        BadMessage: the content is none.
    """
    record = content["secure"] if list(content) == ["secure"] else None
    if not isinstance(record, ConfigRecord) or set(record) != {"step", "data"}:
        raise BadMessage("the content is no message of secure aggregation")
    step, data = record["step"], record["data"]
    if not isinstance(data, bytes) or not isinstance(step, str) or step not in set(Step):
        raise BadMessage("the content is no message of secure aggregation")
    return Step(step), data


def release_to_record(released: Release) -> RecordDict:
    """A reply's content; built from a `Release` and from nothing else."""
    data = released.to_bytes()
    record = ArrayRecord()
    record["release"] = Array("uint8", (len(data),), _RAW, data)
    return RecordDict({"release": record})


def release_from_record(content: RecordDict) -> bytes:
    """The bytes of a release in a reply's content.

    Raises:
        BadMessage: the content is not a release.
    """
    record = content["release"] if list(content) == ["release"] else None
    if not isinstance(record, ArrayRecord) or list(record) != ["release"]:
        raise BadMessage("the reply is not a release")
    return record["release"].data


def bytes_to_record(data: bytes) -> RecordDict:
    """Bytes of a deployment's own messages: offers, ledger heads."""
    return RecordDict({"bytes": ConfigRecord({"data": data})})


def bytes_from_record(content: RecordDict) -> bytes:
    """The inverse of `bytes_to_record`.

    Raises:
        BadMessage: the content is none.
    """
    if list(content) != ["bytes"]:
        raise BadMessage("a message without the bytes that are due")
    return _only_bytes(content["bytes"], "data")


def model_to_record(run_id: str, state: Mapping[str, np.ndarray]) -> RecordDict:
    """A finished run's shared arrays."""
    return RecordDict({"model": ConfigRecord({"run": run_id}), "arrays": _array_record(state)})


def model_from_record(content: RecordDict) -> tuple[str, dict[str, np.ndarray]]:
    """Run id and shared arrays.

    Raises:
        BadMessage: the content is none.
    """
    about, arrays = content.get("model"), content.get("arrays")
    run_id = about.get("run") if isinstance(about, ConfigRecord) else None
    if set(content) != {"model", "arrays"} or not isinstance(run_id, str) or not isinstance(arrays, ArrayRecord):
        raise BadMessage("the content is no model")
    return run_id, {name: _array(array) for name, array in arrays.items()}


def place_to_record(position: int) -> RecordDict:
    """A node's place in the roster, as its configuration gives it; says nothing about the shop's data."""
    return RecordDict({"place": ConfigRecord({"partition-id": position})})


def place_from_record(content: RecordDict) -> int:
    """A node's place in the roster.

    Raises:
        BadMessage: the content is not a place.
    """
    record = content.get("place")
    position = record.get("partition-id") if isinstance(record, ConfigRecord) else None
    if not isinstance(position, int):
        raise BadMessage("the reply is not a place in the roster")
    return position


def unavailable(message: Message, error: Exception, *, is_private: bool = False) -> Message:
    """The reply of a shop that cannot answer.

    Args:
        is_private: whether the round was one under a privacy spec, in which no model's error leaves `ShopNode`.
    Guarantee: it says the name of an error on `REFUSALS`, else "unavailable". Text goes with `RoundRefused` alone, and
        with a private round's alone: it is `Terms`' or the ledger's own, and holds numbers of plan and agreed terms.
    """
    reason = UNAVAILABLE
    if REFUSALS.get(type(error).__name__) is type(error):
        reason = type(error).__name__
    if is_private and type(error) is RoundRefused:
        reason = f"{reason}: {one_line(str(error))}"
    return Message(Error(_compat.CLIENT_APP_FAILED, reason), reply_to=message)


def round_messages(
    plan: RoundPlan, nodes: Mapping[str, int], deliveries: Mapping[str, bytes] | None = None
) -> dict[str, Message]:
    """One message a shop, in the order of ``nodes``, all sharing the plan's content.

    Args:
        deliveries: what was dealt to each shop, with secure aggregation; a shop without one gets no message.
    """
    content = plan_to_record(plan)
    group = str(plan.index)
    if deliveries is None:
        return {shop: Message(content, node, ROUND_MESSAGE, group_id=group) for shop, node in nodes.items()}
    return {
        shop: Message(with_delivery(content, deliveries[shop]), node, ROUND_MESSAGE, group_id=group)
        for shop, node in nodes.items()
        if shop in deliveries
    }


def step_messages(ask: Ask, index: int, nodes: Mapping[str, int]) -> dict[str, Message]:
    """One message a shop for an exchange of secure aggregation; shops that got the same bytes share the content."""
    contents: dict[bytes, RecordDict] = {}
    messages = {}
    for shop, data in ask.messages.items():
        content = contents.setdefault(data, step_to_record(ask.step, data))
        messages[shop] = Message(content, nodes[shop], SECURE_MESSAGE, group_id=f"{index} {ask.step}")
    return messages


def fresh(message: Message) -> Message:
    """The same message once more: a message is handed out once."""
    metadata = message.metadata
    return Message(message.content, metadata.dst_node_id, metadata.message_type, group_id=metadata.group_id)


@runtime_checkable
class GivesUp(Protocol):
    """A grid that can forget messages which nobody waits for any more."""

    def give_up(self, message_ids: Iterable[str]) -> None:
        """Forget them, and their answers."""


@runtime_checkable
class Bounds(Protocol):
    """A grid that refuses replies larger than they can be."""

    def push_bounded(self, messages: Iterable[Message], *, most_bytes: int) -> Iterable[str]:
        """As `Grid.push_messages`, and say how large a reply to these messages can be."""


def exchange(
    grid: Grid,
    messages: Mapping[str, Message],
    *,
    deadline_s: float | None = None,
    window: int | None = None,
    stop: threading.Event | None = None,
    read: Callable[[RecordDict], bytes] | None = None,
    most_bytes: int = 0,
) -> Iterator[Reply]:
    """Send one message a shop and yield the replies as they come, each shop at least once.

    Args:
        grid: Flower's, of any engine.
        messages: by shop, in roster order.
        deadline_s: seconds to wait, > 0; None waits for every reply or error. What has not come by then is
            yielded as unavailable.
        window: replies are asked for from this many shops at a time, counted from the first one that has not
            answered, so at most ``window`` replies can wait for it; None asks for all.
        stop: set by another thread to give up waiting.
        read: takes the bytes out of a reply's content; None = those of a release.
        most_bytes: largest reply that is due, where that is known; a small one is always taken.
    Raises:
        ProtocolError: the grid gave no ids, or ``stop`` was set.
    """
    if isinstance(grid, Bounds):
        grid.push_bounded(list(messages.values()), most_bytes=max(most_bytes, SMALL_REPLY_BYTES))
    else:
        grid.push_messages(list(messages.values()))
    # Errors that a SuperLink reports have its own node id as source: only the id replied to tells the shop.
    shop_of = {message.metadata.message_id: shop for shop, message in messages.items()}
    if len(shop_of) != len(messages) or "" in shop_of:
        raise ProtocolError("the grid took messages without giving each an id of its own")
    is_open = dict.fromkeys(shop_of, True)
    try:
        yield from _replies(grid, shop_of, is_open, deadline_s, window, stop, read or release_from_record)
    finally:
        if isinstance(grid, GivesUp):
            grid.give_up([name for name in shop_of if is_open[name]])


def _replies(
    grid: Grid,
    shop_of: Mapping[str, str],
    is_open: dict[str, bool],
    deadline_s: float | None,
    window: int | None,
    stop: threading.Event | None,
    read: Callable[[RecordDict], bytes],
) -> Iterator[Reply]:
    ids = list(shop_of)
    first, pause_s = 0, 0.01
    give_up_at = None if deadline_s is None else time.monotonic() + deadline_s
    while True:
        is_last_look = give_up_at is not None and time.monotonic() >= give_up_at
        end = len(ids) if is_last_look or window is None else first + window
        num_heard = 0
        for message in grid.pull_messages([name for name in ids[first:end] if is_open[name]]):
            name = message.metadata.reply_to_message_id
            if name in shop_of:
                num_heard += 1
                is_open[name] = False
                yield _read_reply(shop_of[name], message, read)
        while first < len(ids) and not is_open[ids[first]]:
            first += 1
        if first == len(ids):
            return
        if is_last_look:
            break
        if stop is not None and stop.is_set():
            raise ProtocolError("the run was stopped while it waited for replies; finished rounds are kept")
        if not num_heard:
            left_s = POLL_S if give_up_at is None else max(0.0, give_up_at - time.monotonic())
            time.sleep(min(pause_s, left_s))
        pause_s = 0.01 if num_heard else min(2 * pause_s, POLL_S)
    for name in ids:
        if is_open[name]:
            yield Reply(shop_of[name], None)


def window_for(plan: RoundPlan) -> int:
    """How many releases may wait at the coordinator, by their size."""
    return max(4, WAITING_BYTES // max(1, 8 * plan.spec.layout.size))


def find_nodes(grid: Grid, roster: Sequence[str], *, deadline_s: float = 120.0) -> dict[str, int]:
    """Ask every connected node for its place in the roster; waits until all of the roster is there.

    Returns:
        Node ids by shop, in roster order.
    Raises:
        ProtocolError: after ``deadline_s`` a shop is still missing, or two nodes claim one place.
    """
    places: dict[int, int] = {}
    asked: set[int] = set()
    give_up_at = time.monotonic() + deadline_s
    while len(places) < len(roster):
        new = sorted(set(grid.get_node_ids()) - asked)
        hellos = {str(node): Message(RecordDict(), node, HELLO_MESSAGE) for node in new}
        left_s = give_up_at - time.monotonic()
        if left_s <= 0:
            break
        if not hellos:
            time.sleep(min(POLL_S, 0.1))
            continue
        asked.update(new)
        for node, place in _hello_replies(grid, hellos, left_s):
            if not 0 <= place < len(roster):
                continue  # not one of ours; counting it would end the wait before a shop is there
            if places.setdefault(place, node) != node:
                raise ProtocolError(f"two nodes claim place {place} of the roster")
    if missing := [shop for place, shop in enumerate(roster) if place not in places]:
        raise ProtocolError(
            f"{len(missing)} of {len(roster)} shops did not connect in {deadline_s:g} s: {missing[:5]}; "
            f"a simulation needs {len(roster)} nodes (--federation-config num-supernodes={len(roster)})"
        )
    return {shop: places[place] for place, shop in enumerate(roster)}


def _hello_replies(grid: Grid, hellos: Mapping[str, Message], deadline_s: float) -> Iterator[tuple[int, int]]:
    """(node id, place in the roster) of each node that answers."""
    grid.push_messages(list(hellos.values()))
    open_ids = {message.metadata.message_id: int(node) for node, message in hellos.items()}
    give_up_at = time.monotonic() + deadline_s
    while open_ids and time.monotonic() < give_up_at:
        replies = list(grid.pull_messages(list(open_ids)))
        for message in replies:
            node = open_ids.pop(message.metadata.reply_to_message_id, None)
            if node is not None and message.has_content():
                yield node, place_from_record(message.content)
        if not replies:
            time.sleep(0.05)


def _read_reply(shop: str, message: Message, read: Callable[[RecordDict], bytes]) -> Reply:
    if message.has_error():
        is_heard = message.error.code == _compat.CLIENT_APP_FAILED
        return Reply(shop, None, one_line(message.error.reason or UNAVAILABLE) if is_heard else "")
    try:
        return Reply(shop, read(message.content))
    except BadMessage:
        return Reply(shop, None)


def _only_bytes(record: object, name: str) -> bytes:
    value = record[name] if isinstance(record, ConfigRecord) and set(record) == {name} else None
    if not isinstance(value, bytes):
        raise BadMessage("a record without the bytes that are due")
    return value


def _array_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Arrays as raw typed buffers."""
    record = ArrayRecord()
    for name, array in arrays.items():
        record[name] = Array(array.dtype.name, array.shape, _RAW, array.tobytes())
    return record


def _array(array: Array) -> np.ndarray:
    """A read-only view of a raw typed buffer."""
    if array.stype != _RAW or array.dtype not in WIRE_DTYPES:
        raise BadMessage(f"input array of kind {array.stype!r} and type {array.dtype!r}")
    try:
        return np.frombuffer(array.data, dtype=array.dtype).reshape(array.shape)
    except ValueError as error:
        raise BadMessage("input array whose bytes do not fit its shape") from error
