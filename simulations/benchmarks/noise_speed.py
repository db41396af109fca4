"""What a noise value costs beside torch.normal's, which protects nothing.

Run: python simulations/benchmarks/noise_speed.py [--values 1000000] [--repeats 15]
fedrec's are exact roundings of Gaussians from a 256-bit key; torch's come from a generator of 32 bits of seed, in
float32 (24-bit uniforms, nothing beyond 5.8 sigma) or float64. All take turns in one process on one thread; the median
of the processor time per value counts, and the ratio of medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from fedrec.privacy.noise import SecureNoise

SD_UNITS = 2.0**18


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = options.values
    means64 = torch.zeros(size, dtype=torch.float64)
    candidates: dict[str, Callable[[], object]] = {
        "fedrec, int64 on the grid": lambda: SecureNoise("benchmark").integers(SD_UNITS, size),
        "torch.normal, float32": lambda: torch.normal(0.0, 1.0, (size,)),
        "torch.normal, float64": lambda: torch.normal(means64, 1.0),
        "numpy PCG64, float64, rounded": lambda: np.rint(GENERATOR.standard_normal(size) * SD_UNITS).astype(np.int64),
    }
    took: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(options.repeats):
        for name, draw in candidates.items():
            start = time.thread_time()
            draw()
            took[name].append((time.thread_time() - start) / size * 1e9)
    medians = {name: statistics.median(times) for name, times in took.items()}
    print(f"numpy {np.__version__}, torch {torch.__version__}, {size:,} values, {options.repeats} repeats")
    ours = medians["fedrec, int64 on the grid"]
    for name, median in medians.items():
        print(f"{name:32s} {median:6.2f} ns a value   fedrec takes {ours / median:5.2f} times as long")


GENERATOR = np.random.default_rng()

if __name__ == "__main__":
    main()
