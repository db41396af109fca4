"""GMF, MLP and NeuMF on the NCF authors' own files: ML-1M, one test item among their 99 negatives for each shopper.

Run: python simulations/benchmarks/ncf_files.py [MODEL ...] [--validation] [--set NAME=JSON] [--quick]
Pooled training without privacy, for comparison with published figures only (sampled negatives can order models
otherwise than full ranking does). Every item that a shopper has not in training counts as a negative, the test item too
(the clean sampler), as often as drawing would take it on average. "trained" scores by the vectors that training left,
"folded in" by vectors computed at test time from each history and the shared parameters. Settings were chosen with
--validation: the last training item of each shopper (a random one where times are missing) among 99 drawn for it; the
test items are not looked at there. "pretrained" is NeuMF started from the GMF and MLP of the same run with alpha = 0.5
(He et al. 2017, section 3.4.1), or, where no MLP is named, from GMF's scores and an untrained tower: name them before.
Published (guoyang9/NCF, best epoch on test): GMF .708/.429, MLP .692/.425, NeuMF .701/.425, pretrained .726/.445.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass, field, replace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from fedrec.data.ncf import ncf_test
from fedrec.data.public_sets import data_folders
from fedrec.errors import DataError
from fedrec.evaluation.intervals import mean_interval
from fedrec.evaluation.sampled import sampled_figures, sampled_ranks, train_only_negatives
from fedrec.models.ncf import MlpSettings, NcfSettings
from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.training.fit import FitSettings, fit
from fedrec.training.ncf import Gmf, Mlp, Ncf, NeuMf

KINDS: dict[str, type[Gmf] | type[Mlp] | type[NeuMf]] = {"gmf": Gmf, "mlp": Mlp, "neumf": NeuMf, "pretrained": NeuMf}


@dataclass(frozen=True)
class Recipe:
    """How one model is trained.

    Attributes:
        stages: epochs, rate of Adam on the shared parameters, and on the shoppers' vectors, one stage after the other.
        batch: shoppers in a step.
        settings: of its network: the models' defaults, but for folding in in shorter steps.
    """

    stages: tuple[tuple[int, float, float], ...]
    batch: int = 32
    settings: NcfSettings = field(default_factory=lambda: NcfSettings(fold_in_rate=0.05))


LONG = (20, 0.01, 0.15), (12, 0.003, 0.05), (8, 0.001, 0.015)
RECIPES = {
    "gmf": Recipe(LONG, batch=64),
    "mlp": Recipe(
        ((18, 0.01, 0.1), (6, 0.003, 0.03)),
        settings=MlpSettings(fold_in_rate=0.05, negatives=16, regularisation=0.002),
    ),
    "neumf": Recipe(LONG, batch=64),
    "pretrained": Recipe(((4, 0.003, 0.015), (2, 0.001, 0.005))),
}


@dataclass(frozen=True)
class Files:
    """What is trained on, and what is ranked: one item among others for each shopper.

    Attributes:
        train: CSR, (num_shoppers, num_items).
        targets: int64, (num_shoppers,).
        others: int64, (num_shoppers, 99).
        is_validation: they stand in for the test.
    """

    train: sparse.csr_matrix
    targets: np.ndarray
    others: np.ndarray
    is_validation: bool


def read_files(*, is_validation: bool) -> Files:
    """The authors' split; for validation each shopper's last training item takes the test item's place."""
    test = ncf_test()
    path = next(place / "ml-1m.parquet" for place in data_folders(None) if (place / "ml-1m.parquet").is_file())
    events = pd.read_parquet(path, columns=["user_id", "item_id", "timestamp", "is_ncf_test"])
    items = pd.Index(np.unique(events["item_id"].astype("str")))
    events["row"] = pd.Index(test.shoppers).get_indexer(events["user_id"].astype("str"))
    events["column"] = items.get_indexer(events["item_id"].astype("str"))
    when = events["timestamp"].to_numpy(float, na_value=-np.inf)  # those without a time are early ones
    tie = np.random.default_rng(0).random(len(events))
    events = events.iloc[np.lexsort((tie, when, events["row"]))]
    events = events[~events["is_ncf_test"]]
    is_last = ~events["row"].duplicated(keep="last")
    if not is_validation:
        others = items.get_indexer(test.negatives.ravel()).reshape(test.negatives.shape)
        return Files(rows_of(events, len(items)), items.get_indexer(test.items), others, False)
    train, targets = rows_of(events[~is_last], len(items)), events.loc[is_last, "column"].to_numpy()
    return Files(train, targets, train_only_negatives(train, targets, rng=np.random.default_rng(1)), True)


def rows_of(events: pd.DataFrame, num_items: int) -> sparse.csr_matrix:
    """CSR, (num_shoppers, num_items): 1 where bought."""
    places = events["row"].to_numpy(), events["column"].to_numpy()
    return sparse.csr_matrix((np.ones(len(events), np.float32), places), shape=(events["row"].max() + 1, num_items))


