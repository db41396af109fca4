"""Seats: nobody's gradient changes by a bit with who else is there, at parameters that would blow up the last one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn
from torch.nn.functional import softplus

from fedrec.errors import NoPrivateVariant
from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.training.autoencoders import MultDae, MultVae
from fedrec.training.dp_sgd import ShopperGradients
from fedrec.training.layer_rules import Lookups
from fedrec.training.ncf import Gmf, Mlp, NcfSettings, NeuMf
from fedrec.training.network import Network, dense
from fedrec.training.network_check import check_seats
from fedrec.training.pair_parts import TowerPart
from fedrec.training.pairs import size_classes
from fedrec.training.seats import SeatedGradients, seated
from fedrec.training.small_autoencoder import SmallAutoencoder

NUM_ITEMS, NUM_SHOPPERS, SEATS = 40, 20, 8
SETTINGS = NcfSettings(factors=16, layers=1, fold_in_steps=2)


def table(num_shoppers=NUM_SHOPPERS, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.random((num_shoppers, NUM_ITEMS)) < rng.choice([0.02, 0.1, 0.3], (num_shoppers, 1))
    return sparse.csr_matrix(rows.astype(np.float32)), Draws.seeded("seats", shopper_digests(range(num_shoppers)))


@torch.no_grad()
def on_the_kink(kind, seed=0):
    """A network where fold-in, one step of Adam under a huge slope, leads everybody with pairs to the same vector.

    There all units but the one that makes the slope stand at 0 but for rounding: their biases cancel the vector.
    """
    settings = dataclasses.replace(SETTINGS, fold_in_steps=1)
    network = kind(NUM_ITEMS, settings).double()
    generator = torch.Generator().manual_seed(seed)
    network.output.weight.copy_(2e9 * (torch.rand(network.output.weight.shape, generator=generator) > 0.5) - 1e9)
    network.output.bias.zero_()
    first = 0
    for part in network.typed_parts:
        if isinstance(part, TowerPart):
            signs, weight = (torch.randn(size, part.width, generator=generator).double() for size in (1, part.width))
            signs = signs[0].sign()
            weight[0] = -60 * signs
            part.items.weight.copy_(signs)
            part.first_shopper.weight.copy_(15 * weight)
            part.first_item.weight.zero_()
            part.first_item.bias.copy_(-(15 * weight @ (settings.fold_in_rate * signs)))
            part.first_item.bias[0] += 1
            network.output.weight[0, first] = 1e9
        else:
            part.items.weight.zero_()
            first += part.num_features
    return network


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", [Mlp, NeuMf])
def test_who_leaves_changes_no_bit_of_anybody_elses_gradient(kind, seed):
    histories, draws = table(4, seed=7 + seed)
    network = on_the_kink(kind, seed)
    whole = SeatedGradients(network, histories, draws, seats=SEATS)
    norms = whole.norms()
    assert np.count_nonzero(norms) >= 3
    bound = float(np.median(norms[norms > 0]))
    for gone in range(4):
        rest = np.delete(np.arange(4), gone)
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
    assert sorted(np.concatenate(rows)[np.concatenate(rows) < 200]) == list(range(200))
    for batch in rows:
        assert len(set(size_classes(counts[batch[batch < 200]]))) == 1
    rest = np.delete(np.arange(200), 5)
    without = seated(counts[rest], draws.take(rest), SEATS)
    seats = seat_of(rows)
    assert all(seats[rest[one]] == place for one, place in seat_of(without).items() if one < 199)
    assert seated(counts[:0], draws.take(np.arange(0)), SEATS) == []


def test_batches_of_longer_lists_have_fewer_seats_and_no_class_fewer_than_16():
    counts = np.array([0, 1, 4, 8, 16, 32, 64, 500])
    batches = seated(counts, Draws.seeded("seats", shopper_digests(range(len(counts)))))
    seats = {counts[batch[batch < len(counts)]].item(): len(batch) for batch in batches}
    assert seats == {0: 128, 1: 128, 4: 128, 8: 64, 16: 32, 32: 16, 64: 16, 500: 16}


class OfEmptySeats(Network):
    """A loss that has a gradient for an empty history, against what `Network.forward` asks for."""

    has_lists = False

    def __init__(self):
        super().__init__(NUM_ITEMS)
        self.layer = nn.Linear(NUM_ITEMS, 1)

    def batch(self, histories, draws, vectors=None):
        return {"rows": dense(histories, self)}

    def forward(self, batch):
        return softplus(self.layer(batch["rows"])).squeeze(1)


@pytest.mark.parametrize("num_shoppers", [1, 2, NUM_SHOPPERS])
def test_empty_seats_count_for_nothing_even_if_the_network_has_a_gradient_there(num_shoppers):
    network = OfEmptySeats().double()
    histories, draws = table(num_shoppers)
    whole = SeatedGradients(network, histories, draws, seats=SEATS)
    plain = ShopperGradients(network, histories, draws)
    bound = float(plain.norms().min()) / 2
    np.testing.assert_allclose(whole.clipped(bound)[0], plain.clipped(bound)[0], rtol=1e-9)
    for gone in range(num_shoppers):
        rest = np.delete(np.arange(num_shoppers), gone)
        without = SeatedGradients(network, histories[rest], draws.take(rest), seats=SEATS)
        assert np.linalg.norm(whole.clipped(bound)[0] - without.clipped(bound)[0]) <= bound * (1 + 1e-12)


def test_sums_that_wait_for_other_batches_are_those_of_single_shoppers():
    network = MultVae(NUM_ITEMS, hidden=(6,), latent=3).double()
    histories, draws = table(700)
    seats = SeatedGradients(network, histories, draws, seats=SEATS)
    plain = ShopperGradients(network, histories, draws)
    bound = float(np.median(plain.norms()))
    np.testing.assert_allclose(seats.clipped(bound)[0], plain.clipped(bound)[0], rtol=1e-9, atol=1e-11)
    weights = np.random.default_rng(0).standard_normal(700) * (np.arange(700) % 3 > 0)
    np.testing.assert_allclose(seats.total(weights), plain.total(weights), rtol=1e-9, atol=1e-11)


def test_who_looks_up_an_item_twice_is_in_nobody_elses_last_bit():
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(50, 37, 3, generator=generator, dtype=torch.float64)
    ids = torch.stack([torch.randperm(100, generator=generator)[:37] for _ in range(50)])
    twice = ids.clone()
    twice[7, 30] = twice[7, 2]
    found, expected = Lookups(twice, gradient, 100), Lookups(ids, gradient, 100)
    others = np.delete(np.arange(50), 7)
    np.testing.assert_array_equal(found.squares[others], expected.squares[others])
    by_hand = torch.zeros(100, 3, dtype=torch.float64).index_add_(0, twice[7], gradient[7])
    assert found.squares[7].item() == pytest.approx(by_hand.square().sum().item(), rel=1e-12)
    total = torch.zeros(100, 3, dtype=torch.float64)
    found.add(torch.eye(50, dtype=torch.float64)[7], {"weight": total})
    torch.testing.assert_close(total, by_hand)


class PadsToTheLongest(Gmf):
    """Whatever its seats are."""

    def batch(self, histories, draws, vectors=None):
        self.is_seated = False
        return super().batch(histories, draws, vectors)


class FailsOnNothing(MultVae):
    def batch(self, histories, draws, vectors=None):
        if not histories.nnz:
            raise ZeroDivisionError
        return super().batch(histories, draws, vectors)


class CountsItsNeighbours(MultVae):
    """Moves losses by less than `check_network` sees."""

    def forward(self, batch):
        return super().forward(batch) * (1 + 1e-12 * batch["bought"].sum())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PadsToTheLongest(64, SETTINGS), "pad lists by size_classes"),
        (lambda: FailsOnNothing(8, latent=3), "fails on shoppers with"),
        (lambda: CountsItsNeighbours(8, latent=3), "last bits"),
    ],
)
def test_the_check_finds_networks_that_seats_cannot_keep_apart(make, words):
    with pytest.raises(NoPrivateVariant, match=words):
        check_seats(make().double())


@pytest.mark.parametrize("num_items", [1, 4, 64])
def test_the_check_passes_fedrecs_own(num_items):
    for kind in (Gmf, Mlp, NeuMf):
        check_seats(kind(num_items, SETTINGS).double())
    for kind in (MultDae, MultVae):
        check_seats(kind(num_items, latent=3).double())
    check_seats(SmallAutoencoder(num_items, 3).double())


def test_classes_double():
    counts = np.array([0, 1, 2, 3, 4, 5, 8, 9, 16, 17])
    np.testing.assert_array_equal(size_classes(counts), [0, 1, 2, 3, 3, 4, 4, 5, 5, 6])
