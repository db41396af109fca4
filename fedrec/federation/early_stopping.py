"""When rounds stop before the last one, and whose arrays are kept: those of the best round on validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedrec.errors import ConfigError
from fedrec.federation.run_record import RoundRecord


@dataclass(frozen=True)
class EarlyStopping:
    """Stops when a figure has not improved for some rounds; a function of the rounds' records alone.

    Attributes:
        figure: name of the figure in `RoundRecord.figures`; larger is better.
        patience: rounds without a better figure after which no more are run; >= 1.
    Guarantee: none: a figure on raw validation events is not protected, and which round is kept tells of it.
    """

    figure: str
    patience: int

    def __post_init__(self) -> None:
        if not self.patience >= 1:
            raise ConfigError(f"patience = {self.patience}: give a whole number of rounds, at least 1")

    def best(self, rounds: Sequence[RoundRecord]) -> int | None:
        """Place of the best round, the first of equals; None where no round has the figure."""
        found = {place: one.figures.get(self.figure) for place, one in enumerate(rounds)}
        values = {place: value for place, value in found.items() if value is not None and math.isfinite(value)}
        return max(values, key=lambda i: values[i]) if values else None

    def is_over(self, rounds: Sequence[RoundRecord]) -> bool:
        """Whether the last ``patience`` rounds brought nothing better; never before any round has the figure."""
        best = self.best(rounds)
        return best is not None and len(rounds) - (best + 1) >= self.patience
