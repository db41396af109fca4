"""Gaussian noise in whole grid units, from the operating system's randomness alone.

The integers are the roundings of exact Gaussians. AES-256-CTR gives every uniform as its first 64 binary digits; float64
Box-Muller turns them into normals, with a bound on how far they are from what all the digits would give. Where that
bound leaves open to which integer a value rounds (one pair in about 60,000, the deep tail and the centre included), more
digits are drawn and the pair is computed again in decimals of 60 places. So the distribution owes nothing to float64, a
uniform has as many digits as it needs however close to 0 it is, and the integers of a key are the same on every machine.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable
from decimal import Context, Decimal, localcontext
from fractions import Fraction
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedrec.errors import BadAssumption, PrivacyError

MIN_SD_UNITS = 3.0
"""Least standard deviation, in grid units: below it a sum of rounded Gaussians is not a rounded Gaussian."""
MAX_SD_UNITS = 2.0**36

_KEY_BYTES = 32
_PAIRS = 8192
"""Pairs of normals per chunk: all buffers stay in the second-level cache."""
_NORMALS, _DIGITS, _COINS = range(3)
"""First word of the counter block: streams of one key never meet."""
_DIGIT_BYTES = 24
"""Further digits of one uniform: 192 after its first 64."""
_SLACK = 2.0**-39
"""Bound on the error of a normal from 64 digits in float64; see `_round_normals`."""
_LOW, _HIGH = 2**44, 2**64 - 2**45
"""First uniforms outside have too few digits for `_SLACK`: below, the tail past 5.2; above, radii under 2^-9."""
_UNIFORM = 2.0**-64
# sqrt(2) sin(pi v / 4) / v and 2 cos(pi v / 4) as polynomials in v^2 for -1 <= v <= 1: Chebyshev interpolation, off by
# at most 2^-47 and 2^-53. The factors save two multiplications on the way to the full angle.
_SIN = (
    1.1107207345395869,
    -0.11419139843708628,
    0.003521949772830778,
    -5.172654695715299e-05,
    4.4312742661743144e-07,
    -2.4558055092412323e-09,
)
_COS = (
    2.0,
    -0.6168502750680757,
    0.031708688487483094,
    -0.0006519837729670803,
    7.181718359700476e-06,
    -4.9219014188056233e-08,
    2.2730938415462706e-10,
)
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798")
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
            int64, (size,); none is further from 0 than 19 sd_units.
        Raises:
            BadAssumption: sd_units is out of range or NaN.
            PrivacyError: drawn before, or erased.
        Guarantee: the values are independent roundings of N(0, sd_units^2), up to `noise_residual_tv`.
        Source: Box and Muller 1958; AES-CTR of NIST SP 800-38A. Deviation: see the head of this module.
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


def noise_residual_tv(sd_units: float, num_values: int, *, num_shops: int = 1) -> float:
    """Total variation between a sum's noise as drawn and the Gaussian that the accounting assumes.

    Args:
        sd_units: standard deviation of one shop's noise, in grid units.
        num_values: values of one release.
        num_shops: whose noise the sum holds.
    Returns:
        A bound tau. With epsilon and delta computed for exact Gaussians, the release is
        (epsilon, delta + (1 + e^epsilon) tau)-DP; the terms of several releases add up.
    Raises:
        BadAssumption: sd_units is out of range or NaN.
    Guarantee: the sum of four parts.
        *Rounding*: data lie on the grid, so rounding one Gaussian is post-processing and costs nothing. Of several
        shops the sum of rounded Gaussians differs from a rounded one by 0.4 exp(-pi^2 s^2) a value (Poisson summation,
        worst for two), and each further shop adds at most as much.
        *float64 and mantissa*: nothing. A value whose rounding is not certain within the error bound is computed again.
        *Decimals*: the first uniform has 256 digits. Outside of two events of probability 2^-128 and 2^-121 (U below
        2^-128, radius below 2^-60) the value is then known to 10^-39 s, and rounds differently with probability of at
        most 2.1 x 10^-39 s.
        *Tail*: none is cut but U < 2^-256, which is part of the first event.
        *AES*: blocks of a permutation never repeat: B blocks differ from random ones by at most B^2 / 2^129. That AES is
        a random permutation is assumed.
    Source: the rounding part after Canonne, Kamath, Steinke 2020, arXiv:2004.00010, Lemma on Poisson summation.
    """
    if not MIN_SD_UNITS <= sd_units <= MAX_SD_UNITS:
        raise BadAssumption(f"noise of {sd_units} grid units: must be from {MIN_SD_UNITS:g} to 2^36")
    decimals = 2.1e-39 * sd_units + 2.0**-120
    rounding = 0.4 * math.exp(-((math.pi * sd_units) ** 2)) * (num_shops - 1)
    blocks = num_values / 2 + 1
    return num_values * (decimals * num_shops + rounding) + num_shops * blocks**2 * 2.0**-129


class _AesStream:
    """The AES-256-CTR key stream of a key and a tag."""

    def __init__(self, key: bytearray, tag: int) -> None:
        start = tag.to_bytes(8, "big") + bytes(8)
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(start)).encryptor()
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


def _rounded_gaussians(words: _AesStream, digits: _AesStream, sd: float, size: int) -> np.ndarray:
    """Fill chunk by chunk; an odd last value has a partner that is dropped."""
    out = np.empty(size, dtype=np.int64)
    room = _Buffers()
    for start in range(0, size, 2 * _PAIRS):
        stop = min(start + 2 * _PAIRS, size)
        pairs = (stop - start + 1) // 2
        chunk = room.words[:, :pairs] if pairs == _PAIRS else np.empty((2, pairs), dtype="<u8")
        words.fill(chunk)
        rounded = _round_normals(chunk, sd, digits.integer, room)
        np.copyto(out[start:stop], rounded.reshape(-1)[: stop - start], casting="unsafe")
    return out


class _Buffers:
    """Memory of one chunk, used again by the next."""

    def __init__(self) -> None:
        self.words = np.empty((2, _PAIRS), dtype="<u8")
        self.floats = np.empty((6, _PAIRS))


def _round_normals(words: np.ndarray, sd: float, digits: Callable[[int], int], room: _Buffers) -> np.ndarray:
    """Rounded normals of one chunk.

    Why `_SLACK` is enough, in units of sd: with u = w / 2^64 and r = sqrt(-2 ln u), digits that are missing and roundings
    of u move r by at most 2^-44 / r where w < 2^53 (then r > 3.9) and 2^-51 / r elsewhere (r > 2^-9.1): at most 2^-41.9.
    log and sqrt, each within 4 ulp, move it by less than 2^-48. The sine's polynomial is off by 2^-47 of sqrt(2), the
    doubled angle by twice and the full angle by four times that: with r < 5.3, 2^-43.1; its roundings less than 2^-46.
    Together less than 2^-41, a quarter of `_SLACK`.

    Args:
        words: uint64, (2, pairs); first digits of the uniforms, overwritten.
        sd: in units.
        digits: further ones, as a number of so many bytes.
        room: memory; the result lies in it.
    Returns:
        float64, (2, pairs); whole numbers.
    """
    pairs = words.shape[1]
    radius, sine, cosine, square = (room.floats[i, :pairs] for i in range(4))
    normals = room.floats[4:, :pairs]
    is_extreme = (words[0] - np.uint64(_LOW)) > np.uint64(_HIGH - _LOW)  # wraps below _LOW
    extreme = np.flatnonzero(is_extreme)
    exact = _digits_of(words, extreme)
    words[0, extreme] = 2**63
    np.multiply(words[0], _UNIFORM, out=radius)
    np.log(radius, out=radius)
    np.multiply(radius, -2 * sd * sd, out=radius)
    np.sqrt(radius, out=radius)
    np.multiply(words[1].view("<i8"), 2.0**-63, out=normals[0])
    _unit_circle(normals[0], sine, cosine, square)
    np.multiply(radius, cosine, out=normals[0])
    np.multiply(radius, sine, out=normals[1])
    rounded, distance = room.floats[0:2, :pairs], room.floats[2:4, :pairs]
    np.rint(normals, out=rounded)
    np.subtract(normals, rounded, out=distance)
    np.abs(distance, out=distance)
    if distance.max() > 0.5 - _SLACK * sd:
        uncertain = np.flatnonzero((distance > 0.5 - _SLACK * sd).any(axis=0))
        exact = _digits_of(words, uncertain) | exact
    for pair in sorted(exact):
        rounded[:, pair] = _exact_pair(*exact[pair], sd, digits)
    return rounded


def _digits_of(words: np.ndarray, pairs: np.ndarray) -> dict[int, tuple[int, int]]:
    first, second = words[:, pairs].tolist()
    return dict(zip(pairs.tolist(), zip(first, second, strict=True), strict=True))


def _unit_circle(turn: np.ndarray, sine: np.ndarray, cosine: np.ndarray, square: np.ndarray) -> None:
    """cos and sin of pi x turn, -1 <= turn <= 1, from polynomials for a quarter of the angle, doubled twice."""
    np.multiply(turn, turn, out=square)
    _polynomial(_SIN, square, sine)
    np.multiply(sine, turn, out=sine)  # sqrt(2) sin(a)
    _polynomial(_COS, square, cosine)  # 2 cos(a)
    np.multiply(sine, cosine, out=cosine)  # sqrt(2) sin(2a)
    np.multiply(sine, sine, out=sine)
    np.subtract(1.0, sine, out=sine)  # cos(2a)
    np.multiply(sine, cosine, out=sine)
    np.multiply(sine, math.sqrt(2), out=sine)  # sin(4a)
    np.multiply(cosine, cosine, out=cosine)
    np.subtract(1.0, cosine, out=cosine)  # cos(4a)


def _polynomial(coefficients: tuple[float, ...], x: np.ndarray, out: np.ndarray) -> None:
    """Horner's rule without a temporary array."""
    np.multiply(x, coefficients[-1], out=out)
    for coefficient in coefficients[-2:0:-1]:
        np.add(out, coefficient, out=out)
        np.multiply(out, x, out=out)
    np.add(out, coefficients[0], out=out)


