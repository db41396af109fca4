"""The VAE with a discriminator: who moves when, what each player's loss is, and that the game can be won."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from fedrec.errors import ConfigError
from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.testing.planted import plant_world
from fedrec.training.autoencoders import MultVae
from fedrec.training.fit import FitSettings, Phase, fit
from fedrec.training.network import get_arrays
from fedrec.training.vaegan import VaeGan

NUM_SHOPPERS, NUM_ITEMS = 40, 33
HISTORIES = plant_world(num_shoppers=NUM_SHOPPERS, num_items=NUM_ITEMS).histories
DRAWS = Draws.seeded("vaegan", shopper_digests(range(NUM_SHOPPERS)))
HAS_ITEMS = torch.from_numpy(np.diff(HISTORIES.indptr) > 0)
GENERATOR = ("encoder.", "decoder.")


def make(adversarial: float = 1.0) -> VaeGan:
    return VaeGan(NUM_ITEMS, hidden=(16,), latent=8, judge_size=5, adversarial=adversarial)


class JudgeOnly(VaeGan):
    """Its discriminator alone is trained."""

    def begin_epoch(self, epoch: int) -> tuple[Phase, ...]:
        return (Phase("discriminator", ("judge.",)),)


def test_every_batch_trains_the_discriminator_then_the_generator() -> None:
    phases = make().begin_epoch(0)
    assert [(phase.name, phase.moved) for phase in phases] == [
        ("discriminator", ("judge.",)),
        ("generator", GENERATOR),
    ]
    assert make().begin_epoch(0) == make().begin_epoch(7)


def test_a_discriminators_gradient_does_not_reach_the_generator() -> None:
    network = make()
    batch = network.batch(HISTORIES, DRAWS)
    network.phase = "discriminator"
    names, parameters = zip(*network.named_parameters(), strict=True)
    gradients = torch.autograd.grad(network(batch).sum(), parameters, allow_unused=True)
    reached = {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
    assert reached == {name for name in names if name.startswith("judge.")}


def test_without_the_discriminator_the_generator_is_a_mult_vae() -> None:
    network, plain = make(adversarial=0.0), MultVae(NUM_ITEMS, hidden=(16,), latent=8)
    batch = plain.batch(HISTORIES, DRAWS)
    assert torch.equal(network(batch), plain(batch))
    settings = FitSettings(batch_shoppers=16, learning_rate=0.01)
    fit(network, HISTORIES, DRAWS, settings, epochs=2)
    assert network.phase == "generator"


def test_the_players_losses_are_logistic_in_opposite_verdicts() -> None:
    network = make(adversarial=0.5)
    batch = network.batch(HISTORIES, DRAWS)
    bound, logits = network.bound(batch)
    lengths = batch["bought"].sum(1)
    first, second = network.judge

    def verdicts(baskets: torch.Tensor) -> torch.Tensor:
        return second(torch.tanh(first(baskets))).squeeze(1)

    of_made = verdicts(torch.softmax(logits, 1) * batch["bought"] * lengths.sqrt()[:, None])
    of_bought = verdicts(batch["bought"] / lengths.clamp(min=1).sqrt()[:, None])
    torch.testing.assert_close(network(batch), bound + 0.5 * lengths * softplus(-of_made))
    network.phase = "discriminator"
    torch.testing.assert_close(network(batch), (softplus(-of_bought) + softplus(of_made)) * HAS_ITEMS)


def test_a_basket_of_a_perfect_decoder_is_the_one_bought() -> None:
    network = make()
    bought = network.batch(HISTORIES, None)["bought"]
    logits = torch.where(bought > 0, 0.0, -1e9)
    baskets = network.baskets(logits, bought)
    torch.testing.assert_close(baskets, bought / bought.sum(1, keepdim=True).clamp(min=1).sqrt())


def test_a_discriminator_alone_learns_to_tell_baskets_apart() -> None:
    network = JudgeOnly(NUM_ITEMS, hidden=(16,), latent=8, judge_size=5)
    before = get_arrays(network)
    settings = FitSettings(batch_shoppers=16, learning_rate=0.02)
    losses = fit(network, HISTORIES, DRAWS, settings, epochs=60).losses
    assert losses[-1] < losses[0] / 4
    after = get_arrays(network)
    assert all((after[name] == before[name]).all() for name in after if name.startswith(GENERATOR))


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_settings_out_of_range_are_refused(wrong: float) -> None:
    with pytest.raises(ConfigError, match="adversarial"):
        make(adversarial=wrong)
