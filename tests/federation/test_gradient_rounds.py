"""Gradient steps of a federation: sampled, clipped, rounded, summed; and equal to central DP-SGD."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

from fedrec.errors import ConfigError, NoPrivateVariant, RoundRefused
from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.shop_side import contribute, contribute_on_grid
from fedrec.federation.terms import Terms
from fedrec.models import private_model, private_schedule
from fedrec.models.autoencoders import MultVae, MultVaeSettings
from fedrec.models.ncf import NcfSettings, NeuMf
from fedrec.models.popularity import Popularity
from fedrec.models.recommender import PublicInputs, RoundKind
from fedrec.models.smallae import SmallAe, SmallAeSettings
from fedrec.privacy.accounting import epsilon
from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.privacy.mechanisms import outlook
from fedrec.privacy.noise import SeededNoiseForTests
from fedrec.privacy.spec import Mode, PrivacySpec
from fedrec.shop.node import shop_nodes
from fedrec.training.autoencoders import MultDae as MultDaeNetwork
from fedrec.training.dp_sgd import ShopperGradients

from .no_noise import NoNoise

NUM_ITEMS, NUM_SHOPPERS, NUM_SHOPS = 60, 300, 3
PUBLIC = PublicInputs(np.array([f"item-{place:02d}" for place in range(NUM_ITEMS)]))
ROSTER = tuple(f"shop-{place}" for place in range(NUM_SHOPS))
SPEC = PrivacySpec(
    epsilon=8.0, delta=1e-5, mode=Mode.DISTRIBUTED, public_shoppers=300, max_shoppers=1000, min_shops=3, colluders=1
)
STEPS = {"private_steps": 4, "private_sampling_rate": 0.6, "device": "cpu"}
MODELS = {
    "smallae": SmallAe(SmallAeSettings(size=6, **STEPS)),
    "multvae": MultVae(MultVaeSettings(**STEPS)),
    "neumf": NeuMf(NcfSettings(fold_in_steps=5, **STEPS)),
}


def tables(seed=0):
    rng = np.random.default_rng(seed)
    rows = (rng.random((NUM_SHOPPERS, NUM_ITEMS)) < 0.15).astype(np.float32)
    ids = np.array([f"shopper-{place:03d}" for place in range(NUM_SHOPPERS)])
    return [(sparse.csr_matrix(rows[place::NUM_SHOPS]), ids[place::NUM_SHOPS]) for place in range(NUM_SHOPS)]


def private(model, spec=SPEC):
    schedule = private_schedule(model, spec, NUM_SHOPS)
    terms = Terms(ROSTER, spec.min_shops, "run", privacy=spec, schedule=schedule)
    return private_model(model, outlook(schedule, spec, NUM_SHOPS), PUBLIC), terms


def plans(trained, terms, **changes):
    """All plans of a run through the door."""
    rows, ids = zip(*tables(), strict=True)
    nodes = shop_nodes(trained, PUBLIC, terms, rows, shoppers=ids, **changes)
    run = Coordinator(trained, PUBLIC, terms)
    while (plan := run.next_plan()) is not None:
        for node in nodes:
            run.receive(node.name, node.answer(plan).to_bytes())
        yield plan, nodes
        run.close()
    assert np.isfinite(trained.fit(run.state, PUBLIC).scores(rows[0])).all()


@pytest.mark.parametrize("name", MODELS)
def test_a_run_of_gradient_steps_goes_through_the_door_and_is_charged(name):
    trained, terms = private(MODELS[name])
    kinds = []
    for plan, nodes in plans(trained, terms):
        kinds.append(plan.spec.kind)
        assert len(nodes[0].ledger.entries()) >= plan.index + 1
    assert kinds.count(RoundKind.GRADIENT_STEP) == 4
    assert len(kinds) == len(terms.schedule)


@pytest.mark.parametrize("name", MODELS)
def test_removing_one_shopper_moves_the_integers_by_at_most_the_sensitivity(name):
    trained, terms = private(MODELS[name])
    rows, ids = tables()[0]
    for plan, _ in plans(trained, terms):
        draws = Draws.seeded(f"test {plan.index}", shopper_digests(ids))
        bound = terms.shopper_bound(plan.index) / terms.grid(plan.index).unit
        whole = contribute_on_grid(trained, plan, rows, draws).values
        furthest = 0.0
        for gone in (0, 1, 2, 50, 99):
            rest = np.delete(np.arange(len(ids)), gone)
            without = contribute_on_grid(trained, plan, rows[rest], draws.take(rest)).values
            furthest = max(furthest, float(np.linalg.norm((whole - without).astype(float))))
        assert furthest <= bound
        if plan.spec.kind is RoundKind.GRADIENT_STEP:
            assert whole.any()


def test_a_shopper_who_joins_or_leaves_changes_no_other_shoppers_coin():
    _, ids = tables()[0]
    draws = Draws.seeded("coins", shopper_digests(ids))
    coins = draws.of("sample").coins(0.5)
    rest = np.delete(np.arange(len(ids)), 3)
    np.testing.assert_array_equal(draws.take(rest).of("sample").coins(0.5), coins[rest])


def test_private_coins_are_fresh_for_every_plan_and_repeat_themselves_in_research_mode():
    trained, terms = private(MODELS["smallae"])
    rows, ids = zip(*tables(), strict=True)
    node = shop_nodes(trained, PUBLIC, terms, rows, shoppers=ids)[0]
    plan = Coordinator(trained, PUBLIC, terms).next_plan()
    first, second = (node._draws(plan) for _ in range(2))
    assert first.key != second.key
    open_plan = Coordinator(trained, PUBLIC, Terms(ROSTER, run_id="run")).next_plan()
    assert node._draws(open_plan).key == node._draws(open_plan).key


def test_one_step_of_the_federation_is_one_step_of_central_dp_sgd():
    """Noise off: the shops' integers add up to the clipped gradients of all sampled shoppers in one table."""
    trained, terms = private(MODELS["multvae"])
    _, ids = zip(*tables(), strict=True)
    keys = [bytes([place]) * 32 for place in range(NUM_SHOPS)]
    for plan, nodes in plans(trained, terms, make_noise=NoNoise):
        if plan.spec.kind is not RoundKind.GRADIENT_STEP:
            continue
        grid, summed, central = terms.grid(plan.index), 0, []
        for place, node in enumerate(nodes):
            draws = Draws(keys[place], shopper_digests(ids[place]))
            summed = summed + contribute_on_grid(trained, plan, node.histories, draws).values
            sampled = np.flatnonzero(draws.of("sample").coins(plan.spec.sampling_rate))
            central.append((node.histories[sampled], draws.of("gradient").take(sampled)))
        inputs = dict(plan.spec.inputs)
        network = trained.network_with({k: v for k, v in inputs.items() if k != "covered"}, len(inputs["covered"]))
        # Each shop's draws have a key of their own: the union is summed shop by shop, by the other engine, which
        # does not know the sparse first layer.
        first = network.encoder[0]
        network.encoder[0] = nn.Linear(first.in_features, first.out_features)
        network.encoder[0].load_state_dict(first.state_dict())
        expected = np.zeros(plan.num_values)
        lowered = terms.shopper_bound(plan.index) * (1 - 2.0**-10) - np.sqrt(plan.num_values) * grid.unit
        for some, draws in central:
            covered = some[:, inputs["covered"]]
            gradients = ShopperGradients(network.double(), covered, draws, engine="opacus")
            expected += gradients.clipped(lowered)[0]
        assert np.abs(summed * grid.unit - expected).max() <= NUM_SHOPS * grid.unit


