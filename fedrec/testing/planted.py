"""A small world with known structure, and federated training in plain arithmetic: what the contracts test with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from fedrec.models.recommender import (
    GradientModel,
    LocalModel,
    PublicInputs,
    Recommender,
    RoundKind,
    RoundSpec,
    State,
)
from fedrec.privacy.draws import Draws, shopper_digests

_MAX_ROUNDS = 10_000


@dataclass(frozen=True)
class PlantedWorld:
    """Shoppers who buy inside one block of items, and public content that names the block of most items.

    Attributes:
        public: item space.
        histories: float32 CSR, (num_shoppers, num_items), 1 where bought.
        blocks: int64, (num_items,); block of each item.
        tastes: int64, (num_shoppers,); block of each shopper.
    """

    public: PublicInputs
    histories: sparse.csr_matrix
    blocks: np.ndarray
    tastes: np.ndarray


def plant_world(
    *, num_shoppers: int = 90, num_items: int = 33, num_blocks: int = 3, seed: int = 0, has_content: bool = True
) -> PlantedWorld:
    """Blocks of items, each shopper with about half of one block and, one time in five, one item of another.

    Args:
        num_shoppers: rows.
        num_items: columns.
        num_blocks: items belong to block (position mod num_blocks).
        seed: of the draws.
        has_content: give items the features of their block; every seventh item has none.
    """
    rng = np.random.default_rng(seed)
    blocks = np.arange(num_items) % num_blocks
    tastes = rng.integers(0, num_blocks, num_shoppers)
    is_bought = (blocks == tastes[:, None]) & (rng.random((num_shoppers, num_items)) < 0.5)
    strays = np.flatnonzero(rng.random(num_shoppers) < 0.2)
    is_bought[strays, rng.integers(0, num_items, len(strays))] = True
    content = None
    if has_content:
        known = np.flatnonzero(np.arange(num_items) % 7 != 6)
        ones = np.ones(len(known), np.float32)
        content = sparse.csr_matrix((ones, (known, blocks[known])), shape=(num_items, num_blocks))
    items = np.array([f"item-{place:04d}" for place in range(num_items)], dtype=object)
    histories = sparse.csr_matrix(is_bought.astype(np.float32))
    return PlantedWorld(PublicInputs(items, content), histories, blocks, tastes)


def share_of_wins(world: PlantedWorld, scores: np.ndarray) -> float:
    """How often a new item of a shopper's own block beats one of another: mean over shoppers, 1/2 = by chance.

    Args:
        scores: (num_shoppers, num_items).
    """
    is_in = world.blocks == world.tastes[:, None]
    is_new = ~(world.histories.toarray() > 0)
    wins = [
        np.mean(row[good][:, None] > row[bad][None, :])
        for row, good, bad in zip(scores, is_in & is_new, ~is_in & is_new, strict=True)
        if good.any() and bad.any()
    ]
    return float(np.mean(wins))


def train_federated(model: Recommender, shops: Sequence[sparse.csr_matrix], public: PublicInputs) -> State:
    """Run all rounds with the shops' sums added, in plain arithmetic and without any messages."""
    state: State = {}
    for index in range(_MAX_ROUNDS):
        spec = model.plan_round(index, state, public)
        if spec is None:
            return state
        total = np.zeros(spec.layout.size)
        for place, rows in enumerate(shops):
            total += _answer(model, spec, rows, Draws.seeded(f"{place}/{index}", shopper_digests(range(rows.shape[0]))))
        state = model.advance(spec, state, total, public)
    raise AssertionError(f"training did not end after {_MAX_ROUNDS} rounds: plan_round must return None in the end")


def _answer(model: Recommender, spec: RoundSpec, rows: sparse.csr_matrix, draws: Draws) -> np.ndarray:
    """A shop's vector of a round, unclipped."""
    if isinstance(model, LocalModel) and spec.kind is RoundKind.LOCAL_UPDATE:
        return model.local_update(spec, rows, draws)
    if isinstance(model, GradientModel) and spec.kind is RoundKind.GRADIENT_STEP:
        sampled = np.flatnonzero(draws.of("sample").coins(spec.sampling_rate))
        gradients = model.gradients(spec, rows[sampled], draws.of("gradient").take(sampled))
        return gradients.total(np.ones(len(sampled)))
    return model.contributions(spec, rows).total(np.ones(rows.shape[0]))
