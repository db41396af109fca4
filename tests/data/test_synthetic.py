"""The generated marketplace: reproducible, shaped as promised, and with tastes that can be found."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from fedrec.data.events import Events
from fedrec.data.shops import ShopData, build_shops, stack
from fedrec.data.split import Part, make_split
from fedrec.data.synthetic import GroundTruth, SyntheticSettings, generate, generate_shop
from fedrec.errors import ConfigError, DataError

SMALL = SyntheticSettings(num_shoppers=900, num_shops=4, num_items=500, mean_events=10.0)
DEFAULT = SyntheticSettings()


@pytest.fixture(scope="module")
def market():
    return generate(DEFAULT, seed=0)


def shop_rows(events: Events, shop: str) -> pd.DataFrame:
    return events.table[events.table["shop"] == shop].reset_index(drop=True)


# --- reproducible


def test_the_seed_decides_everything():
    events, items, _ = generate(SMALL, seed=5)
    again, again_items, _ = generate(SMALL, seed=5)
    pd.testing.assert_frame_equal(events.table, again.table)
    pd.testing.assert_frame_equal(items.table, again_items.table)
    other, _, _ = generate(SMALL, seed=6)
    assert other.table["item"].value_counts().tolist() != events.table["item"].value_counts().tolist()


def test_a_shop_alone_has_the_rows_it_has_in_the_whole():
    events, _, truth = generate(SMALL, seed=5)
    for shop in SMALL.shop_names:
        pd.testing.assert_frame_equal(shop_rows(events, shop), generate_shop(truth, shop).table)


# --- shape


def test_shops_range_from_about_60_to_6000_shoppers_and_add_up():
    sizes = DEFAULT.shop_sizes
    assert 50 <= sizes[0] <= 75
    assert 5_000 <= sizes[-1] <= 7_000
    assert sizes.sum() == 15_000
    assert np.allclose(np.diff(np.log(sizes)), np.log(100) / 9, atol=0.05)
    assert SyntheticSettings(num_shoppers=7, num_shops=7).shop_sizes.tolist() == [1] * 7
    assert SyntheticSettings(num_shoppers=5, num_shops=1).shop_sizes.tolist() == [5]


def test_events_have_the_promised_columns(market):
    events, items, _ = market
    table = events.table
    assert list(table) == ["shop", "shopper", "item", "timestamp", "quantity", "price", "basket"]
    assert [str(table[name].dtype) for name in ("timestamp", "quantity", "price")] == ["float64", "float32", "float32"]
    assert all(isinstance(table[name].dtype, pd.CategoricalDtype) for name in ("shop", "shopper", "item", "basket"))
    assert not table.isna().any().any()
    assert (table["quantity"] >= 1).all()
    assert (table["price"] > 0).all()
    assert table["item"].cat.categories.equals(items.table.index.rename(None))
    assert items.table.index.is_monotonic_increasing
    assert items.table["is_shared"].all()
    counts = table.groupby(["shop", "shopper"], observed=True).size()
    assert len(counts) == 15_000
    assert counts.min() >= 3
    assert abs(counts.mean() - DEFAULT.mean_events) < 0.5


def test_baskets_hold_several_items_bought_at_one_time(market):
    table = market[0].table
    baskets = table.groupby(["shop", "shopper", "basket"], observed=True)
    assert (baskets["timestamp"].nunique() == 1).all()
    assert 2.0 < baskets.size().mean() < 2.5  # 2.5, cut short by the ends of histories
    times = baskets["timestamp"].first().reset_index()
    same = (times["shop"].astype(str) + times["shopper"].astype(str)).to_numpy()
    later = np.diff(times["timestamp"].to_numpy())
    assert (later[same[1:] == same[:-1]] >= 0).all()  # numbered by time


def test_titles_say_brand_style_type_and_category_follows_from_type(market):
    table = market[1].table
    assert table["title"].str.split().str.len().min() >= 4
    kinds = table["title"].str.contains("tent", regex=False) & (table["category"] == "Camping")
    assert kinds.sum() > 5
    assert set(table["category"]) >= {"Camping", "Kitchen", "Lighting"}
    assert not (table["title"].str.contains("frying pan", regex=False) & (table["category"] != "Kitchen")).any()


def test_popularity_has_a_zipf_like_tail(market):
    counts = np.sort(market[0].table["item"].value_counts().to_numpy())[::-1]
    rank = np.arange(1, 1 + len(counts))
    middle = slice(9, 1000)
    slope = np.polyfit(np.log(rank[middle]), np.log(counts[middle]), 1)[0]
    assert -1.2 < slope < -0.6
    flat, _, _ = generate(replace(SMALL, zipf=0.0, focus=0.0, new_items=0.0), seed=1)
    steep, _, _ = generate(replace(SMALL, zipf=1.2, focus=0.0, new_items=0.0), seed=1)
    tops = [events.table["item"].value_counts(normalize=True).iloc[:10].sum() for events in (flat, steep)]
    assert tops[1] > 3 * tops[0]


def test_assortments_overlap_in_part_and_grow_with_the_shop(market):
    events, _, truth = market
    stock = {shop: set(truth.assortment(shop)) for shop in DEFAULT.shop_names}
    sizes = [len(items) for items in stock.values()]
    assert sizes == sorted(sizes)
    assert 0.1 * 3_000 < sizes[0] < 0.3 * 3_000
    assert 0.5 * 3_000 < sizes[-1] < 0.7 * 3_000
    first, second = stock["shop-08"], stock["shop-09"]
    assert 0.3 < len(first & second) / len(first | second) < 0.9
    for shop, items in stock.items():
        assert set(shop_rows(events, shop)["item"].cat.codes) <= items
    popular = truth.popularity[list(stock["shop-01"])].mean()
    assert popular > 1.5 * truth.popularity.mean()


def test_new_items_sell_only_after_their_release(market):
    events, _, truth = market
    start = pd.Timestamp("2024-01-01", tz="UTC").timestamp()
    year = (events.table["timestamp"].to_numpy() - start) / (365 * 86_400)
    assert 0 <= year.min() <= year.max() < 1
    release = truth.release[events.table["item"].cat.codes]
    assert (year >= release - 1e-6).all()
    assert (truth.release > 0).mean() == pytest.approx(DEFAULT.new_items, abs=0.03)
    assert (release > 0).any()


def test_complements_are_bought_together(market):
    events, _, truth = market
    table = shop_rows(events, "shop-10")
    first = table.groupby(["shopper", "basket"], observed=True)["item"].transform("first").cat.codes.to_numpy()
    item = table["item"].cat.codes.to_numpy()
    is_first = ~table.duplicated(["shopper", "basket"]).to_numpy()
    goes_with = (truth.complements[first] == item[:, None]).any(axis=1)
    assert goes_with[~is_first].mean() > 0.08  # not every complement is sold here
    lonely, _, _ = generate(replace(DEFAULT, complements=0.0, num_shoppers=2_000), seed=0)
    table = lonely.table
    first = table.groupby(["shop", "shopper", "basket"], observed=True)["item"].transform("first").cat.codes.to_numpy()
    without = (truth.complements[first] == table["item"].cat.codes.to_numpy()[:, None]).any(axis=1).mean()
    assert without < 0.03


# --- what is true


def test_probabilities_are_those_the_items_were_drawn_with():
    lone = SyntheticSettings(
        num_shoppers=1, num_shops=1, num_items=40, mean_events=500, drift=0.0, new_items=0.0, complements=0.0
    )
    observed, expected, total = np.zeros(40), np.zeros(40), 0
    for seed in range(30):
        events, _, truth = generate(lone, seed=seed)
        order = np.argsort(truth.popularity)  # one common axis over seeds
        observed += np.bincount(events.table["item"].cat.codes, minlength=40)[order]
        expected += len(events) * truth.probability("shop-1")[0][order]
        total += len(events)
    assert total > 5_000
    seen = expected > 5
    chi_square = ((observed - expected)[seen] ** 2 / expected[seen]).sum()
    assert chi_square < seen.sum() + 5 * np.sqrt(2 * seen.sum())


def test_probabilities_cover_the_assortment_and_drift_over_time(market):
    _, _, truth = market
    early, late = (truth.probability("shop-03", ["c0000002", "c0000001"], time=time) for time in (0.0, 1.0))
    assert early.shape == (2, 3_000)
    np.testing.assert_allclose(early.sum(axis=1), 1.0)
    sold = truth.assortment("shop-03")
    assert np.delete(late, sold, axis=1).sum() == 0
    assert (early[:, truth.release > 0] == 0).all()
    assert np.abs(early - late).sum(axis=1).min() > 0.1
    np.testing.assert_array_equal(
        truth.probability("shop-03")[[1, 0]], truth.probability("shop-03", ["c0000002", "c0000001"])
    )
    start, end = truth.tastes("shop-03")
    assert start.shape == end.shape == (DEFAULT.shop_sizes[2], DEFAULT.num_tastes + 1)
    np.testing.assert_allclose(start.sum(axis=1), 1.0)
    still = replace(truth, settings=replace(DEFAULT, drift=0.0))
    np.testing.assert_array_equal(still.probability("shop-03", time=0.01), still.probability("shop-03", time=0.12))


def test_an_unknown_shop_or_shopper_is_refused(market):
    with pytest.raises(DataError, match="'shop-11'"):
        market[2].assortment("shop-11")
    with pytest.raises(DataError, match="1 of the shoppers"):
        market[2].probability("shop-01", ["c0000001", "nobody"])


# --- tastes can be found: popularity < a shop alone < all shops pooled < truth


def item_item(histories: sparse.csr_matrix, penalty: float) -> np.ndarray:
    """EASE in six lines, so that the test does not lean on the model under development."""
    gram = (histories.T @ histories).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += penalty
    inverse = np.linalg.inv(gram)
    weights = -inverse / np.diag(inverse)
    weights[np.diag_indices_from(weights)] = 0
    return weights


def ndcg(scores: np.ndarray, known: sparse.csr_matrix, test: sparse.csr_matrix) -> np.ndarray:
    """NDCG@10 of one test item a row, by its rank; rows without one are left out."""
    scores = scores.copy()
    scores[known.nonzero()] = -np.inf
    row, column = test.nonzero()
    rank = (scores[row] > scores[row, column][:, None]).sum(axis=1)
    return np.where(rank < 10, 1 / np.log2(rank + 2), 0.0)


def compare(shop: ShopData, pooled: np.ndarray, truth: GroundTruth, index: pd.Index) -> dict[str, np.ndarray]:
    rows = slice(0, 600)
    history = (shop.train + shop.validation).tocsr()
    known, test = history[rows], shop.test[rows]
    chance = truth.probability(shop.name, shop.shoppers[rows])[:, index.get_indexer(shop.items)]
    local = max((ndcg(known @ item_item(history, penalty), known, test) for penalty in (10, 100)), key=np.mean)
    return {
        "popularity": ndcg(np.tile(np.asarray(history.sum(axis=0)), (known.shape[0], 1)), known, test),
        "local": local,  # its penalty chosen on test: the better for the shop alone
        "pooled": ndcg(known @ pooled[np.ix_(shop.positions, shop.positions)], known, test),
        "truth": ndcg(chance, known, test),
    }


def test_models_find_the_tastes_and_small_shops_gain_most_from_the_others(market):
    events, items, truth = market
    shared, shops = build_shops(make_split(events, "leave-last", seed=0), items)
    pooled = item_item(stack(shops, [Part.TRAIN, Part.VALIDATION], len(shared)), 200.0)
    tables = [compare(shop, pooled, truth, items.table.index) for shop in shops if len(shop.shoppers) > 90]
    mean = [{name: figures.mean() for name, figures in table.items()} for table in tables]
    total = {name: np.mean([row[name] for row in mean]) for name in mean[0]}
    assert total["popularity"] < total["local"] < total["pooled"] < 0.9 * total["truth"]
    large = mean[-1]
    assert large["local"] > 1.15 * large["popularity"]
    small = {name: np.concatenate([table[name] for table in tables[:4]]).mean() for name in tables[0]}
    big = {name: np.concatenate([table[name] for table in tables[-2:]]).mean() for name in tables[0]}
    assert small["pooled"] > 1.04 * small["local"]
    assert small["pooled"] / small["local"] > big["pooled"] / big["local"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_shoppers", 9),
        ("num_shops", 0),
        ("num_items", 2.5),
        ("num_tastes", True),
        ("size_ratio", 0.5),
        ("mean_events", 3.0),
        ("zipf", float("nan")),
        ("drift", 1.1),
        ("new_items", 1.0),
        ("complements", -0.1),
        ("mean_basket", 0.0),
    ],
)
def test_bad_settings_are_refused(name: str, value: float):
    with pytest.raises(ConfigError, match=name):
        replace(DEFAULT, **{name: value})


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 3, 2), (2, 1, 5)])
def test_tiny_marketplaces_work(sizes: tuple[int, int, int]):
    num_shoppers, num_shops, num_items = sizes
    settings = SyntheticSettings(num_shoppers=num_shoppers, num_shops=num_shops, num_items=num_items, new_items=0.9)
    for seed in range(5):
        events, items, _ = generate(settings, seed=seed)
        assert len(items) == num_items
        assert events.table["shop"].nunique() == num_shops
