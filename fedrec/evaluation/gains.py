"""What shops gain by one column over another: paired differences, tests and intervals (``gain`` of run.json)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from fedrec.evaluation.bootstrap import add_noise, over_shops, pick_noise, shop_interval
from fedrec.evaluation.intervals import Interval, holm, holm_intervals, one_sided_paired_test, resampled_means
from fedrec.evaluation.tables import Evaluation

GAIN_RESAMPLES = 2_000
_UNKNOWN = Interval(math.nan, math.nan, math.nan)


def gain_table(
    evaluation: Evaluation,
    *,
    of: str,
    over: str,
    rng: np.random.Generator,
    metric: str | None = None,
    shoppers: Mapping[str, int] | None = None,
    decisions: Mapping[str, tuple[str, str]] | None = None,
    classes: Mapping[str, Collection[str]] | None = None,
    resamples: int = GAIN_RESAMPLES,
    level: float = 0.95,
) -> dict[str, Any]:
    """What shops gain: the paired difference of two columns, the ``gain`` part of run.json.

    Per shop: the difference's mean with a percentile bootstrap interval, the one-sided p-value against "no
    gain" and its Holm adjustment, and the Holm-corrected t interval. ``harmed_shops`` counts shops whose Holm
    interval lies wholly below zero; ``worst`` is the shop with the lowest mean. Of a column with several noise draws
    the mean over draws counts; bootstrap intervals resample draws too, tests and Holm intervals are of shoppers alone.

    Args:
        evaluation: from `evaluate_lists`.
        of: the column that may gain.
        over: the column it is compared with.
        rng: source of the resamples.
        metric: one with a value per shopper; None = NDCG at the evaluation's least k.
        shoppers: shop -> its shoppers, for the record.
        decisions: shop -> (decision, reason), for the record.
        classes: name -> shops; adds ``classes``: the mean over each class's shops with its interval.
        resamples: number of bootstrap draws.
        level: of the intervals, one by one and (Holm) together.
    """
    metric = next(name for name in evaluation.metrics if name.startswith("ndcg@")) if metric is None else metric
    differences = {
        shop: np.round(evaluation.per_shopper(of, shop, metric) - evaluation.per_shopper(over, shop, metric), 12)
        for shop in evaluation.shops
    }
    differences = {shop: values[~np.isnan(values)] for shop, values in differences.items()}
    sizes = np.array([[differences[shop].size] for shop in evaluation.shops])
    means = np.array([[_mean(differences[shop])] for shop in evaluation.shops])
    noise = [evaluation.draw_differences(of, over, shop, metric)[:, None] for shop in evaluation.shops]
    draws = _draws(list(differences.values()), noise, rng, resamples)
    rows = _tests(differences, level, rng)
    for place, shop in enumerate(evaluation.shops):
        rows[shop] |= shop_interval(means[place], draws[place], sizes[place], level)[0].as_record()
        if shoppers is not None:
            rows[shop]["shoppers"] = int(shoppers[shop])
        if decisions is not None:
            rows[shop]["decision"], rows[shop]["reason"] = decisions[shop]
    macro, micro = over_shops(means, draws, sizes, level)
    tested = {shop: _mean(values) for shop, values in differences.items() if values.size}
    worst = min(tested, key=lambda shop: tested[shop], default=None)
    table = {
        "metric": metric,
        "of": of,
        "over": over,
        "macro": macro[0].as_record(),
        "micro": micro[0].as_record(),
        "shops": rows,
        "harmed_shops": sum(row["holm_high"] is not None and row["holm_high"] < 0 for row in rows.values()),
        "worst": None if worst is None else {"shop": worst, "mean": tested[worst]},
    }
    if classes is not None:
        table["classes"] = {
            name: _of_class([evaluation.shops.index(shop) for shop in shops], means, draws, sizes, level)
            for name, shops in classes.items()
        }
    return table


def _draws(
    differences: list[np.ndarray], noise: list[np.ndarray], rng: np.random.Generator, resamples: int
) -> list[np.ndarray]:
    """Per shop float64 (resamples, 1): means of resampled shoppers and noise draws (num_draws, 1)."""
    draws = [resampled_means(values[:, None], rng=rng, resamples=resamples) for values in differences]
    num_draws = max(len(of_shop) for of_shop in noise)
    if num_draws < 2:
        return draws
    picks = pick_noise(num_draws, rng=rng, resamples=resamples)
    return [
        add_noise(drawn, np.array([values.size]), of_shop, picks)
        for drawn, values, of_shop in zip(draws, differences, noise, strict=True)
    ]


def _of_class(
    places: list[int], means: np.ndarray, draws: list[np.ndarray], sizes: np.ndarray, level: float
) -> dict[str, Any]:
    """Mean over the shops of one class that were tested, with its interval."""
    if not places:
        return {**_UNKNOWN.as_record(), "shops": 0, "test_shoppers": 0}
    macro, _ = over_shops(means[places], [draws[place] for place in places], sizes[places], level)
    tested = sizes[places, 0]
    return {**macro[0].as_record(), "shops": int((tested > 0).sum()), "test_shoppers": int(tested.sum())}


def _tests(differences: Mapping[str, np.ndarray], level: float, rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """Per shop the test's p-value, Holm's adjustment, Holm's interval and the number of test shoppers."""
    tested = [shop for shop, values in differences.items() if values.size]
    p_values = {shop: one_sided_paired_test(differences[shop], rng=rng) for shop in tested}
    adjusted = dict(zip(tested, holm(list(p_values.values())).tolist(), strict=True))
    intervals = dict(zip(tested, holm_intervals([differences[s] for s in tested], level=level), strict=True))
    rows: dict[str, dict[str, Any]] = {}
    for shop, values in differences.items():
        together = intervals.get(shop, _UNKNOWN).as_record()
        rows[shop] = {
            "p_value": p_values.get(shop),
            "p_value_holm": adjusted.get(shop),
            "holm_low": together["low"],
            "holm_high": together["high"],
            "test_shoppers": int(values.size),
        }
    return rows


def _mean(values: np.ndarray) -> float:
    """Mean, NaN of nothing."""
    return float(values.mean()) if values.size else math.nan
