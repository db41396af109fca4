"""Private EASE, item neighbours and popularity: bounds of a shopper, rounds, and the shop's own pairs."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from fedrec.errors import BadMessage, ConfigError
from fedrec.models import load_model, private_model, release_requests, settings_of
from fedrec.models.co_occurrence import packed_size, unpack
from fedrec.models.ease import Ease, EaseSettings, PrivateEase, PrivateEaseSettings
from fedrec.models.fission import RIDGES
from fedrec.models.ials import Ials
from fedrec.models.itemknn import ItemKnn, ItemKnnSettings, PrivateItemKnn, PrivateItemKnnSettings
from fedrec.models.popularity import Popularity, PrivatePopularity
from fedrec.models.private_ials import PrivateIals, PrivateIalsSettings
from fedrec.models.recommender import Layout, PublicInputs, RoundKind, RoundSpec, train_alone
from fedrec.privacy.mechanisms import Outlook, PlannedRelease
from fedrec.testing import plant_world

SCALE = 2**18
MODELS = [
    PrivateEase(PrivateEaseSettings(released_items=6)),
    PrivateItemKnn(PrivateItemKnnSettings(released_items=6)),
    PrivatePopularity(),
    PrivateIals(PrivateIalsSettings(factors=3, released_items=6, items_per_shopper=2)),
]


def outlook(model, noise: float = 2.0, public_shoppers: int = 6000) -> Outlook:
    """As if each release were calibrated to noise / sqrt(its share)."""
    schedule = tuple(
        PlannedRelease(request.name, request.clip_norm, noise / np.sqrt(request.share))
        for request in release_requests(model)
        for _ in range(request.repeats)
    )
    return Outlook(schedule, tuple(release.noise_multiplier for release in schedule), public_shoppers)


def after_popularity(popularity: np.ndarray, noise_sd: float = 0.0) -> dict[str, np.ndarray]:
    return {"popularity": popularity, "popularity_noise": np.array([noise_sd])}


def rounds(model, public: PublicInputs, popularity: np.ndarray):
    """The model's rounds, with items chosen by ``popularity``."""
    specs = [model.plan_round(0, {}, public)]
    following = model.plan_round(1, after_popularity(popularity), public)
    return specs if following is None else [*specs, following]


def table(histories: list[list[tuple[int, float]]], num_items: int) -> sparse.csr_matrix:
    """CSR as it comes from events: unsorted columns, repeated ones, explicit zeros."""
    indptr = np.cumsum([0, *(len(row) for row in histories)])
    cells = [cell for row in histories for cell in row]
    data = np.array([strength for _, strength in cells], np.float32)
    return sparse.csr_matrix(
        (data, np.array([item for item, _ in cells], np.int32), indptr), shape=(len(indptr) - 1, num_items)
    )


def grid_sum(model, spec, rows: sparse.csr_matrix) -> np.ndarray:
    """As the door asks for it, with C = 1."""
    contributions = model.contributions(spec, rows)
    norms = contributions.norms()
    return contributions.integers(1 / np.maximum(norms, 1), SCALE)


EDGES = [
    [(0, 1.0)],
    [(item, 1.0) for item in range(11)],
    [(9, 1.0), (10, 1.0)],  # only items outside the six most popular
    [(3, 1.0), (3, 1.0), (1, 1.0), (3, 1.0)],
    [(2, 0.0), (4, 1.0)],
    [(2, 0.0)],
    [(5, 1000.0), (0, 0.25), (7, 3.0)],
    [],
]
SHOPPERS = st.lists(
    st.lists(st.tuples(st.integers(0, 10), st.sampled_from([0.0, 0.5, 1.0, 7.0])), max_size=14), max_size=9
)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@settings(max_examples=30, deadline=None)
@given(others=SHOPPERS, edge=st.sampled_from(EDGES), place=st.integers(0, 8))
def test_removing_any_shopper_moves_the_integer_sum_by_at_most_the_bound(model, others, edge, place):
    public = PublicInputs(np.array([f"i{n}" for n in range(11)], dtype=object))
    histories = [*others[:place], edge, *others[place:]]
    for spec in rounds(model, public, np.arange(11.0)[::-1]):
        everyone = grid_sum(model, spec, table(histories, 11))
        for shopper in range(len(histories)):
            rest = grid_sum(model, spec, table(histories[:shopper] + histories[shopper + 1 :], 11))
            assert sum(int(value) ** 2 for value in everyone - rest) <= SCALE**2
            if spec.name != "co-occurrence":  # which is rounded once, after the sum
                np.testing.assert_array_equal(everyone - rest, grid_sum(model, spec, table([histories[shopper]], 11)))
        shuffled = grid_sum(model, spec, table(histories[::-1], 11))
        np.testing.assert_array_equal(shuffled, everyone)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_how_often_something_was_bought_does_not_count(model):
    public = PublicInputs(np.array([f"i{n}" for n in range(11)], dtype=object))
    for spec in rounds(model, public, np.arange(11.0)[::-1]):
        often, once = (
            grid_sum(model, spec, table([row], 11)) for row in ([(3, 9.0), (3, 1.0), (1, 0.5)], [(3, 1), (1, 1)])
        )
        np.testing.assert_array_equal(often, once)
        assert often.any()


