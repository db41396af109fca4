"""What every shop of a run agrees to before its first round: who takes part, and what is promised to a shopper.

A shop computes its clip norm, its grid and its noise from the terms that it agreed to, never from a number it was sent:
a plan on other terms is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import numpy as np

from fedrec.errors import BadAssumption, ConfigError, RoundRefused
from fedrec.models.recommender import LARGEST_ARRAY, LOSS, RoundKind, RoundSpec
from fedrec.privacy.accounting import epsilon
from fedrec.privacy.grid import SCALE, Grid, choose_grid
from fedrec.privacy.mechanisms import PlannedRelease, Schedule, check_local_steps, residual_delta, sum_noise_sd
from fedrec.privacy.noise import noise_residual_tv
from fedrec.privacy.spec import Mode, PrivacySpec
from fedrec.secure_aggregation.parameters import Parameters

PLAIN_UNIT = 2.0**-24
"""Fixed point of masked sums without a privacy spec, and of local updates: values are rounded to multiples of it."""

_LARGEST_INPUT = {"f": LARGEST_ARRAY, "i": float(2**53), "u": float(2**53), "b": 1.0}
"""Largest absolute value in an array that shops compute gradients at, by numpy's kind of type. Who chose
10^25 could turn the last bit of a shopper's row, which others in her batch decide, into her sign."""

MOST_SHOPPERS_OF_A_STEP = 2**20
"""Shoppers whose gradients' float64 sum stays within the slack of `fedrec.federation.shop_side`."""


class Protection(StrEnum):
    """What stands between a shop's sum and the world outside."""

    NONE = "none"
    LOCAL = "local"
    DISTRIBUTED = "distributed"


