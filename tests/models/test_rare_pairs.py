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
from fedrec.models.rare_pairs import gram_without_rare_pairs, solve_without, without_rare_pairs
from fedrec.models.recommender import PublicInputs
from fedrec.models.whole_space import WholeSpace, whole_space_scorer
from fedrec.shop.personalise import ShopPersonalisation
from fedrec.shop.version import local_scorer

TABLES = arrays.arrays(np.float32, (7, 5), elements=st.sampled_from([0.0, 1.0]))


def dropped(table: np.ndarray, least: int, given_back: float, exponent: float = 0.0) -> np.ndarray:
    rows = sparse.csr_matrix(table)
    packed = CoOccurrence(rows, exponent).total(np.ones(len(table)))
    return unpack(without_rare_pairs(packed, rows, least_shoppers=least, given_back=given_back), table.shape[1])


def test_by_hand():
    table = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]], np.float32)
    assert dropped(table, 2, 0.0) == pytest.approx(np.array([[3, 2, 0], [2, 2, 0], [0, 0, 1]]))
    assert dropped(table, 2, 1.0) == pytest.approx(np.array([[4, 2, 0], [2, 3, 0], [0, 0, 3]]))


@given(table=TABLES, least=st.integers(1, 4), exponent=st.sampled_from([0.0, 0.5]))
@settings(max_examples=60, deadline=None)
def test_common_pairs_stay_rare_ones_go_and_all_given_back_is_a_gram_matrix_again(table, least, exponent):
    counts, whole = table.T @ table, dropped(table, 1, 0.0, exponent)
    kept = dropped(table, least, 1.0, exponent)
    off = ~np.eye(5, dtype=bool)
    assert (kept[off & (counts < least)] == 0).all()
    assert kept[off & (counts >= least)] == pytest.approx(whole[off & (counts >= least)])
    assert np.linalg.eigvalsh(kept).min() > -1e-6
    if exponent == 0:
        gram = gram_without_rare_pairs(sparse.csr_matrix(table), least_shoppers=least, given_back=1.0)
        assert gram == pytest.approx(kept)


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
def test_the_served_weights_do_not_move_with_a_pair_of_two_shoppers(kind):
    """Two shoppers have items 0 and 1, which nobody else has together; as if each had bought one of them elsewhere."""
    rng = np.random.default_rng(0)
    others = np.zeros((30, 8), np.float32)
    others[:15, [0, 2, 3]] = 1
    others[15:, [1, 4, 5]] = 1
    others[:, 6] = rng.random(30) < 0.5
    together, apart = np.zeros((2, 8), np.float32), np.zeros((4, 8), np.float32)
    together[:, :2] = 1
    apart[:2, 0], apart[2:, 1] = 1, 1
    public = PublicInputs(np.array(list("abcdefgh")))
    found = []
    for rare, least in ((together, 3), (apart, 3), (together, 1)):
        rows = sparse.csr_matrix(np.concatenate([others, rare]))
        if kind == "local":
            scorer = local_scorer(rows, public, ShopPersonalisation(own_statistics_min_shoppers=least))
        else:
            space = WholeSpace(public)
            scorer = whole_space_scorer(space, np.arange(8), rows, public, least_shoppers=least)
        found.append(np.sign(np.round(np.asarray(scorer.weights)[0, 1], 6)))
    assert found[0] == found[1]
    assert found[2] > found[0]
