"""What would break the bound in silence is refused or avoided: Opacus' known failures, and networks of other forms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

from fedrec.errors import NoPrivateVariant
from fedrec.privacy.draws import Draws
from fedrec.training.dp_sgd import ENGINES, ShopperGradients
from fedrec.training.network import Batch, Network
from fedrec.training.network_check import check_network

from .dp_networks import NUM_ITEMS, Dense, Pairs, Tied, build, oracle, shoppers

ALL = list(ENGINES)


class Plain(Dense):
    """One hidden layer that a test may change, and a loss that it may bend."""

    def __init__(self, bend: Callable[[Tensor], Tensor] = lambda losses: losses, **layers: nn.Module) -> None:
        super().__init__(NUM_ITEMS)
        self.bend = bend
        self.first = nn.Linear(NUM_ITEMS, 4)
        self.middle = nn.Sequential(*layers.values())
        self.out = nn.Linear(4, NUM_ITEMS)

    def forward(self, batch: Batch) -> Tensor:
        return self.bend(self.likelihood(batch, self.out(self.middle(torch.tanh(self.first(batch["rows"]))))))


def clip(network: Network, engine: str = "closed-form", num_shoppers: int = 6) -> tuple[np.ndarray, np.ndarray]:
    histories, draws, vectors = shoppers(num_shoppers)
    return ShopperGradients(network.double(), histories, draws, vectors=vectors, engine=engine).clipped(0.01)


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("bend", [lambda losses: losses[:, None], torch.sum, torch.mean, lambda losses: losses[:-1]])
def test_a_losses_not_one_a_shopper_are_refused(engine: str, bend: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(NoPrivateVariant, match="one a shopper"):
        clip(Plain(bend), engine)


class Bag(Dense):
    """A sum of a shopper's rows; Opacus loses all but one of equal ids."""

    def __init__(self) -> None:
        super().__init__(NUM_ITEMS)
        self.bag = nn.EmbeddingBag(NUM_ITEMS, 4, mode="sum")

    def forward(self, batch: Batch) -> Tensor:
        return self.bag(torch.ones(len(batch["rows"]), 20, dtype=torch.long)).square().sum(1)


@pytest.mark.parametrize("engine", ALL)
def test_b_bags_of_embeddings_are_refused(engine: str) -> None:
    with pytest.raises(NoPrivateVariant, match=r"bag \(EmbeddingBag\) has no rule.*Linear"):
        clip(Bag(), engine)


class Twenty(Network):
    """One id, twenty times a shopper."""

    def __init__(self) -> None:
        super().__init__(NUM_ITEMS)
        self.table = nn.Embedding(NUM_ITEMS, 4)

    def batch(self, histories: sparse.csr_matrix, draws: Draws | None, vectors: Tensor | None = None) -> Batch:
        return {"ids": torch.arange(histories.shape[0])[:, None].expand(-1, 20).clone() % 3}

    def forward(self, batch: Batch) -> Tensor:
        return self.table(batch["ids"]).sum((1, 2))


@pytest.mark.parametrize("engine", ALL)
def test_b_equal_ids_add_up_before_the_norm(engine: str) -> None:
    _, norms = clip(Twenty(), engine)
    np.testing.assert_allclose(norms, 20 * np.sqrt(4))


class TiedByHand(Pairs):
    """A table that is used beside its layer."""

    def forward(self, batch: Batch) -> Tensor:
        scores = batch["vectors"][:, :3] @ self.tower_items.weight.T
        return super().forward(batch) + scores.square().sum(1)


class OnlyByHand(Pairs):
    """A layer that is never called."""

    def forward(self, batch: Batch) -> Tensor:
        items = self.tower_items.weight[batch["ids"]]
        return self.output(torch.cat([self.product(batch["ids"]), items, items[:, :, :1]], dim=2)).sum((1, 2))


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("network", [TiedByHand, OnlyByHand])
def test_c_parameters_used_beside_their_layer_are_refused(engine: str, network: type[Network]) -> None:
    with pytest.raises(NoPrivateVariant, match=r"weight of layer tower_items .* outside its layer"):
        clip(network(), engine)


@pytest.mark.parametrize("engine", [name for name in ALL if name != "closed-form"])
def test_c_tied_layers_are_left_to_the_closed_form(engine: str) -> None:
    with pytest.raises(NoPrivateVariant, match="use closed-form"):
        clip(Tied(), engine)


@pytest.mark.parametrize("engine", ALL)
def test_d_empty_batches_of_embeddings_give_zeros(engine: str) -> None:
    total, norms = clip(Pairs(), engine, num_shoppers=0)
    assert not total.any()
    assert norms.shape == (0,)


