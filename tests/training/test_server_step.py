"""The coordinator's step against Flower's strategies, and what it keeps."""

from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM

from fedrec.errors import ConfigError
from fedrec.training.server_step import memory_of, server_step

SHAPES = {"weight": (4, 3), "bias": (3,)}
WEIGHTS = (10, 30, 5)


def arrays_at(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def reply(arrays, weight):
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(values) for name, values in arrays.items()}),
            "metrics": MetricRecord({"num-examples": weight}),
        }
    )
    return SimpleNamespace(  # all that a strategy reads of a message
        content=content, has_content=lambda: True, has_error=lambda: False, metadata=SimpleNamespace(src_node_id=1)
    )


@pytest.mark.parametrize(
    ("strategy", "flower", "learning_rate", "tolerance"),
    [
        ("fedavg", FedAvg(), 1.0, 1e-6),
        ("fedprox", FedAvg(), 1.0, 1e-6),
        ("fedavgm", FedAvgM(server_learning_rate=0.7, server_momentum=0.9), 0.7, 1e-5),
        ("fedadam", FedAdam(eta=0.05, eta_l=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3), 0.05, 1e-5),
    ],
)
def test_the_arithmetic_is_that_of_flowers_strategy(strategy, flower, learning_rate, tolerance):
    arrays, theirs, memory = arrays_at(0), arrays_at(0), {}
    for number in range(1, 5):
        shops = [arrays_at(100 * number + shop) for shop in range(len(WEIGHTS))]
        total = {
            name: sum(
                weight * (shop[name].astype(np.float64) - arrays[name])
                for shop, weight in zip(shops, WEIGHTS, strict=True)
            )
            for name in SHAPES
        }
        update = {name: values / sum(WEIGHTS) for name, values in total.items()}
        arrays, memory = server_step(strategy, arrays, update, memory, learning_rate=learning_rate)
        record = ArrayRecord({name: Array(values) for name, values in theirs.items()})
        flower.current_arrays = dict(theirs) if strategy == "fedadam" else record
        merged, _ = flower.aggregate_train(number, [reply(*pair) for pair in zip(shops, WEIGHTS, strict=True)])
        theirs = {name: merged[name].numpy() for name in SHAPES}
        for name in SHAPES:
            np.testing.assert_allclose(arrays[name], theirs[name], rtol=tolerance, atol=tolerance)
        assert memory_of({**arrays, **memory}) == memory


def test_old_arrays_and_memory_stay_as_they_were():
    arrays, update = arrays_at(0), {name: np.ones(shape) for name, shape in SHAPES.items()}
    _, memory = server_step("fedadam", arrays, update, {}, learning_rate=1.0)
    before = {name: values.copy() for name, values in memory.items()}
    server_step("fedadam", arrays, update, memory, learning_rate=1.0)
    for name in SHAPES:
        np.testing.assert_array_equal(arrays[name], arrays_at(0)[name])
    for name, values in before.items():
        np.testing.assert_array_equal(memory[name], values)


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ConfigError, match="fedavgm"):
        server_step("fedsgd", {}, {}, {}, learning_rate=1.0)
