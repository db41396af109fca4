"""Trends pass, and count a shopper once for an item."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.shop.lists.diversity import spread_out
from fedrec.shop.lists.trends import Trends, TrendSettings

DAY = 86_400.0


def test_an_event_counts_half_after_a_half_life():
    trends = Trends(TrendSettings(half_life_s=DAY))
    trends.add(np.array([0, 1, 1]), np.array([1.0, 1.0, 0.5]), np.array([2 * DAY, DAY, 0.0]), now=2 * DAY)
    assert trends.popular(3).tolist() == [1.0, 1.5, 0.0]
    assert trends.trending(3) == pytest.approx([1.0, 0.5 + 0.125, 0.0])


def test_the_order_survives_a_year_without_restart():
    trends = Trends(TrendSettings(half_life_s=3600.0))
    trends.add(np.array([0]), np.ones(1), np.zeros(1), now=0.0)
    for day in (1, 300, 365):
        trends.add(np.array([1]), np.ones(1), np.array([day * DAY]), now=day * DAY)
    now = trends.trending(2)
    assert np.isfinite(now).all()
    assert now[1] > now[0]
    assert trends.popular(2).tolist() == [1.0, 3.0]


def test_what_claims_to_be_of_the_future_counts_as_of_now():
    trends = Trends(TrendSettings(half_life_s=DAY))
    trends.add(np.array([0, 1]), np.ones(2), np.array([1e300, 5.0]), now=5.0)
    assert trends.trending(2).tolist() == [1.0, 1.0]


def test_a_history_counts_the_strongest_event_of_a_shopper_and_item():
    trends = Trends(TrendSettings(half_life_s=DAY))
    shoppers, items = np.array([7, 7, 7, 8, 8]), np.array([2, 2, 0, 2, 2])
    strengths, times = np.array([0.2, 1.0, 0.2, 0.2, 0.2]), np.array([DAY, 0.0, DAY, 0.0, DAY])
    trends.add_histories(shoppers, items, strengths, times, now=DAY)
    assert trends.popular(3) == pytest.approx([0.2, 0.0, 1.2])
    assert trends.trending(3) == pytest.approx([0.2, 0.0, 0.5 + 0.2])


def test_an_erased_shopper_is_taken_back():
    trends = Trends(TrendSettings(half_life_s=DAY))
    trends.add(np.array([0, 1]), np.array([1.0, 0.2]), np.array([0.0, 0.0]), now=DAY)
    trends.add(np.array([1, 0]), np.array([0.8, 0.1]), np.array([DAY, DAY]), now=DAY)  # hers, as they came
    hers = np.array([1, 1, 1, 0]), np.array([0.2, 1.0, 0.5, 0.1]), np.array([0.0, DAY, 0.0, DAY])
    trends.take_back(*hers, now=2 * DAY)
    assert trends.popular(2).tolist() == [1.0, 0.0]
    assert trends.trending(2).tolist() == pytest.approx([0.5, 0.0], abs=0)


def test_diversity_by_hand():
    relevance = np.array([1.0, 0.9, 0.5, 0.0])
    similarity = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float)
    assert spread_out(relevance, similarity, 0.0, 4).tolist() == [0, 1, 2, 3]
    # second place: 0.7 x 0.9 - 0.3 x 1 = 0.33 against 0.7 x 0.5 = 0.35
    assert spread_out(relevance, similarity, 0.3, 3).tolist() == [0, 2, 1]
    assert spread_out(relevance, similarity, 1.0, 9).tolist() == [0, 2, 3, 1]
    assert spread_out(np.empty(0), np.empty((0, 0)), 0.3, 3).tolist() == []


@given(size=st.integers(0, 8), count=st.integers(0, 9), weight=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_each_place_goes_to_the_best_of_what_is_left(size, count, weight, seed):
    rng = np.random.default_rng(seed)
    relevance, similarity = rng.random(size), rng.random((size, size))
    similarity = (similarity + similarity.T) / 2
    chosen = spread_out(relevance, similarity, weight, count).tolist()
    assert len(chosen) == len(set(chosen)) == min(size, count)
    scaled = (relevance - relevance.min()) / (np.ptp(relevance) or 1) if size else relevance
    for place, item in enumerate(chosen):
        above = chosen[:place]
        gains = {
            other: (1 - weight) * scaled[other] - weight * similarity[other, above].max() if above else scaled[other]
            for other in set(range(size)) - set(above)
        }
        assert gains[item] >= max(gains.values()) - 1e-12
