"""How long one list takes, without HTTP: the shop's pipeline beside implicit's recommend on the same weights.

Run: python simulations/benchmarks/serving_scores.py [--items 12000] [--history 20] [--weights 200] [--repeats 400]
Random weights (what they are costs nothing), shoppers with a history each, lists of 10. implicit's
ItemItemRecommender.recommend only multiplies a sparse row by the same weights as a sparse matrix, leaves out what she
had and sorts; ``scores + best`` is the same of ours. ``home`` adds events to taste, filters (category out, least price,
stock), reserved places for new items and the answer; further rows add one thing each. All take turns, shopper by
shopper, in one process and one thread. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy import sparse

from fedrec.shop.lists.filling import best
from fedrec.shop.lists.lists import Lists
from fedrec.shop.lists.neighbours import Neighbours
from fedrec.shop.lists.ranked import Query
from fedrec.shop.lists.serving_model import InsideShop, ItemItem, Served, Term
from fedrec.shop.lists.shelf import Shelf, Wanted

NUM_NEW = 100
"""Items that the model does not know."""


@dataclass(frozen=True)
class Item:
    key: str
    title: str
    category: str
    price: float
    stock: int
    is_hidden: bool
    created: float


@dataclass(frozen=True)
class Event:
    item: str
    kind: str = "purchase"
    value: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("items", 12_000), ("history", 20), ("weights", 200), ("repeats", 400)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    num_known = options.items - NUM_NEW
    chosen = rng.integers(0, num_known, (num_known, options.weights), dtype=np.int32)
    neighbours = Neighbours(chosen, rng.normal(size=chosen.shape).astype(np.float32))
    words = np.array([f"word{place}" for place in range(2000)])
    titles = words[rng.integers(0, 2000, (options.items, 5))]
    items = [
        Item(f"i{place:06d}", " ".join(title), f"c{place % 20}", float(place % 100), place % 50, False, float(place))
        for place, title in enumerate(titles)
    ]
    start = time.perf_counter()
    shelf = Shelf.of(items)
    print(f"{options.items:,} items on the shelf in {time.perf_counter() - start:.2f} s")
    popularity = rng.random(num_known)
    keys = np.array(shelf.keys[:num_known], dtype=object)
    served = Served("benchmark", "none", None, InsideShop.NONE)
    term, popular = Term(1.0, popularity * 1e-6, neighbours), Term(0.25, popularity, None)
    lists = Lists(shelf, ItemItem(keys, popularity, (term,), served))
    blend = Lists(shelf, ItemItem(keys, popularity, (Term(0.75, term.base, neighbours), popular), served))
    print(f"weights {(chosen.nbytes + neighbours.weights.nbytes) / 1e6:.1f} MB as float32 and int32")
    wanted = Wanted(categories_out=frozenset({"c3"}), price_min=5.0)
    histories = [rng.choice(num_known, options.history, replace=False) for _ in range(options.repeats)]
    events = [[Event(f"i{place:06d}") for place in history.tolist()] for history in histories]
    ones = np.ones(options.history)

    def plain(at: int) -> object:
        scores = lists.model.scores(histories[at], ones)
        scores[histories[at]] = -np.inf
        return best(scores, 10)

    def home(of: Lists, **more: object) -> Callable[[int], object]:
        query = Query(wanted=wanted, **more)  # type: ignore[arg-type]
        return lambda at: of.home(events[at], query)

    ours = {
        "scores + best": plain,
        "home": home(lists),
        "home, explained": home(lists, explain=True),
        "home, diverse": home(lists, diversity=0.3),
        "home of a blend": home(blend),
        "home of a blend, explained": home(blend, explain=True),
        "similar": lambda at: lists.similar(events[at][0].item, Query(wanted=wanted)),
    }
    runs = {"implicit": implicit_recommend(neighbours, histories), **ours}
    took: dict[str, list[float]] = {name: [] for name in runs}
    for at in range(options.repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run(at)
            took[name].append(time.perf_counter() - start)
    base = np.median(took["implicit"])
    for name, seconds in took.items():
        times = np.array(seconds[options.repeats // 10 :]) * 1e3
        p50, p99 = np.quantile(times, [0.5, 0.99])
        print(f"{name:28s} p50 {p50:7.3f} ms   p99 {p99:7.3f} ms   {p50 / 1e3 / base:5.2f} x implicit")


def implicit_recommend(neighbours: Neighbours, histories: list[np.ndarray]) -> Callable[[int], object]:
    """implicit's item-item recommender with our weights in place of its own."""
    from implicit._nearest_neighbours import NearestNeighboursScorer
    from implicit.nearest_neighbours import ItemItemRecommender

    num_items, width = neighbours.items.shape
    starts = np.arange(num_items + 1) * width
    table = (neighbours.weights.ravel().astype(np.float64), neighbours.items.ravel(), starts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = ItemItemRecommender(K=width)
    peer.similarity = sparse.csr_matrix(table, shape=(num_items, num_items))
    peer.scorer = NearestNeighboursScorer(peer.similarity)
    rows = [
        sparse.csr_matrix((np.ones(len(one)), (np.zeros(len(one), int), one)), shape=(1, num_items))
        for one in histories
    ]
    return lambda at: peer.recommend(0, rows[at], N=10)


if __name__ == "__main__":
    main()
