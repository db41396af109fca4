"""Rounds of local updates: a part of the shops is asked, the loss comes out as a mean, and rounds may stop early."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from scipy import sparse

from fedrec.errors import BadMessage, ConfigError, NotFinite, TooFewShops
from fedrec.federation.checkpoint import Checkpoints, read_checkpoint
from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.early_stopping import EarlyStopping
from fedrec.federation.plan import RoundPlan, canonical_json, read_plan
from fedrec.federation.release import release
from fedrec.federation.shop_side import contribute
from fedrec.federation.terms import Terms
from fedrec.flower.engines import Federation, RunOptions, run_local
from fedrec.flower.local_grid import Faults
from fedrec.models.recommender import LOSS, WEIGHT, Layout, PublicInputs, RoundKind, RoundSpec
from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.shop.node import shop_nodes

NUM_ITEMS, ROUNDS = 4, 8
ROSTER = ("ant", "bee", "cat", "dog", "elk")


@dataclass(frozen=True)
class Pulled:
    """Shared is one row, which every shop pulls half the way to its own shoppers' mean."""

    name: ClassVar[str] = "pulled"
    rounds: int = ROUNDS

    def plan_round(self, index, state, public):
        if index >= self.rounds:
            return None
        layout = Layout((("row", (NUM_ITEMS,)), (WEIGHT, (1,)), (LOSS, (1,))))
        return RoundSpec(RoundKind.LOCAL_UPDATE, "pull", layout, {"row": state.get("row", np.zeros(NUM_ITEMS))})

    def contributions(self, spec, histories):
        raise AssertionError("there are none")

    def local_update(self, spec, histories, draws):
        rows, row = histories.toarray().astype(float), spec.inputs["row"]
        change, loss = (rows.mean(axis=0) - row) / 2, ((rows - row) ** 2).sum()
        return np.concatenate([change * len(rows), [len(rows), loss]])

    def advance(self, spec, state, total, public, *, noise_sd=0.0):
        sums = spec.layout.split(total)
        return {"row": spec.inputs["row"] + sums["row"] / sums[WEIGHT]}

    def train_alone(self, histories, public, *, rounds=None):
        raise AssertionError("not asked for")

    fit = project = own_statistics = mix = candidates = contributions


@pytest.fixture
def histories() -> list[sparse.csr_matrix]:
    rng = np.random.default_rng(3)
    return [sparse.csr_matrix((rng.random((n, NUM_ITEMS)) < 0.5).astype(np.float32)) for n in (12, 1, 40, 7, 25)]


@pytest.fixture
def federation(histories) -> Federation:
    return federation_of(histories, shops_per_round=2)


def federation_of(histories, **terms) -> Federation:
    public = PublicInputs(np.array([f"item-{i}" for i in range(NUM_ITEMS)]))
    return Federation(Pulled(), public, Terms(ROSTER, run_id="seed 0", **terms), histories)


def by_hand(federation, rounds=ROUNDS):
    """Rows and losses after each round, from the mean over the shoppers of the shops that are asked."""
    row, rows, losses = np.zeros(NUM_ITEMS), [], []
    for index in range(rounds):
        asked = federation.terms.asked(RoundKind.LOCAL_UPDATE, index)
        shoppers = np.concatenate([federation.histories[ROSTER.index(shop)].toarray().astype(float) for shop in asked])
        losses.append(((shoppers - row) ** 2).sum(axis=1).mean())
        row = row + (shoppers.mean(axis=0) - row) / 2
        rows.append(row)
    return rows, losses


def test_every_round_asks_its_own_draw_of_the_shops_and_moves_by_their_mean(federation):
    trained = run_local(federation)
    rows, losses = by_hand(federation)
    np.testing.assert_allclose(trained.state["row"], rows[-1], rtol=1e-12)
    np.testing.assert_allclose([one.figures["loss"] for one in trained.rounds], losses, rtol=1e-12)
    assert {(one.shops, one.failed, one.not_asked) for one in trained.rounds} == {(2, 0, 3)}
    assert len({federation.terms.asked(RoundKind.LOCAL_UPDATE, index) for index in range(ROUNDS)}) > 1


