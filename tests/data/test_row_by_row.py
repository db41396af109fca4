"""Row by row: removing some rows never changes how the others are read; what a column alone could say is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.data.events import CleaningRules, clean
from fedrec.data.row_by_row import check_rows
from fedrec.data.sources import DataSettings
from fedrec.errors import DataError
from fedrec.role_config import ShopDataSection
from fedrec.shop.enrol import read_own_data

CELLS = {
    "timestamp": st.sampled_from(
        [
            "2024-03-01",
            "2024-03-01 10:30",
            "1.3.2024",
            "03/04/2024",
            "25/04/2024",
            "1700000000",
            "1700000000000",
            "20240301",
            "2024",
            "5",
            "",
        ]
    ),
    "item": st.sampled_from(["7", "7.0", "7.5", "007", "a"]),
    "rating": st.sampled_from(["4", "4.5", "4,5", "1.234,5", ""]),
    "basket": st.sampled_from(["C1", "C2", "10"]),
}


@given(st.lists(st.fixed_dictionaries(CELLS), min_size=2, max_size=8), st.data())
@settings(max_examples=300, deadline=None)
def test_rows_of_an_accepted_table_are_read_alike_without_one_shopper(rows, data):
    table = pd.DataFrame(rows).assign(shopper=[f"s{place % 3}" for place in range(len(rows))])
    rules = CleaningRules(min_rating=4.2, cancel_prefix="C", is_prefix_certain=True)
    left = table[table["shopper"] != data.draw(st.sampled_from(sorted(set(table["shopper"]))))]
    try:
        check_rows(table, "here")
        check_rows(left, "here")  # what is accepted is accepted in part
        whole, part = (clean(one, rules=rules, is_part=True)[0].table for one in (table, left))
    except DataError:
        return
    stays = whole[whole["shopper"].isin(left["shopper"])].reset_index(drop=True)
    for name in ("shopper", "item", "timestamp", "rating"):
        assert stays[name].astype(object).where(stays[name].notna(), None).tolist() == (
            part[name].astype(object).where(part[name].notna(), None).tolist()
        )


def test_what_is_accepted_is_accepted_in_part():
    table = pd.DataFrame({"shopper": ["a", "b"], "item": ["1", "2"], "timestamp": [1.7e9, 1.6e9]})
    check_rows(table, "here")
    check_rows(table.iloc[:1], "here")


@pytest.mark.parametrize(
    ("role", "cells", "words"),
    [
        ("timestamp", ["3/4/2024", "2024-03-04"], "two ways"),
        ("timestamp", [1.7e9, 1.7e12], "all of one kind"),
        ("timestamp", ["1700000000", "2024-03-04"], "all of one kind"),
        ("timestamp", [2019, 5], "two ways"),
        ("item", ["7.0", "7"], "no decimal point"),
        ("rating", ["4,5", "4"], "with a comma"),
        ("order", [1.5, 2.0], "whole number"),
        ("item_key", ["4006381333931", ""], "file of items"),
    ],
)
def test_what_only_a_whole_column_could_say_is_refused(role, cells, words):
    table = pd.DataFrame({"shopper": ["a", "b"], "item": ["x", "y"]})
    table[role] = cells
    with pytest.raises(DataError, match=words):
        check_rows(table, "here")


def test_a_deployed_shop_reads_row_by_row(tmp_path):
    path = tmp_path / "sales.csv"
    rows = [f"s{place % 5},i{place % 7},{1 + place % 28}/{1 + place % 12}/2024" for place in range(60)]
    path.write_text("shopper,item,date\n" + "\n".join(rows))
    with pytest.raises(DataError, match="two ways"):
        read_own_data(ShopDataSection(events=str(path)).data_settings(), "north", validation="leave-last")
    data, _ = read_own_data(DataSettings(events=str(path)), "north", validation="leave-last")
    assert data.train.nnz > 0
    assert np.isfinite(data.train.data).all()
