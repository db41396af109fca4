import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from fedrec.models import co_occurrence
from fedrec.models.co_occurrence import (
    CoOccurrence,
    packed_diagonal,
    packed_size,
    take_packed,
    unpack,
    unpack_lower,
)


def random_rows(num_shoppers: int, num_items: int, density: float, seed: int = 0) -> sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    return sparse.csr_matrix((rng.random((num_shoppers, num_items)) < density).astype(np.float32))


def test_packed_form_by_hand():
    rows = sparse.csr_matrix(np.array([[1, 1, 0], [1, 1, 1]], np.float32))
    packed = CoOccurrence(rows).total(np.array([1.0, 1.0]))
    root = np.sqrt(2)
    np.testing.assert_allclose(packed, [2, 2 * root, root, 2, root, 1])
    np.testing.assert_array_equal(packed_diagonal(packed, 3), [2, 2, 1])


def test_norm_of_a_contribution_is_the_squared_norm_of_the_row():
    rows = random_rows(9, 7, 0.5)
    for exponent in (0.0, 0.25, 0.5):
        contributions = CoOccurrence(rows, exponent)
        for shopper, norm in enumerate(contributions.norms()):
            n = rows[shopper].nnz
            x = rows[shopper].toarray()[0] * max(n, 1) ** -exponent
            np.testing.assert_allclose(norm, x @ x)
            np.testing.assert_allclose(np.linalg.norm(contributions.total(np.eye(9)[shopper])), x @ x)
    assert CoOccurrence(rows, 0.5).norms().max() == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(
    num_shoppers=st.integers(0, 12),
    num_items=st.integers(0, 15),
    density=st.sampled_from([0.05, 0.3, 0.9]),
    exponent=st.sampled_from([0.0, 0.5]),
    is_weighted=st.booleans(),
    pair_cost=st.sampled_from([0.0, 5.0, 1e9]),
)
def test_sum_is_the_gram_matrix_by_either_way(num_shoppers, num_items, density, exponent, is_weighted, pair_cost):
    rows = random_rows(num_shoppers, num_items, density)
    rng = np.random.default_rng(1)
    weights = rng.uniform(-1, 1, num_shoppers) if is_weighted else np.ones(num_shoppers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(co_occurrence, "_MACS_PER_PAIR", pair_cost)
        packed = CoOccurrence(rows, exponent).total(weights)
    dense = rows.toarray().astype(np.float64)
    scale = np.maximum(dense.sum(axis=1), 1) ** (-2 * exponent) * weights
    expected = dense.T @ (scale[:, None] * dense)
    np.testing.assert_allclose(unpack(packed, num_items), expected, atol=1e-12)
    np.testing.assert_allclose(np.tril(unpack_lower(packed, num_items)), np.tril(expected), atol=1e-12)


def test_counts_are_whole_numbers_in_every_mixture_of_both_ways(monkeypatch):
    rows = random_rows(300, 80, 0.2)
    packed = CoOccurrence(rows).total(np.ones(300))
    for pair_cost in (20, 100):
        monkeypatch.setattr(co_occurrence, "_MACS_PER_PAIR", pair_cost)
        is_dense = co_occurrence._is_dense(np.diff(rows.indptr), 80)
        assert 0 < is_dense.sum() <= 300
        np.testing.assert_array_equal(CoOccurrence(rows).total(np.ones(300)), packed)


def test_dense_sums_go_on_from_block_to_block(monkeypatch):
    rows = random_rows(50, 12, 0.5)
    monkeypatch.setattr(co_occurrence, "_MACS_PER_PAIR", 1e9)
    expected = CoOccurrence(rows).total(np.ones(50))
    monkeypatch.setattr(co_occurrence, "_DENSE_BYTES", 200)
    np.testing.assert_array_equal(CoOccurrence(rows).total(np.ones(50)), expected)


def test_many_items_unpack_across_block_borders():
    rows = random_rows(40, 1100, 0.02)
    matrix = unpack(CoOccurrence(rows).total(np.ones(40)), 1100)
    np.testing.assert_allclose(matrix, (rows.T @ rows).toarray(), atol=1e-12)


@given(order=st.permutations([0, 1, 2, 3, -1, -1]), size=st.integers(0, 6))
def test_taking_items_is_taking_rows_and_columns(order, size):
    packed = np.arange(1.0, packed_size(4) + 1)
    positions = np.array(order[:size], dtype=np.int64)
    matrix = np.zeros((5, 5))
    matrix[:4, :4] = unpack(packed, 4)
    expected = matrix[np.ix_(positions, positions)]
    np.testing.assert_allclose(unpack(take_packed(packed, 4, positions), size), expected)


def truncated_one_by_one(rows: sparse.csr_matrix, exponent: float, weights: np.ndarray, scale: float) -> np.ndarray:
    """Each shopper's packed vector written out, rounded and added in Python's whole numbers."""
    first, second = np.triu_indices(rows.shape[1])
    total = np.zeros(len(first), dtype=object)
    for row, weight in zip(rows.toarray().astype(np.float64), weights, strict=True):
        on_diagonal = scale * (weight * (float(row.sum()) ** (-2 * exponent) if row.any() else 0.0))
        values = np.where(first == second, on_diagonal, np.sqrt(2.0) * on_diagonal) * row[first] * row[second]
        total += np.array([int(value) for value in np.trunc(values)], dtype=object)
    return total.astype(np.int64)


@settings(max_examples=40, deadline=None)
@given(
    num_shoppers=st.integers(0, 12),
    num_items=st.integers(0, 15),
    density=st.sampled_from([0.05, 0.3, 0.9]),
    exponent=st.sampled_from([0.0, 0.5]),
    scale=st.sampled_from([0.9, 1000.0, 2.0**18, 2.0**47]),
    pair_cost=st.sampled_from([0.0, 5.0, 1e9]),
)
def test_integers_are_exact_by_either_way(num_shoppers, num_items, density, exponent, scale, pair_cost):
    rows = random_rows(num_shoppers, num_items, density)
    weights = np.random.default_rng(1).random(num_shoppers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(co_occurrence, "_MACS_PER_PAIR", pair_cost)
        whole = CoOccurrence(rows, exponent).integers(weights, scale)
    np.testing.assert_array_equal(whole, truncated_one_by_one(rows, exponent, weights, scale))


def test_integers_stay_exact_when_the_sum_is_made_in_parts(monkeypatch):
    rows, weights = random_rows(500, 20, 0.5), np.random.default_rng(1).random(500)
    monkeypatch.setattr(co_occurrence, "_MACS_PER_PAIR", 1e9)
    assert co_occurrence._exact_rows(2.0**40) < 50
    whole = CoOccurrence(rows, 0.5).integers(weights, 2.0**43)
    np.testing.assert_array_equal(whole, truncated_one_by_one(rows, 0.5, weights, 2.0**43))
