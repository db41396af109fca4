"""Columns found by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrec.data.columns import EVENT_COLUMNS, ITEM_COLUMNS, check_roles, find_columns, match_column, simple_name
from fedrec.errors import ConfigError, DataError

KNOWN = [(role, name) for role, groups in EVENT_COLUMNS.items() for group in groups for name in group]


def find(*names, **settings):
    return find_columns(names, EVENT_COLUMNS, where="my.csv", **settings)


@st.composite
def disguised(draw):
    """A usual name in other capitals, with separators between its letters."""
    role, name = draw(st.sampled_from(KNOWN))
    marks = draw(st.lists(st.sampled_from(["", "_", " ", "-", "."]), min_size=len(name), max_size=len(name)))
    shouts = draw(st.lists(st.booleans(), min_size=len(name), max_size=len(name)))
    letters = [letter.upper() if shout else letter for letter, shout in zip(name, shouts, strict=True)]
    return role, "".join(letter + mark for letter, mark in zip(letters, marks, strict=True))


@given(disguised())
def test_a_usual_name_is_found_in_any_capitals_and_with_any_separators(case):
    role, name = case
    assert find("xyzzy", name) == {role: name}


def test_no_usual_name_has_two_roles():
    names = [name for _, name in KNOWN]
    assert len(names) == len(set(names))
    assert all(simple_name(name) == name for name in names)


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        (
            ["Invoice", "StockCode", "Description", "Quantity", "InvoiceDate", "Price", "Customer ID", "Country"],
            {
                "basket": "Invoice",
                "item": "StockCode",
                "title": "Description",
                "quantity": "Quantity",
                "timestamp": "InvoiceDate",
                "price": "Price",
                "shopper": "Customer ID",
            },
        ),
        (
            ["reviewerID", "asin", "reviewerName", "overall", "unixReviewTime", "reviewTime"],
            {"shopper": "reviewerID", "item": "asin", "rating": "overall", "timestamp": "unixReviewTime"},
        ),
        (
            ["timestamp", "visitorid", "event", "itemid", "transactionid"],
            {
                "timestamp": "timestamp",
                "shopper": "visitorid",
                "event": "event",
                "item": "itemid",
                "basket": "transactionid",
            },
        ),
        (
            ["event_time", "event_type", "product_id", "category_id", "category_code", "price", "user_id"],
            None,
        ),
        (
            ["user_id", "product_id", "product", "date"],
            {"shopper": "user_id", "item": "product_id", "timestamp": "date"},
        ),
    ],
)
def test_headers_of_well_known_files_are_understood(names, roles):
    if roles is None:
        with pytest.raises(DataError, match="'category_id' and 'category_code' could each be the category"):
            find(*names)
    else:
        assert find(*names) == roles


def test_two_candidates_are_refused_with_both_names_and_how_to_say_which():
    with pytest.raises(DataError) as caught:
        find("user_id", "customer_id", "item_id")
    assert "my.csv" in str(caught.value)
    assert "--columns shopper=user_id" in str(caught.value)
    assert "--columns shopper=customer_id" in str(caught.value)
    assert find("user_id", "customer_id", "item_id", given={"shopper": "customer_id"})["shopper"] == "customer_id"


def test_a_given_column_that_is_missing_is_refused_with_the_nearest_and_the_list():
    with pytest.raises(DataError, match=r"'kunden'.*did you mean 'kunde'.*kunde, artikel"):
        find("kunde", "artikel", given={"shopper": "kunden"})


def test_a_given_column_may_be_in_the_other_file():
    assert "title" not in find("user", "item", given={"title": "Name"}, elsewhere=["id", "name"])


def test_a_required_role_without_a_column_is_refused_with_the_columns_there_are():
    with pytest.raises(DataError, match=r"no column is the shopper.*kunde, item_id.*--columns shopper=NAME"):
        find("kunde", "item_id", required=("shopper", "item"))


def test_an_item_key_is_the_item_only_where_nothing_else_is():
    assert find("user", "sku", "item_id", apart=["sku"])["item"] == "item_id"
    assert find("user", "sku", apart=["sku"])["item"] == "sku"


def test_an_id_column_is_the_item_in_a_file_of_items_and_nothing_in_events():
    assert find_columns(["id", "name"], ITEM_COLUMNS, where="items.csv") == {"item": "id", "title": "name"}
    assert "item" not in find("id", "name")


def test_country_is_not_a_shop():
    assert "shop" not in find("country", "user", "item")


def test_roles_may_be_called_by_their_usual_names():
    assert check_roles({"user_id": "a", "Product-ID": "b", "order": "c"}) == {"shopper": "a", "item": "b", "order": "c"}


@pytest.mark.parametrize(
    ("given", "words"),
    [({"shoper": "a"}, "did you mean 'shopper'"), ({"shopper": "a", "user": "b"}, "names the shopper twice")],
)
def test_unknown_roles_and_roles_named_twice_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        check_roles(given)


def test_a_name_is_matched_exactly_before_it_is_matched_alike():
    assert match_column("Id", ["ID", "Id"]) == "Id"
    assert match_column("i d", ["ID"]) == "ID"
    assert match_column("id", ["ID", "Id"]) is None
