"""Every figure of a privacy report follows from the entries alone."""

from __future__ import annotations

import json
import math
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from scipy.stats import norm

from fedrec.errors import ConfigError, LedgerTampered, StoreError
from fedrec.privacy import accounting
from fedrec.privacy.spec import Mode
from fedrec.reports.privacy_entries import Book, read_source
from fedrec.reports.privacy_figures import differences, document, num_figures, rounded

from .privacy_ledgers import PAIRS, SAMPLED, SCHEDULE, Clock, anchor, charge, make_shop, open_ledger, spec

MU = math.sqrt(5 / 72)


def told(place, shop=None):
    """The report's document on a database's only book."""
    return document(read_source(str(place), shop))


def only_shop(place):
    return told(place)["books"][0]["shops"][0]


def only_run(place):
    return told(place)["books"][0]["runs"][0]


def test_a_shops_figures_are_those_of_gaussian_sums(tmp_path):
    make_shop(tmp_path / "shop.db", runs=2)
    shop = only_shop(tmp_path / "shop.db")
    assert shop["spent"] == pytest.approx(accounting.exact_epsilon(MU * math.sqrt(2), 1e-6), rel=1e-6)
    assert shop["spent"] == shop["lifetime"] == shop["committed"]
    assert (shop["releases"], shop["repeats"], shop["entries"]) == (4, 0, 9)
    assert shop["lifetime_odds"]["right_of_coin"] == pytest.approx(norm.cdf(MU * math.sqrt(2) / 2))


def test_what_is_left_fits_and_a_little_more_does_not(tmp_path):
    ledger = make_shop(tmp_path / "shop.db")
    left = only_shop(tmp_path / "shop.db")["left"]
    low, high = 1e-3, 1e3
    while high / low > 1 + 1e-9:  # the noise of one sum of epsilon `left`
        sigma = math.sqrt(low * high)
        low, high = (sigma, high) if accounting.exact_epsilon(1 / sigma, 1e-6) > left else (low, sigma)
    ledger.reserve("fits", spec(), (replace(PAIRS, noise_multiplier=high * (1 + 1e-6)),))
    assert only_shop(tmp_path / "shop.db")["left"] < 0.01
    assert only_shop(tmp_path / "shop.db")["spent"] < 2


def test_reserved_sums_count_as_committed_until_the_run_ends(tmp_path):
    ledger = open_ledger(tmp_path / "shop.db")
    ledger.reserve("open", spec(), SCHEDULE)
    shop = only_shop(tmp_path / "shop.db")
    assert shop["spent"] == 0 < shop["committed"]
    assert shop["runs"] == [{"run": "open", "planned": 2, "charged": 0, "repeats": 0, "state": "open"}]


def test_mechanisms_share_what_was_spent(tmp_path):
    make_shop(tmp_path / "shop.db")
    first, second = only_shop(tmp_path / "shop.db")["mechanisms"]
    assert (first["name"], first["share"]) == ("popularity", pytest.approx(0.1))
    assert (second["name"], second["share"]) == ("co-occurrence", pytest.approx(0.9))
    assert second["epsilon_alone"] == pytest.approx(accounting.exact_epsilon(1 / 4, 1e-6), rel=0.01)


def test_a_run_has_the_epsilon_of_one_two_and_three_accounts(tmp_path):
    make_shop(tmp_path / "shop.db")
    run = only_run(tmp_path / "shop.db")
    for accounts in (1, 2, 3):
        exact = accounting.exact_epsilon(accounts * MU, 1e-6)
        assert run["epsilon_by_accounts"][str(accounts)] == pytest.approx(exact, rel=0.01)
    assert run["accountants"]["rdp"] > run["accountants"]["pld"]


def test_clipping_for_two_shops_gives_two_accounts_what_one_had(tmp_path):
    ledger = open_ledger(tmp_path / "shop.db")
    charge(ledger, "two", promise=spec(max_shops_per_person=2))
    accounts = only_run(tmp_path / "shop.db")["epsilon_by_accounts"]
    assert accounts["2"] == pytest.approx(accounting.exact_epsilon(MU, 1e-6), rel=0.01)
    assert accounts["1"] < accounts["2"] / 1.8


def test_the_attackers_curve_is_the_gaussian_trade_off(tmp_path):
    make_shop(tmp_path / "shop.db")
    run = only_run(tmp_path / "shop.db")
    rates = np.array(run["curve"]["false_accusations"])
    for accounts in (1, 2, 3):
        expected = norm.cdf(norm.ppf(1 - rates) - accounts * MU)
        np.testing.assert_allclose(run["curve"]["misses"][str(accounts)], expected, atol=1e-12)
    assert run["odds"]["found_at_one_percent"] == pytest.approx(norm.cdf(norm.ppf(0.01) + MU))


