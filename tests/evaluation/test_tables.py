"""The comparison's tables against plain loops, and what they refuse."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from fedrec.errors import ConfigError, DataError
from fedrec.evaluation import beyond
from fedrec.evaluation.gains import gain_table
from fedrec.evaluation.ranking import top_items
from fedrec.evaluation.tables import Evaluation, ShopTest, evaluate_lists


def made_shop(shop: str, num_rows: int, num_items: int, seed: int) -> ShopTest:
    """A shop with one to three test items a row; every fifth row has items that the shop lacks, some have no others."""
    rng = np.random.default_rng(seed)
    known = rng.random((num_rows, num_items)) < 0.1
    known[:, -5:] = False
    test = np.zeros_like(known)
    for row in range(num_rows):
        test[row, rng.choice(np.flatnonzero(~known[row]), rng.integers(1, 4), replace=False)] = True
    missing = np.zeros(num_rows, dtype=np.int64)
    missing[::5] = rng.integers(1, 3, len(missing[::5]))
    test[::10] = False
    return ShopTest(
        shop=shop,
        test=sparse.csr_matrix(test, dtype=np.float32),
        known=sparse.csr_matrix(known, dtype=np.float32),
        popularity=known.sum(axis=0),
        num_shoppers=num_rows,
        missing=missing,
        content=sparse.random(num_items, 8, 0.4, format="csr", rng=rng),
    )


SHOPS = (made_shop("north", 40, 70, 1), made_shop("south", 15, 55, 2), made_shop("west", 90, 120, 3))


def made_lists(shop: ShopTest, seed: int, skill: float) -> np.ndarray:
    """Random scores, lifted by ``skill`` where the test items are."""
    scores = np.random.default_rng(seed).random(shop.test.shape).astype(np.float32) + skill * shop.test.toarray()
    return top_items(scores, shop.known, 50, seed=0)[0]


LISTS = {
    "local": {shop.shop: made_lists(shop, 10, 0.1) for shop in SHOPS},
    "federated": {shop.shop: made_lists(shop, 11, 0.4) for shop in SHOPS},
}


def plain_ndcg(items: np.ndarray, relevant: set[int], k: int, extra: int = 0) -> float:
    gain = sum(1 / np.log2(place + 2) for place, item in enumerate(items[:k].tolist()) if item in relevant)
    return gain / sum(1 / np.log2(place + 2) for place in range(min(k, len(relevant) + extra)))


def plain_means(column: str, metric: str) -> dict[str, list[float]]:
    """Per shop, one value for each row that counts, by plain loops."""
    result: dict[str, list[float]] = {}
    for shop in SHOPS:
        values = result.setdefault(shop.shop, [])
        for row, items in enumerate(LISTS[column][shop.shop]):
            relevant, missing = set(shop.test[row].indices.tolist()), int(np.asarray(shop.missing)[row])
            if metric == "ndcg_all_test_rows@10" and (relevant or missing):
                values.append(plain_ndcg(items, relevant, 10, missing))
            elif metric == "ndcg@20" and relevant:
                values.append(plain_ndcg(items, relevant, 20))
            elif metric == "recall@10" and relevant:
                values.append(len(relevant & set(items[:10].tolist())) / len(relevant))
    return result


def evaluate(**changes: Any) -> Evaluation:
    settings: dict[str, Any] = {"rng": np.random.default_rng(0), "resamples": 300} | changes
    return evaluate_lists(SHOPS, LISTS, **settings)


@pytest.mark.parametrize("metric", ["ndcg@20", "recall@10", "ndcg_all_test_rows@10"])
@pytest.mark.parametrize("column", ["local", "federated"])
def test_shop_macro_and_micro_means_equal_plain_loops(column: str, metric: str) -> None:
    scores = evaluate().scores[column]
    plain = plain_means(column, metric)
    for shop, values in plain.items():
        assert scores["shops"][shop][metric]["mean"] == pytest.approx(np.mean(values))
    assert scores["macro"][metric]["mean"] == pytest.approx(np.mean([np.mean(v) for v in plain.values()]))
    assert scores["micro"][metric]["mean"] == pytest.approx(np.mean(np.concatenate(list(plain.values()))))


def test_tables_have_every_figure_with_an_interval_around_it() -> None:
    scores = evaluate().scores
    assert list(scores) == ["local", "federated"]
    expected = {f"{name}@{k}" for k in (10, 20, 50) for name in ("hr", "recall", "ndcg", "mrr")}
    expected |= {f"{name}@10" for name in ("novelty", "diversity", "serendipity", "popularity", "popularity_bias")}
    expected |= {f"{name}@10" for name in ("head_share", "hr_all_test_rows", "ndcg_all_test_rows")}
    for column in scores.values():
        assert set(column["shops"]) == {"north", "south", "west"}
        for table in (column["macro"], column["micro"], *column["shops"].values()):
            assert set(table) - {"test_shoppers"} == expected | {"coverage@10", "gini@10"}
            for name in expected:
                assert table[name]["low"] <= table[name]["mean"] <= table[name]["high"]
            assert table["coverage@10"]["low"] is None
    json.dumps(scores, allow_nan=False)


def test_coverage_is_of_the_lists_that_count_and_micro_weights_shops_by_test_shoppers() -> None:
    scores = evaluate().scores["local"]
    figures, sizes = [], []
    for shop in SHOPS:
        rows = np.diff(shop.test.indptr) > 0
        lists = LISTS["local"][shop.shop][rows]
        figures.append(beyond.catalogue_coverage(lists, shop.test.shape[1], k=10))
        sizes.append(rows.sum())
        assert scores["shops"][shop.shop]["coverage@10"]["mean"] == pytest.approx(figures[-1])
        assert scores["shops"][shop.shop]["test_shoppers"] == rows.sum()
    assert scores["macro"]["coverage@10"]["mean"] == pytest.approx(np.mean(figures))
    assert scores["micro"]["coverage@10"]["mean"] == pytest.approx(np.average(figures, weights=sizes))


def test_macro_intervals_are_those_of_shops_resampled_one_by_one() -> None:
    scores = evaluate(resamples=4_000).scores["federated"]
    spread = [np.var(values) / len(values) for values in plain_means("federated", "recall@10").values()]
    macro = scores["macro"]["recall@10"]
    assert macro["high"] - macro["low"] == pytest.approx(2 * 1.96 * np.sqrt(sum(spread)) / 3, rel=0.08)


def test_capped_recall_reaches_one_where_plain_recall_cannot() -> None:
    plain = evaluate(ks=(1, 2)).scores["federated"]["micro"]["recall@1"]["mean"]
    capped = evaluate(ks=(1, 2), is_recall_capped=True).scores["federated"]["micro"]["recall@1"]["mean"]
    hit = evaluate(ks=(1, 2)).scores["federated"]["micro"]["hr@1"]["mean"]
    assert plain < capped
    assert capped == pytest.approx(hit)


def test_a_shop_without_test_shoppers_has_null_figures_and_is_in_no_mean() -> None:
    nobody = ShopTest("empty", sparse.csr_matrix((0, 9)), sparse.csr_matrix((0, 9)), np.zeros(9, dtype=int), 4)
    only_missing = ShopTest(
        "lacking", sparse.csr_matrix((2, 9)), sparse.csr_matrix((2, 9)), np.ones(9, dtype=int), 4, np.array([1, 2])
    )
    lists = {c: {**of, "empty": np.zeros((0, 50)), "lacking": np.full((2, 50), -1)} for c, of in LISTS.items()}
    lists = {c: {s: items.astype(np.int32) for s, items in of.items()} for c, of in lists.items()}
    found = evaluate_lists([*SHOPS, nobody, only_missing], lists, rng=np.random.default_rng(0), resamples=300)
    alone = evaluate().scores["local"]
    scores = found.scores["local"]
    assert scores["shops"]["empty"]["ndcg@10"] == {"mean": None, "low": None, "high": None}
    assert scores["shops"]["empty"]["coverage@10"]["mean"] is None
    assert scores["shops"]["empty"]["test_shoppers"] == 0
    assert scores["shops"]["lacking"]["ndcg@10"]["mean"] is None
    assert scores["shops"]["lacking"]["ndcg_all_test_rows@10"]["mean"] == 0
    for part in ("macro", "micro"):
        for metric in ("ndcg@10", "coverage@10", "novelty@10"):
            assert scores[part][metric]["mean"] == pytest.approx(alone[part][metric]["mean"])
    gain = gain_table(found, of="federated", over="local", rng=np.random.default_rng(0))
    assert gain["shops"]["empty"]["p_value"] is None
    assert gain["shops"]["empty"]["mean"] is None
    assert gain["macro"]["mean"] == pytest.approx(
        found.scores["federated"]["macro"]["ndcg@10"]["mean"] - scores["macro"]["ndcg@10"]["mean"]
    )
    json.dumps([found.scores, gain], allow_nan=False)


def test_a_federation_nobody_can_be_measured_in_has_null_tables() -> None:
    nobody = ShopTest("empty", sparse.csr_matrix((0, 9)), sparse.csr_matrix((0, 9)), np.zeros(9, dtype=int), 0)
    lists = {column: {"empty": np.zeros((0, 50), dtype=np.int32)} for column in ("a", "b")}
    found = evaluate_lists([nobody], lists, rng=np.random.default_rng(0))
    assert found.scores["a"]["macro"]["ndcg@10"]["mean"] is None
    gain = gain_table(found, of="a", over="b", rng=np.random.default_rng(0))
    assert gain["worst"] is None
    assert gain["harmed_shops"] == 0


def test_without_content_diversity_is_unknown_and_the_rest_stays() -> None:
    bare = [replace(shop, content=None) for shop in SHOPS]
    scores = evaluate_lists(bare, LISTS, rng=np.random.default_rng(0), resamples=300).scores["local"]
    assert scores["macro"]["diversity@10"]["mean"] is None
    assert scores["macro"]["ndcg@10"]["mean"] == pytest.approx(evaluate().scores["local"]["macro"]["ndcg@10"]["mean"])


def test_the_gain_is_the_paired_difference() -> None:
    found = evaluate()
    gain = gain_table(
        found,
        of="federated",
        over="local",
        rng=np.random.default_rng(0),
        shoppers={"north": 400, "south": 150, "west": 900},
        decisions={shop.shop: ("joins", "test") for shop in SHOPS},
    )
    for shop in SHOPS:
        row = gain["shops"][shop.shop]
        difference = found.per_shopper("federated", shop.shop, "ndcg@10") - found.per_shopper(
            "local", shop.shop, "ndcg@10"
        )
        difference = difference[np.diff(shop.test.indptr) > 0]
        assert row["mean"] == pytest.approx(difference.mean())
        assert row["low"] < row["mean"] < row["high"]
        assert row["holm_low"] < row["mean"] < row["holm_high"]
        assert row["p_value"] <= row["p_value_holm"] <= 1
        assert row["decision"] == "joins"
        assert row["test_shoppers"] == len(difference)
    assert gain["shops"]["north"]["shoppers"] == 400
    assert gain["macro"]["low"] > 0
    assert gain["harmed_shops"] == 0
    lowest = min(gain["shops"], key=lambda shop: gain["shops"][shop]["mean"])
    assert gain["worst"] == {"shop": lowest, "mean": gain["shops"][lowest]["mean"]}
    json.dumps(gain, allow_nan=False)


def test_turned_around_the_gain_harms_the_shops_it_helped() -> None:
    gain = gain_table(evaluate(), of="local", over="federated", rng=np.random.default_rng(0))
    assert gain["harmed_shops"] == sum(row["holm_high"] < 0 for row in gain["shops"].values()) >= 2
    assert gain["shops"]["west"]["p_value"] > 0.9


def test_a_column_over_itself_gains_nothing() -> None:
    gain = gain_table(evaluate(), of="local", over="local", rng=np.random.default_rng(0))
    assert gain["macro"] == {"mean": 0, "low": 0, "high": 0}
    assert gain["harmed_shops"] == 0
    assert {row["p_value"] for row in gain["shops"].values()} == {1.0}


def test_lengths_are_taken_in_any_order_and_the_gain_is_of_ndcg_at_the_least() -> None:
    found = evaluate(ks=(20, 5))
    assert found.scores == evaluate(ks=(5, 20)).scores
    assert "novelty@5" in found.metrics
    assert gain_table(found, of="federated", over="local", rng=np.random.default_rng(0))["metric"] == "ndcg@5"


def test_the_same_seed_gives_the_same_tables() -> None:
    assert evaluate().scores == evaluate().scores


def spoiled(shop: str, change: Callable[[np.ndarray], None]) -> dict[str, dict[str, np.ndarray]]:
    lists = {name: items.copy() for name, items in LISTS["local"].items()}
    change(lists[shop])
    return {"local": lists}


def test_lists_that_are_no_such_lists_are_refused() -> None:
    rng = np.random.default_rng(0)
    known = int(SHOPS[0].known[3].indices[0])

    def lists_a_known_item(items: np.ndarray) -> None:
        items[3, 7] = known

    def lists_an_item_twice(items: np.ndarray) -> None:
        items[3, 7] = items[3, 2]

    def has_a_gap(items: np.ndarray) -> None:
        items[3, 7] = -1

    def leaves_the_catalogue(items: np.ndarray) -> None:
        items[3, 7] = 70

    for change, message in (
        (lists_a_known_item, "has had already"),
        (lists_an_item_twice, "twice"),
        (has_a_gap, "empty place"),
        (leaves_the_catalogue, "names item 70"),
    ):
        with pytest.raises(DataError, match=message):
            evaluate_lists(SHOPS, spoiled("north", change), rng=rng)
    with pytest.raises(DataError, match="0 shops and 1 columns"):
        evaluate_lists([], {"local": {}}, rng=rng)
    with pytest.raises(DataError, match="no lists given"):
        evaluate_lists(SHOPS, {"local": {"north": LISTS["local"]["north"]}}, rng=rng)
    with pytest.raises(DataError, match="of 100 or more"):
        evaluate_lists(SHOPS, LISTS, rng=rng, ks=(10, 100))
    with pytest.raises(DataError, match="given twice"):
        evaluate_lists([*SHOPS, SHOPS[0]], LISTS, rng=rng)
    for ks in ((), (0, 10)):
        with pytest.raises(ConfigError, match="list length"):
            evaluate_lists(SHOPS, LISTS, rng=rng, ks=ks)


def test_a_shop_test_that_contradicts_itself_is_refused() -> None:
    shop = SHOPS[1]
    with pytest.raises(DataError, match="also a known item"):
        replace(shop, known=shop.test)
    with pytest.raises(DataError, match="same rows and items"):
        replace(shop, popularity=shop.popularity[1:])
    with pytest.raises(DataError, match="one count per row"):
        replace(shop, missing=np.zeros(3))
    with pytest.raises(DataError, match="count each shopper once"):
        replace(shop, num_shoppers=1)
    with pytest.raises(DataError, match="content of 3 items"):
        replace(shop, content=sparse.csr_matrix((3, 2)))


def test_an_unknown_column_shop_or_metric_is_named_with_what_there_is() -> None:
    found = evaluate()
    with pytest.raises(ConfigError, match=r"no column 'x'.*local, federated"):
        found.per_shopper("x", "north", "ndcg@10")
    with pytest.raises(ConfigError, match="no shop 'x'"):
        found.per_shopper("local", "x", "ndcg@10")
    with pytest.raises(ConfigError, match=r"no metric 'ndcg@7'"):
        gain_table(found, of="local", over="federated", rng=np.random.default_rng(0), metric="ndcg@7")
