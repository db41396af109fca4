"""Audits of local updates under a promise: what S noisy steps in a shop let out, and how far one shopper moves a step.

A shop's steps stay inside; what leaves is computed from their noisy sums, the plan and declared numbers alone. So the
noise is audited by the update that tells most of the sums: crafted shoppers, one an item, bought by coins and put
through a whole shop (events, histories, clip, grid, noise, ledger, release), whose model lets the plain sum of its S
noisy sums out. Of S sums of the same vectors that sum is all that an attacker can use, and it shows mu = sqrt(S) /
sigma, which is what the accountants count for S steps: the estimate must lie around the epsilon *that the shop's ledger
says was spent*. A real model's update (Adam, many rounds) lets out less, but by how much no attack tells with so few
runs: it is covered by being computed from the same sums. Steps that sample are audited here for their sensitivity
alone: the sum of their sums is not the best attack on them, so an estimate would lie below the claim whatever the noise
is; the amplification is the accountants' (three of them, which must agree).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd

from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.plan import RoundPlan
from fedrec.federation.release import MakeNoise, PrivateDoor
from fedrec.federation.shop_side import Contribution, contribute_on_grid
from fedrec.federation.terms import MOST_SHOPPERS_OF_A_STEP, Terms
from fedrec.models import load_model
from fedrec.models.recommender import LocalStepsModel, PublicInputs, Recommender
from fedrec.privacy import accounting
from fedrec.privacy.audit import moved_by
from fedrec.privacy.calibration import calibrate
from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.privacy.ledger import Budget, Ledger
from fedrec.privacy.noise import SecureNoise
from fedrec.privacy.spec import Mode
from fedrec.shop.node import IN_MEMORY, shop_nodes
from fedrec.simulation.audit_claim import (
    SMALL_CROWD,
    AuditSettings,
    Finding,
    item_name,
    item_positions,
    noise_finding,
)
from fedrec.simulation.crafted import CraftedSteps, crafted_names, histories

STEPS = {"private_rounds": "local-update", "private_steps": 4, "private_local_steps": 2, "device": "cpu"}
"""Settings of the neural model whose steps in a shop are audited: two updates of two steps."""


def steps_in_shops() -> Recommender:
    """A neural model that learns by local updates."""
    return load_model("smallae", STEPS)


def audit_local_noise(
    settings: AuditSettings, *, make_noise: MakeNoise = SecureNoise, model: CraftedSteps | None = None
) -> Finding:
    """Crafted shoppers through a whole shop's noisy steps: the epsilon they show against the one in its ledger.

    Args:
        settings: the claim, in mode local, as the steps of a shop are.
        make_noise: the real source, but in tests.
        model: of the crafted rows, but in tests.
    """
    model = model or CraftedSteps()
    canaries = min(settings.canaries, MOST_SHOPPERS_OF_A_STEP)
    is_inside = np.random.default_rng(settings.seed).random(canaries) < 0.5
    public = item_positions(canaries)
    spec = replace(settings.spec(max_shoppers=max(canaries, SMALL_CROWD)), mode=Mode.LOCAL, min_shops=1)
    schedule = calibrate(model.release_requests(), spec)
    terms = Terms(("shop-00",), 1, "audit of steps", privacy=spec, schedule=schedule, shop_shoppers=(SMALL_CROWD,))
    rows = histories(_one_item_each(np.flatnonzero(is_inside)), public)
    node = shop_nodes(model.trained, public, terms, [rows], make_noise=make_noise)[0]
    run = Coordinator(model.trained, public, terms)
    while (plan := run.next_plan()) is not None:
        run.receive(node.name, node.answer(plan).to_bytes())
        run.close()
    assert node.ledger is not None  # under a privacy spec every node has one
    node.ledger.verify()
    weights = [schedule[index].noise_multiplier ** -2 for index in range(len(model.rounds))]
    scores = np.sum([run.state[name] * weight for name, weight in zip(model.rounds, weights, strict=True)], axis=0)
    return noise_finding(
        f"local updates ({canaries:,} crafted shoppers)",
        scores,
        is_inside,
        claimed=node.ledger.spent().epsilon,
        delta=spec.delta,
        mu=accounting.gdp_mu(schedule),
    )


def moved_in_steps(model: Recommender, plan: RoundPlan, events: pd.DataFrame, public: PublicInputs) -> dict[str, float]:
    """How far each crafted shopper moves each noisy sum of a local update, as part of what she may.

    The steps are a shop's own, through the door: each is taken at the arrays that the noisy sums before it led to.

    Args:
        model: asks for the sums; a `LocalStepsModel`.
        plan: a round of local updates.
        events: of a shop, with the shoppers of `crafted_names`.
        public: its items.
    """
    names = np.unique(events["shopper"].to_numpy(str))
    draws = Draws.seeded(f"audit of round {plan.index}", shopper_digests(names))
    whole = histories(events, public)
    without = {name: histories(events[events["shopper"] != name], public) for name in crafted_names(events)}
    bound = plan.terms.shopper_bound(plan.index) / plan.terms.grid(plan.index).unit
    moved: dict[str, float] = {}

    def sum_of(step: RoundPlan, number: int) -> Contribution:
        of_step = draws.of(f"step {number}")
        found = contribute_on_grid(model, step, whole, of_step)
        for name, rows in without.items():
            rest = contribute_on_grid(model, step, rows, of_step.take(np.flatnonzero(names != name)))
            place = f"{plan.index} {plan.spec.name}, step {number}: {name}"
            moved[place] = moved_by(found.values, rest.values, bound)
        return found

    spec = plan.terms.privacy
    assert spec is not None  # local updates without one have no bound to audit
    ledger = Ledger.open(IN_MEMORY, plan.terms.roster[0], budget=Budget(spec.epsilon, spec.delta))
    PrivateDoor(plan, ledger, SecureNoise).release_update(cast(LocalStepsModel, model), sum_of)
    return moved


def _one_item_each(items: np.ndarray) -> pd.DataFrame:
    """Events of one shopper an item."""
    names = [item_name(int(item)) for item in items]
    columns: dict[str, Any] = {"shop": "shop-00", "shopper": [f"canary-{name}" for name in names], "item": names}
    return pd.DataFrame({**columns, "timestamp": np.arange(len(items), dtype=np.float64)})
