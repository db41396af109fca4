"""Which items are the same in two shops, and what is known about them."""

import numpy as np
import pandas as pd
import pytest

from fedrec.data.events import clean
from fedrec.data.items import build_items, clean_catalogue
from fedrec.errors import DataError


def events(*rows, columns):
    return clean(pd.DataFrame(rows, columns=columns))[0]


def catalogue(*rows, columns):
    return clean_catalogue(pd.DataFrame(rows, columns=columns))[0]


def test_without_a_key_the_own_id_is_shared_by_all_shops():
    table = events(("s", "u", "b"), ("t", "v", "a"), ("t", "w", "b"), columns=["shop", "shopper", "item"])
    (named,), items, notes = build_items([table], None)
    assert named.table["item"].tolist() == ["b", "a", "b"]
    assert items.table.index.tolist() == ["a", "b"]
    assert items.table.index.name == "item"
    assert items.table["is_shared"].all()
    assert list(items.table.columns) == ["title", "category", "price", "is_shared"]
    assert items.table["title"].tolist() == ["", ""]
    assert items.table["price"].isna().all()
    assert notes == ()


def test_a_key_in_the_events_joins_items_of_two_shops_and_the_rest_stay_local():
    table = events(
        ("s", "u", "1", "111"),
        ("t", "u", "9", "111"),
        ("s", "v", "2", None),
        ("t", "v", "2", None),
        ("t", "w", "1", "222"),
        columns=["shop", "shopper", "item", "item_key"],
    )
    (named,), items, notes = build_items([table], None)
    assert named.table["item"].tolist() == ["111", "111", "s/2", "t/2", "222"]
    assert "item_key" not in named.table
    assert items.table["is_shared"].to_dict() == {"111": True, "222": True, "s/2": False, "t/2": False}
    assert items.table["item_id"].to_dict() == {"111": "1", "222": "1", "s/2": "2", "t/2": "2"}
    assert dict(notes) == {"items without a key, known to one shop alone": 2}


def test_an_item_with_several_keys_takes_the_most_frequent_and_lends_it_to_rows_without():
    table = events(
        ("s", "u", "1", "k2"),
        ("s", "v", "1", "k2"),
        ("s", "w", "1", "k1"),
        ("s", "x", "1", None),
        columns=["shop", "shopper", "item", "item_key"],
    )
    (named,), _, notes = build_items([table], None)
    assert named.table["item"].tolist() == ["k2"] * 4
    assert dict(notes) == {"items with several keys in one shop, most frequent taken": 1}


def test_keys_from_an_items_file_hold_for_the_shop_that_it_names():
    table = events(("s", "u", "1"), ("t", "u", "1"), ("t", "v", "2"), columns=["shop", "shopper", "item"])
    listed = catalogue(
        ("s", "1", "k", "Tea"),
        ("t", "2", "k", ""),
        ("t", "3", "", "Pot"),
        columns=["shop", "item", "item_key", "title"],
    )
    (named,), items, _ = build_items([table], listed)
    assert named.table["item"].tolist() == ["k", "t/1", "k"]
    assert items.table["title"].to_dict() == {"k": "Tea", "t/1": "", "t/3": "Pot"}
    assert items.table["is_shared"].to_dict() == {"k": True, "t/1": False, "t/3": False}


def test_a_declared_key_holds_whatever_key_shoppers_rows_carry():
    rows = [("s", "u", "1", "k1"), ("s", "v", "1", "k2"), ("s", "w", "1", "k2"), ("s", "v", "2", "k3")]
    table = events(*rows, columns=["shop", "shopper", "item", "item_key"])
    listed = catalogue(("1", "k1"), ("2", None), columns=["item", "item_key"])
    (named,), _, _ = build_items([table], listed)
    assert named.table["item"].tolist() == ["k1", "k1", "k1", "k3"]


