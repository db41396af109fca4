"""Pairs of too few shoppers leave no trace off the diagonal, and what is left can be solved."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import sparse

from fedrec.errors import ConfigError, NotPositiveDefinite
from fedrec.models.co_occurrence import CoOccurrence, unpack
from fedrec.models.rare_pairs import by_chance, gram_without_rare_pairs, solve_without, without_rare_pairs
from fedrec.models.recommender import PublicInputs
from fedrec.models.whole_space import WholeSpace, whole_space_scorer
from fedrec.shop.personalise import ShopPersonalisation
from fedrec.shop.version import local_scorer

TABLES = arrays.arrays(np.float32, (7, 5), elements=st.sampled_from([0.0, 1.0]))


def replaced(table: np.ndarray, least: int, given_back: float = 0.0, exponent: float = 0.0) -> np.ndarray:
    rows = sparse.csr_matrix(table)
    packed = CoOccurrence(rows, exponent).total(np.ones(len(table)))
    kept = without_rare_pairs(packed, rows, least_shoppers=least, given_back=given_back, exponent=exponent)
    return unpack(kept, table.shape[1])


def test_by_hand():
    """Shoppers of 2, 3 and 1 items: 14 / 36 of the product of two items' counts is what chance gives a pair."""
    table = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]], np.float32)
    first, second = (rate / (1 + rate) for rate in (3 * 14 / 36, 2 * 14 / 36))  # c < 2: 0 or 1
    expected = np.array([[3, 2, first], [2, 2, second], [first, second, 1]])
    assert replaced(table, 2) == pytest.approx(expected)
    given = replaced(table, 2, 1.0) - expected  # both rare pairs were seen once
    assert given == pytest.approx(np.diag([1 - first, 1 - second, 2 - first - second]))
    pair = (4 ** (1 - 0.5) + 9 ** (1 - 0.5) + 1) / 14  # what a pair counts on average where rows have norm 1
    assert replaced(table, 2, exponent=0.5)[0, 2] == pytest.approx(first * pair)


def test_chance_is_the_mean_of_a_poisson_count_below_the_limit():
    assert by_chance(np.array([0.0, 1.0, 1e6]), 3) == pytest.approx([0.0, (1 + 1) / (1 + 1 + 0.5), 2.0], abs=1e-5)
    assert by_chance(np.array([3.0]), 1).tolist() == [0.0]


@given(table=TABLES, least=st.integers(1, 4), exponent=st.sampled_from([0.0, 0.5]))
@settings(max_examples=60, deadline=None)
def test_common_pairs_stay_and_all_given_back_is_positive_again(table, least, exponent):
    counts, whole = table.T @ table, replaced(table, 1, 0.0, exponent)
    kept = replaced(table, least, 1.0, exponent)
    off = ~np.eye(5, dtype=bool)
    assert kept[off & (counts >= least)] == pytest.approx(whole[off & (counts >= least)])
    assert np.linalg.eigvalsh(kept).min() > -1e-6
    if exponent == 0:
        gram = gram_without_rare_pairs(sparse.csr_matrix(table), least_shoppers=least, given_back=1.0, value=2.0)
        assert gram == pytest.approx(2 * kept)


@given(table=TABLES, rng=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_a_rare_pair_is_not_read(table, rng):
    """Two tables with the same counts of items and lengths of rows, and pairs that differ only below the limit."""
    moved = table.copy()
    for _ in range(5):  # swap two purchases between two shoppers, as far as only rare pairs change
        (u, v), (i, j) = rng.sample(range(7), 2), rng.sample(range(5), 2)
        if moved[u, i] > moved[v, i] and moved[v, j] > moved[u, j]:
            moved[[u, v, v, u], [i, i, j, j]] = [0, 1, 0, 1]
    least = int(max((table.T @ table)[~np.eye(5, dtype=bool)].max(), (moved.T @ moved)[~np.eye(5, dtype=bool)].max()))
    assert replaced(moved, least + 1) == pytest.approx(replaced(table, least + 1))


def test_more_is_given_back_until_it_can_be_solved():
    tried = []

    def solve(given_back: float) -> str:
        tried.append(given_back)
        if given_back < 1:
            raise NotPositiveDefinite("no")
        return "solved"

    assert solve_without(solve) == "solved"
    assert tried == [0.0, 0.25, 1.0]
    with pytest.raises(ConfigError, match="least_shoppers"):
        without_rare_pairs(np.zeros(1), sparse.csr_matrix((1, 1)), least_shoppers=0, given_back=0.0)


@pytest.mark.parametrize("kind", ["local", "whole space"])
def test_the_served_weights_do_not_move_with_what_two_shoppers_have_in_common(kind):
    """Two shoppers have item 0, two item 1; whether they are the same two shows in no weight."""
    others = (np.random.default_rng(0).random((30, 8)) < 0.4).astype(np.float32)
    others[:, :4] = 0
    together, apart = np.zeros((4, 8), np.float32), np.zeros((4, 8), np.float32)
    together[:2, :2], together[2:, 2:4] = 1, 1
    apart[:, :4] = [[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]]
    public = PublicInputs(np.array(list("abcdefgh")))
    found = []
    for rare, least in ((together, 3), (apart, 3), (together, 1), (apart, 1)):
        rows = sparse.csr_matrix(np.concatenate([others, rare]))
        if kind == "local":
            scorer = local_scorer(rows, public, ShopPersonalisation(own_statistics_min_shoppers=least))
        else:
            scorer = whole_space_scorer(WholeSpace(public), np.arange(8), rows, public, least_shoppers=least)
        found.append(float(np.asarray(scorer.weights)[0, 1]))
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert found[2] > found[3] + 0.01
