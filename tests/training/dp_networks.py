"""Small networks of the kinds that are trained in private, and per-shopper gradients by torch.func as their oracle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

from fedrec.privacy.draws import Draws
from fedrec.training.layer_rules import SparseLinear, TiedAutoencoder
from fedrec.training.network import Batch, Network, dense, to_tensor

NUM_ITEMS = 13


class Dense(Network):
    """Rows of ones; the loss is the negative log-likelihood of a shopper's items."""

    def batch(self, histories: sparse.csr_matrix, draws: Draws | None, vectors: Tensor | None = None) -> Batch:
        return {"rows": dense(histories, self)}

    def likelihood(self, batch: Batch, scores: Tensor) -> Tensor:
        return -(functional.log_softmax(scores, dim=1) * batch["rows"]).sum(1)


class Vae(Dense):
    """Encoder with mean and log-variance, noise from the draws, decoder."""

    def __init__(self, num_items: int = NUM_ITEMS, *, first: type[nn.Linear] = nn.Linear) -> None:
        super().__init__(num_items)
        self.encode = first(num_items, 7)
        self.latent = nn.Linear(7, 2 * 3)
        self.decode = nn.Linear(3, 5)
        self.out = nn.Linear(5, num_items)

    def batch(self, histories: sparse.csr_matrix, draws: Draws | None, vectors: Tensor | None = None) -> Batch:
        noise = np.zeros((histories.shape[0], 3)) if draws is None else draws.normals(3)
        return {"rows": dense(histories, self), "noise": to_tensor(noise, self)}

    def forward(self, batch: Batch) -> Tensor:
        mean, log_variance = self.latent(torch.tanh(self.encode(batch["rows"]))).chunk(2, dim=1)
        code = mean + batch["noise"] * (0.5 * log_variance).exp()
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
        return self.likelihood(batch, self.out(torch.tanh(self.decode(code)))) + divergence


