"""Metrics by hand, as properties, and equal to ranx on the same lists."""

import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import sparse

from fedrec.errors import ConfigError, DataError
from fedrec.evaluation.metrics import capped_recall, hit_matrix, hit_rate, mrr, ndcg, recall, relevant_counts

# Three shoppers, five items: lists and what each took.
LISTS = np.array([[4, 0, 2], [1, 3, -1], [2, 4, 0]], dtype=np.int32)
TAKEN = sparse.csr_matrix(np.array([[1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0, 1, 0, 1, 0]], dtype=np.float32))
HITS = [[False, True, True], [True, False, False], [False, False, False]]


def test_hits_are_found_at_their_places() -> None:
    assert hit_matrix(LISTS, TAKEN).tolist() == HITS


def test_figures_by_hand() -> None:
    hits, relevant = hit_matrix(LISTS, TAKEN), relevant_counts(TAKEN)
    assert relevant.tolist() == [3, 1, 2]
    assert hit_rate(hits, k=1).tolist() == [0, 1, 0]
    assert hit_rate(hits, k=3).tolist() == [1, 1, 0]
    np.testing.assert_allclose(recall(hits, relevant, k=3), [2 / 3, 1, 0])
    np.testing.assert_allclose(recall(hits, relevant, k=2), [1 / 3, 1, 0])
    np.testing.assert_allclose(capped_recall(hits, relevant, k=2), [1 / 2, 1, 0])
    second, third = 1 / np.log2(3), 1 / np.log2(4)
    np.testing.assert_allclose(ndcg(hits, relevant, k=3), [(second + third) / (1 + second + third), 1, 0])
    np.testing.assert_allclose(ndcg(hits, relevant, k=2), [second / (1 + second), 1, 0])
    np.testing.assert_allclose(mrr(hits, k=3), [1 / 2, 1, 0])
    np.testing.assert_allclose(mrr(hits, k=1), [0, 1, 0])


def test_a_test_item_that_the_shop_does_not_have_is_a_miss() -> None:
    hits = hit_matrix(LISTS, TAKEN)
    counts = relevant_counts(TAKEN, missing=np.array([1, 1, 0]))
    assert counts.tolist() == [4, 2, 2]
    np.testing.assert_allclose(recall(hits, counts, k=3), [2 / 4, 1 / 2, 0])
    np.testing.assert_allclose(ndcg(hits, counts, k=3)[1], 1 / (1 + 1 / np.log2(3)))


def test_repeated_and_zero_entries_are_counted_as_what_they_are() -> None:
    data = np.array([1, 1, 0], dtype=np.float32)
    taken = sparse.csr_matrix((data, np.array([2, 2, 0]), np.array([0, 3])), shape=(1, 4))
    assert relevant_counts(taken).tolist() == [1]
    assert hit_matrix(np.array([[0, 2]]), taken).tolist() == [[False, True]]


def test_a_list_longer_than_k_is_cut_and_a_shorter_one_taken_as_it_is() -> None:
    hits = np.array([[True, False]])
    relevant = np.array([3])
    np.testing.assert_allclose(ndcg(hits, relevant, k=10), 1 / (1 + 1 / np.log2(3) + 1 / 2))
    np.testing.assert_allclose(recall(hits, relevant, k=10), 1 / 3)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(DataError, match="without test items"):
        recall(np.array([[False]]), np.array([0]), k=1)
    with pytest.raises(ConfigError, match="k = 0"):
        mrr(np.array([[False]]), k=0)
    with pytest.raises(DataError, match="names item"):
        hit_matrix(np.array([[5], [0], [0]]), TAKEN)
    with pytest.raises(DataError, match="do not fit"):
        hit_matrix(LISTS[:2], TAKEN)


def random_case(seed: int, num_rows: int, num_items: int, length: int) -> tuple[np.ndarray, sparse.csr_matrix]:
    """Random lists without repeats, and 1 to 30 test items per row."""
    rng = np.random.default_rng(seed)
    lists = np.argsort(rng.random((num_rows, num_items)), axis=1)[:, :length].astype(np.int32)
    rows, columns = [], []
    for row in range(num_rows):
        size = int(rng.integers(1, min(30, num_items) + 1))
        columns.append(rng.choice(num_items, size, replace=False))
        rows.append(np.full(size, row))
    places = (np.concatenate(rows), np.concatenate(columns))
    return lists, sparse.csr_matrix((np.ones(len(places[0])), places), shape=(num_rows, num_items))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**9), num_items=st.integers(2, 60), k=st.integers(1, 20))
def test_figures_lie_in_the_unit_interval_and_agree_with_each_other(seed: int, num_items: int, k: int) -> None:
    lists, taken = random_case(seed, 5, num_items, min(num_items, 20))
    hits, relevant = hit_matrix(lists, taken), relevant_counts(taken)
    hit, full, capped = hit_rate(hits, k=k), recall(hits, relevant, k=k), capped_recall(hits, relevant, k=k)
    gain, reciprocal = ndcg(hits, relevant, k=k), mrr(hits, k=k)
    for values in (hit, full, capped, gain, reciprocal):
        assert ((values >= 0) & (values <= 1)).all()
        assert ((values > 0) == (hit > 0)).all()
    assert (full <= capped).all()
    assert (reciprocal <= hit).all()


def test_the_ideal_list_scores_one() -> None:
    _, taken = random_case(1, 30, 40, 5)
    ideal = np.full((30, 30), -1, dtype=np.int32)
    for row in range(30):
        found = taken[row].indices
        ideal[row, : len(found)] = found
    hits, relevant = hit_matrix(ideal, taken), relevant_counts(taken)
    for k in (1, 10, 30):
        np.testing.assert_allclose(ndcg(hits, relevant, k=k), 1)
        np.testing.assert_allclose(capped_recall(hits, relevant, k=k), 1)


def test_figures_equal_those_of_ranx_on_the_same_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # compiling takes 30 s, running these lists uncompiled 1 s
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ranx import Qrels, Run, evaluate

        lists, taken = random_case(7, 60, 200, 50)
        lists[3, 20:] = -1
        lists[5, 4:] = -1
        qrels = Qrels({f"u{row:03}": {str(item): 1 for item in taken[row].indices} for row in range(60)})
        run = Run(
            {
                f"u{row:03}": {str(item): 1.0 / (place + 1) for place, item in enumerate(lists[row]) if item >= 0}
                for row in range(60)
            }
        )
        hits, relevant = hit_matrix(lists, taken), relevant_counts(taken)
        for k in (10, 20, 50):
            theirs = evaluate(qrels, run, [f"hit_rate@{k}", f"recall@{k}", f"ndcg@{k}", f"mrr@{k}"], return_mean=False)
            np.testing.assert_allclose(hit_rate(hits, k=k), theirs[f"hit_rate@{k}"], atol=1e-12)
            np.testing.assert_allclose(recall(hits, relevant, k=k), theirs[f"recall@{k}"], atol=1e-12)
            np.testing.assert_allclose(ndcg(hits, relevant, k=k), theirs[f"ndcg@{k}"], atol=1e-12)
            np.testing.assert_allclose(mrr(hits, k=k), theirs[f"mrr@{k}"], atol=1e-12)