@torch.no_grad()
def figures(network: Ncf, vectors: torch.Tensor, files: Files) -> str:
    """HR and NDCG at 10 of these vectors; see `intervals`."""
    ids = torch.from_numpy(np.concatenate([files.targets[:, None], files.others], axis=1))
    return " / ".join(intervals(network.pair_scores(vectors, ids).double().numpy(), files).values())


def intervals(scores: np.ndarray, files: Files) -> dict[str, str]:
    """HR and NDCG at 10, by "hr" and "ndcg", with 95 % bootstrap intervals over shoppers.

    Args:
        scores: float64, (num_shoppers, 100): of the target, then of the others, each of which counts once: where the
            authors drew a target as its own negative, it is not ranked against itself.
    """
    rivals = np.where(files.others == files.targets[:, None], -np.inf, scores[:, 1:])
    scores = np.concatenate([scores[:, :1], rivals], axis=1)
    places = np.broadcast_to(np.arange(1, scores.shape[1]), files.others.shape)
    ranks = sampled_ranks(scores, np.zeros(len(scores), np.int64), places, rng=np.random.default_rng(2))
    written = {}
    for metric, values in sampled_figures(ranks).items():
        found = mean_interval(values, rng=np.random.default_rng(3))
        written[metric] = f"{found.mean:.4f} ({found.low:.4f} to {found.high:.4f})"
    return written


def start(network: Ncf, files: Files) -> torch.Tensor:
    """Start the network at popularity, in place; the shoppers' first vectors, zeros."""
    network.start_at(np.diff(files.train.tocsc().indptr) + 0.5)
    return torch.zeros(files.train.shape[0], network.num_shopper_values)


def train(network: Ncf, vectors: torch.Tensor, files: Files, recipe: Recipe, seed: int) -> torch.Tensor:
    """Train the network, in place, and the shoppers' vectors, which come back."""
    draws = Draws.seeded(f"ncf files/{seed}", shopper_digests(range(len(vectors))))
    for stage, (epochs, rate, vector_rate) in enumerate(recipe.stages):
        settings = FitSettings(batch_shoppers=recipe.batch, learning_rate=rate, vector_learning_rate=vector_rate)
        found = fit(network, files.train, draws.of(f"stage {stage}"), settings, epochs=epochs, vectors=vectors)
        assert found.vectors is not None
        vectors = found.vectors
        if files.is_validation:
            print(f"  stage {stage + 1}: {figures(network, vectors, files)}", file=sys.stderr, flush=True)
    return vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(KINDS), metavar="MODEL")
    parser.add_argument("--validation", action="store_true", help="hold out of training, and do not read the test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=JSON", help="of the networks, as factors=192"
    )
    parser.add_argument("--quick", action="store_true", help="one epoch of GMF")
    options = parser.parse_args()
    if "pretrained" in options.models and "gmf" not in options.models[: options.models.index("pretrained")]:
        parser.error("pretrained starts from gmf: name it before")
    torch.set_num_threads(1)
    try:
        files = read_files(is_validation=options.validation)
    except DataError as error:
        print(error)
        return
    changed = {name: json.loads(value) for name, value in (one.split("=", 1) for one in options.set)}
    trained: dict[str, tuple[Ncf, torch.Tensor]] = {}
    for name in ["gmf"] if options.quick else options.models:
        recipe = RECIPES[name]
        if options.quick:
            recipe = replace(
                recipe, stages=((1, *recipe.stages[0][1:]),), settings=replace(recipe.settings, serving_steps=5)
            )
        of_network = replace(recipe.settings, **changed).of_network()
        network = KINDS[name](files.train.shape[1], of_network, init_seed=options.seed)
        vectors = start(network, files)
        if name == "pretrained":
            untrained = Mlp(network.num_items, of_network, init_seed=options.seed)
            gmf, of_gmf = trained["gmf"]  # checked when the options were read
            mlp, of_mlp = trained.get("mlp", (untrained, vectors[:, : untrained.num_shopper_values]))
            assert isinstance(network, NeuMf)
            assert isinstance(gmf, Gmf)
            assert isinstance(mlp, Mlp)
            network.take_over(gmf, mlp, alpha=0.5 if "mlp" in trained else 1.0)
            vectors = torch.cat([of_gmf, of_mlp], dim=1)
        began = time.perf_counter()
        vectors = train(network, vectors, files, recipe, options.seed)
        trained[name] = network, vectors
        taken_s = time.perf_counter() - began
        folded = "" if files.is_validation else figures(network, network.fold_in(files.train), files)
        line = {
            "model": name,
            "part": "validation" if options.validation else "test",
            "seed": options.seed,
            **changed,
            "trained_hr/ndcg@10": figures(network, vectors, files),
            "folded_in_hr/ndcg@10": folded,
            "shared_values": sum(values.numel() for values in network.parameters()),
            "epochs": sum(epochs for epochs, _, _ in recipe.stages),
            "train_s": round(taken_s, 1),
            "fold_in_s": round(time.perf_counter() - began - taken_s, 1),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