@pytest.mark.parametrize("model", [Ease(), ItemKnn(), Popularity(), Ials()], ids=lambda model: model.name)
def test_rounds_have_the_requests_names_in_order(model):
    world = plant_world()
    private = private_model(model, outlook(model), world.public)
    state, names = {}, []
    while (spec := private.plan_round(len(names), state, world.public)) is not None:
        names.append(spec.name)
        total = private.contributions(spec, world.histories).total(np.ones(world.histories.shape[0]))
        state = private.advance(spec, state, total, world.public, noise_sd=1.0)
    assert names == [request.name for request in release_requests(model) for _ in range(request.repeats)]


@pytest.mark.parametrize("model", [Ease(), ItemKnn(), Popularity(), Ials()], ids=lambda model: model.name)
def test_the_settings_rebuild_the_private_model_after_a_journey_as_json(model):
    private = private_model(model, outlook(model), plant_world().public)
    kept = json.loads(json.dumps(settings_of(private)))
    assert load_model(f"{type(private).__module__}:{type(private).__qualname__}", kept) == private


def test_content_left_out_stays_out_and_a_smaller_catalogue_covers_no_more():
    public = plant_world().public
    ease = Ease(EaseSettings(content_weight=0, max_items=20))
    private = private_model(ease, outlook(ease), public)
    assert private.settings.content_weight == 0
    assert private.settings.released_items == private.settings.max_items == 20
    knn = ItemKnn(ItemKnnSettings(neighbours=7))
    assert private_model(knn, outlook(knn), public).settings.neighbours == 7


def test_the_budget_goes_to_the_most_popular_items_of_the_noisy_sum():
    model, public = PrivateEase(PrivateEaseSettings(released_items=3)), plant_world(num_items=6).public
    noisy = np.array([0.5, -2.0, 9.0, 3.0, 3.0, 3.0])
    spec = model.plan_round(1, after_popularity(noisy), public)
    assert spec.inputs["covered"].tolist() == [2, 3, 4]
    assert spec.layout.size == packed_size(3)
    state = model.advance(spec, after_popularity(noisy), np.ones(spec.layout.size), public)
    assert state["released"].tolist() == state["covered"].tolist() == [2, 3, 4]


def test_pure_noise_leaves_content_and_popularity_to_rank():
    world = plant_world()
    model = PrivateEase(PrivateEaseSettings(released_items=24, tail_share=0.5))
    popularity = np.arange(33.0) - 10  # noise may leave counts below zero
    spec = model.plan_round(1, after_popularity(popularity, 5.0), world.public)
    noise = np.random.default_rng(0).standard_normal(spec.layout.size) * 50
    state = model.advance(spec, after_popularity(popularity, 5.0), noise, world.public, noise_sd=50.0)
    assert not state["co_occurrence"].any()
    scores = model.fit(state, world.public).scores(world.histories[:5])
    for row, taste in zip(scores, world.tastes, strict=False):
        has_block = (world.blocks == taste) & (np.arange(33) % 7 != 6)
        assert row[has_block].min() > row[(world.blocks != taste)].mean()
    without = model.fit(state, PublicInputs(world.public.items)).scores(world.histories[:5])
    assert (np.argmax(without, axis=1) == 32).all()


