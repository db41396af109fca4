"""Which events train, which choose, which test."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from fedrec.data.events import Events


class Part(IntEnum):
    """What an event is used for."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2
    FOLD_IN = 3


@dataclass(frozen=True)
class Split:
    """Events and, for each, its part.

    Attributes:
        events: with a ``shop`` column.
        parts: int8, (num_events,); values of `Part`.
        description: how it was made, for the record (kind, parameters, what was random).
    """

    events: Events
    parts: np.ndarray
    description: dict[str, object]