def test_without_masks_the_coordinator_reaches_more_than_was_promised(tmp_path):
    ledger = open_ledger(tmp_path / "shop.db")
    charge(ledger, "shared", promise=spec(Mode.DISTRIBUTED, min_shops=5, colluders=1))
    found = told(tmp_path / "shop.db")
    run = found["books"][0]["runs"][0]
    assert run["epsilon_of_coordinator"] == pytest.approx(accounting.exact_epsilon(2 * MU, 1e-6), rel=0.01)
    assert [one["noise_of_each_shop"] for one in run["schedule"]] == [6.0, 2.0]
    assert any(text.startswith("Not protected from the coordinator") for text in found["words"]["warnings"])


def test_in_mode_local_the_coordinator_reaches_what_was_promised(tmp_path):
    make_shop(tmp_path / "shop.db")
    found = told(tmp_path / "shop.db")
    assert found["books"][0]["runs"][0]["epsilon_of_coordinator"] is None
    assert not any("coordinator" in text for text in found["words"]["warnings"])


def test_benchmarks_and_seeded_noise_are_no_deployable_guarantee(tmp_path):
    ledger = open_ledger(tmp_path / "shop.db")
    benchmark = spec(Mode.DISTRIBUTED, min_shops=8, colluders=0, is_benchmark=True)
    charge(ledger, "benchmark", promise=benchmark)
    charge(ledger, "seeded", is_noise_seeded=True)
    warnings = " ".join(told(tmp_path / "shop.db")["words"]["warnings"])
    assert "not a deployable guarantee" in warnings
    assert "Noise from a seed" in warnings
    assert only_shop(tmp_path / "shop.db")["is_deployable"] is False


def test_sampled_sums_are_bounded_by_the_renyi_filter(tmp_path):
    ledger = open_ledger(tmp_path / "shop.db", epsilon=8.0)
    charge(ledger, "sgd", SAMPLED)
    found = told(tmp_path / "shop.db")
    shop, run = found["books"][0]["shops"][0], found["books"][0]["runs"][0]
    assert shop["filter"] == "renyi"
    assert shop["spent"] > run["epsilon_by_accounts"]["1"] > 0
    assert list(run["curve"]["misses"]) == ["1"]
    assert [one["rounds"] for one in run["schedule"]] == ["1–20"]
    assert run["accountants"]["exact"] is None
    assert shop["lifetime_odds"]["right_of_coin"] >= run["odds"]["right_of_coin"]


def test_a_new_year_starts_again_and_the_lifetime_does_not(tmp_path):
    clock = Clock(timedelta(days=10))
    ledger = open_ledger(tmp_path / "shop.db", clock=clock, period="year")
    charge(ledger, "first")
    ledger.finish("first")
    for _ in range(40):
        ledger.note_time()
    ledger.start_year()
    shop = only_shop(tmp_path / "shop.db")
    assert (shop["spent"], shop["years"]) == (0, 2)
    assert shop["lifetime"] == pytest.approx(accounting.exact_epsilon(MU, 1e-6), rel=1e-6)
    assert [point["what"] for point in shop["history"]][-1] == "year 2 began"
    assert shop["history"][-1]["spent"] == 0 < shop["history"][-1]["lifetime"]


def test_what_a_lost_copy_released_is_told(tmp_path):
    clock = Clock()
    ledger = open_ledger(tmp_path / "shop.db", clock=clock)
    charge(ledger, "kept")
    copy = tmp_path / "copy.db"
    with closing(sqlite3.connect(tmp_path / "shop.db")) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    lost = open_ledger(copy, clock=clock)
    charge(lost, "lost", (PAIRS,))
    ledger.recover(lost.head())
    found = told(tmp_path / "shop.db")
    shop = found["books"][0]["shops"][0]
    assert shop["recovered"] == pytest.approx(accounting.exact_epsilon(1 / 4, 1e-6), rel=1e-6)
    assert shop["mechanisms"][-1]["name"] == "(recovered)"
    assert shop["mechanisms"][-1]["share"] == pytest.approx((1 / 16) / (5 / 72 + 1 / 16))
    assert any(text.startswith("A lost copy") for text in found["words"]["warnings"])


def test_an_anchored_head_makes_a_rollback_detectable(tmp_path):
    ledger = make_shop(tmp_path / "shop.db")
    assert only_shop(tmp_path / "shop.db")["rollback_detectable"] is False
    anchor(ledger, tmp_path)
    found = told(tmp_path / "shop.db")
    shop = found["books"][0]["shops"][0]
    assert (shop["rollback_detectable"], shop["anchored_sequence"]) == (True, shop["head"]["sequence"])
    assert not any("Rollback" in text for text in found["words"]["warnings"])


def test_releases_after_the_last_anchor_are_told(tmp_path):
    ledger = make_shop(tmp_path / "shop.db")
    anchor(ledger, tmp_path)
    charge(ledger, "later")
    warnings = told(tmp_path / "shop.db")["words"]["warnings"]
    assert any("the last entry that an anchor countersigned is 4" in text for text in warnings)


def test_an_unused_ledger_says_that_nothing_was_released(tmp_path):
    open_ledger(tmp_path / "shop.db")
    found = told(tmp_path / "shop.db")
    shop = found["books"][0]["shops"][0]
    assert (shop["spent"], shop["lifetime_odds"]["right_of_coin"], shop["mechanisms"]) == (0, 0.5, [])
    assert shop["left"] == pytest.approx(3.0, abs=1e-6)
    assert "Nothing was released, and nothing is reserved." in found["words"]["promise"]


