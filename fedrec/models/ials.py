"""iALS: matrix factorisation of implicit feedback by alternating least squares, one sweep a round.

Source: Hu, Koren & Volinsky 2008, "Collaborative Filtering for Implicit Feedback Datasets", eq. 4 and 5; regularisation
by frequency: Rendle et al. 2022, "Revisiting the Performance of iALS on Item Recommendation Benchmarks",
arXiv:2110.14037, eq. 9. A shop solves its shoppers' factors, which never leave it, and sends the sums that the items'
normal equations need; the coordinator solves the items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from scipy import sparse

from fedrec.errors import BadMessage
from fedrec.models.co_occurrence import blocks
from fedrec.models.factors import (
    IalsScorer,
    IalsSettings,
    pack_symmetric,
    solve_shoppers,
    unpack_symmetric,
    with_content,
)
from fedrec.models.least_squares import (
    Batch,
    for_each_batch,
    normal_equations,
    solve,
    spread,
    with_padding_row,
)
from fedrec.models.popularity import binary_rows, mix_arrays, take
from fedrec.models.private_ials import PrivateIals, PrivateIalsSettings, private_ials_requests
from fedrec.models.private_rules import item_item_rules
from fedrec.models.recommender import Layout, PublicInputs, Recommender, RoundKind, RoundSpec, State
from fedrec.privacy.mechanisms import Outlook, ReleaseRequest

_ROWS_AT_ONCE = 64
_STATISTICS = ("gram", "normal", "right", "popularity", "shoppers")


@dataclass(frozen=True)
class NormalEquations:
    """Every shopper's part of the items' normal equations, given the items' factors; see `Contributions`.

    With x the shopper's solved factors her part is x x^T (packed), alpha r x x^T (packed) and (1 + alpha r) x for each
    of her items, 1 for each of her items, and 1. Packed is the upper triangle with sqrt(2) off the diagonal.

    Attributes:
        rows: CSR, (num_shoppers, num_items); strengths.
        shoppers: float64, (num_shoppers, d); x, which never leaves the shop.
        alpha: as in `IalsSettings`.
    """

    rows: sparse.csr_matrix
    shoppers: np.ndarray = field(repr=False)
    alpha: float

    def norms(self) -> np.ndarray:
        """float64, (num_shoppers,)."""
        squared = (self.shoppers**2).sum(axis=1)
        lengths = np.diff(self.rows.indptr)
        strengths = self.rows.astype(np.float64)
        strengths.data *= self.alpha
        of_normal = np.asarray(strengths.multiply(strengths).sum(axis=1)).ravel()
        strengths.data += 1
        of_right = np.asarray(strengths.multiply(strengths).sum(axis=1)).ravel()
        return np.sqrt(squared**2 * (1 + of_normal) + squared * of_right + lengths + (lengths > 0))

    def total(self, weights: np.ndarray) -> np.ndarray:
        """float64, (layout.size,)."""
        num_items, d = self.rows.shape[1], self.shoppers.shape[1]
        layout = _layout(num_items, d)
        total = np.zeros(layout.size)
        sums = layout.split(total)
        weights = np.asarray(weights, np.float64)
        is_active = np.diff(self.rows.indptr) > 0
        weighted = self.shoppers * weights[:, None]
        sums["gram"][:] = pack_symmetric(self.shoppers.T @ weighted)
        sums["shoppers"][0] = weights[is_active].sum()
        everyone = np.repeat(weights, np.diff(self.rows.indptr))
        sums["popularity"][:] = np.bincount(self.rows.indices, weights=everyone, minlength=num_items)
        for sign in (1.0, -1.0):
            is_part = is_active & (sign * weights > 0)
            if is_part.any():
                self._add_items(sums, np.flatnonzero(is_part), sign * weights[is_part], sign)
        return total

    def integers(self, weights: np.ndarray, scale: float) -> np.ndarray:
        """int64, (layout.size,)."""
        num_items, d = self.rows.shape[1], self.shoppers.shape[1]
        layout = _layout(num_items, d)
        total = np.zeros(layout.size, np.int64)
        sums = layout.split(total)
        lengths = np.diff(self.rows.indptr)
        scaled = scale * np.asarray(weights, np.float64)
        sums["shoppers"][0] = np.trunc(scaled[lengths > 0]).astype(np.int64).sum()
        everyone = np.repeat(np.trunc(scaled), lengths)
        sums["popularity"][:] = np.bincount(self.rows.indices, weights=everyone, minlength=num_items)
        for start, stop in blocks(len(scaled)):
            shoppers = self.shoppers[start:stop]
            packed = pack_symmetric(shoppers[:, :, None] * shoppers[:, None, :])  # (num_in_block, packed)
            sums["gram"] += np.trunc(scaled[start:stop, None] * packed).astype(np.int64).sum(axis=0)
            rows = self.rows[start:stop].tocoo()
            # One row of integers serves all items that a shopper bought equally often.
            pairs, place = np.unique(np.stack([rows.row, rows.data]), axis=1, return_inverse=True)
            who, strengths = pairs[0].astype(np.int64), self.alpha * pairs[1].astype(np.float64)
            is_hers = sparse.csr_matrix((np.ones(rows.nnz), (rows.col, place.ravel())), shape=(num_items, len(who)))
            left = np.trunc((scaled[start + who] * strengths)[:, None] * packed[who])
            right = np.trunc((scaled[start + who] * (1 + strengths))[:, None] * shoppers[who])
            sums["normal"] += (is_hers @ left).astype(np.int64)
            sums["right"] += (is_hers @ right).astype(np.int64)
        return total

    def _add_items(self, sums: State, shoppers: np.ndarray, weights: np.ndarray, sign: float) -> None:
        """Add ``sign`` times the parts of these shoppers, whose ``weights`` are above 0, to the items' sums."""
        scale = np.sqrt(weights)
        padded = with_padding_row(self.shoppers[shoppers] * scale[:, None])
        columns = self.rows[shoppers].T.tocsr()  # (num_items, num_shoppers)
        padded_scale = np.append(scale, 0.0)

        def work(batch: Batch) -> None:
            left, right = normal_equations(batch, padded, self.alpha, padded_scale)
            sums["normal"][batch.rows] += sign * pack_symmetric(left)
            sums["right"][batch.rows] += sign * right

        for_each_batch(columns, padded.shape[1], work)


