"""Who is a shop, and what one shop holds."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.data.events import Events
from fedrec.data.items import Items
from fedrec.data.shops import ShopData, assign, assign_both, build_shops, stack
from fedrec.data.split import Part, Split
from fedrec.errors import ConfigError, DataError


def make_events(rows: list[tuple], columns: str = "shopper item") -> Events:
    return Events(pd.DataFrame(rows, columns=columns.split()).astype("category"))


def make_items(categories: dict[str, str], own: tuple[str, ...] = ()) -> Items:
    keys = sorted(categories)
    table = pd.DataFrame(
        {
            "title": pd.array([""] * len(keys), dtype="str"),
            "category": pd.array([categories[key] for key in keys], dtype="str"),
            "price": np.full(len(keys), np.nan, np.float32),
            "is_shared": [key not in own for key in keys],
        },
        index=pd.Index(keys, dtype="str", name="item"),
    )
    return Items(table)


def shoppers_of(events: Events) -> dict[str, set[str]]:
    table = events.table
    return {shop: set(rows["shopper"]) for shop, rows in table.groupby("shop", observed=True)}


MANY = make_events([(f"s{number}", f"i{(number * 7 + step) % 50}") for number in range(103) for step in range(3)])


# --- rules


def test_events_without_a_shop_column_need_a_rule():
    for rule in (None, "column"):
        with pytest.raises(DataError, match="--shops"):
            assign(MANY, rule, seed=0)
    named = make_events([("a", "ann", "i1")], "shop shopper item")
    assert assign(named, None, seed=0) is named
    assert assign(named, "column", seed=0) is named


def test_random_shops_have_equal_sizes_and_whole_shoppers():
    divided = shoppers_of(assign(MANY, "random:10", seed=0))
    assert list(divided) == [f"shop-{number:02d}" for number in range(1, 11)]
    assert sorted(len(shoppers) for shoppers in divided.values()) == [10] * 7 + [11] * 3
    assert sum(len(shoppers) for shoppers in divided.values()) == 103  # nobody is in two shops
    assert shoppers_of(assign(MANY, "random:10", seed=1)) != divided


def test_the_order_of_rows_does_not_move_a_shopper():
    shuffled = MANY.table.sample(frac=1, random_state=0)
    shuffled["shopper"] = shuffled["shopper"].cat.reorder_categories(shuffled["shopper"].unique())
    for rule in ("random:7", "skewed:5"):
        assert shoppers_of(assign(Events(shuffled), rule, seed=4)) == shoppers_of(assign(MANY, rule, seed=4))


def test_a_new_rule_keeps_people_with_the_same_id_apart():
    events = make_events([("a", "ann", "i1"), ("b", "ann", "i2"), ("b", "bob", "i1")], "shop shopper item")
    divided = shoppers_of(assign(events, "random:1", seed=0))
    assert divided == {"shop-1": {"a/ann", "b/ann", "b/bob"}}


def test_by_category_an_event_goes_to_the_shop_of_its_items_first_category():
    items = make_items({"i1": "tea|gifts", "i2": "cups", "i3": ""})
    events = make_events([("ann", "i1"), ("ann", "i2"), ("bob", "i3"), ("bob", "i2")])
    divided = assign(events, "category", seed=0, items=items)
    assert divided.table["shop"].tolist() == ["tea", "cups", "uncategorised", "cups"]
    assert shoppers_of(divided)["cups"] == {"ann", "bob"}  # accounts of their own
    carried = make_events([("ann", "i1", "x|y"), ("bob", "i2", None)], "shopper item category")
    assert assign(carried, "category", seed=0).table["shop"].tolist() == ["x", "uncategorised"]
    with pytest.raises(DataError, match="--items"):
        assign(events, "category", seed=0)
    with pytest.raises(DataError, match="--items"):
        assign(events, "category", seed=0, items=make_items({"i1": "", "i2": "", "i3": ""}))


def taste_gap(events: Events) -> float:
    """Mean distance between a shop's share of category-0 items and the share over all shops."""
    is_zero = events.table["item"].astype(str).str.startswith("z")
    shares = is_zero.groupby(events.table["shop"], observed=True).mean()
    return float((shares - is_zero.mean()).abs().mean())


