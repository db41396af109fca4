import dataclasses
import json

import numpy as np
import pytest

from fedrec.errors import StoreError
from fedrec.federation.run_record import (
    RoundRecord,
    RunRecord,
    epsilon_of,
    family_of,
    noisy_column,
    num_threads,
    package_versions,
    peak_memory_bytes,
    read_record,
    remove_leftovers,
    write_atomically,
)


def make_record(**changes):
    fields = {
        "name": "tiny",
        "seed": 0,
        "complete": True,
        "guarantee": "none: research mode; shops' sums leave unprotected",
        "config": {"ks": (10, 20)},
        "data": {"events": np.int64(12)},
        "model": {"name": "ease"},
        "columns": ["popularity", "federated"],
        "main_column": "federated",
        "scores": {"federated": {"macro": {"ndcg@10": {"mean": float("nan"), "low": np.float32(0.5)}}}},
        "gain": None,
        "gain_by_epsilon": [],
        "privacy": None,
        "compatibility": None,
        "rounds": [RoundRecord(0, "popularity", 0.25, 3, 1, 1000, 50, figures={"loss": None})],
        "learning_curve": [{"round": 1, "ndcg@10": np.float64(0.08)}],
        "seconds": {"total": 1.5},
        "bytes": {"up": 1000, "down": 50},
        "peak_memory_bytes": 10,
        "versions": {"python": "3.11"},
        "threads": 1,
        "cores": 2,
        "files": ["run.json"],
    }
    return RunRecord(**(fields | changes))


def test_a_record_is_plain_json_with_null_for_what_does_not_exist(tmp_path):
    make_record().write(tmp_path / "run.json")
    text = (tmp_path / "run.json").read_text()
    fields = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in run.json"))
    assert fields["format"] == 2
    assert fields["scores"]["federated"]["macro"]["ndcg@10"] == {"mean": None, "low": 0.5}
    assert fields["data"]["events"] == 12
    assert fields["config"]["ks"] == [10, 20]
    assert fields["rounds"][0] == {
        "index": 0,
        "name": "popularity",
        "seconds": 0.25,
        "shops": 3,
        "failed": 1,
        "bytes_up": 1000,
        "bytes_down": 50,
        "not_asked": 0,
        "figures": {"loss": None},
    }
    assert fields["created_utc"].endswith("Z")


def test_a_record_read_back_is_written_the_same(tmp_path):
    record = make_record()
    record.write(tmp_path / "run.json")
    read = read_record(tmp_path / "run.json")
    assert read.to_json() == record.to_json()
    assert read.rounds == (RoundRecord(0, "popularity", 0.25, 3, 1, 1000, 50, figures={"loss": None}),)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 1}', '{"format": 3}', make_record().to_json().replace('"seed"', '"sead"'), "{" * 5],
    ids=range(7),
)
def test_what_is_not_a_run_record_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(StoreError, match=r"run\.json"):
        read_record(tmp_path / "run.json")


def test_a_missing_record_is_refused(tmp_path):
    with pytest.raises(StoreError, match="cannot be read"):
        read_record(tmp_path / "run.json")


def test_a_record_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_record().seed = 1


def test_what_a_figure_depends_on_is_known():
    assert set(package_versions()) == {"python", "fedrec", "flwr", "numpy", "scipy", "pandas"}
    assert package_versions()["numpy"] == np.__version__
    assert peak_memory_bytes() > 10 * 1024**2


def test_threads_follow_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert num_threads() == 7


@pytest.mark.parametrize(("epsilon", "text"), [(2.0, "2"), (0.5, "0.5"), (8, "8")])
def test_a_private_column_is_named_after_its_epsilon(epsilon, text):
    column = noisy_column("federated_dp", epsilon)
    assert (family_of(column), epsilon_of(column)) == ("federated_dp", text)
    assert (family_of("local"), epsilon_of("local")) == ("local", "")


def test_an_interrupted_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_atomically(path, b"old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "deep").mkdir()
    kept = [tmp_path / "run.json", tmp_path / ".hidden", tmp_path / "deep" / "notes.tmp"]
    for path in (*kept, tmp_path / ".run.json.17.tmp", tmp_path / "deep" / ".a.json.17.tmp"):
        path.write_bytes(b"x")
    remove_leftovers(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
