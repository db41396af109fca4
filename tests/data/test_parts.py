"""Events read in parts: the shop's data is that of the whole table, and memory is that of its pairs."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from fedrec.data import sources
from fedrec.data.sources import DataSettings
from fedrec.errors import ConfigError, DataError
from fedrec.shop.enrol import read_own_data

ROOT = Path(__file__).parents[2]


def purchases(num_rows: int = 3000, *, seed: int = 0, undated: float = 0.0) -> pd.DataFrame:
    """Repeats, cancelled and free rows, missing ids, rows of another shop; no two events of a shopper at one time."""
    rng = np.random.default_rng(seed)
    when = 1.6e9 + rng.permutation(num_rows) * 60.0
    when[rng.random(num_rows) < undated] = np.nan
    return pd.DataFrame(
        {
            "shop": rng.choice(["north", "south"], num_rows, p=[0.9, 0.1]),
            "customer_id": rng.choice([f"c{number:03d}" for number in range(80)] + [None], num_rows),
            "product_id": rng.integers(100, 140, num_rows),
            "price": rng.choice([0.0, 1.5, 2.0], num_rows, p=[0.1, 0.5, 0.4]),
            "quantity": rng.choice([-1, 1, 2], num_rows, p=[0.1, 0.6, 0.3]),
            "timestamp": when,
            "title": rng.choice(["red", "blue"], num_rows),
        }
    )


def written(frame: pd.DataFrame, folder: Path, kind: str) -> DataSettings:
    if kind == "sqlite":
        with sqlite3.connect(folder / "sales.db") as database:
            frame.to_sql("sales", database, index=False)
        return DataSettings(url=f"sqlite:///{folder / 'sales.db'}", query="select * from sales", in_parts=True)
    path = folder / "sales.parquet"
    if kind == "folder":
        path.mkdir()
        for number, rows in enumerate(np.array_split(np.arange(len(frame)), 3)):
            frame.iloc[rows].to_parquet(path / f"{number}.parquet", index=False)
    else:
        frame.to_parquet(path, index=False)
    return DataSettings(events=str(path), in_parts=True)


@pytest.mark.parametrize("kind", ["parquet", "folder", "sqlite"])
@pytest.mark.parametrize(("validation", "undated"), [("leave-last", 0.0), ("leave-last", 0.2), ("none", 0.0)])
def test_a_shop_that_reads_in_parts_has_the_data_of_the_whole_table(tmp_path, monkeypatch, kind, validation, undated):
    monkeypatch.setattr(sources, "PART_ROWS", 170)
    settings = written(purchases(undated=undated).drop(columns="title"), tmp_path, kind)
    parts, in_parts = read_own_data(settings, "north", validation=validation)
    whole, items = read_own_data(DataSettings(**{**vars(settings), "in_parts": False}), "north", validation=validation)
    assert whole.train.nnz > 500
    for name in ("shoppers", "items"):
        assert getattr(parts, name).tolist() == getattr(whole, name).tolist()
    for name in ("train", "validation"):
        assert (getattr(parts, name) != getattr(whole, name)).nnz == 0
    assert in_parts.items.tolist() == items.items.tolist()


def test_the_account_of_rows_is_that_of_the_whole_table_and_says_what_repeats(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PART_ROWS", 170)
    settings = written(purchases(), tmp_path, "parquet")
    parts = sources.load(settings)
    whole = sources.load(DataSettings(events=settings.events))
    assert parts.cleaning.rows_read == 3000
    assert parts.cleaning.dropped == whole.cleaning.dropped
    pairs = whole.events.table[["shop", "shopper", "item"]].drop_duplicates()
    assert len(parts.events) == len(pairs)
    repeats = dict(parts.cleaning.handled)["events that repeat an item of their shopper, the first kept"]
    assert repeats == parts.cleaning.rows_kept - len(pairs) > 500
    assert parts.items.table["title"].tolist() != [""] * len(parts.items)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"timestamp": "03/04/2024"}, "two ways"),
        ({"customer_id": "12.0"}, "ids of a shopper have no decimal point"),
        ({"sequence": 0.5}, "whole number in every row"),
    ],
)
def test_cells_that_only_a_whole_column_explains_are_refused(tmp_path, change, words):
    settings = written(purchases(50).assign(**change), tmp_path, "parquet")
    columns = {"order": "sequence"} if "sequence" in change else {}
    with pytest.raises(DataError, match=words):
        sources.load(DataSettings(events=settings.events, columns=columns, in_parts=True))


def test_csv_and_named_sets_are_not_read_in_parts(tmp_path):
    purchases(50).to_csv(tmp_path / "sales.csv", index=False)
    with pytest.raises(DataError, match="only Parquet and databases"):
        sources.load(DataSettings(events=str(tmp_path / "sales.csv"), in_parts=True))
    with pytest.raises(ConfigError, match="in_parts reads events or url alone"):
        DataSettings(source="synthetic", in_parts=True)


_READ = """
import re, sys
from fedrec.data.sources import DataSettings
from fedrec.shop.enrol import read_own_data
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before = peak()
data, _ = read_own_data(DataSettings(events=sys.argv[1], in_parts=True), "north", validation="leave-last")
print(data.train.nnz + data.validation.nnz, (peak() - before) // 1024)
"""


def sales(rng: np.random.Generator, num_rows: int, chars: int) -> pa.Table:
    """Rows of 200 shoppers and 100 items, each in a basket of a name of so many letters."""
    text = pa.py_buffer(rng.integers(97, 122, num_rows * chars).astype(np.uint8))
    ends = pa.py_buffer(np.arange(num_rows + 1, dtype=np.int32) * chars)
    return pa.table(
        {
            "customer_id": rng.integers(0, 200, num_rows),
            "product_id": rng.integers(0, 100, num_rows),
            "timestamp": 1_600_000_000 + rng.integers(0, 10**8, num_rows),
            "basket_id": pa.StringArray.from_buffers(num_rows, ends, text),
        }
    )


def test_a_file_larger_than_the_memory_that_reading_it_takes(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "sales.parquet"
    first = sales(rng, 100_000, 200)
    with pyarrow.parquet.ParquetWriter(path, first.schema, compression="none", use_dictionary=False) as writer:
        for table in (first, *(sales(rng, 100_000, 200) for _ in range(9))):
            writer.write_table(table)
    done = subprocess.run([sys.executable, "-c", _READ, path], capture_output=True, text=True, cwd=ROOT, check=True)
    pairs, megabytes = map(int, re.findall(r"\d+", done.stdout))
    assert pairs == 20_000
    assert megabytes < 0.7 * path.stat().st_size / 2**20
