"""Norms, sums and clipping of per-shopper gradients, by both engines, against torch.func."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from fedrec.errors import BadAssumption, ConfigError
from fedrec.training.dp_sgd import (
    ShopperGradients,
    clip_weights,
    clipped_sum,
    rounding_slack,
)
from fedrec.training.network import Network, dense
from fedrec.training.network_check import check_network

from .dp_networks import NETWORKS, NUM_ITEMS, Vae, build, oracle, shoppers

REFUSED_BY_OPACUS = "tied", "layer norm, no bias", "vae, sparse first layer"
OPACUS = [name for name in NETWORKS if name not in REFUSED_BY_OPACUS]
PAIRS = [("closed-form", name) for name in NETWORKS] + [("opacus-hooks", name) for name in OPACUS]
GHOST = ["vae", "neumf", "neumf, distinct ids", "two places"]
PAIRS += [("opacus-ghost", name) for name in GHOST] + [("opacus", name) for name in OPACUS]


def gradients_of(
    network: Network, num_shoppers: int, *, engine: str = "closed-form", micro_batch: int = 256, seed: int = 0
) -> ShopperGradients:
    histories, draws, vectors = shoppers(num_shoppers, seed)
    return ShopperGradients(network, histories, draws, vectors=vectors, engine=engine, micro_batch=micro_batch)


def clipped_by_hand(gradients: np.ndarray, bound: float) -> np.ndarray:
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    return (gradients * np.minimum(1, bound / np.maximum(norms, 1e-300))).sum(0)


@pytest.mark.parametrize(("engine", "name"), PAIRS)
def test_norms_and_sums_are_those_of_single_shoppers(engine: str, name: str) -> None:
    network = build(name)
    histories, draws, vectors = shoppers(9)
    expected = oracle(network, network.batch(histories, draws, vectors))
    weights = np.random.default_rng(1).standard_normal(9)
    gradients = gradients_of(network, 9, engine=engine, micro_batch=4)
    norms = np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose(gradients.norms(), norms, rtol=1e-10)
    np.testing.assert_allclose(gradients.total(weights), weights @ expected, rtol=1e-9, atol=1e-12)
    bound = float(np.median(norms))
    total, found = gradients.clipped(bound)
    np.testing.assert_allclose(found, norms, rtol=1e-10)
    np.testing.assert_allclose(total, clipped_by_hand(expected, bound), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in GHOST if "," not in name])
def test_engines_agree_to_five_digits_in_float32(name: str) -> None:
    network = build(name).float()
    closed, norms = gradients_of(network, 20).clipped(0.7)
    for engine in ("opacus-ghost", "opacus-hooks"):
        total, found = gradients_of(network, 20, engine=engine).clipped(0.7)
        np.testing.assert_allclose(found, norms, rtol=1e-5)
        np.testing.assert_allclose(total, closed, rtol=1e-5, atol=1e-5 * np.abs(closed).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_for_the_tests_pass_the_check(name: str) -> None:
    network = build(name)
    check_network(network, network.batch(*shoppers(6)))


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(list(NETWORKS)),
    seed=st.integers(0, 2**31),
    num_shoppers=st.integers(1, 24),
    micro_batches=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    exponent=st.floats(-3, 3),
    pick=st.integers(0, 10**6),
)
def test_a_shopper_who_leaves_moves_the_sum_by_the_bound_at_most(
    name: str, seed: int, num_shoppers: int, micro_batches: tuple[int, int], exponent: float, pick: int
) -> None:
    network, bound, leaver = build(name, seed), 10.0**exponent, pick % num_shoppers
    histories, draws, vectors = shoppers(num_shoppers, seed)
    others = np.delete(np.arange(num_shoppers), leaver)
    everyone = ShopperGradients(network, histories, draws, vectors=vectors, micro_batch=micro_batches[0])
    rest = ShopperGradients(
        network, histories[others], draws.take(others), vectors=vectors[others], micro_batch=micro_batches[1]
    )
    moved = float(np.linalg.norm(everyone.clipped(bound)[0] - rest.clipped(bound)[0]))
    assert moved <= bound * (1 + 1e-9)
    assert moved <= bound * (1 + rounding_slack(num_shoppers, longest_sum=NUM_ITEMS, spread=1e-13))


@pytest.mark.parametrize("engine", ["closed-form", "opacus-ghost", "opacus-hooks"])
@pytest.mark.parametrize("bound", [1e-3, 1.0])
def test_a_shopper_with_a_huge_gradient_moves_the_sum_by_the_bound(engine: str, bound: float) -> None:
    network = build("neumf")
    histories, draws, vectors = shoppers(12)
    vectors[5] *= 1e4
    others = np.delete(np.arange(12), 5)
    everyone = ShopperGradients(network, histories, draws, vectors=vectors, engine=engine).clipped(bound)[0]
    rest = ShopperGradients(network, histories[others], draws.take(others), vectors=vectors[others], engine=engine)
    moved = np.linalg.norm(everyone - rest.clipped(bound)[0])
    assert abs(moved / bound - 1) <= 1e-9


@pytest.mark.parametrize("name", NETWORKS)
def test_micro_batches_change_nothing_but_rounding(name: str) -> None:
    network = build(name)
    whole, norms = gradients_of(network, 23).clipped(0.5)
    for micro_batch in (1, 2, 7, 22, 23):
        total, found = gradients_of(network, 23, micro_batch=micro_batch).clipped(0.5)
        np.testing.assert_allclose(total, whole, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(found, norms, rtol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_shoppers_gradient_does_not_depend_on_who_else_is_there(name: str) -> None:
    network = build(name)
    crowd, alone = gradients_of(network, 12), gradients_of(network, 12, micro_batch=1)
    for row in range(12):
        only = np.eye(12)[row]
        difference = np.linalg.norm(crowd.total(only) - alone.total(only))
        assert difference <= 1e-12 * np.linalg.norm(alone.total(only))


@pytest.mark.parametrize(("engine", "name"), PAIRS)
def test_no_shoppers_and_no_items_give_zeros(engine: str, name: str) -> None:
    network = build(name)
    num_values = sum(values.numel() for values in network.parameters())
    nobody = gradients_of(network, 0, engine=engine)
    assert nobody.norms().shape == (0,)
    assert np.array_equal(nobody.total(np.zeros(0)), np.zeros(num_values))
    assert np.array_equal(nobody.clipped(1.0)[0], np.zeros(num_values))
    histories, draws, vectors = shoppers(4)
    batch = {key: values[:0] for key, values in network.batch(histories, draws, vectors).items()}
    totals, norms = clipped_sum(network, batch, lambda norms: clip_weights(norms, 1.0), engine=engine)
    assert norms.shape == (0,)
    assert all(not values.any() for values in totals.values())


@pytest.mark.parametrize(("engine", "name"), PAIRS)
def test_sums_of_two_batches_are_added_in_place(engine: str, name: str) -> None:
    network = build(name)
    histories, draws, vectors = shoppers(12)
    batch = network.batch(histories, draws, vectors)
    first, second = ({key: values[part] for key, values in batch.items()} for part in (slice(0, 5), slice(5, 12)))
    whole, _ = clipped_sum(network, batch, lambda norms: clip_weights(norms, 0.5), engine=engine)
    totals, _ = clipped_sum(network, first, lambda norms: clip_weights(norms, 0.5), engine=engine)
    same, norms = clipped_sum(network, second, lambda norms: clip_weights(norms, 0.5), engine=engine, totals=totals)
    assert same is totals
    assert norms.shape == (7,)
    for key, values in whole.items():
        np.testing.assert_allclose(totals[key].numpy(), values.numpy(), rtol=1e-10, atol=1e-12)


class Empty(Vae):
    """Its loss of an empty history is a constant."""

    def forward(self, batch):
        if not batch["rows"].any():
            return batch["rows"].sum(1)
        return super().forward(batch) * (batch["rows"].sum(1) > 0)


@pytest.mark.parametrize("engine", ["closed-form", "opacus-ghost", "opacus-hooks"])
def test_shoppers_without_items_have_no_gradient_where_the_loss_says_so(engine: str) -> None:
    network = Empty().double()
    nothing = sparse.csr_matrix((3, NUM_ITEMS), dtype=np.float32)
    total, norms = ShopperGradients(network, nothing, None, engine=engine).clipped(1.0)
    assert not total.any()
    assert not norms.any()
    histories, draws, _ = shoppers(5)
    assert ShopperGradients(network, histories, draws, engine=engine).norms()[0] == 0


@pytest.mark.parametrize("engine", ["closed-form", "opacus-ghost", "opacus-hooks"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
@pytest.mark.parametrize("micro_batch", [4, 50])
def test_a_shopper_who_is_not_finite_counts_as_zero_and_is_seen(engine: str, bad: float, micro_batch: int) -> None:
    network = build("neumf")
    histories, draws, vectors = shoppers(10)
    fine = np.delete(np.arange(10), 6)
    rest = ShopperGradients(network, histories[fine], draws.take(fine), vectors=vectors[fine], engine=engine)
    vectors[6] = bad
    everyone = ShopperGradients(network, histories, draws, vectors=vectors, engine=engine, micro_batch=micro_batch)
    total, norms = everyone.clipped(0.3)
    assert not np.isfinite(norms[6])
    np.testing.assert_allclose(total, rest.clipped(0.3)[0], rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(norms[fine], rest.norms(), rtol=1e-9)


class Cancelling(Network):
    """Two places whose gradients cancel but for a rest: norms from inner products would drown in rounding."""

    def __init__(self) -> None:
        super().__init__(NUM_ITEMS)
        self.wide = torch.nn.Linear(NUM_ITEMS, 11)

    def batch(self, histories, draws, vectors=None):
        return {"rows": dense(histories, self)}

    def forward(self, batch):
        place = 1e3 * (batch["rows"] + 0.1)
        both = self.wide(torch.stack([place, place * (1 + 1e-9)], dim=1))
        return 1e3 * (both[:, 0] - both[:, 1]).sum(1)


@pytest.mark.parametrize("bound", [1e-6, 1e-3, 1.0])
def test_gradients_that_cancel_are_never_clipped_too_little(bound: float) -> None:
    network = Cancelling().double()
    histories, draws, _ = shoppers(8)
    for row in range(1, 8):
        total, _ = ShopperGradients(network, histories[[row]], draws.take(np.array([row]))).clipped(bound)
        assert np.linalg.norm(total) <= bound * (1 + 1e-9)


@pytest.mark.parametrize("engine", ["closed-form", "opacus-ghost", "opacus-hooks"])
def test_the_network_is_left_as_it_was(engine: str) -> None:
    network = build("neumf").eval()
    next(network.parameters()).grad = torch.ones_like(next(network.parameters()))

    def traits() -> list[object]:
        modules = [(name, sorted(vars(module)), module.training) for name, module in network.named_modules()]
        parameters = [
            (name, sorted(vars(values)), values.requires_grad, values.grad is not None)
            for name, values in network.named_parameters()
        ]
        hooks = [
            len(held) for module in network.modules() for key, held in vars(module).items() if key.endswith("_hooks")
        ]
        return [*modules, *parameters, *hooks]

    before, values = traits(), [values.clone() for values in network.parameters()]
    gradients_of(network, 7, engine=engine).clipped(1.0)
    assert traits() == before
    assert all(torch.equal(old, new) for old, new in zip(values, network.parameters(), strict=True))


def test_norms_and_their_sum_cost_one_pass() -> None:
    network, passes = build("vae"), []
    gradients = gradients_of(network, 9)
    network.register_forward_hook(lambda *_: passes.append(1))
    gradients.total(clip_weights(torch.from_numpy(gradients.norms()), 0.5).numpy())
    assert len(passes) == 1
    many = gradients_of(network, 9, micro_batch=4)
    passes.clear()
    many.clipped(0.5)
    assert len(passes) == 3


def test_sums_are_in_the_order_of_the_parameters() -> None:
    network = build("tied")
    total = gradients_of(network, 6).total(np.ones(6))
    histories, draws, vectors = shoppers(6)
    network(network.batch(histories, draws, vectors)).sum().backward()
    flat = torch.cat([values.grad.flatten() for values in network.parameters()]).numpy()
    np.testing.assert_allclose(total, flat, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_a_bound_that_bounds_nothing_is_refused(bound: float) -> None:
    with pytest.raises(BadAssumption, match="clip norm"):
        gradients_of(build("vae"), 3).clipped(bound)


def test_unknown_engines_and_empty_micro_batches_are_refused() -> None:
    with pytest.raises(ConfigError, match="closed-form, opacus"):
        gradients_of(build("vae"), 3, engine="ghost")
    with pytest.raises(ConfigError, match="micro_batch = 0"):
        gradients_of(build("vae"), 3, micro_batch=0)


def test_importing_it_loads_no_opacus() -> None:
    code = "import sys, fedrec.training.dp_sgd; print('opacus' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
