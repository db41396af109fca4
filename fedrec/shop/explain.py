"""Why an item is on a shopper's list: which of the things she had brought it there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedrec.errors import ConfigError
from fedrec.models.recommender import Explainable, Scorer


@dataclass(frozen=True)
class Reason:
    """One item of the shopper's history that speaks for a recommendation.

    Attributes:
        item, title: what she had.
        share: its part of everything in her history that speaks for the recommendation, in (0, 1].
    """

    item: str
    title: str
    share: float


def reasons(
    scorer: Scorer, history: np.ndarray, item: int, *, items: np.ndarray, titles: np.ndarray, limit: int = 2
) -> tuple[Reason, ...]:
    """The items of a history that speak most for an item; empty for models that cannot say.

    Args:
        scorer: the shop's model.
        history: int64, (num_bought,); positions in the shop's catalogue.
        item: position of the recommended item.
        items, titles: str, (num_items,); of the catalogue.
        limit: at most that many.
    """
    if not isinstance(scorer, Explainable) or len(history) == 0:
        return ()
    try:
        parts = np.maximum(np.asarray(scorer.because(history, item), dtype=np.float64), 0.0)
    except ConfigError:  # a blend around a model that cannot say
        return ()
    total = parts.sum()
    if not total > 0:
        return ()
    best = np.argsort(-parts, kind="stable")[:limit]
    return tuple(
        Reason(str(items[history[place]]), str(titles[history[place]]), float(parts[place] / total))
        for place in best
        if parts[place] > 0
    )
