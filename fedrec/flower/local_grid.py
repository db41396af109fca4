"""A Flower Grid inside this machine: it calls the real ClientApp in this process or in worker processes.

In this process a shop computes when its reply is pulled, so only one shop's vector lives at a time. With
worker processes at most two tasks a worker are under way. Seeded faults make drop-outs repeatable.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from types import TracebackType
from typing import NoReturn

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedrec.errors import ConfigError, ProtocolError
from fedrec.flower import _compat

RUN_ID = 1
_FIRST_NODE_ID = _compat.COORDINATOR_NODE_ID + 1
_WORKER_WAIT_S = 0.5
_WORKER_DIED = "a worker process died (out of memory?): use fewer workers, or workers = 0"


@dataclass(frozen=True)
class Faults:
    """What goes wrong on purpose; the draw depends on seed, round and shop alone, never on timing.

    Attributes:
        drop: probability in [0, 1] that a shop vanishes in a round; the grid says so, as a SuperLink does.
        error: probability that a shop's app crashes.
        duplicate: probability that a reply arrives twice.
        delay_s: seconds by which every reply is late at most (uniform).
        seed: of the draws.
    """

    drop: float = 0.0
    error: float = 0.0
    duplicate: float = 0.0
    delay_s: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("drop", "error", "duplicate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"faults: {name} = {getattr(self, name)}: must be a probability between 0 and 1")
        if not 0 <= self.delay_s < float("inf"):
            raise ConfigError(f"faults: delay_s = {self.delay_s}: must be 0 or more seconds")

    def draw(self, message: Message) -> Fate:
        """What happens to one message."""
        if not (self.drop or self.error or self.duplicate or self.delay_s):
            return _NO_FATE
        what = f"{message.metadata.message_type} {message.metadata.group_id}"
        seed = [self.seed, zlib.crc32(what.encode()), message.metadata.dst_node_id]
        drop, error, duplicate, delay = np.random.default_rng(seed).random(4)
        return Fate(
            drop=bool(drop < self.drop),
            error=bool(error < self.error),
            duplicate=bool(duplicate < self.duplicate),
            delay_s=float(delay * self.delay_s),
        )


@dataclass(frozen=True)
class Fate:
    """What happens to one message."""

    drop: bool = False
    error: bool = False
    duplicate: bool = False
    delay_s: float = 0.0


_NO_FATE = Fate()


@dataclass
class _Sent:
    message: Message
    fate: Fate
    ready_at: float
    future: Future[tuple[Message, Context]] | None = field(default=None)


class LocalGrid(Grid):
    """Flower's Grid over shops on this machine; node ids follow the roster.

    Use as a context manager, or call ``close``, when there are workers.
    """

    def __init__(
        self,
        client_app: ClientApp,
        roster: Sequence[str],
        *,
        run_config: dict[str, str | int | float | bool] | None = None,
        workers: int = 0,
        faults: Faults | None = None,
    ) -> None:
        """Args:
        client_app: what every shop runs; with workers it must be picklable.
        roster: names of the shops; a shop's place is its ``partition-id``.
        run_config: seen by the app in its context.
        workers: processes that run the app; 0 = this one.
        faults: what goes wrong on purpose; None = nothing.
        """
        if not workers >= 0:
            raise ConfigError(f"workers = {workers}: must be 0 (this process) or more")
        _compat.set_identity(RUN_ID)
        self._run = _compat.empty_run(RUN_ID)
        self._client_app = client_app
        self._faults = faults or Faults()
        self.nodes = {shop: _FIRST_NODE_ID + place for place, shop in enumerate(roster)}
        self._contexts = {
            node: Context(
                run_id=RUN_ID,
                node_id=node,
                node_config={"partition-id": node - _FIRST_NODE_ID, "num-partitions": len(roster)},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for node in self.nodes.values()
        }
        self._sent: dict[str, _Sent] = {}
        self._num_sent = 0
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> LocalGrid:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes; replies that are not pulled yet are lost."""
        self._sent.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def set_run(self, run: _compat.Run) -> None:
        """The run is fixed; nothing to set."""

    @property
    def run(self) -> _compat.Run:
        """The one run of this grid."""
        return self._run

    def create_message(self, *args: object, **kwargs: object) -> NoReturn:
        """Deprecated in Flower and not offered here."""
        raise ProtocolError("LocalGrid.create_message: build a flwr.app.Message instead")

    def get_node_ids(self) -> Iterable[int]:
        """Node ids in roster order."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages in; their shops compute later."""
        ids = []
        now = time.monotonic()
        for message in messages:
            if message.metadata.dst_node_id not in self._contexts:
                raise ProtocolError(f"no shop has node id {message.metadata.dst_node_id}")
            name = f"m{self._num_sent}"
            self._num_sent += 1
            _compat.set_message_id(message, name)
            fate = self._faults.draw(message)
            self._sent[name] = _Sent(message, fate, now + fate.delay_s)
            ids.append(name)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Replies that are ready, one at a time; in this process each is computed when it is asked for."""
        names = [name for name in message_ids if name in self._sent]
        replies = self._pull_from_workers(names) if self._workers else self._pull_here(names)
        for name, reply in replies:
            yield reply
            if self._sent.pop(name).fate.duplicate:
                yield reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, then pull until all replies are here or ``timeout`` seconds are over."""
        waiting = set(self.push_messages(messages))
        give_up_at = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting:
            new = list(self.pull_messages(sorted(waiting)))
            waiting -= {reply.metadata.reply_to_message_id for reply in new}
            replies += new
            if give_up_at is not None and time.monotonic() >= give_up_at:
                break
            if not new:
                time.sleep(0.01)
        return replies

    def _pull_here(self, names: Sequence[str]) -> Iterator[tuple[str, Message]]:
        for name in names:
            sent = self._sent[name]
            if time.monotonic() < sent.ready_at:
                continue
            if (failure := _failure(sent)) is not None:
                yield name, failure
                continue
            node = sent.message.metadata.dst_node_id
            yield name, _call(self._client_app, _own_copy(sent.message), self._contexts[node])

    def _pull_from_workers(self, names: Sequence[str]) -> Iterator[tuple[str, Message]]:
        self._submit(names)
        under_way = {}
        for name in names:
            sent = self._sent[name]
            if (failure := _failure(sent)) is not None and time.monotonic() >= sent.ready_at:
                yield name, failure
            elif sent.future is not None:
                under_way[name] = sent.future
        wait(under_way.values(), timeout=_WORKER_WAIT_S, return_when=FIRST_COMPLETED)
        for name, future in under_way.items():
            sent = self._sent[name]
            if future.done() and time.monotonic() >= sent.ready_at:
                try:
                    reply, context = future.result()
                except BrokenProcessPool as error:
                    raise ProtocolError(_WORKER_DIED) from error
                self._contexts[sent.message.metadata.dst_node_id] = context
                sent.future = None
                yield name, reply

    def _submit(self, names: Sequence[str]) -> None:
        """Keep at most two tasks a worker under way, so that results don't pile up."""
        if self._pool is None:
            methods = multiprocessing.get_all_start_methods()
            self._pool = ProcessPoolExecutor(
                self._workers,
                mp_context=multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn"),
                initializer=_start_worker,
                initargs=(self._client_app,),
            )
        with _no_interrupts():
            self._fill_workers(names)

    def _fill_workers(self, names: Sequence[str]) -> None:
        assert self._pool is not None
        free = 2 * self._workers - sum(sent.future is not None for sent in self._sent.values())
        for name in names:
            sent = self._sent[name]
            if free <= 0:
                return
            if sent.future is None and _failure(sent) is None:
                context = self._contexts[sent.message.metadata.dst_node_id]
                try:
                    sent.future = self._pool.submit(_call_in_worker, sent.message, context)
                except BrokenProcessPool as error:
                    raise ProtocolError(_WORKER_DIED) from error
                free -= 1


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Ctrl-C waits: processes that start meanwhile keep it out for good, so that this process alone ends the run."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # or the start of the first worker would let Ctrl-C in again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _own_copy(message: Message) -> Message:
    """The message with containers of its own: mods take records out, and the content is shared."""
    return _compat.with_content(message, _compat.copy_containers(message.content))


def _failure(sent: _Sent) -> Message | None:
    """The error that stands in for a reply, if the message met with one."""
    if sent.fate.drop:
        reply = Message(Error(_compat.NODE_UNAVAILABLE, "node unavailable"), reply_to=sent.message)
        _compat.set_source(reply, _compat.COORDINATOR_NODE_ID)
        return reply
    if sent.fate.error:
        return Message(Error(_compat.CLIENT_APP_FAILED, "injected fault"), reply_to=sent.message)
    return None


def _call(client_app: ClientApp, message: Message, context: Context) -> Message:
    """Run the app as Flower does: what it raises becomes an error reply."""
    try:
        return client_app(message, context)
    except Exception:  # an app of someone else's; fedrec's own never raises
        return Message(Error(_compat.CLIENT_APP_FAILED, "app failed"), reply_to=message)


_worker_app: ClientApp | None = None


def _start_worker(client_app: ClientApp) -> None:
    global _worker_app
    _worker_app = client_app


def _call_in_worker(message: Message, context: Context) -> tuple[Message, Context]:
    if _worker_app is None:
        raise ProtocolError("worker process without an app")
    return _call(_worker_app, message, context), context
