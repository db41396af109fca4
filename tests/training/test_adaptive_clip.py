"""The clip norm that follows a quantile: its arithmetic, its bound, its part of the noise, and where it ends up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrec.errors import BadAssumption, BadMessage
from fedrec.training.adaptive_clip import COUNT_PART, QuantileGradients, next_clip_norm, parted, within
from fedrec.training.dp_sgd import ShopperGradients

from .dp_networks import build, shoppers


def gradients(num_shoppers=12, clip_norm=0.5, agreed=2.0):
    network = build("vae")
    histories, draws, vectors = shoppers(num_shoppers, 0)
    inner = ShopperGradients(network, histories, draws, vectors=vectors)
    return inner, QuantileGradients(inner, clip_norm, agreed)


def test_the_sum_is_that_of_clipped_gradients_and_shoppers_within_in_units_of_the_agreed_norm():
    inner, _ = gradients()
    clip_norm = float(np.median(inner.norms()))
    counted = QuantileGradients(inner, clip_norm, 2.0)
    values, norms = counted.clipped(5.0)
    np.testing.assert_allclose(norms, inner.norms())
    total, count = parted(values, clip_norm=clip_norm, agreed=2.0)
    np.testing.assert_allclose(total, inner.clipped(clip_norm)[0], rtol=1e-9, atol=1e-12)
    assert count == pytest.approx(within(norms / clip_norm).sum())
    plain, count = parted(counted.total(np.ones(12)), clip_norm=clip_norm, agreed=2.0)
    np.testing.assert_allclose(plain, inner.total(np.ones(12)), rtol=1e-9, atol=1e-12)
    assert count == pytest.approx(within(norms / clip_norm).sum())


@pytest.mark.parametrize("factor", [0.01, 0.97, 1.0, 30.0])
def test_one_shopper_moves_gradient_and_count_together_by_at_most_the_bound(factor):
    network = build("vae")
    histories, draws, _ = shoppers(12, 0)
    clip_norm, moved = factor * float(np.median(ShopperGradients(network, histories, draws).norms())), []
    whole = None
    for gone in (None, 0, 5, 11):
        kept = np.delete(np.arange(12), [] if gone is None else [gone])
        inner = ShopperGradients(network, histories[kept], draws.take(kept))
        values, _ = QuantileGradients(inner, clip_norm, 1.0).clipped(0.3)
        whole = values if gone is None else whole
        moved.append(float(np.linalg.norm(whole - values)))
    assert max(moved) <= 0.3 * (1 + 1e-9)
    assert max(moved) > (0.0299 if factor > 1 else 0.29)


def test_the_noise_that_gradients_lose_is_what_the_count_has():
    """At the multiplier z of the step the two parts have z_g and z_b, whose squared inverses add up to that of z."""
    z, clip_norm, agreed = 3.0, 0.7, 2.0
    noise = np.array([z * agreed, z * agreed])  # one standard deviation in a gradient's value and in the count
    of_gradient, of_count = parted(noise, clip_norm=clip_norm, agreed=agreed)
    z_g, z_b = of_gradient[0] / clip_norm, of_count
    assert z_g**-2 + z_b**-2 == pytest.approx(z**-2)
    assert z_b == pytest.approx(z / COUNT_PART)


@given(st.floats(0, 1e6), st.floats(0, 1e-9))
def test_the_count_is_no_more_than_ten_times_as_rough_as_the_norms(ratio, error):
    one, other = within(np.array([ratio, ratio + error]))
    assert 0 <= other <= one <= 1
    assert one - other <= 10.001 * error + 1e-14


def test_a_norm_that_is_not_finite_is_not_within():
    assert within(np.array([0.5, 0.95, 1.0, 1.1, math.nan, math.inf])).tolist() == pytest.approx([1, 1, 0.5, 0, 0, 0])


@pytest.mark.parametrize("clip_norm", [0.0, 1e-4, 3000.0, math.nan, math.inf, -1.0])
def test_a_plan_with_a_clip_norm_far_from_the_agreed_one_is_refused(clip_norm):
    with pytest.raises(BadMessage, match="clip norm"):
        gradients(clip_norm=clip_norm)


def test_the_next_clip_norm_follows_the_noisy_share() -> None:
    moved = next_clip_norm(2.0, 30.0, expected_batch=100.0, quantile=0.5, learning_rate=0.2)
    assert moved == pytest.approx(2.0 * math.exp(-0.2 * (0.3 - 0.5)))
    low = next_clip_norm(2.0, -1e9, expected_batch=100.0, quantile=0.5, learning_rate=0.2)
    high = next_clip_norm(2.0, 1e9, expected_batch=100.0, quantile=0.5, learning_rate=0.2)
    assert (low, high) == (pytest.approx(2 * math.exp(0.1)), pytest.approx(2 * math.exp(-0.1)))


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
def test_under_noise_the_clip_norm_finds_the_quantile_of_norms(quantile) -> None:
    rng, noise = np.random.default_rng(3), np.random.default_rng(4)
    norms, bounds = rng.lognormal(1.0, 0.7, 2000), [0.01]
    for _ in range(400):
        count = within(norms / bounds[-1]).sum() + 200 * noise.standard_normal()  # a tenth of everybody
        bounds.append(next_clip_norm(bounds[-1], count, expected_batch=2000, quantile=quantile, learning_rate=0.2))
    assert np.exp(np.log(bounds[-200:]).mean()) == pytest.approx(np.quantile(norms, quantile), rel=0.05)


@pytest.mark.parametrize(
    "wrong",
    [
        {"clip_norm": 0.0},
        {"noisy_count": math.nan},
        {"expected_batch": 0.0},
        {"quantile": 1.0},
        {"quantile": math.nan},
        {"learning_rate": 0.0},
    ],
)
def test_numbers_out_of_range_move_no_clip_norm(wrong: dict[str, float]) -> None:
    given = {"clip_norm": 1.0, "noisy_count": 5.0, "expected_batch": 10.0, "quantile": 0.5, "learning_rate": 0.2}
    given |= wrong
    with pytest.raises(BadAssumption):
        next_clip_norm(given.pop("clip_norm"), given.pop("noisy_count"), **given)
