"""Columns with several noise draws: their means, and intervals that know of the noise."""

from typing import Any

import numpy as np
import pytest
from scipy import sparse

from fedrec.errors import DataError
from fedrec.evaluation.bootstrap import add_noise, pick_noise
from fedrec.evaluation.gains import gain_table
from fedrec.evaluation.intervals import resampled_means, widened
from fedrec.evaluation.tables import Evaluation, ShopTest, evaluate_lists

NUM_ITEMS = 60


def shop_of(name: str, num_rows: int) -> ShopTest:
    """A shop whose shopper i took item 0."""
    test = sparse.csr_matrix((np.ones(num_rows), (np.arange(num_rows), np.zeros(num_rows, int))), (num_rows, NUM_ITEMS))
    return ShopTest(name, test, sparse.csr_matrix(test.shape), np.zeros(NUM_ITEMS, int), num_rows)


def lists_with(num_rows: int, is_hit: np.ndarray) -> np.ndarray:
    """int32, (num_rows, 10): item 0 first where ``is_hit``, else nowhere."""
    items = np.tile(np.arange(1, 11, dtype=np.int32), (num_rows, 1))
    items[:, 0] = np.where(is_hit, 0, 1)
    return items


def evaluate(shops: list[ShopTest], lists: dict[str, Any]) -> Evaluation:
    return evaluate_lists(shops, lists, rng=np.random.default_rng(0), ks=(10,), resamples=4_000)


SIZES = {"north": 200, "south": 50}
SHOPS = [shop_of(name, size) for name, size in SIZES.items()]


def noisy(rates: list[float], seed: int = 1) -> dict[str, np.ndarray]:
    """Per shop one table of lists a draw, with that share of hits."""
    rng = np.random.default_rng(seed)
    return {
        name: np.stack([lists_with(size, rng.random(size) < rate) for rate in rates]) for name, size in SIZES.items()
    }


def test_a_column_with_draws_has_the_mean_over_draws_and_shoppers() -> None:
    lists = noisy([0.2, 0.5, 0.8])
    found = evaluate(SHOPS, {"dp": lists})
    for name in SIZES:
        plain = (lists[name][:, :, 0] == 0).mean()
        assert found.scores["dp"]["shops"][name]["hr@10"]["mean"] == pytest.approx(plain)
        np.testing.assert_allclose(found.per_shopper("dp", name, "hr@10"), (lists[name][:, :, 0] == 0).mean(axis=0))
        by_draw = found.draw_means["dp"][name][:, found.metrics.index("hr@10")]
        np.testing.assert_allclose(by_draw, (lists[name][:, :, 0] == 0).mean(axis=1))


def test_one_draw_is_the_same_as_no_draws_at_all() -> None:
    lists = noisy([0.4])
    flat = {name: table[0] for name, table in lists.items()}
    assert evaluate(SHOPS, {"a": lists}).scores == evaluate(SHOPS, {"a": flat}).scores


def test_columns_with_noise_leave_the_intervals_of_the_others_as_they_are() -> None:
    flat = {name: table[0] for name, table in noisy([0.4]).items()}
    alone, beside = evaluate(SHOPS, {"a": flat}), evaluate(SHOPS, {"a": flat, "dp": noisy([0.2, 0.7])})
    assert beside.scores["a"]["shops"] == alone.scores["a"]["shops"]


def test_draws_that_differ_widen_the_interval_and_equal_ones_do_not() -> None:
    apart, alike = noisy([0.2, 0.5, 0.8]), noisy([0.5])
    alike = {name: np.repeat(table, 3, axis=0) for name, table in alike.items()}
    single = {name: table[:1] for name, table in alike.items()}
    widths = {}
    for name, lists in (("apart", apart), ("alike", alike), ("single", single)):
        macro = evaluate(SHOPS, {"dp": lists}).scores["dp"]["macro"]["hr@10"]
        widths[name] = macro["high"] - macro["low"]
    assert widths["alike"] == pytest.approx(widths["single"])
    assert widths["apart"] > 2 * widths["alike"]


