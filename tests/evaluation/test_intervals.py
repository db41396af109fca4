"""Bootstrap intervals, the sign-flip test and Holm: known answers, and their error rates by simulation."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy import stats

from fedrec.errors import ConfigError, DataError
from fedrec.evaluation import intervals
from fedrec.evaluation.intervals import (
    Interval,
    holm,
    holm_intervals,
    macro_interval,
    mean_interval,
    one_sided_paired_test,
    paired_interval,
    resampled_means,
)


def metric_like(rng: np.random.Generator, size: int) -> np.ndarray:
    """Mostly zeros, else 1 / log2(rank + 2): what NDCG of one test item looks like."""
    return np.where(rng.random(size) < 0.25, 1 / np.log2(rng.integers(0, 10, size) + 2.0), 0.0)


METRIC_MEAN = 0.25 * np.mean(1 / np.log2(np.arange(10) + 2.0))


def test_an_interval_holds_the_plain_mean_and_is_the_same_for_the_same_seed() -> None:
    values = metric_like(np.random.default_rng(0), 200)
    first = mean_interval(values, rng=np.random.default_rng(1))
    assert first.mean == pytest.approx(values.mean())
    assert first.low < first.mean < first.high
    assert first == mean_interval(values, rng=np.random.default_rng(1))


def test_the_interval_has_the_width_of_the_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=2_000)
    found = mean_interval(values, rng=np.random.default_rng(1), resamples=20_000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(2_000), rel=0.03)


def test_intervals_cover_the_truth_at_about_their_level() -> None:
    """600 samples of 150 shoppers at 95 %: the cover's sd is 0.9 points; 92 to 97.5 refuses 90 % and 99 % intervals."""
    rng = np.random.default_rng(2)
    covered = [
        found.low <= METRIC_MEAN <= found.high
        for found in (mean_interval(metric_like(rng, 150), rng=rng, resamples=500) for _ in range(600))
    ]
    assert 0.92 < np.mean(covered) < 0.975


@pytest.mark.parametrize("size", [10, 30])
def test_intervals_of_few_shoppers_are_wide_enough(size: int) -> None:
    """800 samples: the cover's sd is 1 point; plain percentiles cover 83 % of samples of 10 shoppers."""
    rng = np.random.default_rng(13)
    found = [mean_interval(metric_like(rng, size), rng=rng, resamples=500) for _ in range(800)]
    assert np.mean([one.low <= METRIC_MEAN <= one.high for one in found]) > 0.88


def test_macro_intervals_cover_the_mean_of_unequal_shops_at_about_their_level() -> None:
    """As above, with shops of 20, 60 and 200 shoppers of different means."""
    rng = np.random.default_rng(3)
    truth = METRIC_MEAN * (1 + 2 + 0.5) / 3
    covered = []
    for _ in range(500):
        shops = [metric_like(rng, size) * scale for size, scale in ((20, 1.0), (60, 2.0), (200, 0.5))]
        found = macro_interval(shops, rng=rng, resamples=400)
        covered.append(found.low <= truth <= found.high)
    assert 0.91 < np.mean(covered) < 0.975


def test_many_shoppers_get_the_normal_limit_of_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    table = np.column_stack([metric_like(rng, 3_000), metric_like(rng, 3_000)])
    table[:, 1] = 0.5 * table[:, 0] + 0.5 * table[:, 1]
    table[::7, 1] = np.nan
    resampled = resampled_means(table, rng=rng, resamples=8_000)
    monkeypatch.setattr(intervals, "LARGE_SAMPLE", 1_000)
    drawn = resampled_means(table, rng=rng, resamples=8_000)
    np.testing.assert_allclose(drawn.mean(axis=0), np.nanmean(table, axis=0), rtol=0.01)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(resampled.T), rtol=0.08)


