"""Autoencoders: planted structure, rows without items, shoppers kept apart, the pieces of the bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.distributions import Normal, OneHotCategorical, kl_divergence

from fedrec.errors import ConfigError
from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.testing.planted import PlantedWorld, plant_world
from fedrec.training.autoencoders import (
    MultDae,
    MultVae,
    SparseLinear,
    gaussian_kl,
    input_rows,
    negative_log_likelihood,
)
from fedrec.training.fit import FitSettings, fit
from fedrec.training.network import Network, dense, get_arrays, named
from fedrec.training.network_check import check_network
from fedrec.training.recvae import RecVae
from fedrec.training.vaegan import VaeGan

NUM_SHOPPERS, NUM_ITEMS = 90, 33
SIZES: dict[type[Network], dict[str, Any]] = {
    MultDae: {"latent": 3},
    MultVae: {"hidden": (16,), "latent": 8},
    RecVae: {"hidden": 16, "latent": 8},
    VaeGan: {"hidden": (16,), "latent": 8, "judge_size": 5},
}
KINDS = [*SIZES]
DRAWS = Draws.seeded("autoencoders", shopper_digests(range(NUM_SHOPPERS)))

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def make(kind: type[Network], **settings: Any) -> Network:
    return kind(NUM_ITEMS, **{**SIZES[kind], **settings})


@pytest.fixture(scope="module")
def world() -> PlantedWorld:
    return plant_world(num_shoppers=NUM_SHOPPERS, num_items=NUM_ITEMS)


def share_in_block(scores: Tensor, world: PlantedWorld) -> float:
    """How often the best item that a shopper doesn't have is of her block."""
    known = torch.from_numpy(world.histories.toarray() > 0)
    best = scores.masked_fill(known, -torch.inf).argmax(1).numpy()
    return float((world.blocks[best] == world.tastes).mean())


@every_kind
def test_a_trained_network_recommends_from_the_shoppers_block(kind: type[Network], world: PlantedWorld) -> None:
    network = make(kind)
    settings = FitSettings(batch_shoppers=16, learning_rate=0.01)
    losses = fit(network, world.histories, DRAWS, settings, epochs=60).losses
    scores = network.scores(world.histories)
    assert scores.shape == (NUM_SHOPPERS, NUM_ITEMS)
    assert share_in_block(scores, world) > 0.85
    if kind is not VaeGan:  # in a game the generator's loss may rise
        assert losses[-1] < losses[0]


@every_kind
def test_scores_draw_nothing_and_suit_rows_without_items(kind: type[Network], world: PlantedWorld) -> None:
    network = make(kind)
    rows = sparse.vstack([sparse.csr_matrix((1, NUM_ITEMS)), world.histories[:4]], format="csr")
    state = torch.get_rng_state()
    scores = network.scores(rows)
    assert scores.isfinite().all()
    assert not scores.requires_grad
    assert torch.equal(scores, network.scores(rows))
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(scores[1:], network.scores(world.histories[:4]))
    assert network.scores(rows[:0]).shape == (0, NUM_ITEMS)


@every_kind
def test_an_empty_history_loses_nothing_and_an_empty_batch_has_no_losses(kind: type[Network]) -> None:
    network = make(kind)
    nothing = sparse.csr_matrix((2, NUM_ITEMS), dtype=np.float32)
    losses = network(network.batch(nothing, DRAWS.take(np.arange(2))))
    assert losses.tolist() == [0, 0]
    assert torch.autograd.grad(losses.sum(), list(network.parameters()), allow_unused=True)[0].isfinite().all()
    assert network(network.batch(nothing[:0], DRAWS.take(np.arange(0)))).shape == (0,)


@every_kind
def test_a_shoppers_loss_does_not_depend_on_who_else_is_in_the_batch(kind: type[Network], world: PlantedWorld) -> None:
    network = make(kind).double()
    network.progress = 0.7
    rows = np.array([41, 3, 17, 88, 20])
    together = network(network.batch(world.histories[rows], DRAWS.take(rows)))
    assert together.shape == (5,)
    for place, row in enumerate(rows):
        alone = network(network.batch(world.histories[[row]], DRAWS.take([row])))
        torch.testing.assert_close(alone[0], together[place], rtol=1e-12, atol=1e-12)


