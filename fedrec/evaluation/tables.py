"""Lists of all columns and shops in, the comparison's tables out (``scores`` of run.json; `gains` compares columns)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from fedrec.errors import ConfigError, DataError
from fedrec.evaluation import beyond, metrics
from fedrec.evaluation.bootstrap import add_noise, over_shops, pick_noise, shop_interval
from fedrec.evaluation.intervals import Interval, resampled_means


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
        values: by column and shop, float64 (num_rows, len(metrics)); NaN = the shopper is not in that mean. Of a
            column with several noise draws the mean over draws.
        draw_means: by column and shop, float64 (num_draws, len(metrics)): mean over shoppers in each noise draw; one
            row where there is no noise.
        scores: the ``scores`` part of run.json: column -> {"macro", "micro", "shops"} -> metric -> interval.
    """

    columns: tuple[str, ...]
    shops: tuple[str, ...]
    metrics: tuple[str, ...]
    values: Mapping[str, Mapping[str, np.ndarray]]
    draw_means: Mapping[str, Mapping[str, np.ndarray]]
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

    def draw_differences(self, of: str, over: str, shop: str, metric: str) -> np.ndarray:
        """float64, (num_draws,): one metric's mean difference of two columns at one shop, by noise draw.

        Where both columns have several draws, draw i of one is set against draw i of the other.

        Raises:
            DataError: both have several, and not the same number.
        """
        place = self.metrics.index(metric)
        first, second = (self.draw_means[column][shop][:, place] for column in (of, over))
        if len(first) != len(second) and min(len(first), len(second)) > 1:
            raise DataError(f"{of} has {len(first)} noise draws, {over} {len(second)}: they cannot be paired")
        return np.asarray(first - second)


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
        lists: column -> shop -> int32 (num_rows, list_length >= max(ks)) item positions, -1 = no item left. A column
            with noise has one table a draw, (num_draws, num_rows, list_length), as many at every shop; its figures are
            means over draws, and its intervals resample draws too.
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
    draw_means: dict[str, dict[str, np.ndarray]] = {}
    whole: dict[str, dict[str, dict[str, float]]] = {}
    for column, of_shops in lists.items():
        values[column], draw_means[column], whole[column] = {}, {}, {}
        for shop in shops:
            draws = _checked_draws(column, shop, of_shops, ks[-1])
            found = np.stack([_shopper_values(shop, items, ks, is_recall_capped) for items in draws])
            values[column][shop.shop] = _mean_of_known(found, axis=0)
            draw_means[column][shop.shop] = _mean_of_known(found, axis=1)
            figures = [_whole_values(shop, items, ks[0]) for items in draws]
            whole[column][shop.shop] = {name: float(np.mean([one[name] for one in figures])) for name in figures[0]}
        if len({len(of_shop) for of_shop in draw_means[column].values()}) > 1:
            raise DataError(f"column {column}: shops have different numbers of noise draws")
    metric_names = _metric_names(ks)
    scores = _score_tables(names, metric_names, values, draw_means, whole, rng, resamples, level)
    return Evaluation(tuple(lists), names, metric_names, values, draw_means, scores)


def _metric_names(ks: Sequence[int]) -> tuple[str, ...]:
    """Names of the per-shopper metrics, in the order of `_shopper_values`."""
    hits = [f"{name}@{k}" for k in ks for name in ("hr", "recall", "ndcg", "mrr")]
    others = ("novelty", "diversity", "serendipity", "popularity", "popularity_bias", "head_share")
    missing = ("hr_all_test_rows", "ndcg_all_test_rows")
    return tuple(hits + [f"{name}@{ks[0]}" for name in others + missing])


def _checked_draws(column: str, shop: ShopTest, lists: Mapping[str, np.ndarray], length: int) -> list[np.ndarray]:
    """The shop's lists of every noise draw (one table where there is no noise)."""
    where = f"column {column}, shop {shop.shop}"
    if shop.shop not in lists:
        raise DataError(f"{where}: no lists given")
    tables = np.asarray(lists[shop.shop])
    draws = tables if tables.ndim == 3 else tables[None]
    if len(draws) == 0:
        raise DataError(f"{where}: lists of no noise draw; give one table a draw")
    return [_checked_lists(where, shop, items, length) for items in draws]


def _checked_lists(where: str, shop: ShopTest, items: np.ndarray, length: int) -> np.ndarray:
    """One table of lists cut to ``length``, refused where they are not such lists."""
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
    draw_means: Mapping[str, Mapping[str, np.ndarray]],
    whole: Mapping[str, Mapping[str, Mapping[str, float]]],
    rng: np.random.Generator,
    resamples: int,
    level: float,
) -> dict[str, dict[str, Any]]:
    """The ``scores`` part of run.json; one set of draws per shop serves all columns and metrics."""
    columns = list(values)
    noise_rng = rng.spawn(1)[0]  # columns with noise leave the intervals of the others as they are
    picks = {
        num_draws: pick_noise(num_draws, rng=noise_rng, resamples=resamples)
        for num_draws in sorted({len(draw_means[column][shops[0]]) for column in columns} - {1})
    }
    draws = []
    sizes = np.zeros((len(shops), len(columns) * len(names)), dtype=np.int64)
    sums = np.zeros(sizes.shape)
    for s, shop in enumerate(shops):
        table = np.concatenate([values[column][shop] for column in columns], axis=1)
        draws.append(resampled_means(table, rng=rng, resamples=resamples))
        sizes[s], sums[s] = (~np.isnan(table)).sum(axis=0), np.nansum(table, axis=0)
        for place, column in enumerate(columns):
            part, of_draws = slice(place * len(names), (place + 1) * len(names)), draw_means[column][shop]
            if len(of_draws) > 1:
                draws[s][:, part] = add_noise(draws[s][:, part], sizes[s, part], of_draws, picks[len(of_draws)])
    means = np.divide(sums, sizes, out=np.full(sums.shape, np.nan), where=sizes > 0)
    macro, micro = over_shops(means, draws, sizes, level)
    per_shop = [shop_interval(*parts, level) for parts in zip(means, draws, sizes, strict=True)]
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


def _mean_of_known(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean without NaN, NaN where there is nothing else."""
    is_known = ~np.isnan(values)
    counts = is_known.sum(axis=axis)
    sums = np.where(is_known, values, 0.0).sum(axis=axis)
    return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
