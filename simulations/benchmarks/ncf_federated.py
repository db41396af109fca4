"""NeuMF in a federation of ten shops beside the same model pooled, on the NCF authors' own ML-1M files.

Run: python simulations/benchmarks/ncf_federated.py [--model neumf|gmf|mlp] [--shops 10] [--validation] [--quick]
The 6,040 shoppers fall at random into shops of equal size. Federated: rounds through Flower's apps in this process; in
each a shop folds its shoppers' vectors in from the shared arrays, trains and sends its change. Pooled: the same network
over all shoppers as ncf_files.py trains it, with its epochs and rates. Both are ranked by vectors folded in at test
time as the models serve. No privacy. Settings were chosen with --validation, as in ncf_files.py; there the
figures of every fourth round are shown.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, replace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from ncf_files import RECIPES, Files, Recipe, figures, read_files, start, train

from fedrec.errors import DataError
from fedrec.federation.run_record import RoundRecord
from fedrec.federation.terms import Terms
from fedrec.flower.engines import Federation, RunOptions, run_local
from fedrec.models.ncf import Gmf, Mlp, NeuMf
from fedrec.models.recommender import PublicInputs, State
from fedrec.training.ncf import Ncf
from fedrec.training.server_step import without_memory

MODELS = {"gmf": Gmf, "mlp": Mlp, "neumf": NeuMf}


@dataclass(frozen=True)
class Setting:
    """What both ways of training have in common.

    Attributes:
        model: its settings are the federation's; the pooled network is its.
        recipe: of the pooled training.
        files: what is trained on and ranked.
        seed: of shops, starts and draws.
    """

    model: Gmf | Mlp | NeuMf
    recipe: Recipe
    files: Files
    seed: int

    def federated(self, num_shops: int) -> Ncf:
        """All rounds, in shops of equal size."""
        histories = self.files.train
        public = PublicInputs(np.array([f"item-{column:04d}" for column in range(histories.shape[1])]))
        rows = np.array_split(np.random.default_rng(self.seed).permutation(histories.shape[0]), num_shops)
        terms = Terms(tuple(f"shop-{shop:03d}" for shop in range(num_shops)))
        options = RunOptions(on_round=self._show if self.files.is_validation else None)
        federation = Federation(self.model, public, terms, [histories[some] for some in rows])
        return self._network_of(run_local(federation, options).state)

    def pooled(self) -> Ncf:
        """All shoppers in one place."""
        network = self.model.make_network(self.files.train.shape[1])
        assert isinstance(network, Ncf)
        train(network, start(network, self.files), self.files, self.recipe, self.seed)
        return network

    def folded_in(self, network: Ncf) -> str:
        """HR and NDCG at 10 of vectors from the histories and the shared arrays."""
        return figures(network, network.fold_in(self.files.train), self.files)

    def _show(self, record: RoundRecord, state: State) -> None:
        if record.index % 4 == 3:
            print(f"  round {record.index + 1}: {self.folded_in(self._network_of(state))}", file=sys.stderr, flush=True)

    def _network_of(self, state: State) -> Ncf:
        network = self.model.network_with(without_memory(state), self.files.train.shape[1])
        assert isinstance(network, Ncf)
        return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="neumf")
    parser.add_argument("--shops", type=int, default=10)
    parser.add_argument("--validation", action="store_true", help="hold out of training, and do not read the test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="instead of a default")
    parser.add_argument("--only", choices=["federated", "pooled"], help="one of the two")
    parser.add_argument("--quick", action="store_true", help="one round of GMF")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        files = read_files(is_validation=options.validation)
    except DataError as error:
        print(error)
        return
    changed = {name: json.loads(value) for name, value in (one.split("=", 1) for one in options.set)}
    name = "gmf" if options.quick else options.model
    settings, recipe = replace(MODELS[name]().settings, init_seed=options.seed, **changed), RECIPES[name]
    if options.quick:
        settings = replace(settings, rounds=1, local_epochs=1, fold_in_steps=3, serving_steps=3)
        recipe = replace(recipe, stages=((1, *recipe.stages[0][1:]),))
    both = Setting(MODELS[name](settings), recipe, files, options.seed)
    for trained in [options.only] if options.only else ["federated", "pooled"]:
        is_federated = trained == "federated"
        began = time.perf_counter()
        network = both.federated(options.shops) if is_federated else both.pooled()
        taken_s = time.perf_counter() - began
        line = {
            "model": name,
            "trained": trained,
            "shops": options.shops if is_federated else 1,
            "part": "validation" if options.validation else "test",
            "seed": options.seed,
            "folded_in_hr/ndcg@10": both.folded_in(network),
            "epochs": settings.epochs if is_federated else sum(epochs for epochs, _, _ in recipe.stages),
            "rounds": settings.rounds if is_federated else 0,
            "train_s": round(taken_s, 1),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
