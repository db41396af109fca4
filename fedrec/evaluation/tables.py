"""Lists of all columns and shops in, the comparison's tables out (``scores`` and ``gain`` of run.json)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from fedrec.errors import ConfigError, DataError
from fedrec.evaluation import beyond, metrics
from fedrec.evaluation.intervals import (
    Interval,
    holm,
    holm_intervals,
    one_sided_paired_test,
    percentile_bounds,
    resampled_means,
    widened,
)

GAIN_RESAMPLES = 2_000


@dataclass(frozen=True)
class ShopTest:
    """What one shop's test shoppers took: the same for every column of the comparison.

    Rows are test shoppers; a row may have no test item in the catalogue only where ``missing`` says it had
    others. Such rows count in the ``*_all_test_rows`` figures alone.

    Attributes:
        shop: shop id.
        test: CSR, (num_rows, num_items); entries other than 0 are test items.
        known: CSR, (num_rows, num_items); items the shopper had before, which lists must not hold.
        popularity: int64, (num_items,); training shoppers of each item.
        num_shoppers: the shop's shoppers with training events.
        missing: int64, (num_rows,); test items that are not in the catalogue; None = none.
        content: CSR, (num_items, num_features); public item content; None = diversity is not known.
    """

    shop: str
    test: sparse.csr_matrix
    known: sparse.csr_matrix
    popularity: np.ndarray
    num_shoppers: int
    missing: np.ndarray | None = None
    content: sparse.csr_matrix | None = None

    def __post_init__(self) -> None:
        num_items = self.test.shape[1]
        if self.known.shape != self.test.shape or self.popularity.shape != (num_items,):
            raise DataError(
                f"shop {self.shop}: test {self.test.shape}, known {self.known.shape} and popularity "
                f"{self.popularity.shape} must be over the same rows and items"
            )
        if self.missing is not None and self.missing.shape != (self.test.shape[0],):
            raise DataError(f"shop {self.shop}: missing has shape {self.missing.shape}, not one count per row")
        if self.content is not None and self.content.shape[0] != num_items:
            raise DataError(f"shop {self.shop}: content of {self.content.shape[0]} items, not of {num_items}")
        if self.popularity.size and self.popularity.max() > self.num_shoppers:
            raise DataError(
                f"shop {self.shop}: an item with {self.popularity.max()} training shoppers, more than the shop's "
                f"{self.num_shoppers}; count each shopper once"
            )
        if self.test.multiply(self.known).count_nonzero():
            raise DataError(f"shop {self.shop}: a test item is also a known item; known items must leave the test")


@dataclass(frozen=True)
class Evaluation:
    """Every figure of every test shopper, and the tables made of them.

    Attributes:
        columns: of the comparison.
        shops: in the order given.
        metrics: names, such as "ndcg@10", that have one value per test shopper.
        values: by column and shop, float64 (num_rows, len(metrics)); NaN = the shopper is not in that mean.
        scores: the ``scores`` part of run.json: column -> {"macro", "micro", "shops"} -> metric -> interval.
    """

    columns: tuple[str, ...]
    shops: tuple[str, ...]
    metrics: tuple[str, ...]
    values: Mapping[str, Mapping[str, np.ndarray]]
    scores: dict[str, dict[str, Any]]

    def per_shopper(self, column: str, shop: str, metric: str) -> np.ndarray:
        """float64, (num_rows,): one metric of one shop's test shoppers; NaN = not in the mean.

        Raises:
            ConfigError: the comparison has no such column, shop or metric.
        """
        for kind, name, names in (
            ("column", column, self.columns),
            ("shop", shop, self.shops),
            ("metric", metric, self.metrics),
        ):
            if name not in names:
                raise ConfigError(f"no {kind} {name!r} in this evaluation; there are: {', '.join(names)}")
        return self.values[column][shop][:, self.metrics.index(metric)]


def evaluate_lists(
    shops: Sequence[ShopTest],
    lists: Mapping[str, Mapping[str, np.ndarray]],
    *,
    rng: np.random.Generator,
    ks: Sequence[int] = (10, 20, 50),
    is_recall_capped: bool = False,
    resamples: int = 1000,
    level: float = 0.95,
) -> Evaluation:
    """Measure ranked lists: per shop, macro (unweighted over shops) and micro (over all test shoppers).

    HR, recall, NDCG and MRR at every k, the rest at the least k. Means are over rows with a test item in the
    catalogue; ``hr_all_test_rows`` and ``ndcg_all_test_rows`` also count test items the shop does not have, as
    misses. Intervals resample shoppers within each shop, the same draws for all columns. Coverage and Gini belong
    to a shop's lists as a whole: they have no interval, and their micro figure weights shops by test shoppers. A
    shop without test shoppers has null figures and is in no mean.

    Args:
        shops: the test shoppers, each shop once.
        lists: column -> shop -> int32 (num_rows, list_length >= max(ks)) item positions, -1 = no item left.
        rng: source of the resamples.
        ks: list lengths looked at.
        is_recall_capped: recall = hits / min(k, test items), for split ``strong``.
        resamples: number of bootstrap draws.
        level: of the intervals.

    Raises:
        ConfigError: ks is empty or has a length below 1.
        DataError: a shop's lists are absent or too short, or hold an item twice, a known item or a foreign one.
    """
    ks = sorted(set(ks))
    if not ks or ks[0] < 1:
        raise ConfigError(f"ks = {ks}: give at least one list length, each 1 or more")
    names = tuple(shop.shop for shop in shops)
    if not names or not lists:
        raise DataError(
            f"{len(names)} shops and {len(lists)} columns: give at least one shop and one column to evaluate"
        )
    if len(set(names)) != len(names):
        raise DataError(f"a shop is given twice: {', '.join(names)}")
    values: dict[str, dict[str, np.ndarray]] = {}
    whole: dict[str, dict[str, dict[str, float]]] = {}
    for column, of_shops in lists.items():
        values[column], whole[column] = {}, {}
        for shop in shops:
            items = _checked_lists(column, shop, of_shops, ks[-1])
            values[column][shop.shop] = _shopper_values(shop, items, ks, is_recall_capped)
            whole[column][shop.shop] = _whole_values(shop, items, ks[0])
    metric_names = _metric_names(ks)
    scores = _score_tables(names, metric_names, values, whole, rng, resamples, level)
    return Evaluation(tuple(lists), names, metric_names, values, scores)


def gain_table(
    evaluation: Evaluation,
    *,
    of: str,
    over: str,
    rng: np.random.Generator,
    metric: str | None = None,
    shoppers: Mapping[str, int] | None = None,
    decisions: Mapping[str, tuple[str, str]] | None = None,
    resamples: int = GAIN_RESAMPLES,
    level: float = 0.95,
) -> dict[str, Any]:
    """What shops gain: the paired difference of two columns, the ``gain`` part of run.json.

    Per shop: the difference's mean with a percentile bootstrap interval, the one-sided p-value against "no
    gain" and its Holm adjustment, and the Holm-corrected t interval. ``harmed_shops`` counts shops whose Holm
    interval lies wholly below zero; ``worst`` is the shop with the lowest mean.

    Args:
        evaluation: from `evaluate_lists`.
        of: the column that may gain.
        over: the column it is compared with.
        rng: source of the resamples.
        metric: one with a value per shopper; None = NDCG at the evaluation's least k.
        shoppers: shop -> its shoppers, for the record.
        decisions: shop -> (decision, reason), for the record.
        resamples: number of bootstrap draws.
        level: of the intervals, one by one and (Holm) together.
    """
    metric = next(name for name in evaluation.metrics if name.startswith("ndcg@")) if metric is None else metric
    differences = {
        shop: evaluation.per_shopper(of, shop, metric) - evaluation.per_shopper(over, shop, metric)
        for shop in evaluation.shops
    }
    differences = {shop: values[~np.isnan(values)] for shop, values in differences.items()}
    tables = [differences[shop][:, None] for shop in evaluation.shops]
    draws = [resampled_means(table, rng=rng, resamples=resamples) for table in tables]
    sizes = np.array([[len(table)] for table in tables])
    means = np.array([[_mean(table)] for table in tables])
    rows = _tests(differences, level, rng)
    for place, shop in enumerate(evaluation.shops):
        rows[shop] |= _shop_interval(means[place], draws[place], sizes[place], level)[0].as_record()
        if shoppers is not None:
            rows[shop]["shoppers"] = int(shoppers[shop])
        if decisions is not None:
            rows[shop]["decision"], rows[shop]["reason"] = decisions[shop]
    macro, micro = _over_shops(means, draws, sizes, level)
    tested = {shop: _mean(values) for shop, values in differences.items() if values.size}
    worst = min(tested, key=lambda shop: tested[shop], default=None)
    return {
        "metric": metric,
        "of": of,
        "over": over,
        "macro": macro[0].as_record(),
        "micro": micro[0].as_record(),
        "shops": rows,
        "harmed_shops": sum(row["holm_high"] is not None and row["holm_high"] < 0 for row in rows.values()),
        "worst": None if worst is None else {"shop": worst, "mean": tested[worst]},
    }


_UNKNOWN = Interval(math.nan, math.nan, math.nan)


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


def _metric_names(ks: Sequence[int]) -> tuple[str, ...]:
    """Names of the per-shopper metrics, in the order of `_shopper_values`."""
    hits = [f"{name}@{k}" for k in ks for name in ("hr", "recall", "ndcg", "mrr")]
    others = ("novelty", "diversity", "serendipity", "popularity", "popularity_bias", "head_share")
    missing = ("hr_all_test_rows", "ndcg_all_test_rows")
    return tuple(hits + [f"{name}@{ks[0]}" for name in others + missing])


def _checked_lists(column: str, shop: ShopTest, lists: Mapping[str, np.ndarray], length: int) -> np.ndarray:
    """The shop's lists cut to ``length``, refused where they are not such lists."""
    where = f"column {column}, shop {shop.shop}"
    if shop.shop not in lists:
        raise DataError(f"{where}: no lists given")
    items = np.asarray(lists[shop.shop])
    if items.ndim != 2 or items.shape[0] != shop.test.shape[0] or items.shape[1] < length:
        raise DataError(f"{where}: lists of shape {items.shape}; needed are {shop.test.shape[0]} of {length} or more")
    items = items[:, :length]
    if metrics.hit_matrix(items, shop.known).any():
        raise DataError(f"{where}: a list holds an item that its shopper has had already")
    ordered = np.sort(items, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise DataError(f"{where}: a list holds an item twice")
    if ((items[:, 1:] >= 0) & (items[:, :-1] < 0)).any():
        raise DataError(f"{where}: a list has an empty place (-1) before an item")
    return items


def _shopper_values(shop: ShopTest, items: np.ndarray, ks: Sequence[int], is_recall_capped: bool) -> np.ndarray:
    """float64, (num_rows, num_metrics), the order of `_metric_names`."""
    hits = metrics.hit_matrix(items, shop.test)
    relevant = metrics.relevant_counts(shop.test)
    is_tested = relevant > 0
    recall = metrics.capped_recall if is_recall_capped else metrics.recall
    found, counts = hits[is_tested], relevant[is_tested]
    figures = []
    for k in ks:
        figures += [metrics.hit_rate(found, k=k), recall(found, counts, k=k)]
        figures += [metrics.ndcg(found, counts, k=k), metrics.mrr(found, k=k)]
    listed, k = items[is_tested], ks[0]
    figures += [
        beyond.novelty(listed, shop.popularity, max(shop.num_shoppers, 1), k=k),
        np.full(len(listed), np.nan)
        if shop.content is None
        else beyond.intra_list_diversity(listed, shop.content, k=k),
        beyond.serendipity(listed, found, shop.popularity, k=k),
        beyond.average_popularity(listed, shop.popularity, k=k),
        beyond.popularity_bias(listed, shop.popularity, k=k),
        beyond.head_share(listed, shop.popularity, k=k),
    ]
    values = np.full((items.shape[0], len(figures) + 2), np.nan)
    values[is_tested, : len(figures)] = np.column_stack(figures)
    everything = relevant if shop.missing is None else relevant + shop.missing
    rows = everything > 0
    values[rows, -2] = metrics.hit_rate(hits[rows], k=k)
    values[rows, -1] = metrics.ndcg(hits[rows], everything[rows], k=k)
    return values


def _whole_values(shop: ShopTest, items: np.ndarray, k: int) -> dict[str, float]:
    """Figures of all of a shop's lists together."""
    listed = items[metrics.relevant_counts(shop.test) > 0]
    num_items = shop.test.shape[1]
    if len(listed) == 0:
        return {f"coverage@{k}": math.nan, f"gini@{k}": math.nan}
    return {
        f"coverage@{k}": beyond.catalogue_coverage(listed, num_items, k=k),
        f"gini@{k}": beyond.gini(listed, num_items, k=k),
    }


def _score_tables(
    shops: tuple[str, ...],
    names: tuple[str, ...],
    values: Mapping[str, Mapping[str, np.ndarray]],
    whole: Mapping[str, Mapping[str, Mapping[str, float]]],
    rng: np.random.Generator,
    resamples: int,
    level: float,
) -> dict[str, dict[str, Any]]:
    """The ``scores`` part of run.json; one set of draws per shop serves all columns and metrics."""
    columns = list(values)
    draws = []
    sizes = np.zeros((len(shops), len(columns) * len(names)), dtype=np.int64)
    sums = np.zeros(sizes.shape)
    for s, shop in enumerate(shops):
        table = np.concatenate([values[column][shop] for column in columns], axis=1)
        draws.append(resampled_means(table, rng=rng, resamples=resamples))
        sizes[s], sums[s] = (~np.isnan(table)).sum(axis=0), np.nansum(table, axis=0)
    means = np.divide(sums, sizes, out=np.full(sums.shape, np.nan), where=sizes > 0)
    macro, micro = _over_shops(means, draws, sizes, level)
    per_shop = [_shop_interval(*parts, level) for parts in zip(means, draws, sizes, strict=True)]
    scores: dict[str, dict[str, Any]] = {}
    for place, column in enumerate(columns):
        part = slice(place * len(names), (place + 1) * len(names))
        tested = sizes[:, place * len(names)]
        scores[column] = {
            "macro": _records(names, macro[part]) | _whole_records(whole[column], np.minimum(tested, 1)),
            "micro": _records(names, micro[part]) | _whole_records(whole[column], tested),
            "shops": {
                shop: _records(names, per_shop[s][part])
                | _whole_records({shop: whole[column][shop]}, np.ones(1))
                | {"test_shoppers": int(tested[s])}
                for s, shop in enumerate(shops)
            },
        }
    return scores


def _shop_interval(means: np.ndarray, draws: np.ndarray, sizes: np.ndarray, level: float) -> list[Interval]:
    """One shop's intervals, one per column of its table; unknown for fewer than two shoppers."""
    bounds = np.full((2, len(means)), np.nan)
    for size in np.unique(sizes):
        bounds[:, sizes == size] = percentile_bounds(draws[:, sizes == size], level, num_shoppers=int(size))
    return [Interval(*map(float, parts)) for parts in zip(means, *bounds, strict=True)]


def _over_shops(
    means: np.ndarray, draws: Sequence[np.ndarray], sizes: np.ndarray, level: float
) -> tuple[list[Interval], list[Interval]]:
    """Macro and micro intervals of means and sizes (num_shops, num_columns), draws (resamples, num_columns)."""
    results = []
    for weights in (np.minimum(sizes, 1), sizes):
        total = weights.sum(axis=0)
        scale = np.where(total > 0, total, np.nan)
        mean = (np.nan_to_num(means) * weights).sum(axis=0) / scale
        drawn = np.zeros_like(draws[0])
        for weight, of_shop, own, size in zip(weights, draws, means, sizes, strict=True):
            drawn += np.nan_to_num(np.where(np.isnan(of_shop), own, widened(of_shop, own, size))) * weight
        bounds = percentile_bounds(drawn / scale, level)
        bounds[:, sizes.max(axis=0) < 2] = np.nan
        results.append([Interval(*map(float, parts)) for parts in zip(mean, *bounds, strict=True)])
    return results[0], results[1]


def _records(names: Sequence[str], intervals: Sequence[Interval]) -> dict[str, object]:
    """Metric -> interval as written to run.json."""
    return {name: interval.as_record() for name, interval in zip(names, intervals, strict=True)}


def _whole_records(whole: Mapping[str, Mapping[str, float]], weights: np.ndarray) -> dict[str, object]:
    """Weighted means over shops of the figures that have no interval; NaN figures are left out."""
    records: dict[str, object] = {}
    for name in next(iter(whole.values()), {}):
        figures = np.array([of_shop[name] for of_shop in whole.values()])
        is_known = ~np.isnan(figures) & (weights > 0)
        mean = np.average(figures[is_known], weights=weights[is_known]) if is_known.any() else math.nan
        records[name] = Interval(float(mean), math.nan, math.nan).as_record()
    return records


def _mean(values: np.ndarray) -> float:
    """Mean, NaN of nothing."""
    return float(values.mean()) if values.size else math.nan
