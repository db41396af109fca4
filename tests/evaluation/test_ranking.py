"""Ranked lists against a plain sort, and the seeded tie key."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import sparse

from fedrec.errors import ConfigError, DataError
from fedrec.evaluation.ranking import top_items


def nothing_known(shape: tuple[int, int]) -> sparse.csr_matrix:
    return sparse.csr_matrix(shape, dtype=np.float32)


def test_lists_hold_the_best_unknown_items_in_order() -> None:
    scores = np.array([[0.1, 0.9, 0.5, 0.7], [4.0, 3.0, 2.0, 1.0]], dtype=np.float32)
    known = sparse.csr_matrix(np.array([[0, 1, 0, 0], [0, 0, 0, 0]], dtype=np.float32))
    items, listed = top_items(scores, known, 3, seed=0)
    assert items.tolist() == [[3, 2, 0], [0, 1, 2]]
    assert items.dtype == np.int32
    np.testing.assert_array_equal(listed, np.array([[0.7, 0.5, 0.1], [4, 3, 2]], dtype=np.float32))
    assert listed.dtype == np.float32


def test_places_without_an_item_are_filled_with_minus_one() -> None:
    scores = np.array([[0.1, -np.inf, 0.5], [1, 2, 3]], dtype=np.float32)
    known = sparse.csr_matrix(np.array([[0, 0, 1], [1, 1, 1]], dtype=np.float32))
    items, listed = top_items(scores, known, 5, seed=0)
    assert items.tolist() == [[0, -1, -1, -1, -1], [-1] * 5]
    assert np.isneginf(listed[1]).all()
    assert np.isneginf(listed[0, 1:]).all()


def test_an_explicit_zero_is_not_a_known_item() -> None:
    known = sparse.csr_matrix((np.zeros(1, dtype=np.float32), ([0], [1])), shape=(1, 2))
    items, _ = top_items(np.array([[1, 2]], dtype=np.float32), known, 1, seed=0)
    assert items.tolist() == [[1]]


def test_scores_given_are_not_changed() -> None:
    scores = np.array([[1, 2, 3]], dtype=np.float32)
    top_items(scores, sparse.csr_matrix(np.ones((1, 3))), 2, seed=0)
    assert scores.tolist() == [[1, 2, 3]]


def test_a_catalogue_without_items_gives_empty_lists() -> None:
    items, _ = top_items(np.zeros((2, 0), dtype=np.float32), nothing_known((2, 0)), 3, seed=0)
    assert items.tolist() == [[-1] * 3] * 2


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 6),
    num_items=st.integers(1, 300),
    k=st.integers(1, 12),
    levels=st.integers(1, 40),
    seed=st.integers(0, 2**63),
)
def test_lists_are_a_full_sort_with_ties_in_any_order(
    num_rows: int, num_items: int, k: int, levels: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (num_rows, num_items)).astype(np.float32)
    known = sparse.random(num_rows, num_items, 0.2, format="csr", rng=rng, dtype=np.float32)
    items, listed = top_items(scores, known, k, seed=seed)
    for row in range(num_rows):
        allowed = np.setdiff1d(np.arange(num_items), known[row].indices)
        expected = np.sort(scores[row, allowed])[::-1][:k]
        found = items[row][items[row] >= 0]
        assert len(found) == len(expected) == len(set(found.tolist()))
        assert set(found.tolist()) <= set(allowed.tolist())
        np.testing.assert_array_equal(scores[row, found], expected)
        np.testing.assert_array_equal(listed[row, : len(found)], expected)


@pytest.mark.parametrize("levels", [1, 3, 400])
def test_lists_do_not_depend_on_how_rows_are_batched(levels: int) -> None:
    rng = np.random.default_rng(3)
    scores = rng.integers(0, levels, (40, 900)).astype(np.float32)
    known = sparse.random(40, 900, 0.05, format="csr", rng=rng)
    ids = rng.permutation(1000)[:40]
    whole, _ = top_items(scores, known, 10, seed=5, row_ids=ids)
    cut = [
        top_items(scores[r : r + 7], known[r : r + 7], 10, seed=5, row_ids=ids[r : r + 7])[0] for r in range(0, 40, 7)
    ]
    np.testing.assert_array_equal(whole, np.concatenate(cut))
    np.testing.assert_array_equal(whole, top_items(scores, known, 10, seed=5, row_ids=ids)[0])


@pytest.mark.parametrize("num_items", [20, 400])
def test_each_tied_item_is_as_likely_to_be_listed_at_the_last_place(num_items: int) -> None:
    """Chi-square over 6,000 rows, df num_items - 2; false alarm about 1e-4."""
    num_rows = 6000
    scores = np.zeros((num_rows, num_items), dtype=np.float32)
    scores[:, 7] = 1.0
    items, _ = top_items(scores, nothing_known(scores.shape), 3, seed=11)
    assert (items[:, 0] == 7).all()
    for place in (1, 2):
        counts = np.delete(np.bincount(items[:, place], minlength=num_items), 7)
        expected = num_rows / (num_items - 1)
        statistic = ((counts - expected) ** 2 / expected).sum()
        degrees = num_items - 2
        assert abs(statistic - degrees) < 4 * np.sqrt(2 * degrees)


def test_another_seed_or_row_id_breaks_ties_another_way() -> None:
    scores = np.zeros((1, 50), dtype=np.float32)
    known = nothing_known((1, 50))
    lists = {
        tuple(top_items(scores, known, 5, seed=seed, row_ids=np.array([row]))[0][0].tolist())
        for seed in (0, 1)
        for row in (0, 1)
    }
    assert len(lists) == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_cannot_be_ranked_is_refused(bad: float) -> None:
    with pytest.raises(DataError, match="NaN or"):
        top_items(np.array([[0.0, bad]], dtype=np.float32), nothing_known((1, 2)), 1, seed=0)


def test_bad_shapes_and_settings_are_refused() -> None:
    scores = np.zeros((2, 3), dtype=np.float32)
    with pytest.raises(DataError, match="agree"):
        top_items(scores, nothing_known((3, 2)), 1, seed=0)
    with pytest.raises(DataError, match="row_ids"):
        top_items(scores, nothing_known((2, 3)), 1, seed=0, row_ids=np.arange(3))
    with pytest.raises(ConfigError, match="k = 0"):
        top_items(scores, nothing_known((2, 3)), 0, seed=0)
    with pytest.raises(ConfigError, match="seed"):
        top_items(scores, nothing_known((2, 3)), 1, seed=-1)
