"""Cleaning: what is dropped, under which name, and what is kept."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrec.data.events import REASONS, SERVICE_CODES, CleaningRules, clean
from fedrec.errors import ConfigError, DataError


def frame(*rows, columns=("shopper", "item", "timestamp")):
    return pd.DataFrame(rows, columns=list(columns))


def counts(report):
    return {reason: count for reason, count in report.dropped if count}


def test_every_class_of_dropped_row_is_counted_once_under_the_first_reason():
    rows = [
        ("s", "u1", "a", "2024-01-01", 1, 2.0, "1001", False),
        ("s", None, "a", "2024-01-01", 1, 2.0, "1001", True),  # also cancelled
        ("s", "u1", None, "2024-01-01", 1, 2.0, "1001", False),
        (None, "u1", "a", "2024-01-01", 1, 2.0, "1001", False),
        ("s", "u1", "a", "someday", 1, 2.0, "1001", False),
        ("s", "u1", "a", "2024-01-02", 1, 2.0, "1001", True),
        ("s", "u1", "a", "2024-01-02", -1, 2.0, "C1002", False),
        ("s", "u1", "a", "2024-01-02", 0, 2.0, "1001", False),
        ("s", "u1", "a", "2024-01-02", 1, 0.0, "1001", False),
        ("s", "u1", "post", "2024-01-02", 1, 2.0, "1001", False),
        ("s", "u1", "a", "2024-01-01", 1, 2.0, "1001", False),
        ("s", "u1", "a", "2024-01-03", 1, 2.0, "1003", False),  # bought again
    ]
    raw = frame(*rows, columns=("shop", "shopper", "item", "timestamp", "quantity", "price", "basket", "is_cancel"))
    events, report = clean(raw, rules=CleaningRules(service_codes=SERVICE_CODES, cancel_prefix="C"))
    assert counts(report) == {
        "no shopper": 1,
        "no item": 1,
        "no shop": 1,
        "bad date": 1,
        "cancelled": 2,
        "quantity not above 0": 1,
        "price not above 0": 1,
        "service code": 1,
        "duplicate": 1,
    }
    assert [reason for reason, _ in report.dropped] == list(REASONS)
    assert (report.rows_read, report.rows_kept) == (12, 2)
    table = events.table
    assert table["timestamp"].tolist() == [1_704_067_200.0, 1_704_240_000.0]
    assert list(table["item"].cat.categories) == ["a"]
    assert str(table["quantity"].dtype) == str(table["price"].dtype) == "float32"


@given(
    st.lists(st.tuples(st.sampled_from(["u", "v", None]), st.sampled_from(["a", ""]), st.integers(0, 3)), min_size=1)
)
def test_rows_read_are_rows_kept_and_rows_dropped(rows):
    raw = frame(*rows, ("w", "b", 9))
    events, report = clean(raw)
    assert report.rows_read == len(raw) == report.rows_kept + sum(count for _, count in report.dropped)
    expected = raw[raw["shopper"].notna() & (raw["item"] != "")].drop_duplicates()
    assert len(events) == report.rows_kept == len(expected)
    assert events.table["shopper"].tolist() == expected["shopper"].tolist()


@pytest.mark.parametrize(
    ("column", "first", "second", "kept"),
    [
        ("timestamp", 1.0, 2.0, 2),
        ("basket", "b1", "b2", 2),
        ("quantity", 1, 2, 2),
        ("price", 1.0, 1.5, 2),
        ("rating", 1, 2, 2),
        ("event", "view", "buy", 2),
        ("order", 1, 2, 2),
        ("shop", "s", "t", 2),
        ("title", "A", "B", 1),
        ("category", "A", "B", 1),
        ("price", 0.5, 0.5, 1),
        ("rating", None, None, 1),
    ],
)
def test_a_duplicate_agrees_in_everything_but_text(column, first, second, kept):
    events, _ = clean(frame(("u", "a", first), ("u", "a", second), columns=("shopper", "item", column)))
    assert len(events) == kept


def test_duplicates_are_those_that_pandas_finds_on_many_rows():
    rng = np.random.default_rng(0)
    raw = pd.DataFrame(
        {"shopper": rng.integers(0, 40, 5000), "item": rng.integers(0, 30, 5000), "rating": rng.integers(1, 6, 5000)}
    )
    events, report = clean(raw)
    assert len(events) == len(raw.drop_duplicates())
    assert counts(report) == {"duplicate": int(raw.duplicated().sum())}


def test_an_event_without_a_rating_is_kept_and_counted():
    raw = frame(("u", "a", "5"), ("u", "b", ""), ("u", "c", "good"), columns=("shopper", "item", "rating"))
    events, report = clean(raw)
    assert len(events) == 3
    assert dict(report.handled) == {
        "rating that is no number, event kept without it": 1,
        "events without a rating (NaN), kept": 1,
    }
    kept, report = clean(raw, rules=CleaningRules(min_rating=4))
    assert kept.table["item"].tolist() == ["a"]
    assert counts(report) == {"no rating of at least min_rating": 2}


def test_min_rating_keeps_its_own_value_and_needs_ratings():
    raw = frame(("u", "a", 3.5), ("u", "b", 4.0), columns=("shopper", "item", "rating"))
    assert clean(raw, rules=CleaningRules(min_rating=4))[0].table["item"].tolist() == ["b"]
    with pytest.raises(DataError, match="no rating column"):
        clean(frame(("u", "a", 1)), rules=CleaningRules(min_rating=4))
    with pytest.raises(ConfigError, match="min_rating = nan"):
        CleaningRules(min_rating=float("nan"))


def test_a_row_with_an_empty_date_is_older_than_all_dated_ones_in_file_order():
    events, report = clean(frame(("u", "a", 50.0), ("u", "b", None), ("u", "c", None), ("u", "d", 50.0)))
    assert len(events) == 4
    assert dict(report.handled)["events without a date, taken as older than all others, in the order of the file"] == 2
    order = events.table["order"]
    assert order.dtype == np.int64
    assert order[1] < order[2] < order[0] == order[3]


def test_not_one_readable_date_is_refused_with_an_example():
    with pytest.raises(
        DataError, match=r"not one of 2 dates can be read, the first is 'gestern'.*--columns timestamp="
    ):
        clean(frame(("u", "a", "gestern"), ("u", "b", None)))


def test_nothing_left_is_refused_with_the_reasons():
    with pytest.raises(DataError, match=r"nothing is left of 2 rows.*no shopper 1, no item 1"):
        clean(frame((None, "a", 1), ("u", None, 2)))


def test_tables_without_rows_or_without_a_shopper_are_refused():
    with pytest.raises(DataError, match="no rows"):
        clean(frame())
    with pytest.raises(DataError, match="no shopper column; columns are item"):
        clean(pd.DataFrame({"item": ["a"]}))


def test_baskets_that_all_begin_with_c_are_baskets():
    raw = frame(("u", "a", "C1"), ("u", "b", "C2"), ("u", "c", "77"), columns=("shopper", "item", "basket"))
    assert len(clean(raw, rules=CleaningRules(cancel_prefix="C"))[0]) == 3
    more = pd.concat([raw, frame(("u", "d", "78"), ("u", "e", "CX"), columns=raw.columns)])
    assert clean(more, rules=CleaningRules(cancel_prefix="C"))[0].table["item"].tolist() == ["c", "d", "e"]
    assert len(clean(more)[0]) == 5


def test_refunds_are_cancellations_and_views_are_events():
    raw = frame(("u", "a", "view"), ("u", "b", "Refund"), columns=("shopper", "item", "event"))
    events, report = clean(raw)
    assert events.table["event"].tolist() == ["view"]
    assert counts(report) == {"cancelled": 1}


@pytest.mark.parametrize("code", ["POST", "m", "BANK CHARGES", "ADJUST2", "TEST001", "gift_0001_20", "C2"])
def test_service_codes_are_no_goods(code):
    raw = frame(("u", code), ("u", "85123A"), columns=("shopper", "item"))
    assert len(clean(raw, rules=CleaningRules(service_codes=SERVICE_CODES))[0]) == 1
    assert len(clean(raw)[0]) == 2


@pytest.mark.parametrize("code", ["POSTER", "MUG", "DCGS0003", "C", "22423"])
def test_goods_whose_code_begins_alike_stay(code):
    raw = frame(("u", code), columns=("shopper", "item"))
    assert len(clean(raw, rules=CleaningRules(service_codes=SERVICE_CODES))[0]) == 1


def test_ids_of_mixed_types_are_read_as_text_and_counted():
    raw = pd.DataFrame({"shopper": pd.Series([1, 2.0, "x", 3], dtype=object), "item": [10.0, 11.0, 12.0, np.nan]})
    events, report = clean(raw)
    assert events.table["shopper"].tolist() == ["1", "2", "x"]
    assert events.table["item"].tolist() == ["10", "11", "12"]
    assert dict(report.handled) == {"shopper ids of mixed types, read as text": 1}


def test_the_given_table_is_left_alone():
    raw = frame(("u", "a", 1.0), ("u", "a", 1.0), ("v", "b", None))
    before = raw.copy(deep=True)
    clean(raw)
    pd.testing.assert_frame_equal(raw, before)


def test_places_in_the_order_that_are_no_whole_numbers_become_ranks():
    raw = frame(("u", "a", "1.5"), ("u", "b", "1.25"), ("u", "c", ""), columns=("shopper", "item", "order"))
    assert clean(raw)[0].table["order"].tolist() == [1, 0, -1]
    raw = frame(("u", "a", 1e300), ("u", "b", 7), columns=("shopper", "item", "order"))
    assert clean(raw)[0].table["order"].tolist() == [1, 0]