@pytest.mark.parametrize("model", MODELS[:2], ids=lambda model: model.name)
@pytest.mark.parametrize("noise_sd", [1e-3, 1.0, 100.0])
def test_any_noise_can_be_solved(model, noise_sd):
    rng = np.random.default_rng(3)
    for num_items, has_content in ((1, False), (4, True), (40, True), (40, False)):
        world = plant_world(num_items=num_items, num_blocks=min(3, num_items), has_content=has_content)
        spec = model.plan_round(1, after_popularity(rng.standard_normal(num_items), noise_sd), world.public)
        total = model.contributions(spec, world.histories).total(np.ones(90)) + noise_sd * rng.standard_normal(
            spec.layout.size
        )
        state = model.advance(
            spec, after_popularity(rng.standard_normal(num_items), noise_sd), total, world.public, noise_sd=noise_sd
        )
        scores = model.fit(state, world.public).scores(world.histories)
        assert np.isfinite(scores).all()


def test_own_pairs_are_added_with_their_weight_and_reach_beyond_the_released_items():
    world = plant_world(num_items=12)
    model = PrivateEase(PrivateEaseSettings(released_items=5, own_weight=4.0))
    state = train_alone(model, world.histories, world.public)
    rows = world.histories[:20]
    projected = model.project(state, np.arange(12), world.public)
    assert projected["covered"].tolist() == list(range(12))
    assert projected["released"].tolist() == state["released"].tolist()
    own = model.own_statistics(projected, rows, world.public)
    dense = rows.toarray().astype(float)
    unit = dense / np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1)
    np.testing.assert_allclose(own["popularity"], unit.sum(axis=0))
    expected = np.zeros((12, 12))
    expected[np.ix_(state["covered"], state["covered"])] = unpack(state["co_occurrence"], 5)
    for share, weight in ((0.5, 4.0), (0.8, 1.0)):
        mixed = model.mix(projected, own, global_share=share)
        np.testing.assert_allclose(unpack(mixed["co_occurrence"], 12), expected + weight * unit.T @ unit, atol=1e-9)
        np.testing.assert_allclose(mixed["popularity"], state["popularity"] + weight * unit.sum(axis=0))


def test_tail_share_scales_what_content_says_of_other_items():
    world = plant_world(num_items=12)
    model = PrivateEase(PrivateEaseSettings(released_items=8, max_items=8, tail_share=1.0, regularisation=1.0))
    state = train_alone(model, world.histories, world.public)
    tail = np.setdiff1d(np.arange(12), state["covered"])
    known = tail[np.diff(world.public.content.indptr)[tail] > 0]
    scorers = [
        PrivateEase(replace(model.settings, tail_share=share)).fit({**state, "popularity": np.zeros(12)}, world.public)
        for share in (1.0, 0.25)
    ]
    full, quarter = (scorer.scores(world.histories)[:, known] for scorer in scorers)
    assert np.abs(full).max() > 0.01
    np.testing.assert_allclose(quarter, full / 4, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("released_items", value) for value in (0, 12_001)),
        *(("max_items", value) for value in (0, 12_001)),
        *((name, value) for name in ("content_weight", "content_tilt") for value in (-1.0, float("nan"))),
        *(("popularity_weight", value) for value in (-1.0, float("inf"))),
        *(("damping", value) for value in (0.0, 2.0**-7, 1.5, float("nan"))),
        *(("own_weight", value) for value in (0.0, float("inf"))),
        *(("tail_share", value) for value in (-0.1, 1.1, float("nan"))),
    ],
)
def test_settings_out_of_range_are_refused(field, value):
    for settings_class in (PrivateEaseSettings, PrivateItemKnnSettings):
        assert asdict(settings_class())[field] is not None
        with pytest.raises(ConfigError, match=field):
            settings_class(**{field: value})


def test_solver_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="regularisation"):
        PrivateEaseSettings(regularisation=0)
    with pytest.raises(ConfigError, match="neighbours"):
        PrivateItemKnnSettings(neighbours=0)


def test_a_direction_that_is_none_is_refused_and_any_other_is_made_a_unit_vector():
    model, public = MODELS[0], PublicInputs(np.array([f"i{n}" for n in range(11)], dtype=object))
    spec = rounds(model, public, np.arange(11.0)[::-1])[1]
    rows = table(EDGES, 11)
    for bad in (np.zeros(6), np.full(6, np.nan), np.ones(5), np.array([np.inf, *np.ones(5)])):
        with pytest.raises(BadMessage, match="direction"):
            model.contributions(replace(spec, inputs={**spec.inputs, "direction": bad}), rows)
    longer = replace(spec, inputs={**spec.inputs, "direction": 3 * spec.inputs["direction"]})
    np.testing.assert_array_equal(grid_sum(model, longer, rows), grid_sum(model, spec, rows))


