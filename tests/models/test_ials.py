import dataclasses
import warnings

import numpy as np
import pytest
from scipy import sparse

from fedrec.errors import BadMessage, ConfigError
from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.shop_side import contribute
from fedrec.federation.terms import Terms
from fedrec.models.factors import IalsSettings
from fedrec.models.ials import Ials
from fedrec.models.least_squares import batches, solve_rows
from fedrec.models.recommender import PublicInputs, train_alone

NUM_ITEMS, D = 13, 3


@pytest.fixture
def strengths() -> sparse.csr_matrix:
    """37 shoppers, one of them empty, events of different strength."""
    rng = np.random.default_rng(0)
    dense = (rng.random((37, NUM_ITEMS)) < 0.35) * rng.integers(1, 4, (37, NUM_ITEMS))
    dense[5] = 0
    return sparse.csr_matrix(dense.astype(np.float32))


def public(content: sparse.csr_matrix | None = None) -> PublicInputs:
    return PublicInputs(np.array([f"i{n}" for n in range(NUM_ITEMS)], dtype=object), content)


def naive_side(dense: np.ndarray, factors: np.ndarray, settings: IalsSettings, num_others: int) -> np.ndarray:
    """Hu et al. 2008, eq. 4 and 5, one row after the other, by dense weights over all columns."""
    solved = np.zeros((len(dense), factors.shape[1]))
    for row, r in enumerate(dense):
        confidence = 1 + settings.alpha * r
        ridge = settings.regularisation * (settings.alpha * (r > 0).sum() + num_others) ** settings.frequency_exponent
        left = factors.T @ np.diag(confidence) @ factors + ridge * np.eye(factors.shape[1])
        solved[row] = np.linalg.solve(left, factors.T @ (confidence * (r > 0)))
    return solved


@pytest.mark.parametrize("frequency_exponent", [0.0, 1.0])
def test_sweeps_are_those_of_a_naive_loop(strengths, frequency_exponent):
    settings = IalsSettings(D, alpha=2, regularisation=0.3, frequency_exponent=frequency_exponent, sweeps=3)
    model = Ials(settings)
    state = train_alone(model, strengths, public())
    dense = strengths.toarray().astype(float)
    items = model.plan_round(0, {}, public()).inputs["item_factors"]
    num_active = (dense.sum(axis=1) > 0).sum()
    for _ in range(settings.sweeps):
        shoppers = naive_side(dense, items, settings, NUM_ITEMS)
        items = naive_side(dense.T, shoppers, settings, num_active)
    np.testing.assert_allclose(state["item_factors"], items, rtol=1e-9, atol=1e-12)
    scores = model.fit(state, public()).scores(strengths)
    np.testing.assert_allclose(scores, naive_side(dense, items, settings, NUM_ITEMS) @ items.T, atol=5e-6)


def test_item_factors_are_those_of_implicit():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the threads of BLAS
        als = pytest.importorskip("implicit.als")
        peer = als.AlternatingLeastSquares(
            factors=8, alpha=5.0, regularization=2.0, use_cg=False, use_gpu=False, iterations=4, num_threads=1
        )
    rng = np.random.default_rng(6)
    rows = sparse.csr_matrix((rng.random((80, 40)) < 0.2).astype(np.float32))
    space = PublicInputs(np.array([f"i{n:02d}" for n in range(40)], dtype=object))
    model = Ials(IalsSettings(8, alpha=4, regularisation=2, frequency_exponent=0, sweeps=4))
    peer.item_factors = model.plan_round(0, {}, space).inputs["item_factors"].astype(np.float32)
    peer.user_factors = np.zeros((80, 8), np.float32)
    peer.fit(rows, show_progress=False)
    factors = train_alone(model, rows, space)["item_factors"]
    np.testing.assert_allclose(factors, peer.item_factors, atol=1e-3 * np.abs(factors).max())


def test_the_loss_falls_with_every_sweep(strengths):
    losses = []
    dense = strengths.toarray().astype(float)
    for sweeps in (1, 2, 4, 8):
        settings = IalsSettings(D, alpha=2, regularisation=0.3, frequency_exponent=0, sweeps=sweeps)
        items = train_alone(Ials(settings), strengths, public())["item_factors"]
        shoppers = naive_side(dense, items, settings, NUM_ITEMS)
        error = (1 + 2 * dense) * ((dense > 0) - shoppers @ items.T) ** 2
        losses.append(error.sum() + 0.3 * ((shoppers**2).sum() + (items**2).sum()))
    assert (np.diff(losses) < 0).all()


def test_a_shoppers_norm_is_exact_with_strengths(strengths):
    model = Ials(IalsSettings(D, alpha=2))
    contributions = model.contributions(model.plan_round(0, {}, public()), strengths)
    norms = contributions.norms()
    assert norms[5] == 0
    for shopper in range(37):
        alone = contributions.total(np.eye(37)[shopper])
        np.testing.assert_allclose(np.linalg.norm(alone), norms[shopper], rtol=1e-12)


