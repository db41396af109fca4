"""Noise: the integers of a key, their distribution, and that a key serves once."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from fedrec.errors import BadAssumption, PrivacyError
from fedrec.privacy import noise
from fedrec.privacy.noise import SecureNoise, SeededNoiseForTests, noise_residual_tv

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "noise.json").read_text(encoding="utf-8"))
# The bound 6 of a standard normal: a true source fails once in 5 x 10^8 runs.
SIX = 6.0


def agrees(case) -> bool:
    source = SeededNoiseForTests(0)
    source._key[:] = bytes.fromhex(case["key"])
    integers = source.integers(case["sd_units"], len(case["integers"]))
    coins = source.coins(case["probability"], len(case["coins"]))
    return integers.tolist() == case["integers"] and coins.astype(int).tolist() == case["coins"]


def deviations(sample: np.ndarray, sd: float) -> float:
    """How many standard errors the sample's variance lies from sd^2."""
    return float((np.mean((sample / sd) ** 2) - 1) / math.sqrt(2 / len(sample)))


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    return SecureNoise("test").integers(1e5, 200_001)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: f"sd {case['sd_units']:g}")
def test_the_integers_of_a_key_are_those_that_mpmath_computes(case):
    assert agrees(case)


@pytest.mark.parametrize("case", VECTORS["tampered"], ids=["key", "integer"])
def test_a_tampered_vector_is_noticed(case):
    assert not agrees(case)


def no_digits(num_bytes: int) -> int:
    return 2 ** (8 * num_bytes - 1)


@pytest.mark.parametrize("sd", [3.0, 2.0**18, 2.0**34])
def test_float64_and_decimals_give_the_same_integers(sd):
    words = np.random.default_rng(1).integers(-(2**63), 2**63, (2, 1500))
    fast = noise._round_normals(words, sd, no_digits, np.empty((4, 1500)))
    exact = [noise._exact_pair(*pair, sd, no_digits) for pair in words.T.tolist()]
    assert fast.T.astype(int).tolist() == [list(pair) for pair in exact]


def test_a_normal_in_float64_is_within_half_of_its_error_bound(monkeypatch):
    bound = noise._SLACK
    monkeypatch.setattr(noise, "_SLACK", 0.0)  # nothing is computed again
    rng = np.random.default_rng(2)
    words = rng.integers(-(2**63), 2**63, (2, 1500))
    lengths = np.sqrt(-2 * np.log(np.abs(words[0] / 2**63)))
    words[0, :300] = 2**63 * (1 - np.geomspace(2.1e-6, 1e-3, 300))  # radii just above 2^-9
    words[0, 300:600] = 2**63 * np.exp(-np.linspace(10, 12.9, 300))  # and up to 5.1
    lengths = np.sqrt(-2 * np.log(np.abs(words[0] / 2**63)))
    assert (lengths < 2**-8.5).any()
    assert (lengths > 5.05).any()
    sd = 2.0**49
    fast = noise._round_normals(words, sd, no_digits, np.empty((4, 1500)))
    exact = np.array([noise._exact_pair(*pair, sd, no_digits) for pair in words.T.tolist()], dtype=float)
    assert np.abs(fast.T - exact).max() / sd < bound / 2


def test_a_uniform_whose_digits_are_all_zero_gives_a_finite_value_far_out():
    words = np.array([[0, -(2**63), 2**63 - 1], [0, 0, 0]])
    with np.errstate(divide="ignore"):
        far, edge, centre = noise._round_normals(words, 1e6, lambda n: 1, np.empty((4, 3)))[0] / 1e6
    assert 18 < far < 19
    assert edge == pytest.approx(0, abs=1e-9)
    assert centre == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("z", [5.8, 7.0, 9.0])
def test_tails_that_float32_normals_lack_are_reached(z):
    # 24-bit uniforms end at 5.77; the pair of exactly this radius at angle 0 comes out where it belongs.
    first = int(2**63 * math.exp(-z * z / 2))
    value = noise._round_normals(np.array([[first], [0]]), 2.0**20, no_digits, np.empty((4, 1)))[0, 0]
    assert value / 2**20 == pytest.approx(z, rel=1e-3)


