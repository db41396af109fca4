"""The columns under differential privacy: per epsilon, so many noise draws of rounds, decisions and lists.

Nothing is tuned on private data for them: public rules set the models' parameters and the blend is frozen. A shop that
kept its validation events back decides by a test on them, with the very release that it will serve; a smaller one
joins by the size rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from fedrec.config import PRIVATE_COLUMNS, SimulationSettings
from fedrec.federation.run_record import RoundRecord, noisy_column
from fedrec.federation.terms import Terms, guarantee_of
from fedrec.flower.engines import Trained
from fedrec.models import load_model
from fedrec.models.recommender import Recommender, Scorer, State
from fedrec.models.whole_space import ReleasedFactor, has_whole_space, released_factor
from fedrec.privacy.settings import epsilon_name
from fedrec.privacy.spec import UNIT, Mode
from fedrec.reports.summary import SAYS_MORE
from fedrec.shop.personalise import (
    DECISION_K,
    LEAST_WORTH,
    PRIVATE_GLOBAL_SHARE,
    Blend,
    Choice,
    Components,
    decide,
)
from fedrec.simulation.columns import Chosen, components, judge, rank, shared_scorer
from fedrec.simulation.private_rounds import (
    LEDGER_FILE,
    PRIVACY_FOLDER,
    Promise,
    declared_sizes,
    keeps_validation_back,
    make_promise,
    promise_record,
    released_rows,
    run_draw,
)
from fedrec.simulation.progress import Progress
from fedrec.simulation.world import Stage, World, queries

NOT_MASKED = (
    "secure aggregation is off, so the coordinator sees each shop's sum with only that shop's share of the noise: "
    "this run isn't protected from the coordinator"
)


@dataclass(frozen=True, repr=False)
class Served:
    """What one private column serves, of its first draw: enough to write the lists and to serve them again.

    Attributes:
        model, state: the private model and its shared arrays.
        blends: by place of the roster.
        scores: shop -> float32 (num_rows, list_length), of the lists.
        rounds: of the first draw.
    """

    model: Recommender
    state: State
    blends: tuple[Blend, ...]
    scores: dict[str, np.ndarray]
    rounds: tuple[RoundRecord, ...]


@dataclass(repr=False)
class PrivateColumns:
    """All columns under differential privacy.

    Attributes:
        items: column -> shop -> int32 (num_draws, num_rows, list_length), positions in the shop's catalogue.
        decisions: personalised column -> shop -> (decision, reason), of the first draw.
        served: of the wanted main column; None where that is no private one.
        record: the record's "privacy" entry; None without an epsilon.
    """

    items: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    decisions: dict[str, dict[str, tuple[str, str]]] = field(default_factory=dict)
    served: Served | None = None
    record: dict[str, Any] | None = None


@dataclass(frozen=True, repr=False)
class _Released:
    """One draw's outcome: the private model, its shared arrays, its scorer, and the arrays as a factor."""

    model: Recommender
    state: State
    scorer: Scorer
    factor: ReleasedFactor | None


@dataclass(frozen=True, repr=False)
class _AtShop:
    """What one draw comes to at one shop: its decision and blend, and by column family its lists and their scores."""

    choice: Choice
    blend: Blend
    items: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]


