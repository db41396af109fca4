"""What the federation adds to a neural model's epoch: rounds through Flower's apps against the same training in a loop.

Run: python simulations/benchmarks/neural_rounds.py [--shops 10] [--repeats 5] [--quick]
Mult-VAE over shops of MovieLens-1M's size in ten parts, one local epoch a round, all shops one after the other in this
process, in turn with the loop: processor seconds. "loop": the same epochs on the same tables, arrays averaged in place,
without plans, checks, releases or messages. "pooled": an epoch over all tables in one, in batches ten times as large,
so as many optimiser steps as one shop takes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy import sparse

from fedrec.federation.run_record import num_cores, num_threads, package_versions
from fedrec.federation.terms import Terms
from fedrec.flower.engines import Federation, run_local
from fedrec.models import load_model
from fedrec.models.neural import NeuralModel
from fedrec.models.recommender import PublicInputs, State
from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.testing.planted import train_federated

ROUNDS = 2


def make_shops(num_shops: int, num_shoppers: int, num_items: int, length: int) -> list[sparse.csr_matrix]:
    """Histories of so many shoppers a shop, ``length`` items each on average, popular items more often."""
    rng = np.random.default_rng(0)
    popularity = 1 / np.arange(1, num_items + 1) ** 0.8
    popularity /= popularity.sum()
    shops = []
    for _ in range(num_shops):
        rows = np.repeat(np.arange(num_shoppers), rng.poisson(length, num_shoppers) + 1)
        columns = rng.choice(num_items, size=len(rows), p=popularity)
        table = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), (num_shoppers, num_items))
        table.data[:] = 1
        shops.append(table)
    return shops


def multvae(batch: int) -> NeuralModel:
    """Mult-VAE that trains one epoch a round."""
    settings = {"rounds": ROUNDS, "local_epochs": 1, "batch_shoppers": batch, "round_learning_rate": 0}
    model: NeuralModel = load_model("multvae", {**settings, "device": "cpu"})
    return model


def train_in_a_loop(model: NeuralModel, shops: list[sparse.csr_matrix], public: PublicInputs) -> State:
    """Each round: every shop's epoch from the same arrays, then their mean."""
    from fedrec.training.fit import fit
    from fedrec.training.network import get_arrays

    arrays = get_arrays(model.make_network(public.num_items))
    for index in range(ROUNDS):
        total = {name: np.zeros(values.shape) for name, values in arrays.items()}
        for place, rows in enumerate(shops):
            network = model.network_with(arrays, public.num_items)
            draws = Draws.seeded(f"{place}/{index}", shopper_digests(range(rows.shape[0])))
            fit(
                network,
                rows,
                draws,
                model.fit_settings(rows.shape[0]),
                epochs=1,
                start_epoch=index,
                total_epochs=ROUNDS,
            )
            for name, values in get_arrays(network).items():
                total[name] += values * (rows.shape[0] / sum(shop.shape[0] for shop in shops))
        arrays = {name: values.astype(np.float32) for name, values in total.items()}
    return arrays


def processor_seconds(call: Callable[[], object]) -> float:
    """Processor time of one call in this process, garbage collected before."""
    gc.collect()
    started = time.process_time()
    call()
    return time.process_time() - started


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shops", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small shops, one repeat")
    options = parser.parse_args()
    shoppers, items, length, repeats = (60, 300, 20, 1) if options.quick else (604, 3700, 130, options.repeats)
    shops = make_shops(options.shops, shoppers, items, length)
    public = PublicInputs(np.array([f"item-{place:06d}" for place in range(items)]))
    model, batch = multvae(26), 26 * options.shops
    federation = Federation(model, public, Terms(tuple(f"shop-{place:03d}" for place in range(options.shops))), shops)
    together, stacked = multvae(batch), [sparse.vstack(shops, format="csr")]

    by_hand, plain = train_in_a_loop(model, shops, public), train_federated(model, shops, public)
    # Adam's first steps blow up roundings of values whose gradient is next to nothing.
    if any(np.linalg.norm(by_hand[name] - plain[name]) > 1e-3 * np.linalg.norm(plain[name]) for name in by_hand):
        raise SystemExit("the loop and the federation's own arithmetic differ")
    seconds = [
        (
            processor_seconds(lambda: train_in_a_loop(model, shops, public)),
            processor_seconds(lambda: run_local(federation)),
            processor_seconds(lambda: train_in_a_loop(together, stacked, public)),
        )
        for _ in range(repeats)
    ]
    loop, federated, pooled = (statistics.median(column) / ROUNDS for column in zip(*seconds, strict=True))
    about = {"cores": num_cores(), "threads": num_threads(), **package_versions()}
    about |= {"shops": options.shops, "shoppers a shop": shoppers, "items": items, "batch": 26, "pooled batch": batch}
    about |= {"epoch in a loop, s": round(loop, 3), "federated epoch, s": round(federated, 3)}
    about |= {"pooled epoch, s": round(pooled, 3), "federated / loop": round(federated / loop, 3)}
    print(json.dumps({**about, "federated / pooled": round(federated / pooled, 3)}))


if __name__ == "__main__":
    main()
