"""NeuMF in a federation of ten shops beside the same model pooled, on the NCF authors' own ML-1M files.

Run: python simulations/benchmarks/ncf_federated.py [--model neumf|gmf|mlp] [--shops 10] [--validation] [--quick]
The 6,040 shoppers fall at random into shops of equal size. Federated: rounds through Flower's apps in this process; in
each a shop folds its shoppers' vectors in from the shared arrays, trains and sends its change. Pooled: `train_alone` of
the same model over all shoppers, with the same settings, for as many epochs as the rounds have together. Both are
ranked by vectors folded in at test time. No privacy. Settings were chosen with --validation, as in ncf_files.py.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from ncf_files import figures, read_files

from fedrec.errors import DataError
from fedrec.federation.terms import Terms
from fedrec.flower.engines import Federation, run_local
from fedrec.models.ncf import Gmf, Mlp, NcfSettings, NeuMf
from fedrec.models.recommender import PublicInputs, State
from fedrec.training.ncf import Ncf

MODELS = {"gmf": Gmf, "mlp": Mlp, "neumf": NeuMf}
SETTINGS = NcfSettings(
    factors=64,
    tower_factors=8,
    layers=1,
    negatives=16,
    is_expected=True,
    regularisation=0.01,
    fold_in_steps=15,
    rounds=10,
    local_epochs=2,
    batch_shoppers=16,
    learning_rate=0.03,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="neumf")
    parser.add_argument("--shops", type=int, default=10)
    parser.add_argument("--validation", action="store_true", help="hold out of training, and do not read the test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="a setting instead of ours")
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
    settings = replace(SETTINGS, init_seed=options.seed, **changed)
    if options.quick:
        settings = replace(settings, rounds=1, local_epochs=1, fold_in_steps=3)
    model = MODELS["gmf" if options.quick else options.model](settings)
    public = PublicInputs(np.array([f"item-{column:04d}" for column in range(files.train.shape[1])]))
    rows = np.array_split(np.random.default_rng(options.seed).permutation(files.train.shape[0]), options.shops)
    roster = tuple(f"shop-{shop:03d}" for shop in range(options.shops))
    federation = Federation(model, public, Terms(roster), [files.train[some] for some in rows])
    ways = {
        "federated": lambda: run_local(federation).state,
        "pooled": lambda: model.train_alone(files.train, public),
    }
    for name, run in ways.items():
        if options.only not in (None, name):
            continue
        start = time.perf_counter()
        state: State = run()
        taken_s = time.perf_counter() - start
        network = model.network_with(
            {key: state[key] for key in state if not key.startswith("server.")}, len(public.items)
        )
        assert isinstance(network, Ncf)
        line = {
            "model": model.name,
            "trained": name,
            "shops": options.shops if name == "federated" else 1,
            "part": "validation" if options.validation else "test",
            "seed": options.seed,
            "folded_in_hr/ndcg@10": figures(network, network.fold_in(files.train), files),
            "epochs": settings.epochs,
            "rounds": settings.rounds if name == "federated" else 0,
            "train_s": round(taken_s, 1),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
