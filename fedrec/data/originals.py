"""Readers of the public originals, each as its authors laid it out; columns are named by our roles."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO

import numpy as np
import pandas as pd

from fedrec.errors import DataError

Opened = Mapping[str, Callable[[], IO[bytes]]]
"""File name of a layout -> opens it."""

XMARKET_SHOPS = ("ca", "uk", "fr", "de", "mx")

AMAZON_CATEGORIES = {
    "Beauty": "beauty",
    "Clothing_Shoes_and_Jewelry": "clothing",
    "Sports_and_Outdoors": "sports",
    "Toys_and_Games": "toys",
}
"""Category files -> shops."""

_RATINGS = ["shopper", "item", "rating", "timestamp"]


@dataclass(frozen=True)
class SetTables:
    """Raw tables of a set, columns named by our roles, and what to say about them."""

    events: pd.DataFrame
    items: pd.DataFrame | None = None
    test: pd.DataFrame | None = None
    notes: tuple[tuple[str, int], ...] = ()


def movielens_100k(opened: Opened) -> SetTables:
    """u.data: tab-separated ratings; u.item: titles and one flag for each genre of u.genre."""
    events = _table(opened, "u.data", "\t", _RATINGS)
    if not {"u.item", "u.genre"} <= opened.keys():
        return SetTables(events)
    genres = [line.split("|")[0] for line in _lines(opened, "u.genre", "latin-1") if "|" in line]
    rows = [line.split("|") for line in _lines(opened, "u.item", "latin-1") if line]
    labels = ["|".join(g for g, flag in zip(genres, row[-len(genres) :], strict=True) if flag == "1") for row in rows]
    labels = ["" if label == "unknown" else label for label in labels]
    items = pd.DataFrame({"item": [row[0] for row in rows], "title": [row[1] for row in rows], "category": labels})
    return SetTables(events, items)


def movielens_1m(opened: Opened) -> SetTables:
    """ratings.dat and movies.dat: fields separated by "::", titles in Latin-1."""
    data = _read(opened, "ml-1m/ratings.dat").replace(b"::", b"\t")
    events = pd.read_csv(io.BytesIO(data), sep="\t", header=None, names=_RATINGS)
    if "ml-1m/movies.dat" not in opened:
        return SetTables(events)
    rows = [line.split("::") for line in _lines(opened, "ml-1m/movies.dat", "latin-1") if line]
    items = pd.DataFrame(rows, columns=["item", "title", "category"])
    return SetTables(events, items)


def lastfm(opened: Opened) -> SetTables:
    """user_artists.dat: listener, artist, play count; artists.dat: id, name."""
    events = _table(opened, "user_artists.dat", "\t", ["shopper", "item", "quantity"], skip=1)
    if "artists.dat" not in opened:
        return SetTables(events)
    rows = [line.split("\t")[:2] for line in _lines(opened, "artists.dat", "utf-8")[1:] if line]
    return SetTables(events, pd.DataFrame(rows, columns=["item", "title"]))


def gowalla(opened: Opened) -> SetTables:
    """train.txt and test.txt: a line is a shopper and all her places."""
    train, test = (_histories(_lines(opened, f"gowalla/{part}.txt")) for part in ("train", "test"))
    return SetTables(train, test=test)


def instant_video(opened: Opened) -> SetTables:
    """ratings.dat: shopper, item, rating, timestamp, separated by commas."""
    return SetTables(_table(opened, "amazon/ratings.dat", ",", _RATINGS))


def sequences(opened: Opened) -> SetTables:
    """A line is a shopper and an item; a shopper's lines are in the order of her reviews."""
    (name,) = opened
    events = _table(opened, name, " ", ["shopper", "item"])
    return SetTables(events.assign(order=events.groupby("shopper").cumcount()))


