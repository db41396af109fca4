"""Rounds with secure aggregation over Flower's messages: the exact sum, drop-outs at every step, nothing unmasked."""

from __future__ import annotations

import itertools
import os
import stat
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse, stats

from fedrec.errors import BadMessage, PrivacyError, ProtocolError, TooFewShops
from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.plan import read_plan
from fedrec.federation.release import read_release
from fedrec.federation.secure_round import Step, ask_all, set_up
from fedrec.federation.terms import PLAIN_UNIT, Terms
from fedrec.flower.engines import Federation, RunOptions, run_local
from fedrec.flower.local_grid import Faults
from fedrec.models import private_model
from fedrec.models.ease import Ease
from fedrec.models.popularity import Popularity
from fedrec.privacy.calibration import calibrate
from fedrec.privacy.mechanisms import outlook
from fedrec.privacy.noise import SeededNoiseForTests
from fedrec.privacy.spec import Mode, PrivacySpec
from fedrec.secure_aggregation.parameters import Parameters
from fedrec.shop.node import FILES_FOLDER, read_shop_files, shop_nodes, simulated_identities

ROSTER = ("ant", "bee", "cat", "dog", "elk")


def secured(federation: Federation, *, min_shops: int = 4, colluders: int = 1) -> Federation:
    """The same federation with secure aggregation."""
    identities = simulated_identities(len(federation.terms.roster))
    keys = [identity.public for identity in identities]
    parameters = Parameters.of(federation.terms.roster, keys, min_shops=min_shops, colluders=colluders)
    terms = replace(federation.terms, min_shops=min_shops, secure=parameters)
    return replace(federation, terms=terms, identities=identities)


def counted(federation: Federation) -> Federation:
    """Popularity: whole numbers, which fixed point holds exactly."""
    return replace(federation, model=Popularity())


def private(federation: Federation) -> Federation:
    """EASE under a privacy spec, with noise that a seed gives again."""
    spec = PrivacySpec(
        epsilon=8.0, delta=1e-5, mode=Mode.DISTRIBUTED, public_shoppers=80, max_shoppers=1000, min_shops=4, colluders=1
    )
    base = Ease()
    schedule = calibrate(base.release_requests(), spec)
    model = private_model(base, outlook(schedule, spec, len(ROSTER)), federation.public)
    terms = Terms(ROSTER, min_shops=4, run_id="private", privacy=spec, schedule=schedule)
    return replace(federation, model=model, terms=terms, make_noise=lambda purpose: SeededNoiseForTests(7, purpose))


def same(state, other):
    return state.keys() == other.keys() and all(state[name].tobytes() == other[name].tobytes() for name in state)


def test_masked_counts_are_the_plain_counts_bit_for_bit(federation):
    federation = counted(federation)
    assert same(run_local(secured(federation)).state, run_local(federation).state)


def test_masked_fractions_are_the_plain_sum_of_the_rounded_vectors(federation, plain_state):
    secure = run_local(secured(federation)).state
    for name, array in plain_state.items():
        np.testing.assert_allclose(secure[name], array, atol=5 * PLAIN_UNIT)
    assert np.array_equal(secure["co_occurrence"] / PLAIN_UNIT, np.rint(secure["co_occurrence"] / PLAIN_UNIT))


def test_private_sums_are_the_same_with_masks_and_without(federation):
    federation = private(federation)
    assert same(run_local(secured(federation)).state, run_local(federation).state)


def test_worker_processes_share_the_keys_through_files_that_nobody_else_can_read(federation, tmp_path):
    federation = secured(counted(federation))
    trained = run_local(federation, workers=2, run_dir=tmp_path)
    assert same(trained.state, run_local(counted(federation)).state)
    for path in (tmp_path / FILES_FOLDER).glob("shop-*"):
        if path.suffix in {".key", ".masking"}:
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600, path
    assert len(list((tmp_path / FILES_FOLDER).glob("*.masking"))) == len(ROSTER)


def test_duplicated_and_delayed_messages_change_nothing(federation):
    federation = secured(federation)
    faults = Faults(duplicate=1.0, delay_s=0.02, seed=1)
    assert same(run_local(federation, faults=faults).state, run_local(federation).state)


def test_shops_may_drop_out_at_every_step_and_the_sum_is_that_of_the_survivors(federation):
    federation = secured(counted(federation), min_shops=3, colluders=0)
    sums = [np.asarray(rows.sum(axis=0)).ravel() for rows in federation.histories]
    outcomes = set()
    for seed in range(60):
        try:
            trained = run_local(federation, faults=Faults(drop=0.06, error=0.06, seed=seed))
        except TooFewShops:
            outcomes.add("too few")
            continue
        num_shops = trained.rounds[0].shops
        subsets = [sum(chosen) for chosen in itertools.combinations(sums, num_shops)]
        assert any(np.array_equal(trained.state["popularity"], total) for total in subsets), seed
        outcomes.add(5 - num_shops)
    assert outcomes >= {0, 1, 2, "too few"}


