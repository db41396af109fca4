"""The headline on Online Retail II: gain of small shops over the last three invoices as rolling folds.

python simulations/rolling_folds.py [--large "United Kingdom"] [--folds 3] [--seed 0] [--model ease]

Every fold is a comparison of its own: settings and blends chosen on the invoice before the fold's, all invoices after
it forgotten. Printed: mean over all test shoppers of the small shops, and macro over shops with at least five of them,
of both columns and of their paired difference. The bootstrap draws shoppers, each with all her folds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import fedrec
from fedrec.simulation import Run

METRIC, OVER, OF = "ndcg@10", "local", "federated_personal"
MIN_TEST_SHOPPERS = 5
RESAMPLES = 10_000


def run_fold(fold: int, seed: int, model: str, folder: Path) -> Run:
    """One comparison whose test is the fold's invoice."""
    data = {"source": "online-retail-ii", "split": "last-basket", "split_settings": {"fold": fold}}
    settings = {"name": f"fold-{fold}", "seed": seed, "data": data, "model": {"name": model}}
    return fedrec.simulate(settings, out=folder / str(fold))


def tests_of(run: Run, fold: int, large: set[str]) -> pd.DataFrame:
    """One row a test shopper of the small shops: fold, shop, shopper, figures alone and joined."""
    tables = []
    for shop, shoppers in run.shoppers.items():
        alone, joined = (run.evaluation.per_shopper(column, shop, METRIC) for column in (OVER, OF))
        tables.append(pd.DataFrame({"fold": fold, "shop": shop, "shopper": shoppers, "alone": alone, "joined": joined}))
    tests = pd.concat(tables, ignore_index=True)
    return tests[~tests["shop"].isin(large)].dropna()


def describe(name: str, tests: pd.DataFrame, weights: np.ndarray, rng: np.random.Generator) -> str:
    """One row of the table: weighted means of both columns, and of their difference with its interval."""
    alone, joined = (np.average(tests[column], weights=weights) for column in ("alone", "joined"))
    difference = (tests["joined"] - tests["alone"]).to_numpy()
    person = tests.groupby(["shop", "shopper"], observed=True).ngroup().to_numpy()
    sums = np.bincount(person, weights=weights * difference)
    sizes = np.bincount(person, weights=weights)
    picks = rng.integers(0, len(sums), (RESAMPLES, len(sums)))
    low, high = np.quantile(sums[picks].sum(axis=1) / sizes[picks].sum(axis=1), [0.025, 0.975])
    return f"| {name} | {alone:.4f} | {joined:.4f} | {joined - alone:+.4f} ({low:+.4f} to {high:+.4f}) |"


def main() -> None:
    """Run the folds and print the headline as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", nargs="*", default=["United Kingdom"], help="shops that are not small")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="ease")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    print(f"| {METRIC}, small shops | alone | joined | gain (95 % interval) |\n|---|---|---|---|")
    folds, harmed = [], []
    with tempfile.TemporaryDirectory() as folder:
        for fold in range(options.folds):
            run = run_fold(fold, options.seed, options.model, Path(folder))
            tests = tests_of(run, fold, set(options.large))
            folds.append(tests)
            harmed.append(run.record.gain["harmed_shops"] if run.record.gain else 0)
            print(describe(f"fold {fold}: {len(tests)} test shoppers", tests, np.ones(len(tests)), rng), flush=True)
    tests = pd.concat(folds, ignore_index=True)
    print(describe(f"all folds: {len(tests)} tests", tests, np.ones(len(tests)), rng))
    size = tests.groupby(["fold", "shop"], observed=True)["shop"].transform("size")
    tests, size = tests[size >= MIN_TEST_SHOPPERS], size[size >= MIN_TEST_SHOPPERS]
    name = f"macro over the (fold, shop) with at least {MIN_TEST_SHOPPERS} test shoppers"
    print(describe(name, tests, 1 / size.to_numpy(), rng))
    print(f"\nharmed shops (Holm) by fold: {harmed}")


if __name__ == "__main__":
    main()