def xmarket(opened: Opened) -> SetTables:
    """ratings_<shop>_Electronics.txt: shopper, item, rating, date, separated by blanks."""
    shops = []
    for name in opened:
        shop = name.split("_")[1]
        shops.append(_table(opened, name, " ", _RATINGS).assign(shop=shop))
    events = pd.concat(shops, ignore_index=True)
    apart = (
        "items whose variants are listed apart, so that a variant gives the answer away (our Parquet form merges them)"
    )
    return SetTables(events, notes=((apart, events["item"].nunique()),))


def amazon_shops(opened: Opened) -> SetTables:
    """reviews_<category>_5.json: one JSON object a line."""
    shops = []
    for name in opened:
        category = name.removeprefix("reviews_").split("_5.json")[0]
        rows = [json.loads(line) for line in _lines(opened, name) if line]
        fields = {"shopper": "reviewerID", "item": "asin", "rating": "overall", "timestamp": "unixReviewTime"}
        columns = {role: [row.get(key) for row in rows] for role, key in fields.items()}
        shops.append(pd.DataFrame(columns).assign(shop=AMAZON_CATEGORIES[category]))
    return SetTables(pd.concat(shops, ignore_index=True))


def online_retail(opened: Opened) -> SetTables:
    """online_retail_II: the two sheets of the xlsx file, or one CSV file of both.

    Stock codes are brought to capitals, so that 85123a and 85123A are one item.
    """
    (name,) = opened
    if name.endswith(".csv"):
        table = pd.read_csv(io.BytesIO(_read(opened, name)), dtype="str", encoding="utf-8", encoding_errors="replace")
    else:
        if importlib.util.find_spec("openpyxl") is None:
            raise DataError(
                f"{name} needs the package openpyxl; install it, or save both sheets as one file online_retail_II.csv"
            )
        sheets = pd.read_excel(
            io.BytesIO(_read(opened, name)), sheet_name=None, dtype={"StockCode": "str", "Invoice": "str"}
        )
        table = pd.concat(sheets.values(), ignore_index=True)
    fields = {
        "basket": ("Invoice", "InvoiceNo"),
        "item": ("StockCode",),
        "title": ("Description",),
        "quantity": ("Quantity",),
        "timestamp": ("InvoiceDate",),
        "price": ("Price", "UnitPrice"),
        "shopper": ("Customer ID", "CustomerID"),
        "shop": ("Country",),
    }
    columns = {}
    for role, names in fields.items():
        found = next((column for column in names if column in table), None)
        if found is None:
            raise DataError(f"{name}: there is no column {names[0]}; columns are {', '.join(map(str, table.columns))}")
        columns[role] = table[found]
    columns["item"] = columns["item"].astype("str").str.strip().str.upper()
    return SetTables(pd.DataFrame(columns))


def _read(opened: Opened, name: str) -> bytes:
    with opened[name]() as file:
        data = file.read()
    return gzip.decompress(data) if name.endswith(".gz") else data


def _lines(opened: Opened, name: str, encoding: str = "utf-8") -> list[str]:
    return _read(opened, name).decode(encoding, errors="replace").splitlines()


def _table(opened: Opened, name: str, separator: str, columns: list[str], *, skip: int = 0) -> pd.DataFrame:
    """A table without a usable header; ids stay as they are written."""
    text = dict.fromkeys(("shopper", "item"), "str")
    return pd.read_csv(
        io.BytesIO(_read(opened, name)), sep=separator, header=None, names=columns, skiprows=skip, dtype=text
    )


def _histories(lines: list[str]) -> pd.DataFrame:
    """Rows of (shopper, item) from lines of "shopper item item ..."."""
    rows = [line.split() for line in lines if line.strip()]
    shoppers = np.repeat(np.array([row[0] for row in rows], dtype=object), [len(row) - 1 for row in rows])
    items = np.array([item for row in rows for item in row[1:]], dtype=object)
    return pd.DataFrame({"shopper": pd.array(shoppers, dtype="str"), "item": pd.array(items, dtype="str")})
