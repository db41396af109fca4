import numpy as np
import pytest
from scipy import sparse

from fedrec.errors import ConfigError
from fedrec.models.itemknn import ItemKnn, ItemKnnSettings
from fedrec.models.recommender import PublicInputs, train_alone


def public(num_items: int, content: np.ndarray | None = None) -> PublicInputs:
    features = None if content is None else sparse.csr_matrix(content.astype(np.float32))
    return PublicInputs(np.array([f"i{n}" for n in range(num_items)], dtype=object), features)


def test_shrunk_cosine_by_hand():
    histories = sparse.csr_matrix(np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 0, 1]], np.float32))
    model = ItemKnn(ItemKnnSettings(shrinkage=2, content_weight=0))
    scores = model.fit(train_alone(model, histories, public(3)), public(3)).scores(
        sparse.csr_matrix(np.array([[0, 1, 0]], np.float32))
    )
    expected = [2 / (np.sqrt(4 * 2) + 2), 0, 1 / (np.sqrt(2 * 2) + 2)]
    np.testing.assert_allclose(scores[0], expected, atol=2e-6)


def test_content_enters_before_the_normalisation():
    histories = sparse.csr_matrix(np.array([[1, 1, 0], [1, 0, 0]], np.float32))
    space = public(3, np.array([[0.6, 0.8], [0, 0], [1, 0]]))
    model = ItemKnn(ItemKnnSettings(shrinkage=1, content_weight=5))
    scores = model.fit(train_alone(model, histories, space), space).scores(
        sparse.csr_matrix(np.array([[1, 0, 0]], np.float32))
    )
    expected = [0, 1 / (np.sqrt(7 * 1) + 1), 5 * 0.6 / (np.sqrt(7 * 5) + 1)]
    np.testing.assert_allclose(scores[0], expected, atol=2e-6)


def test_an_item_without_statistics_scores_as_if_it_had_empty_ones():
    """The tail's formula is that of a covered item that nobody bought."""
    rng = np.random.default_rng(0)
    dense = (rng.random((30, 8)) < 0.4).astype(np.float32)
    dense[:, 7] = 0
    content = rng.random((8, 3))
    content /= np.linalg.norm(content, axis=1, keepdims=True)
    space, histories = public(8, content), sparse.csr_matrix(dense)
    all_covered, with_tail = (
        ItemKnn(ItemKnnSettings(neighbours=99, shrinkage=3, content_weight=4, max_items=k)) for k in (8, 7)
    )
    scores = [
        model.fit(train_alone(model, histories, space), space).scores(histories) for model in (all_covered, with_tail)
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_only_the_nearest_neighbours_count_and_ties_stay():
    dense = np.zeros((8, 4), np.float32)
    dense[:4, [0, 1]] = 1  # items 0 and 1 always together
    dense[4:6, [2, 0]] = 1
    dense[6:8, [3, 0]] = 1  # items 2 and 3 are equally close to 0
    histories = sparse.csr_matrix(dense)

    def neighbours_of_first(k: int) -> list[int]:
        model = ItemKnn(ItemKnnSettings(neighbours=k, shrinkage=0, content_weight=0))
        weights = model.fit(train_alone(model, histories, public(4)), public(4)).weights
        return np.flatnonzero(weights.toarray()[:, 0]).tolist()

    assert neighbours_of_first(1) == [1]
    assert neighbours_of_first(2) == [1, 2, 3]


def test_blocks_of_many_items_agree_with_one_dense_formula():
    rng = np.random.default_rng(3)
    histories = sparse.csr_matrix((rng.random((60, 700)) < 0.05).astype(np.float32))
    model = ItemKnn(ItemKnnSettings(neighbours=700, shrinkage=2, content_weight=0))
    weights = model.fit(train_alone(model, histories, public(700)), public(700)).weights.toarray()
    gram = (histories.T @ histories).toarray()
    norms = np.sqrt(gram.diagonal())
    expected = gram / (np.outer(norms, norms) + 2)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(weights, expected, atol=1e-6)


@pytest.mark.parametrize(("field", "value"), [("neighbours", 0), ("shrinkage", float("nan")), ("max_items", 0)])
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        ItemKnnSettings(**{field: value})
