"""PFedRec, every shopper a client, on NCF's own ML-1M files and on ML-100K, under the leaky sampler and a clean one.

Run: python simulations/benchmarks/pfedrec_files.py [--data ml-1m|ml-100k] [--rounds 100] [--validation] [--quick]
In each round every client starts from the shared item table and her own score function (one linear layer), moves the
function and then the table by SGD on her pairs, batch after batch, and sends the table; their mean is the next one. She
is tested with her function and the table as she left it. *Leaky*: her training negatives come from items outside
training and test, as in the published code, so that her test item is never one; *clean*: from items outside training.
"no model" ranks by minus how often an item came up as her training negative. ML-1M is ranked among the 99 negatives of
the NCF authors, ML-100K among 99 drawn from items she never had, the last event being the test. Popularity and EASE
as it comes stand beside it; GMF and NeuMF on the same ML-1M files: ncf_files.py.
Source: Zhang et al. 2023, "Dual Personalization on Federated Recommendation", arXiv:2301.08143, algorithm 1, and the
published code: width 32, 4 negatives an item, batches of 256 pairs, rate 0.1 for the function and 0.1 x items x 80
for the table, 100 rounds of one local epoch, all clients. Deviations: an item's four negatives may hold one twice; what
a client trains on includes the item that the published code keeps for validation; the last round counts, not a chosen
one. Published, leaky sampler, ML-1M: .7326/.4436.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from ncf_files import Files, intervals, read_files, rows_of
from scipy import sparse

from fedrec.data.public_sets import data_folders
from fedrec.errors import DataError
from fedrec.evaluation.sampled import clean_negatives
from fedrec.models.ease import Ease
from fedrec.models.recommender import PublicInputs, train_alone

WIDTH, NEGATIVES, BATCH, RATE, TABLE_RATE = 32, 4, 256, 0.1, 80.0
CLIENTS_AT_ONCE = 64
PUBLISHED = {"ml-1m": ".7326/.4436 published, leaky", "ml-100k": ".713/.443 leaky, .552/.327 clean in our notes"}


def read_ml_100k(*, is_validation: bool) -> Files:
    """Each shopper's last event (for validation the one before) among 99 items that she never had."""
    path = next(place / "ml-100k.parquet" for place in data_folders(None) if (place / "ml-100k.parquet").is_file())
    events = pd.read_parquet(path, columns=["user_id", "item_id", "timestamp"])
    events["row"], events["column"] = (pd.factorize(events[name], sort=True)[0] for name in ("user_id", "item_id"))
    tie = np.random.default_rng(0).random(len(events))
    events = events.iloc[np.lexsort((tie, events["timestamp"], events["row"]))]
    had = rows_of(events, events["column"].max() + 1)
    if is_validation:
        events = events[events["row"].duplicated(keep="last")]
    is_last = ~events["row"].duplicated(keep="last")
    targets = events.loc[is_last, "column"].to_numpy()
    others = clean_negatives(had, targets, rng=np.random.default_rng(1))
    return Files(rows_of(events[~is_last], had.shape[1]), targets, others, is_validation)


@dataclass
class Federation:
    """The shared item table and what the clients keep.

    Attributes:
        table: float32, (num_items, width).
        weights: float32, (num_shoppers, width); of each one's score function.
        biases: float32, (num_shoppers,).
        scores: float32, (num_shoppers, 100): of the test item and the 99 others after the client's last round.
        drawn: int64, (num_shoppers, num_items): how often each item was a client's training negative.
    """

    table: torch.Tensor
    weights: torch.Tensor
    biases: torch.Tensor
    scores: torch.Tensor
    drawn: torch.Tensor

    @classmethod
    def start(cls, files: Files, seed: int) -> Federation:
        """As torch starts an embedding and a linear layer; all clients have the same function at first."""
        num_shoppers, num_items = files.train.shape
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(num_items, WIDTH, generator=generator)
        first = (2 * torch.rand(WIDTH + 1, generator=generator) - 1) / WIDTH**0.5
        weights, biases = first[:WIDTH].repeat(num_shoppers, 1), first[WIDTH:].repeat(num_shoppers)
        drawn = torch.zeros(num_shoppers, num_items, dtype=torch.int32)
        return cls(table, weights, biases, torch.zeros(num_shoppers, 100), drawn)

    @torch.no_grad()
    def round(self, files: Files, is_barred: torch.Tensor, ids_to_rank: torch.Tensor, rng: torch.Generator) -> None:
        """One local epoch of all clients, those with about as many pairs side by side, and the mean of their tables.

        Args:
            files: histories to train on.
            is_barred: bool, (num_shoppers, num_items): what may not be drawn as a client's negative.
            ids_to_rank: int64, (num_shoppers, 100).
            rng: of negatives and of the order of pairs.
        """
        sizes = np.diff(files.train.indptr)
        change = torch.zeros_like(self.table)
        for clients in np.split(order := np.argsort(sizes), range(CLIENTS_AT_ONCE, len(order), CLIENTS_AT_ONCE)):
            ids, labels, is_pair = pairs(files.train[clients], is_barred[clients], rng)
            counts = torch.zeros(len(clients), self.table.shape[0], dtype=torch.int32)
            counts.scatter_add_(1, ids, (is_pair & (labels == 0)).int())
            self.drawn[clients] += counts
            tables = self.table.repeat(len(clients), 1, 1)
            for start in range(0, ids.shape[1], BATCH):
                batch = slice(start, start + BATCH)
                self._step(clients, tables, ids[:, batch], labels[:, batch], is_pair[:, batch])
            change += tables.sum(0) - len(clients) * self.table
            ranked = tables.gather(1, ids_to_rank[clients, :, None].expand(-1, -1, WIDTH))
            self.scores[clients] = self._score(clients, ranked)
        self.table += change / len(sizes)

    def _step(
        self, clients: np.ndarray, tables: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor, is_pair: torch.Tensor
    ) -> None:
        """Each client's function moves by the mean loss of her batch, then her table by that of the moved function."""
        share = is_pair / is_pair.sum(1, keepdim=True).clamp(min=1)  # (num_clients, length)
        places = (ids + torch.arange(len(clients))[:, None] * tables.shape[1]).ravel()
        rows = tables.view(-1, WIDTH)[places].view(*ids.shape, WIDTH)
        slopes = slope(self._score(clients, rows), labels) * share
        self.weights[clients] -= RATE * (slopes[:, None] @ rows).squeeze(1)
        self.biases[clients] -= RATE * slopes.sum(1)
        slopes = slope(self._score(clients, rows), labels) * share
        moves = -RATE * TABLE_RATE * tables.shape[1] * slopes[:, :, None] * self.weights[clients][:, None]
        tables.view(-1, WIDTH).index_add_(0, places, moves.view(-1, WIDTH))

    def _score(self, clients: np.ndarray, rows: torch.Tensor) -> torch.Tensor:
        return (rows @ self.weights[clients][:, :, None]).squeeze(2) + self.biases[clients][:, None]


