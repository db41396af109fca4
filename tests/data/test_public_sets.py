"""The named sets: our Parquet form, the public originals, downloads."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import importlib.util
import io
import json
import threading
import zipfile

import numpy as np
import pandas as pd
import pytest

from fedrec.data import public_sets
from fedrec.data.public_sets import PUBLIC_SETS, Archive, download, is_here, named_set
from fedrec.data.sources import DataSettings, load
from fedrec.errors import ConfigError, DataError

GENRES = "unknown|0\nAction|1\nDrama|2\n\n"


@pytest.fixture(autouse=True)
def no_data_of_this_machine(request, monkeypatch, tmp_path):
    """Tests see only what they write, unless they ask for real data."""
    if "data_dir" not in request.fixturenames:
        monkeypatch.setenv("FEDREC_DATA", str(tmp_path))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def put(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


ML_100K = {
    "ml-100k/u.data": "7\t2\t5\t881250949\n7\t3\t1\t881250950\n8\t3\t4\t881250951\n",
    "ml-100k/u.genre": GENRES,
    "ml-100k/u.item": "2|Caf\u00e9 (1995)|01-Jan-1995||http://x|0|1|1\n3|Zed|||http://y|1|0|0\n".encode("latin-1"),
}


def check_ml_100k(loaded):
    table = loaded.events.table
    assert table["shopper"].tolist() == ["7", "7", "8"]
    assert table["item"].tolist() == ["2", "3", "3"]
    assert table["timestamp"].tolist() == [881250949.0, 881250950.0, 881250951.0]
    assert loaded.items.table["title"].tolist() == ["Caf\u00e9 (1995)", "Zed"]
    assert loaded.items.table["category"].tolist() == ["Action|Drama", ""]
    assert "GroupLens" in loaded.source["licence"]


def test_movielens_100k_is_read_from_its_folder_and_from_its_zip(tmp_path):
    put(tmp_path / "a", ML_100K)
    put(tmp_path / "b", {name.removeprefix("ml-100k/"): text for name, text in ML_100K.items()})
    put(tmp_path / "c", {"ml-100k.zip": zipped(ML_100K)})
    for folder in "abc":
        check_ml_100k(load(DataSettings(source="ml-100k", folder=str(tmp_path / folder))))


def test_movielens_1m_is_read_from_its_folder(tmp_path):
    put(
        tmp_path,
        {
            "ml-1m/ratings.dat": "1::1193::5::978300760\n1::661::3::978302109\n",
            "ml-1m/movies.dat": "661::Les Mis\u00e9rables: x (1995)::Drama|Musical\n1193::Cuckoo::Drama\n".encode(
                "latin-1"
            ),
        },
    )
    loaded = load(DataSettings(source="ml-1m"))
    assert loaded.events.table["timestamp"].tolist() == [978300760.0, 978302109.0]
    assert loaded.items.table.loc["661", ["title", "category"]].tolist() == [
        "Les Mis\u00e9rables: x (1995)",
        "Drama|Musical",
    ]


def test_lastfm_is_read_from_its_files(tmp_path):
    put(
        tmp_path,
        {
            "hetrec2011-lastfm-2k/user_artists.dat": "userID\tartistID\tweight\r\n2\t51\t13883\r\n2\t52\t11690\r\n",
            "hetrec2011-lastfm-2k/artists.dat": 'id\tname\turl\r\n51\tDuran "D" Duran\tu\r\n52\tAir\tu\r\n',
        },
    )
    loaded = load(DataSettings(source="lastfm-2k"))
    assert loaded.events.table["quantity"].tolist() == [13883.0, 11690.0]
    assert loaded.items.table["title"].tolist() == ['Duran "D" Duran', "Air"]


def test_gowalla_brings_its_own_split(tmp_path):
    put(tmp_path, {"gowalla/train.txt": "0 5 6\n1 5\n", "gowalla/test.txt": "0 7\n1 \n"})
    loaded = load(DataSettings(source="lightgcn-gowalla"))
    assert loaded.events.table[["shopper", "item"]].astype("str").to_numpy().tolist() == [
        ["0", "5"],
        ["0", "6"],
        ["1", "5"],
    ]
    assert loaded.test.table[["shopper", "item"]].astype("str").to_numpy().tolist() == [["0", "7"]]


def test_the_split_column_of_our_parquet_form_parts_training_from_test(tmp_path):
    frame = pd.DataFrame({"user_id": [0, 0, 1], "item_id": [5, 7, 5], "split": ["train", "test", "train"]})
    frame.to_parquet(tmp_path / "lightgcn-gowalla.parquet")
    loaded = load(DataSettings(source="gowalla"))
    assert loaded.events.table["item"].tolist() == ["5", "5"]
    assert loaded.test.table["item"].tolist() == ["7"]


def test_sequences_are_in_the_order_of_their_lines(tmp_path):
    put(tmp_path, {"Video.txt": "1 9\n2 4\n1 3\n"})
    table = load(DataSettings(source="video-games")).events.table
    assert table[["shopper", "item", "order"]].astype("str").to_numpy().tolist() == [
        ["1", "9", "0"],
        ["2", "4", "0"],
        ["1", "3", "1"],
    ]


def test_instant_video_is_read_from_the_papers_file(tmp_path):
    put(tmp_path, {"amazon/ratings.dat": "A1,B1,5.0,1198195200\nA2,B1,2.0,1281052800\n"})
    table = load(DataSettings(source="amazon-instant-video")).events.table
    assert table["shopper"].tolist() == ["A1", "A2"]
    assert table["rating"].tolist() == [5.0, 2.0]


def test_xmarket_originals_become_shops_and_say_that_variants_are_apart(tmp_path):
    files = {
        f"ratings_{shop}_Electronics.txt.gz": gzip.compress(f"U{shop} B01 5 2015-01-0{day}\n".encode())
        for day, shop in enumerate(("ca", "uk", "fr", "de", "mx"), start=1)
    }
    put(tmp_path, files)
    loaded = load(DataSettings(source="xmarket-electronics"))
    assert sorted(loaded.events.table["shop"]) == ["ca", "de", "fr", "mx", "uk"]
    assert loaded.events.table["timestamp"].min() == 1_420_070_400.0
    assert [count for what, count in loaded.cleaning.handled if "variants" in what] == [1]


def test_amazon_category_files_become_shops(tmp_path):
    names = ("Beauty", "Clothing_Shoes_and_Jewelry", "Sports_and_Outdoors", "Toys_and_Games")
    line = json.dumps(
        {"reviewerID": "A1", "asin": "0001", "overall": 4.0, "unixReviewTime": 1369699200, "reviewText": "x"}
    )
    put(tmp_path, {f"reviews_{name}_5.json": line + "\n" for name in names})
    table = load(DataSettings(source="amazon-shops")).events.table
    assert sorted(table["shop"]) == ["beauty", "clothing", "sports", "toys"]
    assert set(table["item"]) == {"0001"}


def test_online_retail_is_cleaned_by_its_own_rules(tmp_path):
    header = "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country\n"
    rows = (
        "489434,85048,LIGHTS,12,2009-12-01 07:45:00,6.95,13085.0,United Kingdom\n"
        "489435,85123a,HEART,1,2009-12-01 08:00:00,2.55,13085.0,United Kingdom\n"
        "489436,85123A,HEART,1,2009-12-01 09:00:00,2.55,13078.0,France\n"
        "C489449,22087,BUNTING,-12,2009-12-01 10:33:00,2.95,16321.0,Australia\n"
        "489597,22087,BUNTING,1,2009-12-01 14:28:00,2.95,,United Kingdom\n"
        "489598,POST,POSTAGE,1,2009-12-01 14:28:00,18.0,12682.0,France\n"
        "489599,22087,BUNTING,1,2009-12-01 14:28:00,0.0,12682.0,France\n"
    )
    put(tmp_path, {"online_retail_II.csv": header + rows})
    loaded = load(DataSettings(source="online-retail-ii"))
    table = loaded.events.table
    assert table["item"].tolist() == ["85048", "85123A", "85123A"]
    assert table["shopper"].tolist() == ["13085", "13085", "13078"]
    assert table["shop"].tolist() == ["United Kingdom", "United Kingdom", "France"]
    dropped = {reason: rows for reason, rows in loaded.cleaning.dropped if rows}
    assert dropped == {"no shopper": 1, "cancelled": 1, "price not above 0": 1, "service code": 1}


def test_the_xlsx_without_its_reader_says_what_to_do(tmp_path):
    if importlib.util.find_spec("openpyxl") is not None:
        pytest.skip("openpyxl is installed here")
    put(tmp_path, {"online_retail_II.xlsx": b"PK"})
    with pytest.raises(DataError, match=r"openpyxl; install it, or save both sheets as one file online_retail_II\.csv"):
        load(DataSettings(source="online-retail-ii"))


def test_our_parquet_form_comes_before_the_original(tmp_path):
    put(tmp_path, ML_100K)
    pd.DataFrame({"user_id": [1], "item_id": [2], "rating": [3], "timestamp": [4]}).to_parquet(
        tmp_path / "ml-100k.parquet"
    )
    assert load(DataSettings(source="ml-100k")).events.table["shopper"].tolist() == ["1"]


def test_a_set_that_may_not_be_downloaded_says_where_to_get_it_and_where_to_put_it(tmp_path):
    with pytest.raises(DataError) as caught:
        load(DataSettings(source="xmarket-electronics"))
    text = str(caught.value)
    assert "https://xmrec.github.io" in text
    assert f"xmarket-electronics.parquet into {tmp_path}" in text
    assert "redistribution" in text


@pytest.fixture
def origin(tmp_path):
    """An HTTP server with MovieLens' archive, and the set as if it were from there."""
    folder = tmp_path / "origin"
    data = zipped(ML_100K)
    put(folder, {"ml-100k.zip": data})
    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/ml-100k.zip"
    yield dataclasses.replace(
        named_set("ml-100k"), archive=Archive(url, hashlib.md5(data, usedforsecurity=False).hexdigest())
    )
    server.shutdown()
    thread.join()
    server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Nothing."""


def test_a_download_shows_the_licence_and_is_used_from_then_on(origin, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(public_sets, "PUBLIC_SETS", (origin,))
    assert not is_here(origin)
    check_ml_100k(load(DataSettings(source="ml-100k")))
    assert "GroupLens: research use" in capsys.readouterr().err
    assert is_here(origin)
    check_ml_100k(load(DataSettings(source="ml-100k")))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("fault", ["checksum", "missing", "refused"])
def test_a_failed_download_leaves_nothing_and_says_what_to_do(origin, tmp_path, fault):
    url, md5 = origin.archive.url, origin.archive.md5
    archive = {
        "checksum": Archive(url, "0" * 32),
        "missing": Archive(url.replace("ml-100k.zip", "none.zip"), md5),
        "refused": Archive("http://127.0.0.1:9/ml-100k.zip", md5),
    }[fault]
    words = {"checksum": "the checksum is", "missing": "404", "refused": "cannot be downloaded"}[fault]
    with pytest.raises(DataError, match=words) as caught:
        download(dataclasses.replace(origin, archive=archive), tmp_path / "target")
    assert f"into {tmp_path}" in str(caught.value)
    assert list((tmp_path / "target").iterdir()) == []


def test_a_data_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"the data folder .*nowhere does not exist"):
        load(DataSettings(source="ml-100k", folder=str(tmp_path / "nowhere")))


def test_published_checksums_are_whole():
    for one in PUBLIC_SETS:
        if one.archive is not None:
            assert one.archive.url.startswith("https://")
            assert len(bytes.fromhex(one.archive.md5)) == 16


def test_sets_are_found_by_their_file_name_and_unknown_ones_are_refused_with_the_nearest():
    assert named_set("uci-online-retail-ii").name == "online-retail-ii"
    with pytest.raises(ConfigError, match="did you mean 'online-retail-ii'"):
        named_set("online-retail")


REAL = {
    "xmarket-electronics": (107_421, 14_852, 7_658),
    "amazon-shops": (932_463, 103_446, 64_695),
    "ml-100k": (100_000, 943, 1_682),
    "ml-1m": (1_000_209, 6_040, 3_706),
    "lastfm-2k": (92_834, 1_892, 17_632),
    "gowalla": (810_128, 29_858, 40_981),
    "amazon-instant-video": (63_836, 8_072, 11_830),
    "video-games": (287_107, 31_013, 23_715),
}


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_real_sets_have_the_published_numbers_of_events_shoppers_and_items(data_dir, name):
    loaded = load(DataSettings(source=name, folder=str(data_dir)))
    table = loaded.events.table
    assert (len(table), table["shopper"].nunique(), table["item"].nunique()) == REAL[name]
    assert not any(rows for _, rows in loaded.cleaning.dropped)
    assert set(table["item"].cat.categories) <= set(loaded.items.table.index)
    if name == "gowalla":
        assert len(loaded.test) == 217_242


@pytest.mark.data
def test_real_online_retail_is_what_a_plain_filter_leaves(data_dir):
    loaded = load(DataSettings(source="online-retail-ii", folder=str(data_dir)))
    raw = pd.read_parquet(data_dir / "uci-online-retail-ii.parquet")
    dropped = dict(loaded.cleaning.dropped)
    assert dropped["no shopper"] == raw["user_id"].isna().sum() == 235_287
    left = raw[raw["user_id"].notna() & ~raw["is_cancel"] & (raw["quantity"] > 0) & (raw["price"] > 0)]
    goods = left[left["item_id"].str.match(r"\d{5}|DCGS|SP1002")]
    assert dropped["service code"] == len(left) - len(goods) == 2_855
    known = ["shop", "user_id", "item_id", "timestamp", "basket_id", "quantity"]
    kept = goods[~goods.assign(price=goods["price"].astype("float32")).duplicated([*known, "price"])]
    table = loaded.events.table
    assert len(table) == len(kept) == 776_577
    assert table["shopper"].tolist() == kept["user_id"].tolist()
    assert table["item"].tolist() == kept["item_id"].tolist()
    np.testing.assert_array_equal(table["timestamp"], kept["timestamp"])
    assert (loaded.items.table.loc[table["item"].unique(), "title"] != "").all()


@pytest.mark.data
def test_real_movielens_rows_without_a_clock_are_the_oldest(data_dir):
    loaded = load(DataSettings(source="ml-1m", folder=str(data_dir)))
    table = loaded.events.table
    is_undated = table["timestamp"].isna()
    assert is_undated.sum() == 198_417 == max(count for _, count in loaded.cleaning.handled)
    assert table.loc[is_undated, "order"].max() < table.loc[~is_undated, "order"].min()
    assert table.loc[is_undated, "order"].is_monotonic_increasing
