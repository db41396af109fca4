"""Negatives: apart from a shopper's own items, never twice, uniform or by popularity, and hers alone."""

import numpy as np
import pytest
from scipy import sparse, stats

from fedrec.errors import ConfigError, DataError
from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.training.pairs import draw_negatives, draw_pairs, own_draws

NUM_ITEMS = 60
ALARM = 1e-6


def random_histories(num_shoppers: int, seed: int = 0) -> sparse.csr_matrix:
    """From none to all of the items."""
    rng = np.random.default_rng(seed)
    shares = np.linspace(0, 1, num_shoppers)
    return sparse.csr_matrix((rng.random((num_shoppers, NUM_ITEMS)) < shares[:, None]).astype(np.float32))


def some_draws(num_shoppers: int, key: str = "test") -> Draws:
    return Draws.seeded(key, shopper_digests(range(num_shoppers)))


def items_of(histories: sparse.csr_matrix, row: int) -> set[int]:
    return set(histories[row].indices.tolist())


@pytest.mark.parametrize("popularity", [None, np.arange(1.0, NUM_ITEMS + 1)])
@pytest.mark.parametrize("max_pairs", [5, 40, 1000])
def test_a_row_is_hers_then_others_each_once(max_pairs, popularity):
    histories = random_histories(41)
    pairs = draw_pairs(histories, some_draws(41), negatives=4, max_pairs=max_pairs, popularity=popularity)
    for row in range(41):
        owned = items_of(histories, row)
        positives = pairs.ids[row, pairs.is_positive[row]].tolist()
        negatives = pairs.ids[row, pairs.is_pair[row] & ~pairs.is_positive[row]].tolist()
        assert set(positives) <= owned
        assert not set(negatives) & owned
        assert len(set(positives)) == len(positives) == min(len(owned), max_pairs // 5)
        assert len(set(negatives)) == len(negatives) == min(4 * len(positives), NUM_ITEMS - len(owned))
        assert len(positives) + len(negatives) <= max_pairs


@pytest.mark.parametrize("wanted", [1, 12, 40, 49])
def test_negatives_are_uniform_and_so_are_pairs_of_them(wanted):
    num_shoppers = 20_000
    histories = sparse.csr_matrix(np.tile(np.arange(NUM_ITEMS) < 10, (num_shoppers, 1)).astype(np.float32))
    drawn, counts = draw_negatives(histories, some_draws(num_shoppers), np.full(num_shoppers, wanted))
    assert (counts == wanted).all()
    for column in {0, wanted - 1}:  # without replacement, the place in a row says nothing about the item
        found = np.bincount(drawn[:, column], minlength=NUM_ITEMS)[10:]
        assert stats.chisquare(found).pvalue > ALARM
    if wanted >= 2:
        first, second = drawn[:, 0] - 10, drawn[:, 1] - 10 - (drawn[:, 1] > drawn[:, 0])
        found = np.bincount(first * 49 + second, minlength=50 * 49)
        assert stats.chisquare(found).pvalue > ALARM


def test_positives_of_a_long_history_are_a_uniform_part_of_it():
    num_shoppers = 20_000
    histories = sparse.csr_matrix(np.tile(np.arange(NUM_ITEMS) < 25, (num_shoppers, 1)).astype(np.float32))
    pairs = draw_pairs(histories, some_draws(num_shoppers), negatives=1, max_pairs=2)
    assert stats.chisquare(np.bincount(pairs.ids[:, 0], minlength=NUM_ITEMS)[:25]).pvalue > ALARM


def test_popular_items_come_first_by_their_share_of_what_is_left():
    num_shoppers = 50_000
    popularity = np.array([5.0, 3.0, 1.0, 2.0, 4.0])
    histories = sparse.csr_matrix(np.tile([1.0, 0, 0, 0, 0], (num_shoppers, 1)).astype(np.float32))
    drawn, _ = draw_negatives(histories, some_draws(num_shoppers), np.full(num_shoppers, 2), popularity)
    first = np.bincount(drawn[:, 0], minlength=5)[1:]
    assert stats.chisquare(first, num_shoppers * popularity[1:] / 10).pvalue > ALARM
    after_four = np.bincount(drawn[drawn[:, 0] == 4, 1], minlength=5)[1:4]
    assert stats.chisquare(after_four, after_four.sum() * popularity[1:4] / 6).pvalue > ALARM


@pytest.mark.parametrize("popularity", [None, np.arange(1.0, NUM_ITEMS + 1)])
def test_what_a_shopper_draws_does_not_depend_on_the_others(popularity):
    histories, draws = random_histories(41), some_draws(41)
    together = draw_pairs(histories, draws, negatives=3, max_pairs=80, popularity=popularity)
    for row in range(41):
        place = np.array([row])
        alone = draw_pairs(histories[place], draws.take(place), negatives=3, max_pairs=80, popularity=popularity)
        np.testing.assert_array_equal(alone.ids[0], together.ids[row, together.is_pair[row]])


def test_padding_repeats_a_row_s_own_item():
    """How much of it there is hangs on the longest row: another item there could move or void a shopper's gradient."""
    histories = random_histories(41)
    pairs = draw_pairs(histories, some_draws(41), negatives=3, max_pairs=80)
    for row in np.flatnonzero(pairs.num_positives):
        assert set(pairs.ids[row, ~pairs.is_pair[row]].tolist()) <= {int(pairs.ids[row, 0])}


def test_the_same_history_draws_the_same_by_itself_however_it_is_stored():
    histories = random_histories(9)
    doubled = sparse.vstack([histories, histories], format="csr")
    assert len({one.tobytes() for one in own_draws(doubled, "x").digests}) == 9
    shuffled = histories.copy()
    shuffled.indices[: shuffled.indptr[4]] = shuffled.indices[: shuffled.indptr[4]].copy()
    for start, end in zip(shuffled.indptr[:-1], shuffled.indptr[1:], strict=True):
        shuffled.indices[start:end] = shuffled.indices[start:end][::-1]
    shuffled.has_sorted_indices = False
    one, other = (draw_pairs(kept, own_draws(kept, "x"), negatives=3, max_pairs=20) for kept in (histories, shuffled))
    np.testing.assert_array_equal(one.ids, other.ids)


def test_no_shoppers_and_no_items_bought_draw_nothing():
    assert draw_pairs(sparse.csr_matrix((0, 7)), some_draws(0), negatives=2, max_pairs=9).ids.shape == (0, 0)
    assert draw_pairs(sparse.csr_matrix((3, 7)), some_draws(3), negatives=2, max_pairs=9).ids.shape == (3, 0)


def test_wrong_numbers_are_refused():
    histories = random_histories(3)
    with pytest.raises(ConfigError, match="room for a pair"):
        draw_pairs(histories, some_draws(3), negatives=4, max_pairs=4)
    with pytest.raises(DataError, match="popularity"):
        draw_pairs(histories, some_draws(3), negatives=1, max_pairs=4, popularity=np.zeros(NUM_ITEMS))
