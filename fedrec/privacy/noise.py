"""Gaussian noise in whole grid units, from the operating system's randomness alone.

The integers are the roundings of exact Gaussians, by von Neumann's rejection: a point that is uniform under the bell
curve has a Gaussian for its place. 2^16 rectangles of equal area, the *slots*, stand in columns over the curve. Of a
word of AES-256-CTR, 16 digits pick a slot and 48 the place in it. 39 in 40 slots lie under the curve: there the place
is kept without any arithmetic. In the others 64 more digits give the height, and float64 tells whether the point lies
under the curve; those that do not are drawn again. Where float64's errors leave it open (one point in 10^8), and beyond
5 standard deviations, 192 more digits are drawn and decimals of 60 places tell. So the distribution owes nothing to
float64, the tails have their full chance, and a key's integers are the same on every machine. The time it takes
depends on the noise a little (on how many points were near the curve), on the data not at all.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedrec.errors import BadAssumption, PrivacyError

MIN_SD_UNITS = 3.0
"""Least standard deviation, in grid units: below it a sum of rounded Gaussians is not a rounded Gaussian."""
MAX_SD_UNITS = 2.0**36

_KEY_BYTES = 32
_SLOTS, _PLACE_BITS = 2**16, 48
"""A word of 64 digits is a slot and a place in its column."""
_COLUMN = 2**_PLACE_BITS
_REACH = 5.0
"""Standard deviations that the columns cover at least; one value in 1.7 million is further out."""
_CHUNK, _BLOCK = 2**15, 2**20
"""Values drawn at once, in buffers that stay in the cache; values whose open points are decided at once."""
_NORMALS, _DIGITS, _COINS = range(3)
"""First word of the counter block: streams of one key never meet."""
_FURTHER = 192
"""Digits of a uniform that are drawn where the first ones decide nothing."""
_SLACK = 2.0**-30
"""Bound on the error of `_Staircase.above` in float64."""
_PRECISION = Context(prec=60)


class NoiseSource(Protocol):
    """Where the noise of one release comes from."""

    @property
    def is_secure(self) -> bool:
        """Whether nobody can compute the noise again; a run with any other source promises nothing."""

    def integers(self, sd_units: float, size: int) -> np.ndarray:
        """int64, (size,): independent Gaussians of this standard deviation in grid units, rounded."""

    def coins(self, probability: float, size: int) -> np.ndarray:
        """bool, (size,): independent, each true with exactly this probability."""

    def erase(self) -> None:
        """Forget the key; nothing can be drawn afterwards."""


class _OneRelease:
    """A key and what is drawn from it, once each."""

    is_secure = False

    def __init__(self, key: bytearray) -> None:
        self._key = key
        self._used: set[int] = set()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def integers(self, sd_units: float, size: int) -> np.ndarray:
        """Rounded Gaussians.

        Args:
            sd_units: standard deviation before rounding, in grid units; from 3 to 2^36.
            size: how many; >= 0.
        Returns:
            int64, (size,); none is further from 0 than 24 sd_units.
        Raises:
            BadAssumption: sd_units is out of range or NaN.
            PrivacyError: drawn before, or erased.
        Guarantee: the values are independent roundings of N(0, sd_units^2), up to `noise_residual_tv`.
        Source: von Neumann 1951, "Various techniques used in connection with random digits"; a staircase under the
            curve as in Ahrens and Dieter 1989; AES-CTR of NIST SP 800-38D. Deviation: see the head of this module.
        """
        if not MIN_SD_UNITS <= sd_units <= MAX_SD_UNITS:
            raise BadAssumption(
                f"noise of {sd_units} grid units: must be from {MIN_SD_UNITS:g} to 2^36; the grid has 2^18 units to a "
                "clip norm"
            )
        words, digits = self._stream(_NORMALS), self._stream(_DIGITS)
        return _rounded_gaussians(words, digits, float(sd_units), size)

    def coins(self, probability: float, size: int) -> np.ndarray:
        """Bernoulli coins, as Poisson sampling of shoppers needs them.

        Args:
            probability: public, in [0, 1]; the float64 number itself is met exactly.
            size: how many; >= 0.
        Returns:
            bool, (size,).
        Raises:
            BadAssumption: probability is out of range or NaN.
            PrivacyError: drawn before, or erased.
        """
        if not 0 <= probability <= 1:
            raise BadAssumption(f"probability = {probability}: must be from 0 to 1")
        stream = self._stream(_COINS)
        if probability == 1:
            return np.ones(size, dtype=bool)
        words = np.empty(size, dtype="<u8")
        stream.fill(words)
        return _tosses(words, Fraction(probability), stream)

    def erase(self) -> None:
        """Overwrite the key.

        Guarantee: this object's copy is zeros afterwards. Copies that OpenSSL made are freed with the streams, which
        end with the call that drew from them; freed memory is the operating system's matter.
        """
        self._key[:] = bytes(len(self._key))
        self._key.clear()

    def _stream(self, tag: int) -> _AesStream:
        if not self._key:
            raise PrivacyError("this noise key was erased: make a new source for every release")
        if tag in self._used:
            raise PrivacyError("this noise key was used: make a new source for every release")
        self._used.add(tag)
        return _AesStream(self._key, tag)


class SecureNoise(_OneRelease):
    """Noise that protects: a key of 32 bytes from the operating system, for one release.

    Guarantee: nobody who cannot break AES-256 tells the values from independent rounded Gaussians, up to
    `noise_residual_tv`; no seed exists that could be set or written down.
    """

    is_secure = True

    def __init__(self, purpose: str) -> None:
        """Args:
        purpose: what the noise is for; every purpose of every round has a key of its own.
        """
        super().__init__(bytearray(secrets.token_bytes(_KEY_BYTES)))
        self.purpose = purpose


class SeededNoiseForTests(_OneRelease):
    """The same noise from a seed: whoever knows the seed can take it away again, so it promises nothing."""

    def __init__(self, seed: int, purpose: str = "") -> None:
        """Args:
        seed: of all sources of a test.
        purpose: tells the sources of one seed apart.
        """
        text = f"fedrec noise for tests: {int(seed)}: {purpose}"
        super().__init__(bytearray(hashlib.sha256(text.encode()).digest()))
        self.purpose = purpose


def noise_residual_tv(sd_units: float, num_values: int, *, num_shops: int = 1, step_units: int = 1) -> float:
    """Total variation between a sum's noise as drawn and the Gaussian that the accounting assumes.

    Args:
        sd_units: standard deviation of one shop's noise, in grid units.
        num_values: values of one release.
        num_shops: whose noise the sum holds.
        step_units: to whose multiples every shop rounds its noisy values (`fedrec.privacy.grid.Grid.steps`).
    Returns:
        A bound tau. With epsilon and delta computed for exact Gaussians, the release is
        (epsilon, delta + (1 + e^epsilon) tau)-DP; the terms of several releases add up.
    Raises:
        BadAssumption: sd_units is out of range or NaN.
    Guarantee: the sum of these parts.
        *Rounding*: data lie on the grid, so rounding one Gaussian is post-processing and costs nothing. Of several
        shops the sum of rounded Gaussians differs from rounding one Gaussian plus uniforms by 0.4 exp(-pi^2 s^2) a
        value (Poisson summation, worst for two shops), and each further shop adds at most as much. With steps, s
        counts in steps, and the same bound holds where the data lie between them: they turn phases, not sizes.
        *float64, tail*: nothing. What is not certain within the error bound is decided again, with all digits.
        *Decimals*: places have 240 digits and heights 256, and the curve 58 places, so that a decision is wrong with
        probability below 2^-180; beyond 5 s also values are computed, and round differently with probability below
        2^-164. A tail's uniform below 2^-60 is not counted on: it is met, and its point kept, with 2^-126.
        *AES*: blocks of a permutation never repeat: B blocks differ from random ones by at most B^2 / 2^129. A value
        takes 0.52 blocks on average; B = num_values + 64, and more are needed with probability below e^-128 (Chernoff).
        That AES-256 is a random permutation to everyone is assumed.
    Source: the rounding part after Canonne, Kamath, Steinke 2020, arXiv:2004.00010, Lemma on Poisson summation.
    """
    if not MIN_SD_UNITS <= sd_units <= MAX_SD_UNITS:
        raise BadAssumption(f"noise of {sd_units} grid units: must be from {MIN_SD_UNITS:g} to 2^36")
    decimals = 2.0**-120
    if not sd_units / step_units >= MIN_SD_UNITS:
        raise BadAssumption(f"noise of {sd_units} grid units, rounded to {step_units}: at least {MIN_SD_UNITS:g} steps")
    rounding = _rounding_tv(sd_units / step_units, num_shops)
    blocks = num_values + 64
    return num_values * (decimals * num_shops + rounding) + num_shops * blocks**2 * 2.0**-129


def _rounding_tv(sd_units: float, num_shops: int) -> float:
    """Distance of a sum of rounded Gaussians from post-processing of one Gaussian, per value."""
    return 0.4 * math.exp(-((math.pi * sd_units) ** 2)) * (num_shops - 1)


class _AesStream:
    """The AES-256-CTR key stream of a key and a tag: the counter mode inside GCM, where OpenSSL is 2.5 times faster."""

    def __init__(self, key: bytearray, tag: int) -> None:
        self._encryptor = Cipher(algorithms.AES(key), modes.GCM(tag.to_bytes(12, "big"))).encryptor()
        self._zeros = bytes(0)

    def fill(self, words: np.ndarray) -> None:
        """Overwrite a contiguous array with the next bytes of the stream."""
        if len(self._zeros) != words.nbytes:
            self._zeros = bytes(words.nbytes)
        if words.nbytes:
            self._encryptor.update_into(self._zeros, words.data.cast("B"))

    def integer(self, num_bytes: int) -> int:
        """The next bytes as one little-endian number."""
        return int.from_bytes(self._encryptor.update(bytes(num_bytes)), "little")


@dataclass(frozen=True)
class _Staircase:
    """Slots over the bell curve of one standard deviation.

    Columns, 2^48 units wide each, stand side by side from -R to R, and are cut into slots of height 1, in a scale where
    the curve peaks at C. Slots under the curve at both edges are *sure*; further ones, up to the higher edge, are
    *open*. One more stands for both tails. What is left of 2^16 is empty: nothing in it is kept.

    Attributes:
        sd: standard deviation in these units; 48 to 96 columns.
        shift: grid units are 2^shift of these units.
        peak: C, a whole number.
        edge: R, at least 5 sd.
        starts: int64, (2^16,), by slot: what is added, modulo 2^64, to a word that begins with the slot's number to get
            the place, and half a grid unit. Sure slots come first, then open ones, the tails', empty ones.
        num_sure: how many are sure.
        tail: which one is the tails'.
        floors: float64, (2^16 - num_sure,): height at which each slot that is not sure begins; infinite for the tails'
            and empty ones.
        tail_share: height of the curve at R over that of the tails' proposal; below 0.1.
    """

    sd: float
    shift: int
    peak: int
    edge: int
    starts: np.ndarray
    num_sure: int
    tail: int
    floors: np.ndarray
    tail_share: Decimal

    def draw(self, words: _AesStream, values: np.ndarray, room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fill int64 values with those of points in any slots.

        Args:
            words: where the points come from.
            values: (size,); what to fill.
            room: int64, (2, size); memory.
        Returns:
            Which points lie in slots that are not sure, and their words, int64.
        """
        drawn, slots = room
        words.fill(drawn)
        np.right_shift(drawn.view("<u8"), _PLACE_BITS, out=slots.view("<u8"))
        np.take(self.starts, slots, out=values, mode="wrap")
        np.add(values, drawn, out=values)
        np.right_shift(values, self.shift, out=values)
        which = np.flatnonzero(slots >= self.num_sure)
        return which, drawn[which]

    def above(self, slots: np.ndarray, places: np.ndarray, up: np.ndarray) -> np.ndarray:
        """How high the curve is above points in slots that are not sure, minus infinity for the tails' and empty ones.

        Why `_SLACK` is enough: digits beyond the first and roundings of the place, its square (within 8 ulp of at most
        13) and the exponential (within 8 ulp) move the curve, at most 540 high, by less than 2^-36; heights by less
        than 2^-42.

        Args:
            slots, places: int64, (num_points,).
            up: float64, (num_points,): heights above the slots' floors, in [0, 1].
        """
        height = places * (1 / self.sd)
        height *= height
        height *= -0.5
        np.exp(height, out=height)
        height *= self.peak
        height -= np.take(self.floors, slots - self.num_sure, mode="wrap")
        height -= up
        return height

    def is_under(self, place: int, floor: int, across: int, up: int) -> bool:
        """Whether a point lies under the curve, from all its digits.

        Args:
            place, floor: where it is, as whole numbers.
            across: 192 further digits of its place.
            up: 256 digits of its height above the floor.
        """
        with localcontext(_PRECISION):
            distance = (place + _uniform(across, _FURTHER)) / Decimal(self.sd)
            return floor + _uniform(up, 64 + _FURTHER) < self.peak * (-distance * distance / 2).exp()

    def beyond(self, across: int, up: int) -> int | None:
        """A value beyond R, or None if the point is not kept.

        Args:
            across: 240 digits; the first one is the sign.
            up: 256 digits.
        Source: Marsaglia 1964; the proposal is an exponential from R on.
        """
        digits = _PLACE_BITS - 1 + _FURTHER
        with localcontext(_PRECISION):
            sd, edge = Decimal(self.sd), Decimal(self.edge)
            further = -_uniform(across % 2**digits, digits).ln() * sd / edge  # in standard deviations
            if _uniform(up, 64 + _FURTHER) >= self.tail_share * (-further * further / 2).exp():
                return None
            value = int(((edge + further * sd) / 2**self.shift).to_integral_value())
        return -value if across >> digits else value