@pytest.mark.parametrize("engine", ["closed-form", "opacus", "opacus-hooks"])
def test_g_padding_has_no_gradient(engine: str) -> None:
    network = Pairs(padding=True).double()
    histories, draws, vectors = shoppers(6)
    total = ShopperGradients(network, histories, draws, vectors=vectors, engine=engine).total(np.ones(6))
    assert not total[: network.product.weight.numel()].reshape(-1, 3)[-1].any()
    assert total[: network.product.weight.numel()].any()


def test_h_nothing_is_drawn() -> None:
    state = torch.get_rng_state()
    network = build("neumf")
    torch.set_rng_state(state)
    first = clip(network)[0]
    assert torch.equal(torch.get_rng_state(), state)
    for engine in ALL:
        np.testing.assert_allclose(clip(network, engine)[0], first, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.BatchNorm1d(4), "mixes shoppers"),
        (nn.BatchNorm1d(4, affine=False), "mixes shoppers"),
        (nn.BatchNorm1d(4, affine=False, track_running_stats=False), "mixes shoppers"),
        (nn.Dropout(0.1), "table order"),
        (nn.PReLU(), "has no rule"),
        (nn.Bilinear(4, 4, 4), "has no rule"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "has no rule"),
    ],
)
def test_layers_that_cannot_be_clipped_are_refused_by_name(engine: str, layer: nn.Module, words: str) -> None:
    with pytest.raises(NoPrivateVariant, match=f"middle.0.*{words}"):
        clip(Plain(layer=layer), engine)


def test_subclasses_and_changed_layers_are_refused() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(2 * input)

    with pytest.raises(NoPrivateVariant, match=r"Doubled.*exact classes"):
        clip(Plain(layer=Doubled(4, 4)))
    changed = Plain()
    changed.out.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(NoPrivateVariant, match="parameters of its own: scale"):
        clip(changed)
    replaced = Plain()
    replaced.out.forward = lambda rows: 2 * functional.linear(rows, replaced.out.weight)
    with pytest.raises(NoPrivateVariant, match="replaced"):
        clip(replaced)
    for setting in ({"max_norm": 1.0}, {"scale_grad_by_freq": True}):
        table = Pairs()
        table.product = nn.Embedding(NUM_ITEMS + 1, 3, **setting)
        with pytest.raises(NoPrivateVariant, match=next(iter(setting))):
            clip(table)


def test_opacus_refuses_layer_norm_without_bias() -> None:
    with pytest.raises(NoPrivateVariant, match="has no bias"):
        clip(build("layer norm, no bias"), "opacus")


@pytest.mark.parametrize("engine", ALL)
def test_a_parameter_of_two_layers_or_frozen_is_refused(engine: str) -> None:
    shared = Plain(layer=nn.Linear(4, 4), other=nn.Linear(4, 4))
    shared.middle[1].weight = shared.middle[0].weight
    with pytest.raises(NoPrivateVariant, match=r"middle\.1 .* shares its weight with layer middle\.0"):
        clip(shared, engine)
    frozen = Plain()
    frozen.out.bias.requires_grad_(False)
    with pytest.raises(NoPrivateVariant, match=r"bias of layer out .* frozen"):
        clip(frozen, engine)


