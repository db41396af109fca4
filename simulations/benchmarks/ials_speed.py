"""How long a sweep of fedrec's iALS takes beside `implicit`'s, and whether both rank alike.

Run: python simulations/benchmarks/ials_speed.py [--threads 2] [--sweeps 10] [--factors 64]
Both see the same rows (ML-1M if FEDREC_DATA has it, else random ones), the same factors, confidence and regularisation,
start from the same item factors, and run in the same process on the same number of threads; their sweeps take turns, so
that a noisy machine is unfair to neither. implicit's alpha is an event's whole confidence, ours what it adds to 1.
The last event of each shopper is the test (ML-1M has times for 80 % of the rows; the others count as earlier).
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sweeps", type=int, default=10)
    parser.add_argument("--factors", type=int, default=64)
    parser.add_argument("--alpha", type=float, default=10.0)
    parser.add_argument("--regularisation", type=float, default=100.0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    train, test, name = load()
    print(f"{name}: {train.shape[0]} shoppers, {train.shape[1]} items, {train.nnz} events; {options}")
    compare(train, test, options)


def load() -> tuple[sparse.csr_matrix, np.ndarray, str]:
    """Training rows (num_shoppers, num_items), each shopper's test item, and a name."""
    folder = Path(os.environ.get("FEDREC_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
    if (folder / "ml-1m.parquet").is_file():
        events = pd.read_parquet(folder / "ml-1m.parquet", columns=["user_id", "item_id", "timestamp"])
        name = "ML-1M"
    else:
        events, name = random_events(), "random events (no FEDREC_DATA)"
    shopper = events["user_id"].astype("category").cat.codes.to_numpy()
    item = events["item_id"].astype("category").cat.codes.to_numpy()
    when = events["timestamp"].to_numpy(float, na_value=-np.inf)
    order = np.lexsort((item, when, shopper))
    shopper, item = shopper[order], item[order]
    is_last = np.diff(shopper, append=-1) != 0
    shape = (int(shopper.max()) + 1, int(item.max()) + 1)
    ones = np.ones(int((~is_last).sum()), np.float32)
    train = sparse.csr_matrix((ones, (shopper[~is_last], item[~is_last])), shape=shape)
    train.sum_duplicates()
    train.data[:] = 1
    return train, item[is_last], name


def random_events(num_shoppers: int = 6000, num_items: int = 3700, num_events: int = 800_000) -> pd.DataFrame:
    """Zipf-popular items, each shopper with a taste for one of twenty residues."""
    rng = np.random.default_rng(0)
    shopper = rng.integers(0, num_shoppers, num_events)
    item = np.minimum(rng.zipf(1.3, num_events) * 20 + shopper % 20, num_items - 1)
    events = pd.DataFrame({"user_id": shopper, "item_id": item, "timestamp": np.arange(num_events, dtype=float)})
    return events.drop_duplicates(["user_id", "item_id"])


def compare(train: sparse.csr_matrix, test: np.ndarray, options: argparse.Namespace) -> None:
    """Train all three, sweep by sweep in turn; print seconds, ratios and NDCG@10."""
    from implicit.als import AlternatingLeastSquares

    from fedrec.models.factors import IalsSettings
    from fedrec.models.ials import Ials
    from fedrec.models.recommender import PublicInputs, State

    settings = IalsSettings(
        factors=options.factors,
        alpha=options.alpha,
        regularisation=options.regularisation,
        frequency_exponent=0.0,
        sweeps=options.sweeps,
    )
    model, state = Ials(settings), State()
    public = PublicInputs(np.arange(train.shape[1]).astype(str))
    first = model.plan_round(0, state, public)
    assert first is not None
    peers = {}
    for label, use_cg in (("implicit, Cholesky", False), ("implicit, CG", True)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # implicit's advice about BLAS threads: its own loops don't use them
            peers[label] = AlternatingLeastSquares(
                factors=options.factors,
                alpha=1 + options.alpha,
                regularization=options.regularisation,
                use_cg=use_cg,
                use_gpu=False,
                iterations=1,
                num_threads=options.threads,
                random_state=0,
            )
        peers[label].item_factors = first.inputs["item_factors"].astype(np.float32)
        peers[label].user_factors = np.zeros((train.shape[0], options.factors), np.float32)
    seconds: dict[str, list[float]] = {"fedrec": [], **{label: [] for label in peers}}
    for sweep in range(options.sweeps):
        start = time.perf_counter()
        spec = model.plan_round(sweep, state, public)
        assert spec is not None
        total = model.contributions(spec, train).total(np.ones(train.shape[0]))
        state = model.advance(spec, state, total, public)
        seconds["fedrec"].append(time.perf_counter() - start)
        for label, peer in peers.items():
            peer.fit_callback = lambda _, taken, *rest, label=label: seconds[label].append(taken)
            peer.fit(train, show_progress=False)
    quality = {"fedrec": ndcg(model.fit(state, public).scores(train), train, test)}
    for label, peer in peers.items():
        quality[label] = ndcg(peer.user_factors @ peer.item_factors.T, train, test)
    for label, times in seconds.items():
        best, median = min(times), float(np.median(times))
        ratio = np.median(np.array(seconds["fedrec"]) / np.array(times))
        print(
            f"{label:20s} {median:.3f} s a sweep (best {best:.3f}); fedrec takes {ratio:.2f} x its time; "
            f"NDCG@10 {quality[label]:.4f}"
        )


def ndcg(scores: np.ndarray, train: sparse.csr_matrix, test: np.ndarray, k: int = 10) -> float:
    """Mean NDCG@k of one test item per shopper among all items not in training."""
    scores = scores.copy()
    scores[train.nonzero()] = -np.inf
    target = scores[np.arange(len(test)), test]
    rank = (scores > target[:, None]).sum(axis=1)
    return float(np.where(rank < k, 1 / np.log2(rank + 2), 0).mean())


if __name__ == "__main__":
    main()
