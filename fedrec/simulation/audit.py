"""Audits of the door: what leaves the shops is drawn for real, attacked, and held against the epsilon claimed.

Every release here passes the same `ShopNode`, ledger, grid, noise, `Release` and `Coordinator` as in a run. Two things
can be exchanged, so that tests can show that a broken build is caught: where noise comes from, and the models.

1. *Noise*: crafted vectors at the clip's output, one a coordinate, put in by coins, in two releases of a run. Exactly
   n_min shops answer, and t of them tell the attacker what they sent.
2. *Equal data*: the same data released twice, and by two shops, differ by independent noise or the noise is none.
3. *Shoppers*: crafted ones in the events table, of one item and of thousands and of a hundred times the clip norm; the
   vector before noise moves by at most the sensitivity when one is taken out and everything is computed again.
4. *Local updates* (`fedrec.simulation.audit_local`): both again, for steps that a shop takes by itself.
5. *Lists* (`fedrec.simulation.audit_serving`): what a shop's lists tell of a shopper, in both serving modes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import sparse

from fedrec.data.events import clean
from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.plan import RoundPlan
from fedrec.federation.release import MakeNoise
from fedrec.federation.shop_side import contribute_on_grid
from fedrec.federation.terms import Terms
from fedrec.models import load_model, private_model, private_schedule
from fedrec.models.recommender import PublicInputs, Recommender, RoundKind, State
from fedrec.privacy import accounting
from fedrec.privacy.audit import (
    moved_by,
    variance_ratio,
)
from fedrec.privacy.calibration import calibrate
from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.privacy.mechanisms import outlook
from fedrec.privacy.noise import SecureNoise
from fedrec.privacy.spec import Mode, PrivacySpec
from fedrec.shop.node import shop_nodes
from fedrec.simulation.audit_claim import SMALL_CROWD, AuditSettings, Finding, item_positions, noise_finding
from fedrec.simulation.audit_local import audit_local_noise, moved_in_steps, steps_in_shops
from fedrec.simulation.audit_serving import audit_lists
from fedrec.simulation.audit_shops import AuditedShops
from fedrec.simulation.crafted import Crafted, crafted_events, crafted_names, histories

AUDITED_MODELS = ("popularity", "itemknn", "ease", "ials")
"""Models whose private variants the audit of shoppers trains."""
_LOUD = 100.0


def run_audits(
    settings: AuditSettings,
    *,
    models: Sequence[str] = AUDITED_MODELS,
    make_noise: MakeNoise = SecureNoise,
    on_start: Callable[[str], None] = lambda audit: None,
) -> list[Finding]:
    """All audits of a build.

    Args:
        settings: the claim.
        models: whose shoppers' bounds are tried.
        make_noise: the real source, but in tests.
        on_start: told what is about to be audited.
    """
    on_start("noise")
    findings = [audit_noise(settings, make_noise=make_noise)]
    on_start("equal data")
    findings += audit_equal_data(settings, make_noise=make_noise)
    on_start("clip")
    findings.append(audit_clip(settings))
    for model in models:
        on_start(f"crafted shoppers, {model}")
        findings.append(audit_shoppers(settings, model))
    on_start("local updates")
    findings += [audit_local_noise(settings, make_noise=make_noise), audit_shoppers(settings, steps_in_shops())]
    on_start("lists")
    return findings + audit_lists(settings, make_noise=make_noise)


def audit_noise(
    settings: AuditSettings, *, make_noise: MakeNoise = SecureNoise, model: Crafted | None = None
) -> Finding:
    """Crafted vectors through the real noise: the epsilon they show against the claimed one.

    Args:
        settings: the claim.
        make_noise: the real source, but in tests.
        model: of the crafted vectors, but in tests.
    """
    model = model or Crafted()
    rng = np.random.default_rng(settings.seed)
    is_inside = rng.random(settings.canaries) < 0.5
    canaries = sparse.identity(settings.canaries, np.float32, format="csr")[is_inside]
    spec = settings.spec(max_shoppers=max(settings.canaries, SMALL_CROWD))
    terms = _terms(settings, spec, model)
    state, known = _attackers_view(settings, terms, model, canaries, make_noise)
    # The best of tests between Gaussians: every release weighs 1 / its variance.
    scores = sum((state[name] - known[name]) / _sigma(terms, i) ** 2 for i, name in enumerate(model.rounds))
    return noise_finding(
        f"noise ({settings.canaries:,} crafted vectors)",
        np.asarray(scores),
        is_inside,
        claimed=settings.epsilon,
        delta=settings.delta,
        mu=accounting.gdp_mu(terms.schedule),
    )


def audit_equal_data(
    settings: AuditSettings, *, make_noise: MakeNoise = SecureNoise, model: Crafted | None = None
) -> list[Finding]:
    """The same data released in two rounds, and by two shops, through the real noise."""
    model = replace(model or Crafted(), rounds=("once", "again"), shares=(0.5, 0.5))
    terms = _terms(settings, settings.spec(max_shoppers=SMALL_CROWD), model)
    public = item_positions(settings.canaries)
    row = sparse.csr_matrix(np.full((1, settings.canaries), settings.canaries**-0.5, np.float32))
    shops = AuditedShops(model, public, terms, [row] * settings.num_shops, make_noise)
    sent = []
    while (plan := shops.next_round(settings.num_shops)) is not None:
        sent.append([shops.vector(place, plan) for place in (0, 1)])
    sd = terms.shop_noise_units(0) * terms.grid(0).unit
    pairs = {"in two rounds": sent[0][0] - sent[1][0], "by two shops": sent[0][0] - sent[0][1]}
    return [_equal_data_finding(how, differences, sd) for how, differences in pairs.items()]


def _equal_data_finding(how: str, differences: np.ndarray, sd: float) -> Finding:
    ratio = variance_ratio(differences, sd)
    is_passed = ratio.holds(1.0)
    verdict = "as claimed" if is_passed else "less noise than claimed" if ratio.high < 1 else "more noise than claimed"
    if ratio.estimate == 0:
        verdict = "no noise, or the same twice"
    return Finding(
        audit=f"equal data {how}",
        claimed="variance 2 sigma^2",
        found=f"{2 * ratio.estimate:.3f} ({2 * ratio.low:.3f} to {2 * ratio.high:.3f}) sigma^2",
        is_passed=is_passed,
        verdict=verdict,
        figures={"ratio": ratio.estimate, "ratio_low": ratio.low, "ratio_high": ratio.high},
    )


def audit_shoppers(settings: AuditSettings, model: Recommender | str) -> Finding:
    """Crafted shoppers in the events table: how far each moves what a shop would release, before noise.

    Args:
        settings: the claim.
        model: one that can be trained privately, or its name.
    """
    base = load_model(model) if isinstance(model, str) else model
    public = item_positions(settings.num_items)
    spec = replace(settings.spec(max_shoppers=SMALL_CROWD), mode=Mode.LOCAL, min_shops=1)
    schedule = private_schedule(base, spec, 1)
    private = private_model(base, outlook(schedule, spec, 1), public)
    declared = (SMALL_CROWD,) if any(release.local_steps for release in schedule) else ()
    terms = Terms(("shop-00",), 1, "audit of shoppers", privacy=spec, schedule=schedule, shop_shoppers=declared)
    events = crafted_events(settings)
    crafted = crafted_names(events)
    moved: dict[str, float] = {}
    for plan in _plans(private, public, terms, histories(events, public)):
        if plan.spec.kind is RoundKind.LOCAL_UPDATE:
            moved |= moved_in_steps(private, plan, events, public)
            continue
        whole = _on_grid(private, plan, events, public)
        for name in crafted:
            rest = _on_grid(private, plan, events[events["shopper"] != name], public)
            bound = terms.shopper_bound(plan.index) / terms.grid(plan.index).unit
            moved[f"{plan.index} {plan.spec.name}: {name}"] = moved_by(whole, rest, bound)
    return _shopper_finding(base.name, moved)


def audit_clip(settings: AuditSettings, *, model: Crafted | None = None) -> Finding:
    """Crafted contributions of a hundred times the clip norm, before noise."""
    model = replace(model or Crafted(), factor=_LOUD)
    spec = replace(settings.spec(max_shoppers=SMALL_CROWD), mode=Mode.LOCAL, min_shops=1)
    terms = Terms(
        ("shop-00",), 1, "audit of the clip", privacy=spec, schedule=calibrate(model.release_requests(), spec)
    )
    public = item_positions(settings.num_items)
    rng = np.random.default_rng(settings.seed)
    rows = sparse.vstack(
        [
            sparse.csr_matrix(([1.0], ([0], [3])), shape=(1, settings.num_items)),
            sparse.csr_matrix(np.ones((1, settings.num_items))),
            sparse.csr_matrix(rng.normal(size=(3, settings.num_items))),
        ]
    ).tocsr()
    plan = Coordinator(model.trained, public, terms).next_plan()
    assert plan is not None  # `Crafted` has two rounds
    whole = contribute_on_grid(model.trained, plan, rows).values
    bound = terms.shopper_bound(0) / terms.grid(0).unit
    moved = {}
    for i in range(rows.shape[0]):
        rest = contribute_on_grid(model.trained, plan, rows[np.arange(rows.shape[0]) != i]).values
        moved[f"crafted {i}"] = moved_by(whole, rest, bound)
    return _shopper_finding(f"vectors of {_LOUD:g} C", moved)


def _on_grid(model: Recommender, plan: RoundPlan, events: pd.DataFrame, public: PublicInputs) -> np.ndarray:
    """What a shop with these events would release in a round, before noise; its shoppers' draws repeat themselves."""
    names = np.unique(clean(events)[0].table["shopper"].to_numpy(str))
    draws = Draws.seeded(f"audit of round {plan.index}", shopper_digests(names))
    return contribute_on_grid(model, plan, histories(events, public), draws).values


