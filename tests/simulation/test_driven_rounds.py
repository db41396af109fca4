"""How a scenario drives the rounds of a network: which shops are asked, when it ends, and what is told meanwhile."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import fedrec
from fedrec.config import SimulationSettings
from fedrec.errors import ConfigError
from fedrec.federation.run_record import RoundRecord
from fedrec.models import load_model
from fedrec.models.recommender import train_alone
from fedrec.privacy.draws import Draws, shopper_digests
from fedrec.simulation.columns import judge, objective, shared_scorer
from fedrec.simulation.rounds import figures_in_words, run_id_of
from fedrec.simulation.world import Stage, pooled_rows, prepare, queries

FAST = {"rounds": 6, "local_epochs": 1, "latent": 4, "learning_rate": 0.02, "device": "cpu"}
SMALL: dict[str, Any] = {
    "data": {"synthetic": {"num_shoppers": 120, "num_shops": 3, "num_items": 60, "size_ratio": 3}},
    "model": {"name": "multvae", "tune": False, "settings": FAST},
    "evaluation": {"columns": ["federated", "pooled"], "bootstrap": 100},
    "seed": 3,
}


def changed(**sections: dict[str, Any]) -> dict[str, Any]:
    return {**SMALL, **{name: {**SMALL.get(name, {}), **values} for name, values in sections.items()}}


class Listens:
    def __init__(self, stop_after: int | None = None) -> None:
        self.said: list[str] = []
        self.phases: list[tuple[str, int | None]] = []
        self._stop_after = stop_after

    def phase(self, name: str, total: int | None) -> None:
        self.phases.append((name, total))
        if self._stop_after == len(self.said):
            raise KeyboardInterrupt

    def advance(self, n: int = 1) -> None:
        pass

    def result(self, text: str) -> None:
        self.said.append(text)

    def note(self, text: str) -> None:
        pass


def test_a_part_of_the_shops_is_asked_each_round_and_the_run_says_so(tmp_path: Path) -> None:
    settings = changed(federation={"shops_per_round": 0.5})
    heard = Listens()
    done = fedrec.simulate(settings, out=tmp_path / "part", progress=heard)
    assert [(one.shops, one.failed, one.not_asked) for one in done.record.rounds] == [(2, 0, 1)] * 6
    assert ("rounds: local update", 2) in heard.phases
    assert "6 rounds" in (tmp_path / "part" / "report.html").read_text(encoding="utf-8")
    whole = fedrec.simulate(changed(federation={"shops_per_round": 3}), out=tmp_path / "all")
    every = fedrec.simulate(SMALL, out=tmp_path / "every")
    parts = [load_file(run.run_dir / "model" / "shared.safetensors") for run in (done, whole, every)]
    assert any(not np.array_equal(parts[0][name], parts[1][name]) for name in parts[0])
    for name in parts[1]:
        np.testing.assert_array_equal(parts[1][name], parts[2][name])


def test_after_an_interrupt_the_curve_holds_every_round(tmp_path: Path) -> None:
    settings = changed(federation={"patience": 2, "shops_per_round": 2})
    whole = fedrec.simulate(settings, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fedrec.simulate(settings, out=tmp_path / "cut", progress=Listens(stop_after=2))
    resumed = fedrec.simulate(settings, out=tmp_path / "cut", progress=(heard := Listens()), resume=True)
    assert heard.said[0].startswith("round 3: loss ")
    assert resumed.record.learning_curve == whole.record.learning_curve
    assert [one["round"] for one in resumed.record.learning_curve] == list(range(1, len(whole.record.rounds) + 1))
    assert resumed.record.scores == whole.record.scores


def test_rounds_end_by_validation_and_both_columns_learn_the_same(tmp_path: Path) -> None:
    settings = changed(federation={"patience": 1}, model={"settings": {**FAST, "rounds": 30, "learning_rate": 0.1}})
    done = fedrec.simulate(settings, out=tmp_path / "run")
    curve = done.record.learning_curve
    figures = [one["validation ndcg@10"] for one in curve]
    best = int(np.argmax(figures))
    assert len(curve) == best + 2 < 30
    assert done.record.model["early_stopping"]["round"] == best + 1
    assert "raw data" in done.record.model["early_stopping"]["figure"]
    assert done.record.scores["federated"]["macro"]["ndcg@10"]["mean"] == pytest.approx(curve[best]["ndcg@10"])
    model = load_model("multvae", settings["model"]["settings"])
    world = prepare(SimulationSettings.from_mapping(settings))
    shared = load_file(done.run_dir / "model" / "shared.safetensors")
    rows = pooled_rows(world, Stage.CHOOSE)
    alone = train_alone(model, rows, world.public, rounds=best + 1)
    assert {name: values.shape for name, values in alone.items()} == {n: v.shape for n, v in shared.items()}
    longer = train_alone(model, rows, world.public)
    assert any(not np.array_equal(alone[name], longer[name]) for name in alone)


def test_early_stopping_learns_from_neither_validation_nor_test_events(tmp_path: Path) -> None:
    settings = SimulationSettings.from_mapping(changed(federation={"patience": 2}))
    done = fedrec.simulate(settings, out=tmp_path / "run")
    model, world = load_model("multvae", FAST), prepare(settings)
    spec = model.plan_round(0, {}, world.public)
    sums = np.zeros(spec.layout.size)
    for shop in world.shops:
        draws = Draws.seeded(f"{run_id_of(settings, world)}/{shop.name}/0", shopper_digests(shop.shoppers))
        sums += model.local_update(spec, shop.shared(shop.train, world.public.num_items), draws)
    loss = sums[-1] / sums[-2]
    assert done.record.learning_curve[0]["loss"] == pytest.approx(loss, rel=1e-6)
    best = done.record.model["early_stopping"]["round"] - 1
    scorer = model.fit(load_file(done.run_dir / "model" / "shared.safetensors"), world.public)
    values = [
        judge(shared_scorer(world, scorer, place), queries(shop, Stage.CHOOSE), seed=settings.seed)
        for place, shop in enumerate(world.shops)
    ]
    assert done.record.learning_curve[best]["validation ndcg@10"] == pytest.approx(objective(values))


def test_a_rounds_figures_in_words() -> None:
    record = RoundRecord(0, "local update", 1.0, 3, 0, 1, 1, figures={"loss": 7.12345, "ndcg@10": 0.0912, "x": None})
    assert figures_in_words(record.figures) == "loss 7.123, NDCG@10 .0912"
    assert figures_in_words({"validation ndcg@10": 0.081, "ndcg@10": 0.5}) == "NDCG@10 .5000, on validation .0810"


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"federation": {"shops_per_round": 0.5}, "model": {"name": "ease", "settings": {}}}, "'ease' is made of sums"),
        ({"federation": {"shops_per_round": 4}}, "asks 4 of 3 shops a round"),
        (
            {"federation": {"shops_per_round": 0.4, "min_shops": 3}},
            r"asks 2 of 3 shops a round; give at least .* \(3\)",
        ),
        ({"federation": {"patience": 2}, "model": {"name": "ease", "settings": {}}}, "'ease' is done when its sums"),
        (
            {
                "federation": {"patience": 2},
                "data": {"split": "random-share", "split_settings": {"validation_share": 0}},
            },
            "holds no validation events",
        ),
    ],
)
def test_rounds_that_cannot_be_had_are_refused_before_anything_is_written(
    sections: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        fedrec.simulate(changed(**sections), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"federation": {"shops_per_round": 1.5}}, "shops_per_round = 1.5: give a share of the shops below 1"),
        ({"federation": {"shops_per_round": 0}}, "federation.shops_per_round"),
        ({"federation": {"shops_per_round": 2, "secure": True}}, "with secure aggregation"),
        ({"federation": {"shops_per_round": 2}, "privacy": {"epsilon": 2, "delta": 1e-6}}, "with an epsilon"),
        ({"federation": {"patience": 2}, "privacy": {"epsilon": 2, "delta": 1e-6}}, "is the shops' raw data"),
        ({"federation": {"patience": 2}, "evaluation": {"columns": ["pooled"]}}, "no column with rounds to stop"),
        ({"federation": {"patience": 0}}, "federation.patience"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(sections: dict[str, Any], words: str) -> None:
    columns = ["federated_dp"] if "privacy" in sections else ["federated"]
    with pytest.raises(ConfigError, match=words):
        SimulationSettings.from_mapping(
            changed(evaluation={"columns": columns, **sections.pop("evaluation", {})}, **sections)
        )


def test_a_share_is_rounded_up_to_whole_shops() -> None:
    def asked(value: float | None, shops: int) -> int | None:
        section = changed(federation={"shops_per_round": value})
        return SimulationSettings.from_mapping(section).federation.num_asked(shops)

    assert [asked(0.5, 10), asked(0.25, 10), asked(0.1, 10), asked(0.01, 10), asked(7, 10)] == [5, 3, 1, 1, 7]
    assert asked(None, 10) is None
    assert json.loads(json.dumps(SimulationSettings.from_mapping(SMALL).to_json()))["federation"]["patience"] is None


def test_masks_hide_each_shops_loss_and_leave_the_federations(tmp_path: Path) -> None:
    settings = changed(model={"settings": {**FAST, "rounds": 2}}, evaluation={"columns": ["federated"]})
    plain = fedrec.simulate(settings, out=tmp_path / "plain")
    masked = fedrec.simulate({**settings, "federation": {"secure": True}}, out=tmp_path / "masked")
    losses = [[one["loss"] for one in run.record.learning_curve] for run in (plain, masked)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
