"""Columns under differential privacy: through real rounds, noise and ledgers, on a small marketplace."""

import json
import re

import numpy as np
import pandas as pd
import pytest

import fedrec
from fedrec.errors import BadAssumption, BadDelta, ConfigError, NoPrivateVariant, RoundRefused, TooFewHonestShops
from fedrec.federation.run_record import read_record
from fedrec.privacy.ledger import Ledger
from fedrec.privacy.settings import PrivacySettings
from fedrec.privacy.spec import one_significant_digit
from fedrec.shop.personalise import keeps_validation
from fedrec.shop.served import open_shop
from fedrec.simulation import size_classes
from fedrec.simulation.progress import Silent

SMALL = {
    "name": "private",
    "seed": 3,
    "data": {"synthetic": {"num_shoppers": 900, "num_shops": 4, "num_items": 250}},
    "model": {"tune": False},
    "evaluation": {"bootstrap": 100, "ks": [10]},
    "privacy": {"epsilon": [4, 0.5], "delta": 1e-6, "noise_draws": 2},
}
PRIVATE = ("dp_popularity", "federated_dp", "federated_dp_personal")


def with_changes(**sections):
    """SMALL with some sections extended."""
    return {**SMALL, **{name: {**SMALL.get(name, {}), **values} for name, values in sections.items()}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fedrec.simulate(SMALL, out=tmp_path_factory.mktemp("runs") / "private")


def test_every_epsilon_has_its_columns_beside_the_others(run):
    columns = [f"{family}@{epsilon}" for family in PRIVATE for epsilon in ("0.5", "4")]
    assert set(run.record.scores) == {"popularity", "local", "federated", "federated_personal", "pooled", *columns}
    assert list(run.record.columns) == list(run.record.scores)
    assert run.record.main_column == "federated_dp_personal@4"
    for column in columns:
        macro = run.record.scores[column]["macro"]["ndcg@10"]
        assert macro["low"] <= macro["mean"] <= macro["high"]


def test_without_an_epsilon_there_is_nothing_of_it(tmp_path):
    settings = with_changes(privacy={"epsilon": None}, evaluation={"columns": ["local", "federated", "federated_dp"]})
    done = fedrec.simulate(settings, out=tmp_path / "plain")
    assert list(done.record.columns) == ["local", "federated"]
    assert (done.record.privacy, done.record.gain_by_epsilon) == (None, [])
    assert done.record.guarantee.startswith("none")
    assert not (done.run_dir / "privacy").exists()


def test_the_record_says_what_is_promised_and_what_it_costs_in_several_shops(run):
    privacy = read_record(run.run_dir / "run.json").privacy
    assert (privacy["mode"], privacy["delta"], privacy["noise_draws"]) == ("distributed", 1e-6, 2)
    assert [one["epsilon"] for one in privacy["runs"]] == [0.5, 4]
    for one in privacy["runs"]:
        for model in (one["popularity"], one["federated"]):
            spent = model["epsilon_by_accounts"]
            assert 0.9 * one["epsilon"] < spent["1"] <= one["epsilon"] < spent["2"] < spent["3"]
            assert model["spec"]["min_shops"] == 4
            assert model["spec"]["public_shoppers"] == 900
            assert f"epsilon {one['epsilon']:g}, delta 1e-06" in model["guarantee"]
        assert [release["name"] for release in one["federated"]["schedule"]] == ["popularity", "co-occurrence"]
        assert len(one["federated"]["rounds"]) == 2
    strict, lenient = (one["federated"]["schedule"][1]["noise_multiplier"] for one in privacy["runs"])
    assert strict > 4 * lenient


def test_what_the_rounds_cost_grows_up_to_the_promise_and_is_all_that_is_said_of_them(tmp_path):
    said = []

    class Listens(Silent):
        def result(self, text):
            said.append(text)

    settings = with_changes(privacy={"epsilon": 2, "noise_draws": 1}, evaluation={"columns": ["federated_dp"]})
    done = fedrec.simulate(settings, out=tmp_path / "run", progress=Listens())
    points = done.record.privacy["runs"][0]["federated"]["epsilon_by_round"]
    assert [one["round"] for one in points] == [1, 2]
    assert 0 < points[0]["epsilon"] < points[1]["epsilon"] == pytest.approx(2, rel=2e-3)
    assert points[1]["epsilon"] <= 2
    assert said == [f"round {i} of 2: epsilon {points[i - 1]['epsilon']:.3g} spent" for i in (1, 2)]
    assert all(one["figures"] == {} for one in done.record.privacy["runs"][0]["federated"]["rounds"])


def test_the_guarantee_names_the_main_epsilon_and_who_is_kept_out(run):
    guarantee = run.record.guarantee
    assert guarantee.startswith("epsilon 4, delta 1e-06 per shopper")
    assert "the coordinator included (masked sums), unless more than 1 of the shops work with it" in guarantee
    assert "Other epsilons of this run: 0.5" in guarantee
    assert run.record.privacy["is_masked"]
    assert not run.record.privacy["not_protected"]


def test_without_secure_aggregation_a_run_says_that_the_coordinator_is_not_kept_out(tmp_path):
    settings = with_changes(
        privacy={"epsilon": 4, "noise_draws": 1},
        federation={"secure": False},
        evaluation={"columns": ["local", "federated_dp"]},
    )
    record = fedrec.simulate(settings, out=tmp_path / "open").record
    assert "not against the coordinator" in record.guarantee
    assert "isn't protected from the coordinator" in record.privacy["not_protected"]


def test_the_first_draw_of_each_epsilon_leaves_a_ledger_that_holds_its_two_releases(run):
    for one in run.record.privacy["runs"]:
        path = run.run_dir / one["ledger"]
        assert one["ledger"] in run.record.files
        for shop in run.shoppers:
            ledger = Ledger.open(f"sqlite:///{path.absolute()}", shop)
            ledger.verify()
            assert ledger.spent().epsilon <= one["epsilon"]
            assert ledger.spent().epsilon > 0.9 * one["epsilon"]


def test_gains_are_over_local_only_with_decisions_and_classes(run):
    scores = run.record.scores
    assert [gain["of"] for gain in run.record.gain_by_epsilon] == [
        "federated_dp_personal@0.5",
        "federated_dp_personal@4",
    ]
    for gain in run.record.gain_by_epsilon:
        assert gain["over"] == "local"
        difference = scores[gain["of"]]["macro"]["ndcg@10"]["mean"] - scores["local"]["macro"]["ndcg@10"]["mean"]
        assert gain["macro"]["mean"] == pytest.approx(difference)
        assert sum(row["shops"] for row in gain["classes"].values()) == 4
        for shop, row in gain["shops"].items():
            if row["decision"] == "stays local" and "draws" not in row["reason"]:
                assert (row["mean"], row["low"], row["high"]) == (0, 0, 0), shop
    assert run.record.gain["of"] == "federated_dp_personal@4"


def test_shops_of_declared_size_test_and_the_small_ones_join_by_the_rule(run):
    gain = run.record.gain
    sizes = {shop["shop"]: shop["shoppers"] for shop in run.record.data["shops"]}
    keeps = {shop: keeps_validation(one_significant_digit(size)) for shop, size in sizes.items()}
    assert any(keeps.values())
    assert not all(keeps.values())
    assert run.record.privacy["keep_validation_back"] == [shop for shop in sizes if keeps[shop]]
    for shop, row in gain["shops"].items():
        by_rule = "small by its declared size" in row["reason"]
        assert by_rule != keeps[shop], shop
        if by_rule:
            assert row["decision"] == "joins"


@pytest.mark.parametrize(("size", "keeps"), [(1, False), (94, False), (95, True), (100, True), (4000, True)])
def test_a_size_that_nobody_declared_counts_to_one_digit(size, keeps):
    assert keeps_validation(PrivacySettings().declared_shoppers("a", size)) is keeps


def test_who_keeps_validation_back_depends_on_the_declared_size_alone():
    declared = PrivacySettings(shop_shoppers={"a": 90, "b": 100})
    for size in (1, 94, 95, 5000):
        assert not keeps_validation(declared.declared_shoppers("a", size))
        assert keeps_validation(declared.declared_shoppers("b", size))
    with pytest.raises(BadAssumption, match="shop 'c'"):
        PrivacySettings(shop_shoppers={"c": 0})


def test_draws_differ_and_the_lists_left_are_those_of_the_first(run):
    evaluation = run.evaluation
    draws = np.array([evaluation.draw_means["federated_dp@0.5"][shop] for shop in evaluation.shops])
    assert draws.shape[1] == 2
    assert not np.array_equal(draws[:, 0], draws[:, 1])
    lists = pd.read_parquet(run.run_dir / "recommendations.parquet")
    split = pd.read_parquet(run.run_dir / "split.parquet").astype({"shop": str, "shopper": str, "item": str})
    test = split[split["part"] == 2][["shop", "shopper", "item"]].drop_duplicates()
    hits = lists[lists["rank"] <= 10].merge(test, on=["shop", "shopper", "item"]).groupby("shop").size()
    for shop in evaluation.shops:
        first = evaluation.draw_means["federated_dp_personal@4"][shop][0, evaluation.metrics.index("hr@10")]
        tested = np.count_nonzero(~np.isnan(evaluation.per_shopper("local", shop, "hr@10")))
        assert hits.get(shop, 0) / tested == pytest.approx(first), shop


def test_a_shop_opened_from_the_run_directory_serves_the_private_model(run):
    lists = pd.read_parquet(run.run_dir / "recommendations.parquet")
    for shop in lists["shop"].unique():
        served = open_shop(run.run_dir, shop)
        for shopper, listed in list(lists[(lists["shop"] == shop) & (lists["rank"] <= 10)].groupby("shopper"))[:5]:
            row = int(np.searchsorted(served.shoppers, shopper))
            scores = served.scorer.scores(served.known[[row]])[0]
            places = np.searchsorted(served.items, listed.sort_values("rank")["item"])
            np.testing.assert_allclose(scores[places], listed.sort_values("rank")["score"], rtol=1e-4, atol=1e-6)


def test_a_large_epsilon_comes_near_the_model_without_privacy(tmp_path):
    """Noise of almost nothing: what is left between the columns is that rules, not a search, choose settings.

    A draw's ratio lies around 1.02 with a standard deviation of 0.09; the mean of four is 6 of its own above 0.7.
    """
    settings = with_changes(
        privacy={"epsilon": 20, "noise_draws": 4, "mode": "local"},
        evaluation={"columns": ["popularity", "federated", "federated_dp"]},
    )
    scores = fedrec.simulate(settings, out=tmp_path / "huge").record.scores
    means = {column: scores[column]["macro"]["ndcg@10"]["mean"] for column in scores}
    assert means["federated_dp@20"] > 0.7 * means["federated"]


def test_worker_processes_and_faults_go_through_the_same_rounds(tmp_path):
    settings = with_changes(
        privacy={"epsilon": 2, "noise_draws": 2, "min_shops": 3},
        federation={"workers": 2, "faults": {"duplicate": 1.0}},
        evaluation={"columns": ["local", "federated_dp_personal"]},
    )
    done = fedrec.simulate(settings, out=tmp_path / "workers")
    assert done.record.scores["federated_dp_personal@2"]["macro"]["ndcg@10"]["mean"] > 0
    assert sorted(path.name for path in (done.run_dir / "privacy").iterdir()) == ["eps-2"]


def test_an_interrupted_private_run_resumes_with_the_releases_that_were_charged(tmp_path):
    settings = with_changes(privacy={"epsilon": 2, "noise_draws": 1}, evaluation={"columns": ["federated_dp"]})

    class InterruptedRunError(Exception):
        pass

    class StopsWhenRanking:
        def phase(self, name, total):
            if name == "epsilon 2: rank":
                raise InterruptedRunError

        def advance(self, n=1):
            pass

        def result(self, text):
            pass

        def note(self, text):
            pass

    with pytest.raises(InterruptedRunError):
        fedrec.simulate(settings, out=tmp_path / "cut", progress=StopsWhenRanking())
    url = f"sqlite:///{(tmp_path / 'cut' / 'privacy' / 'eps-2' / 'ledger.sqlite').absolute()}"
    shop = str(pd.read_parquet(tmp_path / "cut" / "split.parquet")["shop"].iloc[0])
    before = Ledger.open(url, shop).head()
    done = fedrec.simulate(settings, out=tmp_path / "cut", resume=True)
    assert Ledger.open(url, shop).spent().epsilon <= 2
    assert Ledger.open(url, shop).head().sequence == before.sequence
    assert done.record.scores["federated_dp@2"]["macro"]["ndcg@10"]["mean"] > 0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"privacy": {"delta": 1e-3}}, BadDelta),
        ({"privacy": {"delta": 1e-300}}, RoundRefused),
        ({"privacy": {"min_shops": 2}}, BadAssumption),
        ({"privacy": {"colluders": 4}}, TooFewHonestShops),
        ({"federation": {"min_shops": 2}}, BadAssumption),
        ({"privacy": {"epsilon": None}, "federation": {"secure": True, "min_shops": 2}}, BadAssumption),
        ({"data": {"synthetic": {"num_shoppers": 300, "num_shops": 2, "num_items": 80}}}, TooFewHonestShops),
        ({"model": {"name": "tests.simulation.test_private_columns:NoVariant"}}, (NoPrivateVariant, ConfigError)),
    ],
)
def test_a_promise_that_cannot_be_made_is_refused_before_anything_is_written(tmp_path, change, error):
    with pytest.raises(error):
        fedrec.simulate(with_changes(**change), out=tmp_path / "refused")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["distributed", "local"])
