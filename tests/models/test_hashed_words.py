"""Items that come one by one are as alike as their words and categories."""

from __future__ import annotations

import numpy as np
import pytest

from fedrec.models.hashed_words import HashedWords

TEXTS = [
    ("Red lamp", "home|light"),
    ("blue LAMP", "home"),
    ("red chair", ""),
    ("", "light"),
    ("", ""),
    (" ".join(f"word{place}" for place in range(40)), "a|b|c|d|e|f"),
]


def all_at_once() -> HashedWords:
    return HashedWords().with_items(np.arange(len(TEXTS)), TEXTS)


def test_similarity_is_the_mean_over_words_and_categories():
    words = all_at_once()
    cosines = words.between(np.arange(6), np.arange(6))
    assert np.diag(cosines) == pytest.approx([1, 1, 1, 1, 0, 1])
    rare = {"red": 2, "lamp": 2, "blue": 1, "chair": 1}
    weight = {word: 1 + np.log(7 / (1 + count)) for word, count in rare.items()}
    title = weight["lamp"] ** 2 / np.hypot(weight["red"], weight["lamp"]) / np.hypot(weight["blue"], weight["lamp"])
    assert cosines[0, 1] == pytest.approx(title / 2 + (1 / np.sqrt(2)) / 2, abs=1e-6)
    assert cosines[0, 3] == pytest.approx(1 / 2, abs=1e-6)  # half its categories, and words that the other lacks
    assert cosines[1, 2] == 0


def test_a_profile_adds_up_what_single_items_say():
    words = all_at_once()
    profile = words.profile(np.array([0, 3]), np.array([1.0, 0.5]))
    cosines = words.between(np.arange(6), np.array([0, 3]))
    assert words.similarities(profile) == pytest.approx(cosines @ [1.0, 0.5])
    assert words.similarities(profile, np.array([2, 1])) == pytest.approx((cosines @ [1.0, 0.5])[[2, 1]])


def test_a_change_moves_one_row_and_the_old_features_stay_as_they_were():
    before = all_at_once()
    after = before.with_items(np.array([2, 6]), [("lamp", "light"), ("lamp", "light")])
    assert (after.num_items, before.num_items) == (7, 6)
    assert np.array_equal(after.columns[[0, 1, 3, 4, 5]], before.columns[[0, 1, 3, 4, 5]])
    assert after.between(np.array([2]), np.array([6])) == pytest.approx(1.0)
    assert before.between(np.array([2]), np.array([3])) == 0
