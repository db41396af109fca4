"""What a shop's lists tell of a shopper inside the shop: a co-purchase inference attack on both serving modes.

The attacker is a customer of the same shop. He knows all that his target bought but one purchase, of which he only
knows that it is one of two items; he reads the list next to each of her other items before and after, and says which
of the two rose. ``raw`` lists mix the shop's own pairs in and promise nothing inside the shop; ``joint_dp`` lists come
from what was released with noise and the reader's own history alone.

**Source:** Calandrino, Kilzer, Narayanan, Felten, Shmatikov 2011, "You Might Also Like: Privacy Risks of Collaborative
Filtering", IEEE S&P, section 4.1 (related-items lists). Deviation: two candidates and a coin instead of the whole
catalogue, so that the share of right answers can be held against what the privacy spec allows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.release import MakeNoise
from fedrec.federation.terms import Terms
from fedrec.models import load_model, private_model, private_schedule
from fedrec.models.recommender import PublicInputs, Recommender, State
from fedrec.privacy.accounting import gdp_mu
from fedrec.privacy.audit import accuracy, best_exchange_accuracy
from fedrec.privacy.mechanisms import outlook
from fedrec.privacy.noise import SecureNoise
from fedrec.shop.node import shop_nodes
from fedrec.shop.personalise import mixed_scorer
from fedrec.simulation.audit_claim import AuditSettings, Finding, item_positions

SERVING_MODES = {"raw": 0.5, "joint_dp": 1.0}
"""Weight of the released statistics in each mode; the shop's own raw pairs have the rest."""

_ITEMS, _SHOPPERS, _HISTORY, _TASTES = 120, 60, 10, 8
_LIST = 30
"""Items that a list shows."""
_TARGETS = 20
"""Per shop and trial; the purchases of the others hide each one's, as in a shop."""


@dataclass(frozen=True)
class _Trial:
    """One shop before and after its targets' last purchases."""

    before: sparse.csr_matrix
    after: sparse.csr_matrix
    others: list[sparse.csr_matrix]
    candidates: np.ndarray
    choice: np.ndarray


def audit_lists(
    settings: AuditSettings,
    *,
    trials: int = 16,
    model: str = "ease",
    serving: Mapping[str, float] = SERVING_MODES,
    make_noise: MakeNoise = SecureNoise,
) -> list[Finding]:
    """How often the attacker is right, in each serving mode.

    Args:
        settings: the claim.
        trials: shops attacked, with twenty targets each.
        model: what the lists come from.
        serving: modes and their weights; others than `SERVING_MODES` are for tests.
        make_noise: the real source, but in tests.
    """
    rng = np.random.default_rng(settings.seed)
    correct = dict.fromkeys(serving, 0)
    mu = 0.0
    for _ in range(trials):
        trial = _make_trial(rng, settings.min_shops)
        first, state_before, mu = _train(settings, model, [trial.before, *trial.others], make_noise)
        second, state_after, mu = _train(settings, model, [trial.after, *trial.others], make_noise)
        for mode, share in serving.items():
            before = _ranks(first, state_before, trial.before, share)
            after = _ranks(second, state_after, trial.after, share)
            correct[mode] += _right_answers(trial, before - after, rng)
    limit = best_exchange_accuracy(mu)
    return [_finding(mode, number, trials * _TARGETS, limit) for mode, number in correct.items()]


def _finding(mode: str, correct: int, targets: int, limit: float) -> Finding:
    found = accuracy(correct, targets)
    is_promised = mode == "joint_dp"
    is_passed = bool(found.low <= limit) if is_promised else None
    words = {True: "as claimed", False: "tells more than claimed", None: "nothing is promised inside a shop"}
    return Finding(
        audit=f"lists, serving {mode}",
        claimed=f"right <= {limit:.0%} (a coin: 50%)" if is_promised else "none",
        found=f"right {found.estimate:.0%} ({found.low:.0%} to {found.high:.0%}) of {targets} targets",
        is_passed=is_passed,
        verdict=words[is_passed],
        figures={
            "accuracy": found.estimate,
            "accuracy_low": found.low,
            "accuracy_high": found.high,
            "limit": limit if is_promised else None,
            "targets": targets,
        },
    )


