"""Damped co-occurrence: what a shopper adds, her bound after the sum is rounded, and that damping is undone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from fedrec.models import damped
from fedrec.models.co_occurrence import CoOccurrence, packed_size, unpack
from fedrec.models.damped import DampedCoOccurrence, damp

DIRECTION = np.array([0.8, 0.4, 0.4, 0.2, 0.0])


def random_rows(num_shoppers: int, num_items: int, density: float, seed: int = 0) -> sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    return sparse.csr_matrix((rng.random((num_shoppers, num_items)) < density).astype(np.float32))


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0])
def test_a_sum_is_that_of_damped_unit_rows(alpha):
    rows, weights = random_rows(40, 5, 0.5), np.random.default_rng(1).random(40)
    damping = np.eye(5) - (1 - alpha) * np.outer(DIRECTION, DIRECTION)
    expected = np.zeros((5, 5))
    for row, weight in zip(rows.toarray().astype(float), weights, strict=True):
        if row.any():
            expected += weight * np.outer(unit(damping @ row), unit(damping @ row))
    packed = DampedCoOccurrence(rows, DIRECTION, alpha).total(weights)
    np.testing.assert_allclose(unpack(packed, 5), expected, atol=1e-12)


def test_without_damping_it_is_the_gram_matrix_of_unit_rows():
    rows = random_rows(30, 5, 0.4)
    expected = CoOccurrence(rows, 0.5).total(np.ones(30))
    np.testing.assert_allclose(DampedCoOccurrence(rows, DIRECTION, 1.0).total(np.ones(30)), expected)


@given(alpha=st.floats(0.05, 1.0))
def test_damping_can_be_undone(alpha):
    matrix = np.random.default_rng(0).standard_normal((5, 5))
    matrix += matrix.T
    before = matrix.copy()
    np.testing.assert_allclose(damp(damp(matrix, DIRECTION, alpha), DIRECTION, 1 / alpha), matrix, atol=1e-9)
    np.testing.assert_array_equal(matrix, before)


@settings(max_examples=40, deadline=None)
@given(
    num_items=st.integers(1, 30),
    density=st.sampled_from([0.05, 0.3, 1.0]),
    weight=st.sampled_from([1.0, 0.5, 0.01, 0.0]),
    seed=st.integers(0, 1000),
    alpha=st.sampled_from([0.1, 0.5, 1.0]),
)
def test_removing_a_shopper_moves_the_rounded_sum_by_at_most_her_weight(num_items, density, weight, seed, alpha):
    rng = np.random.default_rng(seed)
    rows, direction = random_rows(12, num_items, density, seed), unit(rng.random(num_items) ** 3 + 1e-9)
    weights = rng.random(12)
    weights[0] = weight
    scale = 2.0**18
    everyone = DampedCoOccurrence(rows, direction, alpha).integers(weights, scale)
    rest = DampedCoOccurrence(rows[1:], direction, alpha).integers(weights[1:], scale)
    assert sum(int(value) ** 2 for value in everyone - rest) <= (scale * weight) ** 2


def test_the_room_for_rounding_is_needed_and_costs_little(monkeypatch):
    """Without it some neighbouring tables differ by more than the bound; with it a sum loses less than a percent."""
    rng, scale = np.random.default_rng(0), 2.0**12
    direction = unit(rng.random(25))
    rows = random_rows(60, 25, 0.3)

    def worst() -> float:
        everyone = DampedCoOccurrence(rows, direction, 0.5).integers(np.ones(60), scale)
        moves = []
        for shopper in range(60):
            rest = DampedCoOccurrence(rows[np.arange(60) != shopper], direction, 0.5).integers(np.ones(59), scale)
            moves.append(float(np.linalg.norm((everyone - rest).astype(float))))
        return max(moves)

    exact = scale * DampedCoOccurrence(rows, direction, 0.5).total(np.ones(60))
    whole = DampedCoOccurrence(rows, direction, 0.5).integers(np.ones(60), scale)
    assert np.linalg.norm(whole - exact) < 0.01 * np.linalg.norm(exact)
    assert worst() <= scale
    monkeypatch.setattr(damped, "_ROUNDING", 0.0)
    assert worst() > scale


def test_a_shopper_whose_weight_is_below_the_rounding_is_left_out():
    rows = random_rows(3, 5, 1.0)
    assert not DampedCoOccurrence(rows, DIRECTION, 0.5).integers(np.full(3, 1e-6), 2.0**18).any()
    assert DampedCoOccurrence(rows, DIRECTION, 0.5).integers(np.ones(3), 2.0**18).shape == (packed_size(5),)