@dataclass(frozen=True)
class Ials:
    """Matrix factorisation by alternating least squares (Hu et al. 2008); shopper vectors stay in the shop."""

    name: ClassVar[str] = "ials"
    is_iterative: ClassVar[bool] = True
    settings: IalsSettings = field(default_factory=IalsSettings)

    def plan_round(self, index: int, state: State, public: PublicInputs) -> RoundSpec | None:
        """One sweep a round, from the items' factors so far."""
        if index >= self.settings.sweeps:
            return None
        d = self.settings.factors
        factors = state.get("item_factors")
        if factors is None:
            rng = np.random.default_rng(self.settings.init_seed)
            factors = rng.standard_normal((public.num_items, d)) * (0.1 / math.sqrt(d))
        layout = _layout(public.num_items, d)
        return RoundSpec(RoundKind.STATISTICS, "normal equations", layout, {"item_factors": factors})

    def contributions(self, spec: RoundSpec, histories: sparse.csr_matrix) -> NormalEquations:
        """Solves the shop's shoppers; the rest is in `NormalEquations`.

        Raises:
            BadMessage: the round's item factors are not (num_items, d).
        """
        factors, expected = spec.inputs["item_factors"], (histories.shape[1], self.settings.factors)
        if factors.shape != expected:
            raise BadMessage(f"item_factors of shape {factors.shape}: {expected} expected")
        return self._equations(np.asarray(factors, np.float64), histories)

    def _equations(self, factors: np.ndarray, histories: sparse.csr_matrix) -> NormalEquations:
        rows = binary_rows(histories)
        shoppers = solve_shoppers(rows, factors, factors.T @ factors, len(factors), self.settings)
        return NormalEquations(rows, shoppers, self.settings.alpha)

    def advance(
        self, spec: RoundSpec, state: State, total: np.ndarray, public: PublicInputs, *, noise_sd: float = 0.0
    ) -> State:
        """Solves the items; keeps the sums and the factors that they were computed with, for personalisation."""
        statistics = {name: values.copy() for name, values in spec.layout.split(total).items()}
        previous = np.asarray(spec.inputs["item_factors"], np.float64)
        return {"item_factors": self._solve_items(statistics), "previous_factors": previous, **statistics}

    def release_requests(self, crowd: float | None = None) -> tuple[ReleaseRequest, ...]:
        """Popularity, then ``sweeps`` noisy sums of bounded normal equations (two, where more than five are set)."""
        return private_ials_requests(self.settings.sweeps, crowd)

    def private(self, outlook: Outlook, public: PublicInputs) -> Recommender:
        """Settings by public rules; the number of sweeps as in `release_requests`, the seed as configured."""
        rules = item_item_rules(outlook, public)
        return PrivateIals(
            PrivateIalsSettings(
                sweeps=len(outlook.schedule) - 1,
                released_items=rules.released_items,
                own_weight=rules.own_weight,
                popularity_weight=rules.popularity_weight,
                tail_share=rules.tail_share,
                init_seed=self.settings.init_seed,
            )
        )

    def fit(self, state: State, public: PublicInputs) -> IalsScorer:
        """The items' factors solve the state's normal equations; items without events take content's."""
        factors = self._solve_items(state)
        is_known = state["popularity"] > 0
        factors = with_content(factors, is_known, state["popularity"], public)
        gram = factors.T @ factors
        return IalsScorer(factors, gram, len(factors), state["popularity"], self.settings, public)

    def project(self, state: State, positions: np.ndarray, public: PublicInputs) -> State:
        """Factors and sums of the shop's items; zeros for unknown ones."""
        projected = {"gram": state["gram"], "shoppers": state["shoppers"]}
        for name in ("item_factors", "previous_factors", "normal", "right", "popularity"):
            projected[name] = take(state[name], positions)
        return projected

    def own_statistics(self, state: State, histories: sparse.csr_matrix, public: PublicInputs) -> State:
        """The shop's own sums, from shoppers solved at the same item factors as the global sums."""
        equations = self._equations(state["previous_factors"], histories)
        total = equations.total(np.ones(histories.shape[0]))
        factors = {name: state[name] for name in ("item_factors", "previous_factors")}
        return {**factors, **_layout(public.num_items, self.settings.factors).split(total)}

    def mix(self, state: State, own: State, *, global_share: float) -> State:
        """Weighted mean of the normal equations; `fit` solves them again."""
        return mix_arrays(state, own, global_share=global_share)

    def candidates(self) -> dict[str, tuple[Any, ...]]:
        """As many combinations as EASE tries; the values of lambda are for nu = 1."""
        return {"alpha": (1.0, 4.0, 16.0), "regularisation": (0.001, 0.003, 0.01, 0.03)}

    def _solve_items(self, statistics: State) -> np.ndarray:
        """float64, (num_items, d), from the sums over all shoppers."""
        settings = self.settings
        gram = unpack_symmetric(statistics["gram"][None, :], settings.factors)[0]
        counts = settings.alpha * statistics["popularity"] + statistics["shoppers"][0]
        ridge = settings.regularisation * np.maximum(counts, 1) ** settings.frequency_exponent
        solved = np.zeros(statistics["right"].shape)
        diagonal = np.arange(settings.factors)

        def work(start: int) -> None:
            rows = slice(start, start + _ROWS_AT_ONCE)
            left = unpack_symmetric(statistics["normal"][rows], settings.factors)
            left += gram
            left[:, diagonal, diagonal] += ridge[rows][:, None]
            solved[rows] = solve(left, statistics["right"][rows])

        spread(work, range(0, len(solved), _ROWS_AT_ONCE), is_worth_it=len(solved) > 2 * _ROWS_AT_ONCE)
        return solved


def _layout(num_items: int, d: int) -> Layout:
    packed = d * (d + 1) // 2
    sizes = ((packed,), (num_items, packed), (num_items, d), (num_items,), (1,))
    return Layout(tuple(zip(_STATISTICS, sizes, strict=True)))
