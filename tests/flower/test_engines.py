import itertools
import tracemalloc
from dataclasses import dataclass, replace

import numpy as np
import pytest

from fedrec.errors import ConfigError, TooFewShops
from fedrec.federation.checkpoint import read_checkpoint
from fedrec.flower import engines
from fedrec.flower.engines import RunOptions, run_local, run_with_ray
from fedrec.flower.local_grid import Faults
from fedrec.models.popularity import Popularity
from fedrec.models.recommender import Layout, RoundKind, RoundSpec


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, array in expected.items():
        assert state[name].dtype == array.dtype
        assert state[name].tobytes() == array.tobytes(), name


def test_a_federation_in_this_process_equals_a_plain_loop_bit_for_bit(federation, plain_state):
    trained = run_local(federation)
    assert_same(trained.state, plain_state)
    assert [(r.index, r.shops, r.failed) for r in trained.rounds] == [(0, 5, 0), (1, 5, 0)]


def test_bytes_of_a_round_are_counted(federation):
    first = run_local(federation).rounds[0]
    # five releases of 30 float64 behind a header of 128 bytes
    assert first.bytes_up == 5 * (128 + 30 * 8)
    assert first.bytes_down % 5 == 0
    assert first.bytes_down > 5 * 300


def test_worker_processes_change_no_bit(federation, plain_state, tmp_path):
    assert_same(run_local(federation, workers=2, run_dir=tmp_path).state, plain_state)


def test_workers_without_a_run_directory_are_refused(federation):
    with pytest.raises(ConfigError, match="run directory"):
        run_local(federation, workers=2)


def test_shops_that_drop_out_are_left_out_of_the_sum(federation):
    federation = replace(federation, model=Popularity())
    sums = [np.asarray(rows.sum(axis=0)).ravel() for rows in federation.histories]
    num_failed = set()
    for seed in range(30):
        try:
            trained = run_local(federation, faults=Faults(drop=0.25, error=0.25, seed=seed))
        except TooFewShops:
            num_failed.add("too many")
            continue
        num_shops = trained.rounds[0].shops
        subsets = [sum(chosen) for chosen in itertools.combinations(sums, num_shops)]
        assert sum(np.array_equal(trained.state["popularity"], total) for total in subsets) == 1
        num_failed.add(5 - num_shops)
    assert num_failed >= {0, 1, 2, 3, "too many"}


def test_faults_follow_their_seed(federation):
    federation = replace(federation, terms=replace(federation.terms, min_shops=1))

    def failed(seed):
        return [r.failed for r in run_local(federation, faults=Faults(drop=0.4, seed=seed)).rounds]

    assert failed(3) == failed(3)
    assert len({tuple(failed(seed)) for seed in range(8)}) > 1


def test_duplicates_and_delays_change_nothing(federation, plain_state):
    trained = run_local(federation, faults=Faults(duplicate=1.0, delay_s=0.05, seed=1))
    assert_same(trained.state, plain_state)


def test_too_few_shops_end_the_run_and_keep_what_was_finished(federation, tmp_path):
    checkpoint = tmp_path / "c.safetensors"
    calls = []

    def stop_after_first(record, state):
        calls.append(record.index)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_local(federation, RunOptions(checkpoint, on_round=stop_after_first))
    assert calls == [0]
    with pytest.raises(TooFewShops):
        run_local(federation, RunOptions(checkpoint, resume=True), faults=Faults(drop=1.0))
    assert read_checkpoint(checkpoint).index == 1


def test_a_run_that_was_stopped_goes_on_to_the_same_arrays(federation, plain_state, tmp_path):
    checkpoint = tmp_path / "c.safetensors"

    def stop(record, state):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_local(federation, RunOptions(checkpoint, on_round=stop))
    resumed = run_local(federation, RunOptions(checkpoint, resume=True))
    assert_same(resumed.state, plain_state)
    assert [r.index for r in resumed.rounds] == [0, 1]
    finished = run_local(federation, RunOptions(checkpoint, resume=True))
    assert_same(finished.state, plain_state)
    assert len(finished.rounds) == 2


def test_a_run_resumed_with_other_settings_is_refused(federation, tmp_path):
    checkpoint = tmp_path / "c.safetensors"
    run_local(federation, RunOptions(checkpoint))
    with pytest.raises(ConfigError, match="another run"):
        run_local(
            replace(federation, terms=replace(federation.terms, run_id="changed")), RunOptions(checkpoint, resume=True)
        )


def test_progress_is_reported_shop_by_shop(federation):
    heard = []
    run_local(federation, RunOptions(on_reply=lambda plan, done: heard.append((plan.index, done))))
    assert heard == [(index, done) for index in (0, 1) for done in range(1, 6)]


@dataclass(frozen=True)
class Wide(Popularity):
    """Every shop sends a million values."""

    def plan_round(self, index, state, public):
        layout = Layout((("popularity", (1_000_000,)),))
        return None if index else RoundSpec(RoundKind.STATISTICS, "wide", layout)

    def contributions(self, spec, histories):
        return self

    def total(self, weights):
        return np.full(1_000_000, float(len(weights)))


def test_vectors_of_many_shops_do_not_pile_up(federation):
    shops = replace(
        federation,
        model=Wide(),
        terms=replace(federation.terms, roster=tuple(f"shop-{i}" for i in range(40))),
        histories=[federation.histories[0]] * 40,
    )
    run_local(shops)
    tracemalloc.start()
    trained = run_local(shops)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert trained.state["popularity"][-1] == 40 * 12
    # of forty: the accumulator, the one being made, its bytes, and the one before
    assert peak_bytes < 6 * 8_000_000


def test_ray_without_ray_names_the_extra(federation, tmp_path, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"fedrec\[ray\]"):
        run_with_ray(federation, run_dir=tmp_path)
