"""Ids as text, times as seconds, numbers."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrec.data.cells import flags, ids_as_text, numbers, seconds

NOON_S = 1_322_913_600.0  # 2011-12-03 12:00 UTC


def texts(cells, **settings):
    result, _ = ids_as_text(cells if isinstance(cells, pd.Series) else pd.Series(cells), **settings)
    return [None if pd.isna(one) else one for one in result]


@given(st.lists(st.one_of(st.none(), st.integers(-(2**62), 2**62)), min_size=1))
def test_whole_numbers_become_their_digits_whatever_type_carries_them(values):
    expected = [None if value is None else str(value) for value in values]
    assert texts(pd.Series(values, dtype="Int64")) == expected
    assert texts(pd.Series(values, dtype=object)) == expected
    assert texts(pd.Series([None if value is None else f" {value} " for value in values], dtype="str")) == expected
    if None not in values:
        assert texts(pd.Series(values, dtype="int64")) == expected
        assert texts(pd.Series(values, dtype="category")) == expected


@given(st.lists(st.one_of(st.none(), st.integers(-(2**53), 2**53)), min_size=1))
def test_whole_numbers_that_went_through_floats_get_their_digits_back(values):
    expected = [None if value is None else str(value) for value in values]
    assert texts(pd.Series(values, dtype="float64")) == expected
    as_text = [None if value is None else f"{value}.0" for value in values]
    assert texts(pd.Series(as_text, dtype="str")) == expected


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5), min_size=1))
def test_ids_come_out_sorted_in_use_and_without_blanks_around_them(values):
    result, _ = ids_as_text(pd.Series(values, dtype="str"))
    names = list(result.categories)
    assert names == sorted(set(names)) == sorted({one for one in result if isinstance(one, str)})
    assert all(name == name.strip() != "" for name in names)


def test_zeros_in_front_stay_and_ids_of_mixed_types_become_one_text():
    assert texts(["007", "7"]) == ["007", "7"]
    cells = pd.Series([7, 7.0, "7", " 7 ", "a", Decimal("7"), b"7", 8.5, None], dtype=object)
    result, num_other = ids_as_text(cells)
    assert [None if pd.isna(one) else one for one in result] == ["7", "7", "7", "7", "a", "7", "7", "8.5", None]
    assert num_other == 1
    assert [ids_as_text(pd.Series(ids))[1] for ids in (["1", "2.0"], ["a", "b"], ["1", "a", "b", "2", "c"])] == [
        0,
        0,
        2,
    ]


def test_a_point_zero_is_cut_off_only_where_no_id_has_another_fraction():
    assert texts(["1.0", "2.0", "x"]) == ["1", "2", "x"]
    assert texts(["1.0", "2.5"]) == ["1.0", "2.5"]


def test_large_ids_keep_every_digit():
    assert texts(pd.Series([2**63 - 1, None], dtype="Int64")) == [str(2**63 - 1), None]


def test_words_for_nothing_are_missing_but_a_shop_may_be_called_na():
    assert texts(["", "nan", "NULL", "None", "NA", "x"]) == [None] * 5 + ["x"]
    assert texts(["NA", ""], keeps_na=True) == ["NA", None]


@pytest.mark.parametrize(
    "cells",
    [
        [1322913600],
        [1322913600.0],
        ["1322913600"],
        [1322913600_000],
        ["1322913600000"],
        [1322913600_000_000],
        [1322913600_000_000_000],
        ["2011-12-03 12:00"],
        ["2011-12-03T12:00:00Z"],
        ["2011-12-03T13:00:00+01:00"],
        ["2011-12-03T12:00:00.000"],
        ["2011/12/03 12:00:00"],
        ["12/3/2011 12:00", "12/13/2011 12:00"],
        ["3/12/2011 12:00", "13/12/2011 12:00"],
        ["12/3/11 12:00 PM", "12/13/11 12:00"],
        ["03.12.2011 12:00"],
        ["03-Dec-2011 12:00:00"],
        ["December 3, 2011 12:00"],
        [dt.datetime(2011, 12, 3, 12)],
        [dt.datetime(2011, 12, 3, 12, tzinfo=dt.UTC)],
        pd.to_datetime(["2011-12-03 12:00"]),
        pd.to_datetime(["2011-12-03 13:00"]).tz_localize("Europe/Berlin"),
    ],
)
def test_the_same_moment_is_read_from_every_usual_form(cells):
    for form in (pd.Series(cells), pd.Series(cells).astype("category")):
        times = seconds(form)
        assert times.seconds[0] == NOON_S
        assert not times.is_bad.any()
        assert not times.is_ambiguous


@pytest.mark.parametrize("cells", [["2011-12-03"], [20111203], ["20111203"], [dt.date(2011, 12, 3)], ["03.12.2011"]])
def test_a_day_is_its_midnight_utc(cells):
    assert seconds(pd.Series(cells, dtype=object)).seconds[0] == NOON_S - 43_200


def test_a_year_is_its_first_day():
    np.testing.assert_array_equal(seconds(pd.Series([1971.0, np.nan])).seconds, [31_536_000, np.nan])


def test_a_bad_date_is_told_from_a_missing_one():
    times = seconds(pd.Series(["2011-12-03", "soon", "", None, "2011-13-45"]))
    assert times.is_bad.tolist() == [False, True, False, False, True]
    assert np.isnan(times.seconds).tolist() == [False, True, True, True, True]


def test_dates_that_fit_both_ways_are_read_month_first_and_said_to_be():
    times = seconds(pd.Series(["1/2/2011", "3/4/2011"]))
    assert times.is_ambiguous
    assert times.seconds[0] == dt.datetime(2011, 1, 2, tzinfo=dt.UTC).timestamp()


@given(st.lists(st.integers(-(10**9), 4 * 10**9), min_size=1))
def test_unix_seconds_come_back_as_they_were_unless_they_look_like_dates(values):
    looks_like_dates = all(19_000_101 <= value <= 21_001_231 for value in values)
    looks_like_years = all(1900 <= value <= 2100 for value in values)
    if not looks_like_dates and not looks_like_years:
        np.testing.assert_array_equal(seconds(pd.Series(values)).seconds, np.array(values, float))


def test_numbers_come_from_text_with_points_or_commas_and_bad_ones_are_told():
    values, is_bad = numbers(pd.Series(["1.5", " 2 ", "", "x", "inf", None]))
    np.testing.assert_array_equal(values, [1.5, 2, np.nan, np.nan, np.nan, np.nan])
    assert is_bad.tolist() == [False, False, False, True, True, False]
    np.testing.assert_array_equal(numbers(pd.Series(["1.234,50", "3,5", "4"]))[0], [1234.5, 3.5, 4])
    values, is_bad = numbers(pd.Series(["1.5", "3,5"]))
    assert is_bad.tolist() == [False, True]
    assert numbers(pd.Series([Decimal("1.5"), None], dtype=object))[0][0] == 1.5


def test_flags_are_yes_in_the_usual_words():
    assert flags(pd.Series([True, False])).tolist() == [True, False]
    assert flags(pd.Series(["TRUE", "yes", "1", "0", "no", None])).tolist() == [True, True, True, False, False, False]


def test_cells_without_a_hash_become_text():
    assert texts(pd.Series([{"a": 1}, None, {"a": 1}], dtype=object)) == ["{'a': 1}", None, "{'a': 1}"]