def test_the_spread_of_resamples_is_that_of_shoppers_plus_that_of_the_noise() -> None:
    """40 shoppers of variance 1/4 and 5 draws: variance s^2 / n + v^2 / d, both with n - 1; 3 % of sampling error."""
    rng = np.random.default_rng(2)
    values = rng.integers(0, 2, (40, 1)).astype(float)
    draw_means = np.array([[0.1], [0.3], [0.4], [0.8], [0.4]])
    picks = pick_noise(5, rng=rng, resamples=40_000)
    means = add_noise(resampled_means(values, rng=rng, resamples=40_000), np.array([40]), draw_means, picks)
    spread = widened(means[:, 0], values.mean(), 40).var()
    assert spread == pytest.approx(values.var(ddof=1) / 40 + draw_means.var(ddof=1) / 5, rel=0.03)


def test_all_shops_get_the_same_noise_so_that_it_does_not_average_out_over_them() -> None:
    """Ten shops whose every shopper is hit in every second draw: the macro interval is as wide as that of one shop."""
    shops = [shop_of(f"shop-{place}", 30) for place in range(10)]
    lists = {shop.shop: np.stack([lists_with(30, np.full(30, draw % 2 == 0)) for draw in range(4)]) for shop in shops}
    scores = evaluate(shops, {"dp": lists}).scores["dp"]
    one, macro = scores["shops"]["shop-0"]["hr@10"], scores["macro"]["hr@10"]
    assert macro["high"] - macro["low"] > 0.9 * (one["high"] - one["low"])


def test_intervals_cover_the_truth_where_shoppers_and_noise_vary() -> None:
    """300 columns of 10 draws, 100 shoppers: the cover's sd is 1.3 points; intervals of shoppers alone cover 60 %."""
    rng = np.random.default_rng(3)
    covered, covered_alone = [], []
    for _ in range(300):
        rates = np.clip(0.5 + 0.15 * rng.standard_normal(10), 0, 1)
        values = rng.random((10, 100)) < rates[:, None]
        shoppers = values.mean(axis=0)[:, None]
        drawn = resampled_means(shoppers, rng=rng, resamples=400)
        picks = pick_noise(10, rng=rng, resamples=400)
        both = add_noise(drawn, np.array([100]), values.mean(axis=1)[:, None], picks)
        for means, result in ((both, covered), (drawn, covered_alone)):
            low, high = np.quantile(widened(means[:, 0], shoppers.mean(), 100), [0.025, 0.975])
            result.append(low <= 0.5 <= high)
    assert 0.88 < np.mean(covered) < 0.985
    assert np.mean(covered_alone) < 0.75


def test_gains_are_paired_by_draw_and_means_of_classes_have_intervals() -> None:
    flat = {name: table[0] for name, table in noisy([0.3], seed=5).items()}
    lists = {"local": flat, "dp": noisy([0.4, 0.6]), "other": noisy([0.4, 0.6])}
    found = evaluate(SHOPS, lists)
    classes = {"small": ["south"], "large": ["north"], "all": ["north", "south"], "none": []}
    gain = gain_table(found, of="dp", over="local", rng=np.random.default_rng(0), classes=classes)
    assert gain["classes"]["small"]["mean"] == pytest.approx(gain["shops"]["south"]["mean"])
    assert gain["classes"]["all"]["mean"] == pytest.approx(gain["macro"]["mean"])
    assert gain["classes"]["all"]["low"] == pytest.approx(gain["macro"]["low"])
    assert gain["classes"]["large"]["test_shoppers"] == 200
    assert gain["classes"]["none"] == {"mean": None, "low": None, "high": None, "shops": 0, "test_shoppers": 0}
    same = gain_table(found, of="dp", over="other", rng=np.random.default_rng(0))
    assert (same["macro"]["mean"], same["macro"]["low"], same["macro"]["high"]) == (0, 0, 0)


def test_draws_of_different_number_are_refused() -> None:
    uneven = {"north": noisy([0.2, 0.5])["north"], "south": noisy([0.2])["south"]}
    with pytest.raises(DataError, match="different numbers of noise draws"):
        evaluate(SHOPS, {"dp": uneven})
    empty = {name: table[:0] for name, table in noisy([0.2]).items()}
    with pytest.raises(DataError, match="no noise draw"):
        evaluate(SHOPS, {"dp": empty})
    found = evaluate(SHOPS, {"a": noisy([0.2, 0.5]), "b": noisy([0.2, 0.5, 0.6])})
    with pytest.raises(DataError, match="cannot be paired"):
        gain_table(found, of="a", over="b", rng=np.random.default_rng(0))
