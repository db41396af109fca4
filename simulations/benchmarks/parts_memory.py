"""What reading a shop's events costs in memory: the whole table against parts of it (``in_parts``).

Run it: python simulations/benchmarks/parts_memory.py [--rows 2000000]

A generated Parquet file with prices, quantities and invoices, 2,000 shoppers and 100 items, so that most rows repeat.
Each way in a process of its own; memory is its peak above what its imports take. It fails if the two give other data.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

ROWS_A_GROUP = 500_000


def write(path: Path, num_rows: int) -> None:
    """The file, uncompressed."""
    rng, writer = np.random.default_rng(0), None
    for _ in range(0, num_rows, ROWS_A_GROUP):
        invoices = rng.integers(0, 10**11, ROWS_A_GROUP)
        table = pa.table(
            {
                "customer_id": rng.integers(0, 2000, ROWS_A_GROUP),
                "product_id": rng.integers(0, 100, ROWS_A_GROUP),
                "timestamp": 1_600_000_000 + rng.permutation(ROWS_A_GROUP) * 60,
                "price": rng.random(ROWS_A_GROUP) + 0.01,
                "quantity": rng.integers(1, 5, ROWS_A_GROUP),
                "invoice": pa.array([f"{one:012d}" for one in invoices.tolist()]),
            }
        )
        writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema, compression="none")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def read(path: str, in_parts: bool) -> None:
    """In a process of its own: pairs, peak in MB, seconds, fingerprint."""
    from fedrec.data.sources import DataSettings
    from fedrec.shop.enrol import read_own_data

    before, started = peak_megabytes(), time.perf_counter()
    data, _ = read_own_data(DataSettings(events=path, in_parts=in_parts), "shop", validation="none")
    seconds, spent = time.perf_counter() - started, peak_megabytes() - before
    digest = hashlib.sha256(data.train.indices.tobytes() + data.train.indptr.tobytes()).hexdigest()[:16]
    print(data.train.nnz, round(spent), round(seconds), digest)


def peak_megabytes() -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read(options.read[0], options.read[1] == "parts")
        return
    with tempfile.TemporaryDirectory() as folder:
        path, digests = Path(folder) / "sales.parquet", set()
        write(path, options.rows)
        print(f"{options.rows:,} rows, {path.stat().st_size / 1e6:.0f} MB of Parquet")
        for way in ("parts", "whole"):
            command = [sys.executable, __file__, "--read", str(path), way]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            digests.add(said[3])
            print(f"{way}: {int(said[0]):,} pairs, peak {said[1]} MB, {said[2]} s")
        if len(digests) > 1:
            raise SystemExit("the two ways give other data")


if __name__ == "__main__":
    main()
