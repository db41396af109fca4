"""What a list loses by being served from each item's strongest weights alone: NDCG@10 by the number that is kept.

Run: python simulations/benchmarks/served_weights.py [SCENARIO] [--keep 50 100 200 400] [--models shared local common]
Test shoppers of every shop, full ranking, EASE with its default settings: the shared model over the shop's catalogue,
the shop's own, a blend of both with popularity, the shop's own without the pairs of fewer than three shoppers
("common"), and the shop's own over the whole item space ("wide"). 95 % intervals of paired differences over shoppers,
from all weights of the same model, or of the shop's own. Nothing is chosen here: 200 was set before.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy import sparse

from fedrec.config import read_scenario
from fedrec.evaluation.intervals import paired_interval
from fedrec.models import load_model
from fedrec.models.popularity import PopularityScorer
from fedrec.models.recommender import PublicInputs, Scorer, train_alone
from fedrec.models.whole_space import whole_space_scorer
from fedrec.shop.lists.serving_model import InsideShop, ItemItem, Served, serving_model
from fedrec.shop.personalise import BlendedScorer, ShopPersonalisation
from fedrec.shop.version import local_scorer
from fedrec.simulation.columns import judge, shared_scorer
from fedrec.simulation.world import Stage, pooled_rows, prepare, queries, training_rows

SERVED = Served("benchmark", "none", None, InsideShop.NONE)


@dataclass(frozen=True)
class AsScorer:
    """A serving model that ranks many histories, one by one."""

    model: ItemItem

    def scores(self, histories: sparse.csr_matrix) -> np.ndarray:
        """float32, (num_rows, num_items)."""
        rows = np.split(histories.indices.astype(np.int64), histories.indptr[1:-1])
        return np.array([self.model.scores(row, np.ones(len(row))) for row in rows], np.float32)

    def restrict(self, positions: np.ndarray, public: PublicInputs) -> Scorer:
        raise NotImplementedError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="?", default="simulations/scenarios/ml-1m.toml")
    parser.add_argument("--keep", type=int, nargs="+", default=[50, 100, 200, 400])
    parser.add_argument("--limit", type=int, default=2000, help="test shoppers of a shop, drawn by the seed")
    parser.add_argument("--min-shoppers", type=int, default=3, help='a pair of fewer is left out of "common"')
    parser.add_argument("--models", nargs="+", default=["shared", "local", "blend", "common", "wide"])
    options = parser.parse_args()
    settings = read_scenario(options.scenario)
    world, ease = prepare(settings), load_model("ease")
    shared = ease.fit(train_alone(ease, pooled_rows(world, Stage.FINAL), world.public), world.public)
    figures: dict[str, dict[int, list[np.ndarray]]] = {}
    largest = (0, 0, 0)
    for place, shop in enumerate(world.shops):
        asked = queries(shop, Stage.FINAL, limit=options.limit, seed=settings.seed)
        if not asked.targets.nnz:
            continue
        public, rows = world.shop_public[place], training_rows(shop, Stage.FINAL)
        joined, counts = shared_scorer(world, shared, place), np.asarray(rows.sum(axis=0), np.float64).ravel()
        local = ease.fit(train_alone(ease, rows, public), public)
        parts = ((0.5, joined), (0.25, local), (0.25, PopularityScorer(counts)))
        scorers = {"shared": joined, "local": local, "blend": BlendedScorer(parts, public.num_items)}
        scorers["common"] = local_scorer(
            rows, public, ShopPersonalisation(own_statistics_min_shoppers=options.min_shoppers)
        )
        if world.whole.is_small_enough:
            scorers["wide"] = whole_space_scorer(world.whole, shop.positions, rows, public)
        for name in options.models:
            if (scorer := scorers.get(name)) is None:
                continue
            of_model = figures.setdefault(name, {})
            of_model.setdefault(0, []).append(judge(scorer, asked, seed=settings.seed, k=10))
            for keep in options.keep:
                model = serving_model(scorer, public.items, counts, SERVED, max_weights=keep)
                assert isinstance(model, ItemItem)
                of_model.setdefault(keep, []).append(judge(AsScorer(model), asked, seed=settings.seed, k=10))
                weights = model.terms[0].neighbours
                assert weights is not None
                if keep == 200:
                    largest = max(largest, (public.num_items, weights.items.nbytes + weights.weights.nbytes, keep))
        print(f"{shop.name}: {public.num_items:,} items, {len(asked.rows):,} test shoppers", flush=True)
    print(
        f"\n{settings.name}: largest catalogue {largest[0]:,} items, {largest[1] / 1e6:.1f} MB at 200 weights an item"
    )
    print(f"{'model':8s} {'kept':>6s} {'NDCG@10':>8s} {'of all':>8s}   difference (95 %)")
    for name, by_keep in figures.items():
        whole = np.concatenate(by_keep[0])
        beside = ""
        if name in ("common", "wide") and "local" in figures:
            found = paired_interval(whole, np.concatenate(figures["local"][0]), rng=np.random.default_rng(0))
            beside = f"{'':10s} {found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}] beside local"
        print(f"{name:8s} {'all':>6s} {whole.mean():8.4f}{beside}")
        for keep in options.keep:
            cut = np.concatenate(by_keep[keep])
            found = paired_interval(cut, whole, rng=np.random.default_rng(0))
            share = f"{cut.mean() / whole.mean():8.1%}"
            print(
                f"{'':8s} {keep:6d} {cut.mean():8.4f} {share}   {found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
            )


if __name__ == "__main__":
    main()
