"""Ledgers of made-up shops, with known schedules and times, for tests of the privacy report."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from fedrec.federation.anchors import AnchorBook, Anchored
from fedrec.privacy.ledger import Budget, Ledger
from fedrec.privacy.mechanisms import PlannedRelease, Schedule
from fedrec.privacy.spec import Mode, PrivacySpec
from fedrec.secure_aggregation.keys import IdentityKey

POPULARITY, PAIRS = PlannedRelease("popularity", 1.0, 12.0), PlannedRelease("co-occurrence", 1.0, 4.0)
SCHEDULE = (POPULARITY, PAIRS)  # mu^2 = 1/144 + 1/16 = 5/72
SAMPLED = (PlannedRelease("steps", 1.0, 3.0, 0.1),) * 20


class Clock:
    """A clock that goes on by so much at each look."""

    def __init__(self, step: timedelta = timedelta(days=1)) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.step = step

    def __call__(self) -> datetime:
        self.now += self.step
        return self.now


def spec(mode: Mode = Mode.LOCAL, **more) -> PrivacySpec:
    """A promise that `SCHEDULE` keeps."""
    fields = {"epsilon": 1.2, "delta": 1e-6, "public_shoppers": 5000, "max_shoppers": 6000, "min_shops": 8}
    return PrivacySpec(**{**fields, "mode": mode, **more})


def open_ledger(place: str | Path, shop: str = "uk", *, epsilon: float = 3.0, clock: Clock | None = None, **more):
    """A shop's ledger with a budget of (epsilon, 1e-6)."""
    return Ledger.open(place, shop, budget=Budget(epsilon, 1e-6, **more), clock=clock or Clock())


def charge(ledger: Ledger, run: str, schedule: Schedule = SCHEDULE, promise: PrivacySpec | None = None, **more) -> None:
    """Reserve a run and charge all of it."""
    ledger.reserve(run, promise or spec(), schedule, **more)
    for index, release in enumerate(schedule):
        ledger.charge(run, index, index.to_bytes(32), release, b"noisy bytes")


def make_shop(place: str | Path, shop: str = "uk", *, runs: int = 1, **more) -> Ledger:
    """A ledger of so many finished runs, a day between its entries."""
    ledger = open_ledger(place, shop, **more)
    for number in range(runs):
        charge(ledger, f"winter-{number}")
        ledger.finish(f"winter-{number}")
    return ledger


def anchor(
    ledger: Ledger, folder: Path, *, shop_key: IdentityKey | None = None, anchor_key: IdentityKey | None = None
) -> Path:
    """Let a coordinator keep the ledger's head; its file."""
    book = AnchorBook(folder / "coordinator.json", anchor_key or IdentityKey.generate())
    Anchored(shop_key or IdentityKey.generate(), (book,)).keep(ledger)
    return folder / "coordinator.json"
