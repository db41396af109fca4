"""What noise alone looks like, and that what is left is closer to the truth than anything simpler."""

import numpy as np
import pytest

from fedrec.models.co_occurrence import pack_lower, packed_size, unpack
from fedrec.models.spectral import denoise, denoise_rectangle, noise_edge


def noise(num_items: int, sd: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(packed_size(num_items)) * sd


@pytest.mark.parametrize(("num_items", "sd"), [(150, 1.0), (400, 7.0)])
def test_the_largest_eigenvalue_of_pure_noise_is_at_the_edge(num_items, sd):
    """Off by sqrt(2) either way would be far outside; the limit's error is of order K^(-2/3)."""
    largest = [np.linalg.eigvalsh(unpack(noise(num_items, sd, seed), num_items))[-1] for seed in range(5)]
    np.testing.assert_allclose(np.mean(largest), noise_edge(sd, num_items), rtol=1.5 * num_items ** (-2 / 3))


def test_pure_noise_leaves_nothing_and_seldom_more_than_a_trace():
    for seed in range(5):
        cleaned = denoise(noise(500, 3.0, seed), 500, 3.0)
        assert cleaned.shape == (500, 500)
        assert not cleaned.any()


def test_without_noise_nothing_changes():
    packed = noise(12, 1.0, 0)
    np.testing.assert_array_equal(denoise(packed, 12, 0.0), unpack(packed, 12))


def test_a_strong_spike_comes_back_at_its_size():
    rng = np.random.default_rng(1)
    direction = rng.standard_normal(300)
    direction /= np.linalg.norm(direction)
    edge = noise_edge(1.0, 300)
    packed = pack_lower(10 * edge * np.outer(direction, direction)) + noise(300, 1.0, 2)
    values, vectors = np.linalg.eigh(denoise(packed, 300, 1.0))
    assert np.count_nonzero(values > 1e-6) == 1
    np.testing.assert_allclose(values[-1], 10 * edge * (1 - 1 / 400), rtol=0.01)
    assert abs(vectors[:, -1] @ direction) > 0.99


def test_shrinking_beats_cutting_and_undoing_the_bias():
    rng = np.random.default_rng(4)
    basis = np.linalg.qr(rng.standard_normal((200, 6)))[0]
    edge = noise_edge(1.0, 200)
    truth = (basis * edge * np.array([0.8, 0.9, 1.1, 1.4, 2.0, 4.0])) @ basis.T
    errors = {"shrunk": 0.0, "cut": 0.0, "undone": 0.0, "raw": 0.0}
    for seed in range(4):
        packed = pack_lower(truth) + noise(200, 1.0, 10 + seed)
        noisy = unpack(packed, 200)
        values, vectors = np.linalg.eigh(noisy)
        kept, sides = values[values > 1.02 * edge], vectors[:, values > 1.02 * edge]
        tries = {
            "shrunk": denoise(packed, 200, 1.0),
            "cut": (sides * kept) @ sides.T,
            "undone": (sides * (kept + np.sqrt(kept**2 - edge**2)) / 2) @ sides.T,
            "raw": noisy,
        }
        for name, matrix in tries.items():
            errors[name] += float(np.linalg.norm(matrix - truth))
    assert errors["shrunk"] < 0.97 * min(errors["cut"], errors["undone"], errors["raw"])


def test_the_result_is_positive_semi_definite_and_the_input_is_kept():
    packed = noise(40, 1.0, 5) * 3
    before = packed.copy()
    cleaned = denoise(packed, 40, 1.0)
    np.testing.assert_array_equal(packed, before)
    values = np.linalg.eigvalsh(cleaned)
    assert values[-1] > 0
    assert values[0] > -1e-9 * values[-1]
    assert denoise(np.zeros(0), 0, 1.0).shape == (0, 0)
    assert denoise(np.array([5.0]), 1, 1.0)[0, 0] == pytest.approx(np.sqrt(25 - 2))


def test_a_known_direction_is_not_lost_in_the_noise():
    """A spike of a third of the edge cannot be seen by its eigenvalue, but along a known direction it can."""
    direction = np.ones(400) / 20
    edge = noise_edge(1.0, 400)
    packed = pack_lower(edge / 3 * np.outer(direction, direction)) + noise(400, 1.0, 3)
    assert not denoise(packed, 400, 1.0).any()
    found = denoise(packed, 400, 1.0, direction)
    np.testing.assert_allclose(direction @ found @ direction, edge / 3, atol=4)
    np.testing.assert_allclose(found, found[0, 0], atol=1e-12)


def test_a_rectangle_of_pure_noise_leaves_nothing_and_a_shrunk_spike_errs_least():
    rng = np.random.default_rng(0)
    left, right = (vector / np.linalg.norm(vector) for vector in (rng.standard_normal(400), rng.standard_normal(12)))
    edge = 2.0 * (np.sqrt(400) + np.sqrt(12))
    errors = np.zeros(3)
    for _ in range(5):
        noise_alone = 2.0 * rng.standard_normal((400, 12))
        assert np.linalg.norm(denoise_rectangle(noise_alone, 2.0)) < edge / 2
        truth = 1.3 * edge * np.outer(left, right)
        seen = truth + noise_alone
        u, values, v = np.linalg.svd(seen, full_matrices=False)
        tries = (denoise_rectangle(seen, 2.0), values[0] * np.outer(u[:, 0], v[0]), seen)
        errors += [np.linalg.norm(matrix - truth) for matrix in tries]
    assert errors[0] < 0.97 * errors[1] < errors[2]


def test_a_rectangle_without_noise_stays_as_it_is():
    matrix = np.random.default_rng(0).standard_normal((7, 3))
    np.testing.assert_array_equal(denoise_rectangle(matrix, 0.0), matrix)
    assert denoise_rectangle(np.zeros((0, 3)), 1.0).shape == (0, 3)
