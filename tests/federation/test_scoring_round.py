import numpy as np
import pytest
from scipy import sparse

from fedrec.errors import BadMessage
from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.scoring_round import (
    SCORE_BOUND,
    ScoringRound,
    mean_figure,
    scoring_round,
    scoring_state,
)
from fedrec.federation.shop_side import contribute_on_grid
from fedrec.federation.terms import Terms
from fedrec.models.ease import Ease
from fedrec.models.popularity import Popularity
from fedrec.models.recommender import PublicInputs, train_alone
from fedrec.privacy.calibration import calibrate
from fedrec.privacy.spec import Mode, PrivacySpec
from fedrec.shop.node import shop_nodes

PUBLIC = PublicInputs(np.array(["a", "b", "c", "d"]))
STATE = {"popularity": np.array([4.0, 3.0, 2.0, 1.0])}
SPEC = PrivacySpec(20.0, 1e-4, Mode.LOCAL, public_shoppers=1000, max_shoppers=1000, min_shops=1)


def rows(*table):
    return sparse.csr_matrix(np.array(table, dtype=np.float32))


def figures(table):
    model = scoring_round(Popularity(), k=2)
    spec = model.plan_round(0, scoring_state(STATE, PUBLIC), PUBLIC)
    return model.contributions(spec, table)


def test_each_shopper_is_judged_by_what_was_held_back():
    # lists of two by popularity without known items: [b, c], [a, b], none held back, [a, b]
    found = figures(rows([1, 2, 0, 0], [0, 0, 2, 1], [1, 1, 0, 0], [0, 2, 0, 0]))
    second = 1 / np.log2(3)
    np.testing.assert_allclose(found.figures, [1, 0, np.nan, second])
    np.testing.assert_allclose(found.total(np.ones(4)), [1 + second, 3])
    np.testing.assert_allclose(found.norms(), [2**0.5, 1, 0, (1 + second**2) ** 0.5])


def test_one_shopper_moves_the_sum_by_at_most_the_bound():
    rng = np.random.default_rng(0)
    table = sparse.csr_matrix(rng.choice([0, 1, 2], p=[0.4, 0.3, 0.3], size=(30, 4)).astype(np.float32))
    model = scoring_round(Popularity(), k=2)
    terms = Terms(("x",), privacy=SPEC, schedule=calibrate(model.release_requests(), SPEC))
    run = Coordinator(model, PUBLIC, terms)
    run.restore(0, scoring_state(STATE, PUBLIC))
    plan = run.next_plan()
    whole = contribute_on_grid(model, plan, table).values
    for gone in range(30):
        rest = contribute_on_grid(model, plan, table[np.arange(30) != gone]).values
        assert sum(int(value) ** 2 for value in whole - rest) <= (2**18) ** 2
    assert plan.terms.schedule[0].clip_norm == SCORE_BOUND


def test_the_noisy_mean_comes_through_the_door():
    rng = np.random.default_rng(1)
    content = sparse.csr_matrix(np.eye(4, dtype=np.float32))
    public = PublicInputs(PUBLIC.items, content)
    table = sparse.csr_matrix(rng.choice([0, 1, 2], p=[0.3, 0.4, 0.3], size=(600, 4)).astype(np.float32))
    trained = Ease()
    state = train_alone(trained, sparse.csr_matrix((table == 1).astype(np.float32)), public)
    model = scoring_round(trained)
    terms = Terms(("x",), privacy=SPEC, schedule=calibrate(model.release_requests(), SPEC))
    run = Coordinator(model, public, terms)
    run.restore(0, scoring_state(state, public))
    plan = run.next_plan()
    node = shop_nodes(model, public, terms, [table])[0]
    run.receive("x", node.answer(plan).to_bytes())
    run.close()
    exact = np.nanmean(model.contributions(plan.spec, table).figures)
    # noise of sd 0.3 x sqrt(2) on both sums over some 450 shoppers: 0.02 is beyond 10 standard deviations
    assert mean_figure(run.state) == pytest.approx(exact, abs=0.02)
    assert 0 < exact < 1


def test_a_shoppers_figure_does_not_depend_on_her_place_in_the_table():
    table = rows([1, 2, 0, 0], [0, 0, 2, 1], [2, 1, 1, 2])
    np.testing.assert_array_equal(figures(table).figures, figures(table[[2, 0, 1]]).figures[[1, 2, 0]])


def test_inputs_that_are_no_model_are_refused():
    spec = ScoringRound().plan_round(0, {}, PUBLIC)
    with pytest.raises(BadMessage):
        scoring_round(Popularity()).contributions(spec, rows([1, 2, 0, 0]))


def test_a_shopper_whose_scores_are_no_numbers_counts_as_nobody():
    model = scoring_round(Popularity(), k=2)
    state = {"popularity": np.array([4.0, 3.0, 1e300, 1.0])}
    with np.errstate(over="ignore"):
        spec = model.plan_round(0, scoring_state(state, PUBLIC), PUBLIC)
        found = model.contributions(spec, rows([1, 2, 0, 0], [0, 1, 2, 0]))
    np.testing.assert_array_equal(found.total(np.ones(2)), [0, 0])


def test_content_with_indices_outside_the_table_is_refused_before_it_is_read():
    content = sparse.csr_matrix(np.eye(4, dtype=np.float32))
    public = PublicInputs(PUBLIC.items, content)
    model = scoring_round(Ease())
    state = scoring_state(train_alone(Ease(), rows([1, 1, 0, 0], [0, 1, 1, 1]), public), public)
    state["content.indices"] = state["content.indices"] + 50_000_000
    with pytest.raises(BadMessage):
        model.contributions(model.plan_round(0, state, public), rows([1, 2, 0, 0]))
