"""Local updates under a promise: every step in a shop is sampled, clipped, noised and charged; nothing else leaves."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import sparse

from fedrec.errors import BadAssumption, BudgetExhausted, ConfigError, NotFinite, PrivacyError, RoundRefused
from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.plan import RoundPlan
from fedrec.federation.release import PrivateDoor, read_release
from fedrec.federation.shop_side import Contribution, contribute_on_grid
from fedrec.federation.terms import Terms
from fedrec.models import private_model, private_schedule
from fedrec.models.autoencoders import MultVae, MultVaeSettings
from fedrec.models.ncf import NcfSettings, NeuMf
from fedrec.models.recommender import LOSS, Layout, PublicInputs, RoundKind, RoundSpec
from fedrec.models.smallae import SmallAe, SmallAeSettings
from fedrec.privacy.accounting import exact_epsilon
from fedrec.privacy.audit import epsilon_interval, mean_shift
from fedrec.privacy.calibration import calibrate
from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.privacy.grid import SCALE
from fedrec.privacy.ledger import Budget, Ledger
from fedrec.privacy.ledger_filters import RenyiFilter
from fedrec.privacy.mechanisms import PlannedRelease, outlook
from fedrec.privacy.noise import SeededNoiseForTests
from fedrec.privacy.spec import Mode, PrivacySpec
from fedrec.shop.node import shop_nodes
from fedrec.simulation.audit import crafted_events, histories, item_positions
from fedrec.simulation.audit_claim import AuditSettings
from fedrec.testing.planted import train_federated

from .no_noise import NoNoise

NUM_ITEMS, SIZES = 60, (120, 90, 40)
DECLARED = (100, 90, 40)
PUBLIC = PublicInputs(np.array([f"item-{place:02d}" for place in range(NUM_ITEMS)]))
ROSTER = tuple(f"shop-{place}" for place in range(len(SIZES)))
SPEC = PrivacySpec(epsilon=8.0, delta=1e-5, mode=Mode.LOCAL, public_shoppers=200, max_shoppers=1000, min_shops=1)
LOCAL = {"private_rounds": "local-update", "private_local_steps": 2, "private_steps": 4, "device": "cpu"}
STEPS = {**LOCAL, "private_sampling_rate": 0.6}
MODELS = {
    "smallae": SmallAe(SmallAeSettings(size=6, **STEPS)),
    "multvae": MultVae(MultVaeSettings(**STEPS)),
    "neumf": NeuMf(NcfSettings(fold_in_steps=5, **STEPS)),
}


def tables(seed=0):
    rng = np.random.default_rng(seed)
    rows = [sparse.csr_matrix((rng.random((size, NUM_ITEMS)) < 0.15).astype(np.float32)) for size in SIZES]
    return rows, [
        np.array([f"{shop}-{number}" for number in range(size)]) for shop, size in zip("abc", SIZES, strict=True)
    ]


def private(model, spec=SPEC, roster=ROSTER, declared=DECLARED):
    schedule = private_schedule(model, spec, len(roster))
    terms = Terms(roster, spec.min_shops, "run", privacy=spec, schedule=schedule, shop_shoppers=declared)
    return private_model(model, outlook(schedule, spec, len(roster)), PUBLIC), terms


def seeded(purpose):
    return SeededNoiseForTests(5, purpose)


def rounds(trained, terms, rows=None, **changes):
    """All plans of a run, the nodes, and the coordinator after each round."""
    own, ids = tables()
    nodes = shop_nodes(trained, PUBLIC, terms, rows or own, shoppers=() if rows else ids, **changes)
    run = Coordinator(trained, PUBLIC, terms)
    while (plan := run.next_plan()) is not None:
        for node in nodes:
            run.receive(node.name, node.answer(plan).to_bytes())
        run.close()
        yield plan, nodes, run


def first_update(trained, terms, rows=None, **changes):
    """The plan of the first local update and the nodes; the rounds before it were answered."""
    own, ids = tables()
    nodes = shop_nodes(trained, PUBLIC, terms, rows or own, shoppers=() if rows else ids, **changes)
    run = Coordinator(trained, PUBLIC, terms)
    while (plan := run.next_plan()).spec.kind is not RoundKind.LOCAL_UPDATE:
        for node in nodes:
            run.receive(node.name, node.answer(plan).to_bytes())
        run.close()
    return plan, nodes, run


def open_ledger(shop="shop-0", epsilon=8.0):
    return Ledger.open("sqlite://", shop, budget=Budget(epsilon, 1e-5))


@pytest.mark.parametrize("name", MODELS)
def test_a_run_of_local_updates_goes_through_the_door_and_every_step_is_charged(name):
    trained, terms = private(MODELS[name])
    *_, (plan, nodes, run) = rounds(trained, terms)
    assert plan.index == len(terms.schedule) - 1
    assert plan.spec.kind is RoundKind.LOCAL_UPDATE
    assert [release.local_steps for release in terms.schedule][-2:] == [2, 2]
    assert np.isfinite(trained.fit(run.state, PUBLIC).scores(nodes[0].histories)).all()
    account = nodes[0].ledger.verify()
    assert nodes[0].ledger.spent().num_charges == len(terms.schedule)
    charged = account.runs["run"].costs[-1].renyi
    alone = RenyiFilter(8.0, 1e-5, account.order).cost((replace(terms.schedule[-1], local_steps=0),))
    assert charged == pytest.approx(2 * alone, rel=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_removing_one_shopper_from_the_events_moves_each_steps_integers_by_at_most_the_sensitivity(name):
    settings = AuditSettings(epsilon=2.0, delta=1e-6)
    events, public = crafted_events(settings), item_positions(settings.num_items)
    spec = replace(SPEC, epsilon=2.0, delta=1e-6, public_shoppers=60)
    base = MODELS[name]
    schedule = private_schedule(base, spec, 1)
    terms = Terms(("shop",), 1, "run", privacy=spec, schedule=schedule, shop_shoppers=(60,))
    trained = private_model(base, outlook(schedule, spec, 1), public)
    whole = histories(events, public)
    names = np.unique(events["shopper"].to_numpy(str))
    node = shop_nodes(trained, public, terms, [whole], shoppers=[names], make_noise=seeded)[0]
    run = Coordinator(trained, public, terms)
    while (plan := run.next_plan()).spec.kind is not RoundKind.LOCAL_UPDATE:
        run.receive("shop", node.answer(plan).to_bytes())
        run.close()
    draws = Draws.seeded("coins", shopper_digests(names))
    steps = []

    def sum_of(step, number):
        steps.append((step, draws.of(f"step {number}")))
        return contribute_on_grid(trained, step, whole, steps[-1][1])

    PrivateDoor(plan, node.ledger, seeded).release_update(trained, sum_of)
    assert len(steps) == 2
    bound, moved = terms.shopper_bound(plan.index) / terms.grid(plan.index).unit, []
    for step, of_step in steps:
        full = contribute_on_grid(trained, step, whole, of_step).values
        for gone in [name for name in names if name.startswith("crafted")]:
            rest = events[events["shopper"] != gone]
            kept = np.flatnonzero(names != gone)
            without = contribute_on_grid(trained, step, histories(rest, public), of_step.take(kept)).values
            moved.append(float(np.linalg.norm((full - without).astype(float))) / bound)
    assert max(moved) <= 1
    assert max(moved) > 0.01, "nobody was in any step: the test says nothing"


def test_every_step_has_a_sample_and_a_noise_key_of_its_own_which_is_erased():
    trained, terms = private(MODELS["smallae"])
    plan, nodes, _ = first_update(trained, terms, make_noise=seeded)
    made = []

    def make_noise(purpose):
        made.append(seeded(purpose))
        return made[-1]

    samples = []

    def sum_of(step, number):
        draws = Draws.seeded("coins", nodes[0].digests).of(f"step {number}")
        samples.append(draws.of("sample").coins(step.spec.sampling_rate))
        return contribute_on_grid(trained, step, nodes[0].histories, draws)

    PrivateDoor(plan, open_ledger(), make_noise).release_update(trained, sum_of)
    assert len({source.purpose for source in made}) == 2
    assert (samples[0] != samples[1]).any()
    for source in made:
        with pytest.raises(PrivacyError, match="erased"):
            source.coins(0.5, 1)


def test_local_steps_of_one_shop_are_the_central_steps_of_a_federation_of_one():
    """Noise off, everybody sampled: one update of four steps ends where four gradient steps end."""
    rows, settings = tables()[0][0], {**LOCAL, "private_learning_rate": 0.01}
    model = SmallAe(SmallAeSettings(size=6, **{**settings, "private_local_steps": 4}))
    trained, terms = private(model, roster=("shop-0",), declared=(200,))
    *_, (_, _, run) = rounds(trained, terms, [rows], make_noise=NoNoise)
    central = replace(trained, settings=replace(trained.settings, private_rounds="gradient-step"))
    schedule = private_schedule(SmallAe(replace(model.settings, private_rounds="gradient-step")), SPEC, 1)
    steps = replace(terms, schedule=schedule, shop_shoppers=())
    state, everybody = first_update(trained, terms, rows=[rows], make_noise=NoNoise)[2].state, range(rows.shape[0])
    start = state["tied.weight"]
    for index in range(2, 6):
        spec = central.plan_round(index, state, PUBLIC)
        plan = RoundPlan(index, spec, central.name, {}, "", steps)
        total = contribute_on_grid(central, plan, rows, Draws.fresh(shopper_digests(everybody))).values
        state = central.advance(spec, state, total * steps.grid(index).unit, PUBLIC)
    assert np.abs(state["tied.weight"] - start).max() > 0.01
    # Fixed point of 2^-24 on 200 times the change, and float32.
    np.testing.assert_allclose(run.state["tied.weight"], state["tied.weight"], atol=1e-6)


def test_the_mean_change_is_weighted_by_declared_shoppers_never_by_actual_ones():
    trained, terms = private(MODELS["multvae"])
    plan, nodes, run = first_update(trained, terms, make_noise=seeded)
    ring, changes = terms.ring(plan.index), []
    for node, declared in zip(nodes, DECLARED, strict=True):
        data = node.answer(plan).to_bytes()
        vector = ring.decode(ring.centre(read_release(data, plan).values))
        assert vector[-1] == declared
        changes.append(vector[:-1])
        run.receive(node.name, data)
    run.close()
    name = plan.spec.layout.shapes[0][0]
    expected = plan.spec.layout.split(np.append(sum(changes), 0.0))[name] / sum(DECLARED)
    np.testing.assert_allclose(run.state[name], plan.spec.inputs[name] + expected, atol=1e-6)


def test_an_update_is_the_same_again_from_the_same_noise_where_nobody_is_sampled():
    model = SmallAe(SmallAeSettings(size=6, **LOCAL))
    trained, terms = private(model)
    sent = []
    for seed in (5, 5, 6):
        *_, (_, _, run) = rounds(trained, terms, make_noise=seeded_by(seed))
        sent.append(run.state["tied.weight"])
    np.testing.assert_array_equal(sent[0], sent[1])
    assert (sent[0] != sent[2]).any()


def seeded_by(seed):
    return lambda purpose: SeededNoiseForTests(seed, purpose)


def test_a_step_whose_sample_is_empty_is_noise_alone_and_a_shop_without_shoppers_answers_like_any_other():
    model = MultVae(MultVaeSettings(**{**LOCAL, "private_sampling_rate": 0.05}))
    trained, terms = private(model)
    nobody = sparse.csr_matrix((0, NUM_ITEMS), dtype=np.float32)
    plan, nodes, _ = first_update(trained, terms, rows=[tables()[0][0], nobody, nobody])
    payloads = [node.answer(plan).to_bytes() for node in nodes]
    assert len({len(payload) for payload in payloads}) == 1
    assert len(set(payloads)) == 3
    few, sums = nodes[0].histories[:5], []
    everybody = (Draws.seeded(f"{seed}", shopper_digests(range(5))) for seed in range(1000))
    draws = next(draws for draws in everybody if not draws.of("sample").coins(0.05).any())

    def sum_of(step, number):
        sums.append(contribute_on_grid(trained, step, few, draws))
        assert not sums[-1].values.any()
        return sums[-1]

    released = PrivateDoor(plan, open_ledger(), seeded).release_update(trained, sum_of)
    assert len(sums) == 2
    assert read_release(released.to_bytes(), plan).values[:-1].any()


def test_a_stored_update_is_sent_again_without_a_second_charge():
    trained, terms = private(MODELS["smallae"])
    plan, nodes, _ = first_update(trained, terms)
    first = nodes[0].answer(plan).to_bytes()
    head = nodes[0].ledger.head()
    assert nodes[0].answer(plan).to_bytes() == first
    assert nodes[0].ledger.head() == head


def test_a_shop_that_stops_between_two_steps_has_released_and_paid_nothing():
    trained, terms = private(MODELS["smallae"])
    plan, nodes, _ = first_update(trained, terms)
    before = nodes[0].ledger.head()

    def stops(purpose):
        if "step 1" in purpose:
            raise KeyboardInterrupt
        return seeded(purpose)

    with pytest.raises(KeyboardInterrupt):
        replace(nodes[0], make_noise=stops)._release(PrivateDoor(plan, open_ledger(), stops), plan, None)
    assert nodes[0].ledger.head() == before
    nodes[0].answer(plan)
    assert nodes[0].ledger.spent().num_charges == len(terms.schedule) - 1


def test_an_overspend_is_refused_before_anything_is_computed():
    trained, terms = private(MODELS["smallae"])
    plan, nodes, _ = first_update(trained, terms)
    poor = replace(nodes[0], ledger=open_ledger(epsilon=7.5), histories=None)  # which could compute nothing
    with pytest.raises(BudgetExhausted):
        poor.answer(plan)


def test_a_schedule_that_does_not_pay_for_all_steps_is_refused():
    trained, terms = private(MODELS["smallae"])
    plan, _, _ = first_update(trained, terms)
    more = tuple(replace(one, local_steps=50 if one.local_steps else 0) for one in terms.schedule)
    with pytest.raises(RoundRefused, match="costs epsilon"):
        replace(terms, schedule=more).allow(plan.spec, plan.index)


def test_shared_noise_is_refused_with_the_modes_and_rounds_that_can():
    shared = replace(SPEC, mode=Mode.DISTRIBUTED, min_shops=3)
    words = 'mode local.*private_rounds = "gradient-step"'
    for model in MODELS.values():
        with pytest.raises(BadAssumption, match=words):
            private_schedule(model, shared, 3)
    _, terms = private(MODELS["smallae"])
    with pytest.raises(BadAssumption, match=words):
        replace(terms, privacy=shared, min_shops=3)
    with pytest.raises(BadAssumption, match=words):
        calibrate(MODELS["smallae"].release_requests(), shared)


def test_kinds_that_were_not_agreed_are_refused():
    trained, terms = private(MODELS["smallae"])
    plan, _, _ = first_update(trained, terms)
    with pytest.raises(RoundRefused, match="2 steps in every shop"):
        terms.allow(replace(plan.spec, kind=RoundKind.GRADIENT_STEP), plan.index)
    plain = replace(terms, schedule=tuple(replace(one, local_steps=0) for one in terms.schedule), shop_shoppers=())
    with pytest.raises(RoundRefused, match="not agreed"):
        plain.allow(plan.spec, plan.index)
    with pytest.raises(RoundRefused, match="samples shoppers"):
        terms.allow(replace(plan.spec, sampling_rate=1.0), plan.index)
    asks_more = replace(plan.spec, layout=Layout((*plan.spec.layout.shapes, (LOSS, (1,)))))
    with pytest.raises(RoundRefused, match="training loss"):
        terms.allow(asks_more, plan.index)
    assert LOSS not in dict(plan.spec.layout.shapes)


def test_accounts_in_several_shops_are_taken_without_sampling_alone():
    several = replace(SPEC, max_shops_per_person=2)
    _, terms = private(MODELS["smallae"])
    terms = replace(terms, privacy=several)
    spec = RoundSpec(RoundKind.LOCAL_UPDATE, "local steps", Layout((("weight", (1,)),)), sampling_rate=0.6)
    with pytest.raises(RoundRefused, match="accounts"):
        terms.allow(spec, 2)
    trained, terms = private(SmallAe(SmallAeSettings(size=6, **LOCAL)), several)
    *_, (_, nodes, _) = rounds(trained, terms)
    assert nodes[0].ledger.spent().num_charges == len(terms.schedule)


@pytest.mark.parametrize("declared", [(), (1, 2), (1, 2, 0), (1, 2, 3.0), (1, 2, 2**21)], ids=str)
def test_terms_need_every_shops_declared_number(declared):
    with pytest.raises(BadAssumption, match="shop_shoppers"):
        private(MODELS["smallae"], declared=declared)


def test_terms_without_local_steps_take_no_declared_numbers_and_schedules_keep_their_json():
    schedule = (PlannedRelease("popularity", 1.0, 2.0),)
    plain = Terms(("a",), 1, "r", privacy=SPEC, schedule=schedule)
    assert set(plain.to_json()["schedule"][0]) == {"name", "clip_norm", "noise_multiplier", "sampling_rate"}
    with pytest.raises(BadAssumption, match="shop_shoppers"):
        replace(plain, shop_shoppers=(5,))
    _, terms = private(MODELS["smallae"])
    assert Terms.from_json(terms.to_json()) == terms


class Greedy:
    """A model that asks for what was not agreed."""

    def __init__(self, spec, calls):
        self.spec, self.calls = spec, calls

    def local_steps(self, spec, noisy_sum, *, steps, num_shoppers):
        for _ in range(self.calls):
            noisy_sum(self.spec)
        return np.zeros(spec.layout.size)


def test_the_door_gives_no_more_sums_than_are_paid_for_and_none_on_other_terms():
    trained, terms = private(MODELS["smallae"])
    plan, _, _ = first_update(trained, terms)
    layout = Layout(plan.spec.layout.shapes[:-1])
    agreed = RoundSpec(RoundKind.GRADIENT_STEP, "gradient step", layout, {}, 0.6)

    def sum_of(step, number):
        return Contribution(np.zeros(step.num_values, np.int64), step.spec.layout)

    def leave(spec, calls):
        return PrivateDoor(plan, open_ledger(), seeded).release_update(Greedy(spec, calls), sum_of)

    assert leave(agreed, 2)
    ledger = open_ledger()
    greedy = PrivateDoor(plan, ledger, seeded).release_update(Greedy(agreed, 3), sum_of)
    assert not read_release(greedy.to_bytes(), plan).values.any()
    assert ledger.spent().num_charges == 1
    for spec, calls in (
        (replace(agreed, sampling_rate=1.0), 1),
        (replace(agreed, kind=RoundKind.STATISTICS, sampling_rate=1.0), 1),
        (replace(agreed, layout=Layout((("wide", (plan.num_values + 1,)),))), 1),
    ):
        with pytest.raises(PrivacyError, match="agreed steps"):
            leave(spec, calls)
    door = PrivateDoor(plan, open_ledger(), seeded)
    with pytest.raises(PrivacyError, match="steps in the shop"):
        door.release(Contribution(np.zeros(plan.num_values, np.int64), plan.spec.layout))


def test_a_model_that_fails_on_noisy_sums_leaves_zeros_that_are_charged(caplog):
    trained, terms = private(MODELS["smallae"])
    plan, _, _ = first_update(trained, terms)
    layout = Layout(plan.spec.layout.shapes[:-1])
    agreed = RoundSpec(RoundKind.GRADIENT_STEP, "gradient step", layout, {}, 0.6)

    class Fails:
        def __init__(self, failure, sums):
            self.failure, self.sums = failure, sums

        def local_steps(self, spec, noisy_sum, *, steps, num_shoppers):
            for _ in range(self.sums):
                noisy_sum(agreed)
            if isinstance(self.failure, Exception):
                raise self.failure
            return self.failure

    def sum_of(step, number):
        return Contribution(np.zeros(step.num_values, np.int64), step.spec.layout)

    wide = np.zeros(plan.num_values + 1)
    for failure in (ZeroDivisionError(), NotFinite("after looking"), PrivacyError("after looking"), wide):
        ledger = open_ledger()
        released = PrivateDoor(plan, ledger, seeded).release_update(Fails(failure, 1), sum_of)
        assert not read_release(released.to_bytes(), plan).values.any()
        assert ledger.spent().num_charges == 1
    assert "failed in its steps" in caplog.text
    with pytest.raises(ZeroDivisionError):  # before any sum it says nothing of a shopper
        PrivateDoor(plan, open_ledger(), seeded).release_update(Fails(ZeroDivisionError(), 0), sum_of)


@dataclass(frozen=True)
class Overheard:
    """A model that keeps the noisy sums, as an attacker who has seen all of them."""

    heard: list

    def local_steps(self, spec, noisy_sum, *, steps, num_shoppers):
        step = RoundSpec(RoundKind.GRADIENT_STEP, "gradient step", Layout(spec.layout.shapes[:-1]))
        self.heard.extend(noisy_sum(step) for _ in range(steps))
        return np.zeros(spec.layout.size)


class Quiet(SeededNoiseForTests):
    """Noise of seven tenths of what is agreed."""

    def integers(self, sd_units, size):
        return super().integers(0.7 * sd_units, size)


@pytest.mark.parametrize(("make", "is_as_claimed"), [(SeededNoiseForTests, True), (Quiet, False)])
def test_crafted_vectors_through_the_steps_show_the_epsilon_that_is_claimed(make, is_as_claimed):
    """One canary a coordinate, put into every step by one coin; the estimate errs with probability of 1e-7."""
    num_canaries, steps, sigma = 20_000, 3, 2.5
    is_inside = np.random.default_rng(1).random(num_canaries) < 0.5
    spec = replace(SPEC, epsilon=20.0)
    schedule = (PlannedRelease("local steps", 0.2, sigma, local_steps=steps),)
    terms = Terms(("shop",), 1, "run", privacy=spec, schedule=schedule, shop_shoppers=(50,))
    trained, _ = private(MODELS["smallae"])
    layout = Layout((("canaries", (num_canaries,)), ("weight", (1,))))
    plan = Coordinator(trained, PUBLIC, terms).next_plan()
    plan = replace(plan, spec=RoundSpec(RoundKind.LOCAL_UPDATE, "local steps", layout))
    attacker = Overheard([])
    PrivateDoor(plan, open_ledger("shop", 20.0), lambda purpose: make(3, purpose)).release_update(
        attacker, lambda step, number: Contribution(SCALE * is_inside.astype(np.int64), step.spec.layout)
    )
    found = epsilon_interval(mean_shift(sum(attacker.heard), is_inside), 1e-5)
    claimed = exact_epsilon(steps**0.5 / sigma, 1e-5)
    assert found.holds(claimed) is is_as_claimed
    assert is_as_claimed or found.low > claimed


def test_research_updates_take_the_same_steps_without_noise():
    trained, _ = private(MODELS["smallae"])
    rows, _ = tables()
    state = train_federated(trained, rows, PUBLIC)
    assert np.isfinite(trained.fit(state, PUBLIC).scores(rows[0])).all()
    nobody = sparse.csr_matrix((0, NUM_ITEMS), dtype=np.float32)
    spec = trained.plan_round(2, state, PUBLIC)
    assert spec.kind is RoundKind.LOCAL_UPDATE
    assert not trained.local_update(spec, nobody, Draws.seeded("x", shopper_digests([]))).any()


@pytest.mark.parametrize(
    "changes",
    [{"private_rounds": "local"}, {"private_local_steps": 0}, {"private_local_steps": 3}, {"private_steps": 5}],
    ids=str,
)
def test_settings_that_make_no_rounds_are_refused(changes):
    with pytest.raises(ConfigError, match="private_"):
        SmallAeSettings(**{**STEPS, **changes})
