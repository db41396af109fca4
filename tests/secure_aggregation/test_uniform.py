"""What the coordinator holds of a shop whose sum it does not open: uniform bytes, whatever the shop's data.

Statistics of 256 byte values: a chi-square beyond the quantile of one in 10^9 is an alarm, so that all tests of this
file together cry wolf less than once in 10^6 runs. Controls show that the statistic can tell.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2

from fedrec.secure_aggregation import masks
from fedrec.secure_aggregation.rules import seed_of_pair, self_seed

from .parties import DTYPES, Parties

SIZE = 60_000
ALARM = chi2.isf(1e-9, 255)


def chi_square(values: np.ndarray) -> float:
    counts = np.bincount(values.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    return float(((counts - expected) ** 2 / expected).sum())


def is_uniform(values: np.ndarray) -> bool:
    """Over all bytes, and over those of each place within an element."""
    places = values.view(np.uint8).reshape(len(values), values.itemsize)
    return all(chi_square(np.ascontiguousarray(part)) < ALARM for part in (places.ravel(), *places.T))


def upload(parties: Parties, name: str, index: int, values: np.ndarray) -> np.ndarray:
    masked = values.copy()
    parties.shops[name].mask(index, parties.context(index), masked)
    return masked


def small_counts(dtype: str) -> np.ndarray:
    """As contributions are: small numbers of either sign, in two's complement."""
    return np.random.default_rng(3).normal(0, 300, SIZE).astype(np.int64).astype(dtype)


def open_first_round(parties: Parties, dropped: str) -> np.ndarray:
    """Round 0 without one shop, whose upload comes too late: gives that upload."""
    late = small_counts("<u8")
    parties.accept()
    parties.shops[dropped].mask(0, parties.context(0), late)
    parties.upload(0, dropped={dropped})
    parties.reveal(parties.sign())
    parties.coordinator.total()
    return late


def without_pairs(parties: Parties, name: str, index: int, key: bytes, values: np.ndarray) -> np.ndarray:
    """Takes off the masks that a mask key gives, as a coordinator can that has it."""
    place, left = parties.parameters.place_of[name], values.copy()
    setup = parties.coordinator._setup
    assert setup is not None
    offset = index - setup.batch.first_round
    for other, advert in setup.adverts.items():
        if other != place:
            seed = seed_of_pair(key, advert.mask_keys[offset], parties.bound(index), place, other)
            masks.add_mask(left, seed, sign=-1 if place < other else 1)
    return left


def test_the_statistic_can_tell():
    generator = np.random.default_rng(1)
    assert is_uniform(generator.integers(0, 2**64, SIZE, np.uint64))
    assert not is_uniform(small_counts("<u8"))
    assert not is_uniform(generator.integers(0, 2**62, SIZE, np.uint64))
    # Noise alone is no mask, however wide.
    assert not is_uniform(generator.normal(0, 2.0**30, SIZE).astype(np.int64).astype("<u4"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("data", ["zeros", "ones", "counts"])
def test_an_upload_is_uniform_whatever_the_data(data, dtype):
    parties = Parties.ready()
    parties.accept()
    values = {"zeros": np.zeros(SIZE, dtype), "ones": ~np.zeros(SIZE, dtype), "counts": small_counts(dtype)}[data]
    for name in parties.parameters.names:
        assert is_uniform(upload(parties, name, 0, values))


def test_an_upload_does_not_go_along_with_the_data():
    """By rank: the correlation of uniform elements with anything has a standard deviation of 1 / sqrt(n)."""
    parties = Parties.ready()
    parties.accept()
    data = small_counts("<u8")
    for name in parties.parameters.names:
        masked = upload(parties, name, 0, data).astype(np.float64)
        assert abs(np.corrcoef(masked, data.view(np.int64))[0, 1]) < 6.5 / np.sqrt(SIZE)


def test_sums_over_some_of_the_shops_are_uniform_too():
    parties = Parties.ready()
    parties.accept()
    names, data = parties.parameters.names, small_counts("<u8")
    uploads = {name: upload(parties, name, 0, data) for name in names}
    for left_out in names:
        assert is_uniform(sum(masked for name, masked in uploads.items() if name != left_out))
    # All masks in common cancel here; each shop's own is still there.
    assert is_uniform(sum(uploads.values()))


def test_uploads_of_two_rounds_have_nothing_in_common():
    parties = Parties.ready()
    parties.accept()
    data = small_counts("<u8")
    first, second = (upload(parties, "shop-0", index, data) for index in (0, 1))
    assert is_uniform(first - second)
    assert is_uniform(first + second)


def test_a_dropped_shops_other_rounds_stay_uniform():
    """Round 0 opens its mask key of round 0: neither that key nor anything else helps with its other uploads."""
    parties = Parties.ready()
    key = parties.shops["shop-2"]._setup.mask_keys[0]
    late = open_first_round(parties, "shop-2")
    masked = {index: upload(parties, "shop-2", index, small_counts("<u8")) for index in (1, 2)}
    for index, values in masked.items():
        assert is_uniform(values)
        assert is_uniform(without_pairs(parties, "shop-2", index, key, values))
        assert is_uniform(values - late)


def test_a_late_upload_stays_uniform_when_its_mask_key_is_opened():
    parties = Parties.ready()
    shop = parties.shops["shop-2"]._setup
    key, seed = shop.mask_keys[0], shop.seeds[0]
    late = open_first_round(parties, "shop-2")
    left = without_pairs(parties, "shop-2", 0, key, late)
    assert is_uniform(left)
    # The control: with the seed as well it would be open.
    masks.add_mask(left, self_seed(seed, parties.bound(0), 2), sign=-1)
    assert np.array_equal(left, small_counts("<u8"))


def test_survivors_seeds_leave_single_uploads_uniform():
    """The coordinator opens every survivor's seed; the masks in common still hide each of them."""
    parties = Parties.ready()
    parties.accept()
    data = small_counts("<u8")
    left = []
    for place, name in enumerate(parties.parameters.names):
        seed = parties.shops[name]._setup.seeds[0]
        masked = upload(parties, name, 0, data)
        masks.add_mask(masked, self_seed(seed, parties.bound(0), place), sign=-1)
        assert is_uniform(masked)
        left.append(masked)
    for left_out in range(5):
        assert is_uniform(sum(left[:left_out] + left[left_out + 1 :]))
    assert not is_uniform(sum(left)), "the sum over all of them is what opens"
