"""One federation from start to end on an engine: shops of this machine, or Flower's own Ray simulation."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, RecordDict
from scipy import sparse

from fedrec.errors import ConfigError
from fedrec.federation.anchors import anchored_shops
from fedrec.federation.checkpoint import Checkpoints
from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.early_stopping import EarlyStopping
from fedrec.federation.release import MakeNoise
from fedrec.federation.run_record import RoundRecord
from fedrec.federation.terms import Terms
from fedrec.flower.client_app import NodesInFiles, NodesInMemory, make_client_app
from fedrec.flower.local_grid import RUN_ID, Faults, LocalGrid
from fedrec.flower.server_app import Measure, OnMessage, OnReply, OnRound, ServerRun, make_server_app
from fedrec.models.recommender import PublicInputs, Recommender, State
from fedrec.privacy.noise import SecureNoise
from fedrec.secure_aggregation.keys import IdentityKey
from fedrec.shop.node import IN_MEMORY, shop_nodes, write_shop_files


@dataclass(frozen=True, repr=False)
class Federation:
    """What is trained, and by whom.

    Attributes:
        model: a frozen dataclass of its settings.
        public: the federation's item space.
        terms: who takes part, and what is promised; a resumed run must bring the same.
        histories: CSR, (num_shoppers, num_items) each, in roster order.
        ledger_url: database of the shops' privacy ledgers, one ledger a shop; used under a privacy spec.
        anchor_dir: folder of the anchors that keep the heads of the ledgers (`fedrec.federation.anchors`), where all
            shops are in this process; None = nobody does.
        make_noise: where noise comes from; anything but the operating system's randomness is for tests, and stays in
            this process.
        identities: the shops' keys, in roster order; needed where the terms ask for secure aggregation.
        shoppers: str, (num_shoppers,) each; ids of the histories' rows, in roster order.
    """

    model: Recommender
    public: PublicInputs
    terms: Terms
    histories: Sequence[sparse.csr_matrix]
    ledger_url: str = IN_MEMORY
    anchor_dir: Path | None = None
    make_noise: MakeNoise = SecureNoise
    identities: Sequence[IdentityKey] = ()
    shoppers: Sequence[np.ndarray] = ()

    def coordinator(self) -> Coordinator:
        """A coordinator before the first round."""
        return Coordinator(self.model, self.public, self.terms)

    def write_files(self, run_dir: Path) -> None:
        """Write the files from which other processes open the shops."""
        if self.make_noise is not SecureNoise:
            raise ConfigError("a noise source of tests stays in one process: run without workers")
        write_shop_files(
            run_dir,
            self.model,
            self.public,
            self.terms,
            self.histories,
            ledger_url=self.ledger_url,
            identities=self.identities,
            shoppers=self.shoppers,
        )


@dataclass(frozen=True)
class RunOptions:
    """How the rounds run; none of it changes the result.

    Attributes:
        checkpoint: file for the shared arrays after every finished round; None keeps nothing.
        resume: go on from the checkpoint if there is one.
        deadline_s: seconds a round waits for replies, > 0; None = until every shop has answered or failed.
        on_round, on_reply: called after each round, after each shop.
        on_message: called with all that the coordinator receives.
        measure: figures of the shared arrays after each round, for the rounds' records.
        stopping: when to stop before the last round, on one of these figures; this one does change the result.
    """

    checkpoint: Path | None = None
    resume: bool = False
    deadline_s: float | None = None
    on_round: OnRound | None = None
    on_reply: OnReply | None = None
    on_message: OnMessage | None = None
    measure: Measure | None = None
    stopping: EarlyStopping | None = None


@dataclass(frozen=True, repr=False)
class Trained:
    """What a run of rounds ends with: the shared arrays (`ServerRun.state`) and the records of all its rounds."""

    state: State
    rounds: tuple[RoundRecord, ...] = field(default_factory=tuple)


def run_local(
    federation: Federation,
    options: RunOptions | None = None,
    *,
    workers: int = 0,
    faults: Faults | None = None,
    run_dir: Path | None = None,
) -> Trained:
    """Run all rounds on this machine.

    Args:
        federation: what is trained, and by whom.
        options: checkpoint, deadline, callbacks.
        workers: worker processes, 0 = this process; workers open the shops from files in ``run_dir``.
        faults: what goes wrong on purpose.
        run_dir: needed with workers.
    Raises:
        TooFewShops: a round had too few shops; finished rounds stay in the checkpoint.
        ConfigError: the checkpoint is of another run, or workers without a run directory.
    """
    run = _open(federation, options or RunOptions())
    if workers and run_dir is None:
        raise ConfigError(
            f"workers = {workers} without a run directory: worker processes open the shops from files there"
        )
    if workers and run_dir is not None:
        federation.write_files(run_dir)
        client_app = make_client_app(NodesInFiles(str(Path(run_dir).absolute())))
    else:
        anchor_dir, roster = federation.anchor_dir, federation.terms.roster
        nodes = shop_nodes(
            federation.model,
            federation.public,
            federation.terms,
            federation.histories,
            ledger_url=federation.ledger_url,
            make_noise=federation.make_noise,
            anchors=None if anchor_dir is None else anchored_shops(anchor_dir, roster),
            identities=federation.identities,
            shoppers=federation.shoppers,
        )
        client_app = make_client_app(NodesInMemory(nodes))
    with LocalGrid(client_app, federation.terms.roster, workers=workers, faults=faults) as grid:
        make_server_app(lambda _: run)(grid, _server_context())
    return Trained(run.state, tuple(run.rounds))


def run_with_ray(
    federation: Federation,
    options: RunOptions | None = None,
    *,
    run_dir: Path,
    cores_per_shop: float = 1.0,
) -> Trained:
    """Run all rounds on Flower's own simulation engine, with the same two apps.

    Args:
        federation: what is trained, and by whom.
        options: checkpoint, deadline, callbacks.
        run_dir: the shops' files are written here and opened by Ray's processes.
        cores_per_shop: what Ray reserves for one shop, > 0.
    Raises:
        ConfigError: Ray is not installed, or the checkpoint is of another run.
    """
    require_ray()
    from flwr.simulation import run_simulation

    run = _open(federation, options or RunOptions())
    federation.write_files(run_dir)
    flower_log = logging.getLogger("flwr")
    level = flower_log.level
    flower_log.setLevel(logging.ERROR)  # or it advises its own command line instead of the call below
    try:
        run_simulation(
            server_app=make_server_app(lambda _: run),
            client_app=make_client_app(NodesInFiles(str(Path(run_dir).absolute()))),
            num_supernodes=len(federation.terms.roster),
            backend_config=_ray_settings(cores_per_shop),
        )
    finally:
        run.stop.set()  # after Ctrl-C Flower's thread would wait for replies for ever
        flower_log.setLevel(level)
    return Trained(run.state, tuple(run.rounds))


def require_ray() -> None:
    """Refuse the engine ``ray`` where it is not installed.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("engine 'ray' needs Flower's Ray engine: pip install 'fedrec[ray]', or use engine 'local'")


def _ray_settings(cores_per_shop: float) -> dict[str, Any]:
    return {
        "client_resources": {"num_cpus": cores_per_shop, "num_gpus": 0.0},
        "init_args": {"include_dashboard": False, "log_to_driver": False},
    }


def _open(federation: Federation, options: RunOptions) -> ServerRun:
    coordinator = federation.coordinator()
    checkpoints = None if options.checkpoint is None else Checkpoints(options.checkpoint)
    if checkpoints is not None and options.resume:
        checkpoints.resume(coordinator)
    return ServerRun(
        coordinator,
        checkpoints,
        deadline_s=options.deadline_s,
        on_round=options.on_round,
        on_reply=options.on_reply,
        on_message=options.on_message,
        measure=options.measure,
        stopping=options.stopping,
    )


def _server_context() -> Context:
    return Context(run_id=RUN_ID, node_id=0, node_config={}, state=RecordDict(), run_config={})