def test_resamples_in_chunks_do_not_run_out_of_shoppers(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(10.0)[:, None]
    whole = resampled_means(values, rng=np.random.default_rng(5), resamples=50)
    monkeypatch.setattr(intervals, "_CHUNK_VALUES", 30)
    np.testing.assert_array_equal(whole, resampled_means(values, rng=np.random.default_rng(5), resamples=50))


def test_a_shopper_without_a_value_is_in_no_mean() -> None:
    values = np.array([1.0, np.nan, 1.0, np.nan])
    assert mean_interval(values, rng=np.random.default_rng(0)) == Interval(1.0, 1.0, 1.0)
    table = np.array([[1.0, np.nan], [3.0, 4.0], [5.0, 8.0]])
    draws = resampled_means(table, rng=np.random.default_rng(0), resamples=4_000)
    assert set(np.unique(draws[~np.isnan(draws[:, 1]), 1]).tolist()) <= {4.0, 8.0, 6.0, 16 / 3, 20 / 3}
    assert np.isnan(draws[:, 1]).mean() == pytest.approx(1 / 27, abs=0.015)


def test_nothing_to_measure_is_unknown_and_one_shopper_has_no_interval() -> None:
    rng = np.random.default_rng(0)
    nobody = mean_interval(np.array([]), rng=rng)
    assert nobody.as_record() == {"mean": None, "low": None, "high": None}
    assert mean_interval(np.array([0.5]), rng=rng).as_record() == {"mean": 0.5, "low": None, "high": None}
    two_shops = macro_interval([np.array([]), np.array([0.25, 0.75])], rng=rng)
    assert two_shops.mean == pytest.approx(0.5)


def test_a_paired_interval_is_that_of_the_difference() -> None:
    rng = np.random.default_rng(6)
    over = rng.normal(size=500) * 10
    found = paired_interval(over + 0.5, over, rng=rng)
    assert found.mean == pytest.approx(0.5)
    assert found.high - found.low < 1e-9
    with pytest.raises(DataError, match="same shoppers"):
        paired_interval(over, over[1:], rng=rng)


def test_bad_settings_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="level"):
        mean_interval(np.ones(3), rng=rng, level=1.0)
    with pytest.raises(ConfigError, match="level"):
        holm_intervals([np.ones(3)], level=float("nan"))
    with pytest.raises(ConfigError, match="resamples"):
        mean_interval(np.ones(3), rng=rng, resamples=0)


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        ([0.3, 0.2, 0.1], 1 / 8),
        ([0.3, 0.2, -0.1], 2 / 8),
        ([0.3, -0.2, -0.1], 5 / 8),
        ([-0.3, -0.2, -0.1], 1.0),
        ([0.0, 0.3, 0.0, 0.2, 0.1, 0.0, float("nan")], 1 / 8),
        ([0.0, 0.0], 1.0),
        ([], 1.0),
    ],
)
def test_p_values_of_few_shoppers_are_counted_by_hand(difference: list[float], expected: float) -> None:
    found = one_sided_paired_test(np.array(difference), rng=np.random.default_rng(0))
    assert found == pytest.approx(expected)


def test_random_signs_and_the_normal_limit_agree_with_the_exact_count(monkeypatch: pytest.MonkeyPatch) -> None:
    difference = np.random.default_rng(7).normal(0.3, 1, 14)
    exact = one_sided_paired_test(difference, rng=np.random.default_rng(0))
    monkeypatch.setattr(intervals, "EXACT_SIGNS", 5)
    assert one_sided_paired_test(difference, rng=np.random.default_rng(0)) == pytest.approx(exact, abs=0.02)
    theirs = stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert exact == pytest.approx(theirs.pvalue)
    many = np.random.default_rng(8).normal(0.03, 1, 3_000)
    drawn = one_sided_paired_test(many, rng=np.random.default_rng(0))
    monkeypatch.setattr(intervals, "MANY_SIGNS", 100)
    assert one_sided_paired_test(many, rng=np.random.default_rng(0)) == pytest.approx(drawn, abs=0.02)


