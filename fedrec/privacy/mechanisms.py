"""Noisy sums: what a run will release, and how much noise each release needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedrec.errors import BadAssumption
from fedrec.privacy.spec import Mode, PrivacySpec


@dataclass(frozen=True)
class ReleaseRequest:
    """One kind of noisy sum that a model wants, before noise is calibrated.

    Attributes:
        name: of the round (`RoundSpec.name`).
        share: its part of the run's budget, in units of 1 / sigma^2 per noisy sum (q = 1) relative to the others; > 0.
        clip_norm: C, bound on the L2 norm of one shopper's contribution, in the units of the sum; > 0.
        sampling_rate: q in (0, 1]; each shopper takes part with this public probability. 1 for statistics.
        repeats: how many releases of this kind, one a round; >= 1.
        local_steps: as `PlannedRelease` has it; >= 0.
    """

    name: str
    share: float
    clip_norm: float
    sampling_rate: float = 1.0
    repeats: int = 1
    local_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("share", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadAssumption(f"{name} of {self.name!r} = {getattr(self, name)}: give a number above 0")
        if not 0 < self.sampling_rate <= 1:
            raise BadAssumption(f"sampling_rate of {self.name!r} = {self.sampling_rate}: above 0, at most 1")
        for name, least in (("repeats", 1), ("local_steps", 0)):
            if not getattr(self, name) >= least:
                raise BadAssumption(
                    f"{name} of {self.name!r} = {getattr(self, name)}: give a whole number of at least {least}"
                )


@dataclass(frozen=True)
class PlannedRelease:
    """One release of an agreed schedule: a noisy sum, or what follows from several that stay in the shop.

    Attributes:
        name: of the round.
        clip_norm: C, in the units of the sum.
        noise_multiplier: sigma: standard deviation of the noise that protects the sum, over C. (What each shop adds is
            sigma x C / `PrivacySpec.noise_divisor`.)
        sampling_rate: q in (0, 1].
        local_steps: 0 = the noisy sum itself leaves. S >= 1 = every shop takes S steps by itself, each of which sees
            the shop's data through one noisy sum of this clip norm, noise and rate alone, and what leaves is computed
            from these S sums.
    """

    name: str
    clip_norm: float
    noise_multiplier: float
    sampling_rate: float = 1.0
    local_steps: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.clip_norm < math.inf and 0 < self.noise_multiplier < math.inf and 0 < self.sampling_rate <= 1):
            raise BadAssumption(
                f"release {self.name!r}: clip_norm = {self.clip_norm}, noise_multiplier = {self.noise_multiplier}, "
                f"sampling_rate = {self.sampling_rate}: numbers above 0, the rate at most 1"
            )
        if type(self.local_steps) is not int or self.local_steps < 0:
            raise BadAssumption(f"release {self.name!r}: local_steps = {self.local_steps!r}: a whole number from 0 on")

    @property
    def num_sums(self) -> int:
        """Noisy sums that the release costs: accountants compose so many of them, each chosen after those before."""
        return max(1, self.local_steps)

    def to_json(self) -> dict[str, Any]:
        """JSON values: the constructor's arguments; ``local_steps`` only where there are such."""
        fields = asdict(self)
        return fields if self.local_steps else {name: fields[name] for name in fields if name != "local_steps"}


Schedule = tuple[PlannedRelease, ...]
"""All releases of a run, in round order: entry i is round i."""


@dataclass(frozen=True)
class Outlook:
    """What is public about a run's noise before it starts; models choose their parameters from it.

    Attributes:
        schedule: the run's releases in round order.
        noise_sds: `sum_noise_sd` of each round, if all shops take part.
        public_shoppers: declared number of shoppers of the whole federation.
        max_shops_per_person: k; one account's contribution is clipped to C / k.
    """

    schedule: Schedule
    noise_sds: tuple[float, ...]
    public_shoppers: int
    max_shops_per_person: int = 1


RESIDUAL_SHARE = 2.0**-20
"""Part of delta kept for the distance between noise as it is drawn and exact Gaussians."""


def residual_delta(spec: PrivacySpec) -> float:
    """The part of a run's delta that calibration leaves for drawing the noise."""
    return spec.delta * RESIDUAL_SHARE


def sum_noise_sd(release: PlannedRelease, spec: PrivacySpec, num_shops: int) -> float:
    """Standard deviation of the noise in each value of the decoded sum over so many shops, in the units of the sum.

    Of a round of local steps: in the mean of its noisy sums over steps, summed over shops.
    """
    one = release.noise_multiplier * release.clip_norm * math.sqrt(num_shops) / spec.noise_divisor
    return one / math.sqrt(release.num_sums)


def outlook(schedule: Schedule, spec: PrivacySpec, num_shops: int) -> Outlook:
    """What a model may know of the noise before the run, if all ``num_shops`` shops take part."""
    noise_sds = tuple(sum_noise_sd(one, spec, num_shops) for one in schedule)
    return Outlook(schedule, noise_sds, spec.public_shoppers, spec.max_shops_per_person)


def check_local_steps(releases: Sequence[ReleaseRequest | PlannedRelease], spec: PrivacySpec) -> None:
    """Refuse shops' own noisy steps where a shop adds less than the full noise to its sum.

    Raises:
        BadAssumption: there are such.
    """
    own = [one.name for one in releases if one.local_steps]
    if own and spec.mode is not Mode.LOCAL:
        raise BadAssumption(
            f"{own[0]!r} are steps that every shop takes by itself, which shared noise does not protect: mode "
            f"{spec.mode} takes statistics and gradient steps; give mode local (privacy.mode), or gradient steps "
            '(the model\'s private_rounds = "gradient-step")'
        )