def slope(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of torch's BCELoss over a float32 sigmoid: where that is 0 or 1, nothing moves, as in the published code."""
    shares = scores.sigmoid()
    spread = shares * (1 - shares)
    return (shares - labels) * spread / spread.clamp(min=1e-12)


def pairs(
    histories: sparse.csr_matrix, is_barred: torch.Tensor, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each client's items and four uniform others for each, in random order, padded at the end.

    Returns:
        ids (num_clients, length), labels 1 or 0, and whether there is a pair.
    """
    sizes = torch.from_numpy(np.diff(histories.indptr)).long()
    most = int(sizes.max())
    place = torch.arange(most * (1 + NEGATIVES))
    ids = torch.randint(is_barred.shape[1], (len(sizes), len(place)), generator=rng)
    while (is_bad := is_barred.gather(1, ids)).any():
        ids[is_bad] = torch.randint(is_barred.shape[1], (int(is_bad.sum()),), generator=rng)
    is_pair = place < (1 + NEGATIVES) * sizes[:, None]
    labels = (place < sizes[:, None]).float()
    ids[labels > 0] = torch.from_numpy(histories.indices).long()
    keys = torch.rand(ids.shape, generator=rng).masked_fill(~is_pair, 2.0)
    order = keys.argsort(1)
    return ids.gather(1, order), labels.gather(1, order), is_pair


def report(name: str, scores: np.ndarray, files: Files, **more: object) -> None:
    """One line: HR and NDCG at 10 with 95 % bootstrap intervals over shoppers; scores of the item and the 99 others."""
    line: dict[str, object] = {"model": name, "part": "validation" if files.is_validation else "test", **more}
    line |= {f"{metric}@10": value for metric, value in intervals(scores.astype(float), files).items()}
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(PUBLISHED), default="ml-1m")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--sampler", choices=["leaky", "clean"], help="this one alone")
    parser.add_argument("--validation", action="store_true", help="hold out of training, and do not read the test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two rounds on ML-100K")
    options = parser.parse_args()
    data, rounds = ("ml-100k", 2) if options.quick else (options.data, options.rounds)
    read = read_files if data == "ml-1m" else read_ml_100k
    try:
        files = read(is_validation=options.validation)
    except (DataError, StopIteration) as error:
        print(error or f"{data}.parquet is not in the folder of FEDREC_DATA")
        return
    print(f"{data}: {files.train.shape[0]} clients, {files.train.shape[1]} items; {PUBLISHED[data]}", flush=True)
    ids = np.concatenate([files.targets[:, None], files.others], axis=1)
    report("popularity", files.train.sum(0).A1[ids], files)
    ease = Ease()
    public = PublicInputs(np.arange(files.train.shape[1]).astype(str))
    scorer = ease.fit(train_alone(ease, files.train, public), public)
    report("ease", np.take_along_axis(scorer.scores(files.train), ids, axis=1), files)
    for sampler in [options.sampler] if options.sampler else ["leaky", "clean"]:
        start = time.perf_counter()
        is_barred = torch.from_numpy(files.train.toarray() > 0)
        if sampler == "leaky":
            is_barred[torch.arange(len(ids)), torch.from_numpy(ids[:, 0])] = True
        federation, rng = Federation.start(files, options.seed), torch.Generator().manual_seed(options.seed)
        for index in range(rounds):
            federation.round(files, is_barred, torch.from_numpy(ids), rng)
            if index % 10 == 9:
                report("pfedrec", federation.scores.numpy(), files, sampler=sampler, rounds=index + 1)
        taken = {"sampler": sampler, "rounds": rounds, "s_a_round": round((time.perf_counter() - start) / rounds, 2)}
        if rounds % 10:
            report("pfedrec", federation.scores.numpy(), files, **taken)
        report("no model", -federation.drawn.numpy()[np.arange(len(ids))[:, None], ids], files, **taken)


if __name__ == "__main__":
    main()