@pytest.mark.parametrize("size", [12, 120])
def test_no_gain_is_called_a_gain_in_at_most_the_stated_share_of_cases(size: int) -> None:
    """1,500 tests at 10 % on differences of two equal columns: sd 0.8 points; false alarm of this test below 1e-3."""
    rng = np.random.default_rng(9)
    p_values = [
        one_sided_paired_test(metric_like(rng, size) - metric_like(rng, size), rng=rng)
        for _ in range(1_500 if size <= 12 else 300)
    ]
    alarm = np.mean(np.array(p_values) <= 0.10)
    assert alarm < 0.10 + 3.2 * math.sqrt(0.09 / len(p_values))
    assert alarm > (0.01 if size <= 12 else 0.04)


def test_a_p_value_from_random_signs_is_never_zero() -> None:
    assert one_sided_paired_test(np.full(200, 0.3), rng=np.random.default_rng(0)) == pytest.approx(1 / 10_000)


def test_a_true_gain_is_found() -> None:
    rng = np.random.default_rng(10)
    found = [
        one_sided_paired_test(metric_like(rng, 300) * 1.5 - metric_like(rng, 300), rng=rng) <= 0.10 for _ in range(60)
    ]
    assert np.mean(found) > 0.7


def test_holm_adjusts_by_hand() -> None:
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03]), [0.06, 0.03, 0.06])
    np.testing.assert_allclose(holm([0.6, 0.9]), [1.0, 1.0])
    assert holm([]).shape == (0,)
    with pytest.raises(DataError, match="p-value"):
        holm([0.5, float("nan")])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferroni_in_the_same_order(p_values: list[float]) -> None:
    adjusted, plain = holm(p_values), np.array(p_values)
    assert (adjusted >= plain).all()
    assert (adjusted <= np.minimum(plain * len(plain), 1) + 1e-15).all()
    assert (np.diff(adjusted[np.argsort(plain, kind="stable")]) >= 0).all()


def test_holm_intervals_exclude_zero_exactly_where_holms_test_rejects() -> None:
    rng = np.random.default_rng(11)
    for _ in range(60):
        shops = [rng.normal(rng.choice([-0.6, -0.3, 0, 0.3]), 1, rng.integers(2, 60)) for _ in range(7)]
        adjusted = holm([float(stats.ttest_1samp(shop, 0).pvalue) for shop in shops])
        for shop, p_value, found in zip(shops, adjusted, holm_intervals(shops), strict=True):
            assert found.mean == pytest.approx(shop.mean())
            assert (found.low > 0 or found.high < 0) == (p_value <= 0.05)


def test_one_shops_holm_interval_is_students() -> None:
    values = np.array([0.1, 0.4, -0.2, 0.3])
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    (found,) = holm_intervals([values])
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_some_shop_is_called_harmed_in_at_most_five_per_cent_of_federations_without_effect() -> None:
    """400 federations of 8 shops at 5 %, two-sided: either side below 5 % + 3 sd (8.3 %)."""
    rng = np.random.default_rng(12)
    wrong = [
        any(
            found.low > 0 or found.high < 0
            for found in holm_intervals([metric_like(rng, n) - metric_like(rng, n) for n in (30, 40, 50, 60, 80) * 2])
        )
        for _ in range(400)
    ]
    assert np.mean(wrong) < 0.083


def test_a_few_identical_losses_do_not_prove_harm_but_many_do() -> None:
    few, many, none, alone = holm_intervals([np.full(4, -0.1), np.full(60, -0.1), np.zeros(9), np.array([-0.5])])
    assert few.as_record() == {"mean": -0.1, "low": None, "high": None}
    assert many.high < 0
    assert none == Interval(0.0, 0.0, 0.0)
    assert alone.as_record() == {"mean": -0.5, "low": None, "high": None}
