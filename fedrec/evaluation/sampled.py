"""Leave-one-out with sampled negatives: for comparison with published figures only, never a headline.

One test item per shopper is ranked among (usually 99) items drawn at random. Such figures can order models
otherwise than full ranking does, and published ones often come from a leak: several code bases draw their
*training* negatives from items outside the shopper's training *and test* events, so over many rounds every
evaluation negative is pushed down and the test item never is. The leak is in how a model is trained; a
model trained without negatives (popularity, item kNN, EASE, iALS) has the same figure under both samplers.
`no_model_leak` shows its size on given data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from fedrec.errors import ConfigError, DataError

_CHUNK_VALUES = 4_000_000


def draw_negatives(excluded: sparse.csr_matrix, count: int, *, rng: np.random.Generator) -> np.ndarray:
    """Different items for each shopper, uniform over the items not excluded for her.

    Args:
        excluded: CSR, (num_shoppers, num_items); entries other than 0 are never drawn.
        count: items per shopper, >= 1.
        rng: source of the draws.

    Returns:
        int64, (num_shoppers, count); in no particular order.

    Raises:
        ConfigError: count is below 1.
        DataError: a shopper has fewer than ``count`` items left.
    """
    if not count >= 1:
        raise ConfigError(f"count = {count}: draw 1 negative or more")
    num_shoppers, num_items = excluded.shape
    most = int(np.diff(_binary(excluded).indptr).max(initial=0))
    if num_shoppers and num_items - most < count:
        raise DataError(
            f"{count} negatives asked for, but of {num_items} items a shopper has only {num_items - most} left; "
            "use full ranking, or fewer negatives"
        )
    negatives = np.empty((num_shoppers, count), dtype=np.int64)
    step = max(1, _CHUNK_VALUES // max(num_items, 1))
    for start in range(0, num_shoppers, step):
        part = _binary(excluded[start : start + step])
        keys = rng.random(part.shape, dtype=np.float32)  # in [0, 1)
        keys[part.nonzero()] = 2.0
        negatives[start : start + step] = np.argpartition(keys, count - 1, axis=1)[:, :count]
    return negatives


def clean_negatives(
    had: sparse.csr_matrix, positives: np.ndarray, count: int = 99, *, rng: np.random.Generator
) -> np.ndarray:
    """Evaluation negatives from items the shopper never had: not in training, validation or test.

    Args:
        had: CSR, (num_shoppers, num_items); every item of the shopper in any part of the split.
        positives: int64, (num_shoppers,); the test items, excluded too.
        count: negatives per shopper.
        rng: source of the draws.

    Returns:
        int64, (num_shoppers, count).
    """
    return draw_negatives(had + one_item_rows(positives, had.shape[1]), count, rng=rng)


def train_only_negatives(
    train: sparse.csr_matrix, positives: np.ndarray, count: int = 99, *, rng: np.random.Generator
) -> np.ndarray:
    """Evaluation negatives that exclude training items and the ranked test item only.

    This is how NCF draws: an item of the validation part, or another test item, may be a negative.

    Args:
        train: CSR, (num_shoppers, num_items); training items.
        positives: int64, (num_shoppers,); the test items.
        count: negatives per shopper.
        rng: source of the draws.

    Returns:
        int64, (num_shoppers, count).

    Source: He et al. 2017, arXiv:1708.05031, section 4.1, and its published ``get_train_instances``.
    """
    return draw_negatives(train + one_item_rows(positives, train.shape[1]), count, rng=rng)


def sampled_ranks(
    scores: np.ndarray, positives: np.ndarray, negatives: np.ndarray, *, rng: np.random.Generator
) -> np.ndarray:
    """Place of each shopper's test item among her negatives; equal scores in random order.

    Args:
        scores: (num_shoppers, num_items); higher is better.
        positives: int64, (num_shoppers,); test items.
        negatives: int64, (num_shoppers, count); drawn here, or given (NCF publishes its own).
        rng: source of the order of ties.

    Returns:
        int64, (num_shoppers,); 0 = above all negatives.

    Raises:
        DataError: shapes disagree, a score is NaN, or a test item is among its own negatives.
    """
    if negatives.ndim != 2 or not scores.shape[0] == len(positives) == negatives.shape[0]:
        raise DataError(
            f"scores {scores.shape}, positives {positives.shape}, negatives {negatives.shape} must have the same rows"
        )
    if (negatives == positives[:, None]).any():
        raise DataError("a test item is among its own negatives")
    ours = np.take_along_axis(scores, positives[:, None], axis=1)  # (num_shoppers, 1)
    theirs = np.take_along_axis(scores, negatives, axis=1)
    if np.isnan(ours).any() or np.isnan(theirs).any():
        raise DataError("a score is NaN: nothing can be ranked by it")
    ties = (theirs == ours).sum(axis=1)
    return (theirs > ours).sum(axis=1) + rng.integers(0, ties + 1)


def sampled_figures(ranks: np.ndarray, *, k: int = 10) -> dict[str, np.ndarray]:
    """``hr`` and ``ndcg`` at k of one test item per shopper, each float64 (num_shoppers,), from `sampled_ranks`."""
    is_hit = ranks < k
    return {"hr": is_hit.astype(np.float64), "ndcg": np.where(is_hit, 1 / np.log2(ranks + 2.0), 0.0)}


@dataclass(frozen=True)
class NoModelLeak:
    """What a scorer without a model reaches under both training samplers: HR and NDCG at k, means over shoppers."""

    leaky_hr: float
    leaky_ndcg: float
    clean_hr: float
    clean_ndcg: float


def no_model_leak(
    train: sparse.csr_matrix,
    positives: np.ndarray,
    *,
    rng: np.random.Generator,
    rounds: int = 100,
    negatives_per_positive: int = 4,
    count: int = 99,
    k: int = 10,
) -> NoModelLeak:
    """How far the leak alone carries: rank by minus the times an item was drawn as a training negative.

    Leaky: training negatives come from items outside training and test events, so the test item is never
    drawn. Clean: from items outside training events. Evaluation negatives are the same in both: items the
    shopper never had.

    Args:
        train: CSR, (num_shoppers, num_items); training items.
        positives: int64, (num_shoppers,); one test item each.
        rng: source of all draws.
        rounds: training rounds.
        negatives_per_positive: training negatives drawn per training item and round.
        count: evaluation negatives.
        k: cut-off of HR and NDCG.
    """
    history = _binary(train)
    had = _binary(history + one_item_rows(positives, train.shape[1]))
    negatives = draw_negatives(had, count, rng=rng)
    draws = np.diff(history.indptr).astype(np.int64) * rounds * negatives_per_positive
    figures = []
    for pool_excludes in (had, history):
        ranks = np.empty(len(positives), dtype=np.int64)
        step = max(1, _CHUNK_VALUES // train.shape[1])
        for start in range(0, len(positives), step):
            rows = slice(start, start + step)
            scores = -_times_drawn(pool_excludes[rows], draws[rows], rng)
            ranks[rows] = sampled_ranks(scores, positives[rows], negatives[rows], rng=rng)
        found = sampled_figures(ranks, k=k)
        figures += [float(found["hr"].mean()), float(found["ndcg"].mean())]
    return NoModelLeak(*figures)


def one_item_rows(items: np.ndarray, num_items: int) -> sparse.csr_matrix:
    """CSR, (len(items), num_items): a 1 at each row's item."""
    if items.size and not (items.min() >= 0 and items.max() < num_items):
        raise DataError(f"test items must lie in 0 to {num_items - 1}; they range from {items.min()} to {items.max()}")
    data = np.ones(len(items), dtype=np.float32)
    return sparse.csr_matrix((data, items, np.arange(len(items) + 1)), shape=(len(items), num_items))


def _binary(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """The same places with 1 in each, no place twice, no explicit zeros."""
    places = sparse.csr_matrix(matrix, dtype=np.float32, copy=True)
    places.sum_duplicates()
    places.eliminate_zeros()
    places.data[:] = 1
    return places


def _times_drawn(excluded: sparse.csr_matrix, draws: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int64, (num_rows, num_items): how often each item comes up in ``draws`` draws from those not excluded."""
    is_open = np.ones(excluded.shape)
    is_open[excluded.nonzero()] = 0.0
    return rng.multinomial(draws, is_open / is_open.sum(axis=1, keepdims=True))
