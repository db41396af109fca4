import numpy as np
import pandas as pd
import pytest

from fedrec.errors import ConfigError, DataError
from fedrec.models.content import ContentSettings, content_features


def test_one_hot_categories_by_hand():
    features = content_features(["", "", ""], ["toys|red", "toys", ""], settings=ContentSettings(has_crosses=False))
    assert features.dtype == np.float32
    half = np.sqrt(0.5)
    np.testing.assert_allclose(features.toarray(), [[half, half], [0, 1], [0, 0]], rtol=1e-6)


def test_tf_idf_by_hand():
    titles = ["red mug red", "red pot", "blue mug", "zzz"]
    features = content_features(titles, [""] * 4, settings=ContentSettings(min_items=2, max_share=0.5))
    idf = 1 + np.log(5 / 3)
    mug, red = idf, idf * (1 + np.log(2))  # "mug" and "red" are in two items each
    first = np.array([mug, red]) / np.hypot(mug, red)
    np.testing.assert_allclose(features.toarray(), [first, [0, 1], [1, 0], [0, 0]], rtol=1e-6)


def test_blocks_are_weighted_before_rows_are_normalised():
    features = content_features(["mug", "mug", "x"], ["a", "", "b"], settings=ContentSettings(1, 1.0, 9, 2.0, False))
    np.testing.assert_allclose(features[0].toarray(), [[1 / np.sqrt(5), 2 / np.sqrt(5), 0]], rtol=1e-6)


def test_rows_have_norm_one_or_are_empty():
    rng = np.random.default_rng(0)
    words = np.array(["", "red", "blue", "mug", "pot", "Großer", "ŁÓDŹ", "3.5mm"])
    titles = [" ".join(rng.choice(words, 4)) for _ in range(50)]
    features = content_features(titles, rng.choice(["", "a|b", "c"], 50))
    norms = np.sqrt(features.multiply(features).sum(axis=1)).A1
    assert ((np.abs(norms - 1) < 1e-6) | (norms == 0)).all()
    assert features.has_sorted_indices


def test_upper_and_lower_case_and_missing_titles_are_handled():
    titles = pd.Series(["RED Mug", None, "red mug", float("nan")], dtype="object")
    features = content_features(titles, pd.Series(["", "", "", ""], dtype="str"))
    dense = features.toarray()
    np.testing.assert_array_equal(dense[0], dense[2])
    assert not dense[[1, 3]].any()


def test_nothing_known_gives_none():
    assert content_features(["", "!"], ["", " | "]) is None
    assert content_features([], []) is None


def test_a_number_of_words_above_the_limit_keeps_the_frequent_ones():
    titles = ["aa bb cc", "aa bb", "aa cc", "bb zz", "zz", "q"]
    features = content_features(titles, [""] * 6, settings=ContentSettings(max_words=2))
    assert features.shape == (6, 2)
    assert features[4].nnz == 0


def test_titles_and_categories_must_match():
    with pytest.raises(DataError, match="2 titles but 1 categories"):
        content_features(["a", "b"], ["c"])


@pytest.mark.parametrize(
    ("field", "value"), [("min_items", 0), ("max_share", float("nan")), ("max_words", 0), ("category_weight", -1)]
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        ContentSettings(**{field: value})


def similarity(titles: list[str], categories: list[str], **options) -> np.ndarray:
    features = content_features(titles, categories, **options)
    return np.asarray((features @ features.T).todense())


def test_items_alike_in_two_categories_are_more_alike_than_the_categories_say():
    """Two blocks: categories with cosines 1/2 and 1, pairs of categories with their squares."""
    alike = similarity([""] * 3, ["war|drama", "war|comedy", "drama|war"], settings=ContentSettings(min_items=1))
    np.testing.assert_allclose(alike[0], [1, (1 / 2 + 1 / 4) / 2, 1], rtol=1e-6)


def test_a_cross_that_too_few_items_share_is_left_out():
    features = content_features([""] * 3, ["war|drama", "war|comedy", "drama|war"])
    assert features.shape[1] == 3 + 4  # three categories; war-war, war-drama, drama-war and drama-drama


def test_years_in_titles_come_in_soft_bins_of_ten():
    titles = ["a (1990)", "b (1995)", "c (2000)", "d (1930)", "e"]
    alike = similarity(titles, [""] * 5, settings=ContentSettings(min_items=9))
    np.testing.assert_allclose(alike[1, [0, 2]], [np.sqrt(0.5)] * 2, rtol=1e-5)
    assert alike[0, 2] == 0
    assert not alike[3, :3].any()
    assert not alike[4].any()


def test_years_count_only_where_most_titles_have_one():
    few_years = ["a (1990)", "b", "c"]
    assert content_features(few_years, [""] * 3, settings=ContentSettings(min_items=9)) is None
    all_years = ["a (1990)", "b (1990)", "c (1990)"]
    alike = similarity(all_years, [""] * 3, settings=ContentSettings(min_items=9))
    np.testing.assert_allclose(alike, np.ones((3, 3)), atol=1e-6)


def test_a_year_is_crossed_with_categories_and_with_words_where_there_are_none():
    settings = ContentSettings(min_items=2, max_share=1.0)
    years = ["x (1990)", "x (1990)", "x (2010)"]
    same, other = similarity(years, ["a"] * 3, settings=settings)[0, 1:]
    assert same > 0.99
    assert other < 0.7  # alike in category and word, not in year nor in category and year
    same, other = similarity(years, [""] * 3, settings=settings)[0, 1:]
    assert same > 0.99
    assert other < 0.5