def test_shoppers_factors_are_not_shown(strengths):
    model = Ials(IalsSettings(D))
    contributions = model.contributions(model.plan_round(0, {}, public()), strengths)
    assert "shoppers=" not in repr(contributions)


def test_scores_of_binary_rows_use_the_same_fold_in_as_a_single_row(strengths):
    model = Ials(IalsSettings(D, alpha=2, regularisation=0.3, frequency_exponent=0, sweeps=3))
    scorer = model.fit(train_alone(model, strengths, public()), public())
    rows = (strengths > 0).astype(np.float32)
    single = np.concatenate([scorer.scores(rows[[n]]) for n in range(rows.shape[0])])
    np.testing.assert_allclose(scorer.scores(rows), single, atol=1e-6)


def test_an_unknown_item_stands_where_items_of_like_content_stand():
    rng = np.random.default_rng(1)
    blocks = np.arange(NUM_ITEMS) % 2
    tastes = rng.integers(0, 2, 60)
    dense = (blocks == tastes[:, None]) & (rng.random((60, NUM_ITEMS)) < 0.6)
    dense[:, 12] = False
    content = sparse.csr_matrix(np.eye(2, dtype=np.float32)[blocks])
    model = Ials(IalsSettings(D, sweeps=5, regularisation=1, frequency_exponent=0))
    rows = sparse.csr_matrix(dense.astype(np.float32))
    scorer = model.fit(train_alone(model, rows, public(content)), public(content))
    scores = scorer.scores(rows)[:, 12]
    assert scores[tastes == 0].min() > scores[tastes == 1].max()


@pytest.mark.parametrize("max_length", [3, 40, 300])
def test_batches_hold_every_entry_once_and_little_padding(max_length):
    rng = np.random.default_rng(2)
    lengths = rng.integers(0, max_length, 200)
    indices = np.concatenate([np.sort(rng.permutation(400)[:n]) for n in lengths])
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    matrix = sparse.csr_matrix((rng.random(len(indices)) + 1, indices, indptr), shape=(200, 400))
    rebuilt = np.zeros((200, 401))
    num_cells = 0
    for batch in batches(matrix, 8):
        rebuilt[batch.rows[:, None], batch.columns] += batch.strengths
        num_cells += batch.columns.size
    np.testing.assert_allclose(rebuilt[:, :400], matrix.toarray())
    assert not rebuilt[:, 400].any()
    assert num_cells <= 1.25 * matrix.nnz + 4 * 200


def test_threads_change_nothing(monkeypatch):
    rng = np.random.default_rng(4)
    matrix = sparse.random(3000, 500, density=0.1, format="csr", random_state=5)
    factors = rng.standard_normal((500, 8))
    results = []
    for threads in ("1", "4"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        results.append(solve_rows(matrix, factors, factors.T @ factors, alpha=2.0, ridge=np.ones(3000)))
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("factors", 0),
        ("sweeps", 0),
        ("alpha", 0.0),
        ("alpha", float("inf")),
        ("regularisation", float("nan")),
        ("frequency_exponent", 1.5),
        ("init_seed", -1),
    ],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        IalsSettings(**{field: value})


@pytest.mark.parametrize("shape", [(NUM_ITEMS + 1, D), (NUM_ITEMS, D + 1), (NUM_ITEMS * D,)], ids=str)
def test_item_factors_of_another_shape_are_refused(strengths, shape):
    model = Ials(IalsSettings(factors=D))
    spec = dataclasses.replace(model.plan_round(0, {}, public()), inputs={"item_factors": np.ones(shape)})
    with pytest.raises(BadMessage, match="item_factors"):
        model.contributions(spec, strengths)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("bad", [3e38, np.inf, np.nan], ids=str)
def test_a_shopper_who_cannot_be_solved_does_not_silence_her_shop(strengths, bad):
    # A strength that swamps the ridge leaves one item's outer product, which is singular; of 13 items some round so.
    model = Ials(IalsSettings(factors=D))
    plan = Coordinator(model, public(), Terms(("s",))).next_plan()
    absurd = sparse.csr_matrix(np.eye(NUM_ITEMS, dtype=np.float32))
    absurd.data[:] = bad
    everyone = sparse.vstack([strengths, absurd], format="csr")
    norms = model.contributions(plan.spec, everyone).norms()
    assert np.isfinite(norms[:-NUM_ITEMS]).all()
    assert not np.isfinite(norms[-NUM_ITEMS:]).all()
    rest = everyone[np.isfinite(norms)]
    np.testing.assert_allclose(contribute(model, plan, everyone).values, contribute(model, plan, rest).values)
