"""The Flower app of the coordinator: rounds over any Grid, one exchange each."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from safetensors.numpy import save

from fedrec.errors import BadMessage, NotFinite, ProtocolError, TooFewShops
from fedrec.federation.checkpoint import Checkpoints
from fedrec.federation.coordinator_side import ClosedRound, Coordinator
from fedrec.federation.early_stopping import EarlyStopping
from fedrec.federation.inbox import Inbox
from fedrec.federation.plan import RoundPlan
from fedrec.federation.run_record import RoundRecord, write_atomically
from fedrec.federation.secure_round import Ask, Step, set_up, unmask
from fedrec.flower.client_app import run_dir_of
from fedrec.flower.exchange import (
    POLL_S,
    UNAVAILABLE,
    Reply,
    exchange,
    find_nodes,
    fresh,
    round_messages,
    step_from_record,
    step_messages,
    window_for,
)
from fedrec.flower.local_grid import LocalGrid
from fedrec.models.recommender import State
from fedrec.shop.node import read_shop_files

_log = logging.getLogger("fedrec.coordinator")

OnRound = Callable[[RoundRecord, State], None]
"""Called after a round is finished and kept: its record and the new shared arrays."""

OnReply = Callable[[RoundPlan, int], None]
"""Called after each shop of a round: the plan and how many shops have been heard."""

OnMessage = Callable[[str, int, str, bytes], None]
"""Called with all that the coordinator receives: "upload", "refusal" or a secure step; then round, shop, bytes."""

Measure = Callable[[State], Mapping[str, float | None]]
"""Figures of the federation as a whole, from the shared arrays after a round; they go into the round's record."""

Prepare = Callable[[Path, Path], None]
"""Writes the files of the shops that a scenario describes, or checks those that are there: its path, the run folder."""


@dataclass
class ServerRun:
    """One run of the coordinator's app.

    Attributes:
        coordinator: holds the shared arrays, during and after the run.
        checkpoints: where finished rounds are kept; None keeps them in memory only.
        deadline_s: seconds a round waits for replies; None = until every shop has answered or failed.
        on_round, on_reply: for progress and learning curves.
        on_message: shown everything that the coordinator receives.
        measure: adds to the figures of each round's record; None = the training loss alone, where the model sends it.
        stopping: when to stop before the last round; None = never.
        rounds: records of the finished rounds, those of a resumed run included.
        best: the shared arrays of the best round so far, where rounds may stop early; else empty.
        stop: set from outside to end a run that waits for replies.
        inbox: keeps what an open round must not lose; None = a crash loses the round.
        patience_s: how long a step that lacks shops waits for them to come back, before the round is given up.
        greet: given connected shops, says which of them may be asked now; None = all.
    """

    coordinator: Coordinator
    checkpoints: Checkpoints | None = None
    deadline_s: float | None = None
    on_round: OnRound | None = None
    on_reply: OnReply | None = None
    on_message: OnMessage | None = None
    measure: Measure | None = None
    stopping: EarlyStopping | None = None
    rounds: list[RoundRecord] = field(default_factory=list)
    best: State = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    inbox: Inbox | None = None
    patience_s: float = 0.0
    greet: Callable[[set[str]], set[str]] | None = None

    @property
    def state(self) -> State:
        """The shared arrays that the run is for: of the best round where rounds may stop early, else of the last."""
        return self.best or self.coordinator.state

    def keep(self, closed: ClosedRound, record: RoundRecord) -> None:
        """Note a finished round, in memory and in the checkpoint."""
        self.rounds.append(record)
        if self.stopping is not None and self.stopping.best(self.rounds) == len(self.rounds) - 1:
            self.best = self.coordinator.state
        if self.checkpoints is not None:
            self.checkpoints.save(self.coordinator, closed, record, self.best)


