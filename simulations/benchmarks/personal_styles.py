"""What each style of personalisation adds to a neural federation.

Run: python simulations/benchmarks/personal_styles.py SCENARIO [--model multvae] [--set KEY=VALUE ...] [--quick]
One federation a stage, then each shop on its own: nothing (the shared model; models of pairs fold vectors in: FedRecon,
Singhal et al. 2021), the output layer fine-tuned (FedRep, Collins et al. 2021), the item tables (PFedRec, Zhang et al.
2023), or all of the network, each for so many epochs, and served as it is or mixed with the shared arrays by the shop's
size; last, each shop's choice among blends of the shared model, the best fine-tuned one and popularity. Epochs, share
and blends are chosen on validation by models that saw no validation events; the figures are of models that did, on
test. Non-private: research mode.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from fedrec.config import SimulationSettings, settings_from_options
from fedrec.evaluation.intervals import macro_interval, mean_interval
from fedrec.models import load_model
from fedrec.models.neural import FINE_TUNE, NeuralModel
from fedrec.models.recommender import Scorer, State
from fedrec.shop.personalise import JOINED_BLENDS, Components, PersonalisationSettings
from fedrec.simulation.columns import judge, judge_blends, objective, shared_scorer
from fedrec.simulation.world import Queries, Stage, World, prepare, queries, training_rows
from fedrec.testing.planted import train_federated

EPOCHS = (1, 4)
BLENDS = tuple(blend for blend in JOINED_BLENDS if "local" not in blend)
Style = tuple[str, int, bool]
"""What is fine-tuned, for how many epochs, and whether the shared arrays are mixed in by the shop's size."""


def with_settings(model: NeuralModel, **changes: Any) -> NeuralModel:
    """The model with some settings changed."""
    return dataclasses.replace(model, settings=dataclasses.replace(model.settings, **changes))  # type: ignore[type-var]


class Stand:
    """All that one stage's comparison needs: the trained federation, and whose lists are scored."""

    def __init__(self, world: World, model: NeuralModel, stage: Stage, seed: int) -> None:
        self.world, self.model, self.stage, self.seed = world, model, stage, seed
        tables = [shop.shared(training_rows(shop, stage), world.public.num_items) for shop in world.shops]
        self.state: State = train_federated(model, tables, world.public)
        self.scorer = model.fit(self.state, world.public)
        self.asked: list[Queries] = [queries(shop, stage) for shop in world.shops]
        self._tuned: dict[tuple[int, str, int], State] = {}  # of the last shop, for both shares

    def shared(self) -> list[np.ndarray]:
        """NDCG@10 per shopper of each shop with the shared model as it is."""
        return [self._judge(place, shared_scorer(self.world, self.scorer, place)) for place in self._places()]

    def tuned(self, *styles: Style) -> list[list[np.ndarray]]:
        """The same by style, after fine-tuning in each shop."""
        by_shop = [[self._judge(place, self.own(place, style)) for style in styles] for place in self._places()]
        return [list(values) for values in zip(*by_shop, strict=True)]

    def own(self, place: int, style: Style) -> Scorer:
        """One shop's fine-tuned model."""
        what, epochs, is_mixed = style
        shop, public = self.world.shops[place], self.world.shop_public[place]
        projected = self.model.project(self.state, shop.positions, public)
        if (place, what, epochs) not in self._tuned:
            model = with_settings(self.model, fine_tune=what, fine_tune_epochs=epochs)
            own = model.own_statistics(projected, training_rows(shop, self.stage), public)
            self._tuned = {(place, what, epochs): own}
        share = PersonalisationSettings().global_share(len(shop.shoppers)) if is_mixed else 0.0
        own = self._tuned[place, what, epochs]
        return self.model.fit(self.model.mix(projected, own, global_share=share), public)

    def blended(self, style: Style) -> list[list[np.ndarray]]:
        """By shop and blend of `BLENDS`."""
        return [
            judge_blends(
                Components(
                    {
                        "global": lambda place=place: shared_scorer(self.world, self.scorer, place),  # type: ignore[misc]
                        "mixed": lambda place=place: self.own(place, style),  # type: ignore[misc]
                    },
                    training_rows(self.world.shops[place], self.stage),
                    self.world.shop_public[place],
                ),
                BLENDS,
                self.asked[place],
                seed=self.seed,
            )
            for place in self._places()
        ]

    def _judge(self, place: int, scorer: Scorer) -> np.ndarray:
        return judge(scorer, self.asked[place], seed=self.seed)

    def _places(self) -> range:
        return range(len(self.world.shops))


