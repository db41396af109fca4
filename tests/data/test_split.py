"""Splits: known answers by hand, and what must hold for any table."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fedrec.data.events import Events
from fedrec.data.split import Part, Split, SplitKind, concatenate, given_test, make_split
from fedrec.errors import ConfigError, DataError

CATEGORIES = ("shop", "shopper", "item", "basket")


def make_events(rows: list[tuple], columns: str = "shop shopper item timestamp") -> Events:
    table = pd.DataFrame(rows, columns=columns.split())
    for name in table:
        if name in CATEGORIES:
            table[name] = table[name].astype("category")
        elif name == "timestamp":
            table[name] = table[name].astype(float)
    return Events(table)


def parts_of(split: Split) -> dict[tuple[str, str, str], set[str]]:
    """(shop, shopper, item) → names of the parts that its events are in."""
    found: dict[tuple[str, str, str], set[str]] = {}
    table = split.events.table
    for shop, shopper, item, part in zip(table["shop"], table["shopper"], table["item"], split.parts, strict=True):
        found.setdefault((shop, shopper, item), set()).add(Part(part).name)
    return found


def in_part(split: Split, part: Part) -> set[tuple[str, str, str]]:
    return {pair for pair, names in parts_of(split).items() if names == {part.name}}


# --- leave-last


def test_leave_last_takes_the_last_new_item_of_each_account_and_never_one_bought_before():
    events = make_events(
        [
            ("a", "ann", "i1", 1),
            ("a", "ann", "i2", 2),
            ("a", "ann", "i3", 3),
            ("a", "ann", "i1", 9),  # bought before: known, so not a test item
            ("a", "bob", "i1", 1),
            ("a", "bob", "i2", 2),  # two items: too short
            ("b", "ann", "i4", 7),  # another person
            ("b", "ann", "i5", 6),
            ("b", "ann", "i2", 5),
            ("b", "ann", "i6", 4),
        ]
    )
    split = make_split(events, "leave-last", seed=0)
    assert in_part(split, Part.TEST) == {("a", "ann", "i3"), ("b", "ann", "i4")}
    assert in_part(split, Part.VALIDATION) == {("a", "ann", "i2"), ("b", "ann", "i5")}
    assert split.parts.dtype == np.int8
    assert split.description["events"] == {"train": 6, "validation": 2, "test": 2, "fold_in": 0}
    assert split.description["too_short"] == {"shoppers": 1, "min_items": 3}


def test_without_validation_those_events_train():
    events = make_events([("a", "ann", f"i{place}", place) for place in range(4)])
    split = make_split(events, SplitKind.LEAVE_LAST, seed=0, validation=False)
    assert split.parts.tolist() == [0, 0, 0, 2]


TIMES = {"w": None, "x": 1, "y": 2, "z": 3}


def test_unknown_timestamps_come_first_and_make_validation_random():
    rows = [("a", f"s{number}", item, time) for number in range(40) for item, time in TIMES.items()]
    split = make_split(make_events(rows), "leave-last", seed=0)
    assert {item for _, _, item in in_part(split, Part.TEST)} == {"z"}
    assert {item for _, _, item in in_part(split, Part.VALIDATION)} == {"w", "x", "y"}  # over 40 shoppers
    assert len(in_part(split, Part.VALIDATION)) == 40
    assert any("validation item" in text for text in split.description["random"])


def test_order_stands_in_for_a_clock_and_breaks_its_ties():
    rows = [("a", "ann", "i1", 3), ("a", "ann", "i2", 1), ("a", "ann", "i3", 2)]
    split = make_split(make_events(rows, "shop shopper item order"), "leave-last", seed=0)
    assert split.parts.tolist() == [Part.TEST, Part.TRAIN, Part.VALIDATION]
    tied = [(*row[:3], 5, row[3]) for row in rows]
    split = make_split(make_events(tied, "shop shopper item timestamp order"), "leave-last", seed=0)
    assert split.parts.tolist() == [Part.TEST, Part.TRAIN, Part.VALIDATION]


def test_ties_are_broken_evenly_and_not_by_row():
    rows = [("a", f"s{number}", item, 5) for number in range(600) for item in "xyz"]
    tested = [item for _, _, item in in_part(make_split(make_events(rows), "leave-last", seed=3), Part.TEST)]
    counts = [tested.count(item) for item in "xyz"]
    assert min(counts) > 200 - 5 * 11.6  # 5 standard deviations of a binomial(600, 1/3)


def test_a_shops_split_does_not_depend_on_the_other_shops():
    one = [("b", f"s{number}", item, 5) for number in range(30) for item in "xyz"]
    other = [("a", f"s{number}", item, 5) for number in range(7) for item in "wxy"]
    alone = parts_of(make_split(make_events(one), "leave-last", seed=3))
    both = parts_of(make_split(make_events(other + one), "leave-last", seed=3))
    assert alone == {pair: names for pair, names in both.items() if pair[0] == "b"}


# --- last-basket

BASKETS = make_events(
    [
        ("a", "ann", "i1", 1, "b1"),
        ("a", "ann", "i2", 1, "b1"),
        ("a", "ann", "i3", 2, "b2"),
        ("a", "ann", "i2", 3, "b3"),  # known
        ("a", "ann", "i4", 3, "b3"),  # new to her, sold to bob: test
        ("a", "ann", "i9", 3, "b3"),  # nobody else had it: dropped
        ("a", "bob", "i4", 1, "b4"),
        ("a", "bob", "i3", 2, "b5"),  # test: ann trains on i3, though only in her validation invoice
        ("a", "cat", "i5", 2, "b6"),  # her only invoice is her last: held out, with nothing to know her by
        ("b", "cat", "i4", 2, "b7"),
        ("b", "cat", "i1", 4, "b8"),  # shop b's catalogue without her last invoice has no i1
        ("b", "dan", "i4", 4, "b9"),
    ],
    "shop shopper item timestamp basket",
)


def test_last_basket_tests_new_items_of_the_last_invoice_that_the_shop_trains_on():
    split = make_split(BASKETS, "last-basket", seed=0)
    assert in_part(split, Part.TEST) == {("a", "ann", "i4"), ("a", "bob", "i3")}
    assert ("a", "cat", "i5") not in parts_of(split)
    assert in_part(split, Part.VALIDATION) == set()  # i3 in b2 is ann's alone once bob's is test: it stays in training
    assert ("a", "ann", "i9") not in parts_of(split)
    assert ("b", "cat", "i1") not in parts_of(split)
    assert parts_of(split)[("a", "ann", "i2")] == {"TRAIN"}
    assert split.description["dropped"]["test items that the shop's training catalogue lacks"] == 2
    assert split.description["too_short"] == {"shoppers": 2, "min_invoices": 2}


def test_last_basket_validates_on_the_second_last_invoice():
    rows = [*BASKETS.table.itertuples(index=False, name=None), ("a", "eva", "i3", 1, "c1"), ("a", "eva", "i1", 2, "c2")]
    split = make_split(make_events(rows, " ".join(BASKETS.table)), "last-basket", seed=0)
    assert in_part(split, Part.VALIDATION) == {("a", "ann", "i3")}


def test_a_later_fold_forgets_what_came_after():
    rows = [*BASKETS.table.itertuples(index=False, name=None)]
    rows += [("a", "eva", "i3", 1, "c1"), ("a", "eva", "i1", 2, "c2"), ("a", "eva", "i2", 3, "c3")]
    split = make_split(make_events(rows, " ".join(BASKETS.table)), "last-basket", seed=0, fold=1)
    assert in_part(split, Part.TEST) == {("a", "ann", "i3"), ("a", "eva", "i1")}
    assert {pair for pair in parts_of(split) if pair[1] == "ann"} == {("a", "ann", item) for item in ("i1", "i2", "i3")}
    assert in_part(split, Part.TRAIN) == {("a", "ann", "i1"), ("a", "ann", "i2"), ("a", "eva", "i3")}
    assert ("a", "bob", "i4") not in parts_of(split)  # of this fold's past he has one invoice, the last
    with pytest.raises(DataError, match="nothing to test"):
        make_split(BASKETS, "last-basket", seed=0, fold=1)


def test_events_without_an_invoice_are_invoices_of_their_own():
    rows = [("a", "ann", "i1", 1, None), ("a", "ann", "i2", 2, None)]
    rows += [("a", "bob", "i2", 1, "b1"), ("a", "bob", "i1", 2, "b2")]
    split = make_split(make_events(rows, "shop shopper item timestamp basket"), "last-basket", seed=0)
    assert in_part(split, Part.TEST) == {("a", "ann", "i2"), ("a", "bob", "i1")}


def test_invoices_at_the_same_time_do_not_mix():
    rows = [("a", f"s{number}", f"i{item}", 5, f"b{item % 2}") for number in range(50) for item in range(6)]
    rows += [("a", "other", f"i{item}", 5, "c") for item in range(6)]
    split = make_split(make_events(rows, "shop shopper item timestamp basket"), "last-basket", seed=0)
    tested: dict[str, set[int]] = {}
    for _, shopper, item in in_part(split, Part.TEST):
        tested.setdefault(shopper, set()).add(int(item[1]) % 2)
    assert {len(kinds) for kinds in tested.values()} == {1}
    assert {kind for kinds in tested.values() for kind in kinds} == {0, 1}


# --- random-share, temporal, strong


def test_random_share_takes_a_share_of_each_shoppers_items_and_leaves_one():
    sizes = {"s1": 1, "s2": 2, "s3": 3, "s10": 10, "s40": 40}
    rows = [("a", name, f"i{item}") for name, size in sizes.items() for item in range(size) for _ in (0, 1)]
    split = make_split(make_events(rows, "shop shopper item"), "random-share", seed=1)
    counts = {
        name: tuple(sum(pair[1] == name for pair in in_part(split, part)) for part in (Part.TEST, Part.VALIDATION))
        for name in sizes
    }
    assert counts == {"s1": (0, 0), "s2": (0, 0), "s3": (1, 0), "s10": (2, 1), "s40": (8, 3)}
    assert split.description["too_short"]["shoppers"] == 2


def test_temporal_cuts_at_dates_by_first_purchase():
    day = 86_400
    rows = [
        ("a", "ann", "i1", 1 * day),
        ("a", "ann", "i1", 9 * day),  # repeats stay where the item began
        ("a", "ann", "i2", 4 * day),
        ("a", "ann", "i3", 8 * day),
        ("a", "bob", "i3", 8 * day - 1),
        ("a", "cat", "i2", 10 * day),  # cold, kept
        ("a", "cat", "i5", None),  # unknown: trains
    ]
    dates = {"test_from": "1970-01-09", "validation_from": 4 * day}
    split = make_split(make_events(rows[:-1]), "temporal", seed=0, **dates)
    assert split.parts.tolist() == [0, 0, 1, 2, 1, 2]
    assert split.description["cuts"] == {
        "test_from": "1970-01-09T00:00:00+00:00",
        "validation_from": "1970-01-05T00:00:00+00:00",
    }
    partly = make_split(make_events(rows), "temporal", seed=0, **dates)
    assert partly.parts[-1] == Part.TRAIN
    assert any("validation items" in text for text in partly.description["random"])


def test_temporal_without_dates_cuts_at_quantiles():
    rows = [("a", f"s{number % 7}", f"i{number}", number) for number in range(100)]
    split = make_split(make_events(rows), "temporal", seed=0, test_share=0.2, validation_share=0.25)
    assert split.parts.tolist() == [Part.TRAIN] * 60 + [Part.VALIDATION] * 20 + [Part.TEST] * 20


def test_strong_never_trains_on_its_test_shoppers():
    rows = [("a" if number < 40 else "b", f"s{number}", f"i{item}") for number in range(60) for item in range(10)]
    split = make_split(
        make_events(rows, "shop shopper item"), "strong", seed=2, test_shoppers=0.1, validation_shoppers=0.2
    )
    who = {part: {pair[:2] for pair in in_part(split, part)} for part in Part}
    assert [sum(shop == name for shop, _ in who[Part.TEST]) for name in "ab"] == [4, 2]
    assert [sum(shop == name for shop, _ in who[Part.VALIDATION]) for name in "ab"] == [8, 4]
    assert not who[Part.TRAIN] & who[Part.FOLD_IN]
    assert not who[Part.TEST] & who[Part.VALIDATION]
    assert who[Part.FOLD_IN] == who[Part.TEST] | who[Part.VALIDATION]
    assert len(in_part(split, Part.TEST)) == 6 * 2
    assert len(in_part(split, Part.VALIDATION)) == 12 * 2


def test_strong_takes_a_number_of_shoppers_over_all_shops():
    rows = [("a" if number < 40 else "b", f"s{number}", f"i{item}") for number in range(60) for item in range(5)]
    events = make_events(rows, "shop shopper item")
    split = make_split(events, "strong", seed=2, test_shoppers=7, validation_shoppers=3)
    assert split.description["chosen"] == {"test_shoppers": 7, "validation_shoppers": 3}
    with pytest.raises(DataError, match="only 60 shoppers"):
        make_split(events, "strong", seed=2, test_shoppers=61)


# --- a test file of its own


def test_a_given_test_file_keeps_cold_shoppers_and_drops_known_items():
    train = make_events([("a", "ann", "i1", 1), ("a", "ann", "i2", 2), ("a", "bob", "i3", 1)])
    test = make_events([("a", "zoe", "i1", 5), ("a", "ann", "i2", 6), ("a", "ann", "i7", 7), ("a", "ann", "i7", 8)])
    split = given_test(train, test, seed=0)
    assert in_part(split, Part.TEST) == {("a", "zoe", "i1"), ("a", "ann", "i7")}
    assert in_part(split, Part.VALIDATION) == {("a", "ann", "i2")}
    assert in_part(split, Part.TRAIN) == {("a", "ann", "i1"), ("a", "bob", "i3")}
    assert split.description["dropped"] == {"test events of items already known": 1}
    assert split.description["events"]["test"] == 3


def test_a_given_test_file_without_times_validates_at_random():
    train = make_events([("a", f"s{number}", item) for number in range(30) for item in "xyz"], "shop shopper item")
    test = make_events([("a", f"s{number}", "w") for number in range(30)], "shop shopper item")
    split = given_test(train, test, seed=0)
    assert {item for _, _, item in in_part(split, Part.VALIDATION)} == set("xyz")
    assert len(in_part(split, Part.VALIDATION)) == 30
    unvalidated = given_test(train, test, seed=0, validation=False)
    assert in_part(unvalidated, Part.VALIDATION) == set()


def test_concatenated_events_keep_rows_and_unite_categories():
    one = make_events([("b", "ann", "i2", 1)])
    other = make_events([("a", "bob", "i1", 2, "x")], "shop shopper item timestamp basket")
    table = concatenate(one, other).table
    assert table[["shop", "shopper", "item"]].to_numpy().tolist() == [["b", "ann", "i2"], ["a", "bob", "i1"]]
    assert table["item"].cat.categories.tolist() == ["i1", "i2"]
    assert table["basket"].isna().tolist() == [True, False]


# --- refusals


@pytest.mark.parametrize("kind", ["leave-last", "temporal", "last-basket"])
def test_a_split_that_needs_time_names_those_that_do_not(kind: str):
    events = make_events([("a", "ann", f"i{item}", None) for item in range(5)])
    with pytest.raises(DataError, match=r"possible here: random-share, strong$"):
        make_split(events, kind, seed=0)


def test_last_basket_needs_invoices():
    events = make_events([("a", "ann", f"i{item}", item) for item in range(5)])
    with pytest.raises(DataError, match=r"basket column.*possible here: leave-last, random-share, temporal, strong"):
        make_split(events, "last-basket", seed=0)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("leave-first", {}),
        ("leave-last", {"fold": 1}),
        ("leave-last", {"min_items": 1}),
        ("last-basket", {"fold": -1}),
        ("last-basket", {"fold": True}),
        ("random-share", {"test_share": 1.0}),
        ("random-share", {"test_share": float("nan")}),
        ("temporal", {"test_from": "soon"}),
        ("temporal", {"test_from": 2, "validation_from": 3}),
        ("strong", {"test_shoppers": 0}),
        ("strong", {"test_shoppers": 1.5}),
    ],
)
def test_bad_settings_are_refused(kind: str, parameters: dict[str, object]):
    rows = [("a", "ann", f"i{item}", item, f"b{item}") for item in range(5)]
    with pytest.raises(ConfigError):
        make_split(make_events(rows, "shop shopper item timestamp basket"), kind, seed=0, **parameters)


def test_a_test_file_of_known_items_is_refused_for_that_reason():
    events = make_events([("a", "ann", "i1", 1), ("a", "ann", "i2", 2)])
    with pytest.raises(DataError, match="its 2 events repeat items"):
        given_test(events, events, seed=0)


def test_events_that_cannot_be_split_are_refused():
    events = make_events([("a", "ann", "i1", 1)])
    with pytest.raises(DataError, match="nothing to test"):
        make_split(events, "leave-last", seed=0)
    with pytest.raises(DataError, match="--shops"):
        make_split(Events(events.table.drop(columns="shop")), "leave-last", seed=0)
    with pytest.raises(DataError, match="no events"):
        make_split(Events(events.table.iloc[:0]), "leave-last", seed=0)
    holes = events.table.assign(item=pd.Categorical([None], categories=["i1"]))
    with pytest.raises(DataError, match="1 of 1 events have no item"):
        make_split(Events(holes), "leave-last", seed=0)


# --- any table

ROWS = st.lists(
    st.tuples(
        st.sampled_from("ab"),
        st.sampled_from(["ann", "bob", "cat"]),
        st.sampled_from([f"i{number}" for number in range(7)]),
        st.sampled_from([None, 0, 1, 2, 3, 4]),
        st.sampled_from([None, "b0", "b1", "b2", "b3"]),
    ),
    min_size=4,
    max_size=40,
)


def try_split(rows: list[tuple], kind: str, seed: int = 0) -> Split:
    events = make_events(rows, "shop shopper item timestamp basket")
    try:
        return make_split(events, kind, seed=seed, **({"test_shoppers": 0.3} if kind == "strong" else {}))
    except DataError:
        assume(False)
        raise


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, kind=st.sampled_from(list(SplitKind)))
def test_no_shopper_has_an_item_in_two_parts(rows: list[tuple], kind: str):
    split = try_split(rows, kind)
    assert len(split.parts) == len(split.events)
    assert all(len(names) == 1 for names in parts_of(split).values())
    assert set(np.unique(split.parts)) <= set(Part)
    json.dumps(split.description, allow_nan=False)
    counts = [int((split.parts == part).sum()) for part in Part]
    assert list(split.description["events"].values()) == counts
    if kind != "last-basket":
        assert sum(counts) == len(rows)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, kind=st.sampled_from(list(SplitKind)), random=st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows: list[tuple], kind: str, random):
    shuffled = random.sample(rows, len(rows))
    assert parts_of(try_split(rows, kind)) == parts_of(try_split(shuffled, kind))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(rows=ROWS, fold=st.integers(0, 1))
def test_last_basket_tests_only_what_the_shop_trains_on_and_shoppers_with_history(rows: list[tuple], fold: int):
    events = make_events(rows, "shop shopper item timestamp basket")
    try:
        split = make_split(events, "last-basket", seed=0, fold=fold)
    except DataError:
        assume(False)
    history = in_part(split, Part.TRAIN) | in_part(split, Part.VALIDATION)
    tested = in_part(split, Part.TEST)
    assert {(shop, item) for shop, _, item in tested} <= {(shop, item) for shop, _, item in history}
    assert {pair[:2] for pair in tested} <= {pair[:2] for pair in history}
    validated = in_part(split, Part.VALIDATION)
    trained = in_part(split, Part.TRAIN)
    assert {(shop, item) for shop, _, item in validated} <= {(shop, item) for shop, _, item in trained}
    assert {pair[:2] for pair in validated} <= {pair[:2] for pair in trained}


@settings(max_examples=40, deadline=None)
@given(train=ROWS, test=ROWS)
def test_a_given_test_file_never_tests_what_is_known(train: list[tuple], test: list[tuple]):
    known = {row[:3] for row in train}
    asked = {row[:3] for row in test} - known
    assume(asked)
    columns = "shop shopper item timestamp basket"
    split = given_test(make_events(train, columns), make_events(test, columns), seed=0)
    assert in_part(split, Part.TEST) == asked
    assert in_part(split, Part.TRAIN) | in_part(split, Part.VALIDATION) == known
    assert {pair[:2] for pair in in_part(split, Part.TRAIN)} == {pair[:2] for pair in known}


def test_the_seed_decides_the_draws_and_nothing_else_does():
    rows = [("a", f"s{number}", f"i{item}", 0) for number in range(20) for item in range(10)]
    for kind in ("leave-last", "random-share", "strong"):
        first, again, other = (make_split(make_events(rows), kind, seed=seed).parts for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()


@pytest.mark.data
def test_online_retail_has_the_small_shops_that_the_headline_counts(data_dir):
    path = data_dir / "uci-online-retail-ii.parquet"
    if not path.exists():
        pytest.skip("uci-online-retail-ii is not in the data folder")
    rows = pd.read_parquet(path)
    is_sale = rows["user_id"].notna() & ~rows["is_cancel"] & (rows["quantity"] > 0) & (rows["price"] > 0)
    rows = rows[is_sale & rows["item_id"].str.match(r"^\d{5}")]
    names = {"shop": "shop", "user_id": "shopper", "item_id": "item", "basket_id": "basket"}
    table = rows.rename(columns=names)[[*names.values(), "timestamp"]].astype({"timestamp": float})
    table = table.astype(dict.fromkeys(names.values(), "category"))
    split = make_split(Events(table.reset_index(drop=True)), "last-basket", seed=0)
    tested = split.events.table[split.parts == Part.TEST].groupby("shop", observed=True)["shopper"].nunique()
    assert len(tested) in (27, 28)  # 27 with every service code cleaned away
    assert 280 <= tested.drop("United Kingdom").sum() <= 300