class _Maker:
    """Runs the draws of one comparison and gathers their lists."""

    def __init__(
        self, settings: SimulationSettings, world: World, chosen: Chosen, run_dir: Path, main: str, progress: Progress
    ) -> None:
        self.settings, self.world, self.chosen, self.main = settings, world, chosen, main
        self.made = PrivateColumns()
        self._run_dir, self._progress = run_dir, progress
        self._rows: Sequence[sparse.csr_matrix] = released_rows(settings, world)
        limit, seed = settings.evaluation.max_test_shoppers_per_shop, settings.seed
        self._asked = [queries(shop, Stage.FINAL, limit=limit, seed=seed) for shop in world.shops]
        self._validation = [queries(shop, Stage.CHOOSE, limit=limit, seed=seed) for shop in world.shops]
        self._alone_deep: dict[int, np.ndarray] = {}
        self._alone: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # lists of shops that stay local: the same each draw

    def run(self, promise: Promise, families: Sequence[str], *, keep_ledgers: bool) -> dict[str, Any]:
        """All draws of one model under one epsilon; what the record says of it."""
        about: dict[str, Any] = {}
        draws: list[list[_AtShop]] = []
        for draw in range(self.settings.privacy.noise_draws):
            trained = run_draw(
                self.settings,
                self.world,
                promise,
                self._rows,
                self._run_dir,
                column=families[0],
                draw=draw,
                keep_ledgers=keep_ledgers and draw == 0,
                progress=self._progress,
            )
            released = self._released(promise.model, trained.state, families)
            self._progress.phase(f"epsilon {promise.name}: rank", len(self.world.shops))
            draws.append([self._shop(place, released, families) for place in range(len(self.world.shops))])
            if draw == 0:
                about = promise_record(promise, trained, guarantee_of(promise.spec, is_masked=self.settings.is_masked))
                self._keep_main(promise, trained, draws[0], families)
        for family in families:
            column = noisy_column(family, promise.spec.epsilon)
            self.made.items[column] = {
                shop.name: np.stack([of_draw[place].items[family] for of_draw in draws])
                for place, shop in enumerate(self.world.shops)
            }
            if family == "federated_dp_personal":
                self.made.decisions[column] = self._decisions([[at.choice for at in of_draw] for of_draw in draws])
        return about

    def _keep_main(self, promise: Promise, trained: Trained, first: Sequence[_AtShop], families: Sequence[str]) -> None:
        """Remember what the main column serves, if it is one of these."""
        for family in families:
            if noisy_column(family, promise.spec.epsilon) == self.main:
                is_personal = family == "federated_dp_personal"
                blends = tuple(at.blend if is_personal else {"global": 1.0} for at in first)
                scores = {shop.name: at.scores[family] for shop, at in zip(self.world.shops, first, strict=True)}
                self.made.served = Served(promise.model, trained.state, blends, scores, trained.rounds)

    def _released(self, model: Recommender, state: State, families: Sequence[str]) -> _Released:
        is_wide = "federated_dp_personal" in families and has_whole_space(model) and self.world.whole.is_small_enough
        factor = released_factor(model, state) if is_wide else None
        return _Released(model, state, model.fit(state, self.world.public), factor)

    def _shop(self, place: int, released: _Released, families: Sequence[str]) -> _AtShop:
        """What one shop decides and lists from one release."""
        asked, k, seed = self._asked[place], max(self.settings.evaluation.ks), self.settings.seed
        parts = self._components(place, Stage.FINAL, released)
        choice, blend = Choice(True, "", None), parts.private_blend()
        if "federated_dp_personal" in families and not (choice := self._decide(place, released)).joins:
            blend = self.chosen.local_blends[place]
        items, scores = {}, {}
        for family in families:
            if not len(asked.rows):
                listed = np.empty((0, k), np.int32), np.empty((0, k), np.float32)
            elif family != "federated_dp_personal":
                listed = rank(shared_scorer(self.world, released.scorer, place), asked, k, seed=seed)
            elif choice.joins:
                listed = rank(parts.blend(blend), asked, k, seed=seed)
            else:
                if place not in self._alone:
                    self._alone[place] = rank(parts.blend(blend), asked, k, seed=seed)
                listed = self._alone[place]
            items[family], scores[family] = listed
        self._progress.advance()
        return _AtShop(choice, blend, items, scores)

    def _decide(self, place: int, released: _Released) -> Choice:
        num_shoppers = len(self.world.shops[place].shoppers)
        if not keeps_validation_back(self.settings, self.world.shops[place]):
            return Choice(True, "small by its declared size: joins by the size rule", None)
        if released.factor is not None and released.factor.worth(num_shoppers) < LEAST_WORTH:
            return Choice(False, SAYS_MORE, None)
        asked = self._validation[place]
        alone = joined = np.empty(0)
        if asked.targets.nnz:
            parts = self._components(place, Stage.CHOOSE, released)
            joined = judge(parts.blend(parts.private_blend()), asked, k=DECISION_K, seed=self.settings.seed)
            if place not in self._alone_deep:
                served = parts.blend(self.chosen.local_blends[place])
                self._alone_deep[place] = judge(served, asked, k=DECISION_K, seed=self.settings.seed)
            alone = self._alone_deep[place]
        return decide(alone, joined, self.settings.personalisation)

    def _components(self, place: int, stage: Stage, released: _Released) -> Components:
        return components(
            self.world,
            place,
            stage,
            local=self.chosen.local,
            shared=released.model,
            state=released.state,
            scorer=released.scorer,
            global_share=PRIVATE_GLOBAL_SHARE,
            released=released.factor,
        )

    def _decisions(self, choices: Sequence[Sequence[Choice]]) -> dict[str, tuple[str, str]]:
        """Per shop the first draw's decision, and in how many draws it joins where they differ."""
        decisions = {}
        for place, shop in enumerate(self.world.shops):
            first, joining = choices[0][place], sum(of_draw[place].joins for of_draw in choices)
            reason = first.reason
            if 0 < joining < len(choices):
                reason += f"; joins in {joining} of {len(choices)} noise draws"
            decisions[shop.name] = ("joins" if first.joins else "stays local", reason)
        return decisions


