"""Settings of the models of pairs: what reaches the network, and what is refused."""

import dataclasses

import numpy as np
import pytest
from scipy import sparse

from fedrec.errors import ConfigError
from fedrec.models.ncf import Gmf, NcfSettings, NeuMf
from fedrec.models.recommender import PublicInputs, RoundKind
from fedrec.privacy.draws import Draws, shopper_digests


def test_the_tower_s_width_and_expected_draws_reach_the_network():
    settings = NcfSettings(factors=8, is_dot_product=False, tower_factors=3, layers=2, fold_in_rate=0.2)
    network = NeuMf(settings).make_network(11)
    assert network.widths == [8, 6]
    assert network.output.in_features == 8 + 3
    assert network.settings.is_expected
    assert network.settings.fold_in_rate == 0.2
    dot = NeuMf(NcfSettings(factors=8, tower_factors=3)).make_network(11)
    assert dot.output.in_features == 3
    same = NeuMf(NcfSettings(factors=8, tower_factors=0, layers=2, is_expected=False)).make_network(11)
    assert same.widths == [8, 16]
    assert not same.settings.is_expected


def test_a_shopper_is_recommended_to_by_a_vector_of_more_steps_than_training_takes():
    histories = sparse.csr_matrix((np.random.default_rng(2).random((6, 12)) < 0.4).astype(np.float32))
    draws = Draws.seeded("some", shopper_digests(range(6)))
    few, many, long = (
        Gmf(NcfSettings(factors=3, fold_in_steps=steps, serving_steps=serving)).make_network(12)
        for steps, serving in ((3, 3), (3, 0), (6, 6))
    )
    assert few.fold_in(histories, draws).equal(many.fold_in(histories, draws))
    assert many.fold_in(histories).equal(long.fold_in(histories))
    assert not few.fold_in(histories).equal(many.fold_in(histories))


def test_the_vectors_rate_reaches_the_training():
    assert NeuMf(NcfSettings(vector_learning_rate=0.2)).fit_settings(5).vector_learning_rate == 0.2


def test_training_alone_folds_vectors_in_anew_with_every_round():
    rng = np.random.default_rng(3)
    histories = sparse.csr_matrix((rng.random((9, 12)) < 0.4).astype(np.float32))
    settings = NcfSettings(factors=3, rounds=3, local_epochs=1, learning_rate=0.02, round_learning_rate=0, device="cpu")
    model, public = Gmf(settings), PublicInputs(np.arange(12).astype(str))
    first = model.train_alone(histories, public, rounds=2)  # counts, then the first local update
    alone = model.train_alone(histories, public)
    again = dataclasses.replace(model, settings=dataclasses.replace(settings, rounds=1)).train_alone(histories, public)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    spec = dataclasses.replace(model.plan_round(1, {}, public), inputs={**first, "round": np.array([1])})
    draws = Draws.seeded("alone/0", shopper_digests(range(9)))
    second = model.advance(spec, {}, model.local_update(spec, histories, draws), public)
    spec = dataclasses.replace(spec, inputs={**second, "round": np.array([2])})
    third = model.advance(spec, {}, model.local_update(spec, histories, draws), public)
    assert all(np.allclose(alone[name], third[name], atol=1e-6) for name in alone)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tower_factors": -1},
        {"fold_in_rate": 0},
        {"serving_steps": -1},
        {"is_expected": True, "loss": "softmax"},
        {"factors": 8193},
        {"tower_factors": 8193},
        {"layers": 9},
        {"negatives": 250},
        {"negatives": 0},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        NcfSettings(**wrong)


def test_a_towers_first_layer_is_bounded_as_every_other_width_is():
    assert NcfSettings(tower_factors=64, layers=8).of_network().tower_width << 7 == 8192
    assert NcfSettings(tower_factors=0, factors=8192).of_network().tower_width == 8192
    for wrong in {"tower_factors": 65, "layers": 8}, {"tower_factors": 0, "factors": 4097, "layers": 2}:
        with pytest.raises(ConfigError, match=r"layers = .* the tower's first layer is (8320|8194) wide"):
            NcfSettings(**wrong)


def test_the_most_negatives_are_those_that_leave_room_for_an_item():
    of_network = NcfSettings(negatives=249).of_network()
    with pytest.raises(ConfigError, match="must leave room for an item"):
        dataclasses.replace(of_network, negatives=250)


@pytest.mark.parametrize("loss", ["pairwise", "softmax"])
def test_a_loss_without_a_mean_over_draws_is_refused_by_what_makes_it_work(loss):
    with pytest.raises(ConfigError, match=rf"loss = '{loss}': .*give is_expected = false, or"):
        NcfSettings(loss=loss)
    assert NcfSettings(loss=loss, is_expected=False).of_network().loss.value == loss


def test_a_federation_starts_at_the_popularity_of_all_shops_together():
    rng = np.random.default_rng(4)
    shops = [sparse.csr_matrix((rng.random((size, 12)) < 0.3).astype(np.float32)) for size in (9, 5)]
    model, public = NeuMf(NcfSettings(factors=3, device="cpu")), PublicInputs(np.arange(12).astype(str))
    spec = model.plan_round(0, {}, public)
    assert spec is not None
    total = sum(model.contributions(spec, rows).total(np.ones(rows.shape[0])) for rows in shops)
    state = model.advance(spec, {}, total, public)
    counts = sum(np.asarray(rows.sum(0)).ravel() for rows in shops) + 0.5
    bias = np.log(counts / counts.mean())
    np.testing.assert_allclose(state["item_bias.weight"][:, 0], bias, rtol=1e-5, atol=1e-6)
    update = model.plan_round(1, state, public)
    assert update is not None
    assert update.kind is RoundKind.LOCAL_UPDATE
    assert update.inputs["round"] == [0]
    assert model.plan_round(model.settings.rounds, state, public) is not None
    assert model.plan_round(model.settings.rounds + 1, state, public) is None
    change = update.layout.split(model.local_update(update, shops[0], Draws.seeded("a", shopper_digests(range(9)))))
    assert all(change[name].any() for name in ("item_bias.weight", "parts.product.items.weight"))


def test_a_shops_negative_counts_are_none():
    public, model = PublicInputs(np.arange(3).astype(str)), Gmf(NcfSettings(factors=3, device="cpu"))
    spec = model.plan_round(0, {}, public)
    assert spec is not None
    state = model.advance(spec, {}, np.array([-7.0, 4.0, 2.0]), public)
    counts = np.array([0.5, 4.5, 2.5])
    np.testing.assert_allclose(state["item_bias.weight"][:, 0], np.log(counts / 2.5), rtol=1e-6)


def test_a_table_of_one_value_an_item_is_no_bias():
    """An item that the federation doesn't know takes the table's mean or zeros; of the biases the least."""
    model = Gmf(NcfSettings(factors=1, device="cpu"))
    state = model.arrays_at(np.arange(5) + 1.0)
    own = model.project(state, np.array([3, -1]), PublicInputs(np.array(["3", "new"])))
    table, bias = "parts.product.items.weight", "item_bias.weight"
    np.testing.assert_array_equal(own[table], [state[table][3], [0]])
    np.testing.assert_array_equal(own[bias], [state[bias][3], state[bias].min(0)])


def test_no_items_are_no_trouble():
    model, nothing = Gmf(NcfSettings(factors=3, device="cpu")), sparse.csr_matrix((2, 0), dtype=np.float32)
    public = PublicInputs(np.array([], str))
    own = model.own_statistics(model.train_alone(nothing, public), nothing, public)
    assert model.fit(own, public).scores(nothing).shape == (2, 0)