@every_kind
def test_gradients_of_single_shoppers_follow_from_the_layers(kind: type[Network], world: PlantedWorld) -> None:
    rows = np.arange(5)
    for has_sparse_input in (True, False):
        network = make(kind, has_sparse_input=has_sparse_input).double()
        check_network(network, network.batch(world.histories[rows], DRAWS.take(rows)))


@every_kind
def test_first_parameters_come_from_their_seed_alone(kind: type[Network]) -> None:
    state = torch.get_rng_state()
    first = get_arrays(make(kind))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(1)
    again, other = get_arrays(make(kind)), get_arrays(make(kind, init_seed=1))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert all((first[name] != other[name]).any() for name in first if first[name].std() > 0)


@every_kind
def test_other_draws_give_another_loss_and_the_same_draws_the_same(kind: type[Network], world: PlantedWorld) -> None:
    network = make(kind)
    losses = [
        network(network.batch(world.histories, Draws.seeded(seed, DRAWS.digests))).detach() for seed in ("a", "a", "b")
    ]
    assert torch.equal(losses[0], losses[1])
    assert (losses[0] != losses[2]).any()
    without = network(network.batch(world.histories, None))
    assert torch.equal(without, network(network.batch(world.histories, None)))


@every_kind
def test_output_biases_start_where_they_are_told(kind: type[Network]) -> None:
    bias = np.linspace(-3, 1, NUM_ITEMS)
    network = make(kind, output_bias=bias)
    assert isinstance(network.item_bias_name, str)
    found = dict(named(network))[network.item_bias_name]
    np.testing.assert_allclose(found.detach().numpy(), bias, rtol=1e-6)
    np.testing.assert_allclose(network.scores(sparse.csr_matrix((1, NUM_ITEMS)))[0], bias, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="output_bias of shape"):
        make(kind, output_bias=bias[1:])


def test_a_sparse_first_layer_is_the_same_layer(world: PlantedWorld) -> None:
    layer, plain = SparseLinear(NUM_ITEMS, 4), nn.Linear(NUM_ITEMS, 4)
    plain.load_state_dict(layer.state_dict())
    histories = sparse.vstack(
        [sparse.csr_matrix((1, NUM_ITEMS)), world.histories[:6], sparse.csr_matrix((2, NUM_ITEMS))]
    )
    rows = input_rows(histories.tocsr(), None, 0, make(MultDae))
    torch.testing.assert_close(layer(rows), plain(rows))
    pull = torch.sin(torch.arange(36.0)).view(9, 4)
    found = torch.autograd.grad(layer(rows), list(layer.parameters()), pull)
    expected = torch.autograd.grad(plain(rows), list(plain.parameters()), pull)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert layer(rows[:0]).shape == (0, 4)
    assert torch.autograd.grad(layer(rows.requires_grad_()).sum(), rows)[0].shape == rows.shape


@pytest.mark.parametrize("kind", [MultDae, MultVae], ids=lambda kind: kind.__name__)
def test_networks_with_a_sparse_and_a_dense_first_layer_have_the_same_losses(
    kind: type[Network], world: PlantedWorld
) -> None:
    sparse_first, dense_first = make(kind), make(kind, has_sparse_input=False)
    losses = [network(network.batch(world.histories, DRAWS)) for network in (sparse_first, dense_first)]
    torch.testing.assert_close(*losses)


def test_rows_have_norm_1_and_nothing_is_hidden_without_draws(world: PlantedWorld) -> None:
    rows = input_rows(world.histories, None, 0.5, make(MultDae)).numpy()
    lengths = np.diff(world.histories.indptr)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), lengths > 0, rtol=1e-6)
    np.testing.assert_array_equal(rows > 0, world.histories.toarray() > 0)


