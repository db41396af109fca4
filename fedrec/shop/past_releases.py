"""What has left a shop's folder so far can tell of one shopper, also of one who was erased since."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedrec.privacy.ledger import Ledger
from fedrec.shop.adoption import modes
from fedrec.shop.member import LEDGER_FILE, MODELS_FOLDER, NO_PROMISE_FILE


@dataclass(frozen=True)
class PastReleases:
    """What left a shop.

    Attributes:
        num_releases: charged in its ledger.
        epsilon: what all of them tell of one shopper, at `delta`; 0 = nothing left, None = no bound.
        delta: of the bound.
    """

    num_releases: int
    epsilon: float | None
    delta: float

    def __str__(self) -> str:
        if self.epsilon == 0:
            return "nothing has left the shop"
        if self.epsilon is None:
            return "sums left the shop without a promise: nothing bounds what they tell of her"
        return (
            f"{self.num_releases} releases that left the shop before stay out: with all of them together nobody tells "
            f"whether she was ever in them, up to epsilon {self.epsilon:.3g} at delta {self.delta:.3g}"
        )


def past_releases(folder: Path, shop: str) -> PastReleases:
    """What a shop's folder says of it.

    Args:
        folder: the shop's.
        shop: its name.
    Raises:
        PrivacyError: the ledger cannot be trusted.
        StoreError: a model does not say how it was trained.
    Guarantee: releases under a promise are all in the ledger, which bounds them. Runs without one are in no ledger, but
        are remembered for ever from when the shop agreed to them, and then there is no bound.
    """
    spent = None
    if (folder / LEDGER_FILE).exists():
        ledger = Ledger.open(folder / LEDGER_FILE, shop)
        try:
            spent = ledger.spent()
        finally:
            ledger.close()
    num_releases = 0 if spent is None else spent.num_charges
    is_unbounded = "none" in modes(folder / MODELS_FOLDER).values() or (folder / NO_PROMISE_FILE).exists()
    if is_unbounded or (spent is not None and not spent.is_deployable):
        return PastReleases(num_releases, None, 0.0)
    if spent is None or not num_releases:
        return PastReleases(0, 0.0, 0.0)
    return PastReleases(num_releases, spent.lifetime_epsilon, spent.budget.delta)