def test_the_chance_of_the_far_tail_is_that_of_its_uniform():
    # P(radius > r) = exp(-r^2 / 2), to more places than 53 digits could hold.
    first = 2**63 - 1
    value = noise._exact_pair(first, 0, 2.0**36, lambda n: 2 ** (8 * n) - 1)
    assert value == (0, 0)
    tail = noise._exact_pair(0, 0, 2.0**36, lambda n: 1)[0] / 2**36
    assert math.exp(-tail * tail / 2) == pytest.approx(1.5 * 2.0**-255, rel=1e-6)


@pytest.mark.parametrize("sd", [3.0, 1000.0, 2.0**30])
def test_the_spread_is_sigma_and_neither_0_7_nor_1_5_sigma(sd):
    sample = SecureNoise("test").integers(sd, 100_000)
    true_sd = math.sqrt(sd * sd + 1 / 12)  # rounding adds the variance of a uniform
    assert abs(deviations(sample, true_sd)) < SIX
    assert abs(deviations(sample, 0.7 * true_sd)) > SIX
    assert abs(deviations(sample, 1.5 * true_sd)) > SIX


def test_the_distribution_is_normal(sample):
    assert stats.kstest(sample / 1e5, "norm").pvalue > 1e-9  # false alarm 1e-9
    assert stats.kstest(sample / 1.06e5, "norm").pvalue < 1e-9  # expected 6e-35; missed once in 5 x 10^15 runs
    assert abs(sample.mean()) / 1e5 * math.sqrt(len(sample)) < SIX
    assert abs(stats.skew(sample)) * math.sqrt(len(sample) / 6) < SIX
    assert abs(stats.kurtosis(sample)) * math.sqrt(len(sample) / 24) < SIX


def test_every_integer_near_the_centre_has_its_share():
    sample = SecureNoise("test").integers(3.0, 200_000)
    edges = np.arange(-12, 14) - 0.5
    expected = np.diff(stats.norm.cdf(edges / 3.0)) * len(sample)
    found, _ = np.histogram(sample, edges)
    score = ((found - expected) ** 2 / expected).sum()
    assert stats.chi2.sf(score, len(expected)) > 1e-9  # false alarm 4e-9 with these counts


def test_values_of_one_release_do_not_tell_each_other(sample):
    z = sample / 1e5
    half = len(z) // 2
    pairs = [
        (z[:half], z[half : 2 * half]),
        (z[:-1], z[1:]),
        (z[:16384], z[16384:32768]),
        (z[:999], z[32768 : 32768 + 999]),
    ]
    for left, right in pairs:  # products have heavier tails than sums: below 1,000 pairs six and twelve sd are too near
        assert abs(np.mean(left * right)) * math.sqrt(len(left)) < SIX
        assert abs(np.mean((left**2 - 1) * (right**2 - 1))) * math.sqrt(len(left)) / 2 < 2 * SIX


def test_two_sources_share_nothing():
    left, right = (SecureNoise("the same purpose").integers(1e5, 50_000) for _ in range(2))
    assert (left != right).mean() > 0.999
    assert abs(np.mean(left * right / 1e10)) * math.sqrt(50_000) < SIX


def test_a_seeded_source_repeats_itself_and_says_that_it_protects_nobody():
    first, again, other = (SeededNoiseForTests(*seed).integers(50.0, 9) for seed in ((1,), (1,), (1, "round 2")))
    assert first.tolist() == again.tolist() != other.tolist()
    assert not SeededNoiseForTests(1).is_secure
    assert SecureNoise("x").is_secure


def test_fewer_values_are_drawn_by_the_same_rule_at_every_size():
    for size in (0, 1, 2, 16384, 32769):
        drawn = SeededNoiseForTests(3).integers(10.0, size)
        assert drawn.shape == (size,)
        assert drawn.dtype == np.int64


def test_a_key_serves_one_release():
    source = SecureNoise("round 0")
    source.integers(10.0, 5)
    with pytest.raises(PrivacyError, match="was used"):
        source.integers(10.0, 5)