def test_without_noise_and_clip_a_research_step_is_the_plain_gradient():
    trained, _ = private(MODELS["smallae"])
    terms = Terms(ROSTER, run_id="run")
    rows, ids = tables()[0]
    steps = [plan for plan, _ in plans(trained, terms) if plan.spec.kind is RoundKind.GRADIENT_STEP]
    for plan in steps:
        draws = Draws.seeded("x", shopper_digests(ids))
        values = contribute(trained, plan, rows, draws).values
        clipped = contribute(trained, replace(plan, terms=replace(terms, clip_norm=1e9)), rows, draws).values
        np.testing.assert_allclose(values, clipped, rtol=1e-9, atol=1e-9)
        assert values.any()
    assert len(steps) == 4


def test_a_step_at_another_rate_than_agreed_is_refused():
    trained, terms = private(MODELS["smallae"])
    for plan, nodes in plans(trained, terms):
        if plan.spec.kind is RoundKind.GRADIENT_STEP:
            greedy = replace(plan, spec=replace(plan.spec, sampling_rate=1.0))
            with pytest.raises(RoundRefused, match="q = 1"):
                nodes[0].answer(greedy)
            return


def test_a_model_without_gradients_cannot_be_asked_for_them():
    trained, terms = private(MODELS["smallae"])
    steps = [plan for plan, _ in plans(trained, terms) if plan.spec.kind is RoundKind.GRADIENT_STEP]
    rows, _ = tables()[0]
    with pytest.raises(ConfigError, match="no gradient steps"):
        contribute_on_grid(Popularity(), steps[0], rows)


@dataclass(frozen=True)
class Own(MultVae):
    """A model of somebody's own, by its class alone."""

    name = "own"


