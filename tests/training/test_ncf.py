"""GMF, MLP and NeuMF over shoppers: losses by hand, rows that stand alone, fold-in, and what NeuMF takes over."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

from fedrec.errors import ConfigError, NoPrivateVariant
from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.testing.planted import plant_world
from fedrec.training.dp_sgd import ShopperGradients
from fedrec.training.ncf import Gmf, Mlp, NcfSettings, NeuMf
from fedrec.training.network_check import check_network
from fedrec.training.pair_losses import PairLoss

KINDS = (Gmf, Mlp, NeuMf)
SMALL = NcfSettings(factors=4, layers=2, negatives=2, max_pairs=30, loss_unit=7.0, init_sd=0.5)
POPULARITY = np.arange(11) + 0.5
DOT = dataclasses.replace(SMALL, is_dot_product=True)


def histories_of(*rows: list[int], num_items: int = 11) -> sparse.csr_matrix:
    dense = np.zeros((len(rows), num_items), np.float32)
    for row, items in enumerate(rows):
        dense[row, items] = 1
    return sparse.csr_matrix(dense)


SOME = histories_of([0, 3, 4], [], [1, 2, 3, 5, 6, 7, 8, 9], [10], list(range(11)))


def draws_for(histories: sparse.csr_matrix, key: str = "test") -> Draws:
    return Draws.seeded(key, shopper_digests(range(histories.shape[0])))


def vectors_for(network: nn.Module, num_shoppers: int) -> torch.Tensor:
    return torch.randn(num_shoppers, network.num_shopper_values, generator=torch.Generator().manual_seed(3))


def trained(kind: type, histories: sparse.csr_matrix, settings: NcfSettings, epochs: int = 40, init_seed: int = 1):
    """Network and vectors after plain steps of Adam on both."""
    network = kind(histories.shape[1], settings, init_seed=init_seed)
    vectors = torch.zeros(histories.shape[0], network.num_shopper_values, requires_grad=True)
    optimiser = torch.optim.Adam([*network.parameters(), vectors], lr=0.03)
    for epoch in range(epochs):
        optimiser.zero_grad()
        network(network.batch(histories, draws_for(histories, f"epoch {epoch}"), vectors)).sum().backward()
        optimiser.step()
    return network, vectors.detach()


@pytest.mark.parametrize("loss", PairLoss)
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_empty_histories(kind, loss):
    network = kind(11, dataclasses.replace(SMALL, loss=loss))
    vectors = vectors_for(network, 5)
    losses = network(network.batch(SOME, draws_for(SOME), vectors))
    assert losses.shape == (5,)
    assert losses[1] == 0
    assert (losses[[0, 2, 3]] > 0).all()
    assert torch.isfinite(losses).all()
    losses.sum().backward()
    assert all(torch.isfinite(values.grad).all() for values in network.parameters())
    assert network.scores(SOME, vectors).shape == (5, 11)
    assert torch.isfinite(network.scores(SOME)).all()
    none = histories_of(num_items=11)
    assert network.scores(none).shape == (0, 11)
    assert network(network.batch(none, draws_for(none), vectors[:0])).shape == (0,)


@pytest.mark.parametrize("settings", [SMALL, DOT])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_all_items_are_those_of_pairs(kind, settings):
    network = kind(11, settings)
    network.start_at(POPULARITY)
    vectors = vectors_for(network, 5)
    by_pairs = network.pair_scores(vectors, torch.arange(11).expand(5, 11))
    torch.testing.assert_close(network.scores(SOME, vectors), by_pairs)


def test_a_dot_product_is_added_to_what_the_output_layer_makes_of_the_tower():
    gmf, neumf = Gmf(11, DOT, init_seed=1), NeuMf(11, DOT, init_seed=2)
    for network in (gmf, neumf):
        product, vectors = network.parts["product"], vectors_for(network, 5)
        network.start_at(POPULARITY)
        expected = vectors[:, :4] @ product.items.weight.T + network.output.bias + network.item_bias.weight[:, 0]
        if network is neumf:
            items = network.parts["tower"].items(torch.arange(11).expand(5, 11))
            features = network.parts["tower"](vectors[:, 4:], network.parts["tower"].first_item(items))
            expected += features @ network.output.weight[0]
        torch.testing.assert_close(network.scores(SOME, vectors), expected)


def test_the_first_layer_is_one_over_both_vectors_side_by_side():
    network = Mlp(11, SMALL, init_seed=2)
    part, vectors = network.parts["tower"], vectors_for(network, 1)
    together = torch.cat([part.first_shopper.weight, part.first_item.weight], dim=1)
    shopper, item = vectors[0], part.items.weight[6]
    hidden = torch.relu(together @ torch.cat([shopper, item]) + part.first_item.bias)
    hidden = torch.relu(part.rest[0].weight @ hidden + part.rest[0].bias)
    expected = network.output.weight[0] @ hidden + network.output.bias[0]
    torch.testing.assert_close(network.scores(SOME[:1], vectors)[0, 6], expected)


def by_hand(loss: PairLoss, hers: list[float], others: list[float], num_open: int) -> float:
    """A shopper's loss from the scores of her items and of the others."""

    def below(x: float) -> float:
        return math.log1p(math.exp(x))

    if loss is PairLoss.BINARY:
        return sum(below(-score) for score in hers) + sum(below(score) for score in others)
    if loss is PairLoss.PAIRWISE:
        return sum(below(score - hers[place % len(hers)]) for place, score in enumerate(others))
    rest = sum(math.exp(score) for score in others) * num_open / len(others)
    return sum(-math.log(math.exp(score) / (math.exp(score) + rest)) for score in hers)