def test_the_draw_is_the_runs_own_uniform_and_for_local_updates_alone():
    terms = Terms(ROSTER, run_id="seed 0", shops_per_round=2)
    drawn = [terms.asked(RoundKind.LOCAL_UPDATE, index) for index in range(2000)]
    assert drawn == [replace(terms, min_shops=2).asked(RoundKind.LOCAL_UPDATE, index) for index in range(2000)]
    assert drawn != [replace(terms, run_id="seed 1").asked(RoundKind.LOCAL_UPDATE, index) for index in range(2000)]
    counts = Counter(shop for asked in drawn for shop in asked)
    assert all(abs(counts[shop] - 800) < 120 for shop in ROSTER)  # 5.5 standard deviations of a fixed draw
    assert {len(set(asked)) for asked in drawn} == {2}
    assert all(list(asked) == sorted(asked) for asked in drawn)
    for kind in (RoundKind.STATISTICS, RoundKind.GRADIENT_STEP):
        assert terms.asked(kind, 0) == ROSTER
    assert Terms(ROSTER).asked(RoundKind.LOCAL_UPDATE, 0) == ROSTER
    assert Terms.from_json(terms.to_json()) == terms


@pytest.mark.parametrize("count", [0, 1, 6])
def test_fewer_shops_than_a_round_needs_and_more_than_there_are_are_refused(count):
    with pytest.raises(ConfigError, match=f"shops_per_round = {count}: must be between min_shops"):
        Terms(ROSTER, min_shops=2, shops_per_round=count)


def test_a_run_that_was_stopped_asks_the_same_shops_when_it_goes_on(federation, tmp_path):
    checkpoint, whole = tmp_path / "c.safetensors", run_local(federation)

    def stop(record, state):
        if record.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_local(federation, RunOptions(checkpoint, on_round=stop))
    resumed = run_local(federation, RunOptions(checkpoint, resume=True))
    np.testing.assert_array_equal(resumed.state["row"], whole.state["row"])
    assert [one.figures for one in resumed.rounds] == [one.figures for one in whole.rounds]
    other = replace(federation, terms=replace(federation.terms, shops_per_round=3))
    with pytest.raises(ConfigError, match="another run"):
        run_local(other, RunOptions(checkpoint, resume=True))


def test_a_shop_that_is_not_asked_neither_answers_nor_counts(federation):
    terms = federation.terms
    coordinator = Coordinator(federation.model, federation.public, terms)
    plan = coordinator.next_plan()
    left_out = next(place for place, shop in enumerate(ROSTER) if shop not in coordinator.asked)
    nodes = shop_nodes(federation.model, federation.public, terms, federation.histories)
    again = read_plan(plan.header, plan.spec.inputs)
    with pytest.raises(BadMessage, match="asks other shops"):
        nodes[left_out].answer(again)
    with pytest.raises(BadMessage, match="not among the 2"):
        coordinator.receive(ROSTER[left_out], sent(federation, plan, left_out))


def test_a_round_that_failed_asks_another_draw_which_every_shop_checks(histories, tmp_path):
    federation, checkpoint = federation_of(histories, shops_per_round=2, min_shops=2), tmp_path / "c.safetensors"
    first, second = (federation.terms.asked(RoundKind.LOCAL_UPDATE, 0, attempt) for attempt in (0, 1))
    assert first != second
    gone = Faults(drop=1.0, seed=1)
    with pytest.raises(TooFewShops):
        run_local(federation, RunOptions(checkpoint), faults=gone)
    coordinator = Coordinator(federation.model, federation.public, federation.terms)
    assert Checkpoints(checkpoint).resume(coordinator)
    plan = coordinator.next_plan()
    assert (plan.index, plan.attempt, coordinator.asked) == (0, 1, second)
    assert read_plan(plan.header, plan.spec.inputs) == plan
    assert plan.digest != replace(plan, attempt=0).digest
    nodes = shop_nodes(federation.model, federation.public, federation.terms, federation.histories)
    by_name = {node.name: node for node in nodes}
    for shop in second:
        assert by_name[shop].answer(plan).to_bytes() == by_name[shop].answer(plan).to_bytes()
    for shop in set(ROSTER) - set(second):
        with pytest.raises(BadMessage, match="asks other shops"):
            by_name[shop].answer(plan)
    resumed = run_local(federation, RunOptions(checkpoint, resume=True))
    assert len(resumed.rounds) == ROUNDS
    assert read_checkpoint(checkpoint).attempt == 0


def test_a_round_that_asks_all_shops_is_the_same_plan_however_often_it_failed(histories, tmp_path):
    federation = federation_of(histories, min_shops=2)
    coordinator = Coordinator(federation.model, federation.public, federation.terms)
    plan = coordinator.next_plan()
    with pytest.raises(TooFewShops):
        coordinator.close()
    assert coordinator.next_plan().header == plan.header
    with pytest.raises(ConfigError, match="asks all shops: it stays the same plan"):
        replace(plan, attempt=1)
    for attempt in (-1, 1001, True, "1"):
        with pytest.raises(ConfigError, match="whole number from 0 to 1000"):
            replace(plan, attempt=attempt)
    named = json.loads(plan.header) | {"attempt": 0}
    with pytest.raises(BadMessage, match="canonical"):
        read_plan(canonical_json(named), plan.spec.inputs)


