"""A shop's side of a round: its shoppers' contributions, each bounded, become one vector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from fedrec.errors import BadMessage
from fedrec.federation.plan import RoundPlan
from fedrec.models.recommender import Contributions, Layout, Recommender


@dataclass(frozen=True, repr=False)
class Contribution:
    """The bounded sum over a shop's shoppers; raw, so it must not leave but through `release.release`.

    Attributes:
        values: float64, (layout.size,).
        layout: names and shapes that ``values`` holds.
        num_zeroed: shoppers whose contribution was not finite and counts as zero; stays in the shop.
    """

    values: np.ndarray
    layout: Layout
    num_zeroed: int = 0

    def __repr__(self) -> str:
        return f"Contribution(shape={self.values.shape})"


def contribute(model: Recommender, plan: RoundPlan, histories: sparse.csr_matrix) -> Contribution:
    """Sum the shop's shoppers, each scaled down to the plan's clip norm where it sets one.

    Args:
        model: with the settings that the plan names.
        plan: the round.
        histories: CSR, (num_shoppers, num_items) in the federation's item space.
    Raises:
        BadMessage: the model returns a vector that is not of the plan's layout.
    Guarantee: with a clip norm C one shopper moves the vector by at most C in L2; one whose contribution is
        not finite moves it by nothing.
    """
    spec = plan.spec
    contributions = model.contributions(spec, histories)
    num_zeroed = 0
    if plan.clip_norm is None:
        values = contributions.total(np.ones(histories.shape[0]))
        if is_finite(values):
            return Contribution(_checked(values, plan), spec.layout)
    is_usable = np.isfinite(contributions.norms())
    if not is_usable.all():
        # A weight of zero does not cancel NaN, so the rows themselves go.
        num_zeroed = int(np.count_nonzero(~is_usable))
        contributions = model.contributions(spec, histories[is_usable])
    values = contributions.total(_weights(contributions, plan.clip_norm, int(is_usable.sum())))
    return Contribution(_checked(values, plan), spec.layout, num_zeroed)


def is_finite(values: np.ndarray) -> bool:
    """Whether all of a float64 vector is finite."""
    return bool(np.isfinite(values).all())


def _weights(contributions: Contributions, clip_norm: float | None, num_shoppers: int) -> np.ndarray:
    """float64, (num_shoppers,): min(1, C / norm), 1 without a clip norm."""
    if clip_norm is None:
        return np.ones(num_shoppers)
    return clip_norm / np.maximum(contributions.norms(), clip_norm)


def _checked(values: np.ndarray, plan: RoundPlan) -> np.ndarray:
    if values.shape != (plan.num_values,) or values.dtype != np.float64:
        raise BadMessage(f"a model's sum is {values.dtype} {values.shape}: must be float64 ({plan.num_values},)")
    return values