def make_server_app(
    open_run: Callable[[Context], ServerRun], finish: Callable[[ServerRun], None] | None = None
) -> ServerApp:
    """The coordinator's app.

    Args:
        open_run: makes the run when the app starts.
        finish: called when all rounds are done.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run = open_run(context)
        roster = run.coordinator.roster
        run_rounds(run, grid, grid.nodes if isinstance(grid, LocalGrid) else find_nodes(grid, roster))
        if finish is not None:
            finish(run)

    return app


def run_rounds(run: ServerRun, grid: Grid, nodes: Mapping[str, int]) -> None:
    """Run all rounds that are left; each finished one is kept before the next starts.

    Args:
        run: the coordinator and where its rounds go.
        grid: Flower's, of any engine.
        nodes: node ids by shop, in roster order.
    Raises:
        TooFewShops: a round had fewer shops than ``min_shops``; finished rounds stay.
    """
    if run.checkpoints is not None:
        run.rounds[:], run.best = run.checkpoints.rounds, run.checkpoints.best
    if run.inbox is not None and run.coordinator.secure is not None and (kept := run.inbox.setup()) is not None:
        run.coordinator.secure.restore(kept)
    while run.stopping is None or not run.stopping.is_over(run.rounds):
        traffic = Traffic()
        try:
            record = _next_round(run, grid, nodes, traffic)
        except TooFewShops as error:
            raise TooFewShops(f"{error}{traffic.why()}") from error
        if record is None:
            return
        if run.on_round is not None:
            run.on_round(record, run.coordinator.state)


@dataclass
class Traffic:
    """What went to and fro in a round, its set-up included.

    Attributes:
        up, down: bytes.
        refusals: by shop, why it did not answer, where it said so.
    """

    up: int = 0
    down: int = 0
    refusals: dict[str, str] = field(default_factory=dict)

    def why(self) -> str:
        """The refusals, for an error's message."""
        if not self.refusals:
            return ""
        shop, reason = next(iter(self.refusals.items()))
        if reason == UNAVAILABLE:
            reason = "a failure that only its own log explains (where training diverges, give smaller learning rates)"
        return f"; shops that refused or failed: {len(self.refusals)}, the first, {shop!r}, with {reason}"


def _next_round(run: ServerRun, grid: Grid, nodes: Mapping[str, int], traffic: Traffic) -> RoundRecord | None:
    """Set up keys where they are missing, then run a round; None when the model is trained."""
    if count := run.coordinator.rounds_to_set_up():
        secure = run.coordinator.secure
        assert secure is not None  # nothing is set up without it
        _ask(run, set_up(secure, run.coordinator.index, count), grid, nodes, traffic)
        if run.inbox is not None:
            run.inbox.keep_setup(secure.to_bytes())
    if (plan := run.coordinator.next_plan()) is None:
        return None
    return _run_round(run, plan, grid, nodes, traffic)


def _run_round(run: ServerRun, plan: RoundPlan, grid: Grid, nodes: Mapping[str, int], traffic: Traffic) -> RoundRecord:
    started = time.perf_counter()
    try:
        _collect(run, plan, grid, nodes, traffic)
        if run.coordinator.secure is not None:
            _ask(run, unmask(run.coordinator.secure), grid, nodes, traffic)
        closed = run.coordinator.close()
    except (ProtocolError, NotFinite):
        run.coordinator.abandon()
        if run.coordinator.attempt and run.checkpoints is not None:
            run.checkpoints.save_attempt(run.coordinator)
        raise
    record = RoundRecord(
        index=closed.index,
        name=closed.name,
        seconds=time.perf_counter() - started,
        shops=len(closed.answered),
        failed=len(closed.failed),
        bytes_up=traffic.up,
        bytes_down=traffic.down,
        not_asked=len(run.coordinator.roster) - len(run.coordinator.asked),
        figures={
            **({} if closed.loss is None else {"loss": closed.loss}),
            **({} if run.measure is None else run.measure(run.coordinator.state)),
        },
    )
    run.keep(closed, record)
    return record


