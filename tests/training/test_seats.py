"""Seats: nobody's gradient changes by a bit with who else is there, at parameters that would blow up the last one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.training.autoencoders import MultVae
from fedrec.training.dp_sgd import ShopperGradients
from fedrec.training.ncf import Gmf, Mlp, NcfSettings, NeuMf, TowerPart
from fedrec.training.pairs import size_classes
from fedrec.training.seats import SeatedGradients, seated

NUM_ITEMS, NUM_SHOPPERS, SEATS = 40, 20, 8
SETTINGS = NcfSettings(factors=16, layers=1, fold_in_steps=2)


def table(num_shoppers=NUM_SHOPPERS, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.random((num_shoppers, NUM_ITEMS)) < rng.choice([0.02, 0.1, 0.3], (num_shoppers, 1))
    return sparse.csr_matrix(rows.astype(np.float32)), Draws.seeded("seats", shopper_digests(range(num_shoppers)))


@torch.no_grad()
def on_the_kink(kind, seed=0):
    """A network all of whose units stand at 0 but for rounding: the shopper's part and the item's cancel."""
    network = kind(NUM_ITEMS, SETTINGS).double()
    generator = torch.Generator().manual_seed(seed)
    for part in network.typed_parts:
        if not isinstance(part, TowerPart):
            continue
        width, order = part.width, torch.randperm(part.width, generator=generator)
        weight, mean = (15 * torch.randn(size, width, generator=generator) for size in (width, 1))
        part.mean.weight.copy_(mean.T)
        part.items.weight.copy_(mean[:, order])
        part.first_shopper.weight.copy_(weight)
        part.first_item.weight.copy_(-weight[:, order])
        part.first_item.bias.zero_()
    network.output.weight.copy_(16 * (torch.rand(network.output.weight.shape, generator=generator) > 0.5) - 8)
    network.output.bias.zero_()
    return network


@pytest.mark.parametrize("kind", [Mlp, NeuMf])
def test_who_leaves_changes_no_bit_of_anybody_elses_gradient(kind):
    histories, draws = table()
    network = on_the_kink(kind)
    whole = SeatedGradients(network, histories, draws, seats=SEATS)
    norms = whole.norms()
    assert np.count_nonzero(norms) > NUM_SHOPPERS / 3
    bound = float(np.median(norms[norms > 0]))
    for gone in (0, NUM_SHOPPERS - 1):
        rest = np.delete(np.arange(NUM_SHOPPERS), gone)
        without = SeatedGradients(network, histories[rest], draws.take(rest), seats=SEATS)
        total, found = without.clipped(bound)
        np.testing.assert_array_equal(found, norms[rest])
        assert np.linalg.norm(whole.clipped(bound)[0] - total) <= bound * (1 + 1e-12)


@torch.no_grad()
def of_nothing_but_rounding(seed=0):
    """A Mult-VAE whose logits are all equal but for rounding, and have a code of 1e60 times 0 in them."""
    network, latent, half = MultVae(NUM_ITEMS, latent=32, dropout=0.0, beta=0.0), 32, NUM_ITEMS // 2
    generator = torch.Generator().manual_seed(seed)
    encoder, decoder = network.encoder[0], network.decoder[0]
    encoder.weight.fill_(64)
    encoder.weight[latent + 1 :] = -64
    encoder.weight[[0, latent]] = 50
    encoder.bias.copy_(torch.full((2 * latent,), 64.0))
    encoder.bias[latent + 1 :] = -64
    encoder.bias[[0, latent]] = 0
    values = 100 * torch.rand(latent - 1, generator=generator) - 50
    decoder.weight.zero_()
    for row in range(half):
        decoder.weight[row, 1:] = values[torch.randperm(latent - 1, generator=generator)]
    decoder.weight[half:, 1:] = -64
    decoder.bias.fill_(-64)
    decoder.bias[:half] = 64
    return network.double()


@pytest.mark.parametrize("seed", range(4))
def test_a_gradient_of_nothing_but_rounding_is_a_shoppers_own(seed):
    network, num_shoppers = of_nothing_but_rounding(seed), 9
    rows = np.zeros((num_shoppers, NUM_ITEMS), np.float32)
    rows[:, : NUM_ITEMS // 2] = 1
    histories, draws = sparse.csr_matrix(rows), Draws.seeded(f"{seed}", shopper_digests(range(num_shoppers)))
    whole = SeatedGradients(network, histories, draws, seats=SEATS)
    bound = 0.1
    assert np.median(whole.norms()) > bound
    for gone in range(num_shoppers):
        rest = np.delete(np.arange(num_shoppers), gone)
        without = SeatedGradients(network, histories[rest], draws.take(rest), seats=SEATS)
        total, found = without.clipped(bound)
        np.testing.assert_array_equal(found, whole.norms()[rest])
        assert np.linalg.norm(whole.clipped(bound)[0] - total) <= bound * (1 + 1e-9)


@pytest.mark.parametrize("kind", [Gmf, NeuMf])
def test_seats_change_nothing_but_rounding(kind):
    histories, draws = table()
    network = kind(NUM_ITEMS, SETTINGS, init_seed=3).double()
    plain = ShopperGradients(network, histories, draws, vectors=network.fold_in(histories, draws.of("fold in")))
    seats = SeatedGradients(network, histories, draws, seats=SEATS)
    bound = float(np.median(plain.norms()))
    for found, expected in zip(seats.clipped(bound), plain.clipped(bound), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    weights = np.arange(float(NUM_SHOPPERS))
    np.testing.assert_allclose(seats.total(weights), plain.total(weights), rtol=1e-6, atol=1e-9)


def test_everybody_has_one_seat_beside_others_of_the_same_class_and_keeps_it():
    histories, draws = table(200)
    counts = np.diff(histories.indptr)

    def seat_of(rows):
        return {shopper: place for batch in rows for place, shopper in enumerate(batch)}

    rows = seated(counts, draws, SEATS)
    assert sorted(rows[rows < 200]) == list(range(200))
    for batch in rows:
        assert len(set(size_classes(counts[batch[batch < 200]]))) == 1
    rest = np.delete(np.arange(200), 5)
    without = seated(counts[rest], draws.take(rest), SEATS)
    seats = seat_of(rows)
    assert all(seats[rest[one]] == place for one, place in seat_of(without).items() if one < 199)
    assert seated(counts[:0], draws.take(np.arange(0)), SEATS).shape == (0, SEATS)


def test_classes_double():
    counts = np.array([0, 1, 2, 3, 4, 5, 8, 9, 16, 17])
    np.testing.assert_array_equal(size_classes(counts), [0, 1, 2, 3, 3, 4, 4, 5, 5, 6])
