"""The only door out of a shop.

In research mode a contribution passes these steps before a byte of it leaves: check the layout, check that it is
finite, mask where the terms ask for secure aggregation, seal. Under a privacy spec the order is: reserve in the ledger
(an overspend is refused before anything is computed) -> clip each shopper and put her on the integer grid
(`shop_side.contribute_on_grid`) -> saturate -> add integer noise -> mask -> store the bytes with the charge in the
ledger -> erase the noise key and the raw vector -> send. A local update repeats the steps from the clip to the noise S
times inside the shop, each with a sample, a sum and a noise key of its own, before it is masked and charged, S sums at
once: a shop that stops on the way has released nothing.

The bytes hold format version, protection, round, plan digest, layout digest, the ledger's head and the values: no
counts, no losses, no ids.
"""

from __future__ import annotations

import itertools
import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fedrec.errors import BadMessage, NotFinite, PrivacyError
from fedrec.federation.plan import FORMAT_VERSION, RoundPlan
from fedrec.federation.shop_side import Contribution, is_finite
from fedrec.federation.terms import Protection
from fedrec.models.recommender import LocalStepsModel, RoundKind, RoundSpec
from fedrec.privacy.grid import Grid
from fedrec.privacy.ledger import Ledger
from fedrec.privacy.noise import NoiseSource, SecureNoise

_log = logging.getLogger("fedrec.shop")

_MAGIC = b"fedrecRL"
_HEADER = struct.Struct("<8sHHI32s32sQ32sQ")
"""Magic, format, protection, round, plan digest, layout digest, ledger sequence, ledger hash, number of values."""
_PROTECTION_CODES = {Protection.NONE: 0, Protection.LOCAL: 1, Protection.DISTRIBUTED: 2}
_NO_HEAD = (0, bytes(32))
_SEAL = object()

MakeNoise = Callable[[str], NoiseSource]
"""A fresh noise source with a key of its own, for the purpose named."""

StepSum = Callable[[RoundPlan, int], Contribution]
"""A shop's clipped sum on the grid for one gradient step of its own, over a fresh sample; step 0, 1, ... of a round."""

Mask = Callable[[np.ndarray], None]
"""Adds the shop's masks of the round to ring elements, in place; keeps that they were used before it returns."""


class Release:
    """What may leave a shop in one round; only this module makes one.

    Guarantee: under terms without a privacy spec the values are the shop's raw sum and nothing is promised. Under one
    they are the shop's sum plus its noise, and the charge was committed to the ledger before this object existed.
    """

    __slots__ = ("_head", "_payload", "_plan")

    def __init__(self, seal: object, payload: bytes | memoryview, plan: RoundPlan, head: tuple[int, bytes]) -> None:
        if seal is not _SEAL:
            raise PrivacyError("a Release comes from the door alone: pass the contribution through it")
        self._payload = payload
        self._plan = plan
        self._head = head

    def __repr__(self) -> str:
        return f"Release(round={self._plan.index}, size_bytes={len(self._payload)})"

    def to_bytes(self) -> bytes:
        """The message: a fixed header, then little-endian values."""
        return b"".join((_header(self._plan, self._head), self._payload))


@dataclass(frozen=True)
class ReceivedRelease:
    """A release on the coordinator's side.

    Attributes:
        values: (layout.size,); a read-only view into the message: float64, or unsigned ring elements.
        head: sequence and hash of the shop's ledger after the charge; (0, zeros) in research mode.
    """

    values: np.ndarray
    head: tuple[int, bytes]