def test_hidden_items_are_the_share_asked_for_and_the_rest_makes_up_for_them() -> None:
    num_shoppers, dropout = 400, 0.3
    histories = sparse.csr_matrix(np.ones((num_shoppers, NUM_ITEMS), np.float32))
    draws = Draws.seeded("hidden", shopper_digests(range(num_shoppers)))
    rows = input_rows(histories, draws, dropout, make(MultDae)).numpy()
    values = np.unique(rows)
    np.testing.assert_allclose(values, [0, NUM_ITEMS**-0.5 / (1 - dropout)], rtol=1e-6)
    num_draws = num_shoppers * NUM_ITEMS
    five_sd = 5 * (dropout * (1 - dropout) / num_draws) ** 0.5
    assert abs((rows == 0).mean() - dropout) < five_sd


def test_what_is_hidden_does_not_depend_on_how_a_row_is_stored(world: PlantedWorld) -> None:
    coo = world.histories.tocoo()
    back = np.lexsort((-coo.col, coo.row))
    stored = sparse.csr_matrix(
        (coo.data[back], coo.col[back], world.histories.indptr), shape=world.histories.shape, dtype=np.float32
    )
    assert not stored.has_sorted_indices
    network = make(MultDae)
    assert torch.equal(input_rows(stored, DRAWS, 0.5, network), input_rows(world.histories, DRAWS, 0.5, network))


def test_the_likelihood_is_the_sum_of_its_items_log_probabilities() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.5, 0.1]])
    bought = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    one_item = OneHotCategorical(logits=logits[0])
    expected = -sum(one_item.log_prob(torch.eye(3)[item]) for item in (0, 2))
    assert negative_log_likelihood(logits, bought)[0].item() == pytest.approx(float(expected))
    assert negative_log_likelihood(logits, bought)[1].item() == 0


def test_the_kl_term_is_torchs() -> None:
    mean, log_variance = torch.tensor([[0.5, -1.0], [0.0, 0.0]]), torch.tensor([[0.2, -2.0], [0.0, 0.0]])
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)
    assert expected[1] == 0


@pytest.mark.parametrize(
    ("progress", "anneal_share", "weight"),
    [(0, 0.5, 0), (0.25, 0.5, 0.1), (0.5, 0.5, 0.2), (1, 0.5, 0.2), (0.5, 1, 0.1), (0, 0, 0.2), (1, 0, 0.2)],
)
def test_the_kl_weight_grows_to_its_cap(progress: float, anneal_share: float, weight: float) -> None:
    network = MultVae(NUM_ITEMS, beta=0.2, anneal_share=anneal_share)
    network.progress = progress
    assert network.kl_weight == pytest.approx(weight)


def test_the_bound_is_likelihood_at_the_drawn_code_plus_weighted_divergence(world: PlantedWorld) -> None:
    network = MultVae(NUM_ITEMS, hidden=(6,), latent=3, beta=0.4, anneal_share=1.0)
    network.progress = 0.5
    batch = network.batch(world.histories, DRAWS)
    first, second = network.encoder
    mean, log_variance = second(torch.tanh(first(batch["rows"]))).split(3, dim=1)
    torch.testing.assert_close(batch["noise"], torch.from_numpy(DRAWS.of("code").normals(3)))
    code = mean + batch["noise"] * (log_variance / 2).exp()
    third, fourth = network.decoder
    logs = torch.log_softmax(fourth(torch.tanh(third(code))), 1)
    expected = -(logs * dense(world.histories, network)).sum(1) + 0.2 * gaussian_kl(mean, log_variance)
    has_items = torch.from_numpy(np.diff(world.histories.indptr) > 0)
    torch.testing.assert_close(network(batch)[has_items], expected[has_items])


def test_scores_take_the_mean_of_the_code(world: PlantedWorld) -> None:
    network = MultVae(NUM_ITEMS, hidden=(), latent=3)
    (encoder,), (decoder,) = network.encoder, network.decoder
    rows = input_rows(world.histories, None, 0, network)
    torch.testing.assert_close(network.scores(world.histories), decoder(encoder(rows)[:, :3]).detach())


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"dropout = 1\.0"):
        MultDae(NUM_ITEMS, dropout=1.0)
    with pytest.raises(ConfigError, match="beta = -1"):
        MultVae(NUM_ITEMS, beta=-1)
    with pytest.raises(ConfigError, match="anneal_share = 2"):
        MultVae(NUM_ITEMS, anneal_share=2)
