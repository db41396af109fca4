"""The shared arrays after every finished round, on disk: one file, replaced atomically.

A checkpoint is a safetensors file whose metadata holds the run's identity, the number of finished rounds and
their records, so arrays and index can never come from different rounds.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedrec.errors import StoreError
from fedrec.federation.coordinator_side import ClosedRound, Coordinator, check_same_run
from fedrec.federation.run_record import RoundRecord, write_atomically
from fedrec.models.recommender import State

CHECKPOINT_FORMAT = 2
_STATE, _BEST = "state/", "best/"


@dataclass(frozen=True)
class Checkpoint:
    """A run between two rounds.

    Attributes:
        identity: `Coordinator.identity` of the run.
        index: finished rounds, so the next round's index.
        state: the shared arrays.
        rounds: records of the finished rounds.
        plan_digests: hexadecimal, one a finished round.
        best: the shared arrays of the best round, where rounds may stop early; else empty.
        attempt: `Coordinator.attempt` of the next round.
    """

    identity: str
    index: int
    state: State
    rounds: tuple[RoundRecord, ...]
    plan_digests: tuple[str, ...]
    best: State = field(default_factory=dict)
    attempt: int = 0


class Checkpoints:
    """The checkpoint file of one run, the records of its finished rounds so far, and the best round's arrays."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.rounds: tuple[RoundRecord, ...] = ()
        self.plan_digests: tuple[str, ...] = ()
        self.best: State = {}

    def resume(self, coordinator: Coordinator) -> bool:
        """Set the coordinator to the last finished round; False when there is no checkpoint yet.

        Raises:
            ConfigError: the checkpoint is of another run.
            StoreError: the file is damaged.
        """
        if not self.path.exists():
            return False
        found = read_checkpoint(self.path)
        check_same_run(coordinator.identity(), found.identity)
        coordinator.restore(found.index, found.state, found.attempt)
        self.rounds, self.plan_digests, self.best = found.rounds, found.plan_digests, found.best
        return True

    def save(
        self, coordinator: Coordinator, closed: ClosedRound, record: RoundRecord, best: State | None = None
    ) -> None:
        """Keep the round that just closed, and the best round's arrays."""
        self.rounds = (*self.rounds, record)
        self.plan_digests = (*self.plan_digests, closed.plan_digest)
        self.best = best or {}
        self.save_attempt(coordinator)

    def save_attempt(self, coordinator: Coordinator) -> None:
        """Keep the coordinator as it is, a failed attempt at its next round included; no round has finished."""
        run = coordinator.identity(), coordinator.index, coordinator.state
        records = self.rounds, self.plan_digests, self.best
        write_checkpoint(self.path, Checkpoint(*run, *records, coordinator.attempt))


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write atomically; a crash leaves the checkpoint before it."""
    about = {
        "format": CHECKPOINT_FORMAT,
        "identity": checkpoint.identity,
        "index": checkpoint.index,
        "rounds": [dataclasses.asdict(record) for record in checkpoint.rounds],
        "plan_digests": checkpoint.plan_digests,
        "attempt": checkpoint.attempt,
    }
    arrays = {
        prefix + name: np.require(array, requirements="C")
        for prefix, state in ((_STATE, checkpoint.state), (_BEST, checkpoint.best))
        for name, array in state.items()
    }
    write_atomically(path, save(arrays, metadata={"fedrec": json.dumps(about)}))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        StoreError: missing, damaged or of another format.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            about = json.loads((file.metadata() or {})["fedrec"])
            if about["format"] != CHECKPOINT_FORMAT:
                raise StoreError(f"{path}: checkpoint of format {about['format']!r}, expected {CHECKPOINT_FORMAT}")
            num_finished = {about["index"], len(about["rounds"]), len(about["plan_digests"])}
            if len(num_finished) > 1:
                raise StoreError(f"{path}: checkpoint whose index and records of finished rounds disagree")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return Checkpoint(
            identity=about["identity"],
            index=about["index"],
            state=_under(_STATE, arrays),
            rounds=tuple(RoundRecord(**record) for record in about["rounds"]),
            plan_digests=tuple(about["plan_digests"]),
            best=_under(_BEST, arrays),
            attempt=about.get("attempt", 0),  # files from before it was kept
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path}: not a readable checkpoint ({type(error).__name__}); choose another output folder"
        ) from error


def _under(prefix: str, arrays: State) -> State:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