@pytest.mark.parametrize("loss", PairLoss)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_hand_formula(kind, loss):
    network = kind(11, dataclasses.replace(SMALL, loss=loss, regularisation=0.03)).double()
    vectors = vectors_for(network, 5).double()
    batch = network.batch(SOME, draws_for(SOME), vectors)
    scores, losses = network.scores(SOME, vectors), network(batch)
    for row in (0, 2, 3):
        ids = batch["ids"][row][batch["is_pair"][row] > 0].tolist()
        num_hers = int(batch["is_positive"][row].sum())
        points = scores[row, ids].tolist()
        expected = by_hand(loss, points[:num_hers], points[num_hers:], 11 - SOME[row].nnz)
        tables = [part.items.weight[ids].square().sum().item() for part in network.typed_parts]
        expected += 0.03 * (sum(tables) + len(ids) * vectors[row].square().sum().item())
        assert losses[row].item() == pytest.approx(expected / 7, rel=1e-9)


EXPECTED = dataclasses.replace(SMALL, is_expected=True, regularisation=0.03, tower_factors=3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_expected_loss_is_the_mean_over_draws(kind):
    network = kind(11, EXPECTED).double()
    vectors, draws = vectors_for(network, 5).double(), draws_for(SOME)
    expected = network(network.batch(SOME, None, vectors))
    network.settings = dataclasses.replace(EXPECTED, is_expected=False, max_pairs=1000)
    drawn = [network(network.batch(SOME, draws.of(str(draw)), vectors)).detach() for draw in range(1000)]
    torch.testing.assert_close(torch.stack(drawn).mean(0), expected.detach(), rtol=0.005, atol=0)
    assert torch.stack(drawn)[:, 0].std() > 0.005 * expected[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_expected_loss_of_a_shopper_is_her_own(kind):
    network = kind(11, EXPECTED).double()
    vectors = vectors_for(network, 5).double()
    together = network(network.batch(SOME, None, vectors))
    alone = [network(network.batch(SOME[[row]], None, vectors[[row]]))[0] for row in range(5)]
    torch.testing.assert_close(together, torch.stack(alone))
    assert together[1] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_expects_has_no_gradients_of_single_shoppers(kind):
    network = kind(11, EXPECTED).double()
    with pytest.raises(NoPrivateVariant):
        _gradients(network, SOME, draws_for(SOME)).norms()


def test_sampled_softmax_of_popular_negatives_estimates_the_sum_over_all():
    popularity = np.arange(1.0, 41)
    settings = dataclasses.replace(SMALL, loss=PairLoss.SOFTMAX, negatives=3, max_pairs=1000)
    network = Gmf(40, settings, popularity=popularity).double()
    histories = histories_of([0, 7], num_items=40)
    rows = histories[np.zeros(4000, int)]
    vectors = vectors_for(network, 1).double()
    batch = network.batch(rows, draws_for(rows), vectors.expand(4000, -1))
    is_other = batch["is_pair"] > batch["is_positive"]
    scores = network.scores(histories, vectors)[0]
    estimates = ((scores[batch["ids"]] + batch["stands_for"]).exp() * is_other).sum(1)
    true = scores.exp().sum() - scores[[0, 7]].exp().sum()
    assert estimates.mean().item() == pytest.approx(true.item(), rel=0.1)  # without replacement it is near, not exact


@pytest.mark.parametrize("loss", PairLoss)
@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_is_the_same_whoever_else_is_in_the_batch(kind, loss):
    network = kind(11, dataclasses.replace(SMALL, loss=loss)).double()
    vectors, draws = vectors_for(network, 5).double(), draws_for(SOME)
    together = network(network.batch(SOME, draws, vectors))
    for row in range(5):
        place = np.array([row])
        alone = network(network.batch(SOME[place], draws.take(place), vectors[place]))
        torch.testing.assert_close(alone[0], together[row])


@pytest.mark.parametrize("loss", PairLoss)
@pytest.mark.parametrize("kind", KINDS)
def test_an_item_that_is_not_finite_voids_whom_it_voids_alone(kind, loss):
    """A coordinator may send such arrays: whoever else is there must not decide whose gradient counts."""
    network = kind(11, dataclasses.replace(SMALL, loss=loss)).double()
    with torch.no_grad():
        for part in network.typed_parts:
            part.items.weight[0] = math.nan
    some = histories_of([3, 4], [5], [1, 2, 3, 5, 6, 7, 8, 9, 10], [10])
    crowd = histories_of(*([5, 6, 7] if row == 1 else [1 + row % 9] for row in range(40)))
    for histories in (some, crowd):
        draws = draws_for(histories)
        together = _gradients(network, histories, draws).norms()
        places = [np.array([row]) for row in range(histories.shape[0])]
        alone = np.concatenate([_gradients(network, histories[row], draws.take(row)).norms() for row in places])
        np.testing.assert_array_equal(np.isfinite(together), np.isfinite(alone))
    assert 0 < np.isfinite(together).sum() < 40


def _gradients(network, histories: sparse.csr_matrix, draws: Draws) -> ShopperGradients:
    return ShopperGradients(network, histories, draws, vectors=network.fold_in(histories, draws.of("fold in")))


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_moves_by_a_layer_called_once(kind):
    network = kind(11, SMALL)
    calls = {}
    for name, module in network.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            assert isinstance(module, nn.Embedding | nn.Linear)
            calls[name] = 0
            module.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    network(network.batch(SOME, draws_for(SOME), vectors_for(network, 5)))
    assert set(calls.values()) == {1}
    assert {name.split(".")[0] for name, _ in network.named_parameters()} == {"parts", "output", "item_bias"}


@pytest.mark.parametrize("loss", PairLoss)
@pytest.mark.parametrize("settings", [SMALL, DOT])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_can_be_clipped_shopper_by_shopper(kind, settings, loss):
    network = kind(11, dataclasses.replace(settings, loss=loss, regularisation=0.01)).double()
    check_network(network, network.batch(SOME, draws_for(SOME), vectors_for(network, 5).double()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_comes_from_the_seed_and_leaves_the_global_generator_alone(kind):
    before = torch.random.get_rng_state()
    one, same, other = (kind(11, SMALL, init_seed=seed).state_dict() for seed in (4, 4, 5))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["output.weight"], other["output.weight"])


@pytest.mark.parametrize(
    "changes",
    [*({"loss": loss} for loss in PairLoss), {"is_expected": True}],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
@pytest.mark.parametrize("kind", KINDS)
def test_trained_and_folded_in_shoppers_get_items_of_their_own_block(kind, changes):
    world = plant_world(num_shoppers=120, num_items=33)
    settings = NcfSettings(factors=8, layers=2, loss_unit=10.0, regularisation=0.02, **changes)
    network, vectors = trained(kind, world.histories[:90], settings)
    newcomers = world.histories[90:]
    for histories, tastes, given in (
        (world.histories[:90], world.tastes[:90], vectors),
        (world.histories[:90], world.tastes[:90], None),
        (newcomers, world.tastes[90:], None),
    ):
        scores = network.scores(histories, given).numpy()
        scores[histories.nonzero()] = -np.inf
        best = np.argsort(-scores, axis=1)[:, :3]
        assert (world.blocks[best] == tastes[:, None]).mean() > 0.85


@pytest.mark.parametrize("kind", KINDS)
def test_fold_in_is_the_same_each_time_and_for_each_row_alone(kind):
    world = plant_world(num_shoppers=20, num_items=33)
    network = kind(33, dataclasses.replace(SMALL, fold_in_steps=5), init_seed=2).double()
    vectors = network.fold_in(world.histories)
    assert torch.equal(vectors, network.fold_in(world.histories))
    assert not torch.equal(vectors, network.fold_in(world.histories, draws_for(world.histories)))
    order = np.arange(20)[::-1].copy()
    torch.testing.assert_close(network.fold_in(world.histories[order]), vectors[order])
    torch.testing.assert_close(network.fold_in(world.histories[7]), vectors[[7]])
    assert not vectors.requires_grad
    assert network.parts[next(iter(network.parts))].items.weight.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_without_vectors_items_start_in_the_order_of_popularity(kind):
    network = kind(11, DOT)
    network.start_at(3 * POPULARITY)
    bias = network.item_bias.weight.detach().numpy()[:, 0]
    np.testing.assert_allclose(bias, np.log(POPULARITY / POPULARITY.mean()), rtol=1e-6)
    if kind is Gmf:
        np.testing.assert_allclose(network.scores(SOME[1]).detach().numpy()[0], bias - math.log(2), rtol=1e-6)


def test_a_prior_pulls_on_vectors_like_so_many_more_items():
    """By hand, and shorter vectors for the same history."""
    rows = histories_of([0, 3], [1], num_items=11)
    for is_expected in (False, True):
        settings = dataclasses.replace(DOT, regularisation=0.03, is_expected=is_expected)
        free, held = Gmf(11, settings), Gmf(11, dataclasses.replace(settings, prior_items=5.0))
        vectors = vectors_for(free, 2)
        losses = [network(network.batch(rows, draws_for(rows), vectors)) for network in (free, held)]
        expected = 0.03 * 5 * (1 + 2) * vectors.square().sum(1) / 7
        torch.testing.assert_close(losses[1] - losses[0], expected, rtol=1e-4, atol=1e-6)
        lengths = [network.fold_in(rows).square().sum(1) for network in (free, held)]
        assert (lengths[1] < 0.8 * lengths[0]).all()


def test_fold_in_gives_zeros_to_whoever_has_nothing():
    network = NeuMf(11, SMALL)
    assert torch.equal(network.fold_in(SOME)[1], torch.zeros(network.num_shopper_values))
    assert network.fold_in(histories_of(num_items=11)).shape == (0, network.num_shopper_values)


def test_no_start_leaves_a_small_tower_without_a_living_unit():
    world = plant_world(num_shoppers=60, num_items=33)
    settings = NcfSettings(factors=4, layers=2, loss_unit=10.0)
    for seed in range(4):
        network, vectors = trained(Mlp, world.histories, settings, init_seed=seed)
        assert network.scores(world.histories, vectors).std(dim=1).min() > 0.1


def test_fold_in_lowers_her_loss():
    world = plant_world(num_shoppers=30, num_items=33)
    for kind in KINDS:
        network, _ = trained(kind, world.histories, SMALL, epochs=20)
        start = torch.zeros(30, network.num_shopper_values)
        found = network.fold_in(world.histories)
        draws = draws_for(world.histories, "fresh")
        before, after = (network(network.batch(world.histories, draws, vectors)) for vectors in (start, found))
        assert after.sum() < 0.9 * before.sum()


@pytest.mark.parametrize("settings", [SMALL, DOT])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_neumf_from_trained_parts_scores_as_their_weighted_sum(alpha, settings):
    gmf, mlp, both = Gmf(11, settings, init_seed=1), Mlp(11, settings, init_seed=2), NeuMf(11, settings, init_seed=3)
    gmf.start_at(POPULARITY)
    mlp.start_at(POPULARITY[::-1].copy())
    both.take_over(gmf, mlp, alpha=alpha)
    of_gmf, of_mlp = vectors_for(gmf, 5), vectors_for(mlp, 5)
    expected = alpha * gmf.scores(SOME, of_gmf) + (1 - alpha) * mlp.scores(SOME, of_mlp)
    torch.testing.assert_close(both.scores(SOME, torch.cat([of_gmf, of_mlp], dim=1)), expected)
    assert both.num_shopper_values == gmf.num_shopper_values + mlp.num_shopper_values


def test_wrong_settings_and_vectors_are_refused():
    for wrong in (
        {"factors": 0},
        {"max_pairs": 4},
        {"loss_unit": math.nan},
        {"regularisation": -1.0},
        {"prior_items": -1.0},
    ):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            NcfSettings(**wrong)
    for wrong in ({"tower_factors": 0}, {"is_expected": True, "loss": PairLoss.PAIRWISE}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            NcfSettings(**wrong)
    network = Gmf(11, SMALL)
    with pytest.raises(ConfigError, match="vectors"):
        network.batch(SOME, draws_for(SOME))
    with pytest.raises(ConfigError, match="alpha"):
        NeuMf(11, SMALL).take_over(network, Mlp(11, SMALL), alpha=1.5)
