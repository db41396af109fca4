"""A federation of five small shops for EASE: two rounds, the second with input arrays."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from fedrec.federation.terms import Terms
from fedrec.flower.engines import Federation
from fedrec.models.ease import Ease, EaseSettings
from fedrec.models.recommender import PublicInputs, State

NUM_ITEMS = 30
ROSTER = ("ant", "bee", "cat", "dog", "elk")


@pytest.fixture
def federation() -> Federation:
    rng = np.random.default_rng(5)
    histories = []
    for num_shoppers in (12, 1, 40, 7, 25):
        bought = rng.random((num_shoppers, NUM_ITEMS)) < rng.random(NUM_ITEMS) / 3
        histories.append(sparse.csr_matrix(bought.astype(np.float32)))
    model = Ease(EaseSettings(max_items=20, shopper_exponent=0.5))
    public = PublicInputs(np.array([f"item-{i:03d}" for i in range(NUM_ITEMS)]))
    return Federation(model, public, Terms(ROSTER, min_shops=2, run_id="test"), histories)


def train_plainly(federation: Federation) -> State:
    """The same arithmetic in a plain loop: the oracle for every engine."""
    model, state, index = federation.model, {}, 0
    while (spec := model.plan_round(index, state, federation.public)) is not None:
        total = np.zeros(spec.layout.size)
        for rows in federation.histories:
            total += model.contributions(spec, rows).total(np.ones(rows.shape[0]))
        state = model.advance(spec, state, total, federation.public)
        index += 1
    return state


@pytest.fixture
def plain_state(federation: Federation) -> State:
    return train_plainly(federation)
