"""The compatibility figures: one test item among 99 sampled negatives, as the papers report it. Never a headline."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import sparse

from fedrec.evaluation.sampled import clean_negatives, sampled_figures, sampled_ranks, train_only_negatives
from fedrec.models.recommender import Scorer
from fedrec.simulation.world import Queries

NUM_NEGATIVES = 99
_BATCH_ROWS = 1024
_SAMPLERS = ("clean", "outside training items")

Sampled = dict[str, np.ndarray]
"""Figure -> float64 (num_rows,), one value per shopper with a test item; empty where the catalogue is too small."""


def sampled(scorer: Scorer, asked: Queries, trained: sparse.csr_matrix, *, seed: int) -> Sampled:
    """HR@10 and NDCG@10 of each shopper's first test item under both samplers of evaluation negatives.

    Args:
        trained: CSR, (num_queries, num_items): training items of the shoppers asked for, which NCF's sampler excludes
            (items of the validation part it may draw).

    A shop whose catalogue leaves some shopper fewer than 99 items to draw from has no such figures.
    """
    rows = np.flatnonzero(np.diff(asked.targets.indptr))
    known, targets = asked.known[rows], asked.targets[rows]
    had = np.diff((known + targets).indptr)
    if not len(rows) or known.shape[1] - had.max() < NUM_NEGATIVES:
        return {}
    positives = targets.indices[targets.indptr[:-1]].astype(np.int64)
    rng = np.random.default_rng([seed, known.shape[1], len(rows)])
    negatives = {
        "clean": clean_negatives(known + targets, positives, NUM_NEGATIVES, rng=rng),
        "outside training items": train_only_negatives(trained[rows], positives, NUM_NEGATIVES, rng=rng),
    }
    ranks: dict[str, list[np.ndarray]] = {sampler: [] for sampler in _SAMPLERS}
    for start in range(0, len(rows), _BATCH_ROWS):
        part = slice(start, start + _BATCH_ROWS)
        scores = scorer.scores(known[part])
        for sampler in _SAMPLERS:
            ranks[sampler].append(sampled_ranks(scores, positives[part], negatives[sampler][part], rng=rng))
    return {
        f"{name}@10 (99 negatives, {sampler})": values
        for sampler in _SAMPLERS
        for name, values in sampled_figures(np.concatenate(ranks[sampler])).items()
    }


def pool(columns: Mapping[str, list[Sampled]]) -> dict[str, dict[str, float]] | None:
    """Means over all shoppers, as papers take them: column -> figure -> mean; None where there is none."""
    means: dict[str, dict[str, float]] = {}
    for column, shops in columns.items():
        found = [shop for shop in shops if shop]
        if found:
            means[column] = {name: float(np.concatenate([s[name] for s in found]).mean()) for name in found[0]}
    return means or None