@lru_cache(maxsize=4)
def _staircase(sd_units: float) -> _Staircase:
    """The staircase of a Gaussian with this standard deviation in grid units."""
    shift = _PLACE_BITS + 1 - math.frexp(sd_units / 48)[1]
    sd = math.ldexp(sd_units, shift)
    num_columns = int(_REACH * sd / _COLUMN) + 1  # on each side
    edge = num_columns * _COLUMN
    with localcontext(_PRECISION):
        curve = _curve(Decimal(sd) / _COLUMN, num_columns)
        peak = int((_SLOTS - num_columns) / (2 * sum(curve))) + 1
        while 2 * sum(math.ceil(peak * height) for height in curve[:-1]) >= _SLOTS:
            peak -= 1
        heights = [peak * height for height in curve]
        tail_share = 2 * heights[-1] * Decimal(sd) ** 2 / (edge * _COLUMN)
    sure = np.array([int(height) for height in heights[1:]])
    high = np.array([math.ceil(height) for height in heights[:-1]])
    sure, high = np.append(sure[::-1], sure), np.append(high[::-1], high)
    num_open, lefts = high - sure, _COLUMN * np.arange(-num_columns, num_columns)
    num_sure, tail = int(sure.sum()), int(high.sum())
    starts = -(np.arange(_SLOTS, dtype=np.uint64) << np.uint64(_PLACE_BITS)).view(np.int64)
    starts[:tail] += 2 ** (shift - 1) + np.append(np.repeat(lefts, sure), np.repeat(lefts, num_open))
    floors = np.full(_SLOTS - num_sure, np.inf)
    floors[: tail - num_sure] = np.arange(tail - num_sure) - np.repeat(num_open.cumsum() - high, num_open)
    return _Staircase(sd, shift, peak, edge, starts, num_sure, tail, floors, tail_share)


