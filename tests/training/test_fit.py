"""Training: the plain loop against loops by hand, FedProx, repeatability, private vectors, what goes wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor, nn

from fedrec.errors import BadMessage, ConfigError, NoPrivateVariant, NotFinite
from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.testing.planted import plant_world
from fedrec.training.fit import FitSettings, Optimiser, Phase, fit
from fedrec.training.network import Batch, Network, dense, get_arrays, set_arrays, to_tensor

NUM_SHOPPERS, NUM_ITEMS = 23, 7
WORLD = plant_world(num_shoppers=NUM_SHOPPERS, num_items=NUM_ITEMS, num_blocks=2)
HISTORIES = WORLD.histories
BOUGHT = torch.from_numpy(HISTORIES.toarray()).double()
HAS_ITEMS = np.flatnonzero(np.diff(HISTORIES.indptr))
DRAWS = Draws.seeded("fit", shopper_digests(range(NUM_SHOPPERS)))
SGD = FitSettings(optimiser=Optimiser.SGD, learning_rate=0.1, batch_shoppers=NUM_SHOPPERS)


class Softmax(Network):
    """One layer from items to items, with noise on its input, float64."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__(NUM_ITEMS)
        self.noise = noise
        self.layer = nn.Linear(NUM_ITEMS, NUM_ITEMS).double()
        with torch.no_grad():
            for shift, values in enumerate(self.parameters()):
                values.copy_(torch.sin(torch.arange(values.numel()) + shift).view_as(values))
        self.seen: list[float] = []

    def batch(self, histories: sparse.csr_matrix, draws: Draws | None, vectors: Tensor | None = None) -> Batch:
        rows = dense(histories, self)
        noise = torch.zeros_like(rows) if draws is None else to_tensor(draws.normals(NUM_ITEMS), self)
        return {"rows": rows, "inputs": rows + self.noise * noise}

    def forward(self, batch: Batch) -> Tensor:
        self.seen.append(self.progress)
        return -(torch.log_softmax(self.layer(batch["inputs"]), 1) * batch["rows"]).sum(1)

    def scores(self, histories: sparse.csr_matrix, vectors: Tensor | None = None) -> Tensor:
        return self.layer(dense(histories, self))


class Factors(Network):
    """Item vectors that are shared and shopper vectors that are not; squared error over all items."""

    num_shopper_values = 3

    def __init__(self) -> None:
        super().__init__(NUM_ITEMS)
        self.items = nn.Parameter(torch.sin(torch.arange(NUM_ITEMS * 3.0).double()).view(NUM_ITEMS, 3))

    def batch(self, histories: sparse.csr_matrix, draws: Draws | None, vectors: Tensor | None = None) -> Batch:
        assert vectors is not None
        return {"rows": dense(histories, self), "vectors": vectors}

    def forward(self, batch: Batch) -> Tensor:
        return (batch["vectors"] @ self.items.T - batch["rows"]).square().sum(1)

    def fold_in(self, histories: sparse.csr_matrix, draws: Draws | None = None) -> Tensor:
        return 0.01 * dense(histories, self) @ self.items.detach()


