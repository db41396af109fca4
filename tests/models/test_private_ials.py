"""Private iALS: which items count, what noise does to the items, and the shop's own sums."""

import numpy as np
import pytest
from scipy import sparse

from fedrec.errors import BadMessage, ConfigError
from fedrec.models.factors import IalsSettings, unpack_symmetric
from fedrec.models.ials import Ials
from fedrec.models.private_ials import GRAM_SHARE, PrivateIals, PrivateIalsSettings, rarest
from fedrec.models.recommender import PublicInputs, RoundSpec, train_alone
from fedrec.testing import plant_world


def test_the_rarest_items_by_released_popularity_count_ties_to_the_smaller_place():
    rows = sparse.csr_matrix(np.array([[1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 0, 1, 1, 0]], np.float32))
    popularity = np.array([9.0, -2.0, 5.0, 5.0, 7.0])
    kept = rarest(rows, popularity, 2)
    assert [kept[row].indices.tolist() for row in range(4)] == [[1, 2], [1, 3], [], [2, 3]]
    assert kept.has_sorted_indices
    np.testing.assert_array_equal(rarest(rows, popularity, 5).toarray(), rows.toarray())


def test_a_sum_by_hand():
    """Two shoppers of one and two items, in one dimension: x is 1 whatever the factors."""
    model = PrivateIals(PrivateIalsSettings(factors=1))
    public = PublicInputs(np.array(["a", "b", "c"], dtype=object))
    inputs = {"covered": np.arange(3), "popularity": np.zeros(3), "item_factors": np.array([[0.5], [2.0], [0.1]])}
    spec = model.plan_round(1, {"popularity": np.zeros(3)}, public)
    spec = RoundSpec(spec.kind, spec.name, spec.layout, inputs)
    rows = sparse.csr_matrix(np.array([[1, 0, 0], [0, 1, 1]], np.float32))
    contributions = model.contributions(spec, rows)
    half, (g, r) = np.sqrt(0.5), np.sqrt([GRAM_SHARE, 1 - GRAM_SHARE])
    np.testing.assert_allclose(contributions.total(np.ones(2)), [g * (1 + half), r, r * half, r * half])
    np.testing.assert_allclose(contributions.norms(), [1, np.sqrt(GRAM_SHARE / 2 + 1 - GRAM_SHARE)])


@pytest.mark.parametrize("noise_sd", [0.0, 1.0, 1e4])
def test_items_solve_whatever_the_noise_left_of_the_gram_matrix(noise_sd):
    world, model = plant_world(), PrivateIals(PrivateIalsSettings(factors=5, released_items=20))
    rng, state = np.random.default_rng(0), {}
    for index in range(3):
        spec = model.plan_round(index, state, world.public)
        total = model.contributions(spec, world.histories).total(np.ones(90))
        total += noise_sd * rng.standard_normal(len(total))
        state = model.advance(spec, state, total, world.public, noise_sd=noise_sd)
    assert noise_sd < 1e4 or np.linalg.eigvalsh(unpack_symmetric(state["gram"][None, :], 5)[0])[0] < 0
    assert np.isfinite(model.fit(state, world.public).scores(world.histories)).all()


def test_more_noise_means_smaller_factors():
    world, model = plant_world(), PrivateIals(PrivateIalsSettings(sweeps=1))
    state = {"popularity": np.ones(33)}
    spec = model.plan_round(1, state, world.public)
    total = model.contributions(spec, world.histories).total(np.ones(90))
    sizes = [
        np.linalg.norm(model.advance(spec, state, total, world.public, noise_sd=sd)["item_factors"]) for sd in (0, 1, 9)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < 0.2 * sizes[0]


def test_first_factors_follow_released_popularity_and_public_content():
    world, model = plant_world(), PrivateIals(PrivateIalsSettings(factors=4))
    popularity = np.arange(33.0) - 3
    factors = model.plan_round(1, {"popularity": popularity}, world.public).inputs["item_factors"]
    assert np.corrcoef(factors[:, 0], np.maximum(popularity, 0))[0, 1] > 0.9
    factors = factors[:, 1:]
    unit = factors / np.linalg.norm(factors, axis=1, keepdims=True)
    has_content = np.arange(33) % 7 != 6
    cosine = unit @ unit.T
    is_same = (world.blocks[:, None] == world.blocks) & ~np.eye(33, dtype=bool) & has_content & has_content[:, None]
    is_other = (world.blocks[:, None] != world.blocks) & has_content & has_content[:, None]
    assert cosine[is_same].mean() > 0.8
    assert abs(cosine[is_other].mean()) < 0.2


def test_more_than_five_sweeps_become_two():
    for sweeps, expected in ((1, 1), (5, 5), (6, 2), (10, 2)):
        requests = Ials(IalsSettings(sweeps=sweeps)).release_requests()
        assert [request.repeats for request in requests] == [1, expected]
        assert sum(request.share * request.repeats for request in requests) == pytest.approx(1)


def test_a_shop_adds_its_own_items():
    world, model = plant_world(num_items=12), PrivateIals(PrivateIalsSettings(factors=3, released_items=6))
    state = train_alone(model, world.histories, world.public)
    projected = model.project(state, np.arange(12), world.public)
    assert projected["released"].tolist() == state["covered"].tolist()
    own = model.own_statistics(projected, world.histories[:30], world.public)
    beyond = np.setdiff1d(np.arange(12), state["covered"])
    mixed = model.mix(projected, own, global_share=0.5)
    assert not projected["right"][beyond].any()
    np.testing.assert_allclose(mixed["right"], projected["right"] + 10 * own["right"])
    assert np.abs(mixed["right"][beyond]).max() > 0


def test_arrays_that_do_not_fit_are_refused():
    model, public = PrivateIals(PrivateIalsSettings(factors=2)), plant_world(num_items=4).public
    spec = model.plan_round(1, {"popularity": np.ones(4)}, public)
    rows = sparse.csr_matrix(np.ones((2, 4), np.float32))
    for name, value in (("item_factors", np.ones((4, 3))), ("popularity", np.ones(3)), ("covered", np.arange(4)[::-1])):
        bad = RoundSpec(spec.kind, spec.name, spec.layout, {**spec.inputs, name: value})
        with pytest.raises(BadMessage):
            model.contributions(bad, rows)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("sweeps", value) for value in (0, 6)),
        *(("released_items", value) for value in (0, 12_001)),
        *(("factors", 0), ("items_per_shopper", 0), ("init_seed", -1)),
        *((name, value) for name in ("alpha", "own_weight") for value in (0.0, float("nan"))),
        *((name, value) for name in ("tail_share", "popularity_weight") for value in (-0.1, float("nan"))),
    ],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        PrivateIalsSettings(**{field: value})
