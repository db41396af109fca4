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
from fedrec.federation.terms import Terms
from fedrec.models import load_model
from fedrec.models.recommender import Recommender, Scorer, State
from fedrec.privacy.settings import epsilon_name
from fedrec.privacy.spec import UNIT, Mode
from fedrec.shop.personalise import (
    PRIVATE_BLEND,
    PRIVATE_GLOBAL_SHARE,
    Blend,
    Choice,
    Components,
    decide,
    keeps_validation,
)
from fedrec.simulation.columns import Chosen, components, judge, rank, shared_scorer
from fedrec.simulation.private_rounds import (
    LEDGER_FILE,
    PRIVACY_FOLDER,
    Promise,
    make_promise,
    promise_record,
    released_rows,
    run_draw,
)
from fedrec.simulation.progress import Progress
from fedrec.simulation.world import Stage, World, queries

NOT_YET = (
    "until secure aggregation is on, the coordinator sees each shop's sum with only that shop's share of the noise: "
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


class _Maker:
    """Runs the draws of one comparison and gathers their lists."""

    def __init__(
        self, settings: SimulationSettings, world: World, chosen: Chosen, run_dir: Path, main: str, progress: Progress
    ) -> None:
        self.settings, self.world, self.chosen, self.main = settings, world, chosen, main
        self.made = PrivateColumns()
        self._run_dir, self._progress = run_dir, progress
        self._rows: Sequence[sparse.csr_matrix] = released_rows(world)
        limit, seed = settings.evaluation.max_test_shoppers_per_shop, settings.seed
        self._asked = [queries(shop, Stage.FINAL, limit=limit, seed=seed) for shop in world.shops]
        self._validation = [queries(shop, Stage.CHOOSE, limit=limit, seed=seed) for shop in world.shops]
        self._alone: dict[int, tuple[np.ndarray, np.ndarray]] = {}  # lists of shops that stay local: the same each draw

    def run(self, promise: Promise, families: Sequence[str], *, keep_ledgers: bool) -> dict[str, Any]:
        """All draws of one model under one epsilon; what the record says of it."""
        columns = [noisy_column(family, promise.spec.epsilon) for family in families]
        lists: dict[str, list[list[np.ndarray]]] = {column: [] for column in columns}
        choices: list[tuple[Choice, ...]] = []
        about: dict[str, Any] = {}
        for draw in range(self.settings.privacy.noise_draws):
            trained = run_draw(
                self.settings,
                self.world,
                promise,
                self._rows,
                self._run_dir,
                draw=draw,
                keep_ledgers=keep_ledgers and draw == 0,
                progress=self._progress,
            )
            if draw == 0:
                guarantee = self._terms(promise).guarantee
                about = promise_record(promise, trained, guarantee)
            scorer = promise.model.fit(trained.state, self.world.public)
            self._progress.phase(f"epsilon {promise.name}: rank", len(self.world.shops))
            found = [self._shop(place, promise.model, trained.state, scorer, families) for place in self._places()]
            choices.append(tuple(choice for choice, _ in found))
            for family, column in zip(families, columns, strict=True):
                lists[column].append([listed[family][0] for _, listed in found])
                if draw == 0 and column == self.main:
                    scores = {shop.name: listed[family][1] for shop, (_, listed) in self._by_shop(found)}
                    blends = tuple(self._blend(family, place, choices[0][place]) for place in self._places())
                    self.made.served = Served(promise.model, trained.state, blends, scores, trained.rounds)
        for family, column in zip(families, columns, strict=True):
            tables = zip(*lists[column], strict=True)  # by shop, its tables of all draws
            self.made.items[column] = {
                shop.name: np.stack(of_shop) for shop, of_shop in zip(self.world.shops, tables, strict=True)
            }
            if family == "federated_dp_personal":
                self.made.decisions[column] = self._decisions(choices)
        return about

    def _places(self) -> range:
        return range(len(self.world.shops))

    def _by_shop(self, values: Sequence[Any]) -> zip[tuple[Any, Any]]:
        return zip(self.world.shops, values, strict=True)

    def _terms(self, promise: Promise) -> Terms:
        roster = tuple(shop.name for shop in self.world.shops)
        return Terms(roster, promise.spec.min_shops, privacy=promise.spec, schedule=promise.schedule)

    def _shop(
        self, place: int, model: Recommender, state: State, scorer: Scorer, families: Sequence[str]
    ) -> tuple[Choice, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """What one shop decides and lists from one release."""
        choice = Choice(True, "", None)
        asked, k = self._asked[place], max(self.settings.evaluation.ks)
        if "federated_dp_personal" in families:
            choice = self._decide(place, model, state, scorer)
        listed = {}
        for family in families:
            if not len(asked.rows):
                listed[family] = np.empty((0, k), np.int32), np.empty((0, k), np.float32)
                continue
            if not choice.joins and family == "federated_dp_personal":
                if place not in self._alone:
                    parts = self._components(place, Stage.FINAL, model, state, scorer)
                    self._alone[place] = rank(
                        parts.blend(self.chosen.local_blends[place]), asked, k, seed=self.settings.seed
                    )
                listed[family] = self._alone[place]
                continue
            served = shared_scorer(self.world, scorer, place)
            if family == "federated_dp_personal":
                served = self._components(place, Stage.FINAL, model, state, scorer).blend(PRIVATE_BLEND)
            listed[family] = rank(served, asked, k, seed=self.settings.seed)
        self._progress.advance()
        return choice, listed

    def _blend(self, family: str, place: int, choice: Choice) -> Blend:
        if family != "federated_dp_personal":
            return {"global": 1.0}
        return PRIVATE_BLEND if choice.joins else self.chosen.local_blends[place]

    def _decide(self, place: int, model: Recommender, state: State, scorer: Scorer) -> Choice:
        num_shoppers = len(self.world.shops[place].shoppers)
        if not keeps_validation(num_shoppers):
            return Choice(True, "small by its declared size: joins by the size rule", None)
        asked = self._validation[place]
        joined = np.empty(0)
        if asked.targets.nnz:
            parts = self._components(place, Stage.CHOOSE, model, state, scorer)
            joined = judge(parts.blend(PRIVATE_BLEND), asked, seed=self.settings.seed)
        return decide(self.chosen.alone[place], joined, self.settings.personalisation)

    def _components(self, place: int, stage: Stage, model: Recommender, state: State, scorer: Scorer) -> Components:
        return components(
            self.world,
            place,
            stage,
            local=self.chosen.local,
            shared=model,
            state=state,
            scorer=scorer,
            global_share=PRIVATE_GLOBAL_SHARE,
        )

    def _decisions(self, choices: Sequence[tuple[Choice, ...]]) -> dict[str, tuple[str, str]]:
        """Per shop the first draw's decision, and in how many draws it joins where they differ."""
        decisions = {}
        for place, shop in enumerate(self.world.shops):
            first, joining = choices[0][place], sum(of_draw[place].joins for of_draw in choices)
            reason = first.reason
            if 0 < joining < len(choices):
                reason += f"; joins in {joining} of {len(choices)} noise draws"
            decisions[shop.name] = ("joins" if first.joins else "stays local", reason)
        return decisions


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
    kept_back = [shop.name for shop in world.shops if keeps_validation(len(shop.shoppers))]
    return {
        "unit": UNIT,
        "mode": str(privacy.mode),
        "delta": privacy.delta,
        "is_benchmark": privacy.benchmark,
        "not_protected": NOT_YET if privacy.mode is Mode.DISTRIBUTED else "",
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
