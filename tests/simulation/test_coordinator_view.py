"""What the coordinator received, kept: every federation of a run, every attempt."""

import json

import pytest

import fedrec
from fedrec.errors import StoreError
from fedrec.simulation.coordinator_view import CoordinatorView


def listed(folder):
    return [json.loads(line) for line in (folder / "messages.jsonl").read_text().splitlines()]


def test_a_second_attempt_adds_to_the_first(tmp_path):
    first = CoordinatorView(tmp_path, "eps-2/some", is_masked=True)
    first("keys", 0, "ant", b"a")
    first("upload", 0, "bee", b"bb")
    second = CoordinatorView(tmp_path, "eps-2/some", is_masked=True)
    second("keys", 0, "bee", b"ccc")
    folder = tmp_path / "coordinator_view" / "eps-2" / "some"
    kept = [(one["number"], one["attempt"], one["step"], one["shop"], one["bytes"]) for one in listed(folder)]
    assert kept == [(0, 1, "keys", "ant", 1), (1, 1, "upload", "bee", 2), (2, 2, "keys", "bee", 3)]
    assert [(folder / one["file"]).read_bytes() for one in listed(folder)] == [b"a", b"bb", b"ccc"]


def test_a_list_that_cannot_be_read_is_not_overwritten(tmp_path):
    folder = tmp_path / "coordinator_view" / "federated"
    folder.mkdir(parents=True)
    (folder / "messages.jsonl").write_text("nothing\n")
    with pytest.raises(StoreError, match="move it away"):
        CoordinatorView(tmp_path, "federated", is_masked=False)


def test_every_federation_and_noise_draw_of_a_run_is_kept(tmp_path):
    settings = {
        "name": "view",
        "seed": 3,
        "data": {"synthetic": {"num_shoppers": 400, "num_shops": 4, "num_items": 60}},
        "model": {"tune": False},
        "evaluation": {
            "bootstrap": 100,
            "ks": [10],
            "columns": ["local", "federated", "dp_popularity", "federated_dp"],
        },
        "privacy": {"epsilon": 2, "delta": 1e-5, "noise_draws": 2},
        "federation": {"reveal_coordinator_view": True},
    }
    done = fedrec.simulate(settings, out=tmp_path / "run")
    view = done.run_dir / "coordinator_view"
    found = {str(path.parent.relative_to(view)) for path in view.rglob("messages.jsonl")}
    draws = {f"eps-2/{column}-draw-{draw}" for column in ("dp_popularity", "federated_dp") for draw in (1, 2)}
    assert found == {"federated", *draws}
    for rounds in draws:
        steps = [one["step"] for one in listed(view / rounds)]
        num_rounds = 1 if "popularity" in rounds else 2
        expected = {"keys": 1, "deal": 1, "check": 1, "upload": num_rounds, "sign": num_rounds, "unmask": num_rounds}
        assert {step: steps.count(step) for step in steps} == {step: 4 * count for step, count in expected.items()}
        assert all(one["is_masked"] for one in listed(view / rounds))
    steps = ("keys", "deal", "check", "upload", "sign", "unmask")  # an epsilon masks the rounds without noise too
    assert [one["step"] for one in listed(view / "federated")] == [step for step in steps for _ in range(4)]
    sent = sum(one["bytes"] for one in listed(view / "federated"))
    assert sent == done.record.bytes["up"]
