"""Mult-VAE beside RecBole's on the same rows of MovieLens-1M, both scored by fedrec's metrics.

Run: python simulations/benchmarks/recbole_multvae.py [--recbole PYTHON] [--epochs 50] [--quick]
RecBole needs numpy below 2, so an environment of its own, which PYTHON names; without one ours alone is trained:
    python -m venv FOLDER
    FOLDER/bin/python -m pip install "setuptools<81" "numpy<2" "pandas<3" "scipy<1.13" torch==2.13.0 recbole
Both train on the training rows of ml-1m-benchmark.toml (all shoppers pooled, ratings of 3 and more, a random 20 % of
each one's items held out) with the same widths (one layer of 2 x 200, one back), epochs and shoppers a batch. RecBole
runs twice: with its own learning rate and KL weight, and with ours. Nothing is chosen on the test rows. RecBole's half
is this same file, run by the other interpreter; the halves hand over arrays in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy import sparse

LATENT, BATCH, OUR_RATE, OUR_CAP = 200, 256, 1.5e-3, 0.1
RECIPES = {"RecBole, its own rate and KL weight": (1e-3, 0.2, 200_000), "RecBole, ours": (OUR_RATE, OUR_CAP, None)}
"""Learning rate, cap of the KL weight, and steps over which it would grow to 1 (None: half the training up to the cap).
RecBole draws the code with a hundredth of its standard deviation; that stays."""
Results = dict[str, tuple[np.ndarray, float]]
"""By model its scores, float32 (num_shoppers, num_items), and its processor seconds."""
SCENARIO = Path(__file__).parents[1] / "scenarios" / "ml-1m-benchmark.toml"


def write_atomic_files(folder: Path, train: sparse.csr_matrix, test: sparse.csr_matrix) -> None:
    """RecBole's benchmark files: the training rows, and test rows in both other places (it never scores them here)."""
    folder.mkdir(parents=True)
    for part, rows in (("train", train), ("valid", test), ("test", test)):
        table = rows.tocoo()
        lines = [f"{shopper}\t{item}" for shopper, item in zip(table.row, table.col, strict=True)]
        text = "\n".join(["user_id:token\titem_id:token", *lines]) + "\n"
        (folder / f"{folder.name}.{part}.inter").write_text(text)


