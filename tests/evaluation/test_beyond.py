"""Figures beyond hits: by hand, as properties, and equal to RecTools' on the same lists."""

import json
from itertools import combinations
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import sparse

from fedrec.errors import DataError
from fedrec.evaluation import beyond, metrics

# Four shoppers, five items; the last list is empty.
LISTS = np.array([[0, 3, 1], [3, 0, -1], [4, -1, -1], [-1, -1, -1]], dtype=np.int32)
POPULARITY = np.array([8, 4, 2, 1, 0])


def test_coverage_counts_each_listed_item_once() -> None:
    assert beyond.exposure(LISTS, 5, k=3).tolist() == [2, 1, 0, 2, 1]
    assert beyond.catalogue_coverage(LISTS, 5, k=3) == pytest.approx(4 / 5)
    assert beyond.catalogue_coverage(LISTS, 5, k=1) == pytest.approx(3 / 5)


def test_gini_by_hand() -> None:
    # exposure 0 1 1 2 2: sum of |a - b| over ordered pairs = 20, over 2 n^2 mean = 2 * 25 * 6/5
    assert beyond.gini(LISTS, 5, k=3) == pytest.approx(20 / 60)
    assert beyond.gini(np.array([[2], [2]]), 4, k=1) == pytest.approx(1 - 1 / 4)
    assert beyond.gini(np.array([[0, 1], [2, 3]]), 4, k=2) == pytest.approx(0)
    assert np.isnan(beyond.gini(np.array([[-1]]), 4, k=1))


def test_novelty_is_the_mean_of_bits_and_an_item_of_nobody_counts_as_one_shoppers() -> None:
    found = beyond.novelty(LISTS, POPULARITY, 16, k=2)
    np.testing.assert_allclose(found[:3], [(1 + 4) / 2, (4 + 1) / 2, 4])
    assert np.isnan(found[3])
    with pytest.raises(DataError, match="num_shoppers = 0"):
        beyond.novelty(LISTS, POPULARITY, 0, k=2)


def test_popularity_figures_by_hand() -> None:
    np.testing.assert_allclose(beyond.average_popularity(LISTS, POPULARITY, k=3)[:3], [13 / 3, 9 / 2, 0])
    np.testing.assert_allclose(beyond.popularity_bias(LISTS, POPULARITY, k=3)[:3], [13 / 9, 9 / 6, 0])
    np.testing.assert_allclose(beyond.head_share(LISTS, POPULARITY, k=3)[:3], [1 / 3, 1 / 2, 0])
    assert np.isnan(beyond.popularity_bias(LISTS, np.zeros(5), k=3)).all()
    assert beyond.head_share(LISTS, np.zeros(5, dtype=int), k=3)[0] == 0


def test_every_item_of_the_catalogue_listed_once_has_no_popularity_bias() -> None:
    assert beyond.popularity_bias(np.arange(5)[None, :], POPULARITY, k=5) == pytest.approx([1.0])


def test_serendipity_by_hand() -> None:
    hits = np.array([[True, True, False], [True, False, False], [True, False, False], [False] * 3])
    # P_list = 1, 4/5, 3/5; P_popular of items 0 to 4 = 1, 4/5, 3/5, 2/5, 0
    expected = [(0 + (4 / 5 - 2 / 5)) / 3, (1 - 2 / 5) / 2, 1.0, 0.0]
    np.testing.assert_allclose(beyond.serendipity(LISTS, hits, POPULARITY, k=3), expected)


def test_diversity_by_hand() -> None:
    content = sparse.csr_matrix(np.array([[2.0, 0], [0, 5], [1, 1], [3, 0], [0, 0]]))
    # cosines: (0,3) = 1, (0,1) = (3,1) = 0; an item without content is at distance 1
    np.testing.assert_allclose(beyond.intra_list_diversity(LISTS, content, k=3), [2 / 3, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(beyond.intra_list_diversity(np.array([[2, 0], [4, 0]]), content, k=2), [1 - 2**-0.5, 1])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**9), num_items=st.integers(2, 25), k=st.integers(1, 12))
def test_diversity_is_the_plain_mean_over_pairs(seed: int, num_items: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    content = rng.normal(size=(num_items, 4)) * (rng.random((num_items, 4)) < 0.6)
    lists = np.argsort(rng.random((6, num_items)), axis=1).astype(np.int32)
    found = beyond.intra_list_diversity(lists, sparse.csr_matrix(content), k=k)
    norms = np.linalg.norm(content, axis=1)
    for row in range(6):
        pairs = list(combinations(lists[row, :k], 2))
        distances = [
            1 - (content[a] @ content[b] / (norms[a] * norms[b]) if norms[a] * norms[b] > 0 else 0.0) for a, b in pairs
        ]
        assert found[row] == pytest.approx(np.mean(distances) if pairs else 0.0, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**9), num_items=st.integers(1, 30))
def test_gini_is_half_the_relative_mean_difference(seed: int, num_items: int) -> None:
    rng = np.random.default_rng(seed)
    lists = rng.integers(0, num_items, (9, 3))
    counts = np.bincount(lists.ravel(), minlength=num_items)
    plain = np.abs(counts[:, None] - counts[None, :]).sum() / (2 * num_items**2 * counts.mean())
    assert beyond.gini(lists, num_items, k=3) == pytest.approx(plain)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_figures_equal_those_of_rectools_on_the_same_lists(k: int) -> None:
    vectors = json.loads((Path(__file__).parents[1] / "vectors" / "rectools.json").read_text())
    data = {name: np.array(values) for name, values in vectors["data"].items()}
    theirs = vectors["figures"][str(k)]
    lists, train, test = data["lists"], data["train"], sparse.csr_matrix(data["test"])
    num_shoppers, num_items = train.shape
    popularity = train.sum(axis=0)
    hits, relevant = metrics.hit_matrix(lists, test), metrics.relevant_counts(test)
    one_hot = sparse.csr_matrix(np.eye(4)[data["category"]])
    ours = {
        "hit_rate": metrics.hit_rate(hits, k=k),
        "recall": metrics.recall(hits, relevant, k=k),
        "ndcg": metrics.ndcg(hits, relevant, k=k),
        "mrr": metrics.mrr(hits, k=k),
        "novelty": beyond.novelty(lists, popularity, num_shoppers, k=k),
        "serendipity": beyond.serendipity(lists, hits, popularity, k=k),
        "popularity": beyond.average_popularity(lists, popularity, k=k),
        "popularity_normalised": beyond.popularity_bias(lists, popularity, k=k) / num_items,
        "diversity_cosine": beyond.intra_list_diversity(lists, sparse.csr_matrix(data["content"]), k=k),
        # one category an item: two categories differ in two places of a one-hot row
        "diversity_category_hamming": 2 * beyond.intra_list_diversity(lists, one_hot, k=k),
        "coverage": np.array(beyond.catalogue_coverage(lists, num_items, k=k)),
    }
    assert set(ours) == set(theirs)
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], rtol=0, atol=1e-9, err_msg=name)
