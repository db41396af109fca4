import dataclasses

import numpy as np
import pytest
from scipy import sparse

from fedrec.errors import BadMessage, ConfigError
from fedrec.models.ease import Ease, EaseSettings
from fedrec.models.recommender import PublicInputs, train_alone

NUM_ITEMS = 17


@pytest.fixture
def histories() -> sparse.csr_matrix:
    rng = np.random.default_rng(0)
    popularity = np.linspace(0.7, 0.1, NUM_ITEMS)[rng.permutation(NUM_ITEMS)]
    return sparse.csr_matrix((rng.random((41, NUM_ITEMS)) < popularity).astype(np.float32))


@pytest.fixture
def public() -> PublicInputs:
    """Twelve items have features, the rest none."""
    rng = np.random.default_rng(1)
    features = rng.random((NUM_ITEMS, 4)) * (rng.random((NUM_ITEMS, 4)) < 0.6)
    features[::4] = 0
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    features = (features / np.where(norms > 0, norms, 1)).astype(np.float32)
    return PublicInputs(np.array([f"i{n:02d}" for n in range(NUM_ITEMS)], dtype=object), sparse.csr_matrix(features))


def mean_popularity(gram: np.ndarray) -> float:
    """Of the items that were bought at all: the unit of both weights."""
    counts = gram.diagonal()
    return counts[counts > 0].mean()


def direct_weights(gram: np.ndarray, features: np.ndarray, regularisation: float, content_weight: float):
    """Steck's formula by a plain inverse: B (K, K) and P (K, K)."""
    prior = regularisation * np.eye(len(gram)) + content_weight * features @ features.T
    inverse = np.linalg.inv(gram + mean_popularity(gram) * prior)
    weights = -inverse / inverse.diagonal()
    np.fill_diagonal(weights, 0)
    return weights, inverse


def test_scores_are_those_of_the_direct_formula(histories, public):
    model = Ease(EaseSettings(regularisation=0.4, content_weight=0.2))
    scores = model.fit(train_alone(model, histories, public), public).scores(histories)
    dense = histories.toarray().astype(float)
    weights, _ = direct_weights(dense.T @ dense, public.content.toarray().astype(float), 0.4, 0.2)
    np.testing.assert_allclose(scores, dense @ weights, atol=3e-6)  # popularity breaks ties with 1e-6


def test_unit_norm_rows_weigh_every_shopper_alike(histories, public):
    model = Ease(EaseSettings(regularisation=0.5, content_weight=0, shopper_exponent=0.5))
    scores = model.fit(train_alone(model, histories, public), public).scores(histories)
    dense = histories.toarray().astype(float)
    rows = dense / np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1)
    weights, _ = direct_weights(rows.T @ rows, np.zeros((NUM_ITEMS, 1)), 0.5, 0)
    np.testing.assert_allclose(scores, dense @ weights, atol=3e-6)


def test_tail_items_are_scored_by_the_same_regression(histories, public):
    model = Ease(EaseSettings(regularisation=0.4, content_weight=0.2, max_items=11))
    state = train_alone(model, histories, public)
    counts = np.asarray(histories.sum(axis=0)).ravel()
    covered = np.sort(np.argsort(-counts, kind="stable")[:11])
    np.testing.assert_array_equal(state["covered"], covered)
    np.testing.assert_array_equal(state["popularity"], counts)
    dense, features = histories.toarray().astype(float), public.content.toarray().astype(float)
    tail = np.setdiff1d(np.arange(NUM_ITEMS), covered)
    weights = np.zeros((NUM_ITEMS, NUM_ITEMS))
    gram = dense[:, covered].T @ dense[:, covered]
    weights[np.ix_(covered, covered)], inverse = direct_weights(gram, features[covered], 0.4, 0.2)
    prior = 0.2 * mean_popularity(gram) * features[covered] @ features[tail].T
    weights[np.ix_(covered, tail)] = inverse @ prior
    weights[tail] = 0.2 / (0.4 + 0.2) * features[tail] @ features.T
    scorer = model.fit(state, public)
    scores, expected = scorer.scores(histories), dense @ weights
    is_known = features.any(axis=1)
    np.testing.assert_allclose(scores[:, is_known], expected[:, is_known], atol=3e-6)
    is_dark = ~is_known & np.isin(np.arange(NUM_ITEMS), tail)
    assert is_dark.any()
    is_covered = np.isin(np.arange(NUM_ITEMS), covered)
    assert (scores[:, is_dark].max(axis=1) <= scores[:, is_covered].min(axis=1)).all()
    for item in np.flatnonzero(is_known):
        history = np.flatnonzero(dense[3])
        parts = scorer.because(history, item)
        expected_parts = np.where(history == item, 0, weights[history, item])
        is_other = history != item
        np.testing.assert_allclose(parts[is_other], expected_parts[is_other], atol=1e-6)


def test_a_restricted_model_keeps_the_global_regression_for_its_tail(histories, public):
    model = Ease(EaseSettings(regularisation=0.4, content_weight=0.2, max_items=11))
    scorer = model.fit(train_alone(model, histories, public), public)
    positions = np.array([1, 2, 3, 5, 6, 9, 13])
    shop = PublicInputs(public.items[positions], public.content[positions])
    rows = histories[:, positions]
    wide = np.zeros((rows.shape[0], NUM_ITEMS), np.float32)
    wide[:, positions] = rows.toarray()
    is_known = np.diff(shop.content.indptr) > 0
    expected = scorer.scores(sparse.csr_matrix(wide))[:, positions]
    np.testing.assert_allclose(
        scorer.restrict(positions, shop).scores(rows)[:, is_known], expected[:, is_known], atol=3e-6
    )


