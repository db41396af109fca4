"""A shop's side of a round: its shoppers' contributions, each bounded, become one vector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from fedrec.errors import BadMessage
from fedrec.federation.plan import RoundPlan
from fedrec.models.recommender import Contributions, Layout, Recommender

_BELOW_BOUND = 1 - 2.0**-30
"""A clipped norm is computed in float64: this much below the bound, no rounding of it can cross the bound."""


@dataclass(frozen=True, repr=False)
class Contribution:
    """The bounded sum over a shop's shoppers; raw, so it must not leave but through the door of `release`.

    Attributes:
        values: (layout.size,); float64, or int64 in grid units under a privacy spec.
        layout: names and shapes that ``values`` holds.
        num_zeroed: shoppers whose contribution was not finite and counts as zero; stays in the shop.
    """

    values: np.ndarray
    layout: Layout
    num_zeroed: int = 0

    def __repr__(self) -> str:
        return f"Contribution(shape={self.values.shape})"


def contribute(model: Recommender, plan: RoundPlan, histories: sparse.csr_matrix) -> Contribution:
    """Sum the shop's shoppers in research mode, each scaled down to the clip norm where the terms set one.

    Args:
        model: with the settings that the plan names.
        plan: the round.
        histories: CSR, (num_shoppers, num_items) in the federation's item space.
    Raises:
        BadMessage: the model returns a vector that is not of the plan's layout.
    Guarantee: with a clip norm C one shopper moves the vector by at most C in L2; one whose contribution is
        not finite moves it by nothing.
    """
    clip_norm = plan.terms.clip_norm
    if clip_norm is None:
        contributions = model.contributions(plan.spec, histories)
        values = contributions.total(np.ones(histories.shape[0]))
        if is_finite(values):
            return Contribution(_checked(values, plan, np.float64), plan.spec.layout)
    contributions, num_zeroed = _usable(model, plan, histories)
    norms = contributions.norms()
    weights = np.ones(len(norms)) if clip_norm is None else clip_norm / np.maximum(norms, clip_norm)
    return Contribution(_checked(contributions.total(weights), plan, np.float64), plan.spec.layout, num_zeroed)


def contribute_on_grid(model: Recommender, plan: RoundPlan, histories: sparse.csr_matrix) -> Contribution:
    """Sum the shop's shoppers on the integer grid, each clipped and rounded toward zero before the sum.

    Args:
        model, plan, histories: as in `contribute`; the plan's terms hold a privacy spec.
    Raises:
        BadMessage: the model returns a vector that is not of the plan's layout.
    Guarantee: adding or removing one shopper moves the vector by at most C / (k x unit) in L2 (C the clip norm, k the
        most shops per person), in exact integers: clipped norms stay below the bound by more than their rounding
        error, and rounding toward zero shrinks every value. One whose contribution is not finite moves it by nothing.
    """
    bound = plan.terms.shopper_bound(plan.index) * _BELOW_BOUND
    contributions, num_zeroed = _usable(model, plan, histories)
    weights = bound / np.maximum(contributions.norms(), bound)
    values = contributions.integers(weights, 1 / plan.terms.grid(plan.index).unit)
    return Contribution(_checked(values, plan, np.int64), plan.spec.layout, num_zeroed)


def is_finite(values: np.ndarray) -> bool:
    """Whether all of a float64 vector is finite."""
    return bool(np.isfinite(values).all())


def _usable(model: Recommender, plan: RoundPlan, histories: sparse.csr_matrix) -> tuple[Contributions, int]:
    """Contributions of the shoppers whose norm is finite, and the number of the others.

    A weight of zero does not cancel NaN, so the rows themselves go.
    """
    contributions = model.contributions(plan.spec, histories)
    is_usable = np.isfinite(contributions.norms())
    if is_usable.all():
        return contributions, 0
    return model.contributions(plan.spec, histories[is_usable]), int(np.count_nonzero(~is_usable))


def _checked(values: np.ndarray, plan: RoundPlan, dtype: type) -> np.ndarray:
    if values.shape != (plan.num_values,) or values.dtype != dtype:
        raise BadMessage(
            f"a model's sum is {values.dtype} {values.shape}: must be {np.dtype(dtype)} ({plan.num_values},)"
        )
    return values
