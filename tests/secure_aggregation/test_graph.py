"""The neighbour graph: whom the check lets through stays connected, and k is what it is said to be."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from fedrec.secure_aggregation.graph import COMPLETE_UP_TO, Ring, num_neighbours


def names(count: int) -> tuple[str, ...]:
    return tuple(f"shop-{place}" for place in range(count))


def is_connected(ring: Ring, shops: Collection[str]) -> bool:
    """By search, over edges between the given shops alone."""
    first = next(iter(shops))
    reached, waiting = {first}, [first]
    while waiting:
        for other in ring.neighbours(waiting.pop()):
            if other in shops and other not in reached:
                reached.add(other)
                waiting.append(other)
    return reached == set(shops)


@given(size=st.integers(2, 11), reach=st.integers(1, 6), colluders=st.integers(0, 3), data=st.data())
def test_what_passes_the_check_is_connected_whoever_colludes(size, reach, colluders, data):
    ring = Ring(names(size), reach)
    survivors = data.draw(st.sets(st.sampled_from(ring.order), min_size=1))
    if ring.keeps_connected(survivors, colluders):
        assert len(survivors) > colluders
        for count in range(colluders + 1):
            for colluding in itertools.combinations(sorted(survivors), count):
                assert is_connected(ring, survivors - set(colluding))


@pytest.mark.parametrize("colluders", [0, 1, 2])
def test_the_check_lets_one_drop_out_less_pass_than_it_takes_to_part_the_ring(colluders):
    """Out of one stretch of 4 places of a ring of 20, one by one, until only t are left there."""
    ring = Ring(names(20), 4)
    gone = [set(ring.order[8 : 8 + count]) for count in range(5)]
    passes = [ring.keeps_connected(set(ring.order) - each, colluders) for each in gone]
    assert passes == [4 - count > colluders for count in range(5)]


def test_two_gaps_part_a_ring_and_are_refused():
    ring = Ring(names(12), 2)
    survivors = set(ring.order) - set(ring.order[2:4]) - set(ring.order[8:10])
    assert not is_connected(ring, survivors)
    assert not ring.keeps_connected(survivors, 0)


def test_a_gap_over_the_end_of_the_order_is_seen():
    ring = Ring(names(12), 3)
    for start in range(12):
        gap = {ring.order[(start + step) % 12] for step in range(3)}
        assert not ring.keeps_connected(set(ring.order) - gap, 0), start
        assert ring.keeps_connected(set(ring.order) - set(sorted(gap)[:2]), 0), start


def test_strangers_do_not_count_as_survivors():
    ring = Ring(names(3), 3)
    assert not ring.keeps_connected({"shop-0", "a stranger"}, 1)
    assert ring.keeps_connected({"shop-0", "shop-2"}, 1)


@given(size=st.integers(2, 60), reach=st.integers(1, 40))
def test_neighbours_are_mutual_and_as_many_as_said(size, reach):
    ring = Ring(names(size), reach)
    of = {name: ring.neighbours(name) for name in ring.order}
    assert all(len(set(others)) == len(others) == min(2 * reach, size - 1) for others in of.values())
    assert all(name in of[other] and other != name for name, others in of.items() for other in others)


def test_neighbours_on_a_small_ring_by_hand():
    ring = Ring(("d", "a", "c", "f", "b", "e"), 2)
    assert set(ring.neighbours("d")) == {"b", "e", "a", "c"}
    assert set(ring.neighbours("b")) == {"c", "f", "e", "d"}


def test_the_order_follows_from_the_digest_and_not_from_the_order_of_names():
    shops = names(40)
    ring = Ring.of(shops, bytes(32), 8)
    assert ring == Ring.of(reversed(shops), bytes(32), 8)
    assert sorted(ring.order) == sorted(shops) != list(ring.order)
    assert ring.order != Ring.of(shops, b"\1" * 32, 8).order
    assert ring.reach == 4


@pytest.mark.parametrize(("count", "neighbours"), [(2, 1), (3, 2), (30, 29), (9, 8), (9, 20), (9, 9)])
def test_as_many_neighbours_as_others_or_more_are_the_complete_graph(count, neighbours):
    ring = Ring.of(names(count), bytes(32), neighbours)
    assert ring.is_complete
    assert all(set(ring.neighbours(name)) == set(ring.order) - {name} for name in ring.order)
    assert ring.share_threshold(7, 1) == 7


@pytest.mark.parametrize(
    ("reach", "colluders", "expected"), [(2, 0, 1), (2, 1, 2), (15, 1, 8), (15, 7, 8), (15, 8, 9), (16, 1, 8)]
)
def test_on_a_ring_a_quarter_of_the_neighbours_and_more_than_the_colluders_hold_a_secret(reach, colluders, expected):
    assert Ring(names(100), reach).share_threshold(60, colluders) == expected


@pytest.mark.parametrize("num_shops", [2, 3, 29, COMPLETE_UP_TO])
def test_few_shops_are_all_neighbours(num_shops):
    assert num_neighbours(num_shops, num_shops, 1) == num_shops - 1


@pytest.mark.parametrize(
    ("num_shops", "min_shops", "colluders"),
    [
        (31, 27, 1),
        (50, 40, 1),
        (100, 66, 3),
        (200, 160, 1),
        (200, 120, 0),
        (1000, 800, 1),
        (1000, 520, 20),
        (5000, 4500, 9),
    ],
)
def test_k_is_the_least_even_number_that_keeps_failures_to_one_in_a_million(num_shops, min_shops, colluders):
    """Against scipy's binomial distribution, which ours does not use."""

    def fails(neighbours: int) -> float:
        answering = min_shops / num_shops
        threshold = Ring(names(num_shops), neighbours // 2).share_threshold(0, colluders)
        apart = binom.cdf(colluders, neighbours // 2, answering)
        return num_shops * float(apart + binom.cdf(threshold - 1, neighbours, answering))

    chosen = num_neighbours(num_shops, min_shops, colluders)
    assert chosen % 2 == 0
    assert chosen < num_shops - 1
    assert fails(chosen) <= 1e-6
    assert all(fails(fewer) > 1e-6 for fewer in range(2 * colluders + 2, chosen, 2))


def test_where_no_ring_is_sure_enough_everybody_is_a_neighbour():
    assert num_neighbours(50, 26, 1) == 49
    assert num_neighbours(200, 150, 90) == 199


def test_without_expected_drop_outs_the_colluders_decide():
    assert num_neighbours(1000, 1000, 0) == 2
    assert num_neighbours(1000, 1000, 3) == 8


def test_random_drop_outs_seldom_stop_a_round_of_the_chosen_graph():
    """40 of 200 shops drop out at random, 2,000 times: by the rule a failure is expected once in 500 such tests."""
    ring = Ring.of(names(200), bytes(32), num_neighbours(200, 160, 1))
    assert not ring.is_complete
    draw = random.Random(4)
    for _ in range(2_000):
        survivors = set(draw.sample(ring.order, 160))
        assert ring.keeps_connected(survivors, 1)
    assert not all(ring.keeps_connected(set(draw.sample(ring.order, 40)), 1) for _ in range(20))