class Normed(Dense):
    """LayerNorm of rows and of sequences, with and without bias."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__(NUM_ITEMS)
        self.first = nn.Linear(NUM_ITEMS, 6)
        self.norm = nn.LayerNorm(6)
        self.steps = nn.Linear(2, 4)
        self.step_norm = nn.LayerNorm((3, 4), bias=bias)
        self.out = nn.Linear(12, NUM_ITEMS)

    def forward(self, batch: Batch) -> Tensor:
        hidden = self.norm(torch.tanh(self.first(batch["rows"]))).view(-1, 3, 2)
        return self.likelihood(batch, self.out(self.step_norm(torch.tanh(self.steps(hidden))).flatten(1)))


class Tied(Dense):
    """An autoencoder whose decoder is its encoder, transposed."""

    def __init__(self) -> None:
        super().__init__(NUM_ITEMS)
        self.ends = TiedAutoencoder(NUM_ITEMS, 4)
        self.between = nn.Linear(4, 4)

    def forward(self, batch: Batch) -> Tensor:
        code = self.between(torch.tanh(self.ends.encode(batch["rows"])))
        return self.likelihood(batch, self.ends.decode(code))


class Pairs(Network):
    """NeuMF: private vectors, two item tables, a tower over lists; with ids twice in a list, and padding."""

    num_shopper_values = 6

    def __init__(self, *, padding: bool = False, repeats: bool = True, calls: int = 1) -> None:
        super().__init__(NUM_ITEMS)
        self.repeats, self.calls = repeats, calls
        self.product = nn.Embedding(NUM_ITEMS + 1, 3, padding_idx=NUM_ITEMS if padding else None)
        self.tower_items = nn.Embedding(NUM_ITEMS + 1, 3)
        self.tower = nn.Linear(6, 4)
        self.output = nn.Linear(7, 1)

    def batch(self, histories: sparse.csr_matrix, draws: Draws | None, vectors: Tensor | None = None) -> Batch:
        lengths = np.diff(histories.indptr)
        longest = int(lengths.max(initial=0))
        ids = np.full((histories.shape[0], 2 * longest + 2), NUM_ITEMS)
        signs = np.zeros(ids.shape)
        for row, length in enumerate(lengths):
            bought = np.sort(histories.indices[histories.indptr[row] : histories.indptr[row + 1]])
            others = (bought + 1) % NUM_ITEMS if self.repeats else np.setdiff1d(np.arange(NUM_ITEMS), bought)[:2]
            listed = np.concatenate([bought, others])
            ids[row, : len(listed)] = listed
            signs[row, : len(listed)] = np.where(np.arange(len(listed)) < length, 1.0, -1.0)
        assert vectors is not None
        return {"ids": torch.from_numpy(ids), "signs": to_tensor(signs, self), "vectors": vectors.to(self.floating)}

    def forward(self, batch: Batch) -> Tensor:
        scores = [self.scores_of(ids, batch["vectors"]) for ids in batch["ids"].tensor_split(self.calls, dim=1)]
        return -(functional.logsigmoid(torch.cat(scores, dim=1) * batch["signs"]) * batch["signs"].abs()).sum(1)

    def scores_of(self, ids: Tensor, vectors: Tensor) -> Tensor:
        mine, other = vectors[:, None, :].split(3, dim=2)
        product = mine * self.product(ids)
        items = self.tower_items(ids)
        tower = torch.tanh(self.tower(torch.cat([other.expand_as(items), items], dim=2)))
        return self.output(torch.cat([product, tower], dim=2)).squeeze(2)


class Wide(Network):
    """Two places a shopper in a wide layer: too much to write out."""

    def __init__(self) -> None:
        super().__init__(NUM_ITEMS)
        self.wide = nn.Linear(NUM_ITEMS, 11)

    def batch(self, histories: sparse.csr_matrix, draws: Draws | None, vectors: Tensor | None = None) -> Batch:
        return {"rows": dense(histories, self)}

    def forward(self, batch: Batch) -> Tensor:
        both = torch.stack([batch["rows"], 0.3 + batch["rows"].flip(1)], dim=1)
        return torch.tanh(self.wide(both)).square().sum((1, 2))


NETWORKS: dict[str, Callable[[], Network]] = {
    "vae": Vae,
    "vae, sparse first layer": lambda: Vae(first=SparseLinear),
    "layer norm": Normed,
    "layer norm, no bias": lambda: Normed(bias=False),
    "tied": Tied,
    "neumf": Pairs,
    "neumf, distinct ids": lambda: Pairs(repeats=False),
    "neumf, padding": lambda: Pairs(padding=True),
    "neumf, two calls": lambda: Pairs(calls=2),
    "two places": Wide,
}


def build(name: str, seed: int = 0) -> Network:
    """A network in float64 with weights of a usual size."""
    torch.manual_seed(seed)
    return NETWORKS[name]().double()


def shoppers(num_shoppers: int, seed: int = 0) -> tuple[sparse.csr_matrix, Draws, Tensor]:
    """Histories (the first one empty), draws and private vectors."""
    rng = np.random.default_rng(seed)
    bought = rng.random((num_shoppers, NUM_ITEMS)) < rng.uniform(0.1, 0.6, (num_shoppers, 1))
    bought[:1] = False
    histories = sparse.csr_matrix(bought.astype(np.float32))
    digests = rng.integers(0, 256, (num_shoppers, 16), dtype=np.uint8)
    vectors = torch.from_numpy(rng.standard_normal((num_shoppers, Pairs.num_shopper_values)))
    return histories, Draws(bytes(32), digests), vectors


def oracle(network: Network, batch: Batch) -> np.ndarray:
    """float64, (num_shoppers, num_values): every shopper's gradient, by torch.func from a batch of one each."""
    parameters = {name: values.detach() for name, values in network.named_parameters()}

    def loss(values: dict[str, Tensor], one: Batch) -> Tensor:
        return torch.func.functional_call(network, values, ({name: held[None] for name, held in one.items()},)).sum()

    rows = []
    for row in range(len(next(iter(batch.values())))):
        gradients = torch.func.grad(loss)(parameters, {name: held[row] for name, held in batch.items()})
        rows.append(torch.cat([gradient.flatten() for gradient in gradients.values()]))
    return torch.stack(rows).numpy()