def test_a_resumed_run_deals_new_keys_and_ends_the_same(federation, tmp_path):
    federation = secured(federation)
    checkpoint = tmp_path / "checkpoint.safetensors"

    class StopError(Exception):
        pass

    def stop(record, state):
        raise StopError

    with pytest.raises(StopError):
        run_local(federation, RunOptions(checkpoint, on_round=stop))
    resumed = run_local(federation, RunOptions(checkpoint, resume=True))
    assert [record.index for record in resumed.rounds] == [0, 1]
    assert same(resumed.state, run_local(federation).state)


def test_bytes_of_the_other_exchanges_are_counted(federation):
    federation = counted(federation)
    plain, secure = (run_local(one).rounds[0] for one in (federation, secured(federation)))
    assert secure.bytes_up > plain.bytes_up
    assert secure.bytes_down > plain.bytes_down


def uploads(federation):
    """What the coordinator received in the first round, as bytes of the vectors."""
    seen = []

    def keep(step, index, shop, data):
        if step == "upload" and index == 0:
            seen.append(data[128:])

    run_local(federation, RunOptions(on_message=keep))
    return seen


@pytest.mark.parametrize("is_private", [False, True])
def test_single_uploads_are_uniform_whatever_the_data(federation, is_private):
    wide = 4000
    for fill in (0.0, 1.0):
        rows = [sparse.csr_matrix(np.full((3, wide), fill, np.float32)) for _ in ROSTER]
        public = type(federation.public)(np.array([f"item-{i:04d}" for i in range(wide)]))
        some = replace(counted(federation), public=public, histories=rows)
        some = secured(replace(private(some), model=Popularity()) if is_private else some)
        for data in uploads(some):
            counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
            assert stats.chisquare(counts).pvalue > 1e-9  # 20 uploads in all: a false alarm once in 5 x 10^7 runs


def test_without_secure_aggregation_the_coordinator_reads_a_shops_sum(federation):
    federation = counted(federation)
    first = np.frombuffer(uploads(federation)[0])
    assert np.array_equal(first, np.asarray(federation.histories[0].sum(axis=0)).ravel())


@pytest.fixture
def party(federation):
    """A coordinator with an open round, and the nodes that dealt keys for it."""
    federation = secured(counted(federation))
    nodes = shop_nodes(
        federation.model, federation.public, federation.terms, federation.histories, identities=federation.identities
    )
    by_name = {node.name: node for node in nodes}
    run = Coordinator(federation.model, federation.public, federation.terms)

    def answer(shop, step, data):  # "ant" did not hear what was dealt to it
        return None if (shop, step) == ("ant", Step.CHECK) else by_name[shop].step(step, data)

    ask_all(set_up(run.secure, 0, run.rounds_to_set_up()), answer)
    return run, nodes


def test_a_plan_of_another_set_up_is_refused(party):
    run, nodes = party
    plan = run.next_plan()
    other = replace(plan, setup="ab" * 32)
    with pytest.raises(PrivacyError, match="another set-up"):
        nodes[0].answer(other, run.secure.delivery("ant"))


def test_a_shop_answers_no_plan_without_what_was_dealt_to_it(party):
    run, nodes = party
    plan = run.next_plan()
    for delivery in (b"", run.secure.delivery("bee")):
        with pytest.raises(BadMessage):
            nodes[0].answer(plan, delivery)


def test_a_second_plan_for_a_round_gets_no_second_vector(party):
    run, nodes = party
    plan = run.next_plan()
    nodes[0].answer(plan, run.secure.delivery("ant"))
    spec = replace(plan.spec, name="popularity again")
    with pytest.raises(ProtocolError, match="used once"):
        nodes[0].answer(replace(plan, spec=spec), run.secure.delivery("ant"))


def test_an_upload_sent_again_is_the_same_bytes(party):
    run, nodes = party
    plan = run.next_plan()
    first, again = (nodes[0].answer(plan, run.secure.delivery("ant")).to_bytes() for _ in range(2))
    assert first == again
    assert read_release(first, plan).values.dtype == np.dtype("<u8")


def test_a_shop_without_keys_sends_nothing(party):
    run, nodes = party
    plan = run.next_plan()
    with pytest.raises(PrivacyError, match="no keys"):
        replace(nodes[0], masking=None).answer(plan, run.secure.delivery("ant"))
    with pytest.raises(PrivacyError, match="takes part in no"):
        replace(nodes[0], masking=None).step(Step.KEYS, b"")


def test_a_plan_names_its_set_up_and_keeps_it_over_the_wire(party):
    run, _ = party
    plan = run.next_plan()
    assert plan.setup == run.secure.setup_digest.hex()
    assert read_plan(plan.header, plan.spec.inputs).digest == plan.digest
    assert replace(plan, setup="cd" * 32).digest != plan.digest


def test_a_shop_in_files_goes_on_with_the_keys_it_dealt(federation, tmp_path):
    federation = secured(counted(federation))
    federation.write_files(tmp_path)
    run = federation.coordinator()

    def answer(shop, step, data):  # a node of its own for every message, as after a crash
        return read_shop_files(tmp_path).node(ROSTER.index(shop)).step(step, data)

    ask_all(set_up(run.secure, 0, 1), answer)
    plan = run.next_plan()
    sent = [read_shop_files(tmp_path).node(0).answer(plan, run.secure.delivery("ant")).to_bytes() for _ in range(2)]
    assert sent[0] == sent[1]
