"""A clip norm that follows a quantile of the shoppers' gradient norms, learned from one more noisy value a step.

In a step at the clip norm C_t a shopper with the gradient g contributes, in units of the agreed clip norm C,

    ( a min(|g|, C_t) / C_t  g / |g|,   b within(|g| / C_t) )   with a^2 + b^2 = 1 and within(.) in [0, 1].

So its L2 norm is at most 1 at any C_t: grid, noise, schedule and ledger are those of C, and what C_t is may follow from
earlier noisy sums, as the arrays of a step do. The count costs what b takes from the gradients: at the noise multiplier
z of the step, gradients have noise of z_g = z / a times C_t and the count noise of z_b = z / b, and
1 / z^2 = 1 / z_g^2 + 1 / z_b^2.

**Source:** Andrew et al. 2021, arXiv:1905.03871, Algorithm 1 and Theorem 1, which split z in the same way. Deviations:
the count is of 1s, not of +-1/2 (their 2 sigma_b is z_b here); the share is moved into [0, 1], so that one step of C_t
is bounded; and `within` is a ramp. Were it 1[|g| <= C_t], the last bit of a norm, which may depend on who else is in
the batch, would decide about a whole count, for all shoppers of that norm at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedrec.errors import BadAssumption, BadMessage

if TYPE_CHECKING:
    from fedrec.training.dp_sgd import ShopperGradients
    from fedrec.training.seats import SeatedGradients

WITHIN = "within"
"""Name of the count in a step's layout; one value, the last."""

LEARNING_RATE = 0.2
"""Of the logarithm of C_t, as in the paper."""

MOST_TIMES = 1024.0
"""C_t stays within this factor of C."""

COUNT_PART = 0.1
"""b: the gradients lose 0.5 % to the count."""

_GRADIENT_PART = math.sqrt(1 - COUNT_PART**2)
_RAMP = 0.05


@dataclass(frozen=True)
class QuantileGradients:
    """Gradients of one step with the count of those within the clip norm, in units of the agreed one.

    Attributes:
        inner: of the sampled shoppers.
        clip_norm: C_t > 0.
        agreed: C > 0; C_t is at least C / 1024 and at most 1024 C.
    """

    inner: ShopperGradients | SeatedGradients
    clip_norm: float
    agreed: float

    def __post_init__(self) -> None:
        if not 1 / MOST_TIMES <= self.clip_norm / self.agreed <= MOST_TIMES:
            raise BadMessage(f"a step at the clip norm {self.clip_norm:g}, not within {MOST_TIMES:g} times the agreed")

    def total(self, weights: np.ndarray) -> np.ndarray:
        """The same sum without a clip, for research: float64 (num_values + 1,); weights float64 (num_shoppers,)."""
        count = float(within(self.inner.norms() / self.clip_norm) @ weights)
        return self._joined(self.inner.total(weights), count, self.agreed)

    def clipped(self, bound: float) -> tuple[np.ndarray, np.ndarray]:
        """The sum over shoppers, and the norms of their gradients.

        Args:
            bound: of a shopper's part in the sum; > 0.
        Returns:
            float64 (num_values + 1,), float64 (num_shoppers,).
        Guarantee: with or without any one shopper, the sum differs by at most ``bound`` in L2, up to the rounding of
            `ShopperGradients.clipped` and, in the count, 10 times that of the others' norms. One whose norm is not
            finite counts as zero in both parts.
        """
        total, norms = self.inner.clipped(self.clip_norm)
        return self._joined(total, float(within(norms / self.clip_norm).sum()), min(bound, self.agreed)), norms

    def _joined(self, total: np.ndarray, count: float, scale: float) -> np.ndarray:
        return np.append(total * (_GRADIENT_PART * scale / self.clip_norm), COUNT_PART * scale * count)


def within(ratios: np.ndarray) -> np.ndarray:
    """Of norms over C_t, float64: 1 up to 0.95, 0 from 1.05 on, a straight line between; 0 where not finite."""
    return np.nan_to_num(np.clip((1 + _RAMP - ratios) / (2 * _RAMP), 0.0, 1.0), nan=0.0)


def parted(total: np.ndarray, *, clip_norm: float, agreed: float) -> tuple[np.ndarray, float]:
    """The sum of gradients, float64 (num_values,), and the count that a noisy sum of `QuantileGradients` holds."""
    return total[:-1] * (clip_norm / (_GRADIENT_PART * agreed)), float(total[-1]) / (COUNT_PART * agreed)


def next_clip_norm(
    clip_norm: float, noisy_count: float, *, expected_batch: float, quantile: float, learning_rate: float
) -> float:
    """A clip norm closer to a quantile of the shoppers' gradient norms, from a noisy count.

    Args:
        clip_norm: C_t of the step; > 0.
        noisy_count: how many shoppers of the step had a norm within C_t, plus noise.
        expected_batch: public: sampling rate times declared shoppers; never how many there were.
        quantile: gamma in (0, 1): share of (declared) shoppers to leave unclipped.
        learning_rate: eta > 0; 0.2 in the paper.
    Returns:
        C_t exp(-eta (s - gamma)), s = the noisy share, moved into [0, 1].
    Raises:
        BadAssumption: a number is out of range or NaN.
    Guarantee: post-processing of the count, which is one of the values that the step's noise and charge cover.
    """
    for name, value, most in (
        ("clip norm", clip_norm, math.inf),
        ("expected_batch", expected_batch, math.inf),
        ("quantile", quantile, 1.0),
        ("learning_rate", learning_rate, math.inf),
    ):
        if not 0 < value < most:
            raise BadAssumption(f"{name} = {value}: above 0, below {most:g}")
    if not math.isfinite(noisy_count):
        raise BadAssumption(f"noisy_count = {noisy_count}: must be finite")
    share = min(max(noisy_count / expected_batch, 0.0), 1.0)
    return clip_norm * math.exp(-learning_rate * (share - quantile))
