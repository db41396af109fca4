"""Noisy sums: what a run will release, and how much noise each release needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReleaseRequest:
    """One kind of noisy sum that a model wants, before noise is calibrated.

    Attributes:
        name: of the round (`RoundSpec.name`).
        share: its part of the run's budget, in units of 1 / sigma^2 per release (q = 1) relative to the others; > 0.
        clip_norm: C, bound on the L2 norm of one shopper's contribution, in the units of the sum; > 0.
        sampling_rate: q in (0, 1]; each shopper takes part with this public probability. 1 for statistics.
        repeats: how many releases of this kind, one a round; >= 1.
    """

    name: str
    share: float
    clip_norm: float
    sampling_rate: float = 1.0
    repeats: int = 1


@dataclass(frozen=True)
class PlannedRelease:
    """One noisy sum of an agreed schedule.

    Attributes:
        name: of the round.
        clip_norm: C, in the units of the sum.
        noise_multiplier: sigma: standard deviation of the noise that protects the sum, over C. (What each shop adds is
            sigma x C / `PrivacySpec.noise_divisor`.)
        sampling_rate: q in (0, 1].
    """

    name: str
    clip_norm: float
    noise_multiplier: float
    sampling_rate: float = 1.0


Schedule = tuple[PlannedRelease, ...]
"""All releases of a run, in round order: entry i is round i."""


@dataclass(frozen=True)
class Outlook:
    """What is public about a run's noise before it starts; models choose their parameters from it.

    Attributes:
        schedule: the run's releases in round order.
        noise_sds: standard deviation of the noise in each value of each round's decoded sum, if all shops take part.
        public_shoppers: declared number of shoppers of the whole federation.
    """

    schedule: Schedule
    noise_sds: tuple[float, ...]
    public_shoppers: int
