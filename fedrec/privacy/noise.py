"""Gaussian noise in whole grid units, from the operating system's randomness alone.

The integers are the roundings of exact Gaussians. AES-256-CTR gives the first 64 binary digits of every uniform;
float64 Box-Muller turns them into normals, with a bound on how far these are from what all digits would give. Where
the bound leaves open to which integer a value rounds, and for radii close to 0 or beyond 5.1 (a few pairs in a
million), more digits are drawn and the pair is computed again in decimals of 60 places. So the distribution owes
nothing to float64, a uniform has as many digits as it needs however close to 0 it is, and a key's integers are the
same on every machine.
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
_PAIRS = 16384
"""Pairs of normals per chunk: all buffers stay in the second-level cache."""
_NORMALS, _DIGITS, _COINS = range(3)
"""First word of the counter block: streams of one key never meet."""
_DIGIT_BYTES = 24
"""Further digits of one uniform: 192 after its first 64."""
_SIGN_BIT = np.int64(-(2**63))
_SLACK = 2.0**-40
"""Bound on the error of a normal from 63 digits in float64; see `_round_normals`."""
_SHORTEST, _LONGEST = 2.0**-9, 5.1
"""Radii outside need more digits for `_SLACK`."""
_SIN = (
    1.1107207345395869,
    -0.11419139843708628,
    0.003521949772830778,
    -5.172654695715299e-05,
    4.4312742661743144e-07,
    -2.4558055092412323e-09,
)
"""sqrt(2) sin(pi w / 4) / w in powers of w^2 for |w| <= 1: Chebyshev interpolation, off by at most 2^-47.5."""
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
        *float64, mantissa, tail*: nothing. What is not certain within the error bound is computed again.
        *Decimals*: a uniform has 255 digits and a sign. Outside of two events of probability 2^-128 and 2^-121 (U below
        2^-128, radius below 2^-60) a value is known to 10^-39 s, and rounds differently with probability of at
        most 2.1 x 10^-39 s.
        *AES*: blocks of a permutation never repeat: B blocks differ from random ones by at most B^2 / 2^129. That
        AES-256 is a random permutation to everyone is assumed.
    Source: the rounding part after Canonne, Kamath, Steinke 2020, arXiv:2004.00010, Lemma on Poisson summation.
    """
    if not MIN_SD_UNITS <= sd_units <= MAX_SD_UNITS:
        raise BadAssumption(f"noise of {sd_units} grid units: must be from {MIN_SD_UNITS:g} to 2^36")
    decimals = 2.1e-39 * sd_units + 2.0**-120
    if not sd_units / step_units >= MIN_SD_UNITS:
        raise BadAssumption(f"noise of {sd_units} grid units, rounded to {step_units}: at least {MIN_SD_UNITS:g} steps")
    rounding = _rounding_tv(sd_units / step_units, num_shops)
    blocks = num_values / 2 + 1
    return num_values * (decimals * num_shops + rounding) + num_shops * blocks**2 * 2.0**-129


