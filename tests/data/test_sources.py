"""Events from files and databases, as a run reads them."""

import gzip
import sqlite3

import numpy as np
import pandas as pd
import pyarrow.csv
import pytest

from fedrec.data.sources import DataSettings, list_sources, load
from fedrec.data.synthetic import SyntheticSettings
from fedrec.errors import ConfigError, DataError

FINGERPRINT = "sha256:7eb7387bee383004ba8c56f50a009338f7d546210d3569de008e18654a218908"

CSV = """Shop,User ID,item_id,Timestamp,rating
s,007,a,2024-01-01,5
s,007,b,2024-01-02,4
t,7,a,2024-01-03,3
t,8,c,2024-01-04,
"""


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "my.csv"
    path.write_text(CSV)
    return path


def write(tmp_path, text, name="my.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return str(path)


def table_of(path, **settings):
    return load(DataSettings(events=str(path), **settings)).events.table


def test_a_csv_file_becomes_events_with_ids_as_text(csv):
    loaded = load(DataSettings(events=str(csv)))
    table = loaded.events.table
    assert table["shopper"].tolist() == ["007", "007", "7", "8"]
    assert table["shop"].tolist() == ["s", "s", "t", "t"]
    assert table["timestamp"].tolist() == [1_704_067_200.0 + 86_400 * day for day in range(4)]
    assert str(table["rating"].dtype) == "float32"
    assert loaded.source["name"] == "my.csv"
    assert loaded.source["columns"]["shopper"] == "User ID"
    assert loaded.cleaning.rows_read == loaded.cleaning.rows_kept == 4
    assert loaded.test is None


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_delimiter_and_encoding_are_found(tmp_path, delimiter, encoding):
    text = 'user_id;item_id;title\r\nu;a;Tasse, gr\u00fcn\r\nv;b;"Topf"\r\n'.replace(";", delimiter)
    if delimiter == ",":
        text = text.replace("Tasse, gr\u00fcn", '"Tasse, gr\u00fcn"')
    loaded = load(DataSettings(events=write(tmp_path, text, encoding=encoding)))
    assert loaded.items.table["title"].tolist() == ["Tasse, gr\u00fcn", "Topf"]


def test_blank_lines_before_the_header_and_columns_without_a_name_do_no_harm(tmp_path):
    table = table_of(write(tmp_path, "\n\n,user_id,item_id,\n0,u,a,\n1,v,b,\n"))
    assert table["shopper"].tolist() == ["u", "v"]


def test_a_compressed_csv_and_a_tab_separated_one_are_read(tmp_path):
    path = tmp_path / "my.csv.gz"
    path.write_bytes(gzip.compress(CSV.encode()))
    assert len(table_of(path)) == 4
    assert len(table_of(write(tmp_path, CSV.replace(",", "\t"), name="my.tsv"))) == 4


def test_quoted_line_breaks_and_broken_lines_are_told_apart(tmp_path):
    path = write(tmp_path, 'user_id,item_id,title\nu,a,"two\nlines"\nv,b\nw,c,x,y\nx,d,\n')
    loaded = load(DataSettings(events=path))
    assert loaded.events.table["shopper"].tolist() == ["u", "x"]
    assert loaded.cleaning.rows_read == 4
    assert dict(loaded.cleaning.dropped)["broken line"] == 2
    assert loaded.items.table["title"].tolist() == ["two\nlines", ""]


def test_csv_parquet_and_sql_give_the_same_events_and_fingerprint(tmp_path, csv):
    frame = pd.read_csv(csv, dtype={"User ID": "str"})
    frame.to_parquet(tmp_path / "my.parquet")
    with sqlite3.connect(tmp_path / "my.db") as base:
        frame.to_sql("sales", base, index=False)
    base.close()
    loaded = [
        load(DataSettings(events=str(csv))),
        load(DataSettings(events=str(tmp_path / "my.parquet"))),
        load(DataSettings(url=f"sqlite:///{tmp_path / 'my.db'}", query="select * from sales")),
    ]
    for other in loaded[1:]:
        pd.testing.assert_frame_equal(other.events.table, loaded[0].events.table)
        pd.testing.assert_frame_equal(other.items.table, loaded[0].items.table)
    assert len({one.source["fingerprint"] for one in loaded}) == 1


def test_the_fingerprint_forgets_the_order_of_rows_and_sees_every_value(tmp_path, csv):
    prints = {load(DataSettings(events=str(csv))).source["fingerprint"]}
    header, *rows = CSV.strip().split("\n")
    shuffled = write(tmp_path, "\n".join([header, *rows[::-1]]), name="shuffled.csv")
    assert load(DataSettings(events=shuffled)).source["fingerprint"] in prints
    for place, (old, new) in enumerate([("s,007,a", "s,007,d"), ("t,8", "u,8"), ("01-04", "01-05"), (",3\n", ",2\n")]):
        path = write(tmp_path, CSV.replace(old, new), name=f"{place}.csv")
        prints.add(load(DataSettings(events=path)).source["fingerprint"])
    assert len(prints) == 5
    assert all(len(one) == len("sha256:") + 64 for one in prints)


def test_a_known_fingerprint_stays_the_same_on_every_machine(csv):
    assert load(DataSettings(events=str(csv))).source["fingerprint"] == FINGERPRINT


def test_parquet_of_every_type_is_read(tmp_path):
    frame = pd.DataFrame(
        {
            "user_id": pd.Series([2**60 + 1, None, 3], dtype="Int64"),
            "item_id": pd.Categorical(["b", "a", "b"]),
            "date": pd.to_datetime(["2024-01-01", "2024-01-02", None]),
            "price": pd.Series([1, 2, 3], dtype="int8"),
            "is_cancel": [False, False, True],
            "categories": [["x", "y"], [], None],
        }
    )
    frame.to_parquet(tmp_path / "my.parquet", row_group_size=2)
    loaded = load(DataSettings(events=str(tmp_path / "my.parquet")))
    assert loaded.events.table["shopper"].tolist() == [str(2**60 + 1)]
    assert loaded.items.table["category"].tolist() == ["x|y"]
    assert {reason: rows for reason, rows in loaded.cleaning.dropped if rows} == {"no shopper": 1, "cancelled": 1}


def test_parquet_columns_without_any_value_are_empty(tmp_path):
    frame = pd.DataFrame({"user_id": ["u"], "item_id": ["a"], "rating": [None], "shop": ["s"], "title": [None]})
    frame.to_parquet(tmp_path / "my.parquet")
    loaded = load(DataSettings(events=str(tmp_path / "my.parquet")))
    assert loaded.events.table["rating"].isna().all()
    assert loaded.items.table["title"].tolist() == [""]


def test_a_database_is_read_in_chunks_with_mixed_cells(tmp_path):
    path = tmp_path / "my.db"
    with sqlite3.connect(path) as base:
        base.execute("create table sales (customer, sku, at)")
        rows = [
            (number % 7 if number % 2 else str(number % 7), f"i{number % 11}", 1.6e9 + number)
            for number in range(120_000)
        ]
        base.executemany("insert into sales values (?, ?, ?)", [*rows, (None, "i1", 1.6e9), (float(3), "i1", 1.0)])
    base.close()
    loaded = load(DataSettings(url=f"sqlite:///{path}", query="select customer, sku, at as ts from sales"))
    assert loaded.events.table["shopper"].nunique() == 7
    assert dict(loaded.cleaning.dropped)["no shopper"] == 1
    assert len(loaded.events) == 120_001
    assert loaded.source["name"] == f"sqlite:///{path}"


@pytest.mark.parametrize(
    ("url", "query", "words"),
    [
        ("nonsense", "select 1", "database URL cannot be read"),
        ("sqlite:////no/such/file.db", "select 1", r"file\.db: there is no such database file"),
        ("HERE", "select * from no_table", "no such table: no_table"),
        ("HERE", "select 1 as user_id, 2 as user_id", "two columns of the query have one name"),
        ("HERE", "create table x (y)", "the query returns no rows"),
        ("HERE", "select 1 as user_id", "no column is the item"),
        ("HERE", "select 1 as user_id, 2 as item_id where 0", "no rows"),
    ],
)
def test_a_database_that_gives_no_events_is_refused(tmp_path, url, query, words):
    sqlite3.connect(tmp_path / "my.db").close()
    (tmp_path / "my.db").touch()
    with pytest.raises(DataError, match=words):
        load(DataSettings(url=url.replace("HERE", f"sqlite:///{tmp_path / 'my.db'}"), query=query))


def test_a_database_password_is_never_in_an_error():
    with pytest.raises(DataError) as caught:
        load(DataSettings(url="postgresql+nodriver://me:geheim@host/db", query="select 1"))
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("empty.csv", b"", r"empty\.csv: the file is empty"),
        ("blank.csv", b"\n\n", r"blank\.csv: the file is empty"),
        ("header.csv", b"user_id,item_id\n", r"header\.csv: there are no rows"),
        ("broken.parquet", b"PAR1 and no more", r"broken\.parquet: cannot be read"),
        ("binary.csv", b"\x00\x01\x02" * 50, r"binary\.csv"),
        ("twice.csv", b"user_id,item_id,user_id\nu,a,v\n", "two columns are called 'user_id'"),
        ("dates.csv", b"user_id,item_id,date\nu,a,soon\n", r"dates\.csv: not one of 1 dates"),
        ("gone.csv", b"user_id,item_id\n,a\n", r"gone\.csv: nothing is left"),
        ("short.csv", b"user_id\nu\n", r"short\.csv: no column is the item"),
        ("bad.csv.gz", b"no gzip at all", r"bad\.csv\.gz: cannot be read"),
    ],
)
def test_a_file_without_events_is_refused_by_its_name(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        load(DataSettings(events=str(tmp_path / name)))
    assert "\n" not in str(caught.value)


def test_missing_files_are_refused_by_their_names(tmp_path, csv):
    for settings in (
        {"events": "no.csv"},
        {"events": str(csv), "items": "no.csv"},
        {"events": str(csv), "test": "no.csv"},
    ):
        with pytest.raises(DataError, match=r"no\.csv: there is no such file"):
            load(DataSettings(**settings))


def test_given_columns_are_taken_and_unknown_ones_refused(tmp_path):
    path = write(tmp_path, "kunde,artikel,wann\nu,a,2024-01-01\n")
    table = table_of(path, columns={"shopper": "kunde", "item": "Artikel", "timestamp": "wann"})
    assert table["item"].tolist() == ["a"]
    with pytest.raises(DataError, match="'kunden', is not there; did you mean 'kunde'"):
        table_of(path, columns={"shopper": "kunden", "item": "artikel"})


def test_items_file_gives_text_and_its_own_columns_may_be_named(tmp_path, csv):
    items = write(tmp_path, "id;bezeichnung;preis;genre\na;Tee;1,50;Food\nz;Zopf;2;\n", name="items.csv")
    loaded = load(DataSettings(events=str(csv), items=items, columns={"title": "bezeichnung", "price": "preis"}))
    assert loaded.items.table.index.tolist() == ["a", "b", "c", "z"]
    assert loaded.items.table["title"].tolist() == ["Tee", "", "", "Zopf"]
    assert loaded.items.table["category"].tolist() == ["Food", "", "", ""]
    assert loaded.items.table["price"].tolist()[::3] == [1.5, 2.0]
    with pytest.raises(DataError, match="the column given for title, 'nichts', is not there"):
        load(DataSettings(events=str(csv), items=items, columns={"title": "nichts"}))


def test_an_item_key_is_found_in_the_events_or_the_items_file(tmp_path):
    text = "shop,user_id,item_id,gtin\ns,u,1,4006381333931\nt,v,5,04006381333931\nt,w,1,\n"
    loaded = load(DataSettings(events=write(tmp_path, text), item_key="GTIN"))
    assert loaded.events.table["item"].tolist() == ["04006381333931", "04006381333931", "t/1"]
    bare = write(tmp_path, "shop,user_id,item_id\ns,u,1\nt,v,5\n", name="bare.csv")
    items = write(tmp_path, "shop,item_id,sku,name\ns,1,K,Tea\nt,5,K,Thee\n", name="items.csv")
    loaded = load(DataSettings(events=bare, items=items, item_key="sku"))
    assert loaded.events.table["item"].tolist() == ["K", "K"]
    assert loaded.items.table["title"].to_dict() == {"K": "Tea"}
    for own in (None, "item_id", "own id"):
        assert load(DataSettings(events=bare, item_key=own)).events.table["item"].tolist() == ["1", "5"]
    with pytest.raises(DataError, match=r"the item key, 'gtn', is not there; did you mean 'gtin'"):
        load(DataSettings(events=write(tmp_path, text), item_key="gtn"))


def test_a_test_file_is_cleaned_the_same_way_and_its_losses_are_told(tmp_path, csv):
    test = write(tmp_path, "shop,user_id,item_id,rating\ns,007,c,5\ns,,a,5\nt,8,new,1\n", name="later.csv")
    loaded = load(DataSettings(events=str(csv), test=test, min_rating=3))
    assert loaded.test.table["shopper"].tolist() == ["007"]
    assert loaded.test_cleaning.rows_read == 3
    handled = dict(loaded.cleaning.handled)
    assert handled["test rows dropped: no shopper"] == 1
    assert handled["test rows dropped: no rating of at least min_rating"] == 1
    assert set(loaded.test.table["item"]) <= set(loaded.items.table.index)
    with pytest.raises(DataError, match=r"shopless\.csv: there is no shop column"):
        load(DataSettings(events=str(csv), test=write(tmp_path, "user_id,item_id\nu,a\n", name="shopless.csv")))


def test_stock_codes_and_invoices_bring_their_rules_with_their_names(tmp_path):
    rows = "\nC2,u,POST,1\n1,u,POST,1\n1,u,M1,1\n2,v,a,1\n"
    table = table_of(write(tmp_path, "invoice,customer_id,stockcode,quantity" + rows))
    assert table["item"].tolist() == ["M1", "a"]
    assert len(table_of(write(tmp_path, "order_id,customer_id,item_id,quantity" + rows))) == 4
    path = write(tmp_path, "invoice,customer_id,stockcode,quantity" + rows)
    assert len(table_of(path, service_codes=())) == 3
    assert table_of(path, service_codes=("m*",))["item"].tolist() == ["POST", "a"]


def test_service_codes_are_not_in_the_catalogue_either(tmp_path):
    path = write(tmp_path, "customer_id,stockcode\nu,a\n")
    items = write(tmp_path, "stockcode,title\nPOST,Postage\nb1,Bowl\n", name="items.csv")
    assert load(DataSettings(events=path, items=items)).items.table.index.tolist() == ["a", "b1"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "give one of source, events and url; given: none"),
        ({"source": "ml-1m", "events": "a.csv"}, "given: source = 'ml-1m' and events = 'a.csv'"),
        ({"url": "sqlite:///a.db"}, "query is missing"),
        ({"events": "a.csv", "query": "select"}, "url is missing"),
        ({"source": "ml-1mm"}, "did you mean 'ml-1m'"),
        ({"events": "a.csv", "columns": {"shoper": "x"}}, "did you mean 'shopper'"),
        ({"events": "a.csv", "min_rating": float("nan")}, "min_rating = nan"),
        ({"source": "synthetic", "min_rating": 3.0}, "takes no min_rating"),
        ({"source": "synthetic", "items": "a.csv"}, "takes no items"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        DataSettings(**settings)


def test_the_marketplace_comes_with_a_fingerprint_of_its_seed():
    settings = DataSettings(
        source="synthetic", synthetic=SyntheticSettings(num_shoppers=300, num_shops=3, num_items=60)
    )
    one, same, other = (load(settings, seed=seed) for seed in (1, 1, 2))
    assert one.source["fingerprint"] == same.source["fingerprint"] != other.source["fingerprint"]
    assert one.cleaning.rows_read == one.cleaning.rows_kept == len(one.events)
    assert one.events.table["shop"].nunique() == 3


def test_every_source_is_listed_with_its_licence():
    names = [one.name for one in list_sources("/no/such/folder")]
    assert names == [
        "synthetic",
        "xmarket-electronics",
        "amazon-shops",
        "online-retail-ii",
        "ml-100k",
        "ml-1m",
        "lastfm-2k",
        "gowalla",
        "amazon-instant-video",
        "video-games",
    ]
    assert [one.is_here for one in list_sources("/no/such/folder")] == [True] + [False] * 9
    assert all(one.licence and one.summary for one in list_sources())


def test_many_rows_keep_categories_and_no_objects(tmp_path):
    rng = np.random.default_rng(0)
    size = 300_000
    frame = pd.DataFrame(
        {
            "user_id": rng.integers(0, 9000, size),
            "item_id": pd.Series(rng.integers(0, 500, size)).map("i{}".format),
            "timestamp": rng.integers(1_600_000_000, 1_700_000_000, size),
        }
    )
    frame.to_parquet(tmp_path / "many.parquet", row_group_size=50_000)
    table = table_of(tmp_path / "many.parquet")
    assert not any(dtype.kind == "O" and not isinstance(dtype, pd.CategoricalDtype) for dtype in table.dtypes)
    assert table["shopper"].astype("str").tolist() == frame["user_id"].astype("str").tolist()
    assert table["item"].tolist() == frame["item_id"].tolist()
    np.testing.assert_array_equal(table["timestamp"], frame["timestamp"])


def test_small_files_start_no_threads_that_could_outlive_the_process(csv, monkeypatch):
    asked, usual = [], pyarrow.csv.ReadOptions

    def options(**given):
        asked.append(given["use_threads"])
        return usual(**given)

    monkeypatch.setattr(pyarrow.csv, "ReadOptions", options)
    load(DataSettings(events=str(csv)))
    assert asked == [False]


def test_a_file_of_broken_lines_alone_is_refused_with_their_number(tmp_path):
    path = write(tmp_path, "user_id,item_id,shop\nu,a\nu,b,s,9\n")
    with pytest.raises(DataError, match=r"no rows to read.*2 lines have another number of fields"):
        load(DataSettings(events=path))


def test_an_items_file_without_rows_is_named(csv, tmp_path):
    items = write(tmp_path, "item_id,title\n", name="empty-items.csv")
    with pytest.raises(DataError, match=r"empty-items\.csv"):
        load(DataSettings(events=str(csv), items=items))