def test_a_cold_shopper_gets_the_popular_items_in_order(histories, public):
    for max_items in (11, 17):
        model = Ease(EaseSettings(max_items=max_items))
        scorer = model.fit(train_alone(model, histories, public), public)
        scores = scorer.scores(sparse.csr_matrix((1, NUM_ITEMS), dtype=np.float32))[0]
        counts = np.asarray(histories.sum(axis=0)).ravel()
        assert (np.diff(counts[np.argsort(-scores, kind="stable")]) <= 0).all()


def test_content_of_weight_zero_is_left_out_everywhere(histories, public):
    settings = EaseSettings(regularisation=0.4, content_weight=0, max_items=11)
    without = PublicInputs(public.items)
    positions = np.array([0, -1, 4, 7, -1])
    shop = PublicInputs(np.array(list("abcde"), dtype=object), public.content[positions])
    scores = []
    for space in (public, without):
        scorer = Ease(settings).fit(train_alone(Ease(settings), histories, space), space)
        own = scorer.restrict(positions, shop).scores(histories[:, positions])
        scores.append(np.hstack([scorer.scores(histories), own]))
    np.testing.assert_array_equal(*scores)


def test_explanations_add_up_to_the_score(histories, public):
    model = Ease(EaseSettings(regularisation=0.4))
    scorer = model.fit(train_alone(model, histories, public), public)
    history = np.flatnonzero(histories[5].toarray()[0])
    scores = scorer.scores(histories[5])[0]
    for item in range(NUM_ITEMS):
        assert scorer.because(history, item).sum() == pytest.approx(scores[item], abs=3e-6)


def test_own_plus_others_is_a_mixture(histories, public):
    """0.3 x all + 0.7 x own statistics weighs the shop's own shoppers 1 and the others 0.3."""
    model = Ease(EaseSettings(regularisation=0.4, content_weight=0))
    positions = np.array([3, 0, -1, 8, 12])
    shop = PublicInputs(np.array(["c", "a", "own", "i", "m"], dtype=object))
    state = model.project(train_alone(model, histories, public), positions, shop)
    rng = np.random.default_rng(2)
    own_rows = histories[:15, np.maximum(positions, 0)].toarray()
    own_rows[:, 2] = rng.random(15) < 0.4
    own = model.own_statistics(state, sparse.csr_matrix(own_rows), shop)
    weights = model.fit(model.mix(state, own, global_share=0.3), shop).weights
    everyone = histories.toarray().astype(float)[:, np.maximum(positions, 0)]
    everyone[:, 2] = 0
    gram = 0.3 * everyone.T @ everyone + 0.7 * own_rows.T @ own_rows
    np.testing.assert_allclose(weights, direct_weights(gram, np.zeros((5, 1)), 0.4, 0)[0], atol=1e-6)


def test_the_settings_mean_the_same_for_a_shop_ten_times_as_large(histories, public):
    model = Ease(EaseSettings(regularisation=0.4, content_weight=0.2))
    tenfold = sparse.vstack([histories] * 10, format="csr")
    small, large = (model.fit(train_alone(model, rows, public), public).weights for rows in (histories, tenfold))
    np.testing.assert_allclose(small, large, atol=1e-6)


def test_two_rounds_when_there_are_more_items_than_are_covered(histories, public):
    model = Ease(EaseSettings(max_items=11))
    first = model.plan_round(0, {}, public)
    assert (first.name, first.layout.size) == ("popularity", NUM_ITEMS)
    second = model.plan_round(1, {"popularity": np.ones(NUM_ITEMS)}, public)
    assert (second.name, second.layout.size) == ("co-occurrence", 66)
    np.testing.assert_array_equal(second.inputs["covered"], np.arange(11))
    assert model.plan_round(2, {}, public) is None
    assert Ease().plan_round(0, {}, public).name == "co-occurrence"
    assert Ease().plan_round(1, {}, public) is None


@pytest.mark.parametrize(
    "covered",
    [
        np.arange(11)[::-1].copy(),
        np.zeros(11, np.int64),
        np.arange(11) - 1,
        np.arange(11) + NUM_ITEMS - 10,
        np.arange(11.0),
        np.arange(11)[None, :],
    ],
    ids=["backwards", "repeated", "negative", "beyond the list", "no integers", "no list"],
)
def test_a_plan_whose_covered_items_would_break_the_bound_is_refused(histories, public, covered):
    model = Ease(EaseSettings(max_items=11))
    spec = model.plan_round(1, {"popularity": np.ones(NUM_ITEMS)}, public)
    with pytest.raises(BadMessage, match="covered"):
        model.contributions(dataclasses.replace(spec, inputs={"covered": covered}), histories)


def test_statistics_that_are_no_gram_matrix_are_refused(public):
    model = Ease(EaseSettings(regularisation=1, content_weight=0))
    packed = np.zeros(NUM_ITEMS * (NUM_ITEMS + 1) // 2)
    packed[0] = -5
    state = {"popularity": np.zeros(NUM_ITEMS), "covered": np.arange(NUM_ITEMS), "co_occurrence": packed}
    with pytest.raises(ConfigError, match="not positive definite"):
        model.fit(state, public)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("regularisation", 0.0),
        ("regularisation", float("nan")),
        ("content_weight", -1.0),
        ("content_weight", float("inf")),
        ("shopper_exponent", float("nan")),
        ("max_items", 12_001),
        ("max_items", 0),
    ],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        EaseSettings(**{field: value})