def _make_trial(rng: np.random.Generator, num_shops: int) -> _Trial:
    tastes = rng.dirichlet(np.full(_ITEMS, 0.15), size=_TASTES)
    tables = [_shoppers(rng, tastes) for _ in range(num_shops)]
    before = tables[0].toarray()
    unknown = [np.flatnonzero(before[target] == 0) for target in range(_TARGETS)]
    candidates = np.array([rng.choice(items, 2, replace=False) for items in unknown])
    choice = rng.integers(0, 2, _TARGETS)
    after = before.copy()
    after[np.arange(_TARGETS), candidates[np.arange(_TARGETS), choice]] = 1
    return _Trial(sparse.csr_matrix(before), sparse.csr_matrix(after), tables[1:], candidates, choice)


def _shoppers(rng: np.random.Generator, tastes: np.ndarray) -> sparse.csr_matrix:
    """Histories over all items, each of two tastes and a little of everything."""
    table = np.zeros((_SHOPPERS, _ITEMS), np.float32)
    for row in table:
        chances = tastes[rng.integers(0, _TASTES, 2)].mean(axis=0) + 0.5 / _ITEMS
        row[rng.choice(_ITEMS, size=_HISTORY, replace=False, p=chances / chances.sum())] = 1
    return sparse.csr_matrix(table)


def _train(
    settings: AuditSettings, name: str, tables: list[sparse.csr_matrix], make_noise: MakeNoise
) -> tuple[Recommender, State, float]:
    """A whole private run through the door: the model, what it released, and mu of its noise."""
    public, base = item_positions(_ITEMS), load_model(name)
    num_shoppers = _SHOPPERS * len(tables)
    spec = replace(settings.spec(max_shoppers=10 * num_shoppers), public_shoppers=_public(settings, num_shoppers))
    schedule = private_schedule(base, spec, len(tables))
    model = private_model(base, outlook(schedule, spec, len(tables)), public)
    terms = Terms(settings.roster[: len(tables)], settings.min_shops, "audit of lists", privacy=spec, schedule=schedule)
    run = Coordinator(model, public, terms)
    nodes = shop_nodes(model, public, terms, tables, make_noise=make_noise)
    while (plan := run.next_plan()) is not None:
        for node in nodes:
            run.receive(node.name, node.answer(plan).to_bytes())
        run.close()
    mu = gdp_mu(schedule)
    assert mu is not None  # nothing of it is sampled
    return model, run.state, mu


def _public(settings: AuditSettings, num_shoppers: int) -> int:
    """As many declared shoppers as there are, if delta allows."""
    return min(num_shoppers, settings.spec(max_shoppers=10 * num_shoppers).public_shoppers)


def _ranks(model: Recommender, state: State, table: sparse.csr_matrix, share: float) -> np.ndarray:
    """Place of every item (column) in the list next to every item (row), int64 (items, items); the rest share one."""
    public = PublicInputs(item_positions(_ITEMS).items)
    scorer = mixed_scorer(model, state, np.arange(_ITEMS), table, public, global_share=share)
    scores = np.array(scorer.scores(sparse.identity(_ITEMS, np.float32, format="csr")), np.float64)
    np.fill_diagonal(scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.empty(order.shape, np.int64)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(_ITEMS), order.shape), axis=1)
    return np.minimum(ranks, _LIST)


def _right_answers(trial: _Trial, rises: np.ndarray, rng: np.random.Generator) -> int:
    """For each target the candidate that rose most in the lists next to what she is known to have; a coin for ties."""
    right = 0
    for target, pair in enumerate(trial.candidates):
        known = trial.before[target].indices
        first, second = (int(rises[known, item].sum()) for item in pair)
        said = int(second > first) if first != second else int(rng.integers(0, 2))
        right += int(said == trial.choice[target])
    return right
