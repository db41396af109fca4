"""A shop's figures for Prometheus: in its own registry, so that no shop's scrape shows another's.

**Guarantee:** labels are routes, statuses, list names, reasons, model versions and arms; never a shopper, an item or a
key. Nothing is sent anywhere: whoever has a key of the shop may read them.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

MEDIA_TYPE = CONTENT_TYPE_LATEST
_BUCKETS_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class ShopMetrics:
    """Counters of one shop in this process."""

    def __init__(self) -> None:
        self._registry = every = CollectorRegistry()
        self._times = Histogram(
            "fedrec_request_seconds",
            "Time to an answer.",
            ["method", "route", "status"],
            buckets=_BUCKETS_S,
            registry=every,
        )
        self._lists = Counter("fedrec_lists", "Lists served.", ["list", "reason", "version", "arm"], registry=every)
        self._cached = Counter("fedrec_lists_unchanged", "Of these, answered as before.", registry=every)
        self._events = Counter("fedrec_events", "Events taken in.", ["outcome"], registry=every)
        self._timed: dict[tuple[str, ...], Histogram] = {}
        self._counted: dict[tuple[str, ...], Counter] = {}

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request, with the shop's key."""
        key = (method, route, str(status))
        if (child := self._timed.get(key)) is None:
            child = self._timed[key] = self._times.labels(*key)
        child.observe(seconds)

    def listed(self, name: str, reason: str, version: str, arm: str, *, is_unchanged: bool) -> None:
        """One list served."""
        key = (name, reason, version, arm)
        if (child := self._counted.get(key)) is None:
            child = self._counted[key] = self._lists.labels(*key)
        child.inc()
        if is_unchanged:
            self._cached.inc()

    def took(self, *, accepted: int, duplicates: int, refused: int) -> None:
        """One batch of events."""
        for outcome, count in (("accepted", accepted), ("duplicate", duplicates), ("refused", refused)):
            self._events.labels(outcome).inc(count)

    def text(
        self,
        figures: Mapping[str, float],
        arms: Mapping[tuple[str, str], tuple[int, int]],
        *,
        version: str,
        is_well: bool,
    ) -> bytes:
        """All of them, as Prometheus reads them.

        Args:
            figures: gauges by name.
            arms: lists shown and clicked by (version, arm), as the store counts them.
            version: served now.
            is_well: whether it is the newest that should be served.
        """
        now = CollectorRegistry()
        for name, value in {**figures, **_of_process()}.items():
            Gauge(f"fedrec_{name}", name.replace("_", " "), registry=now).set(value)
        Gauge("fedrec_model", "1 = the version that should be served is served.", ["version"], registry=now).labels(
            version
        ).set(is_well)
        shown = Gauge("fedrec_lists_shown", "Lists shown, as stored.", ["version", "arm"], registry=now)
        clicked = Gauge("fedrec_lists_clicked", "Of these, clicked.", ["version", "arm"], registry=now)
        for labels, (num_shown, num_clicked) in arms.items():
            shown.labels(*labels).set(num_shown)
            clicked.labels(*labels).set(num_clicked)
        return bytes(generate_latest(self._registry) + generate_latest(now))


def _of_process() -> dict[str, float]:
    """Memory in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"memory_peak_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        found["memory_bytes"] = float(line.split()[1]) * 1024
    return found