class Centred(MultDaeNetwork):
    """Mixes shoppers without a layer that does."""

    def forward(self, batch):
        return super().forward(batch) - super().forward(batch).mean()


class NotOneEach(MultDaeNetwork):
    def forward(self, batch):
        return super().forward(batch)[:, None]


class NotFinite(MultDaeNetwork):
    def forward(self, batch):
        return super().forward(batch) * np.nan


class FailsOnNothing(MultDaeNetwork):
    def batch(self, histories, draws, vectors=None):
        if not histories.nnz:
            raise ZeroDivisionError
        return super().batch(histories, draws, vectors)


class Normed(MultDaeNetwork):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm = torch.nn.BatchNorm1d(self.num_items)


@dataclass(frozen=True)
class Bad(Own):
    """`Own` with a network that can keep no promise."""

    network: ClassVar[type] = Normed

    def make_network(self, num_items):
        return self.network(num_items, latent=3, has_sparse_input=False)


def test_a_model_of_somebodys_own_trains_under_a_promise():
    trained, _ = private(Own(MultVaeSettings(**STEPS)))
    assert type(trained.base) is Own


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Normed, "mixes shoppers"),
        (Centred, "left out"),
        (NotOneEach, r"\(3, 1\)"),
        (NotFinite, "not finite"),
        (FailsOnNothing, "fails on shoppers"),
    ],
)
def test_a_network_that_can_keep_no_promise_is_refused_before_its_noise_is_learned_from(network, words, monkeypatch):
    monkeypatch.setattr(Bad, "network", network)
    with pytest.raises(NoPrivateVariant, match=words):
        private(Bad(MultVaeSettings(**STEPS, init_seed=len(words))))


def test_events_removed_from_the_table_move_the_sum_by_no_more_than_the_bound():
    from fedrec.simulation.audit import AuditSettings, audit_shoppers

    settings = AuditSettings(epsilon=2.0, delta=1e-6)
    finding = audit_shoppers(settings, SmallAe(SmallAeSettings(size=6, private_steps=2, device="cpu")))
    assert finding.is_passed, finding
    assert any("gradient step" in where and moved > 0.01 for where, moved in finding.figures["moved"].items())


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e25, -65.0])
def test_arrays_that_blow_up_rounding_are_refused_before_anything_is_computed(value):
    trained, terms = private(MODELS["smallae"])
    for plan, nodes in plans(trained, terms):
        if plan.spec.kind is RoundKind.GRADIENT_STEP:
            inputs = {name: values.copy() for name, values in plan.spec.inputs.items()}
            inputs["tied.weight"][0, 0] = value
            before = nodes[0].ledger.head()
            with pytest.raises(RoundRefused, match=r"tied\.weight"):
                nodes[0].answer(replace(plan, spec=replace(plan.spec, inputs=inputs)))
            assert nodes[0].ledger.head() == before
            return


def test_sampling_is_not_combined_with_accounts_in_several_shops_nor_with_too_many_shoppers():
    trained, terms = private(MODELS["smallae"])
    steps = [plan for plan, _ in plans(trained, terms) if plan.spec.kind is RoundKind.GRADIENT_STEP]
    for changes, words in ({"max_shops_per_person": 2}, "accounts"), ({"max_shoppers": 2**21}, "float64"):
        changed = replace(terms, privacy=replace(SPEC, **changes))
        with pytest.raises(RoundRefused, match=words):
            changed.allow(steps[0].spec, steps[0].index)


@pytest.mark.parametrize("rounds", ["gradient-step", "local-update"])
def test_sampling_for_people_with_several_accounts_is_refused_with_the_schedule(rounds):
    spec = replace(SPEC, max_shops_per_person=2, mode=Mode.LOCAL)
    settings = {**STEPS, "private_rounds": rounds, "private_local_steps": 2}
    with pytest.raises(ConfigError, match=r"private_sampling_rate = 0\.6 with max_shops_per_person = 2: .*give"):
        private_schedule(SmallAe(SmallAeSettings(**settings)), spec, NUM_SHOPS)
    everybody = SmallAe(SmallAeSettings(**settings | {"private_sampling_rate": 1.0}))
    assert all(release.sampling_rate == 1 for release in private_schedule(everybody, spec, NUM_SHOPS))


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.1])
def test_popularity_gets_about_a_tenth_of_the_budget_at_any_rate(rate):
    model = MultVae(MultVaeSettings(private_steps=100, private_sampling_rate=rate))
    schedule = private_schedule(model, replace(SPEC, epsilon=2.0), NUM_SHOPS)
    alone = epsilon(schedule[:1], SPEC.delta)
    assert 0.3 < alone < 1.1, f"popularity alone costs epsilon {alone:.2f} of 2"


