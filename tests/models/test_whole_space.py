"""The shop's model over the whole item space, against plain inverses of the whole matrix."""

import numpy as np
import pytest
from scipy import sparse

from fedrec.models.ease import PrivateEase, PrivateEaseSettings
from fedrec.models.recommender import PublicInputs
from fedrec.models.whole_space import (
    CONTENT_RATIO,
    MOST_ITEMS,
    OWN_WEIGHT,
    RIDGE,
    ReleasedFactor,
    WholeSpace,
    released_factor,
    whole_space_scorer,
)

NUM_ITEMS = 30
RNG = np.random.default_rng(0)
CONTENT = sparse.random(NUM_ITEMS, 12, 0.3, format="csr", rng=RNG, dtype=np.float32)
PUBLIC = PublicInputs(np.array([f"i{n:02d}" for n in range(NUM_ITEMS)]), CONTENT)


def made_rows(num_shoppers: int, num_items: int) -> sparse.csr_matrix:
    table = (np.random.default_rng(num_shoppers).random((num_shoppers, num_items)) < 0.3).astype(np.float32)
    table[:, 0] = 1
    return sparse.csr_matrix(table)


def plain(positions: np.ndarray, rows: sparse.csr_matrix, released: ReleasedFactor | None) -> np.ndarray:
    """B by one inverse of the whole matrix."""
    content, ratio = CONTENT.toarray().astype(float), CONTENT_RATIO
    if released is not None and rows.shape[0] >= 300:
        of_released = released.popularity[released.items].mean()
        content *= np.maximum(released.popularity / of_released, 0.1)[:, None] ** released.content_tilt
        ratio += min(released.asked_content, 0.1)
    matrix = RIDGE * (np.eye(NUM_ITEMS) + ratio * content @ content.T)
    if released is not None:
        worth = 1 / (1 + (3 * (rows.shape[0] + 100) / released.crowd) ** 2)
        matrix[np.ix_(released.items, released.items)] += worth * released.factor @ released.factor.T
    own = rows.toarray().astype(float)
    matrix[np.ix_(positions, positions)] += OWN_WEIGHT * own.T @ own / own.sum(axis=1).mean()
    inverse = np.linalg.inv(matrix)[np.ix_(positions, positions)]
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


@pytest.mark.parametrize("num_shoppers", [3, 40, 299, 300])
@pytest.mark.parametrize("is_joined", [False, True])
def test_weights_are_those_of_one_inverse_over_all_items(num_shoppers: int, is_joined: bool) -> None:
    positions = np.array([1, 4, 5, 9, 12, 20, 21, 29])
    rows = made_rows(num_shoppers, len(positions))
    released = None
    if is_joined:
        factor = np.random.default_rng(1).normal(size=(5, 3)) * 6
        popularity = np.random.default_rng(2).random(NUM_ITEMS) * 20
        released = ReleasedFactor(
            np.array([0, 4, 7, 12, 25]), factor, popularity, crowd=500.0, asked_content=0.06, content_tilt=0.3
        )
    shop = PublicInputs(PUBLIC.items[positions], CONTENT[positions])
    found = whole_space_scorer(WholeSpace(PUBLIC), positions, rows, shop, released)
    np.testing.assert_allclose(found.weights, plain(positions, rows, released), rtol=1e-3, atol=2e-5)


def test_content_counts_more_only_where_the_release_asks_for_it_and_never_over_twice() -> None:
    def ratio(asked: float) -> float:
        return ReleasedFactor(np.arange(1), np.ones((1, 1)), np.ones(1), 100.0, asked_content=asked).content_ratio()

    assert [ratio(0.0), ratio(0.05), ratio(0.3)] == pytest.approx([0.1, 0.15, 0.2])


def test_large_shops_have_each_releases_own_content_and_the_others_the_plain_one() -> None:
    space, popularity = WholeSpace(PUBLIC), np.arange(1.0, NUM_ITEMS + 1)
    first, second = (
        ReleasedFactor(np.arange(9), np.ones((9, 1)), popularity[::sign], 100.0, content_tilt=0.3) for sign in (1, -1)
    )
    alone, found = space.resolvent(), [space.resolvent(released, 300) for released in (first, second, first)]
    assert np.array_equal(found[0], found[2])
    assert not np.allclose(found[0], found[1])
    assert not np.allclose(found[0], alone)
    assert space.resolvent(first, 299) is alone
    assert np.array_equal(alone, WholeSpace(PUBLIC).resolvent())


def test_a_release_of_no_items_leaves_content_as_it_is() -> None:
    empty = ReleasedFactor(np.zeros(0, np.int64), np.zeros((0, 0)), np.ones(3), 100.0, content_tilt=0.3)
    np.testing.assert_array_equal(empty.content_scale(), 1)


