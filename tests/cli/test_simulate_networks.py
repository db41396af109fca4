"""``fedrec simulate`` with networks: what it refuses in one line, and what it can take."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedrec.config import read_scenario
from fedrec.simulation import simulate
from fedrec.simulation.progress import Silent

SCENARIO = """
seed = 3
[data.synthetic]
num_shoppers = 120
num_shops = 3
num_items = {num_items}
size_ratio = 3
[model]
name = "{model}"
tune = false
settings = {{ rounds = 3, local_epochs = 1, device = "cpu", learning_rate = 0.01 }}
[evaluation]
columns = ["federated"]
bootstrap = 100
"""


class StopsAfterOneRound(Silent):
    """Ctrl-C when the second round begins."""

    is_over = False

    def phase(self, name: str, total: int | None) -> None:
        if self.is_over:
            raise KeyboardInterrupt

    def result(self, text: str) -> None:
        self.is_over = True


def interrupted(folder: Path, *, num_items: int = 60, model: str = "multvae") -> tuple[Path, Path]:
    """A scenario, and the directory of its run that was interrupted after a round."""
    scenario, out = folder.with_suffix(".toml"), folder
    scenario.write_text(SCENARIO.format(num_items=num_items, model=model))
    with pytest.raises(KeyboardInterrupt):
        simulate(read_scenario(scenario), out=out, progress=StopsAfterOneRound())
    assert (out / "checkpoint.safetensors").is_file()
    return scenario, out


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(said: Any, words: str) -> bool:
    """One line that names the matter, and no traceback."""
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    return said.status == 2 and len(errors) == 1 and words in errors[0] and "Traceback" not in said.err


@pytest.mark.parametrize("other", [{"num_items": 50}, {"model": "multdae"}], ids=["catalogue", "model"])
def test_a_checkpoint_of_another_catalogue_or_model_is_refused_and_nothing_changes(
    fedrec: Callable[..., Any], tmp_path: Path, other: dict[str, Any]
) -> None:
    scenario, out = interrupted(tmp_path / "run")
    foreign = interrupted(tmp_path / "other", **other)[1]
    shutil.copy(foreign / "checkpoint.safetensors", out)
    before = files(out)
    assert refused(fedrec("simulate", scenario, "--out", out, "--resume"), "the checkpoint belongs to another run")
    assert files(out) == before


def test_a_torn_checkpoint_is_refused_and_a_sound_one_goes_on_with_its_curve(
    fedrec: Callable[..., Any], tmp_path: Path
) -> None:
    scenario, out = interrupted(tmp_path / "run")
    sound = (out / "checkpoint.safetensors").read_bytes()
    (out / "checkpoint.safetensors").write_bytes(sound[: len(sound) // 2])
    assert refused(fedrec("simulate", scenario, "--out", out, "--resume"), "not a readable checkpoint")
    (out / "checkpoint.safetensors").write_bytes(sound)
    said = fedrec("simulate", scenario, "--out", out, "--resume")
    assert said.status == 0, said.err
    assert "  round 2: loss " in said.err
    assert "  round 1: " not in said.err
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert [one["round"] for one in record["learning_curve"]] == [1, 2, 3]
    assert "Training loss" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("key", ["round_learning_rate", "server_learning_rate"])
@pytest.mark.parametrize("rate", ["1e9", "1e300"])
def test_a_training_that_diverges_says_so_in_one_line_and_releases_nothing(
    fedrec: Callable[..., Any], tmp_path: Path, key: str, rate: str
) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(SCENARIO.format(num_items=60, model="multvae"))
    said = fedrec("simulate", scenario, "--set", f"model.settings.{key}={rate}", "--out", tmp_path / "run")
    assert refused(said, "give "), said.err
    assert "learning rate" in said.err.replace("_", " ")
    assert not {"run.json", "report.html", "recommendations.parquet"} & files(tmp_path / "run").keys()


@pytest.mark.parametrize("model", ["recvae", "vaegan"])
@pytest.mark.parametrize("mode", ["distributed", "local"])
def test_a_model_that_makes_no_promise_names_those_that_do(
    fedrec: Callable[..., Any], small_options: tuple[str, ...], tmp_path: Path, model: str, mode: str
) -> None:
    promise = ("--epsilon", "2", "--delta", "1e-6", "--privacy-mode", mode)
    said = fedrec("simulate", *small_options, "--model", model, *promise, "--out", tmp_path / "run")
    assert refused(said, f"model '{model}' cannot be trained under a privacy budget; these can: popularity, itemknn")
    assert "smallae" in said.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("federation.shops_per_round=0.5", "federation.secure=true"), "with secure aggregation"),
        (("federation.shops_per_round=9",), "asks 9 of 3 shops a round"),
        (("federation.shops_per_round=2.5",), "a share of the shops below 1, or a whole number"),
        (("federation.patience=0",), "federation.patience = 0"),
        (("model.settings.batch_shoppers=0",), "batch_shoppers = 0: give a whole number of at least 1"),
        (("model.settings.learning_rate=-1",), "learning_rate = -1"),
    ],
)
def test_settings_of_rounds_that_cannot_be_are_refused_before_anything_is_written(
    fedrec: Callable[..., Any], tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    check_refused_before_writing(fedrec, tmp_path, "multvae", options, words)


def check_refused_before_writing(
    fedrec: Callable[..., Any], tmp_path: Path, model: str, options: Iterable[str], words: str
) -> None:
    """One line, and no run directory."""
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(SCENARIO.format(num_items=60, model=model))
    sets = [part for option in options for part in ("--set", option)]
    said = fedrec("simulate", scenario, *sets, "--out", tmp_path / "run")
    assert refused(said, words), said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "option", "words"),
    [
        ("multvae", "latent=100000000", "latent = 100000000: give a whole number from 1 to 8192"),
        ("multvae", "init_seed=99999999999999999999999", "init_seed = 99999999999999999"),
        ("multvae", "beta=-1", "beta = -1"),
        ("multvae", "device=tpu", "device = 'tpu': this machine has no such device for torch; give auto, cpu, or cuda"),
        ("multvae", "device=cuda:99", "device = 'cuda:99': this machine has no such device"),
        ("multvae", "device=meta", "device = 'meta': this machine has no such device"),
        ("recvae", "gamma=-1", "gamma = -1"),
        ("vaegan", "adversarial=-1", "adversarial = -1"),
        ("gmf", "factors=10000000000", "factors = 10000000000: give a whole number from 1 to 8192"),
        ("gmf", "negatives=1000000", "negatives = 1000000: give a whole number from 1 to 249"),
        (
            "gmf",
            "loss=pairwise",
            "loss = 'pairwise': only the binary loss has the mean over draws; give is_expected = fa",
        ),
        ("neumf", "layers=60", "layers = 60: give a whole number from 1 to 8"),
        ("smallae", "size=100000", "size = 100000: give a whole number from 1 to 8192"),
        ("smallae", "learning_rat=1", "no setting 'learning_rat' (did you mean 'learning_rate'?); it takes: "),
    ],
)
def test_a_network_that_cannot_be_is_refused_before_anything_is_written(
    fedrec: Callable[..., Any], tmp_path: Path, model: str, option: str, words: str
) -> None:
    check_refused_before_writing(fedrec, tmp_path, model, [f"model.settings.{option}"], words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("model.settings.private_clip_norm=1e308",),
            "private_clip_norm = 1e+308: give a number above 1e-06, at most 64",
        ),
        (
            ("model.settings.private_sampling_rate=0.5", "privacy.max_shops_per_person=2"),
            "private_sampling_rate = 0.5 with max_shops_per_person = 2",
        ),
        (
            ("model.settings.private_clip_quantile=0.5", "privacy.max_shops_per_person=2"),
            "private_clip_quantile with max_shops_per_person = 2",
        ),
        (("model.settings.device=tpu",), "device = 'tpu'"),
    ],
)
def test_noisy_steps_that_cannot_be_are_refused_before_anything_is_written(
    fedrec: Callable[..., Any], tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    promise = ("privacy.epsilon=2", "privacy.delta=1e-6", "privacy.mode=local", "privacy.benchmark=true")
    columns = 'evaluation.columns=["federated_dp"]'
    check_refused_before_writing(fedrec, tmp_path, "smallae", (columns, *promise, *options), words)


@pytest.mark.parametrize("model", ["multvae", "gmf"])
def test_batches_larger_than_a_shop_and_shops_that_know_few_items_are_no_trouble(
    fedrec: Callable[..., Any], tmp_path: Path, model: str
) -> None:
    rows = [
        {
            "shop": shop,
            "shopper": f"{shop}{shopper}",
            "item": f"i{(3 * shopper + step * step) % size}",
            "timestamp": step,
        }
        for shop, shoppers, size in (("large", 60, 40), ("small", 6, 4), ("one", 1, 3))
        for shopper in range(shoppers)
        for step in range(6)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "events.csv", index=False)
    said = fedrec(
        *("simulate", "--events", tmp_path / "events.csv", "--model", model, "--no-tune", "--out", tmp_path / "run"),
        *("--set", "model.settings.batch_shoppers=100000", "--set", "model.settings.rounds=2"),
        *("--set", "model.settings.local_epochs=1", "--set", "evaluation.bootstrap=100"),
    )
    assert said.status == 0, said.err
    scores = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["scores"]
    assert 0 < scores["federated"]["macro"]["ndcg@10"]["mean"] <= 1
    assert set(scores["federated"]["shops"]) == {"large", "small", "one"}
