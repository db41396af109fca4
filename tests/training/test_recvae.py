"""RecVAE: the composite prior against torch's mixtures, turns of encoder and decoder, the loss by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from fedrec.errors import ConfigError
from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.testing.planted import plant_world
from fedrec.training.autoencoders import input_rows, negative_log_likelihood
from fedrec.training.fit import FitSettings, fit
from fedrec.training.network import get_arrays
from fedrec.training.recvae import RecVae, composite_log_prior, gaussian_log_density

NUM_SHOPPERS, NUM_ITEMS = 40, 33
HISTORIES = plant_world(num_shoppers=NUM_SHOPPERS, num_items=NUM_ITEMS).histories
DRAWS = Draws.seeded("recvae", shopper_digests(range(NUM_SHOPPERS)))
SETTINGS = FitSettings(batch_shoppers=16, learning_rate=0.01)


def make(gamma: float = 0.005, **others: float) -> RecVae:
    return RecVae(NUM_ITEMS, hidden=16, latent=8, gamma=gamma, **others)


def test_the_prior_is_torchs_mixture() -> None:
    code, mean = torch.tensor([[0.4, -2.0]]), torch.tensor([[0.1, 3.0]])
    log_variance = torch.tensor([[-1.0, 0.7]])
    means = torch.stack([torch.zeros_like(mean), mean, torch.zeros_like(mean)], dim=-1)
    log_variances = torch.stack([torch.zeros(1, 2), log_variance, torch.full((1, 2), 10.0)], dim=-1)
    shares = torch.tensor([3 / 20, 3 / 4, 1 / 10]).expand(1, 2, 3)
    mixture = MixtureSameFamily(Categorical(shares), Normal(means, (0.5 * log_variances).exp()))
    torch.testing.assert_close(composite_log_prior(code, mean, log_variance), mixture.log_prob(code))
    expected = Normal(mean, (0.5 * log_variance).exp()).log_prob(code)
    torch.testing.assert_close(gaussian_log_density(code, mean, log_variance), expected)


def test_the_loss_is_likelihood_plus_divergence_by_the_number_of_items() -> None:
    losses = []
    for gamma in (0.0, 0.01):
        network = make(gamma)
        batch = network.batch(HISTORIES, DRAWS)
        losses.append(network(batch).detach())
    mean, log_variance = network.encoder(batch["rows"]).split(8, dim=1)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    code = mean + batch["noise"] * posterior.scale
    torch.testing.assert_close(losses[0], negative_log_likelihood(network.decoder(code), batch["bought"]).detach())
    prior = composite_log_prior(code, *batch["prior"].split(8, dim=1))
    divergence = (posterior.log_prob(code) - prior).sum(1).detach()
    lengths = torch.from_numpy(np.diff(HISTORIES.indptr))
    torch.testing.assert_close(losses[1] - losses[0], 0.01 * lengths * divergence, rtol=1e-3, atol=1e-4)


def test_encoder_and_decoder_take_turns() -> None:
    network = make()
    assert [network.begin_epoch(epoch)[0].name for epoch in range(6)] == [
        "encoder",
        "encoder",
        "encoder",
        "decoder",
        "encoder",
        "encoder",
    ]
    for epoch, part in ((4, "encoder."), (3, "decoder.")):
        before = get_arrays(network)
        fit(network, HISTORIES, DRAWS, SETTINGS, epochs=1, start_epoch=epoch)
        after = get_arrays(network)
        assert {name for name in after if (after[name] != before[name]).any()} == {
            name for name in after if name.startswith(part)
        }


def test_turns_in_every_batch_move_both_parts_at_their_own_rates() -> None:
    steps = {}
    for rate in (1.0, 0.1):
        network = make(encoder_epochs=0, decoder_epochs=0, batch_encoder_rate=rate)
        assert [phase.name for phase in network.begin_epoch(3)] == ["encoder", "decoder"]
        before = get_arrays(network)
        fit(network, HISTORIES, DRAWS, FitSettings(batch_shoppers=NUM_SHOPPERS, learning_rate=0.01), epochs=1)
        steps[rate] = {name: np.abs(values - before[name]).max() for name, values in get_arrays(network).items()}
    for name, step in steps[1.0].items():
        assert steps[0.1][name] == pytest.approx(step * (0.1 if name.startswith("encoder.") else 1), rel=0.01)


def test_the_decoder_trains_on_clean_rows() -> None:
    network = make()
    clean = input_rows(HISTORIES, None, 0, network)
    assert not torch.equal(network.batch(HISTORIES, DRAWS)["rows"], clean)
    network.phase = "decoder"
    assert torch.equal(network.batch(HISTORIES, DRAWS)["rows"], clean)


def test_the_prior_remembers_the_encoder_of_the_last_turn() -> None:
    network = make()
    clean = input_rows(HISTORIES, None, 0, network)
    network.begin_epoch(0)
    first = network.encoder(clean).detach()
    fit(network, HISTORIES, DRAWS, SETTINGS, epochs=3)
    torch.testing.assert_close(network.batch(HISTORIES, DRAWS)["prior"], first)
    trained = network.encoder(clean).detach()
    assert (trained - first).abs().max() > 0.01
    network.begin_epoch(3)
    torch.testing.assert_close(network.batch(HISTORIES, DRAWS)["prior"], trained)


def test_what_is_remembered_is_no_parameter_and_does_not_follow_the_encoder() -> None:
    network = make()
    names = [name for name, _ in network.named_parameters()]
    network.remember()
    assert [name for name, _ in network.named_parameters()] == names
    before = network.batch(HISTORIES, None)["prior"]
    with torch.no_grad():
        network.encoder.output.weight.mul_(2)
    assert torch.equal(network.batch(HISTORIES, None)["prior"], before)
    assert not before.requires_grad


@pytest.mark.parametrize(
    "wrong", [{"gamma": -1}, {"encoder_epochs": 0}, {"decoder_epochs": 0}, {"batch_encoder_rate": 0}], ids=str
)
def test_settings_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        make(**wrong)
