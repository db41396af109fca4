"""Writes rectools.json: RecTools' own figures on a small made data set.

RecTools wants numpy below 2, so it needs an environment of its own; the tests only read the JSON:

    python3.11 -m venv /tmp/rectools-env
    /tmp/rectools-env/bin/pip install rectools==0.19.0
    /tmp/rectools-env/bin/python tests/vectors/make_rectools_vectors.py
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import rectools
from rectools import Columns
from rectools.metrics import (
    MRR,
    NDCG,
    AvgRecPopularity,
    CatalogCoverage,
    HitRate,
    IntraListDiversity,
    MeanInvUserFreq,
    Recall,
    Serendipity,
)
from rectools.metrics.distances import PairwiseDistanceCalculator, PairwiseHammingDistanceCalculator

NUM_SHOPPERS, NUM_ITEMS, NUM_FEATURES, LENGTH = 23, 37, 6, 12


class CosineDistance(PairwiseDistanceCalculator):
    """1 - cosine; an item without content has cosine 0 with every other."""

    def __init__(self, content: np.ndarray) -> None:
        norms = np.linalg.norm(content, axis=1, keepdims=True)
        self.rows = np.divide(content, norms, out=np.zeros_like(content), where=norms > 0)

    def _get_distances_for_item_pairs(self, items_0: np.ndarray, items_1: np.ndarray) -> np.ndarray:
        left, right = self.rows[np.asarray(items_0, dtype=int)], self.rows[np.asarray(items_1, dtype=int)]
        return 1 - (left * right).sum(axis=1)


def frame(matrix: np.ndarray) -> pd.DataFrame:
    """A 0/1 matrix as RecTools' interactions."""
    users, items = np.nonzero(matrix)
    return pd.DataFrame({Columns.User: users, Columns.Item: items, Columns.Weight: 1, Columns.Datetime: "2020-01-01"})


def made_data() -> dict[str, np.ndarray]:
    """Train and test matrices, lists of different lengths (a few of one item), content and a category per item."""
    rng = np.random.default_rng(20)
    chance = 1 / np.arange(1, NUM_ITEMS + 1) ** 0.8
    train = (rng.random((NUM_SHOPPERS, NUM_ITEMS)) < chance).astype(int)
    train[:, [9, 30]] = 0
    train[np.arange(NUM_SHOPPERS), rng.integers(0, 5, NUM_SHOPPERS)] = 1
    lists = np.full((NUM_SHOPPERS, LENGTH), -1)
    test = np.zeros_like(train)
    for row in range(NUM_SHOPPERS):
        unknown = rng.permutation(np.flatnonzero(train[row] == 0))
        size = 1 if row in (4, 11) else int(rng.integers(2, LENGTH + 1))
        lists[row, :size] = unknown[:size]
        test[row, rng.choice(unknown, int(rng.integers(1, 6)), replace=False)] = 1
    content = np.round(rng.random((NUM_ITEMS, NUM_FEATURES)) * (rng.random((NUM_ITEMS, NUM_FEATURES)) < 0.5), 3)
    content[[3, 17]] = 0
    return {"train": train, "test": test, "lists": lists, "content": content, "category": rng.integers(0, 4, NUM_ITEMS)}


def figures(data: dict[str, np.ndarray], k: int) -> dict[str, object]:
    """RecTools' figures at k, one per shopper or one for all."""
    rows, places = np.nonzero(data["lists"] >= 0)
    reco = pd.DataFrame({Columns.User: rows, Columns.Item: data["lists"][rows, places], Columns.Rank: places + 1})
    before, after, catalogue = frame(data["train"]), frame(data["test"]), range(NUM_ITEMS)
    one_hot = pd.DataFrame(np.eye(4)[data["category"]], index=np.arange(NUM_ITEMS))
    per_user = {
        "hit_rate": HitRate(k).calc_per_user(reco, after),
        "recall": Recall(k).calc_per_user(reco, after),
        "ndcg": NDCG(k, divide_by_achievable=True).calc_per_user(reco, after),
        "mrr": MRR(k).calc_per_user(reco, after),
        "novelty": MeanInvUserFreq(k).calc_per_user(reco, before),
        "serendipity": Serendipity(k).calc_per_user(reco, after, before, catalogue),
        "popularity": AvgRecPopularity(k).calc_per_user(reco, before),
        "popularity_normalised": AvgRecPopularity(k, normalize=True).calc_per_user(reco, before),
        "diversity_cosine": IntraListDiversity(k, CosineDistance(data["content"])).calc_per_user(reco),
        "diversity_category_hamming": IntraListDiversity(k, PairwiseHammingDistanceCalculator(one_hot)).calc_per_user(
            reco
        ),
    }
    result: dict[str, object] = {
        name: [float(value) for value in series.reindex(range(NUM_SHOPPERS)).to_numpy()]
        for name, series in per_user.items()
    }
    result["coverage"] = float(CatalogCoverage(k, normalize=True).calc(reco, catalogue))
    return result


def main() -> None:
    """Write the vectors beside this file."""
    data = made_data()
    vectors = {
        "rectools": rectools.__version__,
        "data": {name: values.tolist() for name, values in data.items()},
        "figures": {str(k): figures(data, k) for k in (1, 5, 10)},
    }
    (Path(__file__).parent / "rectools.json").write_text(json.dumps(vectors) + "\n")


if __name__ == "__main__":
    main()
