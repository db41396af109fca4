"""The integer grid that sums lie on before noise is added, and the ring in which they travel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedrec.errors import BadAssumption

SCALE = 2**18
"""Grid units in one clip norm: a shopper's contribution moves no value by more than this."""

HEADROOM_SDS = 16
"""Standard deviations of the total noise that the ring leaves room for: more happen once in 10^57 values."""

_SHORT, _LONG = 32, 64
_MOST = 2**62
_RING_DTYPES: dict[int, np.dtype] = {_SHORT: np.dtype("<u4"), _LONG: np.dtype("<u8")}
_SIGNED_DTYPES: dict[int, np.dtype] = {_SHORT: np.dtype("<i4"), _LONG: np.dtype("<i8")}


@dataclass(frozen=True)
class Grid:
    """Multiples of a unit, bounded, in a ring of 2^32 or 2^64 elements. All of it is public.

    Attributes:
        clip_norm: C, bound on the L2 norm of one shopper's contribution, in the units of the sum; > 0.
        ring_bits: 32 or 64.
        bound: B, at which every value of one shop's sum is saturated, in grid units; 1 <= B <= 2^62.
    """

    clip_norm: float
    ring_bits: int
    bound: int

    def __post_init__(self) -> None:
        if not 0 < self.clip_norm < math.inf:
            raise BadAssumption(f"clip_norm = {self.clip_norm}: give a finite number above 0")
        if self.ring_bits not in _RING_DTYPES:
            raise BadAssumption(f"ring_bits = {self.ring_bits}: 32 or 64")
        if not 1 <= self.bound <= _MOST:
            raise BadAssumption(f"bound = {self.bound} grid units: must be from 1 to 2^62")

    @property
    def unit(self) -> float:
        """Width of the grid, in the units of the sum: C x 2^-18, exact in float64."""
        return self.clip_norm / SCALE

    @property
    def ring_dtype(self) -> np.dtype:
        """Little-endian unsigned integers of the ring."""
        return _RING_DTYPES[self.ring_bits]

    def saturate(self, values: np.ndarray) -> np.ndarray:
        """A copy with every value moved into [-B, B].

        Args:
            values: int64; one shop's sum in grid units.
        Guarantee: 1-Lipschitz in every value, so the sensitivity stays what it was; whether it bites is never told.
        """
        _check_dtype(values, np.dtype(np.int64))
        return np.clip(values, -self.bound, self.bound)

    def wrap(self, values: np.ndarray) -> np.ndarray:
        """Elements of the ring that are congruent to int64 values; a new array."""
        _check_dtype(values, np.dtype(np.int64))
        return values.astype(self.ring_dtype)

    def centre(self, values: np.ndarray) -> np.ndarray:
        """The int64 values of least magnitude that are congruent to elements of the ring; undoes `wrap` within it."""
        _check_dtype(values, self.ring_dtype)
        return values.view(_SIGNED_DTYPES[self.ring_bits]).astype(np.int64)

    def decode(self, values: np.ndarray) -> np.ndarray:
        """float64 values in the units of the sum, from int64 grid units."""
        _check_dtype(values, np.dtype(np.int64))
        return values * self.unit


def choose_grid(clip_norm: float, *, max_shoppers: int, noise_sd_units: float) -> Grid:
    """The grid of a round by a rule on public numbers alone.

    Args:
        clip_norm: C of the round.
        max_shoppers: declared bound on the federation's shoppers; >= 1.
        noise_sd_units: standard deviation of all shops' noise in one value of the sum, in grid units.
    Returns:
        Ring of 2^32 while max_shoppers x 2^18 + 16 noise_sd_units < 2^31, else of 2^64; B = max_shoppers x 2^18, which
        no shop with fewer shoppers can reach.
    Raises:
        BadAssumption: the sum would not fit into 2^62.
    """
    if not max_shoppers >= 1:
        raise BadAssumption(f"max_shoppers = {max_shoppers}: declare at least 1")
    if not 0 <= noise_sd_units < math.inf:
        raise BadAssumption(f"noise of {noise_sd_units} grid units: must be a finite number of at least 0")
    bound = int(max_shoppers) * SCALE
    reach = bound + HEADROOM_SDS * noise_sd_units
    if not reach < _MOST:
        raise BadAssumption(
            f"{max_shoppers:,} shoppers with noise of {noise_sd_units:.3g} grid units do not fit into 2^62: declare "
            "fewer shoppers or a larger epsilon"
        )
    return Grid(float(clip_norm), _SHORT if reach < 2 ** (_SHORT - 1) else _LONG, bound)


def _check_dtype(values: np.ndarray, dtype: np.dtype) -> None:
    if values.dtype != dtype:
        raise TypeError(f"values of {values.dtype}: {dtype} expected")
