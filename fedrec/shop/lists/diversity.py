"""Lists that do not say the same thing ten times: maximal marginal relevance.

Source: Carbonell & Goldstein 1998, "The Use of MMR", SIGIR, with relevance scaled to [0, 1] over the candidates.
"""

from __future__ import annotations

import numpy as np


def spread_out(relevance: np.ndarray, similarity: np.ndarray, weight: float, count: int) -> np.ndarray:
    """Candidates in MMR order.

    Args:
        relevance: float64, (num_candidates,), finite.
        similarity: float64, (num_candidates, num_candidates); 1 = the same thing.
        weight: 0 = by relevance alone, 1 = by unlikeness alone, after the first.
        count: how many are asked for.
    Returns:
        int64, (min(count, num_candidates),): places of candidates; ties to the smaller place.
    """
    size = len(relevance)
    low, high = (float(relevance.min()), float(relevance.max())) if size else (0.0, 0.0)
    value = (relevance - low) / (high - low) if high > low else np.ones(size)
    likeness = np.zeros(size)
    is_left = np.ones(size, bool)
    chosen = np.empty(min(count, size), np.int64)
    for place in range(len(chosen)):
        gain = value if place == 0 else (1 - weight) * value - weight * likeness
        best = int(np.argmax(np.where(is_left, gain, -np.inf)))
        chosen[place], is_left[best] = best, False
        likeness = similarity[best] if place == 0 else np.maximum(likeness, similarity[best])
    return chosen
