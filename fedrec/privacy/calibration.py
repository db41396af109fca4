"""The least noise that keeps a promise, by search over the accountant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from fedrec.errors import BadAssumption
from fedrec.privacy.accounting import epsilon as epsilon_of
from fedrec.privacy.mechanisms import PlannedRelease, ReleaseRequest, Schedule, check_local_steps, residual_delta
from fedrec.privacy.spec import PrivacySpec

_LEAST_SCALE = 2.0**-8
"""Less noise than this is never chosen, however large epsilon is."""


def calibrate(requests: Sequence[ReleaseRequest], spec: PrivacySpec) -> Schedule:
    """The least noise that keeps the promise, found by search over the accountant.

    Args:
        requests: what a model wants to release.
        spec: the promise; its delta less `residual_delta` is what the search may use.
    Returns:
        The releases in round order, with noise multipliers s / sqrt(share); s is within 1e-4 of the least.
    Raises:
        BadAssumption: no requests, one that is out of range, or local steps in a mode that shares noise.
    Guarantee: the schedule is (epsilon, delta)-DP for one account by `accounting.epsilon`.
    """
    if not requests:
        raise BadAssumption("a model without noisy sums cannot be calibrated")
    check_local_steps(requests, spec)
    return _calibrate(tuple(requests), spec.epsilon, spec.delta - residual_delta(spec))


@lru_cache(maxsize=64)
def _calibrate(requests: tuple[ReleaseRequest, ...], epsilon: float, delta: float) -> Schedule:
    def schedule(scale: float) -> Schedule:
        return tuple(
            PlannedRelease(
                one.name, one.clip_norm, scale / math.sqrt(one.share), one.sampling_rate, local_steps=one.local_steps
            )
            for one in requests
            for _ in range(one.repeats)
        )

    def is_kept(scale: float) -> bool:
        return epsilon_of(schedule(scale), delta) <= epsilon

    low = high = 1.0
    while not is_kept(high):
        low, high = high, 2 * high
    while low >= _LEAST_SCALE and is_kept(low):
        low, high = low / 2, low
    while high / low > 1 + 1e-4:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_kept(middle) else (middle, high)
    return schedule(high)
