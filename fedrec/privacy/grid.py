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

LEAST_SHARE_STEPS = 8
"""Steps, at least, in the standard deviation of one shop's noise where values are rounded to steps: rounding adds then
at most 1 / (12 x 8^2), 0.13 %, to the variance of the sum's noise."""

_PACKED, _SHORT, _LONG = 24, 32, 64
_MOST = 2**62
_MOST_SHOPS = 2**14
_MOST_STEP_BITS = 40
_RING_DTYPES: dict[int, np.dtype] = {_PACKED: np.dtype("<u4"), _SHORT: np.dtype("<u4"), _LONG: np.dtype("<u8")}
_SIGNED_DTYPES: dict[int, np.dtype] = {_PACKED: np.dtype("<i4"), _SHORT: np.dtype("<i4"), _LONG: np.dtype("<i8")}


@dataclass(frozen=True)
class Grid:
    """Multiples of a unit, bounded, in a ring of 2^24, 2^32 or 2^64 elements. All of it is public.

    What travels are *steps*: noisy values rounded to multiples of 2^step_bits units.

    Attributes:
        clip_norm: C, bound on the L2 norm of one shopper's contribution, in the units of the sum; > 0.
        ring_bits: 24, 32 or 64; so many a value takes on the wire.
        bound: B, at which every value of one shop's sum is saturated, in grid units; 1 <= B <= 2^62.
        step_bits: 0 = steps are units; at most 40.
    """

    clip_norm: float
    ring_bits: int
    bound: int
    step_bits: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.clip_norm < math.inf:
            raise BadAssumption(f"clip_norm = {self.clip_norm}: give a finite number above 0")
        if self.ring_bits not in _RING_DTYPES:
            raise BadAssumption(f"ring_bits = {self.ring_bits}: 24, 32 or 64")
        if not 1 <= self.bound <= _MOST:
            raise BadAssumption(f"bound = {self.bound} grid units: must be from 1 to 2^62")
        if not 0 <= self.step_bits <= _MOST_STEP_BITS:
            raise BadAssumption(f"step_bits = {self.step_bits}: from 0 to {_MOST_STEP_BITS}")

    @property
    def unit(self) -> float:
        """Width of the grid, in the units of the sum: C x 2^-18, exact in float64."""
        return self.clip_norm / SCALE

    @property
    def ring_dtype(self) -> np.dtype:
        """Little-endian unsigned integers in which the ring's elements are computed; of 2^24 the low three bytes."""
        return _RING_DTYPES[self.ring_bits]

    @property
    def value_bytes(self) -> int:
        """Bytes of one value on the wire."""
        return self.ring_bits // 8

    def saturate(self, values: np.ndarray) -> np.ndarray:
        """A copy with every value moved into [-B, B].

        Args:
            values: int64; one shop's sum in grid units.
        Guarantee: 1-Lipschitz in every value, so the sensitivity stays what it was; whether it bites is never told.
        """
        _check_dtype(values, np.dtype(np.int64))
        return np.clip(values, -self.bound, self.bound)

    def steps(self, values: np.ndarray) -> np.ndarray:
        """Noisy int64 grid units as whole steps, int64, rounded to the nearest.

        Guarantee: post-processing of the sum's noise. Let each of n shops add a Gaussian of s steps (s >= 8) to its
            value and round. The law of the sum of roundings has the characteristic function of X + one Gaussian + n
            uniforms, rounded once, but for cross terms of Poisson summation, which are at most exp(-pi^2 s^2) a value
            and shop whatever the values are: below 10^-270 (`fedrec.privacy.noise.noise_residual_tv` counts it).
        """
        _check_dtype(values, np.dtype(np.int64))
        if self.step_bits == 0:
            return values
        return (values + (1 << (self.step_bits - 1))) >> self.step_bits

    def wrap(self, values: np.ndarray) -> np.ndarray:
        """Elements of the ring that are congruent to int64 steps; a new array."""
        _check_dtype(values, np.dtype(np.int64))
        return values.astype(self.ring_dtype)

    def pack(self, values: np.ndarray) -> bytes:
        """Elements of the ring as they travel, ``value_bytes`` each, little-endian."""
        _check_dtype(values, self.ring_dtype)
        if self.ring_bits != _PACKED:
            return values.tobytes()
        return np.ascontiguousarray(values).view(np.uint8).reshape(-1, 4)[:, :3].tobytes()

    def unpack(self, data: bytes | memoryview) -> np.ndarray:
        """Elements of the ring from their bytes; the inverse of `pack`, but for bits above the ring's.

        Raises:
            BadAssumption: no whole number of values.
        """
        if len(data) % self.value_bytes:
            raise BadAssumption(f"{len(data)} bytes of values of {self.value_bytes} bytes")
        if self.ring_bits != _PACKED:
            return np.frombuffer(data, self.ring_dtype)
        packed = np.frombuffer(data, np.uint8).reshape(-1, 3)
        values = np.zeros((len(packed), 4), np.uint8)
        values[:, :3] = packed
        return values.reshape(-1).view(self.ring_dtype)

    def centre(self, values: np.ndarray) -> np.ndarray:
        """The int64 steps of least magnitude that are congruent to elements of the ring; undoes `wrap` within it."""
        _check_dtype(values, self.ring_dtype)
        signed = _SIGNED_DTYPES[self.ring_bits]
        unused = 8 * self.ring_dtype.itemsize - self.ring_bits
        if unused:
            return ((values << self.ring_dtype.type(unused)).view(signed) >> unused).astype(np.int64)
        return values.view(signed).astype(np.int64)

    def decode(self, values: np.ndarray) -> np.ndarray:
        """float64 values in the units of the sum, from int64 steps."""
        _check_dtype(values, np.dtype(np.int64))
        return values * (self.unit * 2.0**self.step_bits)