def check_promises(settings: SimulationSettings, world: World, model: Recommender) -> None:
    """Make every promise once, so that one that cannot be made is refused before anything is written or tuned.

    Args:
        model: as the scenario names it.
    Raises:
        PrivacyError, ConfigError: a promise cannot be made to these shops, or not with this model.
    """
    wanted = [family for family in PRIVATE_COLUMNS if family in settings.evaluation.columns]
    models = [model] if wanted != ["dp_popularity"] else []
    if "dp_popularity" in wanted:
        models.append(load_model("popularity"))
    for epsilon in sorted(settings.privacy.epsilons):
        for one in models:
            promise = make_promise(settings, world, one, epsilon)
            spec, schedule = promise.spec, promise.schedule
            terms = Terms(
                tuple(shop.name for shop in world.shops),
                spec.min_shops,
                privacy=spec,
                schedule=schedule,
                shop_shoppers=declared_sizes(settings, world, promise),
            )
            # Later rounds may be wider; their shops check that again.
            if (first := promise.model.plan_round(0, State(), world.public)) is not None:
                for index in range(len(schedule)):
                    terms.check_residual(index, first.layout.size)


def private_columns(
    settings: SimulationSettings,
    world: World,
    chosen: Chosen,
    model: Recommender,
    run_dir: Path,
    *,
    main: str,
    progress: Progress,
) -> PrivateColumns:
    """Every wanted column under differential privacy; none without an epsilon.

    Args:
        chosen: with the blends that shops serve alone.
        model: as the scenario names it, not tuned.
        main: the comparison's main column.
    Raises:
        PrivacyError: a promise cannot be made; nothing was released under it.
    """
    if not settings.privacy.epsilons:
        return PrivateColumns()
    maker = _Maker(settings, world, chosen, run_dir, main, progress)
    wanted = [family for family in PRIVATE_COLUMNS if family in settings.evaluation.columns]
    runs = []
    for epsilon in sorted(settings.privacy.epsilons):
        about: dict[str, Any] = {"epsilon": epsilon}
        if "dp_popularity" in wanted:
            promise = make_promise(settings, world, load_model("popularity"), epsilon)
            about["popularity"] = maker.run(promise, ["dp_popularity"], keep_ledgers=False)
        if federated := [family for family in wanted if family != "dp_popularity"]:
            promise = make_promise(settings, world, model, epsilon)
            about["federated"] = maker.run(promise, federated, keep_ledgers=True)
            about["ledger"] = f"{PRIVACY_FOLDER}/eps-{epsilon_name(epsilon)}/{LEDGER_FILE}"
        runs.append(about)
    maker.made.record = _record(settings, world, runs)
    return maker.made


def _record(settings: SimulationSettings, world: World, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The record's "privacy" entry: what holds for all epsilons, then each of them."""
    privacy = settings.privacy
    spec = next(run[name]["spec"] for run in runs for name in ("federated", "popularity") if name in run)
    kept_back = [shop.name for shop in world.shops if keeps_validation_back(settings, shop)]
    return {
        "unit": UNIT,
        "mode": str(privacy.mode),
        "delta": privacy.delta,
        "is_benchmark": privacy.benchmark,
        "is_masked": settings.is_masked,
        "not_protected": NOT_MASKED if privacy.mode is Mode.DISTRIBUTED and not settings.is_masked else "",
        "public_shoppers": spec["public_shoppers"],
        "public_inputs": (
            "the number of shoppers, where the scenario declares none, is the data's own, rounded to one digit, and "
            "counts as declared, as each shop's size does; item list and texts likewise"
        ),
        "max_shops_per_person": privacy.max_shops_per_person,
        "noise_draws": privacy.noise_draws,
        "noise": "from the operating system's randomness: figures differ a little from run to run",
        "parameters": "by public rules; nothing is tuned on shoppers' data",
        "joins": (
            "a shop of at least 100 declared shoppers keeps its validation events out of the release and tests on "
            "them; a smaller one joins by the size rule"
        ),
        "keep_validation_back": kept_back,
        "runs": list(runs),
    }