def _collect(run: ServerRun, plan: RoundPlan, grid: Grid, nodes: Mapping[str, int], traffic: Traffic) -> None:
    """The exchange of plans and uploads."""
    coordinator, secure = run.coordinator, run.coordinator.secure
    deliveries = None if secure is None else {shop: secure.delivery(shop) for shop in secure.participants}
    asked = {shop: nodes[shop] for shop in coordinator.asked}
    messages = round_messages(plan, asked, deliveries)
    heard, num_replies = _take_kept(run, plan), 0
    if run.inbox is not None and run.inbox.survivors() is not None:
        messages = {}
    for shop in asked if not run.patience_s else ():
        if shop not in messages:
            coordinator.mark_unavailable(shop)
    window = window_for(plan) if secure is None else None  # masked uploads are added as they come
    waiting = {shop: message for shop, message in messages.items() if shop not in heard}
    sizes = {shop: plan.size_bytes + len((deliveries or {}).get(shop, b"")) for shop in messages}
    for some in _until_enough(run, grid, nodes, waiting, lambda: len(heard), coordinator.terms.min_shops):
        traffic.down += sum(sizes[shop] for shop in some)
        is_last_try = not run.patience_s
        replies = exchange(
            grid, some, deadline_s=run.deadline_s, window=window, stop=run.stop, most_bytes=8 * plan.num_values
        )
        for reply in replies:
            if reply.data is None:
                _note_refusal(run, plan.index, reply, traffic)
                if is_last_try:
                    coordinator.mark_unavailable(reply.shop)
                if reply.refusal:  # it is there, and says no
                    waiting.pop(reply.shop, None)
            else:
                waiting.pop(reply.shop, None)
                traffic.up += len(reply.data)
                _show(run, "upload", plan.index, reply.shop, reply.data)
                if _take_upload(run, plan, reply):
                    heard.add(reply.shop)
            num_replies += 1
            if run.on_reply is not None:
                run.on_reply(plan, min(num_replies, len(asked)))
    for shop in asked:
        coordinator.mark_unavailable(shop)


def _take_kept(run: ServerRun, plan: RoundPlan) -> set[str]:
    """Count the uploads that were kept before a crash; whose they are."""
    if run.inbox is None:
        return set()
    run.inbox.open(plan.digest)
    kept = run.inbox.uploads()
    if kept:
        _log.info("round %d goes on with the uploads of %d shops", plan.index, len(kept))
    for shop, data in kept.items():
        run.coordinator.receive(shop, data)
    return set(kept)


def _take_upload(run: ServerRun, plan: RoundPlan, reply: Reply) -> bool:
    """Keep and count one shop's upload."""
    assert reply.data is not None
    try:
        run.coordinator.receive(reply.shop, reply.data)
    except BadMessage as error:
        _log.warning("round %d: reply of shop %s refused: %s", plan.index, reply.shop, error)
        run.coordinator.mark_unavailable(reply.shop)
        return False
    if run.inbox is not None:
        run.inbox.keep_upload(reply.shop, reply.data)
    return True


def _until_enough(
    run: ServerRun,
    grid: Grid,
    nodes: Mapping[str, int],
    waiting: Mapping[str, Message],
    num_heard: Callable[[], int],
    needed: int,
) -> Iterator[dict[str, Message]]:
    """Messages to ask again: all that wait, then those of shops that came back, while too few have answered."""
    give_up_at = time.monotonic() + run.patience_s
    asked: set[str] = set()
    while waiting:
        names = set(waiting)
        if run.greet is not None or asked:
            online = set(grid.get_node_ids())
            names = {shop for shop in names if nodes[shop] in online}
        if run.greet is not None:
            names = run.greet(names)
        some = {
            shop: fresh(message) if shop in asked else message for shop, message in waiting.items() if shop in names
        }
        if some:
            asked |= set(some)
            yield some
        if num_heard() >= needed or time.monotonic() >= give_up_at:
            return
        if run.stop.is_set():
            raise ProtocolError("the run was stopped while it waited for shops; finished rounds are kept")
        time.sleep(POLL_S)


