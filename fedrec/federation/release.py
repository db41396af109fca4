"""The only door out of a shop.

In research mode a contribution passes these steps before a byte of it leaves: check the layout, check that it is
finite, mask where the terms ask for secure aggregation, seal. Under a privacy spec the order is: reserve in the ledger
(an overspend is refused before anything is computed) -> clip each shopper and put her on the integer grid
(`shop_side.contribute_on_grid`) -> saturate -> add integer noise -> mask -> store the bytes with the charge in the
ledger -> erase the noise key and the raw vector -> send.

The bytes hold format version, protection, round, plan digest, layout digest, the ledger's head and the values: no
counts, no losses, no ids.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedrec.errors import BadMessage, NotFinite, PrivacyError
from fedrec.federation.plan import FORMAT_VERSION, RoundPlan
from fedrec.federation.shop_side import Contribution, is_finite
from fedrec.federation.terms import Protection
from fedrec.privacy.grid import Grid
from fedrec.privacy.ledger import Ledger
from fedrec.privacy.noise import NoiseSource, SecureNoise

_MAGIC = b"fedrecRL"
_HEADER = struct.Struct("<8sHHI32s32sQ32sQ")
"""Magic, format, protection, round, plan digest, layout digest, ledger sequence, ledger hash, number of values."""
_PROTECTION_CODES = {Protection.NONE: 0, Protection.LOCAL: 1, Protection.DISTRIBUTED: 2}
_NO_HEAD = (0, bytes(32))
_SEAL = object()

MakeNoise = Callable[[str], NoiseSource]
"""A fresh noise source with a key of its own, for the purpose named."""


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
    # What is not finite is put where it can travel, not refused: a refusal would tell of one shop's data.
    most = ring.bound * ring.unit
    units = np.rint(np.clip(np.nan_to_num(contribution.values, nan=0.0), -most, most) / ring.unit).astype(np.int64)
    return Release(_SEAL, _masked(ring, ring.saturate(units), plan, mask), plan, _NO_HEAD)


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
        Source: Canonne et al. 2020, arXiv:2004.00010 (noise on a grid); PRIVACY.md states the deviation: rounded
            Gaussians in place of discrete ones, and the residual added to delta.
        """
        plan = self._plan
        _check_layout(contribution, plan, np.int64)
        grid = plan.terms.grid(plan.index)
        values = grid.saturate(contribution.values)
        noise = self._make_noise(f"round {plan.index}: {plan.spec.name}")
        try:
            values += noise.integers(plan.terms.shop_noise_units(plan.index), len(values))
        finally:
            noise.erase()
        contribution.values.fill(0)
        payload = _masked(grid, values, plan, mask)
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
