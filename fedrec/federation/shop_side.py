"""A shop's side of a round: its shoppers' contributions, each bounded, become one vector."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from fedrec.errors import BadMessage, ConfigError
from fedrec.federation.plan import RoundPlan
from fedrec.models.recommender import (
    Contributions,
    GradientModel,
    Gradients,
    Layout,
    LocalModel,
    Recommender,
    RoundKind,
    sampled_gradients,
)
from fedrec.privacy.draws import Draws

_BELOW_BOUND = 1 - 2.0**-30
"""A clipped norm is computed in float64: this much below the bound, no rounding of it can cross the bound."""

_BELOW_GRADIENT = 1 - 2.0**-10
"""Room for float64's rounding in a sum of clipped gradients, of up to 2^20 shoppers: more than
`fedrec.training.dp_sgd.rounding_slack`, which derives it."""


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


def contribute(
    model: Recommender, plan: RoundPlan, histories: sparse.csr_matrix, draws: Draws | None = None
) -> Contribution:
    """The shop's vector of a round in research mode, each shopper scaled down to the clip norm where terms set one.

    Args:
        model: with the settings that the plan names.
        plan: the round.
        histories: CSR, (num_shoppers, num_items) in the federation's item space.
        draws: randomness of these shoppers in this round; needed for rounds other than statistics.
    Raises:
        BadMessage: the model returns a vector that is not of the plan's layout.
        ConfigError: the round is of a kind that the model has no method for, or a local update with a clip norm.
    Guarantee: with a clip norm C one shopper moves the vector by at most C in L2; one whose contribution is
        not finite moves it by nothing.
    """
    clip_norm, spec = plan.terms.clip_norm, plan.spec
    if spec.kind is RoundKind.LOCAL_UPDATE:
        if not isinstance(model, LocalModel) or draws is None or clip_norm is not None:
            raise ConfigError(f"model {model.name!r}: no local update, or one with a clip norm on shoppers")
        return Contribution(_checked(model.local_update(spec, histories, draws), plan, np.float64), spec.layout)
    if spec.kind is RoundKind.GRADIENT_STEP:
        gradients, num_sampled = _gradients(model, plan, histories, draws)
        if clip_norm is None:
            values, num_zeroed = gradients.total(np.ones(num_sampled)), 0
        else:
            values, norms = gradients.clipped(clip_norm)
            num_zeroed = int(np.count_nonzero(~np.isfinite(norms)))
        return Contribution(_checked(values, plan, np.float64), spec.layout, num_zeroed)
    if clip_norm is None:
        contributions = model.contributions(spec, histories)
        values = contributions.total(np.ones(histories.shape[0]))
        if is_finite(values):
            return Contribution(_checked(values, plan, np.float64), spec.layout)
    contributions, num_zeroed = _usable(model, plan, histories)
    norms = contributions.norms()
    weights = np.ones(len(norms)) if clip_norm is None else clip_norm / np.maximum(norms, clip_norm)
    return Contribution(_checked(contributions.total(weights), plan, np.float64), spec.layout, num_zeroed)


def contribute_on_grid(
    model: Recommender, plan: RoundPlan, histories: sparse.csr_matrix, draws: Draws | None = None
) -> Contribution:
    """The shop's vector on the integer grid, each shopper clipped.

    Args:
        model, plan, histories, draws: as in `contribute`; the plan's terms hold a privacy spec.
    Raises:
        BadMessage: the model returns a vector that is not of the plan's layout.
        ConfigError: the round is of a kind that the model has no method for.
        RoundRefused: a gradient step at arrays for which no bound holds.
    Guarantee: adding or removing one shopper moves the vector by at most C / (k x unit) in L2 (C the clip norm, k the
        most shops per person), in exact integers. Statistics: each shopper is rounded toward zero before the sum, which
        shrinks every value, and clipped norms stay below the bound by more than their rounding error. Gradients: the
        float64 sum of d values is rounded once, which moves it by at most sqrt(d) more than the shopper does; her
        bound is lowered by that, and by 2^-10 of itself for float64's rounding. One whose contribution is not
        finite moves it by nothing. That a matrix product rounds a row in another way in a batch of another size reaches
        nobody else (`fedrec.training.seats`); arrays beyond +-64 are refused all the same (`Terms.allow`).
    """
    bound = plan.terms.shopper_bound(plan.index) * _BELOW_BOUND
    unit = plan.terms.grid(plan.index).unit
    if plan.spec.kind is RoundKind.GRADIENT_STEP:
        plan.terms.check_step(plan.spec, plan.index)
        lowered = bound * _BELOW_GRADIENT - math.sqrt(plan.num_values) * unit
        if lowered <= 0:
            raise ConfigError(f"a gradient of {plan.num_values:,} values: rounding alone fills a shopper's bound")
        gradients, _ = _gradients(model, plan, histories, draws)
        total, norms = gradients.clipped(lowered)
        num_zeroed = int(np.count_nonzero(~np.isfinite(norms)))
        values = np.rint(_checked(total, plan, np.float64) / unit).astype(np.int64)
        return Contribution(values, plan.spec.layout, num_zeroed)
    if plan.spec.kind is not RoundKind.STATISTICS:
        raise ConfigError(f"a round of kind {plan.spec.kind} has no bounded sum over shoppers")
    contributions, num_zeroed = _usable(model, plan, histories)
    weights = bound / np.maximum(contributions.norms(), bound)
    values = contributions.integers(weights, 1 / unit)
    return Contribution(_checked(values, plan, np.int64), plan.spec.layout, num_zeroed)


def _gradients(
    model: Recommender, plan: RoundPlan, histories: sparse.csr_matrix, draws: Draws | None
) -> tuple[Gradients, int]:
    """Of `sampled_gradients`, where the model has such."""
    if not isinstance(model, GradientModel) or draws is None:
        raise ConfigError(f"model {model.name!r} has no gradient steps, or none of its shoppers can be sampled")
    return sampled_gradients(model, plan.spec, histories, draws)


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
