"""Every neural recommender under the contract."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from fedrec.errors import ConfigError
from fedrec.models.autoencoders import (
    AutoencoderSettings,
    MultDae,
    MultDaeSettings,
    MultVae,
    MultVaeSettings,
    RecVae,
    RecVaeSettings,
    VaeGan,
    VaeGanSettings,
)
from fedrec.models.ncf import Gmf, Mlp, NcfSettings, NeuMf
from fedrec.models.neural import NeuralModel, NeuralSettings
from fedrec.models.smallae import SmallAe, SmallAeSettings
from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.testing import NeuralContract
from fedrec.testing.neural import first_update
from fedrec.testing.planted import plant_world

FAST = {"rounds": 10, "local_epochs": 4, "batch_shoppers": 10, "learning_rate": 1e-2, "device": "cpu"}
DRAWN = {"is_dot_product": False, "tower_factors": 0, "negatives": 4, "is_expected": False, "regularisation": 0.0}
FOLDED = {"fold_in_steps": 20, "fold_in_rate": 0.05, "vector_learning_rate": 0.05, "last_round_rate": 1.0}
PAIRS = {**FAST, **DRAWN, **FOLDED, "factors": 8, "least_steps": 4}
BASKETS = {**FAST, "hidden": 20, "latent": 8}
ONE_STEP = {**BASKETS, "local_epochs": 1, "batch_shoppers": 30, "least_steps": 1}


class TestMultDae(NeuralContract):
    def make_model(self):
        return MultDae(MultDaeSettings(**BASKETS))


class TestMultVae(NeuralContract):
    def make_model(self):
        return MultVae(MultVaeSettings(**BASKETS))


class TestRecVae(NeuralContract):
    def make_model(self):
        return RecVae(RecVaeSettings(**BASKETS))

    @pytest.mark.parametrize("index", [0, 3])
    def test_a_round_moves_both_parts_at_their_own_rates_where_one_place_takes_turns(self, index):
        world = plant_world(num_shoppers=30, num_items=12, num_blocks=2)
        slow, even = (RecVae(RecVaeSettings(**ONE_STEP, round_encoder_rate=rate)) for rate in (0.1, 1.0))
        spec, draws = slow.plan_round(index, {}, world.public), Draws.seeded("turns", shopper_digests(range(30)))
        ours, theirs = (spec.layout.split(model.local_update(spec, world.histories, draws)) for model in (slow, even))
        for name in spec.inputs.keys() - {"round"}:
            share = np.abs(ours[name]).max() / np.abs(theirs[name]).max()
            assert share == pytest.approx(0.1 if name.startswith("encoder.") else 1, rel=0.05), name
        alone = slow.train_alone(world.histories, world.public, rounds=1)
        moved = {name for name, values in alone.items() if not np.array_equal(values, spec.inputs[name])}
        assert moved == {name for name in alone if name.startswith("encoder.")}
        with pytest.raises(ConfigError, match="round_encoder_rate"):
            RecVaeSettings(round_encoder_rate=0.0)


class TestVaeGan(NeuralContract):
    def make_model(self):
        return VaeGan(VaeGanSettings(**BASKETS))


class TestGmf(NeuralContract):
    def make_model(self):
        return Gmf(NcfSettings(**PAIRS))


class TestMlp(NeuralContract):
    def make_model(self):
        return Mlp(NcfSettings(**PAIRS))


class TestNeuMf(NeuralContract):
    def make_model(self):
        return NeuMf(NcfSettings(**PAIRS))


class TestSmallAe(NeuralContract):
    def make_model(self):
        return SmallAe(SmallAeSettings(**{**FAST, "size": 8}))


def tuned(model: NeuralModel, fine_tune: str) -> set[str]:
    """Names of the arrays that differ between the shared and the fine-tuned model."""
    world = plant_world(num_shoppers=30, num_items=12, num_blocks=2)
    model = dataclasses.replace(model, settings=dataclasses.replace(model.settings, fine_tune=fine_tune))
    spec = first_update(model, world)
    start = {name: values for name, values in spec.inputs.items() if name != "round"}
    own = model.own_statistics(start, world.histories, world.public)
    return {name for name in start if not np.array_equal(own[name], start[name])}


@pytest.mark.parametrize(
    ("model", "output", "items"),
    [
        (
            MultVae(MultVaeSettings(**BASKETS)),
            {"decoder.1.weight", "decoder.1.bias"},
            {"encoder.0.weight", "decoder.1.weight", "decoder.1.bias"},
        ),
        (
            RecVae(RecVaeSettings(**BASKETS)),
            {"decoder.weight", "decoder.bias"},
            {"encoder.first.weight", "decoder.weight", "decoder.bias"},
        ),
        (
            VaeGan(VaeGanSettings(**BASKETS)),
            {"decoder.1.weight", "decoder.1.bias"},
            {"encoder.0.weight", "judge.0.weight", "decoder.1.weight", "decoder.1.bias"},
        ),
        (
            NeuMf(NcfSettings(**PAIRS)),
            {"output.weight", "output.bias"},
            {"parts.product.items.weight", "parts.tower.items.weight", "item_bias.weight"},
        ),
        (
            SmallAe(SmallAeSettings(**{**FAST, "size": 8})),
            {"tied.weight", "tied.bias"},
            {"tied.weight", "tied.bias"},
        ),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_fine_tuning_moves_the_output_layer_or_the_item_tables_alone(
    model: NeuralModel, output: set[str], items: set[str]
) -> None:
    assert tuned(model, "output") == output
    assert tuned(model, "items") == items
    everything = tuned(model, "all")
    assert everything > output | items or model.name == "smallae"


def test_another_style_of_fine_tuning_is_refused() -> None:
    with pytest.raises(ConfigError, match="all, output, items"):
        MultVaeSettings(fine_tune="head")


@pytest.mark.parametrize(
    ("settings", "name", "least", "most"),
    [
        *((AutoencoderSettings, *bounds) for bounds in (("hidden", 0, 8192), ("latent", 1, 8192))),
        (VaeGanSettings, "judge_size", 1, 8192),
        (SmallAeSettings, "size", 1, 8192),
        (SmallAeSettings, "init_seed", 0, 2**63 - 1),
    ],
)
def test_widths_and_seeds_are_bounded_on_both_sides(
    settings: Callable[..., NeuralSettings], name: str, least: int, most: int
) -> None:
    assert [getattr(settings(**{name: value}), name) for value in (least, most)] == [least, most]
    for wrong in (least - 1, most + 1):
        with pytest.raises(ConfigError, match=f"^{name} = {wrong}: give a whole number from {least} to {most}$"):
            settings(**{name: wrong})


def test_a_network_starts_from_the_largest_seed() -> None:
    VaeGan(VaeGanSettings(init_seed=2**63 - 1, latent=2)).check_here()
    Gmf(NcfSettings(init_seed=2**63 - 1, factors=2)).check_here()


def test_a_clip_norm_is_bounded_as_arrays_are() -> None:
    assert SmallAeSettings(private_clip_norm=64.0).private_clip_norm == 64
    for wrong in (0.0, 64.5, 1e308, float("nan")):
        with pytest.raises(ConfigError, match=r"private_clip_norm = .*: give a number above 1e-06, at most 64"):
            SmallAeSettings(private_clip_norm=wrong)


def test_a_small_shop_takes_the_least_steps_in_smaller_batches() -> None:
    model = MultVae(MultVaeSettings(batch_shoppers=100, least_steps=8))
    batches = {num_shoppers: model.fit_settings(num_shoppers).batch_shoppers for num_shoppers in (1, 8, 65, 799, 5000)}
    assert batches == {1: 1, 8: 1, 65: 9, 799: 100, 5000: 100}


def test_rounds_may_take_other_steps_than_training_in_one_place() -> None:
    world = plant_world(num_shoppers=30, num_items=12, num_blocks=2)
    same, other = (MultVae(MultVaeSettings(**BASKETS, round_learning_rate=rate)) for rate in (0.0, 0.05))
    draws = Draws.seeded("rates", shopper_digests(range(30)))
    spec = same.plan_round(0, {}, world.public)
    assert spec is not None
    small, large = (np.abs(model.local_update(spec, world.histories, draws)[:-2]).max() for model in (same, other))
    assert large > 2 * small
    states = [model.train_alone(world.histories, world.public) for model in (same, other)]
    for name, values in states[0].items():
        np.testing.assert_array_equal(values, states[1][name])
    with pytest.raises(ConfigError, match="round_learning_rate"):
        MultVaeSettings(round_learning_rate=-0.1)


def test_rates_fall_from_the_first_round_to_the_last() -> None:
    rates = {"rounds": 3, "round_learning_rate": 0.5}
    falling = MultVaeSettings(**BASKETS | rates, last_round_rate=0.1)
    assert [falling.rate_of_round(index) for index in range(3)] == pytest.approx([0.5, 0.275, 0.05])
    assert MultVaeSettings(**BASKETS | rates).rate_of_round(2) == 0.5
    world = plant_world(num_shoppers=30, num_items=12, num_blocks=2)
    draws = Draws.seeded("rates", shopper_digests(range(30)))
    spec = MultVae(falling).plan_round(2, {}, world.public)
    steady = MultVae(MultVaeSettings(**BASKETS | rates | {"round_learning_rate": falling.rate_of_round(2)}))
    assert spec is not None
    same = (model.local_update(spec, world.histories, draws) for model in (MultVae(falling), steady))
    np.testing.assert_array_equal(*same)
    with pytest.raises(ConfigError, match="last_round_rate"):
        MultVaeSettings(last_round_rate=0.0)