def _rounding_tv(sd_units: float, num_shops: int) -> float:
    """Distance of a sum of rounded Gaussians from post-processing of one Gaussian, per value."""
    return 0.4 * math.exp(-((math.pi * sd_units) ** 2)) * (num_shops - 1)


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
    pairs = min(_PAIRS, (size + 1) // 2)
    room = np.empty((6, pairs))
    with np.errstate(divide="ignore"):
        for start in range(0, size, 2 * _PAIRS):
            stop = min(start + 2 * _PAIRS, size)
            if (stop - start + 1) // 2 != pairs:
                pairs = (stop - start + 1) // 2
                room = np.empty((6, pairs))
            chunk = room[0:2].view("<i8")
            words.fill(chunk)
            rounded = _round_normals(chunk, sd, digits.integer, room[2:])
            np.copyto(out[start:stop], rounded.reshape(-1)[: stop - start], casting="unsafe")
    return out


def _round_normals(words: np.ndarray, sd: float, digits: Callable[[int], int], room: np.ndarray) -> np.ndarray:
    """Rounded normals of one chunk.

    With v, w uniform in [-1, 1): radius r = sqrt(-ln v^2), its sign that of v, angle pi w / 2, which with the sign is
    the full circle; for s = sqrt(2) sin(pi w / 4) its cosine is 1 - s^2 and its sine s sqrt(2 - s^2).

    Why `_SLACK` is enough, in units of sd, for 2^-9 < r < 5.2: missing digits and roundings of v^2 and its logarithm
    (within 4 ulp) move r by less than 2^-42; the polynomial and roundings of the angle move its sine and cosine by less
    than 2^-46, and so a value by 2^-43; the other roundings are less than 2^-47. Together less than 2^-41.

    Args:
        words: int64, (2, pairs); first digits of v and w.
        sd: in units.
        digits: further ones, as a number of so many bytes.
        room: float64, (4, pairs); memory, the result lies in it.
    Returns:
        float64, (2, pairs); whole numbers.
    """
    radius, sine, square = room[0], room[1], room[2]
    np.multiply(words, 2.0**-63, out=room[2:])
    np.multiply(room[2], room[2], out=radius)
    np.log(radius, out=radius)
    np.multiply(radius, -sd * sd, out=radius)
    np.sqrt(radius, out=radius)
    exact: dict[int, tuple[int, int]] = {}
    if radius.max() > _LONGEST * sd or radius.min() < _SHORTEST * sd:
        extreme = np.flatnonzero((radius > _LONGEST * sd) | (radius < _SHORTEST * sd))
        exact = _digits_of(words, extreme)
        radius[extreme] = sd
    _give_sign(radius, words[0], room[2])
    np.multiply(room[3], room[3], out=square)
    _polynomial(_SIN, square, sine)
    np.multiply(sine, room[3], out=sine)
    np.multiply(sine, sine, out=square)
    np.multiply(sine, radius, out=sine)
    np.subtract(2.0, square, out=room[3])
    np.sqrt(room[3], out=room[3])
    np.multiply(room[3], sine, out=room[3])
    np.subtract(1.0, square, out=square)
    np.multiply(square, radius, out=square)
    normals, rounded = room[2:4], room[0:2]
    np.rint(normals, out=rounded)
    np.subtract(normals, rounded, out=normals)
    np.abs(normals, out=normals)
    if normals.max() > 0.5 - _SLACK * sd:
        exact = _digits_of(words, np.flatnonzero((normals > 0.5 - _SLACK * sd).any(axis=0))) | exact
    for pair in sorted(exact):
        rounded[:, pair] = _exact_pair(*exact[pair], sd, digits)
    return rounded


def _digits_of(words: np.ndarray, pairs: np.ndarray) -> dict[int, tuple[int, int]]:
    first, second = words[:, pairs].tolist()
    return dict(zip(pairs.tolist(), zip(first, second, strict=True), strict=True))


def _give_sign(lengths: np.ndarray, words: np.ndarray, room: np.ndarray) -> None:
    """Negate where a word is negative, by its highest bit: twice as fast as ``np.copysign``."""
    np.bitwise_and(words, _SIGN_BIT, out=room.view("<i8"))
    np.bitwise_or(lengths.view("<i8"), room.view("<i8"), out=lengths.view("<i8"))


def _polynomial(coefficients: tuple[float, ...], x: np.ndarray, out: np.ndarray) -> None:
    """Horner's rule without a temporary array."""
    np.multiply(x, coefficients[-1], out=out)
    for coefficient in coefficients[-2:0:-1]:
        np.add(out, coefficient, out=out)
        np.multiply(out, x, out=out)
    np.add(out, coefficients[0], out=out)


def _exact_pair(first: int, second: int, sd: float, digits: Callable[[int], int]) -> tuple[int, int]:
    """The same two values from 255 digits of each uniform, in decimals.

    Args:
        first, second: first 63 digits and sign, as they stood in the stream.
        sd, digits: as in `_round_normals`.
    """
    bits = 8 * _DIGIT_BYTES
    # Twice the middle of the last digit's interval: odd, so never 0 and never the whole.
    across = 2 * ((first << bits) + digits(_DIGIT_BYTES)) + 1
    along = 2 * ((second << bits) + digits(_DIGIT_BYTES)) + 1
    with localcontext(_PRECISION):
        whole = Decimal(2 ** (64 + bits))
        radius = Decimal(sd) * (-2 * (Decimal(abs(across)) / whole).ln()).sqrt()
        cosine, sine = _decimal_circle(_PI / 2 * Decimal(along) / whole)
        signed = radius.copy_sign(Decimal(across))
        return int((signed * cosine).to_integral_value()), int((signed * sine).to_integral_value())


def _decimal_circle(angle: Decimal) -> tuple[Decimal, Decimal]:
    """cos and sin by their series for |angle| <= pi / 2, in the precision of the context and a few places less."""
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
