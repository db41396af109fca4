"""Intervals of a shop and over all shops, from resampled shoppers and, where a column has several, resampled noise.

A column trained under differential privacy exists in several noise draws: every one is a whole training with noise of
its own. A resample takes shoppers of every shop, and noise draws of the federation as a whole, for all shops
see the same noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedrec.evaluation.intervals import Interval, percentile_bounds, widened


def pick_noise(num_draws: int, *, rng: np.random.Generator, resamples: int) -> np.ndarray:
    """float64, (resamples, num_draws): share of each noise draw in each resample of ``num_draws`` with replacement."""
    return rng.multinomial(num_draws, np.full(num_draws, 1 / num_draws), size=resamples) / num_draws


def add_noise(means: np.ndarray, sizes: np.ndarray, draw_means: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """One shop's resampled means, moved by which noise draws a resample holds.

    Shoppers were resampled in the mean over noise draws, noise draws are resampled in the mean over shoppers; what is
    peculiar to one shopper in one draw counts in both, so intervals err on the wide side. Deviations are widened by
    sqrt(d / (d - 1)), so that their variance is unbiased; one draw alone adds nothing.

    Args:
        means: float64, (resamples, num_columns); of resampled shoppers.
        sizes: int64, (num_columns,); test shoppers behind them (`over_shops` and `shop_interval` widen by them later).
        draw_means: float64, (num_draws, num_columns); mean over shoppers in each noise draw.
        picks: float64, (resamples, num_draws); from `pick_noise`, the same for all shops.
    """
    num_draws = len(draw_means)
    if num_draws < 2:
        return means
    deviations = np.nan_to_num(draw_means - draw_means.mean(axis=0))
    later = np.sqrt(sizes / np.maximum(sizes - 1, 1))
    scale = math.sqrt(num_draws / (num_draws - 1)) / np.where(later > 0, later, 1)
    return means + (picks @ deviations) * scale


def shop_interval(means: np.ndarray, draws: np.ndarray, sizes: np.ndarray, level: float) -> list[Interval]:
    """One shop's intervals, one per column of its table; unknown for fewer than two shoppers.

    Args:
        means, sizes: float64 and int64, (num_columns,).
        draws: float64, (resamples, num_columns).
        level: of the intervals.
    """
    bounds = np.full((2, len(means)), np.nan)
    for size in np.unique(sizes):
        bounds[:, sizes == size] = percentile_bounds(draws[:, sizes == size], level, num_shoppers=int(size))
    return [Interval(*map(float, parts)) for parts in zip(means, *bounds, strict=True)]


def over_shops(
    means: np.ndarray, draws: Sequence[np.ndarray], sizes: np.ndarray, level: float
) -> tuple[list[Interval], list[Interval]]:
    """Macro and micro intervals of means and sizes (num_shops, num_columns), draws (resamples, num_columns) a shop."""
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