def _exact_pair(first: int, second: int, sd: float, digits: Callable[[int], int]) -> tuple[int, int]:
    """The same two values from 256 digits of each uniform, in decimals.

    Args:
        first, second: first 64 digits as they stood in the stream.
        sd, digits: as in `_round_normals`.
    """
    bits = 8 * _DIGIT_BYTES
    uniform = (first << bits) + digits(_DIGIT_BYTES)
    signed = second - 2**64 if second >= 2**63 else second
    turn = (signed << bits) + digits(_DIGIT_BYTES)
    with localcontext(_PRECISION):
        # The middle of the last digit's interval: never 0, never 1.
        logarithm = (Decimal(2 * uniform + 1) / Decimal(2 ** (65 + bits))).ln()
        radius = Decimal(sd) * (-2 * logarithm).sqrt()
        cosine, sine = _decimal_circle(_PI * Decimal(turn) / Decimal(2 ** (63 + bits)))
        return int((radius * cosine).to_integral_value()), int((radius * sine).to_integral_value())


def _decimal_circle(angle: Decimal) -> tuple[Decimal, Decimal]:
    """cos and sin by their series for |angle| <= pi, in the precision of the context and a few places less."""
    cosine, sine = Decimal(0), Decimal(0)
    term, order = Decimal(1), 0
    while abs(term) > Decimal("1e-60"):
        sign = 1 if order % 4 < 2 else -1
        if order % 2:
            sine += sign * term
        else:
            cosine += sign * term
        order += 1
        term = term * angle / order
    return cosine, sine


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
