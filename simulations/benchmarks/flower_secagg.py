"""Flower 1.41's SecAgg+ without its network: the server's own workflow stages, answered by the clients' own functions.

Only messages are passed by hand; every computation is Flower's. The time of clients is kept apart from the server's.
"""

from __future__ import annotations

import importlib
import logging
import time
import tracemalloc
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import flwr.compat.common.recorddict_compat as compat
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common import Code, FitIns, FitRes, Parameters, Status, ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState
from flwr.supercore.task_identity import TaskIdentity

# The package's attribute of this name is a function of the module.
client = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")

CLIP = 8.0
WEIGHT = 1000
NO_PARAMETERS = Parameters([], "")

SERVER_NODE = 1_000_000

TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, SERVER_NODE
logging.getLogger("flwr").setLevel(logging.CRITICAL)


class Clients:
    """What the workflow takes for its network: answers by the clients' stage functions, and how long they took."""

    def __init__(self, vector_of: Callable[[int], np.ndarray], dropped: Iterable[int]) -> None:
        """Args:
        vector_of: float32 values of a client.
        dropped: clients that do not answer with a masked vector.
        """
        self.vector_of = vector_of
        self.dropped = set(dropped)
        self.states: dict[int, Any] = {}
        self.took_s: dict[str, list[float]] = {}
        self.apart_s = 0.0
        self.upload_bytes = 0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Every client's answer to its message; the peak of memory is taken from then on."""
        started = time.process_time()
        answers = [self._answer(message) for message in messages]
        self.apart_s += time.process_time() - started
        if tracemalloc.is_tracing():
            tracemalloc.reset_peak()
        return answers

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        configs = ConfigRecord(dict(message.content.config_records[RECORD_KEY_CONFIGS]))
        stage = configs.pop(Key.STAGE)
        if stage in (Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK) and node in self.dropped:
            return Message(Error(code=0, reason="dropped out"), reply_to=message)
        state = self.states.setdefault(node, client.SecAggPlusState())
        state.nid = node
        content = RecordDict()
        if stage == Stage.COLLECT_MASKED_VECTORS:
            content = compat.fitres_to_recorddict(FitRes(Status(Code.OK, ""), NO_PARAMETERS, WEIGHT, {}), True)
            update = ndarrays_to_parameters([self.vector_of(node)])
            arguments: tuple[Any, ...] = (state, configs, WEIGHT, update)
        else:
            arguments = (state, configs)
        started = time.process_time()
        result = STAGES[stage](*arguments)
        self.took_s.setdefault(stage, []).append(time.process_time() - started)
        if stage == Stage.COLLECT_MASKED_VECTORS:
            self.upload_bytes = sum(map(len, result[Key.MASKED_PARAMETERS]))
        content.config_records[RECORD_KEY_CONFIGS] = ConfigRecord(result, False)
        return Message(content, reply_to=message)


STAGES: dict[str, Callable[..., dict[str, Any]]] = {
    Stage.SETUP: client._setup,
    Stage.SHARE_KEYS: client._share_keys,
    Stage.COLLECT_MASKED_VECTORS: client._collect_masked_vectors,
    Stage.UNMASK: client._unmask,
}


class Strategy:
    """Samples every client, and keeps the average instead of averaging again."""

    def __init__(self, num_clients: int) -> None:
        self.num_clients = num_clients
        self.average: Parameters = NO_PARAMETERS

    def configure_fit(self, *_: Any) -> list[tuple[Any, FitIns]]:
        return [(SimpleNamespace(node_id=node), FitIns(NO_PARAMETERS, {})) for node in range(1, self.num_clients + 1)]

    def aggregate_fit(self, _: int, results: list[tuple[Any, FitRes]], failures: list[Any]) -> tuple[None, dict]:
        self.average = results[0][1].parameters
        return None, {}


class FlowerRound:
    """One round of SecAgg+ with all its stages."""

    def __init__(
        self,
        num_clients: int,
        threshold: int,
        vector_of: Callable[[int], np.ndarray],
        *,
        dropped: Iterable[int] = (),
        num_shares: int | None = None,
    ) -> None:
        """Args:
        num_clients: named 1, 2, ...
        threshold: shares that give back a secret.
        vector_of: float32 values of a client.
        dropped: clients without a masked vector.
        num_shares: holders of a secret, its client among them; all clients by default.
        """
        self.clients = Clients(vector_of, dropped)
        self.strategy = Strategy(num_clients)
        self.workflow = SecAggPlusWorkflow(num_shares or 1.0, threshold, max_weight=float(WEIGHT), clipping_range=CLIP)
        self.state = WorkflowState()
        self.peak_bytes = 0
        records = RecordDict(
            {
                MAIN_CONFIGS_RECORD: ConfigRecord({WorkflowKey.CURRENT_ROUND: 1}),
                MAIN_PARAMS_RECORD: ArrayRecord(),
            }
        )
        manager = SimpleNamespace(num_available=lambda: num_clients)
        self.context = SimpleNamespace(
            state=records,
            strategy=self.strategy,
            client_manager=manager,
            history=SimpleNamespace(add_metrics_distributed_fit=lambda **_: None),
        )

    def stage(self, name: str) -> float:
        """Run one stage; the server's own processor time."""
        self.clients.apart_s = 0.0
        started = time.process_time()
        if not getattr(self.workflow, name)(self.clients, self.context, self.state):
            raise SystemExit(f"Flower's stage {name} gave up")
        took_s = time.process_time() - started - self.clients.apart_s
        if tracemalloc.is_tracing():
            self.peak_bytes = max(self.peak_bytes, tracemalloc.get_traced_memory()[1])
        return took_s

    def run(self) -> dict[str, float]:
        """All stages; the server's own processor time of each."""
        names = ("setup_stage", "share_keys_stage", "collect_masked_vectors_stage", "unmask_stage")
        return {name: self.stage(name) for name in names}


def setup_of_one_client(num_clients: int, threshold: int, num_shares: int) -> float:
    """Processor time of one client's keys and shares, with all others' keys at hand.

    Args:
        num_clients, threshold: as in `FlowerRound`.
        num_shares: holders of its secrets, itself among them.
    """
    configs = {
        Key.SAMPLE_NUMBER: num_clients,
        Key.SHARE_NUMBER: num_shares,
        Key.THRESHOLD: threshold,
        Key.CLIPPING_RANGE: CLIP,
        Key.TARGET_RANGE: 2**22,
        Key.MOD_RANGE: 2**32,
        Key.MAX_WEIGHT: float(WEIGHT),
    }
    others = {}
    for node in range(2, num_shares + 1):
        other = client.SecAggPlusState()
        keys = client._setup(other, ConfigRecord(dict(configs)))
        others[str(node)] = [keys[Key.PUBLIC_KEY_1], keys[Key.PUBLIC_KEY_2]]
    state = client.SecAggPlusState()
    state.nid = 1
    started = time.process_time()
    keys = client._setup(state, ConfigRecord(dict(configs)))
    took_s = time.process_time() - started
    known = ConfigRecord({"1": [keys[Key.PUBLIC_KEY_1], keys[Key.PUBLIC_KEY_2]], **others})
    started = time.process_time()
    client._share_keys(state, known)
    return took_s + time.process_time() - started
