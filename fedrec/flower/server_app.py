"""The Flower app of the coordinator: rounds over any Grid, one exchange each."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from safetensors.numpy import save

from fedrec.errors import BadMessage
from fedrec.federation.checkpoint import Checkpoints
from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.plan import RoundPlan
from fedrec.federation.run_record import RoundRecord, write_atomically
from fedrec.flower.client_app import run_dir_of
from fedrec.flower.exchange import exchange, find_nodes, round_messages, window_for
from fedrec.flower.local_grid import LocalGrid
from fedrec.models.recommender import State
from fedrec.shop.node import has_shop_files, read_shop_files

_log = logging.getLogger("fedrec.coordinator")

OnRound = Callable[[RoundRecord, State], None]
"""Called after a round is finished and kept: its record and the new shared arrays."""

OnReply = Callable[[RoundPlan, int], None]
"""Called after each shop of a round: the plan and how many shops have been heard."""

Prepare = Callable[[Path, Path], None]
"""Writes the files of the shops that a scenario describes: the scenario's path, the run directory."""


@dataclass
class ServerRun:
    """One run of the coordinator's app.

    Attributes:
        coordinator: holds the shared arrays, during and after the run.
        checkpoints: where finished rounds are kept; None keeps them in memory only.
        deadline_s: seconds a round waits for replies; None = until every shop has answered or failed.
        on_round, on_reply: for progress and learning curves.
        rounds: records of the finished rounds, those of a resumed run included.
        stop: set from outside to end a run that waits for replies.
    """

    coordinator: Coordinator
    checkpoints: Checkpoints | None = None
    deadline_s: float | None = None
    on_round: OnRound | None = None
    on_reply: OnReply | None = None
    rounds: list[RoundRecord] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)


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
        run.rounds[:] = run.checkpoints.rounds
    while (plan := run.coordinator.next_plan()) is not None:
        record = _run_round(run, plan, grid, nodes)
        run.rounds.append(record)
        if run.on_round is not None:
            run.on_round(record, run.coordinator.state)


def _run_round(run: ServerRun, plan: RoundPlan, grid: Grid, nodes: Mapping[str, int]) -> RoundRecord:
    started = time.perf_counter()
    bytes_up = _collect(run, plan, grid, nodes)
    closed = run.coordinator.close()
    record = RoundRecord(
        index=closed.index,
        name=closed.name,
        seconds=time.perf_counter() - started,
        shops=len(closed.answered),
        failed=len(closed.failed),
        bytes_up=bytes_up,
        bytes_down=plan.size_bytes * len(nodes),
    )
    if run.checkpoints is not None:
        run.checkpoints.save(run.coordinator, closed, record)
    return record


def _collect(run: ServerRun, plan: RoundPlan, grid: Grid, nodes: Mapping[str, int]) -> int:
    """One exchange; returns the bytes that came up."""
    bytes_up = 0
    messages = round_messages(plan, nodes)
    replies = exchange(grid, messages, deadline_s=run.deadline_s, window=window_for(plan), stop=run.stop)
    for num_heard, reply in enumerate(replies, start=1):
        if reply.data is None:
            run.coordinator.mark_unavailable(reply.shop)
        else:
            bytes_up += len(reply.data)
            try:
                run.coordinator.receive(reply.shop, reply.data)
            except BadMessage as error:
                _log.warning("round %d: reply of shop %s refused: %s", plan.index, reply.shop, error)
                run.coordinator.mark_unavailable(reply.shop)
        if run.on_reply is not None:
            run.on_reply(plan, min(num_heard, len(nodes)))
    return bytes_up


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
    if prepare is not None and scenario and not has_shop_files(run_dir):
        prepare(Path(scenario), run_dir)
    files = read_shop_files(run_dir)
    coordinator = Coordinator(files.model, files.public, files.terms)
    checkpoints = Checkpoints(run_dir / "checkpoint.safetensors")
    checkpoints.resume(coordinator)
    run = ServerRun(coordinator, checkpoints)
    run.on_round = lambda record, _: _write_rounds(run_dir, run)
    return run


def _write_rounds(run_dir: Path, run: ServerRun) -> None:
    write_atomically(run_dir / "rounds.json", json.dumps([asdict(record) for record in run.rounds], indent=1).encode())


def _finish_in_run_dir(run: ServerRun) -> None:
    if run.checkpoints is None:
        return
    folder = run.checkpoints.path.parent / "model"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / "shared.safetensors", save(run.coordinator.state))
    _write_rounds(folder.parent, run)
    print(f"{len(run.rounds)} rounds finished; shared arrays in {folder / 'shared.safetensors'}")


app = make_app_for_run_dir()
