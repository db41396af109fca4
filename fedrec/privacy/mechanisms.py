"""Noisy sums: what a run will release, and how much noise each release needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedrec.privacy.spec import PrivacySpec


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


RESIDUAL_SHARE = 2.0**-20
"""Part of delta kept for the distance between noise as it is drawn and exact Gaussians."""


def residual_delta(spec: PrivacySpec) -> float:
    """The part of a run's delta that calibration leaves for drawing the noise."""
    return spec.delta * RESIDUAL_SHARE


def sum_noise_sd(release: PlannedRelease, spec: PrivacySpec, num_shops: int) -> float:
    """Standard deviation of the noise in each value of the decoded sum over so many shops, in the units of the sum."""
    return release.noise_multiplier * release.clip_norm * math.sqrt(num_shops) / spec.noise_divisor


def outlook(schedule: Schedule, spec: PrivacySpec, num_shops: int) -> Outlook:
    """What a model may know of the noise before the run, if all ``num_shops`` shops take part."""
    return Outlook(schedule, tuple(sum_noise_sd(one, spec, num_shops) for one in schedule), spec.public_shoppers)


def calibrate(requests: Sequence[ReleaseRequest], spec: PrivacySpec) -> Schedule:
    from fedrec.privacy import accounting

    def schedule(s: float) -> Schedule:
        return tuple(
            PlannedRelease(r.name, r.clip_norm, s / math.sqrt(r.share), r.sampling_rate)
            for r in requests
            for _ in range(r.repeats)
        )

    delta = spec.delta - residual_delta(spec)
    low, high = 1e-3, 1e6
    while high / low > 1 + 1e-6:
        mid = math.sqrt(low * high)
        low, high = (low, mid) if accounting.epsilon(schedule(mid), delta) <= spec.epsilon else (mid, high)
    return schedule(high)
