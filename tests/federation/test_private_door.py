"""The door under a privacy spec: the order of its steps, what leaves, what is charged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from fedrec.errors import (
    BadMessage,
    BudgetExhausted,
    LedgerBehind,
    PrivacyError,
    RoundRefused,
    TooFewShops,
    TooManyAborts,
)
from fedrec.federation import release as door
from fedrec.federation.anchors import anchored_shops
from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.shop_side import Contribution, contribute, contribute_on_grid
from fedrec.federation.terms import Terms
from fedrec.models.popularity import ItemCounts, Popularity, popularity_round
from fedrec.models.recommender import PublicInputs
from fedrec.privacy.ledger import Budget, Ledger
from fedrec.privacy.mechanisms import PlannedRelease
from fedrec.privacy.noise import SecureNoise
from fedrec.privacy.spec import Mode, PrivacySpec
from fedrec.shop.node import ShopNode, shop_nodes

from .no_noise import NoNoise

ROSTER = ("north", "south", "west")
SPEC = PrivacySpec(
    epsilon=3.0, delta=1e-5, mode=Mode.DISTRIBUTED, public_shoppers=100, max_shoppers=1000, min_shops=3, colluders=1
)
TERMS = Terms(
    ROSTER,
    min_shops=3,
    run_id="run-1",
    privacy=SPEC,
    schedule=(PlannedRelease("popularity", clip_norm=1.5, noise_multiplier=2.0),),
)
PUBLIC = PublicInputs(np.array(["apple", "beer", "cake", "dill"]))


def coordinator(terms=TERMS, public=PUBLIC):
    return Coordinator(Popularity(), public, terms)


def shops(terms=TERMS, public=PUBLIC, **changes):
    rng = np.random.default_rng(3)
    tables = [sparse.csr_matrix((rng.random((n, public.num_items)) < 0.6).astype(np.float32)) for n in (5, 1, 8)]
    return shop_nodes(Popularity(), public, terms, tables, **changes)


def test_sums_on_the_grid_arrive_within_a_unit_a_shopper_and_half_a_step_a_shop_where_the_noise_is_off():
    nodes = shops(make_noise=NoNoise)
    run = coordinator()
    plan = run.next_plan()
    for node in nodes:
        assert run.receive(node.name, node.answer(plan).to_bytes())
    run.close()
    bounded = replace(TERMS, privacy=None, schedule=(), clip_norm=1.5)
    plain = coordinator(bounded).next_plan()
    expected = sum(contribute(Popularity(), plain, node.histories).values for node in nodes)
    unit = 1.5 * 2**-18
    step = unit * 2 ** TERMS.grid(0).step_bits
    assert 8 * step <= TERMS.shop_noise_units(0) * unit
    assert np.abs(run.state["popularity"] - expected).max() <= 14 * unit + 3 * step / 2
    assert (run.state["popularity"] <= expected + 3 * step / 2 + 1e-12).all()  # shoppers are rounded toward zero


def test_the_noise_of_the_sum_is_what_the_terms_say():
    public = PublicInputs(np.array([f"item-{i:05d}" for i in range(20_000)]))
    rows = [sparse.csr_matrix((1, 20_000), dtype=np.float32)] * 3
    run = coordinator(public=public)
    plan = run.next_plan()
    for node in shop_nodes(Popularity(), public, TERMS, rows):
        run.receive(node.name, node.answer(plan).to_bytes())
    run.close()
    expected = TERMS.noise_sd(0, 3)  # 2 x 1.5 x sqrt(3 / 2)
    assert expected == pytest.approx(3 * 1.5**0.5)
    # 20,000 values: the ratio's standard deviation is 0.5 %, so a false alarm is a 6-sigma event (2e-9)
    assert run.state["popularity"].std() / expected == pytest.approx(1, abs=0.03)


@settings(max_examples=60)
@given(data=st.data(), bound=st.sampled_from([0.5, 1.0, 1.5, 2.0]), shops_per_person=st.integers(1, 3))
def test_removing_one_shopper_moves_the_integers_by_at_most_the_sensitivity(data, bound, shops_per_person):
    num_shoppers = data.draw(st.integers(1, 6))
    bits = data.draw(st.lists(st.booleans(), min_size=4 * num_shoppers, max_size=4 * num_shoppers))
    rows = sparse.csr_matrix(np.array(bits, np.float32).reshape(num_shoppers, 4))
    spec = replace(SPEC, max_shops_per_person=shops_per_person)
    terms = replace(TERMS, privacy=spec, schedule=(PlannedRelease("popularity", bound, 2.0),))
    plan = coordinator(terms).next_plan()
    gone = data.draw(st.integers(0, num_shoppers - 1))
    whole = contribute_on_grid(Popularity(), plan, rows).values
    rest = contribute_on_grid(Popularity(), plan, rows[np.arange(num_shoppers) != gone]).values
    moved = sum(int(value) ** 2 for value in whole - rest)
    assert moved * shops_per_person**2 <= (2**18) ** 2


class Spoiled(Popularity):
    """One item's strength makes a shopper's contribution infinite."""

    def contributions(self, spec, histories):
        return _WithNorms(ItemCounts(histories), np.where(np.asarray(histories[:, 0].todense()).ravel() > 0, np.inf, 1))


class _WithNorms:
    def __init__(self, counts, norms):
        self._counts, self._norms = counts, norms

    def norms(self):
        return self._norms

    def total(self, weights):
        return self._counts.total(weights)

    def integers(self, weights, scale):
        return self._counts.integers(weights, scale)


def test_a_shopper_who_is_not_finite_counts_as_zero_inside_the_shop():
    rows = sparse.csr_matrix(np.array([[1, 1, 0, 0], [0, 0, 1, 0]], np.float32))
    contribution = contribute_on_grid(Spoiled(), coordinator().next_plan(), rows)
    assert contribution.num_zeroed == 1
    assert contribution.values[:2].tolist() == [0, 0]
    assert contribution.values[2] > 0


def test_an_overspend_is_refused_before_anything_is_computed():
    node = shops()[0]
    computed = []

    class Watched(Popularity):
        def contributions(self, spec, histories):
            computed.append(1)
            return super().contributions(spec, histories)

    poor = Ledger.open("sqlite://", "north", budget=Budget(0.5, 1e-5))
    watched = ShopNode(node.name, Watched(), node.histories, node.agreement, poor)
    with pytest.raises(BudgetExhausted):
        watched.answer(coordinator().next_plan())
    assert not computed
    assert not [entry for entry in poor.entries() if entry.kind == "charge"]


def test_the_same_plan_gets_the_same_bytes_at_no_further_charge():
    node = shops()[0]
    plan = coordinator().next_plan()
    first = node.answer(plan).to_bytes()
    charged = len(node.ledger.entries())
    assert node.answer(plan).to_bytes() == first
    assert len(node.ledger.entries()) == charged


def test_another_plan_of_the_same_round_is_charged_again_with_new_noise_up_to_the_shops_limit():
    rich = Ledger.open("sqlite://", "north", budget=Budget(100.0, 1e-5, max_aborts=1))
    node = shops()[0]
    node = ShopNode(node.name, node.model, node.histories, node.agreement, rich)

    def plan(note):
        spec = replace(popularity_round(PUBLIC), inputs={"note": np.array([note])})
        return replace(coordinator().next_plan(), spec=spec)

    one, two = node.answer(plan(1)).to_bytes(), node.answer(plan(2)).to_bytes()
    assert one[128:] != two[128:]
    assert sum(entry.kind == "charge" for entry in rich.entries()) == 2
    with pytest.raises(TooManyAborts):
        node.answer(plan(3))
    assert node.answer(plan(2)).to_bytes() == two


def test_the_upload_carries_the_head_of_the_ledger():
    node = shops()[0]
    plan = coordinator().next_plan()
    received = door.read_release(node.answer(plan).to_bytes(), plan)
    head = node.ledger.head()
    assert received.head == (head.sequence, head.hash)


def test_the_raw_vector_and_the_noise_key_are_gone_after_the_release():
    made = []

    def make(purpose):
        made.append(SecureNoise(purpose))
        return made[-1]

    plan = coordinator().next_plan()
    contribution = contribute_on_grid(Popularity(), plan, sparse.csr_matrix(np.ones((3, 4), np.float32)))
    door.PrivateDoor(plan, Ledger.open("sqlite://", "x", budget=Budget(3, 1e-5)), make).release(contribution)
    assert not contribution.values.any()
    with pytest.raises(PrivacyError):
        made[0].integers(10.0, 1)


def test_a_promise_has_no_way_round_the_private_door():
    plan = coordinator().next_plan()
    with pytest.raises(PrivacyError):
        door.release(Contribution(np.zeros(4), plan.spec.layout), plan)
    without_ledger = replace(shops()[0], ledger=None)
    with pytest.raises(PrivacyError):
        without_ledger.answer(plan)


def test_a_round_that_is_not_on_the_schedule_is_refused():
    plan = replace(coordinator().next_plan(), index=1)
    with pytest.raises(RoundRefused):
        shops()[0].answer(plan)


def test_too_few_shops_leave_the_shared_arrays_as_they_were():
    run = coordinator()
    plan = run.next_plan()
    for node in shops()[:2]:
        run.receive(node.name, node.answer(plan).to_bytes())
    with pytest.raises(TooFewShops):
        run.close()
    assert run.state == {}


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_bytes_missing_from_a_private_release_are_noticed(cut):
    plan = coordinator().next_plan()
    data = shops()[0].answer(plan).to_bytes()
    with pytest.raises(BadMessage):
        door.read_release(data[:-cut], plan)


def test_a_shop_restored_from_a_backup_releases_nothing_until_the_missing_charge_is_made(tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    anchors = anchored_shops(tmp_path / "anchors", ROSTER)
    terms = replace(TERMS, privacy=replace(SPEC, epsilon=10.0))

    def north():
        return shops(terms, ledger_url=url, anchors=anchors)[0]

    node = north()
    node.ledger.close()
    backup = (tmp_path / "ledger.sqlite").read_bytes()
    node = north()
    plan = coordinator(terms).next_plan()
    node.answer(plan)
    assert node.ledger.spent().rollback_detectable
    spent = node.ledger.head().spent
    node.ledger.close()
    for leftover in tmp_path.glob("ledger.sqlite*"):
        leftover.unlink()
    (tmp_path / "ledger.sqlite").write_bytes(backup)
    restored = north()
    with pytest.raises(LedgerBehind):
        restored.answer(plan)
    heads = [signed.head for book in anchors["north"].books for signed in book.signed_heads("north")]
    restored.ledger.recover(heads)
    assert restored.ledger.head().spent == spent
    restored.answer(plan)
    assert restored.ledger.head().spent.gdp == pytest.approx(2 * spent.gdp)


def test_noise_that_does_not_keep_the_promise_is_refused():
    weak = replace(TERMS, schedule=(PlannedRelease("popularity", 1.5, 0.5),))
    with pytest.raises(RoundRefused, match="promised"):
        shops(weak)[0].answer(coordinator(weak).next_plan())


def test_a_round_that_samples_otherwise_than_agreed_is_refused():
    sampled = replace(TERMS, schedule=(PlannedRelease("popularity", 1.5, 2.0, sampling_rate=0.01),))
    with pytest.raises(RoundRefused, match=r"samples shoppers at q = 1; 0\.01 is agreed"):
        shops(sampled)[0].answer(coordinator(sampled).next_plan())


class Failing(Popularity):
    """Fails for some data and not for other."""

    def contributions(self, spec, histories):
        raise ValueError("item beer of shopper 7")


def test_a_sum_that_cannot_be_computed_leaves_as_noise_and_is_charged(caplog):
    plan = coordinator().next_plan()
    node = replace(shops()[0], model=Failing())
    received = door.read_release(node.answer(plan).to_bytes(), plan)
    assert received.values.shape == (4,)
    assert sum(entry.kind == "charge" for entry in node.ledger.entries()) == 1
    assert "zeros count in it" in caplog.text
