"""Items are as alike as their vectors; by words while one of them waits."""

from __future__ import annotations

import numpy as np
import pytest

from fedrec.models.encoded_texts import EncodedTexts, Vectors, digest_of, halved, text_of
from fedrec.models.hashed_words import HashedWords

TEXTS = [("red kettle", "home"), ("blue teapot", "home|tea"), ("", ""), ("red bicycle", "sport"), ("red lamp", "home")]
VECTORS = np.array([[3.0, 0.0, 4.0], [4.0, 0.0, 3.0], [0.0, -2.0, 0.0]], np.float32)
ALL = np.arange(len(TEXTS))


def encoded() -> EncodedTexts:
    """The first two and the fourth are; the last one waits."""
    vectors = Vectors(3)
    vectors.add([digest_of(text_of(*TEXTS[place])) for place in (0, 1, 3)], halved(VECTORS))
    return EncodedTexts(vectors).with_items(ALL, TEXTS)


def test_what_is_encoded_is_by_vectors_and_what_waits_is_by_words():
    texts, words = encoded(), HashedWords().with_items(ALL, TEXTS)
    cosines, by_words = texts.between(ALL, ALL), words.between(ALL, ALL)
    assert cosines[0, [0, 1, 3]] == pytest.approx([1, 0.96, 0], abs=1e-3)
    assert cosines[3, 3] == pytest.approx(1)
    assert not cosines[2].any()  # an item without texts is like nothing, and does not wait
    assert cosines[4] == pytest.approx(by_words[4])
    assert cosines[:, 4] == pytest.approx(by_words[:, 4])
    assert by_words[0, 4] > 0
    assert texts.waiting().tolist() == [4]


def test_a_profile_adds_up_what_single_items_say():
    history, strengths = np.array([4, 0, 3]), np.array([1.0, 0.5, 0.25])
    waits = encoded()
    waits.vectors.add([digest_of(text_of(*TEXTS[4]))], halved(np.array([[1.0, 1.0, 1.0]])))
    for texts in (waits, waits.looked_up(np.array([4]), TEXTS[4:])):
        profile = texts.profile(history, strengths)
        expected = texts.between(ALL, history) @ strengths
        assert texts.similarities(profile) == pytest.approx(expected, abs=1e-6)
        assert texts.similarities(profile, np.array([3, 1, 4])) == pytest.approx(expected[[3, 1, 4]], abs=1e-6)
    assert (waits.num_waiting, texts.num_waiting) == (1, 0)


def test_a_known_text_has_its_vector_at_once_and_a_new_one_waits():
    before = encoded()
    after = before.with_items(np.array([0, 5]), [("green kettle", "home"), TEXTS[1]])
    assert after.waiting().tolist() == [4, 0]
    assert after.row[5] == after.row[1]
    assert (before.num_items, before.waiting().tolist()) == (5, [4])


def test_rows_stay_where_they_are_while_vectors_grow():
    vectors, rng = Vectors(4), np.random.default_rng(1)
    values = rng.normal(size=(3_000, 4))
    digests = [digest_of(str(place)) for place in range(len(values))]
    for begin in range(0, len(values), 1_000):
        vectors.add(digests[begin : begin + 1_000], halved(values[begin : begin + 1_000]))
    found = vectors.rows[[vectors.row(digest) for digest in digests]]
    assert found == pytest.approx(values / np.linalg.norm(values, axis=1, keepdims=True), abs=1e-3)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1)