def test_a_noisy_sum_finds_its_own_regularisation_and_a_mixture_takes_that_of_the_settings():
    world = plant_world(num_shoppers=400)
    model = PrivateEase(PrivateEaseSettings(released_items=30, regularisation=12.0, content_weight=5.0))
    state, rng = {}, np.random.default_rng(0)
    for index in range(2):
        spec = model.plan_round(index, state, world.public)
        total = model.contributions(spec, world.histories).total(np.ones(400))
        total += rng.standard_normal(len(total))
        state = model.advance(spec, state, total, world.public, noise_sd=1.0)
    assert state["ridge"][0] in RIDGES
    assert state["content_weight"][0] != 5
    clean = train_alone(model, world.histories, world.public)
    assert (clean["ridge"][0], clean["content_weight"][0]) == (12, 5)
    projected = model.project(state, np.arange(33), world.public)
    own = model.own_statistics(projected, world.histories[:50], world.public)
    mixed = model.mix(projected, own, global_share=0.5)
    assert (mixed["ridge"][0], mixed["content_weight"][0]) == (12, 5)


def test_content_is_tilted_towards_popular_items():
    world = plant_world(num_items=12)
    state = train_alone(MODELS[0], world.histories, world.public)
    flat, tilted = (PrivateEase(PrivateEaseSettings(released_items=12, content_tilt=tilt)) for tilt in (0.0, 0.5))
    np.testing.assert_array_equal(flat._content_scale(state), 1)
    popularity = np.where(state["popularity"] > 0, state["popularity"], 0)
    scale = tilted._content_scale(state)
    assert (np.diff(scale[np.argsort(popularity)]) >= 0).all()
    np.testing.assert_allclose(scale[popularity.argmax()] ** 2, popularity.max() / popularity[state["released"]].mean())


def test_a_shopper_without_known_items_is_ranked_by_popularity():
    world = plant_world(has_content=False)
    model = PrivateEase(PrivateEaseSettings(released_items=20))
    state = train_alone(model, world.histories, world.public)
    nobody = sparse.csr_matrix((1, 33), dtype=np.float32)
    scores = model.fit(state, world.public).scores(nobody)[0]
    np.testing.assert_allclose(scores, 1e-4 * state["popularity"], rtol=1e-5)


def test_items_without_statistics_are_solved_on_content_with_the_others():
    """As the plain formula does it, with zeros in the co-occurrence."""
    world = plant_world(num_items=12)
    settings = PrivateEaseSettings(released_items=8, regularisation=2.0, content_weight=1.5, content_tilt=0.0)
    model = PrivateEase(replace(settings, popularity_weight=0.0))
    state = train_alone(model, world.histories, world.public)
    gram = np.zeros((12, 12))
    gram[np.ix_(state["covered"], state["covered"])] = unpack(state["co_occurrence"], 8)
    features = world.public.content.toarray().astype(float)
    inverse = np.linalg.inv(gram + 1.5 * features @ features.T + 2.0 * np.eye(12))
    weights = -inverse / inverse.diagonal()
    np.fill_diagonal(weights, 0)
    scores = model.fit(state, world.public).scores(world.histories)
    np.testing.assert_allclose(scores, world.histories.toarray() @ weights, atol=1e-5)


@pytest.mark.parametrize("size", [2.3e-162, 1e-308, 1e160, 1e300])
def test_a_direction_of_any_size_is_taken_at_norm_one(size):
    rng = np.random.default_rng(0)
    covered = np.arange(40)
    direction = size * np.concatenate([[1.0], np.full(39, 0.65)])
    model = PrivateEase(PrivateEaseSettings(released_items=40))
    layout = Layout((("co_occurrence", (packed_size(40),)),))
    spec = RoundSpec(RoundKind.STATISTICS, "co-occurrence", layout, {"covered": covered, "direction": direction})
    rows = sparse.csr_matrix((rng.random((6, 40)) < 0.5).astype(np.float32))
    made = model.contributions(spec, rows)
    assert np.linalg.norm(made.direction) == pytest.approx(1)
    whole = made.integers(np.ones(6), 2.0**18)
    rest = model.contributions(spec, rows[1:]).integers(np.ones(5), 2.0**18)
    assert np.sqrt(float(((whole - rest).astype(float) ** 2).sum())) <= 2.0**18
