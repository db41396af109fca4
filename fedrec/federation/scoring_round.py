"""Evaluation that leaves a shop: how good a released model is for its shoppers, as one noisy sum.

Each shopper's history comes in two parts: what is known of her, and what was held back from training (strength
`HELD_BACK`). The model ranks from the known part; her contribution is (NDCG@k, 1), so the sum tells the total of the
figure and how many shoppers it is over. It is a run of its own with a schedule and a charge of its own.

**Guarantee:** a shopper's contribution is a function of the released arrays, public content and her own history; its
norm is at most sqrt(2), whatever she bought. The arrays must have been released under charges: nothing that a shop
trained on its raw data (a personalised or local model) may be scored this way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from scipy import sparse

from fedrec.errors import BadMessage, ConfigError
from fedrec.evaluation.metrics import hit_matrix, ndcg, relevant_counts
from fedrec.evaluation.ranking import top_items
from fedrec.models import load_model, reference_of, settings_of
from fedrec.models.recommender import Layout, PublicInputs, Recommender, RoundKind, RoundSpec, Scorer, State
from fedrec.privacy.mechanisms import Outlook, ReleaseRequest

HELD_BACK = 2.0
"""Strength of an event that was held back from training."""

SCORE_BOUND = math.sqrt(2)
"""Norm of (figure, 1) for a figure of at most 1."""

_LAYOUT = Layout((("figures", (1,)), ("shoppers", (1,))))


@dataclass(frozen=True)
class ScoringSettings:
    """What is scored.

    Attributes:
        model: of the released arrays, as ``module:Class``.
        model_settings: its settings, as JSON.
        k: length of a list; >= 1.
    """

    model: str = ""
    model_settings: str = "{}"
    k: int = 10

    def __post_init__(self) -> None:
        if not self.k >= 1:
            raise ConfigError(f"k = {self.k}: a list holds at least 1 item")


@dataclass(frozen=True)
class FigureSums:
    """Every shopper's (figure, 1); nothing for one without a held-back event. See `Contributions`.

    Attributes:
        figures: float64, (num_shoppers,), in [0, 1]; NaN where nothing was held back.
    """

    figures: np.ndarray = field(repr=False)

    def norms(self) -> np.ndarray:
        """float64, (num_shoppers,)."""
        return np.linalg.norm(self._rows(), axis=1)

    def total(self, weights: np.ndarray) -> np.ndarray:
        """float64, (2,)."""
        return np.asarray(weights, np.float64) @ self._rows()

    def integers(self, weights: np.ndarray, scale: float) -> np.ndarray:
        """int64, (2,)."""
        scaled = scale * np.asarray(weights, np.float64)[:, None] * self._rows()
        return np.trunc(scaled).astype(np.int64).sum(axis=0)

    def _rows(self) -> np.ndarray:
        """float64, (num_shoppers, 2)."""
        is_scored = ~np.isnan(self.figures)
        return np.stack([np.where(is_scored, self.figures, 0.0), is_scored.astype(np.float64)], axis=1)


@dataclass(frozen=True)
class ScoringRound:
    """One noisy sum of a released model's NDCG over shoppers, and of how many they are."""

    name: ClassVar[str] = "scoring"
    settings: ScoringSettings = field(default_factory=ScoringSettings)

    def plan_round(self, index: int, state: State, public: PublicInputs) -> RoundSpec | None:
        """One round; its inputs are the released arrays that `scoring_state` put into the state, and public content."""
        if index > 0:
            return None
        inputs = {name: array for name, array in state.items() if name.startswith(("model.", "content."))}
        return RoundSpec(RoundKind.STATISTICS, "scoring", _LAYOUT, inputs)

    def contributions(self, spec: RoundSpec, histories: sparse.csr_matrix) -> FigureSums:
        """Ranks for every shopper from what is known of her, and judges by what was held back.

        Args:
            histories: CSR, (num_shoppers, num_items); strength `HELD_BACK` marks what was held back.
        Raises:
            BadMessage: the inputs are not those of a released model.
        """
        scorer = self._scorer(spec.inputs, histories.shape[1])
        figures = np.full(histories.shape[0], np.nan)
        for place in range(histories.shape[0]):
            # One by one: in a batch, the rounding of a shopper's scores could hang on who else is in it.
            figures[place] = self._figure(scorer, sparse.csr_matrix(histories[place], copy=True))
        return FigureSums(figures)

    def advance(
        self, spec: RoundSpec, state: State, total: np.ndarray, public: PublicInputs, *, noise_sd: float = 0.0
    ) -> State:
        """Keeps the two sums beside the arrays."""
        sums = spec.layout.split(total)
        return {**state, "figures": sums["figures"].copy(), "shoppers": sums["shoppers"].copy()}

    def release_requests(self) -> tuple[ReleaseRequest, ...]:
        """One noisy sum."""
        return (ReleaseRequest("scoring", 1.0, SCORE_BOUND),)

    def private(self, outlook: Outlook, public: PublicInputs) -> ScoringRound:
        """Nothing depends on the noise."""
        return self

    def fit(self, state: State, public: PublicInputs) -> Scorer:
        """The model that was scored."""
        return self._scorer(state, public.num_items)

    def project(self, state: State, positions: np.ndarray, public: PublicInputs) -> State:
        """A figure belongs to the whole federation."""
        raise ConfigError("a scoring round has no statistics of a shop")

    def own_statistics(self, state: State, histories: sparse.csr_matrix, public: PublicInputs) -> State:
        """As `project`."""
        raise ConfigError("a scoring round has no statistics of a shop")

    def mix(self, state: State, own: State, *, global_share: float) -> State:
        """As `project`."""
        raise ConfigError("a scoring round has no statistics of a shop")

    def candidates(self) -> dict[str, tuple[Any, ...]]:
        """Nothing to tune."""
        return {}

    def _scorer(self, arrays: Mapping[str, np.ndarray], num_items: int) -> Scorer:
        state = {name.removeprefix("model."): array for name, array in arrays.items() if name.startswith("model.")}
        model = load_model(self.settings.model, json.loads(self.settings.model_settings))
        content = None
        if "content.data" in arrays:
            parts = (arrays["content.data"], arrays["content.indices"], arrays["content.indptr"])
            content = _checked_content(parts, (num_items, int(arrays["content.columns"][0])))
        try:
            return model.fit(state, PublicInputs(np.arange(num_items).astype(str), content))
        except (KeyError, IndexError, ValueError) as error:
            raise BadMessage(f"inputs that are no released arrays of {model.name!r}: {type(error).__name__}") from error

    def _figure(self, scorer: Scorer, row: sparse.csr_matrix) -> float:
        """NDCG@k of one shopper; NaN where nothing was held back, or her scores are no numbers."""
        known, targets = row.copy(), row
        known.data = (row.data != HELD_BACK).astype(np.float32)
        targets.data = (row.data == HELD_BACK).astype(np.float32)
        for part in (known, targets):
            part.eliminate_zeros()
        scores = scorer.scores(known)
        relevant = relevant_counts(targets)
        if relevant[0] == 0 or not (scores < np.inf).all():
            return np.nan
        # Ties are broken by a key of the item alone, so that no shopper's list hangs on her place in the table.
        items, _ = top_items(scores, known, self.settings.k, seed=0, row_ids=np.zeros(1, np.int64))
        return float(ndcg(hit_matrix(items, targets), relevant, k=self.settings.k)[0])