class Bare(Dense):
    """A parameter that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__(NUM_ITEMS)
        self.scale = nn.Parameter(torch.ones(NUM_ITEMS))

    def forward(self, batch: Batch) -> Tensor:
        return self.likelihood(batch, batch["rows"] * self.scale)


@pytest.mark.parametrize("engine", ALL)
def test_a_parameter_without_a_layer_is_refused(engine: str) -> None:
    with pytest.raises(NoPrivateVariant, match=r"the network itself \(Bare\) has no rule"):
        clip(Bare(), engine)


class Twice(Dense):
    """One module under two names, called three times."""

    def __init__(self) -> None:
        super().__init__(NUM_ITEMS)
        self.first = nn.Linear(NUM_ITEMS, 4)
        self.middle = self.again = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Linear(4, NUM_ITEMS)

    def forward(self, batch: Batch) -> Tensor:
        hidden = torch.tanh(self.first(batch["rows"]))
        hidden = self.norm(self.again(torch.tanh(self.middle(hidden))))
        return self.likelihood(batch, self.out(self.norm(torch.tanh(self.middle(hidden)))))


@pytest.mark.parametrize("engine", ["closed-form", "opacus", "opacus-hooks"])
def test_a_layer_called_again_has_the_sum_of_its_gradients(engine: str) -> None:
    network = build_from(Twice)
    check_network(network, network.batch(*shoppers(6)), engine=engine)


def test_opacus_ghost_refuses_a_layer_called_again() -> None:
    with pytest.raises(NoPrivateVariant, match="tying"):
        clip(build("neumf, two calls"), "opacus-ghost")


def build_from(make: Callable[[], Network]) -> Network:
    torch.manual_seed(0)
    return make().double()


class Unused(Plain):
    """A layer without a say, and one whose gradient is stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.stopped, self.quiet = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(NUM_ITEMS, 1)

    def forward(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            quiet = self.quiet(batch["rows"])
        self.idle(batch["rows"][:, :4])
        return super().forward(batch) * self.stopped(batch["rows"][:, :4]).detach().mean(1) * quiet[:, 0]


@pytest.mark.parametrize("engine", ALL)
def test_layers_without_a_say_have_no_gradient(engine: str) -> None:
    network = build_from(Unused)
    batch = network.batch(*shoppers(6))
    check_network(network, batch, engine=engine)
    expected = oracle(network, batch)
    np.testing.assert_allclose(clip(network, engine)[1], np.linalg.norm(expected, axis=1), rtol=1e-10)


class InsteadOfItsCall(Plain):
    """A layer whose call has no say, and whose weight has one elsewhere."""

    def forward(self, batch: Batch) -> Tensor:
        self.out(torch.tanh(self.first(batch["rows"])))
        return self.likelihood(batch, torch.tanh(self.first(batch["rows"])) @ self.out.weight.T)


@pytest.mark.parametrize("engine", ALL)
def test_calls_without_a_say_hide_no_other_use(engine: str) -> None:
    with pytest.raises(NoPrivateVariant, match=r"outside its layer|tying"):
        clip(InsteadOfItsCall(), engine)


class Positions(Dense):
    """Rows of a table that all shoppers share, as one list for all or repeated for each."""

    def __init__(self, repeated: bool) -> None:
        super().__init__(NUM_ITEMS)
        self.repeated = repeated
        self.places = nn.Embedding(NUM_ITEMS, 3)

    def forward(self, batch: Batch) -> Tensor:
        ids = torch.arange(NUM_ITEMS)
        if self.repeated:
            ids = ids.expand(len(batch["rows"]), -1)
        return (batch["rows"][:, :, None] * self.places(ids)).square().sum((1, 2))


@pytest.mark.parametrize("num_shoppers", [6, NUM_ITEMS])
def test_what_shoppers_share_must_be_repeated_even_if_there_are_as_many(num_shoppers: int) -> None:
    with pytest.raises(NoPrivateVariant, match="the first axis must be the shopper"):
        clip(build_from(lambda: Positions(False)), num_shoppers=num_shoppers)
    network = build_from(lambda: Positions(True))
    expected = oracle(network, network.batch(*shoppers(num_shoppers)))
    np.testing.assert_allclose(
        clip(network, num_shoppers=num_shoppers)[1], np.linalg.norm(expected, axis=1), rtol=1e-10
    )


@pytest.mark.parametrize("what", ["output", "input"])
def test_changes_in_place_are_refused(what: str) -> None:
    class InPlace(Plain):
        def forward(self, batch: Batch) -> Tensor:
            rows = torch.tanh(self.first(batch["rows"]))
            scores = self.out(rows)
            (scores if what == "output" else rows).mul_(2)
            return self.likelihood(batch, scores)

    with pytest.raises(NoPrivateVariant, match=r"layer out .*in place"):
        clip(InPlace())


MIXING = {
    "softmax over the batch": lambda losses: losses * losses.softmax(0).detach(),
    "mean over the batch": lambda losses: losses - losses.mean(),
    "scale by the number": lambda losses: losses / len(losses),
    "neighbours": lambda losses: losses + losses.roll(1),
}


@pytest.mark.parametrize("how", MIXING)
def test_the_check_finds_losses_that_mix_shoppers(how: str) -> None:
    network = build_from(lambda: Plain(MIXING[how]))
    with pytest.raises(NoPrivateVariant, match="another one"):
        check_network(network, network.batch(*shoppers(6)))


def test_the_check_finds_dropout_without_a_layer() -> None:
    network = build_from(lambda: Plain(lambda losses: functional.dropout(losses, 0.5)))
    with pytest.raises(NoPrivateVariant, match="random numbers"):
        check_network(network, network.batch(*shoppers(6)))


def test_the_check_finds_rows_that_trade_places_inside() -> None:
    class Turned(Dense):
        def __init__(self) -> None:
            super().__init__(NUM_ITEMS)
            self.layer = nn.Linear(2, 3)

        def forward(self, batch: Batch) -> Tensor:
            rows = batch["rows"][:, :12].reshape(len(batch["rows"]), 6, 2)
            return torch.tanh(self.layer(rows.transpose(0, 1))).square().sum((0, 2))

    network = build_from(Turned)
    with pytest.raises(NoPrivateVariant, match="not autograd's"):
        check_network(network, network.batch(*shoppers(6)))
    with pytest.raises(NoPrivateVariant, match="first axis"):
        clip(network)
