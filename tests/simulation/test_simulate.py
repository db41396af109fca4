"""A whole comparison, from settings to the run directory."""

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from safetensors.numpy import load_file

import fedrec
from fedrec.cli.tables import shop_table
from fedrec.errors import ConfigError, TooFewShops
from fedrec.shop.served import open_shop

SMALL = {
    "name": "small",
    "seed": 3,
    "data": {"synthetic": {"num_shoppers": 900, "num_shops": 3, "num_items": 250}},
    "evaluation": {"bootstrap": 100, "ks": [10, 20]},
}


def with_changes(**sections):
    """SMALL with some sections extended."""
    return {**SMALL, **{name: {**SMALL.get(name, {}), **values} for name, values in sections.items()}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fedrec.simulate(SMALL, out=tmp_path_factory.mktemp("runs") / "small")


def test_a_run_leaves_everything_its_record_names(run):
    for name in run.record.files:
        assert (run.run_dir / name).stat().st_size > 0, name
    written = json.loads((run.run_dir / "run.json").read_text())
    assert written["scores"] == json.loads(run.record.to_json())["scores"]
    assert written["complete"] is True
    assert written["guarantee"].startswith("none")


def test_the_federated_column_equals_the_pooled_one(run):
    scores = run.record.scores
    for level in ("macro", "micro"):
        for metric, value in scores["pooled"][level].items():
            assert scores["federated"][level][metric]["mean"] == pytest.approx(value["mean"], rel=1e-5), metric


def test_joining_helps_small_shops_and_beats_popularity_on_the_marketplace(tmp_path):
    """Ten shops of 61 to about 1,700 shoppers; means over two marketplaces, for single ones are noisy."""
    values = {column: [] for column in ("popularity", "local", "federated", "federated_personal")}
    for seed in (0, 1):
        settings = {**SMALL, "seed": seed, "data": {"synthetic": {"num_shoppers": 4000, "num_items": 900}}}
        done = fedrec.simulate(settings, out=tmp_path / str(seed))
        for column, found in values.items():
            found.append(done.record.scores[column]["macro"]["ndcg@10"]["mean"])
    means = {column: float(np.mean(found)) for column, found in values.items()}
    assert means["federated_personal"] > means["local"]
    assert means["federated"] > means["popularity"]


def test_lists_hold_no_known_items_and_their_figures_can_be_recomputed(run):
    lists = pd.read_parquet(run.run_dir / "recommendations.parquet")
    split = pd.read_parquet(run.run_dir / "split.parquet")
    pairs = ["shop", "shopper", "item"]
    split[pairs] = split[pairs].astype(str)
    known = split[split["part"] != 2][pairs].drop_duplicates()
    assert lists.merge(known, on=pairs).empty
    assert not lists.duplicated(pairs).any()
    test = split[split["part"] == 2][pairs].drop_duplicates()
    hits = lists[lists["rank"] <= 10].merge(test, on=pairs).groupby(["shop", "shopper"]).size()
    for shop, figures in run.record.scores["federated_personal"]["shops"].items():
        catalogue = known[known["shop"] == shop]["item"].unique()
        shoppers = test[(test["shop"] == shop) & test["item"].isin(catalogue)]["shopper"].nunique()
        found = hits[shop] if shop in hits.index.get_level_values(0) else []
        assert figures["hr@10"]["mean"] == pytest.approx(len(found) / shoppers)


def test_a_shop_opened_from_the_run_directory_recommends_what_the_run_listed(run):
    lists = pd.read_parquet(run.run_dir / "recommendations.parquet")
    shop = lists["shop"].iloc[0]
    served = open_shop(run.run_dir, shop)
    for shopper, listed in lists[(lists["shop"] == shop) & (lists["rank"] <= 10)].groupby("shopper"):
        row = int(np.searchsorted(served.shoppers, shopper))
        scores = served.scorer.scores(served.known[[row]])[0]
        places = np.searchsorted(served.items, listed.sort_values("rank")["item"])
        np.testing.assert_allclose(scores[places], listed.sort_values("rank")["score"], rtol=1e-4, atol=1e-6)


def test_the_same_settings_give_the_same_figures_and_arrays(run, tmp_path):
    again = fedrec.simulate(SMALL, out=tmp_path / "again")
    assert again.record.scores == run.record.scores
    ours, theirs = (load_file(place / "model" / "shared.safetensors") for place in (run.run_dir, again.run_dir))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_an_existing_folder_is_refused_and_left_as_it_is(run):
    before = (run.run_dir / "run.json").read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        fedrec.simulate(SMALL, out=run.run_dir)
    assert (run.run_dir / "run.json").read_bytes() == before


def test_resume_refuses_other_settings(run):
    with pytest.raises(ConfigError, match="other settings"):
        fedrec.simulate({**SMALL, "seed": 4}, out=run.run_dir, resume=True)


def test_rounds_that_finished_before_an_interrupt_are_not_run_again(tmp_path):
    settings = with_changes(
        model={"name": "ials", "tune": False, "settings": {"factors": 4, "sweeps": 4}},
        evaluation={"columns": ["federated"]},
    )
    whole = fedrec.simulate(settings, out=tmp_path / "whole")

    class InterruptedRunError(Exception):
        pass

    class StopsInRoundThree:
        done = 0

        def phase(self, name, total):
            if self.done == 2:
                raise InterruptedRunError

        def result(self, text):
            self.done += 1

        def advance(self, n=1):
            pass

        def note(self, text):
            pass

    with pytest.raises(InterruptedRunError):
        fedrec.simulate(settings, out=tmp_path / "cut", progress=StopsInRoundThree())
    assert not (tmp_path / "cut" / "run.json").exists()
    rounds = []

    class Listens(StopsInRoundThree):
        def result(self, text):
            rounds.append(text)

    resumed = fedrec.simulate(settings, out=tmp_path / "cut", resume=True, progress=Listens())
    assert [text.split(":")[0] for text in rounds] == ["round 3", "round 4"]
    assert len(resumed.record.rounds) == 4
    assert [point["round"] for point in resumed.record.learning_curve] == [1, 2, 3, 4]
    assert resumed.record.learning_curve == whole.record.learning_curve
    assert resumed.record.scores == whole.record.scores


def test_the_curve_alone_is_measured_on_a_part_of_the_shoppers(tmp_path):
    few = 4
    model = {"name": "ials", "tune": False, "settings": {"factors": 4, "sweeps": 2}}
    whole, part, least = (
        fedrec.simulate(
            with_changes(model=model, evaluation={"columns": ["federated"], **changes}), out=tmp_path / name
        ).record
        for name, changes in {
            "whole": {},
            "part": {"max_curve_shoppers_per_shop": few},
            "least": {"max_test_shoppers_per_shop": few},
        }.items()
    )
    ends = {id(record): record.learning_curve[-1]["ndcg@10"] for record in (whole, part, least)}
    of_all = whole.scores["federated"]["macro"]["ndcg@10"]["mean"]
    assert ends[id(whole)] == pytest.approx(of_all)
    assert part.scores == whole.scores
    assert ends[id(part)] == ends[id(least)] == pytest.approx(least.scores["federated"]["macro"]["ndcg@10"]["mean"])
    assert ends[id(part)] != pytest.approx(of_all)


def test_the_report_says_how_many_shoppers_were_scored_as_the_terminal_does(tmp_path):
    few = 20
    settings = with_changes(
        model={"tune": False},
        evaluation={"columns": ["local", "federated_personal"], "max_test_shoppers_per_shop": few},
    )
    done = fedrec.simulate(settings, out=tmp_path / "few")
    record = json.loads(done.record.to_json())
    console = Console(file=io.StringIO(), width=120)
    console.print(shop_table(record))
    lines = console.file.getvalue().splitlines()
    page = (done.run_dir / "report.html").read_text(encoding="utf-8")
    with_items = {shop["shop"]: shop["test_shoppers"] for shop in record["data"]["shops"]}
    assert few < max(with_items.values())
    for name, row in record["gain"]["shops"].items():
        num_scored = int((~np.isnan(done.evaluation.per_shopper("local", name, "ndcg@10"))).sum())
        assert num_scored <= few
        assert next(line.split() for line in lines if name in line)[2] == str(num_scored)
        cells = re.search(rf'class="name">{name}</th>(?:<td class="n">.*?</td>){{2}}<td class="n">(.*?)</td>', page)
        more = f"<small>of {with_items[name]:,}</small>" if with_items[name] > num_scored else ""
        assert cells[1] == f"{num_scored}{more}"
        assert row["test_shoppers"] == num_scored


def test_too_few_answers_end_the_run_and_keep_finished_rounds(tmp_path):
    settings = with_changes(federation={"min_shops": 3, "faults": {"drop": 1.0}}, model={"tune": False})
    with pytest.raises(TooFewShops, match="0 of 3"):
        fedrec.simulate(settings, out=tmp_path / "dropped")


def test_worker_processes_give_the_same_shared_arrays(run, tmp_path):
    settings = with_changes(federation={"workers": 2})
    other = fedrec.simulate(settings, out=tmp_path / "workers")
    ours, theirs = (load_file(place / "model" / "shared.safetensors") for place in (run.run_dir, other.run_dir))
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize("model", ["popularity", "itemknn", "ials"])
def test_every_model_runs_through_all_columns(model, tmp_path):
    settings = with_changes(model={"name": model, "tune": False}, evaluation={"sampled_negatives": True})
    done = fedrec.simulate(settings, out=tmp_path / model)
    assert set(done.record.scores) == {"popularity", "local", "federated", "federated_personal", "pooled"}
    assert done.record.compatibility["federated"]["hr@10 (99 negatives, clean)"] > 0


def test_a_users_own_model_takes_part(tmp_path):
    settings = with_changes(model={"name": "fedrec.models.popularity:Popularity", "tune": False})
    done = fedrec.simulate(settings, out=tmp_path / "own")
    assert done.record.model["name"] == "fedrec.models.popularity:Popularity"


def test_settings_that_the_scenario_gives_are_not_searched(tmp_path):
    settings = with_changes(model={"settings": {"regularisation": 7.5}}, evaluation={"columns": ["local"]})
    done = fedrec.simulate(settings, out=tmp_path / "given")
    assert {trial["settings"].get("regularisation", 7.5) for trial in done.record.model["tuned"]} == {7.5}


def test_more_shops_demanded_than_there_are_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"federation\.min_shops = 4: there are 3 shops"):
        fedrec.simulate(with_changes(federation={"min_shops": 4}), out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("settings", [3, None])
def test_settings_of_another_type_are_refused(settings):
    with pytest.raises(ConfigError, match="settings of type"):
        fedrec.simulate(settings)
