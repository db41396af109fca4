"""Private iALS: a noisy sum of popularity, then one to five noisy sums of the items' normal equations.

A sweep sends the items' factors to the shops. A shop solves each of its shoppers against them; her vector x never
leaves, and is scaled to norm 1 before it counts. With n of her items kept she adds sqrt(g / n) x x^T to the shoppers'
Gram matrix and sqrt((1 - g) / n) x to the right-hand side of each of the n: an L2 norm of at most 1, whatever she
bought.

**Guarantee:** a contribution is a function of the shopper's own row and of arrays that were released with noise. Which
items are kept is a rule of the released popularity, so no secret key and no order of a table is involved.
**Source:** Chien et al. 2021, "Private Alternating Least Squares", ICML, Algorithm 2 (the shopper's vector stays with
her, bounded normal equations are summed with noise, the shoppers' Gram is projected to be positive semi-definite);
Krichene et al. 2023, "Multi-Task Differential Privacy Under Distribution Skew", ICML: weights that let shoppers of few
items spend their whole bound, and a choice of items that favours the tail. Deviations: implicit feedback (Hu et al.
2008); the rarest m items by released popularity are kept instead of m drawn at random; no left-hand side is released
for each item (its d (d + 1) / 2 values drown what is learnt): an item's is taken in proportion to its popularity; the
noisy right-hand sides are shrunk to the directions that stand out; the first factors come from released popularity and
public item content.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from scipy import sparse

from fedrec.errors import BadMessage, ConfigError
from fedrec.models.co_occurrence import blocks
from fedrec.models.factors import IalsScorer, IalsSettings, pack_symmetric, unpack_symmetric, with_content
from fedrec.models.item_item import MAX_ITEMS_LIMIT, most_popular, selected_columns
from fedrec.models.least_squares import solve_rows
from fedrec.models.popularity import ItemCounts, binary_rows, covered_rows, popularity_round, powers, take
from fedrec.models.private_rules import popularity_share
from fedrec.models.recommender import Contributions, Layout, PublicInputs, RoundKind, RoundSpec, State
from fedrec.models.spectral import denoise_rectangle
from fedrec.privacy.mechanisms import ReleaseRequest

GRAM_SHARE = 0.1
"""g: part of a shopper's squared bound that her x x^T gets."""
MAX_SWEEPS = 5
USUAL_SWEEPS = 2
_SHOPPER_RIDGE = 0.1
_ITEM_RIDGE = 0.1
_SMALL = 1e-12


def private_ials_requests(sweeps: int, crowd: float | None) -> tuple[ReleaseRequest, ...]:
    """Popularity and the sweeps: as many as asked for up to five, else two, since each has less of the budget."""
    sweeps = sweeps if sweeps <= MAX_SWEEPS else USUAL_SWEEPS
    share = popularity_share(crowd)
    return (
        ReleaseRequest("popularity", share, clip_norm=1.0),
        ReleaseRequest("factors", (1 - share) / sweeps, clip_norm=1.0, repeats=sweeps),
    )