class TwoPlayers(Softmax):
    """Two layers that move in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(NUM_ITEMS, NUM_ITEMS).double()
        self.phase = "none"
        self.turns: list[tuple[int, str]] = []
        self.epoch = -1

    def begin_epoch(self, epoch: int) -> tuple[Phase, ...]:
        self.epoch = epoch
        return (Phase("first", ("layer.",)), Phase("second", ("other.",), rate=0.5))[: 2 - epoch % 2]

    def forward(self, batch: Batch) -> Tensor:
        self.turns.append((self.epoch, self.phase))
        return super().forward(batch) + self.other(batch["inputs"]).sum(1)


def mean_loss(network: Network, rows: np.ndarray = HAS_ITEMS) -> Tensor:
    """The mean loss of some shoppers, nothing random."""
    return network(network.batch(HISTORIES[rows], None)).mean()


def distance(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> float:
    return max(float(np.abs(first[name] - second[name]).max()) for name in first)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [(FitSettings(learning_rate=0.1, batch_shoppers=5), torch.optim.Adam), (SGD, torch.optim.SGD)],
    ids=["adam", "sgd"],
)
def test_fit_is_the_loop_that_anybody_would_write(settings: FitSettings, kind: type[torch.optim.Optimizer]) -> None:
    network, by_hand = Softmax(), Softmax()
    outcome = fit(network, HISTORIES, DRAWS, settings, epochs=3)

    optimiser = kind(by_hand.parameters(), lr=0.1)  # type: ignore[call-arg]
    losses = []
    for epoch in range(3):
        order = HAS_ITEMS[DRAWS.take(HAS_ITEMS).of(f"order, epoch {epoch}").order()]
        size = settings.batch_shoppers
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        seen = 0.0
        for part in parts:
            optimiser.zero_grad()
            loss = mean_loss(by_hand, part)
            loss.backward()
            optimiser.step()
            seen += loss.item() * len(part)
        losses.append(seen / len(order))
    for values, expected in zip(network.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(outcome.losses, losses)
    assert outcome.vectors is None


def test_fedprox_pulls_towards_the_anchor_as_autograd_says() -> None:
    network, by_hand = Softmax(), Softmax()
    anchor = {name: values + 0.3 for name, values in get_arrays(network).items()}
    fit(network, HISTORIES, DRAWS, FitSettings(**vars(SGD) | {"proximal": 0.7}), epochs=1, anchor=anchor)

    far = sum((values - torch.from_numpy(anchor[name])).square().sum() for name, values in by_hand.named_parameters())
    assert isinstance(far, Tensor)
    gradients = torch.autograd.grad(mean_loss(by_hand) + 0.7 / 2 * far, list(by_hand.parameters()))
    for values, start, gradient in zip(network.parameters(), by_hand.parameters(), gradients, strict=True):
        torch.testing.assert_close(values, start - 0.1 * gradient)


def test_fedprox_without_an_anchor_holds_on_to_the_start() -> None:
    moves = []
    for proximal in (0.0, 1.0, 9.0):
        network = Softmax()
        start = get_arrays(network)
        fit(network, HISTORIES, DRAWS, FitSettings(**vars(SGD) | {"proximal": proximal}), epochs=30)
        moves.append(distance(get_arrays(network), start))
    assert moves[0] > 2 * moves[1] > 4 * moves[2] > 0


def test_two_runs_give_the_same_bits_whatever_the_global_generator() -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        network = Softmax(noise=0.5)
        fit(network, HISTORIES, DRAWS, FitSettings(batch_shoppers=4), epochs=2)
        results.append(get_arrays(network))
    assert distance(*results) == 0


def test_the_order_of_the_table_and_empty_rows_change_nothing() -> None:
    settings = FitSettings(batch_shoppers=4)
    straight, turned, without = Softmax(noise=0.5), Softmax(noise=0.5), Softmax(noise=0.5)
    back = np.arange(NUM_SHOPPERS)[::-1].copy()
    assert len(HAS_ITEMS) < NUM_SHOPPERS
    fit(straight, HISTORIES, DRAWS, settings, epochs=2)
    fit(turned, HISTORIES[back], DRAWS.take(back), settings, epochs=2)
    fit(without, HISTORIES[HAS_ITEMS], DRAWS.take(HAS_ITEMS), settings, epochs=2)
    assert distance(get_arrays(straight), get_arrays(turned)) == 0
    assert distance(get_arrays(straight), get_arrays(without)) == 0


def test_other_draws_give_other_parameters() -> None:
    results = []
    for seed in ("a", "b"):
        network = Softmax(noise=0.5)
        fit(network, HISTORIES, Draws.seeded(seed, DRAWS.digests), FitSettings(batch_shoppers=4), epochs=1)
        results.append(get_arrays(network))
    assert distance(*results) > 0


def test_training_in_two_calls_is_training_in_one() -> None:
    settings = FitSettings(**vars(SGD) | {"batch_shoppers": 5})
    once, twice = Softmax(noise=0.5), Softmax(noise=0.5)
    fit(once, HISTORIES, DRAWS, settings, epochs=4)
    fit(twice, HISTORIES, DRAWS, settings, epochs=1, total_epochs=4)
    fit(twice, HISTORIES, DRAWS, settings, epochs=3, start_epoch=1, total_epochs=4)
    assert distance(get_arrays(once), get_arrays(twice)) == 0
    assert once.seen == twice.seen


def test_progress_runs_from_0_to_1_and_stays_there() -> None:
    network = Softmax()
    num_steps = math.ceil(len(HAS_ITEMS) / 10)
    settings = FitSettings(batch_shoppers=10)
    fit(network, HISTORIES, DRAWS, settings, epochs=2)
    assert len(network.seen) == 2 * num_steps
    assert network.seen[0] == 0
    assert network.seen[num_steps] == 0.5
    assert network.seen == sorted(network.seen)
    assert network.progress == 1
    fit(network, HISTORIES, DRAWS, settings, epochs=1, start_epoch=2, total_epochs=2)
    assert set(network.seen[2 * num_steps :]) == {1.0}


def test_training_stops_when_it_is_told_to() -> None:
    seen = []

    def stop_after_second(epoch: int, loss: float) -> bool:
        seen.append((epoch, loss))
        return epoch == 4

    outcome = fit(Softmax(), HISTORIES, DRAWS, SGD, epochs=9, start_epoch=3, on_epoch=stop_after_second)
    assert [epoch for epoch, _ in seen] == [3, 4]
    assert outcome.losses == tuple(loss for _, loss in seen)
    assert outcome.losses[1] < outcome.losses[0]


def test_a_cap_on_the_gradient_bounds_the_step() -> None:
    network = Softmax()
    start = [values.detach().clone() for values in network.parameters()]
    fit(network, HISTORIES, DRAWS, FitSettings(**vars(SGD) | {"max_gradient_norm": 0.01}), epochs=1)
    moved = sum((new.detach() - old).square().sum() for new, old in zip(network.parameters(), start, strict=True))
    assert moved.item() ** 0.5 == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_matrices_decay_and_biases_do_not() -> None:
    free, decayed = Softmax(), Softmax()
    settings = FitSettings(**vars(SGD) | {"learning_rate": 1e-3})
    fit(free, HISTORIES, DRAWS, settings, epochs=1)
    fit(decayed, HISTORIES, DRAWS, FitSettings(**vars(settings) | {"weight_decay": 2.0}), epochs=1)
    torch.testing.assert_close(decayed.layer.weight, free.layer.weight - 2e-3 * Softmax().layer.weight)
    torch.testing.assert_close(decayed.layer.bias, free.layer.bias)


class Breaks(Softmax):
    """Its loss is finite in the first epoch only."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, batch: Batch) -> Tensor:
        return super().forward(batch) * (1 if self.progress < 1 / 3 else self.value)