def _curve(sd: Decimal, num_columns: int) -> list[Decimal]:
    """exp(-j^2 / 2 sd^2), j = 0 ... num_columns: each is the one before times an odd power of the first ratio."""
    ratio = (-1 / (2 * sd * sd)).exp()
    heights, square = [Decimal(1)], ratio * ratio
    for _ in range(num_columns):
        heights.append(heights[-1] * ratio)
        ratio *= square
    return heights


def _uniform(digits: int, num_digits: int) -> Decimal:
    """The middle of all numbers in [0, 1) that begin with these binary digits, in the precision of the context."""
    return Decimal(2 * digits + 1) / 2 ** (num_digits + 1)


def _rounded_gaussians(words: _AesStream, digits: _AesStream, sd: float, size: int) -> np.ndarray:
    """Draw block by block: first all values, then those again whose points are not under the curve."""
    stairs, out = _staircase(sd), np.empty(size, dtype=np.int64)
    room = np.empty((2, min(size, _CHUNK)), dtype=np.int64)
    for start in range(0, size, _BLOCK):
        values = out[start : start + _BLOCK]
        found = []
        for first in range(0, len(values), _CHUNK):
            chunk = values[first : first + _CHUNK]
            which, points = stairs.draw(words, chunk, room[:, : len(chunk)])
            found.append((which + first, points))
        which, points = (np.concatenate(parts) for parts in zip(*found, strict=True))
        while len(which):
            which = which[~_is_kept(stairs, digits, values, which, points)]
            again = np.empty(len(which), dtype=np.int64)
            is_open, points = stairs.draw(words, again, np.empty((2, len(which)), dtype=np.int64))
            values[which] = again
            which = which[is_open]
    return out