@dataclass(frozen=True)
class PrivateIalsSettings:
    """What public rules chose for private iALS.

    Attributes:
        factors: d, length of every vector; >= 1.
        sweeps: number of noisy sums of normal equations; 1 to 5.
        released_items: K, the number of items with factors, most popular first; 1 to 12,000.
        items_per_shopper: m, at most so many of a shopper's items count, the rarest of them; >= 1.
        alpha: a bought item weighs 1 + alpha against 1 for every item not bought; > 0.
        own_weight: what a shop's own sums count beside the noisy ones in the mixed model; > 0.
        popularity_weight: added to an item's score for each unit of its noisy popularity; >= 0.
        tail_share: in [0, 1]; items without factors take this much of those of items with similar content.
        init_seed: public seed of what content does not say about the first factors.
    """

    factors: int = 16
    sweeps: int = USUAL_SWEEPS
    released_items: int = 600
    items_per_shopper: int = 300
    alpha: float = 1.0
    own_weight: float = 10.0
    popularity_weight: float = 1e-4
    tail_share: float = 0.02
    init_seed: int = 0

    def __post_init__(self) -> None:
        for name, most in (("sweeps", MAX_SWEEPS), ("released_items", MAX_ITEMS_LIMIT)):
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} = {getattr(self, name)}: give a whole number from 1 to {most}")
        for name in ("factors", "items_per_shopper"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: give a whole number of at least 1")
        for name in ("alpha", "own_weight"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: give a number above 0")
        if not 0 <= self.popularity_weight < math.inf:
            raise ConfigError(f"popularity_weight = {self.popularity_weight}: give a number of at least 0")
        if not 0 <= self.tail_share <= 1:
            raise ConfigError(f"tail_share = {self.tail_share}: give a number from 0 to 1")
        if not self.init_seed >= 0:
            raise ConfigError(f"init_seed = {self.init_seed}: give a whole number of at least 0")


@dataclass(frozen=True)
class BoundedEquations:
    """Every shopper's bounded part of the items' normal equations; see `Contributions`.

    Attributes:
        rows: CSR, (num_shoppers, K); the items of hers that count.
        shoppers: float64, (num_shoppers, d); x of norm 1 (or 0), which never leaves the shop.
    """

    rows: sparse.csr_matrix
    shoppers: np.ndarray = field(repr=False)

    def norms(self) -> np.ndarray:
        """float64, (num_shoppers,): with |x| = 1 and n items kept sqrt(g / n + 1 - g)."""
        squared = (self.shoppers**2).sum(axis=1)
        lengths = np.diff(self.rows.indptr)
        return np.sqrt(
            GRAM_SHARE * powers(lengths, -1) * squared**2 + (1 - GRAM_SHARE) * np.where(lengths > 0, squared, 0.0)
        )

    def total(self, weights: np.ndarray) -> np.ndarray:
        """float64, (layout.size,)."""
        gram, right = self._parts(np.asarray(weights, np.float64))
        weighted = self.shoppers * gram[:, None]
        whole = pack_symmetric(self.shoppers.T @ weighted)
        return np.concatenate([whole, self._to_items(self.shoppers * right[:, None]).ravel()])

    def integers(self, weights: np.ndarray, scale: float) -> np.ndarray:
        """int64, (layout.size,); whole numbers below 2^53 add up exactly in float64."""
        gram, right = self._parts(scale * np.asarray(weights, np.float64))
        d = self.shoppers.shape[1]
        whole = np.zeros(d * (d + 1) // 2, np.int64)
        for start, stop in blocks(len(gram)):
            x = self.shoppers[start:stop]
            packed = pack_symmetric(x[:, :, None] * x[:, None, :])  # (num_in_block, packed)
            whole += np.trunc(gram[start:stop, None] * packed).astype(np.int64).sum(axis=0)
        items = self._to_items(np.trunc(self.shoppers * right[:, None]))
        return np.concatenate([whole, items.astype(np.int64).ravel()])

    def _parts(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What x x^T and x are multiplied with, float64 (num_shoppers,) each."""
        root = powers(np.diff(self.rows.indptr), -0.5) * weights
        return math.sqrt(GRAM_SHARE) * root, math.sqrt(1 - GRAM_SHARE) * root

    def _to_items(self, vectors: np.ndarray) -> np.ndarray:
        """float64, (K, d): each shopper's vector added to every item of hers."""
        ones = sparse.csr_matrix((np.ones(self.rows.nnz), self.rows.indices, self.rows.indptr), shape=self.rows.shape)
        return np.asarray(ones.T @ vectors)


@dataclass(frozen=True)
class PrivateIals:
    """Alternating least squares from a few noisy sums of bounded normal equations.

    State: ``popularity`` float64 (num_items,); ``covered`` int64 (K,), sorted positions of the items with factors;
    ``released`` int64: those of them that were summed over all shops; ``gram`` float64 (d (d + 1) / 2,) and ``right``
    float64 (K, d): the last sums; ``previous_factors`` and ``item_factors`` float64 (K, d): what the sums were computed
    with and what they gave; ``ridge`` float64 (1,): of the items, the size of the noise.
    """

    name: ClassVar[str] = "private-ials"
    is_iterative: ClassVar[bool] = True
    fit_fields: ClassVar[tuple[str, ...]] = ("own_weight", "popularity_weight", "tail_share")
    settings: PrivateIalsSettings = field(default_factory=PrivateIalsSettings)

    def plan_round(self, index: int, state: State, public: PublicInputs) -> RoundSpec | None:
        """Popularity, then sweeps over the items that it put first."""
        if index == 0:
            return popularity_round(public)
        if index > self.settings.sweeps:
            return None
        covered = state.get("covered", most_popular(state["popularity"], self.settings.released_items))
        factors = state.get("item_factors")
        if factors is None:
            factors = first_factors(covered, state["popularity"][covered], public, self.settings)
        inputs = {"covered": covered, "popularity": state["popularity"][covered], "item_factors": factors}
        return RoundSpec(RoundKind.STATISTICS, "factors", _layout(len(covered), self.settings.factors), inputs)

    def contributions(self, spec: RoundSpec, histories: sparse.csr_matrix) -> Contributions:
        """Unit-norm rows (popularity), or the shoppers solved against the round's factors and bounded.

        Raises:
            BadMessage: the round's arrays do not fit together.
        """
        if spec.name == "popularity":
            return ItemCounts(binary_rows(histories), exponent=0.5)
        covered, popularity, factors = (spec.inputs[name] for name in ("covered", "popularity", "item_factors"))
        if factors.shape != (len(covered), self.settings.factors) or popularity.shape != covered.shape:
            raise BadMessage(f"item_factors of shape {factors.shape} for {len(covered)} items do not fit the settings")
        return self._equations(selected_columns(histories, covered), popularity, np.asarray(factors, np.float64))

    def _equations(self, rows: sparse.csr_matrix, popularity: np.ndarray, factors: np.ndarray) -> BoundedEquations:
        gram = factors.T @ factors
        bought = sparse.csr_matrix((np.ones(rows.nnz), rows.indices, rows.indptr), shape=rows.shape)
        ridge = np.full(rows.shape[0], _shopper_ridge(gram))
        shoppers = solve_rows(bought, factors, gram, alpha=self.settings.alpha, ridge=ridge)
        sizes = np.sqrt((shoppers**2).sum(axis=1))
        shoppers /= np.where(sizes > 0, sizes, 1.0)[:, None]
        return BoundedEquations(rarest(bought, popularity, self.settings.items_per_shopper), shoppers)

    def advance(
        self, spec: RoundSpec, state: State, total: np.ndarray, public: PublicInputs, *, noise_sd: float = 0.0
    ) -> State:
        """Solves the items from the noisy sums, with a ridge the size of the noise in a column of the right side."""
        if spec.name == "popularity":
            return {"popularity": total.copy()}
        sums = spec.layout.split(total)
        covered = np.asarray(spec.inputs["covered"])
        moved = {
            "popularity": state["popularity"],
            "covered": covered,
            "released": covered,
            "gram": sums["gram"] / math.sqrt(GRAM_SHARE),
            "right": denoise_rectangle(sums["right"], noise_sd) / math.sqrt(1 - GRAM_SHARE),
            "previous_factors": np.asarray(spec.inputs["item_factors"], np.float64),
            "ridge": np.array([noise_sd * math.sqrt(max(len(covered), 1) / (1 - GRAM_SHARE))]),
        }
        return {**moved, "item_factors": self._solve_items(moved)}

    def fit(self, state: State, public: PublicInputs) -> IalsScorer:
        """The state's normal equations, solved; items without factors take a little of content's."""
        popularity = np.maximum(state["popularity"], 0)
        factors = np.zeros((public.num_items, self.settings.factors))
        factors[state["covered"]] = self._solve_items(state)
        gram = factors.T @ factors
        is_known = np.zeros(public.num_items, bool)
        is_known[state["covered"]] = True
        factors = with_content(factors, is_known, popularity, public)
        factors[~is_known] *= self.settings.tail_share
        settings = IalsSettings(
            factors=self.settings.factors,
            alpha=self.settings.alpha,
            regularisation=_shopper_ridge(gram),
            frequency_exponent=0.0,
        )
        weight = self.settings.popularity_weight
        return IalsScorer(factors, gram, public.num_items, popularity, settings, public, popularity_weight=weight)

    def project(self, state: State, positions: np.ndarray, public: PublicInputs) -> State:
        """Sums and factors over all items of the shop: zeros for what has none."""
        rows = covered_rows(state["covered"], len(state["popularity"]), positions)
        projected = {name: take(state[name], rows) for name in ("right", "previous_factors", "item_factors")}
        return {
            **projected,
            "popularity": take(state["popularity"], positions),
            "covered": np.arange(len(positions), dtype=np.int64),
            "released": np.flatnonzero(rows >= 0),
            "gram": state["gram"],
            "ridge": state["ridge"],
        }

    def own_statistics(self, state: State, histories: sparse.csr_matrix, public: PublicInputs) -> State:
        """The shop's own sums, its shoppers solved at the factors that the global sums were computed with."""
        covered, everyone = state["covered"], np.ones(histories.shape[0])
        rows = selected_columns(histories, covered)
        equations = self._equations(rows, state["popularity"][covered], state["previous_factors"])
        sums = _layout(len(covered), self.settings.factors).split(equations.total(everyone))
        own = {
            "popularity": ItemCounts(binary_rows(histories), exponent=0.5).total(everyone),
            "gram": sums["gram"] / math.sqrt(GRAM_SHARE),
            "right": sums["right"] / math.sqrt(1 - GRAM_SHARE),
        }
        own = {**{name: values for name, values in state.items() if name not in own}, **own}
        return {**own, "ridge": np.zeros(1), "item_factors": self._solve_items({**own, "ridge": np.zeros(1)})}

    def mix(self, state: State, own: State, *, global_share: float) -> State:
        """The noisy sums plus the own ones, which weigh ``own_weight`` at a ``global_share`` of 1/2.

        A share of 1 leaves the items that were released; 0 the own sums alone.
        """
        if global_share == 0:
            return own
        if global_share == 1:
            released = state["released"]
            place = np.searchsorted(state["covered"], released)
            rows = {name: state[name][place] for name in ("right", "previous_factors", "item_factors")}
            return {**state, **rows, "covered": released}
        weight = self.settings.own_weight * (1 - global_share) / global_share
        return {**state, **{name: state[name] + weight * own[name] for name in ("popularity", "gram", "right")}}

    def candidates(self) -> dict[str, tuple[Any, ...]]:
        """None: trying settings on shoppers' data would have to be paid for."""
        return {}

    def _solve_items(self, state: State) -> np.ndarray:
        """float64, (K, d): (G (1 + alpha p_i / sum of weights) + ridge) v_i = (1 + alpha) b_i for each item i.

        The noisy Gram's negative eigenvalues are dropped first. Since x has norm 1, its trace is the shoppers' weights.
        """
        values, vectors = np.linalg.eigh(unpack_symmetric(state["gram"][None, :], self.settings.factors)[0])
        values = np.maximum(values, 0)
        mass = max(float(values.sum()), _SMALL)
        ridge = float(state["ridge"][0]) + _ITEM_RIDGE * mass / self.settings.factors
        popularity = np.clip(state["popularity"][state["covered"]], 0, mass)
        left = np.outer(1 + self.settings.alpha * popularity / mass, values) + ridge
        return ((1 + self.settings.alpha) * (state["right"] @ vectors) / left) @ vectors.T


def rarest(rows: sparse.csr_matrix, popularity: np.ndarray, most: int) -> sparse.csr_matrix:
    """Of each row the ``most`` entries whose columns are least popular, ties to the smaller column.

    Args:
        rows: CSR with sorted indices, (num_shoppers, K).
        popularity: float64, (K,); released.
        most: m.
    """
    lengths = np.diff(rows.indptr)
    if not len(lengths) or lengths.max() <= most:
        return rows
    place = np.empty(len(popularity), np.int64)
    place[np.argsort(popularity, kind="stable")] = np.arange(len(popularity))
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((place[rows.indices], row_of))
    rank = np.arange(rows.nnz) - np.repeat(rows.indptr[:-1], lengths)
    kept = np.sort(order[rank < most])
    indptr = np.concatenate([[0], np.cumsum(np.minimum(lengths, most))])
    return sparse.csr_matrix((rows.data[kept], rows.indices[kept], indptr), shape=rows.shape)


def first_factors(
    covered: np.ndarray, popularity: np.ndarray, public: PublicInputs, settings: PrivateIalsSettings
) -> np.ndarray:
    """float64, (K, d): released popularity, the main directions of the items' public content, a little seeded noise."""
    num_items, d = len(covered), settings.factors
    factors = np.random.default_rng(settings.init_seed).standard_normal((num_items, d)) * (0.3 / math.sqrt(d))
    mean = float(np.abs(popularity).mean()) if num_items else 0.0
    factors[:, 0] += np.maximum(popularity, 0) / mean if mean > 0 else 1.0
    if public.content is None:
        return factors
    features = public.content[covered].astype(np.float64)
    values, vectors = np.linalg.eigh((features @ features.T).toarray())
    top = min(d - 1, num_items)
    factors[:, 1 : 1 + top] += vectors[:, ::-1][:, :top] * np.sqrt(np.maximum(values[::-1][:top], 0))
    return factors


def _shopper_ridge(gram: np.ndarray) -> float:
    """A tenth of the mean eigenvalue of the items' Gram matrix; above 0."""
    return max(_SHOPPER_RIDGE * float(np.trace(gram)) / len(gram), _SMALL)


def _layout(num_items: int, d: int) -> Layout:
    return Layout((("gram", (d * (d + 1) // 2,)), ("right", (num_items, d))))
