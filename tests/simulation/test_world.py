"""What the columns of a comparison share: a network over the same rows is trained once."""

import numpy as np

from fedrec.config import SimulationSettings
from fedrec.models import load_model
from fedrec.models.recommender import train_alone
from fedrec.simulation.world import Stage, World, pooled_rows, prepare, train_once

SMALL = {"num_shoppers": 60, "num_shops": 2, "num_items": 40}
FAST = {"rounds": 1, "local_epochs": 1, "latent": 3, "device": "cpu"}


def small_world(validation_share: float) -> World:
    data = {"synthetic": SMALL, "split": "random-share", "split_settings": {"validation_share": validation_share}}
    return prepare(SimulationSettings.from_mapping({"data": data}))


def test_a_network_is_trained_once_where_nothing_is_held_back_for_validation() -> None:
    world, model = small_world(0.0), load_model("multvae", FAST)
    for place in (None, 0, 1):
        chosen, final = (train_once(world, model, place, stage) for stage in Stage)
        assert chosen is final
    other = load_model("multvae", {**FAST, "learning_rate": 0.1})
    assert train_once(world, other, None, Stage.FINAL) is not train_once(world, model, None, Stage.FINAL)


def test_other_rows_are_another_training() -> None:
    world, model = small_world(0.2), load_model("multvae", FAST)
    chosen, final = (train_once(world, model, None, stage) for stage in Stage)
    expected = train_alone(model, pooled_rows(world, Stage.CHOOSE), world.public)
    for name, values in chosen.items():
        np.testing.assert_array_equal(values, expected[name])
    assert any(not np.array_equal(values, final[name]) for name, values in chosen.items())


def test_sums_are_not_kept() -> None:
    world = small_world(0.2)
    train_once(world, load_model("ease"), None, Stage.FINAL)
    assert not world.kept
