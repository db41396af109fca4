"""What an audit holds against the truth, how large it is, and what it found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedrec.errors import BadAssumption
from fedrec.models.recommender import PublicInputs
from fedrec.privacy.audit import BOUND_CONFIDENCE, FALSE_ALARM, epsilon_interval, guess, mean_shift, one_run_bound
from fedrec.privacy.spec import Mode, PrivacySpec

SMALL_CROWD = 1000

GUESSED_PART = 0.01
"""Part of the canaries that the one-run attacker guesses about."""


@dataclass(frozen=True)
class AuditSettings:
    """What is claimed, and how large the audit is.

    Attributes:
        epsilon, delta: the claim.
        mode: whose noise protects.
        num_shops: on the roster; >= min_shops.
        min_shops: n_min; exactly so many answer.
        colluders: t, of them; they tell the attacker all.
        canaries: crafted vectors, and values of a release; >= 1,000.
        num_items: of the catalogue of the crafted shoppers, one of whom has them all; >= 100.
        seed: of coins and histories; the noise has none.
    """

    epsilon: float
    delta: float
    mode: Mode = Mode.DISTRIBUTED
    num_shops: int = 10
    min_shops: int = 8
    colluders: int = 1
    canaries: int = 100_000
    num_items: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.num_shops >= self.min_shops:
            raise BadAssumption(f"{self.num_shops} shops, of which {self.min_shops} answer: give at least as many")
        if not self.canaries >= 1000:
            raise BadAssumption(f"{self.canaries} canaries: an audit needs at least 1,000")
        if not self.num_items >= 100:
            raise BadAssumption(f"{self.num_items} items: the audit of shoppers needs at least 100")

    def spec(self, max_shoppers: int) -> PrivacySpec:
        """The claim as a promise.

        Args:
            max_shoppers: declared bound; decides which ring is audited.
        """
        return PrivacySpec(
            epsilon=self.epsilon,
            delta=self.delta,
            mode=self.mode,
            public_shoppers=min(SMALL_CROWD, max(1, int(0.1 / self.delta))) if self.delta > 0 else 1,
            max_shoppers=max_shoppers,
            min_shops=self.min_shops,
            colluders=self.colluders,
            is_benchmark=self.colluders == 0,
        )

    @property
    def roster(self) -> tuple[str, ...]:
        """Names of the audit's shops; the first is honest and holds the canaries, the last ones do not answer."""
        return tuple(f"shop-{i:02d}" for i in range(self.num_shops))


@dataclass(frozen=True)
class Finding:
    """What one audit found.

    Attributes:
        audit: its name.
        claimed: what should be, in words and numbers.
        found: what was.
        is_passed: None where nothing is promised and the finding is for information.
        verdict: in words.
        figures: all numbers, for JSON.
    """

    audit: str
    claimed: str
    found: str
    is_passed: bool | None
    verdict: str
    figures: dict[str, Any]

    def __post_init__(self) -> None:
        if not (self.is_passed is None or isinstance(self.is_passed, bool)):
            raise TypeError(f"is_passed = {self.is_passed!r}: True, False or None; anything else could hide a failure")


def noise_finding(
    audit: str, scores: np.ndarray, is_inside: np.ndarray, *, claimed: float, delta: float, mu: float | None
) -> Finding:
    """What canaries that were put in by coins say of the noise.

    Args:
        audit: its name.
        scores: float64, (num_canaries,); each the better the more its canary seems to be in. Gaussian if all is well.
        is_inside: bool, (num_canaries,); whether it was.
        claimed: epsilon at ``delta``.
        delta: of the claim.
        mu: of the Gaussian trade-off that is claimed, for the figures.
    """
    shift = mean_shift(scores, is_inside)
    found = epsilon_interval(shift, delta)
    guesses = guess(scores, is_inside, 2 * round(GUESSED_PART * len(scores) / 2))
    bound = one_run_bound(guesses, delta)
    sure_bound = one_run_bound(guesses, delta, confidence=1 - FALSE_ALARM)
    is_passed = bool(found.holds(claimed) and sure_bound <= claimed)
    verdict = "as claimed"
    if found.low > claimed or sure_bound > claimed:
        verdict = "less noise than claimed"
    elif not is_passed:
        verdict = "more noise than claimed"
    shown = f"{found.estimate:.3g} ({found.low:.3g} to {found.high:.3g})"
    return Finding(
        audit=audit,
        claimed=f"epsilon {claimed:.3g}",
        found=f"epsilon {shown}; >= {bound:.2f} at {BOUND_CONFIDENCE:.0%}",
        is_passed=is_passed,
        verdict=verdict,
        figures={
            "epsilon_claimed": claimed,
            "epsilon_estimate": _finite(found.estimate),
            "epsilon_low": _finite(found.low),
            "epsilon_high": _finite(found.high),
            "epsilon_one_run_bound": bound,
            "mu_claimed": mu,
            "mu_estimate": _finite(shift.estimate),
            "guesses": guesses.num_guesses,
            "correct_guesses": guesses.num_correct,
        },
    )


def item_positions(num_items: int) -> PublicInputs:
    """An item space of so many items, without content."""
    return PublicInputs(np.array([item_name(i) for i in range(num_items)]))


def item_name(position: int) -> str:
    """Key of the item at a position."""
    return f"item-{position:07d}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