def release(contribution: Contribution, plan: RoundPlan, mask: Mask | None = None) -> Release:
    """Let a contribution out in research mode.

    Args:
        contribution: of `shop_side.contribute`.
        plan: its round.
        mask: needed where the terms ask for secure aggregation; the values are rounded to fixed point before.
    Raises:
        BadMessage: the contribution is not of the plan's layout.
        NotFinite: the sum holds NaN or infinity, without secure aggregation; with it NaN counts as 0.
        PrivacyError: the terms promise something; such a sum leaves by a `PrivateDoor` alone.
    """
    if plan.terms.privacy is not None:
        raise PrivacyError("these terms promise privacy: nothing leaves without noise and ledger")
    _check_layout(contribution, plan, np.float64)
    ring = plan.terms.ring(plan.index)
    if ring is None:
        if not is_finite(contribution.values):
            raise NotFinite(f"the sum of round {plan.index} ({plan.spec.name}) is not finite")
        return Release(_SEAL, np.ascontiguousarray(contribution.values, dtype="<f8").data.cast("B"), plan, _NO_HEAD)
    return Release(_SEAL, _masked(ring, _fixed_point(ring, contribution.values), plan, mask), plan, _NO_HEAD)


class PrivateDoor:
    """The door of one round under a privacy spec: opened by a reservation, before anything is computed."""

    def __init__(self, plan: RoundPlan, ledger: Ledger, make_noise: MakeNoise) -> None:
        """Reserve the run's whole schedule, once a run.

        Args:
            plan: a round that the shop agreed to.
            ledger: the shop's own.
            make_noise: `fedrec.privacy.noise.SecureNoise`, but in tests.
        Raises:
            RoundRefused: the round is not on the agreed schedule, or not allowed in the agreed mode.
            BudgetExhausted: the budget does not cover the schedule.
        """
        terms = plan.terms
        self._release = terms.allow(plan.spec, plan.index)
        terms.check_residual(plan.index, plan.num_values)
        self._plan = plan
        self._ledger = ledger
        self._make_noise = make_noise
        self._is_noise_seeded = make_noise is not SecureNoise
        assert terms.privacy is not None  # `allow` has refused otherwise
        ledger.reserve(
            terms.run_id,
            terms.privacy,
            terms.schedule,
            is_noise_seeded=self._is_noise_seeded,
            is_masked=terms.secure is not None,
            residual_delta=terms.residual_delta,
        )

    def stored(self) -> Release | None:
        """The release of this very plan if it was charged before: the same bytes again, at no further charge."""
        plan = self._plan
        found = self._ledger.stored(plan.terms.run_id, plan.index, plan.digest)
        return None if found is None else Release(_SEAL, found.payload, plan, found.head.place)

    def release(self, contribution: Contribution, mask: Mask | None = None) -> Release:
        """Saturate, add noise, mask, charge, erase; the contribution's vector is zeroed.

        Args:
            contribution: of `shop_side.contribute_on_grid`.
            mask: needed where the terms ask for secure aggregation.
        Raises:
            BadMessage: the contribution is not of the plan's layout.
            BudgetExhausted, TooManyAborts: a repeated round that the budget or the shop's policy does not cover.
        Guarantee: with sigma the schedule's noise multiplier, C the clip norm and d the mode's divisor, the values are
            the sum plus a rounded Gaussian of standard deviation sigma x C / d in every coordinate. The data lies on
            the grid before the noise, so rounding is post-processing of the Gaussian mechanism.
        Source: Canonne et al. 2020, arXiv:2004.00010 (noise on a grid). Deviation: rounded Gaussians in place of
            discrete ones, and the residual added to delta.
        """
        plan = self._plan
        if self._release.local_steps:
            raise PrivacyError(f"round {plan.index} consists of steps in the shop: no sum of it leaves")
        noisy = self._noisy(contribution, plan, f"round {plan.index}: {plan.spec.name}")
        return self._charged(_masked(plan.terms.grid(plan.index), noisy, plan, mask))

    def release_update(self, model: LocalStepsModel, sum_of: StepSum, mask: Mask | None = None) -> Release:
        """Local DP-SGD: S noisy steps inside the shop, then what follows from them leaves.

        Args:
            model: asks for the noisy sums; sees no history.
            sum_of: asked once a step; its vector is zeroed.
            mask: needed where the terms ask for secure aggregation.
        Raises:
            PrivacyError: the first step that the model asks for is not one that the schedule pays for.
            BudgetExhausted, TooManyAborts: a repeated round that the budget or the shop's policy does not cover.
        Guarantee: once a noisy sum was drawn, the round is charged whatever happens: a failure, or another sum than was
            agreed, may follow from sums that are not paid for yet, so it leaves as zeros. Step s of the S that are
            charged: (1) each shopper is in the sample with the agreed probability q, by a coin of her own; (2) her
            gradient at the shop's present arrays is clipped to C, C / k for k shops a person, and the sum is put on the
            grid: she moves it by at most C (`contribute_on_grid`; the present arrays are a function of earlier noisy
            sums, and of nothing else of hers); (3) it is saturated and gets a rounded Gaussian of standard deviation
            sigma x C in every value, all of it this shop's own, from a key of its own that is erased. So the S sums are
            an adaptive composition of S Poisson-sampled Gaussian mechanisms, which is what the schedule, the
            accountants and the ledger count (`PlannedRelease.num_sums`). What leaves is computed from them, the plan
            and the declared number of shoppers: post-processing, as is its rounding to fixed point and saturation at a
            public bound. No other shop's noise is relied on, so mode local alone allows it.
        Source: Abadi et al. 2016, arXiv:1607.00133, Algorithm 1, in every shop by itself, with L the *declared* number
            of shoppers times q in place of the size of the sample; a sample is a shopper. Averaging: see
            `fedrec.models.private_neural`.
        """
        plan, terms, steps = self._plan, self._plan.terms, self._release.local_steps
        if not steps:
            raise PrivacyError(f"round {plan.index} ({plan.spec.name}) has no steps in the shop")
        shoppers, numbers = terms.declared_shoppers(self._ledger.shop), itertools.count()
        drawn: list[int] = []

        def noisy_sum(spec: RoundSpec) -> np.ndarray:
            number, step = next(numbers), replace(plan, spec=spec)
            is_agreed = spec.kind is RoundKind.GRADIENT_STEP and spec.sampling_rate == self._release.sampling_rate
            if not (number < steps and is_agreed and step.num_values <= plan.num_values):
                raise PrivacyError(f"round {plan.index}, step {number + 1}: not among the {steps} agreed steps")
            drawn.append(number)
            noisy = self._noisy(sum_of(step, number), step, f"round {plan.index}: {plan.spec.name}, step {number}")
            return noisy * terms.grid(plan.index).unit

        try:
            update = model.local_steps(plan.spec, noisy_sum, steps=steps, num_shoppers=shoppers)
            if update.shape != (plan.num_values,) or update.dtype != np.float64:
                raise BadMessage("the update is not of the plan's layout")
        except Exception:
            if not drawn:
                raise
            _log.exception("shop %s failed in its steps of round %d; zeros count", self._ledger.shop, plan.index)
            update = np.zeros(plan.num_values)
        ring = terms.ring(plan.index)
        assert ring is not None  # a privacy spec always has one
        return self._charged(_masked(ring, _fixed_point(ring, update), plan, mask))

    def _noisy(self, contribution: Contribution, plan: RoundPlan, purpose: str) -> np.ndarray:
        """The saturated sum with noise from a key of its own, in grid units; key and raw vector are erased."""
        _check_layout(contribution, plan, np.int64)
        noisy = plan.terms.grid(plan.index).saturate(contribution.values)
        noise = self._make_noise(purpose)
        try:
            noisy += noise.integers(plan.terms.shop_noise_units(plan.index), len(noisy))
        finally:
            noise.erase()
        contribution.values.fill(0)
        return noisy

    def _charged(self, payload: bytes) -> Release:
        """Charge the round with its bytes; only then is there something that may leave."""
        plan = self._plan
        head = self._ledger.charge(plan.terms.run_id, plan.index, plan.digest, self._release, payload)
        return Release(_SEAL, payload, plan, head.place)