class Transposed(Softmax):
    """Its layer's gradient arrives in another memory order than the parameter."""

    def forward(self, batch: Batch) -> Tensor:
        scores = batch["inputs"] @ self.layer.weight.t().contiguous() + self.layer.bias
        return -(torch.log_softmax(scores, 1) * batch["rows"]).sum(1)


def test_the_memory_order_of_gradients_does_not_matter() -> None:
    plain, transposed = Softmax(), Transposed()
    rows = HISTORIES[HAS_ITEMS]
    loss = transposed(transposed.batch(rows, None)).sum()
    assert not torch.autograd.grad(loss, transposed.layer.weight)[0].is_contiguous()
    for network in (plain, transposed):
        fit(network, HISTORIES, DRAWS, FitSettings(learning_rate=0.1, batch_shoppers=5), epochs=3)
    for values, expected in zip(transposed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(values, expected)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_at_the_last_good_epoch(value: float) -> None:
    network, good = Breaks(value), Breaks(1.0)
    fit(good, HISTORIES, DRAWS, SGD, epochs=1, total_epochs=3)
    with pytest.raises(NotFinite, match="epoch 2: give a learning rate below"):
        fit(network, HISTORIES, DRAWS, SGD, epochs=3)
    assert distance(get_arrays(network), get_arrays(good)) == 0


class OfNobody(Softmax):
    def forward(self, batch: Batch) -> Tensor:
        return super().forward(batch)[:, None]


def test_losses_that_are_not_one_a_shopper_are_refused() -> None:
    with pytest.raises(NoPrivateVariant, match="one a shopper"):
        fit(OfNobody(), HISTORIES, DRAWS, FitSettings(), epochs=1)


def test_a_learning_rate_far_too_large_is_an_error_and_leaves_finite_parameters() -> None:
    network = Factors()
    with pytest.raises(NotFinite, match="finite"):
        fit(network, HISTORIES, DRAWS, FitSettings(**vars(SGD) | {"learning_rate": 1e150}), epochs=20)
    assert all(bool(values.isfinite().all()) for values in network.parameters())


def test_private_vectors_move_by_adam_on_each_ones_own_loss() -> None:
    network = Factors()
    start = torch.cos(torch.arange(NUM_SHOPPERS * 3.0).double()).view(NUM_SHOPPERS, 3)
    settings = FitSettings(**vars(SGD) | {"vector_learning_rate": 0.02, "learning_rate": 1e-12})
    outcome = fit(network, HISTORIES, DRAWS, settings, epochs=4, vectors=start)
    assert outcome.vectors is not None

    by_hand = start[HAS_ITEMS].clone().requires_grad_()
    optimiser = torch.optim.Adam([by_hand], lr=0.02)
    for _ in range(4):
        optimiser.zero_grad()
        (by_hand @ Factors().items.detach().T - BOUGHT[HAS_ITEMS]).square().sum().backward()
        optimiser.step()
    torch.testing.assert_close(outcome.vectors[HAS_ITEMS], by_hand.detach(), rtol=1e-6, atol=1e-8)
    empty = np.setdiff1d(np.arange(NUM_SHOPPERS), HAS_ITEMS)
    assert torch.equal(outcome.vectors[empty], start[empty])


def test_private_vectors_start_folded_in_and_train_beside_the_network() -> None:
    network = Factors()
    folded = network.fold_in(HISTORIES)
    before = network(network.batch(HISTORIES, None, folded)).sum().item()
    outcome = fit(network, HISTORIES, DRAWS, FitSettings(learning_rate=0.05, batch_shoppers=6), epochs=40)
    assert outcome.vectors is not None
    assert network(network.batch(HISTORIES, None, outcome.vectors)).sum().item() < before / 4
    untrained = fit(Factors(), HISTORIES, DRAWS, SGD, epochs=0).vectors
    assert untrained is not None
    assert torch.equal(untrained, folded)


def test_phases_take_turns_and_move_their_own_parameters_only() -> None:
    network = TwoPlayers()
    start = get_arrays(network)
    fit(network, HISTORIES, DRAWS, SGD, epochs=2)
    assert network.turns == [(0, "first"), (0, "second"), (1, "first")]

    only_first = TwoPlayers()
    set_arrays(only_first, start)
    fit(only_first, HISTORIES, DRAWS, SGD, epochs=1, start_epoch=1)
    moved = {name for name, values in get_arrays(only_first).items() if not np.array_equal(values, start[name])}
    assert moved == {"layer.weight", "layer.bias"}


def test_a_phase_has_a_learning_rate_of_its_own() -> None:
    network = TwoPlayers()
    start = network.other.bias.detach().clone()
    fit(network, HISTORIES, DRAWS, SGD, epochs=1)
    torch.testing.assert_close(network.other.bias, start - 0.5 * 0.1)


def test_training_moves_what_it_is_told_to_and_phases_no_more() -> None:
    network = TwoPlayers()
    start = get_arrays(network)
    fit(network, HISTORIES, DRAWS, replace(SGD, moved=("layer.bias", "other.weight")), epochs=1)
    moved = {name for name, values in get_arrays(network).items() if not np.array_equal(values, start[name])}
    assert moved == {"layer.bias", "other.weight"}

    set_arrays(network, start)
    outcome = fit(network, HISTORIES, DRAWS, replace(SGD, moved=("layer.",)), epochs=1)
    assert np.array_equal(get_arrays(network)["other.bias"], start["other.bias"])
    assert math.isfinite(outcome.losses[0])
    with pytest.raises(ConfigError, match="no such parameters"):
        fit(network, HISTORIES, DRAWS, replace(SGD, moved=("nothing",)), epochs=1)


def test_shoppers_without_items_train_nothing() -> None:
    network = Softmax()
    start = get_arrays(network)
    nothing = sparse.csr_matrix((4, NUM_ITEMS), dtype=np.float32)
    assert fit(network, nothing, DRAWS.take(np.arange(4)), SGD, epochs=3).losses == ()
    assert distance(get_arrays(network), start) == 0


def test_neither_losses_nor_vectors_are_printed() -> None:
    assert repr(fit(Factors(), HISTORIES, DRAWS, SGD, epochs=1)) == "FitOutcome()"


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_shoppers": 0},
        {"learning_rate": 0},
        {"learning_rate": math.nan},
        {"weight_decay": -1},
        {"proximal": math.inf},
        {"max_gradient_norm": 0},
        {"vector_learning_rate": 0},
        {"optimiser": "lion"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FitSettings(**wrong)  # type: ignore[arg-type]


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ConfigError, match="draws of 3"):
        fit(Softmax(), HISTORIES, DRAWS.take(np.arange(3)), SGD, epochs=1)
    with pytest.raises(ConfigError, match="histories over 6 items"):
        fit(Softmax(), HISTORIES[:, :6], DRAWS, SGD, epochs=1)
    with pytest.raises(ConfigError, match="vectors of shape"):
        fit(Factors(), HISTORIES, DRAWS, SGD, epochs=1, vectors=torch.zeros(NUM_SHOPPERS, 2))
    with pytest.raises(ConfigError, match="epochs"):
        fit(Softmax(), HISTORIES, DRAWS, SGD, epochs=-1)
    with pytest.raises(BadMessage, match="another network"):
        fit(Softmax(), HISTORIES, DRAWS, FitSettings(proximal=1), epochs=1, anchor={"layer.bias": np.zeros(NUM_ITEMS)})
