import dataclasses
import os

import numpy as np
import pytest

from fedrec.errors import ConfigError, StoreError
from fedrec.federation.checkpoint import Checkpoint, Checkpoints, read_checkpoint, write_checkpoint
from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.release import release
from fedrec.federation.run_record import RoundRecord
from fedrec.federation.shop_side import contribute
from fedrec.federation.terms import Terms

NAMES = ("north", "south", "west")


def run_round(coordinator, histories):
    plan = coordinator.next_plan()
    for shop, rows in zip(NAMES, histories, strict=True):
        coordinator.receive(shop, release(contribute(coordinator.model, plan, rows), plan).to_bytes())
    return coordinator.close()


def keep(checkpoints, coordinator, closed):
    checkpoints.save(coordinator, closed, RoundRecord(closed.index, closed.name, 0.5, 3, 0, 100, 200))


def test_a_run_goes_on_where_it_stopped_with_identical_arrays(tmp_path, counting, public, histories):
    whole = Coordinator(counting, public, Terms(NAMES))
    run_round(whole, histories)
    run_round(whole, histories)

    stopped = Coordinator(counting, public, Terms(NAMES))
    keep(Checkpoints(tmp_path / "c.safetensors"), stopped, run_round(stopped, histories))

    resumed = Coordinator(counting, public, Terms(NAMES))
    checkpoints = Checkpoints(tmp_path / "c.safetensors")
    assert checkpoints.resume(resumed)
    assert resumed.index == 1
    keep(checkpoints, resumed, run_round(resumed, histories))
    np.testing.assert_array_equal(resumed.state["counts"], whole.state["counts"])
    assert resumed.next_plan() is None
    assert [record.index for record in read_checkpoint(tmp_path / "c.safetensors").rounds] == [0, 1]


def test_without_a_checkpoint_a_run_starts_from_the_beginning(tmp_path, coordinator):
    assert not Checkpoints(tmp_path / "none.safetensors").resume(coordinator)
    assert coordinator.index == 0


def test_a_checkpoint_of_another_run_is_refused(tmp_path, counting, public, histories):
    first = Coordinator(counting, public, Terms(NAMES, run_id="a"))
    keep(Checkpoints(tmp_path / "c.safetensors"), first, run_round(first, histories))
    for other in (
        Coordinator(counting, public, Terms(NAMES, run_id="b")),
        Coordinator(counting, public, Terms(NAMES, run_id="a", clip_norm=1.0)),
    ):
        with pytest.raises(ConfigError, match="another run"):
            Checkpoints(tmp_path / "c.safetensors").resume(other)


def test_a_crash_while_writing_leaves_the_checkpoint_before(tmp_path, monkeypatch, counting, public, histories):
    coordinator = Coordinator(counting, public, Terms(NAMES))
    checkpoints = Checkpoints(tmp_path / "c.safetensors")
    keep(checkpoints, coordinator, run_round(coordinator, histories))
    before = (tmp_path / "c.safetensors").read_bytes()

    def crash(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", crash)
    closed = run_round(coordinator, histories)
    with pytest.raises(StoreError, match="No space left"):
        keep(checkpoints, coordinator, closed)
    assert (tmp_path / "c.safetensors").read_bytes() == before
    assert os.listdir(tmp_path) == ["c.safetensors"]


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x02\0\0\0\0\0\0\0{}"], ids=len)
def test_a_damaged_checkpoint_is_refused(tmp_path, coordinator, content):
    (tmp_path / "c.safetensors").write_bytes(content)
    with pytest.raises(StoreError):
        Checkpoints(tmp_path / "c.safetensors").resume(coordinator)


def test_arrays_keep_their_types_and_shapes(tmp_path, coordinator):
    state = {
        "turned": np.arange(6.0).reshape(2, 3).T,
        "counts": np.arange(3, dtype=np.int64),
        "small": np.ones((2, 2), dtype=np.float32),
    }
    write_checkpoint(tmp_path / "c.safetensors", Checkpoint("id", 0, state, (), ()))
    read = read_checkpoint(tmp_path / "c.safetensors")
    assert (read.identity, read.index) == ("id", 0)
    for name, array in state.items():
        np.testing.assert_array_equal(read.state[name], array)
        assert read.state[name].dtype == array.dtype


@pytest.mark.parametrize(
    "change", [{"index": 2}, {"index": 1.5}, {"index": "1"}, {"rounds": ()}, {"plan_digests": ()}], ids=str
)
def test_a_checkpoint_whose_index_and_records_disagree_is_refused(tmp_path, counting, public, histories, change):
    path = tmp_path / "c.safetensors"
    coordinator = Coordinator(counting, public, Terms(NAMES))
    keep(Checkpoints(path), coordinator, run_round(coordinator, histories))
    write_checkpoint(path, dataclasses.replace(read_checkpoint(path), **change))
    with pytest.raises(StoreError, match="finished rounds"):
        Checkpoints(path).resume(Coordinator(counting, public, Terms(NAMES)))