@dataclass(frozen=True)
class Terms:
    """The terms of one run.

    Attributes:
        roster: names of all shops; sums are added in this order.
        min_shops: fewest shops whose sum may be used; 1 <= min_shops <= len(roster). With a privacy spec: its n_min.
        run_id: names the run; the same when a run is resumed.
        clip_norm: L2 bound on one shopper's contribution in research mode; None = unbounded.
        privacy: what is promised to every shopper; None = research mode, no guarantee.
        schedule: the run's noisy sums in round order; empty without privacy.
        secure: who masks with whom; None = no secure aggregation, the coordinator sees every shop's sum.
        shops_per_round: how many shops a local-update round asks, drawn anew for each round; None = all. Statistics and
            gradient steps ask all.
        shop_shoppers: declared number of shoppers of each shop, in roster order; given where, and only where, shops
            take private steps by themselves. What a shop divides its own sums by, and its weight in the mean.
    """

    roster: tuple[str, ...]
    min_shops: int = 1
    run_id: str = ""
    clip_norm: float | None = None
    privacy: PrivacySpec | None = None
    schedule: Schedule = ()
    secure: Parameters | None = None
    shops_per_round: int | None = None
    shop_shoppers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.roster or len(set(self.roster)) != len(self.roster):
            raise ConfigError(f"roster of {len(self.roster)} shops: names must be given, each once")
        if not 1 <= self.min_shops <= len(self.roster):
            raise ConfigError(
                f"min_shops = {self.min_shops}: must be between 1 and the {len(self.roster)} shops of the roster"
            )
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ConfigError(f"clip_norm = {self.clip_norm}: must be a finite number above 0, or left out")
        if (self.privacy is None) != (len(self.schedule) == 0):
            raise ConfigError("terms need both a privacy spec and its schedule, or neither")
        if self.privacy is not None and self.privacy.min_shops != self.min_shops:
            raise BadAssumption(
                f"min_shops = {self.min_shops}, but the noise is made for {self.privacy.min_shops}: give the same"
            )
        if self.privacy is not None and self.clip_norm is not None:
            raise ConfigError("clip_norm is for research mode; under a privacy spec the schedule sets it")
        if self.privacy is not None:
            check_local_steps(self.schedule, self.privacy)
        has_steps = any(release.local_steps for release in self.schedule)
        if len(self.shop_shoppers) != (len(self.roster) if has_steps else 0):
            raise BadAssumption(
                f"shop_shoppers of {len(self.shop_shoppers)} shops: local steps need one number for each shop of the "
                "roster, other schedules none"
            )
        if not all(type(count) is int and 1 <= count <= MOST_SHOPPERS_OF_A_STEP for count in self.shop_shoppers):
            raise BadAssumption(f"shop_shoppers: declare whole numbers from 1 to {MOST_SHOPPERS_OF_A_STEP:,}")
        if self.secure is not None:
            self._check_secure(self.secure)
        if self.shops_per_round is not None:
            self._check_participation(self.shops_per_round)

    def draws_shops(self, kind: RoundKind) -> bool:
        """Whether a round asks a part of the shops."""
        return self.shops_per_round is not None and kind is RoundKind.LOCAL_UPDATE

    def asked(self, kind: RoundKind, index: int, attempt: int = 0) -> tuple[str, ...]:
        """Shops that a round asks, in roster order.

        Which ones a local update asks follows from run, round and attempt alone, so that every shop can check it. Who
        counts attempts can pick among draws: nothing may be promised for a draw (`_check_participation`).
        """
        if self.shops_per_round is None or not self.draws_shops(kind):
            return self.roster
        again = f"/attempt {attempt}" if attempt else ""
        seed = hashlib.sha256(f"{self.run_id}/shops asked/{index}{again}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(seed))
        places = rng.choice(len(self.roster), self.shops_per_round, replace=False)
        return tuple(self.roster[place] for place in sorted(places))

    @property
    def protection(self) -> Protection:
        """What a shop does to its sum before it leaves."""
        return Protection.NONE if self.privacy is None else Protection(self.privacy.mode.value)

    @property
    def guarantee(self) -> str:
        """The promise in words, for every output of a run."""
        if self.privacy is not None:
            return guarantee_of(self.privacy, is_masked=self.secure is not None)
        if self.secure is not None:
            pair = "; of two shops each can subtract its own" if self.secure.is_pair else ""
            return f"none: research mode; sums without noise, though the coordinator sees only those over shops{pair}"
        return "none: research mode; shops' sums leave unprotected"

    def allow(self, spec: RoundSpec, index: int) -> PlannedRelease:
        """The agreed release of a round.

        Raises:
            RoundRefused: the round is not on the schedule, its kind not allowed in the agreed mode, or the schedule
                costs more than the promise.
        """
        if self.privacy is None:
            raise RoundRefused("a run without a privacy spec has no schedule of noisy sums")
        if index >= len(self.schedule) or self.schedule[index].name != spec.name:
            raise RoundRefused(f"round {index} ({spec.name}) is not on the agreed schedule of {len(self.schedule)}")
        if self.schedule[index].sampling_rate != spec.sampling_rate:
            raise RoundRefused(
                f"round {index} ({spec.name}) samples shoppers at q = {spec.sampling_rate:g}; "
                f"{self.schedule[index].sampling_rate:g} is agreed"
            )
        local_steps = self.schedule[index].local_steps
        if spec.kind is RoundKind.LOCAL_UPDATE and not local_steps:
            raise RoundRefused(
                f"round {index} is a local update that was not agreed: under a promise it consists of noisy steps, "
                "each on the schedule, in mode local; or give a model of statistics or gradient steps"
            )
        if spec.kind is RoundKind.LOCAL_UPDATE and LOSS in dict(spec.layout.shapes):
            raise RoundRefused(f"round {index} asks for the shops' training loss, which is raw data of their shoppers")
        if spec.kind is not RoundKind.LOCAL_UPDATE and local_steps:
            raise RoundRefused(f"round {index} ({spec.name}): {local_steps} steps in every shop are agreed")
        if spec.kind is not RoundKind.STATISTICS:
            self.check_step(spec, index)
        _check_promise(self.schedule, self.privacy.epsilon, self.privacy.delta - self.residual_delta)
        return self.schedule[index]

    def check_step(self, spec: RoundSpec, index: int) -> None:
        """Refuse gradients whose bound would not hold; all of it depends on the arrays and public numbers alone.

        Raises:
            RoundRefused: arrays that blow up rounding, too many shoppers for float64, sampling that is not accounted.
        """
        privacy, _ = self._private(index)
        for name, values in spec.inputs.items():
            if values.size and not float(np.abs(values.astype(np.float64)).max()) <= _LARGEST_INPUT[values.dtype.kind]:
                raise RoundRefused(
                    f"round {index}: the shared array {name!r} holds values that are not finite or beyond "
                    f"{_LARGEST_INPUT[values.dtype.kind]:g}, which blow up rounding errors: no bound on a shopper holds"
                )
        if privacy.max_shoppers > MOST_SHOPPERS_OF_A_STEP:
            raise RoundRefused(
                f"round {index}: max_shoppers = {privacy.max_shoppers:,}: gradients are added in float64, whose "
                f"rounding is covered up to {MOST_SHOPPERS_OF_A_STEP:,}"
            )
        if spec.sampling_rate < 1 and privacy.max_shops_per_person > 1:
            raise RoundRefused(
                f"round {index} samples shoppers at q = {spec.sampling_rate:g}, and a person may have accounts in "
                f"{privacy.max_shops_per_person} shops: that is accounted at q = 1 alone"
            )

    def ring(self, index: int) -> Grid | None:
        """The integer grid in which a round's vectors travel; None where they travel as float64.

        With secure aggregation and no privacy spec, and for local updates under one: fixed point of 2^-24, saturated
        where n shops cannot leave 2^64.
        """
        if self.privacy is not None and not self._private(index)[1].local_steps:
            return self.grid(index)
        if self.privacy is None and self.secure is None:
            return None
        return Grid(clip_norm=PLAIN_UNIT * SCALE, ring_bits=64, bound=2**62 // len(self.roster))

    def grid(self, index: int) -> Grid:
        """The integer grid of a round's noisy sums, by public rule; of a local update those of its steps."""
        spec, release = self._private(index)
        noise_units = sum_noise_sd(release, spec, len(self.roster)) / release.clip_norm * SCALE
        return choose_grid(
            release.clip_norm,
            max_shoppers=spec.max_shoppers,
            noise_sd_units=noise_units,
            shop_noise_units=self.shop_noise_units(index),
            num_shops=len(self.roster),
        )

    def declared_shoppers(self, shop: str) -> int:
        """Declared number of a shop's shoppers, where shops take private steps by themselves.

        Raises:
            RoundRefused: the terms declare none for it.
        """
        if not self.shop_shoppers or shop not in self.roster:
            raise RoundRefused(f"the agreed terms declare no number of shoppers for shop {shop!r}")
        return self.shop_shoppers[self.roster.index(shop)]

    def shop_noise_units(self, index: int) -> float:
        """Standard deviation of one shop's noise in a round, in grid units."""
        spec, release = self._private(index)
        return release.noise_multiplier * SCALE / spec.noise_divisor

    def shopper_bound(self, index: int) -> float:
        """L2 bound on one account's contribution: C / k."""
        spec, release = self._private(index)
        return release.clip_norm / spec.max_shops_per_person

    def noise_sd(self, index: int, num_shops: int) -> float:
        """`sum_noise_sd` of a round over so many shops; 0 in research mode."""
        if self.privacy is None:
            return 0.0
        return sum_noise_sd(self.schedule[index], self.privacy, num_shops)

    @property
    def residual_delta(self) -> float:
        """The part of delta that is kept for what sampling the noise adds; 0 in research mode."""
        return 0.0 if self.privacy is None else residual_delta(self.privacy)

    def check_residual(self, index: int, num_values: int) -> None:
        """Refuse a round whose noise, as drawn, is further from a Gaussian than the calibration has room for.

        Raises:
            RoundRefused: it is; depends on public numbers alone.
        """
        spec, release = self._private(index)
        distance = noise_residual_tv(
            self.shop_noise_units(index),
            num_values * release.num_sums,
            num_shops=len(self.roster),
            step_units=2 ** self.grid(index).step_bits,
        )
        cost = math.log(distance) + float(np.logaddexp(0.0, spec.epsilon)) + math.log(len(self.schedule))
        if not cost <= math.log(self.residual_delta):
            raise RoundRefused(
                f"round {index}: {num_values:,} values of noise of {self.shop_noise_units(index):.3g} grid units are "
                f"{distance:.2g} from exact Gaussians, more than delta {spec.delta:g} has room for"
            )

    def to_json(self) -> dict[str, Any]:
        """JSON values; `from_json` makes equal terms of them."""
        return {**dataclasses.asdict(self), "schedule": [release.to_json() for release in self.schedule]}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Terms:
        """Terms from their JSON values.

        Raises:
            KeyError, TypeError: not the fields of terms.
            ConfigError, PrivacyError: values out of range.
        """
        known = dict(fields)
        privacy = known.pop("privacy")
        schedule = tuple(PlannedRelease(**entry) for entry in known.pop("schedule"))
        roster = tuple(known.pop("roster"))
        shop_shoppers = tuple(known.pop("shop_shoppers"))
        secure = known.pop("secure")
        if privacy is not None:
            privacy = PrivacySpec(**{**privacy, "mode": Mode(privacy["mode"])})
        if secure is not None:
            secure = Parameters.from_json(secure)
        return cls(
            roster=roster, privacy=privacy, schedule=schedule, secure=secure, shop_shoppers=shop_shoppers, **known
        )

    def _check_participation(self, count: int) -> None:
        if self.privacy is not None:
            raise ConfigError(
                f"shops_per_round = {count} under a promise: the noise is shares of all shops, and no accountant here "
                "counts a part of them for less; ask all shops"
            )
        if self.secure is not None:
            raise ConfigError(
                f"shops_per_round = {count} with secure aggregation: its shops agree on one roster, and every one that "
                "is not asked would have to be opened as a drop-out; ask all shops, or go without masks"
            )
        if not self.min_shops <= count <= len(self.roster):
            raise ConfigError(
                f"shops_per_round = {count}: must be between min_shops ({self.min_shops}) and the {len(self.roster)} "
                "shops of the roster"
            )

    def _check_secure(self, secure: Parameters) -> None:
        if secure.names != self.roster or secure.min_shops != self.min_shops:
            raise ConfigError("secure aggregation for another roster or min_shops than the run's")
        if self.privacy is not None and secure.colluders < self.privacy.colluders:
            raise BadAssumption(
                f"secure aggregation against {secure.colluders} colluders, but the noise is made for "
                f"{self.privacy.colluders}: give the same"
            )

    def _private(self, index: int) -> tuple[PrivacySpec, PlannedRelease]:
        if self.privacy is None or not 0 <= index < len(self.schedule):
            raise RoundRefused(f"round {index} is not on the agreed schedule of {len(self.schedule)} noisy sums")
        return self.privacy, self.schedule[index]


@lru_cache(maxsize=256)
def _check_promise(schedule: Schedule, promised: float, delta: float) -> None:
    """Refuse a schedule whose noise does not keep the promise that stands beside it."""
    cost = epsilon(schedule, delta)
    if not cost <= promised * (1 + 1e-6):
        raise RoundRefused(f"the agreed noise costs epsilon {cost:.4g} where {promised:g} is promised: calibrate it")


def guarantee_of(spec: PrivacySpec, *, is_masked: bool) -> str:
    """A promise in words.

    Args:
        is_masked: whether secure aggregation is on.
    """
    promise = f"epsilon {spec.epsilon:g}, delta {spec.delta:g} per shopper"
    if spec.is_benchmark:
        return f"{promise}, counted for a benchmark (colluders = {spec.colluders}): not a deployable guarantee"
    if spec.mode is Mode.LOCAL:
        return f"{promise}, against everyone outside her shop (every shop adds the full noise)"
    if is_masked:
        return (
            f"{promise}, against everyone outside her shop, the coordinator included (masked sums), unless more than "
            f"{spec.colluders} of the shops work with it"
        )
    return (
        f"{promise}, against whoever gets the sums; not against the coordinator, who sees every shop's sum with that "
        "shop's share of the noise alone, since secure aggregation is off"
    )
