"""What a run promises, to whom, and under which assumptions: the numbers a shop's lawyer signs.

The unit is one shopper (one account) with all her events in one shop, add or remove. Every number here is public and
declared; none is computed from events at run time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from fedrec.errors import BadAssumption, BadDelta, BadEpsilon, NoColluders, TooFewHonestShops

UNIT = "one shopper (one account) with all her events in one shop, added or removed"
"""The unit of privacy, for every report."""

MOST_EPSILON = 50.0
"""The largest epsilon that is taken. From about 20 on whoever looks is right nearly always; from about 40 on noise as
it is drawn is too far from a Gaussian; and the less noise there is, the longer the accountant computes."""


class Mode(StrEnum):
    """Whose noise protects a shop's sum."""

    LOCAL = "local"
    DISTRIBUTED = "distributed"


@dataclass(frozen=True)
class PrivacySpec:
    """The promise of one run.

    Attributes:
        epsilon: > 0, at most `MOST_EPSILON`.
        delta: in (0, 1 / (10 x public_shoppers)].
        mode: ``local``: every shop adds the full noise; ``distributed``: each adds a share that suffices once the
            honest shops' shares are summed under masks.
        public_shoppers: declared number of shoppers of the whole federation (one significant digit); >= 1.
        max_shoppers: declared bound on that number, for the width of the ring; >= public_shoppers.
        min_shops: n_min, the fewest shops a sum may hold; >= 1.
        colluders: t, shops that may tell the coordinator their noise; >= 1 in ``distributed``.
        max_shops_per_person: k >= 1: contributions are clipped to C / k, so that a person with accounts in k shops has
            the same epsilon.
        is_benchmark: allows ``colluders = 0``, for comparisons with papers; the run says that its guarantee is not a
            deployable one.
    """

    epsilon: float
    delta: float
    mode: Mode
    public_shoppers: int
    max_shoppers: int
    min_shops: int
    colluders: int = 1
    max_shops_per_person: int = 1
    is_benchmark: bool = False

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon, "epsilon")
        if not 1 <= self.public_shoppers <= self.max_shoppers:
            raise BadAssumption(
                f"public_shoppers = {self.public_shoppers}, max_shoppers = {self.max_shoppers}: declare the "
                "federation's shoppers as at least 1, and a bound no smaller"
            )
        most = 1 / (10 * self.public_shoppers)
        if not 0 < self.delta <= most:
            raise BadDelta(
                f"delta = {self.delta}: must be above 0 and at most 1 / (10 x {self.public_shoppers:,} public "
                f"shoppers) = {most:.2g}"
            )
        if not self.min_shops >= 1:
            raise BadAssumption(f"min_shops = {self.min_shops}: give a whole number of at least 1")
        if not self.max_shops_per_person >= 1:
            raise BadAssumption(
                f"max_shops_per_person = {self.max_shops_per_person}: give a whole number of at least 1"
            )
        if self.mode is Mode.DISTRIBUTED:
            self._check_distributed()

    def _check_distributed(self) -> None:
        if not self.colluders >= (0 if self.is_benchmark else 1):
            raise NoColluders(
                f"colluders = {self.colluders} in mode distributed: assume at least 1 (a benchmark may assume 0 when "
                "it says so)"
            )
        if not self.min_shops - self.colluders >= 1:
            raise TooFewHonestShops(
                f"min_shops - colluders = {self.min_shops} - {self.colluders}: at least one honest shop's noise must "
                "remain; raise min_shops, or use mode local"
            )

    @property
    def noise_divisor(self) -> float:
        """A shop's noise is sigma x C over this: 1 in ``local``, sqrt(n_min - t) in ``distributed``."""
        return 1.0 if self.mode is Mode.LOCAL else math.sqrt(self.min_shops - self.colluders)


def check_epsilon(epsilon: float, key: str) -> None:
    """Refuse what is no epsilon.

    Args:
        key: how whoever gave it calls it.
    Raises:
        BadEpsilon: it is not above 0, or so large that it promises nothing.
    """
    if not 0 < epsilon < math.inf:
        raise BadEpsilon(f"{key} = {epsilon}: give a number above 0")
    if not epsilon <= MOST_EPSILON:
        raise BadEpsilon(
            f"{key} = {epsilon:g}: give at most {MOST_EPSILON:g}, for above it nothing is promised; leave it out for a "
            "run without privacy"
        )


def one_significant_digit(count: int) -> int:
    """A count as a shop would declare it: 6,040 -> 6,000."""
    if count < 1:
        return 1
    unit = 10 ** int(math.log10(count))
    return max(1, round(count / unit)) * unit