def choose_grid(
    clip_norm: float,
    *,
    max_shoppers: int,
    noise_sd_units: float,
    shop_noise_units: float = 0.0,
    num_shops: int = 1,
) -> Grid:
    """The grid of a round by a rule on public numbers alone.

    Args:
        clip_norm: C of the round.
        max_shoppers: declared bound on the federation's shoppers; >= 1.
        noise_sd_units: standard deviation of all shops' noise in one value of the sum, in grid units.
        shop_noise_units: of one shop's noise; 0 = values are not rounded to steps.
        num_shops: whose values are added up, each of them at most B.
    Returns:
        Steps of at most an eighth of one shop's noise. The shortest ring in which num_shops x B + 16 noise_sd_units,
        and the rounding of 2^14 shops, stay below half its size, so that no sum can leave it, whatever was declared;
        B = max_shoppers x 2^18, which no shop with fewer shoppers can reach.
    Raises:
        BadAssumption: the sum would not fit into 2^62.
    """
    if not max_shoppers >= 1:
        raise BadAssumption(f"max_shoppers = {max_shoppers}: declare at least 1")
    if not 0 <= noise_sd_units < math.inf:
        raise BadAssumption(f"noise of {noise_sd_units} grid units: must be a finite number of at least 0")
    bound = int(max_shoppers) * SCALE
    reach = num_shops * bound + HEADROOM_SDS * noise_sd_units
    if not reach < _MOST:
        raise BadAssumption(
            f"{max_shoppers:,} shoppers with noise of {noise_sd_units:.3g} grid units do not fit into 2^62: declare "
            "fewer shoppers or a larger epsilon"
        )
    step_bits = 0
    if shop_noise_units >= 2 * LEAST_SHARE_STEPS:
        step_bits = min(int(math.log2(shop_noise_units / LEAST_SHARE_STEPS)), _MOST_STEP_BITS)
    steps = reach / 2**step_bits + (_MOST_SHOPS if step_bits else 0)
    fitting = [bits for bits in (_PACKED, _SHORT) if steps < 2 ** (bits - 1) and (step_bits or bits != _PACKED)]
    return Grid(float(clip_norm), fitting[0] if fitting else _LONG, bound, step_bits)


def _check_dtype(values: np.ndarray, dtype: np.dtype) -> None:
    if values.dtype != dtype:
        raise TypeError(f"values of {values.dtype}: {dtype} expected")