def _checked_content(parts: tuple[np.ndarray, ...], shape: tuple[int, int]) -> sparse.csr_matrix:
    """Public content as it was sent: every index is checked before anything is read through it."""
    try:
        content = sparse.csr_matrix(parts, shape=shape)
        content.check_format(full_check=True)
    except (ValueError, IndexError) as error:
        raise BadMessage("public content that is no table of the items' features") from error
    if not np.isfinite(content.data).all():
        raise BadMessage("public content that is not finite")
    return content


def scoring_round(model: Recommender, *, k: int = 10) -> ScoringRound:
    """The round that scores a model of these settings."""
    reference = reference_of(model)
    return ScoringRound(ScoringSettings(reference, json.dumps(settings_of(model), sort_keys=True), k))


def scoring_state(state: State, public: PublicInputs) -> State:
    """The state to begin a scoring run with: released arrays and public content."""
    arrays = {f"model.{name}": array for name, array in state.items()}
    if public.content is not None:
        content = public.content.tocsr()
        arrays |= {
            "content.data": content.data.astype(np.float32),
            "content.indices": content.indices.astype(np.int64),
            "content.indptr": content.indptr.astype(np.int64),
            "content.columns": np.array([content.shape[1]], np.int64),
        }
    return arrays


def mean_figure(state: State) -> float:
    """The noisy mean NDCG in [0, 1]: post-processing of the two sums."""
    return float(np.clip(state["figures"][0] / max(float(state["shoppers"][0]), 1.0), 0.0, 1.0))
