"""The headline on Online Retail II: gain of small shops over the last three invoices as rolling folds.

python simulations/rolling_folds.py [--large "United Kingdom"] [--folds 3] [--seed 0] [--model ease]
                                    [--epsilon 0.5 1 2 4 8 --delta 1e-6 --draws 10]

Every fold is a comparison of its own: settings and blends chosen on the invoice before the fold's, all invoices after
it forgotten. Printed for every column: mean over all test shoppers of the small shops, and macro over shops with at
least five of them, alone, joined, and their paired difference. The bootstrap draws shoppers, each with all her folds,
and the noise draws of every fold.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import fedrec
from fedrec.evaluation.bootstrap import pick_noise
from fedrec.evaluation.gains import gain_table
from fedrec.federation.run_record import noisy_column
from fedrec.reports.summary import title_of
from fedrec.simulation import Run

METRIC, OVER, PLAIN, PRIVATE = "ndcg@10", "local", "federated_personal", "federated_dp_personal"
MIN_TEST_SHOPPERS = 5
RESAMPLES = 10_000


def run_fold(fold: int, options: argparse.Namespace, folder: Path) -> Run:
    """One comparison whose test is the fold's invoice."""
    settings: dict[str, Any] = {
        "name": f"fold-{fold}",
        "seed": options.seed,
        "data": {"source": "online-retail-ii", "split": "last-basket", "split_settings": {"fold": fold}},
        "model": {"name": options.model},
        "evaluation": {"columns": [OVER, PLAIN]},
    }
    if options.epsilon:
        settings["evaluation"]["columns"].append(PRIVATE)
        settings["privacy"] = {"epsilon": options.epsilon, "delta": options.delta, "noise_draws": options.draws}
        if options.benchmark:
            settings["privacy"] |= {"benchmark": True, "colluders": 0}
    return fedrec.simulate(settings, out=folder / str(fold))


def tests_of(run: Run, column: str, fold: int, large: set[str]) -> pd.DataFrame:
    """One row a test shopper of the small shops: fold, shop, shopper, figures alone and joined (mean over draws)."""
    tables = []
    for shop, shoppers in run.shoppers.items():
        alone, joined = (run.evaluation.per_shopper(name, shop, METRIC) for name in (OVER, column))
        tables.append(pd.DataFrame({"fold": fold, "shop": shop, "shopper": shoppers, "alone": alone, "joined": joined}))
    tests = pd.concat(tables, ignore_index=True)
    return tests[~tests["shop"].isin(large)].dropna()


def draws_of(run: Run, column: str) -> dict[str, np.ndarray]:
    """By shop float64 (num_draws,): mean difference in each noise draw minus their mean."""
    found = {shop: run.evaluation.draw_differences(column, OVER, shop, METRIC) for shop in run.evaluation.shops}
    return {shop: draws - draws.mean() for shop, draws in found.items()}


def noise(
    tests: pd.DataFrame, weights: np.ndarray, draws: Mapping[int, Mapping[str, np.ndarray]], rng: np.random.Generator
) -> np.ndarray:
    """float64, (RESAMPLES,): how far resampled noise draws move the weighted mean; every fold has draws of its own."""
    moved = np.zeros(RESAMPLES)
    shares = pd.Series(weights / weights.sum()).groupby([tests["fold"].to_numpy(), tests["shop"].to_numpy()]).sum()
    for fold in sorted(set(tests["fold"])):
        deviations = sum(share * draws[fold][shop] for shop, share in shares[fold].items())
        if (num_draws := len(deviations)) > 1:
            picks = pick_noise(num_draws, rng=rng, resamples=RESAMPLES)
            moved += picks @ deviations * np.sqrt(num_draws / (num_draws - 1))
    return moved


def describe(
    name: str,
    tests: pd.DataFrame,
    weights: np.ndarray,
    draws: Mapping[int, Mapping[str, np.ndarray]],
    rng: np.random.Generator,
) -> str:
    """One row of the table: weighted means of both columns, and of their difference with its interval."""
    alone, joined = (np.average(tests[column], weights=weights) for column in ("alone", "joined"))
    difference = (tests["joined"] - tests["alone"]).to_numpy()
    person = tests.groupby(["shop", "shopper"], observed=True).ngroup().to_numpy()
    sums = np.bincount(person, weights=weights * difference)
    sizes = np.bincount(person, weights=weights)
    picks = rng.integers(0, len(sums), (RESAMPLES, len(sums)))
    resampled = sums[picks].sum(axis=1) / sizes[picks].sum(axis=1) + noise(tests, weights, draws, rng)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return f"| {name} | {alone:.4f} | {joined:.4f} | {joined - alone:+.4f} ({low:+.4f} to {high:+.4f}) |"


def table(column: str, runs: list[Run], large: set[str], rng: np.random.Generator) -> list[str]:
    """The rows of one joined column: fold by fold, all folds, and macro."""
    by_fold = [tests_of(run, column, fold, large) for fold, run in enumerate(runs)]
    draws = {fold: draws_of(run, column) for fold, run in enumerate(runs)}
    lines = [f"\n{title_of(column)}\n", f"| {METRIC}, small shops | alone | joined | gain (95 % interval) |"]
    lines.append("|---|---|---|---|")
    for fold, tests in enumerate(by_fold):
        lines.append(describe(f"fold {fold}: {len(tests)} test shoppers", tests, np.ones(len(tests)), draws, rng))
    tests = pd.concat(by_fold, ignore_index=True)
    lines.append(describe(f"all folds: {len(tests)} tests", tests, np.ones(len(tests)), draws, rng))
    size = tests.groupby(["fold", "shop"], observed=True)["shop"].transform("size")
    tests, size = tests[size >= MIN_TEST_SHOPPERS], size[size >= MIN_TEST_SHOPPERS]
    name = f"macro over the (fold, shop) with at least {MIN_TEST_SHOPPERS} test shoppers"
    lines.append(describe(name, tests, 1 / size.to_numpy(), draws, rng))
    first = by_fold[0]
    size = first.groupby("shop", observed=True)["shop"].transform("size")
    name = f"for comparison: macro over the {first['shop'].nunique()} small shops of fold 0"
    lines.append(describe(name, first, 1 / size.to_numpy(), draws, rng))
    harmed = [gain_table(run.evaluation, of=column, over=OVER, rng=rng)["harmed_shops"] for run in runs]
    lines.append(f"\nharmed shops (Holm) by fold: {harmed}")
    return lines


def main() -> None:
    """Run the folds and print the headline as Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", nargs="*", default=["United Kingdom"], help="shops that are not small")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="ease")
    parser.add_argument("--epsilon", type=float, nargs="*", default=[], help="adds the columns under these promises")
    parser.add_argument("--delta", type=float)
    parser.add_argument("--draws", type=int, default=10, help="noise draws a fold and epsilon")
    parser.add_argument("--benchmark", action="store_true", help="all shops answer, none colludes: not deployable")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        runs = [run_fold(fold, options, Path(folder)) for fold in range(options.folds)]
    for column in [PLAIN, *(noisy_column(PRIVATE, epsilon) for epsilon in sorted(options.epsilon))]:
        print("\n".join(table(column, runs, set(options.large), rng)), flush=True)


if __name__ == "__main__":
    main()