def test_an_erased_key_is_overwritten_and_refuses():
    source = SecureNoise("round 0")
    key = source._key
    view = bytes(key)
    source.erase()
    assert view not in bytes(key)
    assert not any(key)
    for draw in (lambda: source.integers(10.0, 5), lambda: source.coins(0.5, 5)):
        with pytest.raises(PrivacyError, match="erased"):
            draw()
    source.erase()


def test_printing_a_source_shows_no_key():
    source = SecureNoise("round 0")
    assert repr(source) == "SecureNoise()"
    assert bytes(source._key).hex() not in f"{source} {source!r}"


@pytest.mark.parametrize("sd", [2.99, 0.0, -5.0, math.nan, math.inf, 2.0**37])
def test_a_spread_that_cannot_be_drawn_is_refused(sd):
    with pytest.raises(BadAssumption, match="grid units"):
        SecureNoise("x").integers(sd, 4)
    with pytest.raises(BadAssumption, match="grid units"):
        noise_residual_tv(sd, 4)


def test_coins_fall_with_their_probability():
    coins = SecureNoise("x").coins(0.3, 100_000)
    assert abs(coins.mean() - 0.3) / math.sqrt(0.21 / 100_000) < SIX
    assert not SecureNoise("x").coins(0.0, 1000).any()
    assert SecureNoise("x").coins(1.0, 1000).all()


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_a_probability_out_of_range_is_refused(probability):
    with pytest.raises(BadAssumption, match="probability"):
        SecureNoise("x").coins(probability, 4)


class Digits:
    def __init__(self, value: int) -> None:
        self.value = value

    def integer(self, num_bytes: int) -> int:
        return self.value


@pytest.mark.parametrize("probability", [0.1, 2.0**-70 * 3, 0.3333333333333333, 5e-324])
def test_coins_are_exact_where_64_digits_are_not_enough(probability):
    exact = Fraction(probability)
    whole = int(exact * 2**64)
    words = np.array([max(whole - 1, 0), whole, whole + 1], dtype=np.uint64)
    rest = int((exact * 2**64 - whole) * 2**1024)
    below = noise._tosses(words, exact, Digits(max(rest - 1, 0)))
    at = noise._tosses(words, exact, Digits(rest))
    assert below.tolist() == [whole > 0 or rest > 0, rest > 0, False]
    assert not at[1]
    assert not at[2]


def distance_from_post_processing(s: float, first: float, second: float) -> float:
    """Total variation between the sum of two values rounded with their noise, and their sum with it rounded once."""
    k = np.arange(-14, 15)
    parts = [np.diff(stats.norm.cdf((np.append(k - 0.5, 14.5) - value) / s)) for value in (first, second)]
    two = np.convolve(*parts)
    x, wide = np.arange(-29, 30) - (first + second), math.sqrt(2) * s
    # second antiderivative of the normal density: integrates the triangle of two uniforms
    ramp = x * stats.norm.cdf(x / wide) + wide**2 * stats.norm.pdf(x, scale=wide)
    smooth = ramp[2:] - 2 * ramp[1:-1] + ramp[:-2]
    return float(np.abs(two - smooth).sum() / 2)


def test_a_sum_of_two_rounded_gaussians_is_as_close_to_post_processing_as_stated():
    assert distance_from_post_processing(1.0, 0.0, 0.0) == pytest.approx(noise._rounding_tv(1.0, 2), rel=0.1)


def test_values_between_the_steps_come_no_further_from_post_processing():
    for first, second in itertools.product((0.0, 0.2, 0.5, 0.9), repeat=2):
        assert distance_from_post_processing(1.0, first, second) <= 1.1 * noise._rounding_tv(1.0, 2)


def test_the_residual_is_far_below_any_delta():
    assert 0 < noise_residual_tv(2.0**18, 400_000, num_shops=10) < 1e-20
    assert noise_residual_tv(3.0, 1, num_shops=2) > 0.4 * math.exp(-9 * math.pi**2)
    assert noise_residual_tv(3.0 * 2**14, 1, num_shops=2, step_units=2**14) > 0.4 * math.exp(-9 * math.pi**2)
    with pytest.raises(BadAssumption, match="steps"):
        noise_residual_tv(2.0**14, 1, num_shops=2, step_units=2**14)
    one, two = (noise_residual_tv(2.0**18, size) for size in (10**6, 2 * 10**6))
    assert one < two
