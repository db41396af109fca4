"""How the coordinator moves the shared arrays by the mean of the shops' updates.

Sources: FedAvg: McMahan et al. 2017, arXiv:1602.05629; server momentum: Hsu et al. 2019, arXiv:1909.06335 (FedAvgM);
FedAdam: Reddi et al. 2021, arXiv:2003.00295, algorithm 2, with the bias correction of Kingma & Ba 2015. The arithmetic
is that of Flower's strategies of these names (a test compares them).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fedrec.errors import ConfigError

STRATEGIES = ("fedavg", "fedprox", "fedavgm", "fedadam")
"""FedProx (Li et al. 2020, arXiv:1812.06127) averages as FedAvg does; its pull is on the shops' side."""

_BETA_1, _BETA_2 = 0.9, 0.99
_PREFIX = "server."
_MOMENTUM, _FIRST, _SECOND, _STEP = "server.momentum/", "server.first/", "server.second/", "server.step"

Arrays = dict[str, np.ndarray]


def server_step(
    strategy: str,
    arrays: Mapping[str, np.ndarray],
    update: Mapping[str, np.ndarray],
    memory: Mapping[str, np.ndarray],
    *,
    learning_rate: float,
    momentum: float = 0.9,
    tau: float = 1e-3,
) -> tuple[Arrays, Arrays]:
    """New shared arrays and the optimiser's memory.

    Args:
        strategy: one of `STRATEGIES`.
        arrays: float32; the shared arrays before.
        update: float64, same names and shapes; mean of the shops' (new - old).
        memory: from the last step, or empty.
        learning_rate: of the coordinator; 1 with ``fedavg`` is plain averaging.
        momentum: of ``fedavgm``.
        tau: of ``fedadam``: changes much smaller than this are not blown up to whole steps; > 0.
    Returns:
        float32 arrays; float64 memory, names beginning with "server.".
    Raises:
        ConfigError: the strategy is unknown.
    """
    step = dict(update)
    kept: Arrays = {}
    match strategy:
        case "fedavg" | "fedprox":
            pass
        case "fedavgm":
            for name, change in update.items():
                step[name] = kept[_MOMENTUM + name] = momentum * memory.get(_MOMENTUM + name, 0.0) + change
        case "fedadam":
            number = float(memory[_STEP][0]) + 1 if _STEP in memory else 1.0
            kept[_STEP] = np.array([number])
            # Flower counts rounds from 1 and corrects with round + 1.
            correction = math.sqrt(1 - _BETA_2 ** (number + 1)) / (1 - _BETA_1 ** (number + 1))
            for name, change in update.items():
                first = _BETA_1 * memory.get(_FIRST + name, 0.0) + (1 - _BETA_1) * change
                second = _BETA_2 * memory.get(_SECOND + name, 0.0) + (1 - _BETA_2) * change**2
                kept[_FIRST + name], kept[_SECOND + name] = first, second
                step[name] = correction * first / (np.sqrt(second) + tau)
        case _:
            raise ConfigError(f"strategy = {strategy!r}: give one of {', '.join(STRATEGIES)}")
    with np.errstate(over="ignore"):  # the coordinator refuses arrays that are not finite
        moved = {name: (values + learning_rate * step[name]).astype(np.float32) for name, values in arrays.items()}
    return moved, kept


def memory_of(state: Mapping[str, np.ndarray]) -> Arrays:
    """The optimiser's part of a model's state."""
    return {name: values for name, values in state.items() if name.startswith(_PREFIX)}


def without_memory(state: Mapping[str, np.ndarray]) -> Arrays:
    """All the rest of it."""
    return {name: values for name, values in state.items() if not name.startswith(_PREFIX)}