def quantile_model(**settings):
    steps = {**STEPS, "private_clip_norm": 0.02, "private_clip_quantile": 0.5, **settings}
    return SmallAe(SmallAeSettings(size=6, **steps))


def test_a_step_with_a_quantile_carries_one_more_value_at_the_charge_of_any_other():
    plain = SmallAe(SmallAeSettings(size=6, private_clip_norm=0.02, **STEPS))
    (_, fixed), (trained, terms) = private(plain), private(quantile_model())
    assert terms.schedule == fixed.schedule
    norms = []
    for plan, nodes in plans(trained, terms):
        if plan.spec.kind is RoundKind.GRADIENT_STEP:
            assert plan.spec.layout.shapes[-1] == ("within", (1,))
            assert (
                plan.num_values
                == sum(values.size for name, values in plan.spec.inputs.items() if name.startswith("tied")) + 1
            )
            norms.append(float(plan.spec.inputs["server.clip_norm"][0]))
            assert nodes[0].ledger.entries()[-1].what["release"]["clip_norm"] == 0.02
    assert norms[0] == 0.02
    assert len(set(norms)) == 4


def test_with_a_quantile_removing_a_shopper_moves_gradients_and_count_by_at_most_the_sensitivity():
    trained, terms = private(quantile_model())
    rows, ids = tables()[0]
    for plan, _ in plans(trained, terms):
        if plan.spec.kind is not RoundKind.GRADIENT_STEP:
            continue
        draws = Draws.seeded(f"test {plan.index}", shopper_digests(ids))
        bound = terms.shopper_bound(plan.index) / terms.grid(plan.index).unit
        for clip_norm, everybody in ((0.0005, 0), (0.3, None), (20.0, draws.of("sample").coins(0.6).sum())):
            inputs = {**plan.spec.inputs, "server.clip_norm": np.array([clip_norm])}
            asked = replace(plan, spec=replace(plan.spec, inputs=inputs))
            whole = contribute_on_grid(trained, asked, rows, draws).values
            if everybody is not None:
                assert whole[-1] == pytest.approx(everybody * 0.1 * bound, rel=0.01)
            for gone in (0, 1, 50, 99):
                rest = np.delete(np.arange(len(ids)), gone)
                without = contribute_on_grid(trained, asked, rows[rest], draws.take(rest)).values
                assert np.linalg.norm((whole - without).astype(float)) <= bound


def test_the_clip_norm_of_a_federation_finds_the_median_gradient_norm_under_noise():
    model = quantile_model(
        private_clip_norm=0.5, private_steps=60, private_sampling_rate=1.0, private_learning_rate=1e-7
    )
    trained, terms = private(model, replace(SPEC, epsilon=40.0))
    rows = sparse.vstack([table for table, _ in tables()]).tocsr()
    found = []
    for plan, _ in plans(trained, terms, make_noise=lambda purpose: SeededNoiseForTests(2, purpose)):
        if plan.spec.kind is RoundKind.GRADIENT_STEP:
            found.append(float(plan.spec.inputs["server.clip_norm"][0]))
            gradients = trained.gradients(plan.spec, rows, Draws.seeded("x", shopper_digests(range(NUM_SHOPPERS))))
            norms = gradients.inner.norms()
    settled = np.exp(np.log(found[-20:]).mean())
    assert not 0.4 < (norms <= found[0]).mean() < 0.6, "it starts where it should end"
    assert 0.3 < (norms <= settled).mean() < 0.7


def test_a_quantile_is_refused_for_people_with_several_accounts_and_where_shops_take_the_steps():
    with pytest.raises(ConfigError, match="max_shops_per_person"):
        private(quantile_model(private_sampling_rate=1.0), replace(SPEC, max_shops_per_person=2))
    for wrong in (
        {"private_clip_quantile": 0.0},
        {"private_clip_quantile": 1},
        {"private_clip_quantile": float("nan")},
        {"private_rounds": "local-update", "private_local_steps": 2},
    ):
        with pytest.raises(ConfigError, match="private_clip_quantile"):
            quantile_model(**wrong)


@pytest.mark.parametrize("clip_norm", [None, 0.005, 50.0])
def test_research_rounds_follow_the_quantile_too(clip_norm):
    trained, _ = private(quantile_model())
    steps = [plan for plan, _ in plans(trained, Terms(ROSTER, run_id="run", clip_norm=clip_norm))][2:]
    norms = [float(plan.spec.inputs["server.clip_norm"][0]) for plan in steps]
    assert norms == sorted(set(norms)), "nobody is within 0.02, so it has to grow"