def test_items_that_the_shop_does_not_sell_link_those_that_it_does() -> None:
    """Items 0 and 2 were only ever bought with item 1, which the shop lacks."""
    bare = PublicInputs(np.array(["a", "b", "c", "d"]))
    factor = np.array([[8.0, 0.0], [8.0, 8.0], [0.0, 8.0]])
    released = ReleasedFactor(np.array([0, 1, 2]), factor, np.ones(4), crowd=1e6)
    positions, rows = np.array([0, 2, 3]), sparse.csr_matrix(np.array([[0, 0, 1.0]], np.float32))
    shop = PublicInputs(bare.items[positions])
    weights = whole_space_scorer(WholeSpace(bare), positions, rows, shop, released).weights
    assert abs(weights[0, 1]) > 0.05
    assert weights[0, 2] == pytest.approx(0)


def test_an_item_of_the_shop_alone_is_linked_by_the_shops_own_rows_only() -> None:
    positions = np.array([3, -1, 8])
    rows = sparse.csr_matrix(np.array([[1, 1, 0], [0, 0, 1.0]], np.float32))
    shop = PublicInputs(np.array(["i03", "own", "i08"]))
    weights = whole_space_scorer(WholeSpace(PUBLIC), positions, rows, shop).weights
    assert weights[0, 1] > 0.1
    assert np.isfinite(weights).all()


def test_a_shop_without_rows_and_a_shopper_without_history_have_scores() -> None:
    positions = np.arange(5)
    shop = PublicInputs(PUBLIC.items[:5], CONTENT[:5])
    scorer = whole_space_scorer(WholeSpace(PUBLIC), positions, sparse.csr_matrix((2, 5), dtype=np.float32), shop)
    scores = scorer.scores(sparse.csr_matrix((1, 5), dtype=np.float32))
    assert np.isfinite(scores).all()


def test_a_factor_gives_the_released_matrix_back_without_empty_directions() -> None:
    factor = np.random.default_rng(3).normal(size=(6, 2))
    gram = factor @ factor.T
    packed = np.concatenate([np.r_[gram[n, n], np.sqrt(2) * gram[n, n + 1 :]] for n in range(6)])
    model = PrivateEase(PrivateEaseSettings(popularity_weight=1e-3, crowd=100.0))
    popularity = np.array([-5.0, 2.0, 40.0, 0.0, 60.0, 1.0])
    state = {
        "covered": np.arange(6),
        "co_occurrence": packed,
        "popularity": popularity,
        "ridge": np.array([20.0]),
        "content_weight": np.array([4.0]),
    }
    found = released_factor(model, state)
    assert found.factor.shape == (6, 2)
    np.testing.assert_allclose(found.factor @ found.factor.T, gram, atol=1e-9)
    assert (found.asked_content, found.content_tilt) == (pytest.approx(0.2), 0.3)
    # 1,000 shoppers against noise of 10 in one release; with half of the budget an item's popularity holds 14.1
    np.testing.assert_allclose(found.popularity, [14.1421] * 2 + [40] + [14.1421] + [60] + [14.1421], rtol=1e-4)


def test_a_release_is_worth_less_the_noisier_it_is_and_the_larger_the_shop() -> None:
    def worth(crowd: float, num_shoppers: int) -> float:
        return ReleasedFactor(np.arange(1), np.ones((1, 1)), np.ones(1), crowd).worth(num_shoppers)

    assert worth(3000, 900) == pytest.approx(0.5)
    assert worth(1e9, 900) == pytest.approx(1)
    assert worth(3000, 10) > worth(3000, 900) > worth(1000, 900)


def test_popularity_joins_the_scores_and_the_released_one_counts_like_ten_shoppers() -> None:
    positions, rows = np.array([0, 2]), sparse.csr_matrix(np.array([[1, 0], [1, 0.0]], np.float32))
    bare = PublicInputs(np.array(["a", "b", "c"]))
    shop = PublicInputs(bare.items[positions])
    released = ReleasedFactor(np.arange(3), np.zeros((3, 0)), np.array([1.0, 5.0, 3.0]), crowd=100.0)
    nobody = sparse.csr_matrix((1, 2), dtype=np.float32)
    # own counts 2 and 0; one item a history, so the prior 1/4 and 3/4 of an item, ten times; twelve shoppers in all
    scores = whole_space_scorer(WholeSpace(bare), positions, rows, shop, released).scores(nobody)
    np.testing.assert_allclose(scores, [[0.1 * 4.5 / 12, 0.1 * 7.5 / 12]], rtol=1e-5)
    alone = whole_space_scorer(WholeSpace(bare), positions, rows, shop).scores(nobody)
    np.testing.assert_allclose(alone, [[0.1 * 2 / 12, 0]], atol=1e-7)


def test_a_huge_item_space_has_no_whole_space_model() -> None:
    assert WholeSpace(PUBLIC).is_small_enough
    assert not WholeSpace(PublicInputs(np.arange(MOST_ITEMS + 1).astype(str))).is_small_enough
