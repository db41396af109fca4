"""The only door out of a shop.

A contribution passes these steps in this order before a byte of it leaves; each step is one call in
`release`: check the layout, check that it is finite, seal. Steps that a protected plan adds stand between
the check and the seal, so that nothing can leave around them. The bytes hold format version, round, plan
digest, layout digest and the values: no counts, no losses, no ids.
"""

from __future__ import annotations

import struct

import numpy as np

from fedrec.errors import BadMessage, NotFinite, PrivacyError
from fedrec.federation.plan import FORMAT_VERSION, Protection, RoundPlan
from fedrec.federation.shop_side import Contribution, is_finite

_MAGIC = b"fedrecRL"
_HEADER = struct.Struct("<8sHHI32s32sQ")  # magic, format, protection, round, plan digest, layout digest, count
_PROTECTION_CODES = {Protection.NONE: 0}
_SEAL = object()


class Release:
    """What may leave a shop in one round; only `release` makes one.

    Guarantee: under a plan of protection ``none`` the values are the shop's raw sum and nothing is promised.
    """

    __slots__ = ("_plan", "_values")

    def __init__(self, seal: object, values: np.ndarray, plan: RoundPlan) -> None:
        if seal is not _SEAL:
            raise PrivacyError("a Release comes from release() alone: pass the contribution through it")
        self._values = values
        self._plan = plan

    def __repr__(self) -> str:
        return f"Release(round={self._plan.index}, shape={self._values.shape})"

    def to_bytes(self) -> bytes:
        """The message: a fixed header, then little-endian float64 values."""
        values = np.ascontiguousarray(self._values, dtype="<f8")
        return b"".join((_header(self._plan), values.data))


def release(contribution: Contribution, plan: RoundPlan) -> Release:
    """Let a contribution out under the terms of the plan.

    Raises:
        BadMessage: the contribution is not of the plan's layout.
        NotFinite: the sum holds NaN or infinity.
        PrivacyError: the plan asks for a protection that this version does not have.
    """
    if contribution.layout != plan.spec.layout or contribution.values.shape != (plan.num_values,):
        raise BadMessage("the contribution is not of the plan's layout")
    if not is_finite(contribution.values):
        raise NotFinite(f"the sum of round {plan.index} ({plan.spec.name}) is not finite")
    if plan.protection is not Protection.NONE:
        raise PrivacyError(f"protection {plan.protection!r} is unknown to this version: nothing leaves")
    return Release(_SEAL, contribution.values, plan)


def read_release(data: bytes, plan: RoundPlan) -> np.ndarray:
    """The values of a release, on the coordinator's side.

    Args:
        data: the message as `Release.to_bytes` wrote it.
        plan: the round that is open.
    Returns:
        float64, (layout.size,); a read-only view into ``data``.
    Raises:
        BadMessage: another version, round, plan or layout; missing or left-over bytes; values that are not
            finite.
    """
    if len(data) < _HEADER.size:
        raise BadMessage(f"a release of {len(data)} bytes: at least {_HEADER.size} expected")
    magic, version, protection, index, plan_digest, layout_digest, count = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != FORMAT_VERSION:
        raise BadMessage(f"not a release of format {FORMAT_VERSION}")
    if index != plan.index:
        raise BadMessage(f"a release of round {index}: round {plan.index} is open")
    if plan_digest != plan.digest or protection != _PROTECTION_CODES[plan.protection]:
        raise BadMessage(f"a release made for another plan of round {index}")
    if layout_digest != plan.layout_digest or count != plan.num_values:
        raise BadMessage(f"a release of another layout: {count} values, {plan.num_values} expected")
    if len(data) != _HEADER.size + 8 * count:
        raise BadMessage(f"a release of {len(data)} bytes: {_HEADER.size + 8 * count} expected")
    values = np.frombuffer(data, dtype="<f8", offset=_HEADER.size)
    if not is_finite(values):
        raise BadMessage("a release with values that are not finite")
    return values


def _header(plan: RoundPlan) -> bytes:
    return _HEADER.pack(
        _MAGIC,
        FORMAT_VERSION,
        _PROTECTION_CODES[plan.protection],
        plan.index,
        plan.digest,
        plan.layout_digest,
        plan.num_values,
    )