@pytest.mark.parametrize("secure", [None, True, False])
def test_rounds_without_noise_are_masked_where_the_private_ones_are(tmp_path, mode, secure):
    settings = with_changes(
        privacy={"epsilon": 2, "noise_draws": 1, "mode": mode},
        federation={"secure": secure, "reveal_coordinator_view": True},
        evaluation={"columns": ["federated", "federated_dp"]},
    )
    done = fedrec.simulate(settings, out=tmp_path / "run")
    messages = [
        json.loads(line)
        for path in (done.run_dir / "coordinator_view").rglob("messages.jsonl")
        for line in path.read_text().splitlines()
    ]
    is_masked = secure if secure is not None else mode == "distributed"
    assert {one["is_masked"] for one in messages} == {is_masked}
    assert ("sign" in {one["step"] for one in messages}) is is_masked
    assert done.record.privacy["is_masked"] is is_masked


def test_a_benchmark_without_colluders_says_that_it_promises_nothing_to_deploy(tmp_path):
    settings = with_changes(
        privacy={"epsilon": 2, "noise_draws": 1, "benchmark": True, "colluders": 0},
        evaluation={"columns": ["dp_popularity"]},
    )
    record = fedrec.simulate(settings, out=tmp_path / "benchmark").record
    assert "not a deployable guarantee" in record.guarantee
    assert record.privacy["is_benchmark"] is True
    assert record.main_column == "dp_popularity@2"