def _shopper_finding(name: str, moved: dict[str, float]) -> Finding:
    worst = max(moved, key=lambda who: moved[who])
    is_passed = bool(moved[worst] <= 1)
    return Finding(
        audit=f"crafted shoppers, {name}",
        claimed="moves <= 1 x the sensitivity",
        found=f"{moved[worst]:.6g} x",
        is_passed=is_passed,
        verdict="as claimed" if is_passed else f"moved too far by: {worst}",
        figures={"moved": moved},
    )


def _attackers_view(
    settings: AuditSettings, terms: Terms, model: Crafted, canaries: sparse.csr_matrix, make_noise: MakeNoise
) -> tuple[State, State]:
    """The sums of exactly n_min shops, and the colluders' parts of them (``local``: those of all others)."""
    public = item_positions(settings.canaries)
    nobody = sparse.csr_matrix((0, settings.canaries), dtype=np.float32)
    tables = [canaries] + [nobody] * (settings.num_shops - 1)
    shops = AuditedShops(model, public, terms, tables, make_noise)
    num_known = settings.colluders if settings.mode is Mode.DISTRIBUTED else settings.min_shops - 1
    known: State = {}
    while (plan := shops.next_round(settings.min_shops)) is not None:
        known[plan.spec.name] = np.zeros(plan.num_values)
        for place in range(settings.min_shops - num_known, settings.min_shops):
            known[plan.spec.name] += shops.vector(place, plan)
    return shops.run.state, known


def _plans(private: Recommender, public: PublicInputs, terms: Terms, rows: sparse.csr_matrix) -> Sequence[RoundPlan]:
    """All rounds' plans of a real run of one shop."""
    node = shop_nodes(private, public, terms, [rows])[0]
    run = Coordinator(private, public, terms)
    plans = []
    while (plan := run.next_plan()) is not None:
        plans.append(plan)
        run.receive(node.name, node.answer(plan).to_bytes())
        run.close()
    return plans


def _terms(settings: AuditSettings, spec: PrivacySpec, model: Crafted) -> Terms:
    schedule = calibrate(model.release_requests(), spec)
    return Terms(settings.roster, settings.min_shops, "audit", privacy=spec, schedule=schedule)


def _sigma(terms: Terms, index: int) -> float:
    return terms.schedule[index].noise_multiplier