def test_keys_from_an_items_file_without_shops_hold_everywhere():
    table = events(("s", "u", "1"), ("t", "u", "1"), ("t", "v", "2"), columns=["shop", "shopper", "item"])
    listed = catalogue(("1", "k", "Tea"), ("2", None, "Pot"), columns=["item", "item_key", "title"])
    (named,), items, _ = build_items([table], listed)
    assert named.table["item"].tolist() == ["k", "k", "t/2"]
    assert items.table["title"].to_dict() == {"k": "Tea", "t/2": "Pot"}


def test_an_items_file_may_be_by_key_alone():
    table = events(("s", "u", "1", "k"), columns=["shop", "shopper", "item", "item_key"])
    listed = catalogue(("k", "Tea"), ("other", "Pot"), columns=["item_key", "title"])
    _, items, _ = build_items([table], listed)
    assert items.table["title"].to_dict() == {"k": "Tea", "other": "Pot"}


def test_gtins_are_one_number_however_many_zeros_stand_in_front():
    rows = [("s", "u", "1", "4006381333931"), ("t", "u", "2", "04006381333931"), ("t", "v", "3", "0")]
    table = events(*rows, columns=["shop", "shopper", "item", "item_key"])
    (named,), items, _ = build_items([table], None, is_gtin=True)
    assert named.table["item"].tolist() == ["04006381333931", "04006381333931", "t/3"]
    (named,), items, _ = build_items([table], None)
    assert items.table["is_shared"].sum() == 2


def test_title_and_category_are_the_most_frequent_and_the_price_is_the_median():
    table = events(
        ("u", "a", "Tea", "Food", 1.0),
        ("v", "a", "tea", "Food", 2.0),
        ("w", "a", "Tea", "Drink", 9.0),
        ("x", "a", None, None, None),
        ("x", "b", "B", "", 4.0),
        columns=["shopper", "item", "title", "category", "price"],
    )
    (named,), items, _ = build_items([table], None)
    assert items.table.loc["a", ["title", "category", "price"]].tolist() == ["Tea", "Food", 2.0]
    assert items.table.loc["b", ["title", "category", "price"]].tolist() == ["B", "", 4.0]
    assert "title" not in named.table


def test_the_items_file_comes_before_the_events_and_the_events_fill_its_gaps():
    table = events(("u", "a", "from events", 3.0), ("u", "b", "B", 5.0), columns=["shopper", "item", "title", "price"])
    listed = catalogue(
        ("a", "", 7.0), ("a", "A", 8.0), ("c", "C", "x"), ("", "D", 1.0), columns=["item", "title", "price"]
    )
    _, items, _ = build_items([table], listed)
    assert items.table.index.tolist() == ["a", "b", "c"]
    assert items.table["title"].tolist() == ["A", "B", "C"]
    np.testing.assert_array_equal(items.table["price"], np.array([7.5, 5.0, np.nan], np.float32))


def test_repeated_and_nameless_rows_of_the_items_file_are_counted():
    _, notes = clean_catalogue(pd.DataFrame({"item": ["a", "a", None], "title": ["A", "B", "C"]}))
    assert dict(notes) == {
        "rows of the items file without an id, left out": 1,
        "rows of the items file that repeat an item, first known value taken": 1,
    }
    with pytest.raises(DataError, match="no row with an item id"):
        clean_catalogue(pd.DataFrame({"item": [None, ""]}))


def test_test_events_get_the_same_names_and_their_text_only_fills_gaps():
    train = events(("s", "u", "1", "k", "Tea"), columns=["shop", "shopper", "item", "item_key", "title"])
    test = events(("s", "v", "1", "other"), ("s", "v", "2", "New"), columns=["shop", "shopper", "item", "title"])
    (_, named), items, _ = build_items([train, test], None)
    assert named.table["item"].tolist() == ["k", "s/2"]
    assert items.table["title"].to_dict() == {"k": "Tea", "s/2": "New"}


def test_lists_of_categories_are_joined():
    table = events(("u", "a"), columns=["shopper", "item"])
    listed = clean_catalogue(pd.DataFrame({"item": ["a"], "category": [["Food", "Tea"]]}))[0]
    assert build_items([table], listed)[1].table["category"].tolist() == ["Food|Tea"]