@pytest.mark.parametrize("has_categories", [True, False])
def test_skewed_shops_differ_in_taste_and_more_so_for_small_alpha(has_categories: bool):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(600):
        kind = "z" if number % 2 else "q"
        rows += [(f"s{number}", f"{kind}{item}") for item in rng.integers(0, 12, 5)]
    items = make_items({f"{kind}{item}": f"kind {kind}" for kind in "zq" for item in range(12)})
    known = items if has_categories else None
    gaps = [
        np.mean([taste_gap(assign(make_events(rows), rule, seed=seed, items=known)) for seed in range(3)])
        for rule in ("random:6", "skewed:6:100", "skewed:6:0.2")
    ]
    assert gaps[0] < 0.1
    assert gaps[1] < gaps[2] / 2
    assert gaps[2] > 0.15


@settings(max_examples=20, deadline=None)
@given(num_shops=st.integers(1, 20), alpha=st.sampled_from([0.01, 0.5, 50.0]), seed=st.integers(0, 5))
def test_every_skewed_shop_has_a_shopper(num_shops: int, alpha: float, seed: int):
    events = make_events([(f"s{number}", f"i{number % 5}") for number in range(20)])
    divided = shoppers_of(assign(events, f"skewed:{num_shops}:{alpha}", seed=seed))
    assert len(divided) == num_shops
    assert sum(len(shoppers) for shoppers in divided.values()) == 20


def test_a_test_file_sends_a_shopper_to_the_shop_of_her_training_events():
    test = make_events([(f"s{number}", "i1") for number in range(90, 110)])
    for rule in ("random:7", "skewed:7"):
        train_shops, test_shops = (shoppers_of(part) for part in assign_both(MANY, test, rule, seed=0))
        home = {shopper: shop for shop, shoppers in train_shops.items() for shopper in shoppers}
        moved = [s for shop, shoppers in test_shops.items() for s in shoppers if home.get(s, shop) != shop]
        assert moved == []
        assert sum(len(shoppers) for shoppers in test_shops.values()) == 20


@pytest.mark.parametrize("number", ["", ":0", ":-3", ":x", ":2.5", ":104", ":1e3"])
def test_a_bad_number_of_random_shops_is_refused(number: str):
    with pytest.raises(ConfigError):
        assign(MANY, f"random{number}", seed=0)


@pytest.mark.parametrize(
    "rule", ["skewed:", "skewed:3:0", "skewed:3:nan", "skewed:3:1:1", "column:2", "category:2", "by-name"]
)
def test_a_bad_rule_is_refused(rule: str):
    with pytest.raises(ConfigError):
        assign(MANY, rule, seed=0)


# --- what a shop holds

ITEMS = make_items(dict.fromkeys(("b/own", "i1", "i2", "i3", "i4", "i5", "i6"), ""), own=("b/own",))
ROWS = [
    ("b", "zoe", "i3", Part.TRAIN),
    ("b", "zoe", "i3", Part.TRAIN),  # once more: still 1
    ("b", "zoe", "i1", Part.VALIDATION),
    ("b", "zoe", "b/own", Part.TRAIN),
    ("b", "ann", "i3", Part.TEST),
    ("b", "ann", "i4", Part.TEST),  # the shop does not have it
    ("b", "ann", "i4", Part.TEST),
    ("a", "ann", "i2", Part.TRAIN),  # a shop with one shopper and one item
    ("b", "may", "i5", Part.FOLD_IN),
    ("b", "may", "i1", Part.TEST),
]


def make_split(rows: list[tuple] = ROWS) -> Split:
    table = pd.DataFrame(rows, columns=["shop", "shopper", "item", "part"])
    parts = table.pop("part").to_numpy(np.int8)
    return Split(Events(table.astype("category")), parts, {})


def test_each_shop_gets_its_own_catalogue_histories_and_places_in_the_shared_list():
    shared, (a, b) = build_shops(make_split(), ITEMS)
    assert shared.tolist() == ["i1", "i2", "i3", "i5"]  # no own item, none that is only tested, none unsold
    assert (a.name, b.name) == ("a", "b")
    assert a.shoppers.tolist() == ["ann"]
    assert a.items.tolist() == ["i2"]
    assert a.positions.tolist() == [1]
    assert a.train.toarray().tolist() == [[1.0]]
    assert b.shoppers.tolist() == ["ann", "may", "zoe"]
    assert b.items.tolist() == ["b/own", "i1", "i3", "i5"]
    assert b.positions.tolist() == [-1, 0, 2, 3]
    assert b.positions.dtype == np.int64
    assert b.train.toarray().tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]]
    assert b.validation.toarray().tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert b.test.toarray().tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert b.fold_in.toarray().tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert b.missing_test.tolist() == [1, 0, 0]
    for matrix in (b.train, b.validation, b.test, b.fold_in):
        assert matrix.format == "csr"
        assert matrix.dtype == np.float32
        assert matrix.has_canonical_format
        assert set(matrix.data) <= {1.0}