def read_release(data: bytes, plan: RoundPlan) -> ReceivedRelease:
    """A release on the coordinator's side.

    Args:
        data: the message as `Release.to_bytes` wrote it.
        plan: the round that is open.
    Raises:
        BadMessage: another version, round, plan or layout; missing or left-over bytes; values that are not
            finite.
    """
    if len(data) < _HEADER.size:
        raise BadMessage(f"a release of {len(data)} bytes: at least {_HEADER.size} expected")
    magic, version, protection, index, plan_digest, layout_digest, sequence, ledger_hash, count = _HEADER.unpack_from(
        data
    )
    if magic != _MAGIC or version != FORMAT_VERSION:
        raise BadMessage(f"not a release of format {FORMAT_VERSION}")
    if index != plan.index:
        raise BadMessage(f"a release of round {index}: round {plan.index} is open")
    if plan_digest != plan.digest or protection != _PROTECTION_CODES[plan.terms.protection]:
        raise BadMessage(f"a release made for another plan of round {index}")
    if layout_digest != plan.layout_digest or count != plan.num_values:
        raise BadMessage(f"a release of another layout: {count} values, {plan.num_values} expected")
    head = (sequence, ledger_hash)
    if plan.terms.privacy is None and head != _NO_HEAD:
        raise BadMessage("a release with a ledger head, in research mode")
    ring = plan.terms.ring(plan.index)
    size = _HEADER.size + count * (8 if ring is None else ring.value_bytes)
    if len(data) != size:
        raise BadMessage(f"a release of {len(data)} bytes: {size} expected")
    payload = memoryview(data)[_HEADER.size :]
    if ring is not None:
        return ReceivedRelease(ring.unpack(payload), head)
    values = np.frombuffer(payload, "<f8")
    if not is_finite(values):
        raise BadMessage("a release with values that are not finite")
    return ReceivedRelease(values, head)


