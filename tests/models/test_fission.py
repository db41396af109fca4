"""Regularisation from the noisy sum alone: the fast errors are the plain ones, and choices follow noise and content."""

import numpy as np
import pytest

from fedrec.models import fission
from fedrec.models.co_occurrence import pack_lower, packed_size, unpack
from fedrec.models.damped import damp
from fedrec.models.fission import CONTENT_RATIOS, RIDGES, choose_regularisation
from fedrec.models.spectral import denoise

K = 40
DIRECTION = np.linspace(1, 0.2, K) / np.linalg.norm(np.linspace(1, 0.2, K))


def blocks_world(num_blocks: int = 4, strength: float = 60.0) -> tuple[np.ndarray, np.ndarray]:
    """A Gram matrix of items in blocks, and the similarity that names the blocks."""
    same = (np.arange(K)[:, None] % num_blocks == np.arange(K) % num_blocks).astype(float)
    return strength / K * num_blocks * same + 8 * np.eye(K) + 120 * np.outer(DIRECTION, DIRECTION), same


def noisy(gram: np.ndarray, sd: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(packed_size(K)) * sd
    return pack_lower(damp(gram, DIRECTION, 0.5)) + noise


def ease(gram: np.ndarray, ridge: float, content: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(gram + content + ridge * np.eye(K))
    weights = -inverse / inverse.diagonal()
    np.fill_diagonal(weights, 0)
    return weights


@pytest.mark.parametrize("ratio", [0.0, 0.2])
def test_errors_of_all_ridges_are_those_of_solving_each(ratio):
    gram, similarity = blocks_world()
    packed, sd = noisy(gram, 1.5), 1.5
    half = fission._split(packed, sd, DIRECTION, 0.5, np.random.default_rng(0))
    found = fission._mean_errors([half], similarity, ratio)
    added = np.random.default_rng(0).standard_normal(packed_size(K)) * sd
    cleaned = denoise(packed + 0.5 * added, K, sd * np.sqrt(1.25), DIRECTION)
    solved = damp(cleaned, DIRECTION, 2.0)
    judge = damp(unpack(packed - 2 * added, K), DIRECTION, 2.0)
    for error, ridge in zip(found, RIDGES, strict=True):
        left = np.eye(K) - ease(solved, ridge, ratio * ridge * similarity)
        np.testing.assert_allclose(error, np.trace(left.T @ judge @ left), rtol=2e-3)


def test_the_two_halves_have_independent_noise_and_the_same_mean():
    sd, seen = 1.0, []
    for seed in range(300):
        packed = np.random.default_rng(1000 + seed).standard_normal(packed_size(3)) * sd
        added = np.random.default_rng(seed).standard_normal(packed_size(3)) * sd
        seen.append([packed + fission._SPLIT * added, packed - added / fission._SPLIT])
    first, second = np.array(seen).transpose(1, 0, 2)  # (num_draws, size) each
    correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(first.size)
    np.testing.assert_allclose(first.std(), np.sqrt(1.25), rtol=0.1)
    np.testing.assert_allclose(second.std(), np.sqrt(5), rtol=0.1)


def test_content_that_names_the_blocks_is_used_and_content_that_names_others_is_not():
    gram, similarity = blocks_world()
    other = (np.arange(K)[:, None] // 10 == np.arange(K) // 10).astype(float)
    rhos = {"right": [], "wrong": []}
    for seed in range(5):
        packed = noisy(gram, 4.0, seed)
        for name, content in (("right", similarity), ("wrong", other)):
            ridge, rho = choose_regularisation(packed, 4.0, DIRECTION, 0.5, content)
            rhos[name].append(rho / ridge)
    assert np.mean(rhos["right"]) > 2 * np.mean(rhos["wrong"])


def test_choices_are_on_the_grids_and_the_same_every_time():
    gram, similarity = blocks_world()
    packed = noisy(gram, 2.0)
    ridge, rho = choose_regularisation(packed, 2.0, DIRECTION, 0.5, similarity)
    assert ridge in RIDGES
    assert any(rho == ratio * ridge for ratio in CONTENT_RATIOS)
    assert choose_regularisation(packed, 2.0, DIRECTION, 0.5, similarity) == (ridge, rho)
    assert choose_regularisation(packed, 2.0, DIRECTION, 0.5, None)[1] == 0


def test_pure_noise_and_a_single_item_can_be_tuned():
    for packed in (noisy(np.zeros((K, K)), 50.0), noisy(np.zeros((K, K)), 1e-6)):
        assert np.isfinite(choose_regularisation(packed, 50.0, DIRECTION, 0.5, np.eye(K))).all()
    assert np.isfinite(choose_regularisation(np.array([3.0]), 1.0, np.ones(1), 0.5, None)).all()
