"""Norms and sums of layers' gradients where these nearly cancel: what is added is measured, and rounding is bounded."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.training.dp_sgd import clip_weights, rounding_slack
from fedrec.training.layer_rules import LEAST_SHARE, Call, SumsOfOuterProducts, TiedProducts, linear
from fedrec.training.seats import seated

SIZE, LENGTH, NUM_SHOPPERS = 16, 6, 50
SLOPES = [1e2, 1e4, 1e6, 1e8, 1e10]


def cancelling(slope: float) -> Call:
    """Calls in pairs: each shopper's second half takes back what the first says, but for a part in a slope-th."""
    generator = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs, gradient = drawn(NUM_SHOPPERS, LENGTH // 2, SIZE), drawn(NUM_SHOPPERS, LENGTH // 2, SIZE)
    nearly = inputs * (1 + drawn(NUM_SHOPPERS, LENGTH // 2, 1) / slope)
    return Call(torch.cat([inputs, nearly], 1), slope * torch.cat([gradient, -gradient], 1))


def sums(part: SumsOfOuterProducts | TiedProducts, weights: Tensor, shapes: dict[str, tuple[int, ...]]) -> Tensor:
    """The weighted sum of gradients, flat."""
    totals = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    part.add(weights, totals)
    return torch.cat([total.flatten() for total in totals.values()])


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("slope", SLOPES)
def test_whoever_leaves_takes_no_more_than_the_bound_from_a_sum_of_what_cancels(slope: float, has_bias: bool) -> None:
    layer = nn.Linear(SIZE, SIZE, bias=has_bias).double()
    part = linear(layer, {"forward": [cancelling(slope)]})
    assert isinstance(part, SumsOfOuterProducts)
    shapes = {name: tuple(values.shape) for name, values in layer.named_parameters()}
    weights = clip_weights(part.squares.sqrt(), 1.0)
    without, alone = weights.clone(), torch.zeros_like(weights)
    without[7], alone[7] = 0, weights[7]
    moved = sums(part, weights, shapes) - sums(part, without, shapes)
    slack = rounding_slack(NUM_SHOPPERS, longest_sum=SIZE + LENGTH**2, addends=LENGTH)
    assert torch.linalg.vector_norm(moved) <= 1 + slack
    assert torch.linalg.vector_norm(moved - sums(part, alone, shapes)) <= slack


@pytest.mark.parametrize("slope", SLOPES)
def test_a_bias_alone_is_not_added_longer_than_it_is_measured(slope: float) -> None:
    layer, call = nn.Linear(SIZE, SIZE).double(), cancelling(slope)
    part = linear(layer, {"forward": [Call(torch.zeros_like(call.inputs), call.gradient)]})
    shapes = {name: tuple(values.shape) for name, values in layer.named_parameters()}
    alone = torch.zeros(NUM_SHOPPERS, dtype=torch.float64)
    alone[3] = clip_weights(part.squares.sqrt(), 1.0)[3]
    assert torch.linalg.vector_norm(sums(part, alone, shapes)) <= 1 + rounding_slack(
        1, longest_sum=LENGTH, addends=LENGTH
    )


def test_the_halves_of_a_tied_weight_may_cancel_and_then_count_as_a_share_of_their_lengths() -> None:
    rng = np.random.default_rng(2)
    rows, codes = (torch.from_numpy(rng.normal(size=(4, size))) for size in (20, 3))
    # x p^T + g z^T with g = -x and p = z is nothing at all.
    part = TiedProducts(Call(rows, codes), Call(codes, -rows))
    bias, lengths = rows.norm(dim=1), 2 * rows.norm(dim=1) * codes.norm(dim=1)
    least = ((LEAST_SHARE * lengths) ** 2 + bias**2).sqrt()
    torch.testing.assert_close(part.squares.sqrt(), least, rtol=1e-9, atol=0)
    shapes = {"weight": (20, 3), "bias": (20,)}
    added = sums(part, torch.ones(4, dtype=torch.float64), shapes)
    torch.testing.assert_close(added[60:], -rows.sum(0))
    assert torch.linalg.vector_norm(added[:60]) < 1e-12


def test_what_hardly_cancels_is_clipped_by_its_own_length() -> None:
    rng = np.random.default_rng(3)
    call = Call(*(torch.from_numpy(rng.normal(size=(9, LENGTH, SIZE))) for _ in range(2)))
    part = linear(nn.Linear(SIZE, SIZE).double(), {"forward": [call]})
    written = torch.einsum("nlo,nli->noi", call.gradient, call.inputs).flatten(1)
    exact = (written.square().sum(1) + call.gradient.sum(1).square().sum(1)).sqrt()
    torch.testing.assert_close(part.squares.sqrt(), exact, rtol=1e-9, atol=0)


def test_the_room_that_shops_keep_for_rounding_is_enough() -> None:
    for addends, at_once in (1, 128), (2, 128), (512, 128), (4096, 16):
        assert rounding_slack(2**20, longest_sum=2**30, addends=addends, at_once=at_once) < 2.0**-10
    seats = seated(np.repeat([1, 3, 9, 40, 500], 200), Draws.seeded("some", shopper_digests(range(1000))))
    longest = [(len(rows), (1, 4, 16, 64, 512)[min(rows) // 200]) for rows in seats]
    assert max(shoppers * items for shoppers, items in longest) <= 2**16