def _ask(run: ServerRun, asks: Iterable[Ask], grid: Grid, nodes: Mapping[str, int], traffic: Traffic) -> None:
    """Exchanges of secure aggregation; who does not answer well has dropped out."""
    index, secure = run.coordinator.index, run.coordinator.secure
    assert secure is not None
    for ask in asks:
        if ask.step is Step.SIGN and run.inbox is not None:
            run.inbox.keep_survivors(tuple(ask.messages))
        needed = secure.parameters.threshold if ask.step in (Step.SIGN, Step.UNMASK) else secure.parameters.min_shops
        waiting, heard = step_messages(ask, index, nodes), set[str]()
        for some in _until_enough(run, grid, nodes, waiting, partial(len, heard), needed):
            traffic.down += sum(len(ask.messages[shop]) for shop in some)
            for reply in exchange(grid, some, deadline_s=run.deadline_s, stop=run.stop, read=_step_bytes):
                if reply.data is None:
                    _note_refusal(run, index, reply, traffic)
                    if reply.refusal:
                        waiting.pop(reply.shop, None)
                    continue
                waiting.pop(reply.shop, None)
                traffic.up += len(reply.data)
                _show(run, ask.step.value, index, reply.shop, reply.data)
                try:
                    ask.take(reply.shop, reply.data)
                    heard.add(reply.shop)
                except BadMessage as error:
                    _log.warning("round %d: %s of shop %s refused: %s", index, ask.step, reply.shop, error)


def _step_bytes(content: RecordDict) -> bytes:
    return step_from_record(content)[1]


def _note_refusal(run: ServerRun, index: int, reply: Reply, traffic: Traffic) -> None:
    if reply.refusal:
        _log.info("round %d: shop %s answers %s", index, reply.shop, reply.refusal)
        _show(run, "refusal", index, reply.shop, reply.refusal.encode())
        traffic.refusals.setdefault(reply.shop, reply.refusal)


def _show(run: ServerRun, step: str, index: int, shop: str, data: bytes) -> None:
    if run.on_message is not None:
        run.on_message(step, index, shop, data)


def make_app_for_run_dir(prepare: Prepare | None = None) -> ServerApp:
    """The coordinator's app for ``flwr run``: all rounds of the run directory that the run's configuration names.

    Args:
        prepare: writes the shops' files for a scenario; called when the configuration names one and the run directory
            has no shops yet.
    """
    return make_server_app(lambda context: open_run_from_run_dir(context, prepare), _finish_in_run_dir)


def open_run_from_run_dir(context: Context, prepare: Prepare | None = None) -> ServerRun:
    """The run in the directory that the run's configuration names; goes on where it stopped.

    Raises:
        ConfigError: no run directory is named.
        StoreError: it holds no shops, and no scenario says how to make them.
    """
    run_dir = Path(run_dir_of(context))
    scenario = str(context.run_config.get("scenario") or "")
    if prepare is not None and scenario:
        prepare(Path(scenario), run_dir)
    files = read_shop_files(run_dir)
    coordinator = Coordinator(files.model, files.public, files.terms)
    checkpoints = Checkpoints(run_dir / "checkpoint.safetensors")
    checkpoints.resume(coordinator)
    run = ServerRun(coordinator, checkpoints)
    run.on_round = lambda record, _: write_rounds(run_dir, run)
    return run


def write_rounds(run_dir: Path, run: ServerRun) -> None:
    """Write the records of the finished rounds, ``rounds.json``."""
    write_atomically(run_dir / "rounds.json", json.dumps([asdict(record) for record in run.rounds], indent=1).encode())


def write_shared(run_dir: Path, state: State) -> Path:
    """Write a finished run's shared arrays, ``model/shared.safetensors``; where they are."""
    path = run_dir / "model" / "shared.safetensors"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, save(state))
    return path


def _finish_in_run_dir(run: ServerRun) -> None:
    if run.checkpoints is None:
        return
    run_dir = run.checkpoints.path.parent
    path = write_shared(run_dir, run.coordinator.state)
    write_rounds(run_dir, run)
    print(f"{len(run.rounds)} rounds finished; shared arrays in {path}")
    print(f"guarantee: {run.coordinator.terms.guarantee}")


app = make_app_for_run_dir()