def test_shops_fall_into_classes_by_their_number_of_shoppers():
    sizes = {"a": 99, "b": 100, "c": 999, "d": 1_000, "e": 10_000, "f": 1}
    assert size_classes(sizes) == {
        "under 100 shoppers": ["a", "f"],
        "100 to 999 shoppers": ["b", "c"],
        "1,000 to 9,999 shoppers": ["d"],
        "10,000 shoppers and more": ["e"],
    }
    assert size_classes({"a": 5}) == {"under 100 shoppers": ["a"]}


def test_a_report_of_private_columns_alone_lists_the_rounds_that_the_total_counts(tmp_path):
    settings = with_changes(
        privacy={"epsilon": 2, "noise_draws": 2}, evaluation={"columns": ["dp_popularity", "federated_dp"]}
    )
    done = fedrec.simulate(settings, out=tmp_path / "run")
    page = (done.run_dir / "report.html").read_text(encoding="utf-8")
    table = page.partition('aria-label="Rounds"')[2].partition("</table>")[0]
    assert re.findall(r'<th scope="row">(.*?)</th>', table) == ["ε 2: 1 popularity", "ε 2: 2 co-occurrence"]
    assert len(done.record.rounds) == 2
    assert "in all, 2 rounds" in page


def test_the_record_holds_no_shopper(run):
    text = json.dumps(read_record(run.run_dir / "run.json").privacy)
    names = {str(name) for names in run.shoppers.values() for name in names}
    assert not [name for name in names if f'"{name}"' in text]