def wire_dtype(plan: RoundPlan) -> np.dtype:
    """What releases are added up in: elements of the round's ring; float64 in research mode without masks."""
    ring = plan.terms.ring(plan.index)
    return np.dtype("<f8") if ring is None else np.dtype(ring.ring_dtype)


def _fixed_point(ring: Grid, values: np.ndarray) -> np.ndarray:
    """Float64 values as int64 units of the ring, saturated.

    What is not finite is put where it can travel, not refused: a refusal would tell of one shop's data.
    """
    most = ring.bound * ring.unit
    return ring.saturate(np.rint(np.clip(np.nan_to_num(values, nan=0.0), -most, most) / ring.unit).astype(np.int64))


def _masked(grid: Grid, values: np.ndarray, plan: RoundPlan, mask: Mask | None) -> bytes:
    """Int64 grid units as the bytes that travel: whole steps in the ring, masked where the terms ask for it."""
    if (plan.terms.secure is None) != (mask is None):
        raise PrivacyError("masks are needed where, and only where, the terms ask for secure aggregation")
    elements = grid.wrap(grid.steps(values))
    if mask is not None:
        mask(elements)
    return grid.pack(elements)


def _check_layout(contribution: Contribution, plan: RoundPlan, dtype: type) -> None:
    is_of_plan = contribution.layout == plan.spec.layout and contribution.values.shape == (plan.num_values,)
    if not is_of_plan or contribution.values.dtype != dtype:
        raise BadMessage("the contribution is not of the plan's layout")


def _header(plan: RoundPlan, head: tuple[int, bytes]) -> bytes:
    return _HEADER.pack(
        _MAGIC,
        FORMAT_VERSION,
        _PROTECTION_CODES[plan.terms.protection],
        plan.index,
        plan.digest,
        plan.layout_digest,
        *head,
        plan.num_values,
    )
