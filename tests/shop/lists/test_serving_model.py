"""What is served is what was trained, cut to the strongest weights, and its scores can be taken apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from fedrec.errors import ConfigError, DataError
from fedrec.models.content import content_features
from fedrec.models.ease import Ease, EaseSettings
from fedrec.models.popularity import PopularityScorer
from fedrec.models.recommender import PublicInputs, Scorer, train_alone
from fedrec.models.whole_space import WholeSpace, whole_space_scorer
from fedrec.shop.lists.neighbours import Neighbours
from fedrec.shop.lists.serving_model import Attribution, Dense, ItemItem, serving_model
from fedrec.shop.personalise import BlendedScorer, ContentScorer

from .shelves import RAW, linear

NUM_ITEMS = 13
ITEMS = np.array([f"item-{place:02d}" for place in range(NUM_ITEMS)])
TITLES = [f"{'red' if place % 3 else 'blue'} {'lamp' if place % 2 else 'chair'}" for place in range(NUM_ITEMS)]
TITLES[11] = ""
PUBLIC = PublicInputs(ITEMS, content_features(TITLES, ["x" if place < 5 else "" for place in range(NUM_ITEMS)]))
ROWS = sparse.csr_matrix((np.random.default_rng(3).random((40, NUM_ITEMS)) < 0.3).astype(np.float32))
COUNTS = np.asarray(ROWS.sum(axis=0), np.float64).ravel()


def trained(**chosen: object) -> Scorer:
    model = Ease(EaseSettings(**chosen))  # type: ignore[arg-type]
    return model.fit(train_alone(model, ROWS, PUBLIC), PUBLIC)


class Squares:
    """Not linear: two items together say more than both alone."""

    def scores(self, histories: sparse.csr_matrix) -> np.ndarray:
        table = histories.toarray()
        return np.cumsum(table, axis=1) ** 2 + table.sum(axis=1, keepdims=True)

    def restrict(self, positions: np.ndarray, public: PublicInputs) -> Scorer:
        raise NotImplementedError


EASE = trained()
BLEND = BlendedScorer(((0.5, EASE), (0.25, ContentScorer(PUBLIC)), (0.25, PopularityScorer(COUNTS))), NUM_ITEMS)
WIDE = whole_space_scorer(WholeSpace(PUBLIC), np.arange(NUM_ITEMS), ROWS, PUBLIC)
LINEAR = {
    "ease": EASE,
    "wide": WIDE,
    "with a tail": trained(max_items=7),
    "blend": BLEND,
    "popularity": PopularityScorer(COUNTS),
}
SCORERS = {**LINEAR, "dense": Squares()}
MODELS = {name: serving_model(scorer, ITEMS, COUNTS, RAW) for name, scorer in SCORERS.items()}
HISTORIES = st.lists(st.integers(0, NUM_ITEMS - 1), unique=True, max_size=NUM_ITEMS)


def row_of(history: list[int], strengths: list[float]) -> sparse.csr_matrix:
    table = np.zeros((1, NUM_ITEMS), np.float32)
    table[0, history] = strengths
    return sparse.csr_matrix(table)


def test_scores_by_hand():
    model = linear([[0, 2, -1], [3, 0, 0.5], [0, 4, 0]], [10, 20, 30])
    scores = model.scores(np.array([0, 1]), np.array([1.0, 0.5]))
    assert scores == pytest.approx([0.01 + 1.5, 0.02 + 2.0, 0.03 - 1.0 + 0.25])
    parts = model.parts(np.array([0, 1]), np.array([1.0, 0.5]), np.array([2, 1]))
    assert parts.base == pytest.approx([0.03, 0.02])
    assert parts.contributions == pytest.approx(np.array([[-1.0, 0.25], [2.0, 0.0]]))
    assert model.reach(np.array([2]), np.array([1, 2, 0])).tolist() == [True, False, False]


def test_the_strongest_weights_stay_and_negative_ones_count_by_size():
    square = np.array([[0, 1, -5, 2, 3], [1, 0, 1, 1, 1], [0, 0, 0, 0, 7], [0, 0, 0, 0, 0], [9, 8, 7, 6, 0]])
    kept = Neighbours.strongest([square[:2], square[2:]], 5, 2)
    assert kept.items.tolist() == [[4, 2], [0, 2], [4, 2], [3, 3], [0, 1]]
    assert kept.weights.tolist() == [[3, -5], [1, 1], [7, 0], [0, 0], [9, 8]]


@pytest.mark.parametrize("name", LINEAR)
@given(history=HISTORIES)
@settings(max_examples=30, deadline=None)
def test_without_a_cut_the_served_scores_are_the_models(name, history):
    model, scorer = MODELS[name], SCORERS[name]
    assert isinstance(model, ItemItem)
    scores = model.scores(np.array(history, np.int64), np.ones(len(history)))
    expected = scorer.scores(row_of(history, [1.0] * len(history)))[0]
    knows = np.ones(NUM_ITEMS, bool)
    knows[11] = name != "with a tail"  # neither statistics nor words: the scorer can only place it last
    assert scores[knows] == pytest.approx(expected[knows], abs=2e-5)


@pytest.mark.parametrize("name", MODELS)
@given(
    history=HISTORIES,
    seed=st.integers(0, 1000),
    candidates=st.lists(st.integers(0, NUM_ITEMS - 1), unique=True, min_size=1),
)
@settings(max_examples=30, deadline=None)
def test_base_and_contributions_sum_to_the_score(name, history, seed, candidates):
    model = MODELS[name]
    strengths = np.random.default_rng(seed).uniform(0.1, 1, len(history))
    places, asked = np.array(history, np.int64), np.array(candidates, np.int64)
    parts = model.parts(places, strengths, asked)
    assert parts.contributions.shape == (len(candidates), len(history))
    scores = model.scores(places, strengths)[asked]
    assert parts.base + parts.contributions.sum(axis=1) == pytest.approx(scores, rel=1e-9, abs=1e-9)
    assert parts.attribution is (Attribution.LEAVE_ONE_OUT if name == "dense" else Attribution.EXACT)


def test_leaving_one_out_by_hand():
    model = MODELS["dense"]
    assert isinstance(model, Dense)
    parts = model.parts(np.array([0, 2]), np.ones(2), np.array([1, 3]))
    # with both: (1, 4) squares + 2; without the first: (0, 1) + 1; without the second: (1, 1) + 1
    assert parts.contributions.tolist() == [[2.0, 1.0], [4.0, 4.0]]
    assert parts.base.tolist() == [0.0, -2.0]


def test_a_blend_of_equal_scores_stays_finite():
    flat = BlendedScorer(((0.5, PopularityScorer(np.full(NUM_ITEMS, 0.1))), (0.5, EASE)), NUM_ITEMS)
    model = serving_model(flat, ITEMS, COUNTS, RAW)
    parts = model.parts(np.array([1]), np.ones(1), np.arange(NUM_ITEMS))
    assert np.abs(parts.base).max() < 100


def test_what_cannot_be_served_is_refused():
    with pytest.raises(ConfigError, match="max_weights"):
        serving_model(EASE, ITEMS, COUNTS, RAW, max_weights=0)
    with pytest.raises(DataError, match="outside"):
        Neighbours(np.array([[2]], np.int32), np.ones((1, 1), np.float32))
    with pytest.raises(DataError, match="not finite"):
        Neighbours(np.zeros((1, 1), np.int32), np.full((1, 1), np.nan, np.float32))