def train_recbole(folder: Path, epochs: int) -> None:
    """RecBole's half: trains each recipe and leaves its scores of all items, float32 (num_shoppers, num_items)."""
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.general_recommender import MultiVAE
    from recbole.trainer import Trainer
    from recbole.utils import init_seed

    shape = tuple(np.load(folder / "shape.npy"))
    steps = epochs * -(-shape[0] // BATCH)
    for number, (rate, cap, growth) in enumerate(RECIPES.values()):
        settings = {
            "data_path": str(folder),
            "benchmark_filename": ["train", "valid", "test"],
            "load_col": {"inter": ["user_id", "item_id"]},
            "train_neg_sample_args": None,
            "latent_dimension": 2 * LATENT,
            "mlp_hidden_size": [],
            "dropout_prob": 0.5,
            "anneal_cap": cap,
            "total_anneal_steps": growth or round(steps * 0.5 / cap),
            "learning_rate": rate,
            "train_batch_size": BATCH,
            "epochs": epochs,
            "eval_args": {"split": {"RS": [8, 1, 1]}, "group_by": "user", "order": "RO", "mode": "full"},
            "use_gpu": False,
            "show_progress": False,
            "checkpoint_dir": str(folder / "saved"),
            "state": "ERROR",
        }
        config = Config(model="MultiVAE", dataset="rows", config_dict=settings)
        init_seed(config["seed"], config["reproducibility"])
        dataset = create_dataset(config)
        loader, _, _ = data_preparation(config, dataset)
        model = MultiVAE(config, loader.dataset).to(config["device"])
        started = time.process_time()
        Trainer(config, model).fit(loader, verbose=False, saved=False)
        seconds = time.process_time() - started
        model.eval()
        shoppers = loader.dataset.token2id("user_id", [str(shopper) for shopper in range(shape[0])])
        tokens = loader.dataset.id2token("item_id", np.arange(1, loader.dataset.item_num)).astype(int)
        scores = np.full(shape, -np.inf, np.float32)  # items that nobody bought are not RecBole's
        with torch.no_grad():
            for start in range(0, shape[0], BATCH):
                some = torch.as_tensor(shoppers[start : start + BATCH])
                found = model.full_sort_predict({"user_id": some}).view(len(some), -1).numpy()
                scores[start : start + BATCH, tokens] = found[:, 1:]
        np.savez(folder / f"scores-{number}.npz", scores=scores, seconds=seconds)


def train_ours(train: sparse.csr_matrix, epochs: int) -> tuple[np.ndarray, float]:
    """Scores of fedrec's Mult-VAE as pooled columns train it, and its processor seconds."""
    from fedrec.models import load_model
    from fedrec.models.recommender import PublicInputs, train_alone

    settings = {"rounds": 1, "local_epochs": epochs, "latent": LATENT, "batch_shoppers": BATCH}
    model = load_model("multvae", {**settings, "learning_rate": OUR_RATE, "beta": OUR_CAP, "device": "cpu"})
    public = PublicInputs(np.array([f"{item:05d}" for item in range(train.shape[1])]))
    started = time.process_time()
    state = train_alone(model, train, public)
    seconds = time.process_time() - started
    return model.fit(state, public).scores(train), seconds


def judge(scores: np.ndarray, train: sparse.csr_matrix, test: sparse.csr_matrix, k: int) -> np.ndarray:
    """float64: NDCG@k of each shopper with a test item, full ranking without known items."""
    from fedrec.evaluation.metrics import hit_matrix, ndcg, relevant_counts
    from fedrec.evaluation.ranking import top_items

    items, _ = top_items(scores, train, k, seed=0, row_ids=np.arange(train.shape[0]))
    relevant = relevant_counts(test)
    figures: np.ndarray = ndcg(hit_matrix(items, test)[relevant > 0], relevant[relevant > 0], k=k)
    return figures


def read_rows(is_quick: bool) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Training and test rows of all shoppers over the shared item space."""
    from fedrec.config import SimulationSettings, read_scenario
    from fedrec.simulation.world import Stage, pooled_rows, prepare

    synthetic = {"data": {"synthetic": {"num_shoppers": 300, "num_items": 200}, "split": "random-share"}}
    world = prepare(SimulationSettings.from_mapping(synthetic) if is_quick else read_scenario(SCENARIO))
    num_items = world.public.num_items
    test = sparse.vstack([shop.shared(shop.test, num_items) for shop in world.shops], format="csr")
    return pooled_rows(world, Stage.FINAL), test


def main() -> None:
    """Print one JSON line for each trained model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recbole", metavar="PYTHON", help="interpreter of an environment that has RecBole")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="a small synthetic set, two epochs")
    parser.add_argument("--half", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    epochs = 2 if options.quick else options.epochs
    if options.half is not None:
        train_recbole(options.half, options.epochs)
        return
    train, test = read_rows(options.quick)
    print(json.dumps({"shoppers": train.shape[0], "items": train.shape[1], "train": train.nnz, "test": test.nnz}))
    results: Results = {"fedrec": train_ours(train, epochs)}
    if options.recbole:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_atomic_files(folder / "rows", train, test)
            np.save(folder / "shape.npy", np.array(train.shape))
            command = [options.recbole, "-W", "ignore", __file__, "--half", str(folder), "--epochs", str(epochs)]
            subprocess.run(command, check=True, cwd=folder, stdout=sys.stderr)
            for number, recipe in enumerate(RECIPES):
                with np.load(folder / f"scores-{number}.npz") as found:
                    results[recipe] = found["scores"], float(found["seconds"])
    else:
        print("no --recbole PYTHON: ours alone (see --help for its environment)", file=sys.stderr)

    report(results, train, test, epochs)


def report(results: Results, train: sparse.csr_matrix, test: sparse.csr_matrix, epochs: int) -> None:
    """One line a model: NDCG@10 with a 95 % interval over shoppers, and what fedrec has more, paired."""
    from fedrec.evaluation.intervals import mean_interval, paired_interval

    ours = judge(results["fedrec"][0], train, test, 10)
    for recipe, (scores, seconds) in results.items():
        figures = judge(scores, train, test, 10)
        mean = mean_interval(figures, rng=np.random.default_rng(0))
        more = paired_interval(ours, figures, rng=np.random.default_rng(0))
        line = {"model": recipe, "epochs": epochs, "processor_s": round(seconds, 1), "ndcg@10": mean.as_record()}
        print(json.dumps({**line, "fedrec's lead": more.as_record()}))


if __name__ == "__main__":
    main()