@pytest.mark.parametrize("as_table", [True, False])
def test_declared_catalogues_widen_a_shop_and_can_hold_test_items(as_table: bool):
    declared = {"b": ["i4", "i6"], "a": ["i2"]}
    pairs = [(shop, item) for shop, keys in declared.items() for item in keys]
    table = pd.DataFrame(pairs, columns=["shop", "item"])
    shared, (a, b) = build_shops(make_split(), ITEMS, declared=table if as_table else declared)
    assert shared.tolist() == ["i1", "i2", "i3", "i4", "i5", "i6"]
    assert b.items.tolist() == ["b/own", "i1", "i3", "i4", "i5", "i6"]
    assert b.missing_test.tolist() == [0, 0, 0]
    assert b.test.toarray()[0].tolist() == [0, 0, 1, 1, 0, 0]
    assert a.items.tolist() == ["i2"]


def test_what_is_not_known_is_refused():
    with pytest.raises(DataError, match="'c'"):
        build_shops(make_split(), ITEMS, declared={"c": ["i1"]})
    with pytest.raises(DataError, match="'i99'"):
        build_shops(make_split(), ITEMS, declared={"b": ["i99"]})
    with pytest.raises(DataError, match="'i5'"):
        build_shops(make_split(), make_items(dict.fromkeys(("b/own", "i1", "i2", "i3"), "")))


def test_test_items_outside_the_item_table_are_misses():
    rows = [*ROWS, ("b", "ann", "i6", Part.TEST), ("b", "zoe", "i6", Part.TEST)]
    known = make_items(dict.fromkeys(("b/own", "i1", "i2", "i3", "i5"), ""), own=("b/own",))  # neither i4 nor i6
    _, (_, b) = build_shops(make_split(rows), known)
    assert b.missing_test.tolist() == [2, 0, 1]


def test_a_shop_with_test_events_only_has_an_empty_catalogue():
    _, (a, c) = build_shops(make_split([("a", "ann", "i2", Part.TRAIN), ("c", "bob", "i2", Part.TEST)]), ITEMS)
    assert c.train.shape == (1, 0)
    assert c.missing_test.tolist() == [1]
    assert a.train.nnz == 1


def test_stacked_rows_are_all_shops_in_the_shared_space():
    shared, shops = build_shops(make_split(), ITEMS)
    pooled = stack(shops, [Part.TRAIN, Part.VALIDATION], len(shared))
    assert pooled.toarray().tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]]
    assert pooled.dtype == np.float32
    np.testing.assert_array_equal(stack(shops, [Part.FOLD_IN], 4).toarray().sum(axis=0), [0, 0, 0, 1])


def pairs_of(shop: ShopData, name: str) -> set[tuple[str, str]]:
    matrix = getattr(shop, name).tocoo()
    return {(shop.shoppers[row], shop.items[column]) for row, column in zip(matrix.row, matrix.col, strict=True)}


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(["north", "a", "b"]),
            st.sampled_from(["s10", "s9", "s1"]),
            st.sampled_from(["i1", "i2", "i3", "i4", "b/own"]),
            st.sampled_from(list(Part)),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_shops_hold_exactly_their_events(rows: list[tuple]):
    shared, shops = build_shops(make_split(rows), ITEMS)
    assert [shop.name for shop in shops] == sorted({row[0] for row in rows})
    for shop in shops:
        own = [row for row in rows if row[0] == shop.name]
        assert shop.shoppers.tolist() == sorted({row[1] for row in own})
        assert shop.items.tolist() == sorted({row[2] for row in own if row[3] != Part.TEST})
        for part in Part:
            expected = {row[1:3] for row in own if row[3] == part and row[2] in shop.items}
            assert pairs_of(shop, part.name.lower()) == expected
        missing = {row[1:3] for row in own if row[2] not in shop.items}
        assert shop.missing_test.sum() == len(missing)
        is_shared = shop.positions >= 0
        assert shared[shop.positions[is_shared]].tolist() == shop.items[is_shared].tolist()
        assert shop.items[~is_shared].tolist() in ([], ["b/own"])