def test_one_shop_of_several_can_be_asked_for(tmp_path):
    for name in ("de", "fr", "uk"):
        make_shop(tmp_path / "shop.db", name)
    assert [one["shop"] for one in told(tmp_path / "shop.db")["books"][0]["shops"]] == ["de", "fr", "uk"]
    assert [one["shop"] for one in told(tmp_path / "shop.db", "fr")["books"][0]["shops"]] == ["fr"]
    with pytest.raises(ConfigError, match="no ledger of shop 'es' there; there are 'de', 'fr', 'uk'"):
        told(tmp_path / "shop.db", "es")


def test_the_same_run_on_other_terms_is_another_run(tmp_path):
    charge(open_ledger(tmp_path / "shop.db", "uk"), "winter")
    charge(open_ledger(tmp_path / "shop.db", "fr"), "winter", promise=spec(epsilon=1.5))
    runs = told(tmp_path / "shop.db")["books"][0]["runs"]
    assert [(run["run"], run["shops"]) for run in runs] == [("winter", ["fr"]), ("winter (2)", ["uk"])]


def test_a_copy_survives_json(tmp_path):
    anchor(make_shop(tmp_path / "shop.db", runs=2), tmp_path)
    books = read_source(str(tmp_path / "shop.db"))
    again = [Book.from_json(json.loads(json.dumps(book.to_json()))) for book in books]
    assert [shop.entries for shop in again[0].shops] == [shop.entries for shop in books[0].shops]
    assert document(again) == document(books)


def test_reading_a_report_leaves_foreign_files_alone(tmp_path):
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE things (x INTEGER)")
    before = (tmp_path / "other.db").read_bytes()
    with pytest.raises(StoreError, match="holds no privacy ledger"):
        read_source(str(tmp_path / "other.db"))
    with pytest.raises(StoreError, match="there is no such file"):
        read_source(str(tmp_path / "missing.db"))
    assert (tmp_path / "other.db").read_bytes() == before
    assert not (tmp_path / "missing.db").exists()


def test_an_edited_ledger_is_refused(tmp_path):
    make_shop(tmp_path / "shop.db").close()
    with closing(sqlite3.connect(tmp_path / "shop.db")) as database:
        edited = "CAST(replace(CAST(text AS TEXT), '12.0', '13.0') AS BLOB)"
        database.execute(f"UPDATE ledger_entries SET text = {edited} WHERE sequence = 2")
        database.commit()
    with pytest.raises(LedgerTampered):
        read_source(str(tmp_path / "shop.db"))


def test_every_changed_digit_is_a_difference(tmp_path):
    make_shop(tmp_path / "shop.db")
    computed = told(tmp_path / "shop.db")
    stored = rounded(computed)
    assert differences(stored, computed) == []
    figures = [path for path in _numbers(stored) if isinstance(_at(stored, path), float)]
    assert len(figures) > 100
    for path in figures:
        value = _at(stored, path)
        digits = f"{value:.6g}"
        last = max(place for place, sign in enumerate(digits.split("e")[0]) if sign.isdigit())
        other = float(digits[:last] + ("3" if digits[last] != "3" else "4") + digits[last + 1 :])
        assert len(differences(_with(stored, path, other), computed)) == 1, path


def test_more_digits_than_a_report_has_are_a_difference():
    assert differences({"x": 1.2345678901}, {"x": 1.2345678901}) == ["x: 1.2345678901 in place of 1.23457"]
    assert differences({"x": 1.23457}, {"x": 1.2345678901}) == []


def test_a_figure_on_the_edge_of_rounding_may_fall_either_way():
    edge = 1.234565
    assert differences({"x": 1.23456}, {"x": edge + 1e-12}) == differences({"x": 1.23457}, {"x": edge - 1e-12}) == []
    assert differences({"x": 1.23458}, {"x": edge}) != []


@pytest.mark.parametrize(
    ("stored", "computed"),
    [({}, {"x": 1}), ([1], [1, 2]), (1, True), (1.0, 1), ("a", "b"), (None, 0.0), ({"x": 1, "y": 2}, {"x": 1})],
)
def test_other_shapes_and_kinds_are_differences(stored, computed):
    assert differences(stored, computed)


def test_figures_are_counted():
    assert num_figures({"a": [1, 2.0, "3", True, None], "b": {"c": 4}}) == 3


def _numbers(value, path=()):
    if isinstance(value, dict):
        return [found for key, entry in value.items() for found in _numbers(entry, (*path, key))]
    if isinstance(value, list):
        return [found for place, entry in enumerate(value) for found in _numbers(entry, (*path, place))]
    return [path] if isinstance(value, float) else []


def _at(value, path):
    for key in path:
        value = value[key]
    return value


def _with(value, path, leaf):
    copy = json.loads(json.dumps(value))
    inner = _at(copy, path[:-1])
    inner[path[-1]] = leaf
    return copy
