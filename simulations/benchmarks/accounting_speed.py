"""How long epsilon takes: 5,000 equal rounds, a calibration, and 300 unequal rounds, each from a cold cache.

Run it: python simulations/benchmarks/accounting_speed.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fedrec.privacy import accounting, calibration
from fedrec.privacy.mechanisms import PlannedRelease, ReleaseRequest
from fedrec.privacy.spec import Mode, PrivacySpec

SPEC = PrivacySpec(2.0, 1e-6, Mode.DISTRIBUTED, public_shoppers=6000, max_shoppers=10_000, min_shops=8)
EQUAL = (PlannedRelease("step", 1.0, 1.0, 0.02),) * 5000
WHOLE = (PlannedRelease("sum", 1.0, 40.0),) * 5000
UNEQUAL = tuple(PlannedRelease("step", 1.0, 1.0 + 0.01 * i, 0.05) for i in range(300))
REQUESTS = (ReleaseRequest("popularity", 0.1, 1.0), ReleaseRequest("co-occurrence", 0.9, 1.0))


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock time of one call, nothing remembered from calls before."""
    accounting._pld.cache_clear()
    calibration._calibrate.cache_clear()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    """Print seconds of each."""
    accounting.epsilon(EQUAL[:1], 1e-6)  # imports
    for what, call in {
        "epsilon of 5,000 rounds, q = 0.02": lambda: accounting.epsilon(EQUAL, 1e-6),
        "epsilon of 5,000 rounds, q = 1": lambda: accounting.epsilon(WHOLE, 1e-6),
        "epsilon of 300 different rounds, q = 0.05": lambda: accounting.epsilon(UNEQUAL, 1e-6),
        "noise for epsilon 2, two sums": lambda: calibration.calibrate(REQUESTS, SPEC),
    }.items():
        print(f"{what:45s} {min(seconds(call) for _ in range(3)):6.2f} s")


if __name__ == "__main__":
    main()