def sent(federation, plan: RoundPlan, place: int) -> bytes:
    rows = federation.histories[place]
    draws = Draws.seeded("x", shopper_digests(range(rows.shape[0])))
    return release(contribute(federation.model, plan, rows, draws), plan).to_bytes()


def test_drop_outs_are_counted_among_the_shops_that_were_asked(histories):
    federation = federation_of(histories, shops_per_round=2, min_shops=2)
    with pytest.raises(TooFewShops, match="of 2 shops answered, at least 2"):
        run_local(federation, faults=Faults(drop=0.5, seed=1))


VALUES = (0.1, 0.3, 0.2, 0.25, 0.9, 0.9, 0.9, 0.9)


def measured(federation):
    """The figure of a round, which is known by the arrays after it."""
    rows = np.array(by_hand(federation)[0])
    return lambda state: {"score": VALUES[int(np.abs(rows - state["row"]).sum(axis=1).argmin())]}


@pytest.mark.parametrize(("patience", "num_run", "best"), [(1, 3, 1), (2, 4, 1), (3, 8, 4), (9, 8, 4)])
def test_rounds_stop_and_the_best_rounds_arrays_are_kept(federation, tmp_path, patience, num_run, best):
    options = RunOptions(measure=measured(federation), stopping=EarlyStopping("score", patience))
    trained = run_local(federation, options)
    assert len(trained.rounds) == num_run
    np.testing.assert_allclose(trained.state["row"], by_hand(federation)[0][best], rtol=1e-12)
    assert [one.figures["score"] for one in trained.rounds] == list(VALUES[:num_run])


@pytest.mark.parametrize("cut", range(5))
def test_a_run_resumed_at_any_round_stops_at_the_same_one_with_the_same_arrays(federation, tmp_path, cut):
    options = RunOptions(
        tmp_path / "c.safetensors", measure=measured(federation), stopping=EarlyStopping("score", 2), resume=True
    )
    whole = run_local(federation, replace(options, checkpoint=None))

    def stop(record, state):
        if record.index == cut:
            raise KeyboardInterrupt

    if cut < len(whole.rounds):
        with pytest.raises(KeyboardInterrupt):
            run_local(federation, replace(options, on_round=stop))
    resumed = run_local(federation, options)
    np.testing.assert_array_equal(resumed.state["row"], whole.state["row"])
    assert [one.figures for one in resumed.rounds] == [one.figures for one in whole.rounds]
    kept = read_checkpoint(tmp_path / "c.safetensors")
    assert kept.index == 4
    assert not np.array_equal(kept.best["row"], kept.state["row"])


@dataclass(frozen=True)
class Diverging(Pulled):
    """As `Pulled`, but from round 3 on training fails in the shops, or what the coordinator makes of it is infinite."""

    in_shops: bool = True

    def local_update(self, spec, histories, draws):
        if self.in_shops and spec.inputs["index"][0] >= 2:
            raise NotFinite("training left the finite numbers")
        return super().local_update(spec, histories, draws)

    def plan_round(self, index, state, public):
        spec = super().plan_round(index, state, public)
        return spec and replace(spec, inputs={**spec.inputs, "index": np.array([index])})

    def advance(self, spec, state, total, public, *, noise_sd=0.0):
        moved = super().advance(spec, state, total, public)
        is_over = not self.in_shops and spec.inputs["index"][0] >= 2
        return {"row": moved["row"] * np.inf} if is_over else moved


@pytest.mark.parametrize(
    ("in_shops", "error", "words"),
    [
        (True, TooFewShops, r"0 of 2 shops answered, .*; finished rounds are kept; shops that refused or failed: 2"),
        (False, NotFinite, r"round 3 \(pull\): the shared arrays would leave the finite numbers; finished rounds are"),
    ],
)
def test_a_training_that_diverges_ends_the_run_and_the_last_good_round_is_kept(
    federation, tmp_path, in_shops, error, words
):
    checkpoint = tmp_path / "c.safetensors"
    diverging = replace(federation, model=Diverging(in_shops=in_shops))
    for resume in (False, True):
        with pytest.raises(error, match=words):
            run_local(diverging, RunOptions(checkpoint, resume=resume))
        kept = read_checkpoint(checkpoint)
        assert kept.index == 2
        np.testing.assert_allclose(kept.state["row"], by_hand(federation)[0][1], rtol=1e-12)