def chosen_blends(values: list[list[np.ndarray]], least: int) -> list[int]:
    """Each shop's best blend on validation; shops too small to tell take the best of all shops together."""
    together = [objective([of_shop[number] for of_shop in values]) for number in range(len(BLENDS))]
    common = int(np.argmax(together))
    return [
        common if len(of_shop[0]) < least else int(np.argmax([one.mean() for one in of_shop])) for of_shop in values
    ]


def row(
    name: str, settled: str, value: float | None, figures: list[np.ndarray], shared: list[np.ndarray]
) -> dict[str, Any]:
    """One line: what was chosen, its value on validation, NDCG@10 on test, and what it adds to the shared model."""
    judged = [(of, over) for of, over in zip(figures, shared, strict=True) if len(of)]
    gains = [of - over for of, over in judged]

    def rng() -> np.random.Generator:
        return np.random.default_rng(0)

    return {
        "style": name,
        "chosen": settled,
        "validation": value if value is None else round(value, 5),
        "ndcg@10, macro": macro_interval([of for of, _ in judged], rng=rng()).as_record(),
        "adds, macro": macro_interval(gains, rng=rng()).as_record(),
        "adds, micro": mean_interval(np.concatenate(gains), rng=rng()).as_record(),
    }


def compare(settings: SimulationSettings, epochs: tuple[int, ...]) -> list[Mapping[str, Any]]:
    """Choose on validation, measure on test."""
    model: Any = load_model(settings.model.name, settings.model.settings)
    world = prepare(settings)
    before = Stand(world, model, Stage.CHOOSE, settings.seed)
    tried: dict[Style, float] = {}
    for what, number in itertools.product(FINE_TUNE, epochs):
        styles = [(what, number, is_mixed) for is_mixed in (False, True)]
        tried |= zip(styles, map(objective, before.tuned(*styles)), strict=True)
    best = {what: max((style for style in tried if style[0] == what), key=lambda one: tried[one]) for what in FINE_TUNE}
    overall = max(best.values(), key=lambda one: tried[one])
    picks = chosen_blends(before.blended(overall), PersonalisationSettings().min_validation_shoppers)
    value = objective(before.shared())
    print(json.dumps({"tried": {str(style): round(found, 5) for style, found in tried.items()}}), flush=True)

    after = Stand(world, model, Stage.FINAL, settings.seed)
    shared = after.shared()
    rows: list[Mapping[str, Any]] = [row("none", "", value, shared, shared)]
    for what, style in best.items():
        settled = f"epochs: {style[1]}{', mixed with the shared' if style[2] else ''}"
        rows.append(row(what, settled, tried[style], after.tuned(style)[0], shared))
    blended = [of_shop[pick] for of_shop, pick in zip(after.blended(overall), picks, strict=True)]
    names = [" + ".join(f"{weight:g} {name}" for name, weight in BLENDS[pick].items()) for pick in picks]
    settled = "; ".join(f"{names.count(name)} x {name}" for name in sorted(set(names)))
    rows.append(row("blend", f"mixed = {overall[0]}: {settled}", None, blended, shared))
    return rows


def main() -> None:
    """Print one JSON line a style."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("scenario", nargs="?", default="simulations/scenarios/demo.toml")
    parser.add_argument("--source")
    parser.add_argument("--model", default="multvae")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--quick", action="store_true", help="a small synthetic set, few epochs")
    given = parser.parse_args()
    quick = {"data.synthetic.num_shoppers": 300, "data.synthetic.num_items": 150, "data.synthetic.num_shops": 3}
    options = {"model.name": given.model, "data.source": given.source}
    small = [f"{key}={value}" for key, value in quick.items()] + ["model.settings.rounds=2"] if given.quick else []
    settings = settings_from_options(given.scenario, options, [*small, *given.set])
    for line in compare(settings, (1,) if given.quick else EPOCHS):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
