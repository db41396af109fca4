"""Noise: the integers of a key, their distribution, and that a key serves once."""

from __future__ import annotations

import itertools
import json
import math
from decimal import Decimal, localcontext
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


class Numbers:
    """A stream of given words, and of further digits that are all the same."""

    def __init__(self, words: np.ndarray, further: int = 0) -> None:
        self.words, self.further = words.astype("<u8"), further

    def fill(self, words: np.ndarray) -> None:
        words.view("<u8")[:] = self.words[: len(words)]
        self.words = self.words[len(words) :]

    def integer(self, num_bytes: int) -> int:
        return self.further


SPREADS = [3.0, 95.99, 2.0**18, 1e9, 2.0**36]


@pytest.mark.parametrize("sd", SPREADS)
def test_every_slot_stands_where_it_should(sd):
    stairs = noise._staircase(sd)
    unit = Fraction(2**stairs.shift)
    assert Fraction(stairs.sd) == Fraction(sd) * unit
    slots = np.arange(stairs.tail)
    centre = stairs.starts[slots] + (slots.astype(np.uint64) << np.uint64(48)).view(np.int64)
    columns, rest = np.divmod(centre - 2 ** (stairs.shift - 1), 2**48)
    assert not rest.any()
    edges = np.arange(columns.min(), columns.max() + 2)
    assert (edges[0], edges[-1]) == (-stairs.edge // 2**48, stairs.edge // 2**48)
    assert stairs.edge >= 5 * stairs.sd
    curve = stairs.peak * np.exp(-((edges * (2.0**48 / stairs.sd)) ** 2) / 2)
    low, high = np.minimum(curve[:-1], curve[1:]), np.maximum(curve[:-1], curve[1:])
    is_sure = slots < stairs.num_sure
    sure, every = (np.bincount(columns[places] - edges[0], minlength=len(low)) for places in (is_sure, slots >= 0))
    assert (sure <= low * (1 + 1e-12)).all()
    assert (sure > low - 1 - 1e-9).all()
    assert (every >= high * (1 - 1e-12)).all()
    assert (every < high + 1 + 1e-9).all()
    for column in range(len(edges) - 1):  # open slots stand on the sure ones and on each other
        mine = np.flatnonzero(columns[stairs.num_sure :] == edges[column])
        assert stairs.floors[mine].tolist() == list(range(sure[column], every[column]))
    assert np.isinf(stairs.floors[stairs.tail - stairs.num_sure :]).all()
    assert 0.97 < stairs.num_sure / 2**16 < stairs.tail / 2**16 < 1


@pytest.mark.parametrize("sd", SPREADS)
def test_the_tails_have_the_chance_of_a_gaussians_beyond_the_columns(sd):
    stairs = noise._staircase(sd)
    reach = stairs.edge / stairs.sd
    t = np.linspace(0, 8, 200_001)
    kept = float(stairs.tail_share) * np.trapezoid(reach * np.exp(-reach * t - t * t / 2), t)
    whole_curve = stairs.peak * stairs.sd / 2**48 * math.sqrt(2 * math.pi)  # in slots
    assert kept / whole_curve == pytest.approx(2 * stats.norm.sf(reach), rel=1e-7)


def test_a_value_beyond_the_columns_is_where_its_digits_put_it():
    stairs = noise._staircase(1000.0)
    reach = stairs.edge / stairs.sd
    for share in (0.01, 0.3, 0.99):
        z = reach - math.log(share) / reach
        most = float(stairs.tail_share) * math.exp(-((z - reach) ** 2) / 2)
        digits = int(share * 2**53) << 186  # of 239
        for sign, first in ((1, 0), (-1, 2**239)):
            assert stairs.beyond(first + digits, int(0.999 * most * 2**60) << 196) == round(sign * 1000 * z)
            assert stairs.beyond(first + digits, int(1.001 * most * 2**60) << 196) is None


def test_the_furthest_value_is_below_24_standard_deviations():
    stairs = noise._staircase(2.0**36)
    assert stairs.beyond(0, 0) is None  # 33 standard deviations further out
    kept = [beyond for bits in range(239) if (beyond := stairs.beyond(2**bits, 0)) is not None]
    assert 20 < max(kept) / 2.0**36 < 24


def test_points_drawn_in_the_tails_slot_are_distributed_as_a_gaussians_tail():
    stairs = noise._staircase(2.0**20)
    rng = np.random.default_rng(4)
    words = (rng.integers(0, 2**48, 150_000, dtype=np.uint64)) + np.uint64(stairs.tail << 48)
    values = np.zeros(len(words), dtype=np.int64)
    heights = Numbers(rng.integers(0, 2**64, len(words), dtype=np.uint64))
    kept = noise._is_kept(stairs, heights, values, np.arange(len(words)), words.view(np.int64))
    found, reach = values[kept] / 2.0**20, stairs.edge / stairs.sd
    assert len(found) > 4000
    uniform = stats.norm.sf(np.abs(found)) / stats.norm.sf(reach)
    assert stats.kstest(uniform, "uniform").pvalue > 1e-9
    assert abs((found > 0).mean() - 0.5) < SIX * 0.5 / math.sqrt(len(found))


def open_points(stairs, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    slots = rng.integers(stairs.num_sure, stairs.tail, count)
    words = (slots.astype(np.uint64) << np.uint64(48)) + rng.integers(0, 2**48, count, dtype=np.uint64)
    return slots, words.view(np.int64), rng.integers(0, 2**64, count, dtype=np.uint64)


@pytest.mark.parametrize("sd", [3.0, 2.0**18, 2.0**36])
def test_float64_and_decimals_keep_the_same_points(sd, monkeypatch):
    stairs = noise._staircase(sd)
    _, words, heights = open_points(stairs, 1000)
    kept = []
    for slack in (0.0, 1e9):
        monkeypatch.setattr(noise, "_SLACK", slack)  # nothing in decimals; everything in decimals
        kept.append(noise._is_kept(stairs, Numbers(heights), np.zeros(1000), np.arange(1000), words))
    assert kept[0].tolist() == kept[1].tolist()
    assert 400 < kept[0].sum() < 600


def test_a_height_in_float64_is_within_a_16th_of_its_error_bound():
    stairs = noise._staircase(2.0**35 / 3)
    slots, words, heights = open_points(stairs, 1500)
    places = stairs.starts[slots] + words - 2 ** (stairs.shift - 1)
    found = stairs.above(slots, places, heights * 2.0**-64)
    for i in range(len(slots)):
        z = (int(places[i]) + Decimal("0.5")) / Decimal(stairs.sd)
        floor = int(stairs.floors[slots[i] - stairs.num_sure])
        exact = stairs.peak * (-z * z / 2).exp() - floor - Decimal(int(heights[i])) / 2**64
        assert abs(Decimal(found[i]) - exact) < noise._SLACK / 16


def test_further_digits_decide_where_the_first_ones_do_not():
    stairs = noise._staircase(2.0**18)
    slots, words, _ = open_points(stairs, 200)
    places = stairs.starts[slots] + words - 2 ** (stairs.shift - 1)
    above = stairs.above(slots, places, np.zeros(200))
    i = int(np.flatnonzero((above > 0.1) & (above < 0.9))[0])
    floor = int(stairs.floors[slots[i] - stairs.num_sure])
    with localcontext(prec=80):
        z = (int(places[i]) + Decimal("0.5")) / Decimal(stairs.sd)
        height = int((stairs.peak * (-z * z / 2).exp() - floor) * 2**256)
    for step in (2**100, -(2**100)):  # far below float64's last digit
        assert stairs.is_under(int(places[i]), floor, 2**191, height + step) == (step < 0)
    first = np.array([height >> 192], dtype=np.uint64)
    for further, kept in ((0, True), (2**192 - 1, False)):  # of place and height; both move the point out
        digits = Numbers(first, further)
        assert noise._is_kept(stairs, digits, np.zeros(1), np.arange(1), words[i : i + 1]).tolist() == [kept]


def test_what_decimals_decide_alone_is_as_normal(monkeypatch):
    monkeypatch.setattr(noise, "_SLACK", 1e9)
    sample = SecureNoise("test").integers(1e5, 40_000)
    assert abs(deviations(sample, 1e5)) < SIX
    assert stats.kstest(sample / 1e5, "norm").pvalue > 1e-9


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
        (z[:32768], z[32768:65536]),
        (z[:999], z[65536 : 65536 + 999]),
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
    for size in (0, 1, 2, 32768, 32769):
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