def _is_kept(
    stairs: _Staircase, digits: _AesStream, values: np.ndarray, which: np.ndarray, points: np.ndarray
) -> np.ndarray:
    """Which points lie under the curve, of those in slots that are not sure.

    Args:
        stairs: the curve.
        digits: for heights, and for further digits of places and heights.
        values: where values beyond R are written.
        which: of the values, each point's.
        points: int64; the points' words.
    """
    slots = np.right_shift(points.view("<u8"), _PLACE_BITS).view("<i8")
    places = np.take(stairs.starts, slots, mode="wrap") + points - 2 ** (stairs.shift - 1)
    heights = np.empty(len(points), dtype="<u8")
    digits.fill(heights)
    up = heights * 2.0**-64
    above = stairs.above(slots, places, up)
    is_kept = above > 0
    is_far = (slots == stairs.tail) & (up < 1.01 * float(stairs.tail_share))
    for i in np.flatnonzero(is_far | (np.abs(above) < _SLACK)):
        across = digits.integer(_FURTHER // 8)
        height = (int(heights[i]) << _FURTHER) + digits.integer(_FURTHER // 8)
        if is_far[i]:
            value = stairs.beyond((int(points[i]) % _COLUMN << _FURTHER) + across, height)
            is_kept[i] = value is not None
            values[which[i]] = value or 0
        else:
            floor = int(stairs.floors[slots[i] - stairs.num_sure])
            is_kept[i] = stairs.is_under(int(places[i]), floor, across, height)
    return is_kept


def _tosses(words: np.ndarray, probability: Fraction, stream: _AesStream) -> np.ndarray:
    """Whether uniforms lie below a probability; where the first 64 digits are equal, further ones decide."""
    scaled = probability * 2**64
    whole = scaled.numerator // scaled.denominator
    is_true = words < np.uint64(whole)
    rest = scaled - whole
    if rest:
        # 1,024 more digits: a float64 number has none beyond its 1,074th.
        for i in np.flatnonzero(words == np.uint64(whole)):
            is_true[i] = stream.integer(128) < rest * 2**1024
    return is_true
