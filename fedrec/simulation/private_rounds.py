"""The federation's rounds under a promise: calibrated noise, parameters by public rules, a fresh ledger every draw.

A simulation repeats the private rounds to learn how much the noise matters; every repetition (a *draw*) is a federation
of its own, whose shops pay the whole promise from new ledgers. Each epsilon's first draw keeps its ledgers on disk.

A draw that was interrupted between its rounds and is masked starts anew when the run is resumed: its ledgers, keys,
anchors and checkpoint go, and the shops of the new draw pay the promise from ledgers of their own. Masks are used once
and their keys are in memory, so the old round could only be repeated under other masks, which is a second charge that
no budget covers. Throwing it away is right in a simulation alone, where draws are separate federations by design: all
that depended on the old draw lay in the folder that goes, since model, lists, figures and report are written after all
draws. What is left of it, where it was asked for, are the coordinator's messages, marked as of an earlier attempt.
A finished draw is kept, never drawn again: its ledgers hold what its model cost. Without masks the interrupted round
goes on too: shops that were charged for it send the stored bytes again, at no further charge.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from fedrec.config import SimulationSettings
from fedrec.data.shops import ShopData
from fedrec.errors import BadAssumption, StoreError
from fedrec.federation.anchors import shop_keys
from fedrec.federation.checkpoint import read_checkpoint
from fedrec.federation.plan import RoundPlan
from fedrec.federation.run_record import RoundRecord
from fedrec.federation.terms import Terms
from fedrec.flower.engines import Federation, RunOptions, Trained
from fedrec.models import private_model, private_schedule, settings_of
from fedrec.models.recommender import Recommender, State
from fedrec.privacy import accounting
from fedrec.privacy.mechanisms import Schedule, outlook, residual_delta
from fedrec.privacy.settings import epsilon_name
from fedrec.privacy.spec import PrivacySpec
from fedrec.secure_aggregation.keys import IdentityKey
from fedrec.secure_aggregation.parameters import Parameters
from fedrec.shop.node import IN_MEMORY, simulated_identities
from fedrec.shop.personalise import keeps_validation
from fedrec.simulation.coordinator_view import CoordinatorView
from fedrec.simulation.progress import Progress
from fedrec.simulation.rounds import CHECKPOINT, run_id_of, run_rounds, secure_parameters
from fedrec.simulation.world import Stage, World, training_rows

PRIVACY_FOLDER = "privacy"
LEDGER_FILE = "ledger.sqlite"
ANCHORS_FOLDER = "anchors"
_ACCOUNTS_SHOWN = (1, 2, 3)
_MOST_POINTS = 50


@dataclass(frozen=True)
class Promise:
    """One model under one epsilon: everything that is public before its first round.

    Attributes:
        spec: what is promised.
        schedule: the noisy sums in round order.
        model: its private variant, with settings by rule.
    """

    spec: PrivacySpec
    schedule: Schedule
    model: Recommender

    @property
    def name(self) -> str:
        """The epsilon as columns and folders write it."""
        return epsilon_name(self.spec.epsilon)

    @cached_property
    def spent(self) -> dict[int, float]:
        """Epsilon of the first so many releases, after each of them; of long schedules after some. All of it public."""
        delta, total = self.spec.delta - residual_delta(self.spec), len(self.schedule)
        counts = np.unique(np.linspace(1, total, min(total, _MOST_POINTS)).round().astype(int)).tolist()
        return accounting.epsilon_after(self.schedule, counts, delta)


def make_promise(settings: SimulationSettings, world: World, model: Recommender, epsilon: float) -> Promise:
    """Calibrate the noise and let the rules choose the model's parameters; nothing here looks at an event.

    Args:
        model: as the scenario names it, not tuned.
        epsilon: one of the scenario's.
    Raises:
        PrivacyError: the promise cannot be made to these shops, or the model has no private variant.
    """
    spec = settings.privacy.spec(
        epsilon,
        num_shops=len(world.shops),
        num_shoppers=world.account["shoppers"],
        least_answers=settings.federation.min_shops,
        is_masked=settings.is_masked,
    )
    schedule = private_schedule(model, spec, len(world.shops))
    return Promise(spec, schedule, private_model(model, outlook(schedule, spec, len(world.shops)), world.public))


def declared_sizes(settings: SimulationSettings, world: World, promise: Promise) -> tuple[int, ...]:
    """Declared shoppers of each shop, in roster order, where shops take steps by themselves; none where they do not.

    Raises:
        BadAssumption: a shop declares none, and the run is no benchmark.
    """
    if not any(release.local_steps for release in promise.schedule):
        return ()
    undeclared = [shop.name for shop in world.shops if shop.name not in settings.privacy.shop_shoppers]
    if undeclared and not settings.privacy.benchmark:
        raise BadAssumption(
            f"privacy.shop_shoppers lacks {len(undeclared)} shops, the first {undeclared[0]!r}: in a local update a "
            "shop's declared size leaves without noise, so it must not come from the data; declare every shop's, or "
            "say that it is a benchmark (privacy.benchmark)"
        )
    return tuple(settings.privacy.declared_shoppers(shop.name, len(shop.shoppers)) for shop in world.shops)


def keeps_validation_back(settings: SimulationSettings, shop: ShopData) -> bool:
    """Whether the shop, by its declared size, releases nothing about its validation events and tests on them."""
    return keeps_validation(settings.privacy.declared_shoppers(shop.name, len(shop.shoppers)))


def released_rows(settings: SimulationSettings, world: World) -> list[sparse.csr_matrix]:
    """What every shop contributes, in the federation's item space and roster order.

    Shops that test keep their validation events back; the others contribute all they may learn from.
    """
    rows = []
    for shop in world.shops:
        stage = Stage.CHOOSE if keeps_validation_back(settings, shop) else Stage.FINAL
        rows.append(shop.shared(training_rows(shop, stage), world.public.num_items))
    return rows


def run_draw(
    settings: SimulationSettings,
    world: World,
    promise: Promise,
    rows: Sequence[sparse.csr_matrix],
    run_dir: Path,
    *,
    column: str,
    draw: int,
    keep_ledgers: bool,
    progress: Progress,
) -> Trained:
    """One federation under the promise, through Flower and the door, with noise and ledgers of its own.

    Args:
        rows: from `released_rows`.
        column: what it is for, in the name of the coordinator's view.
        draw: its number, from 0.
        keep_ledgers: leave the shops' ledgers in ``privacy/eps-<epsilon>/ledger.sqlite`` of the run directory, and go
            on with what an interrupted run left there, as the module says.
    """

    def on_reply(plan: RoundPlan, heard: int) -> None:
        if heard == 1:
            which = f"epsilon {promise.name}, draw {draw + 1} of {settings.privacy.noise_draws}"
            progress.phase(f"{which}: {plan.spec.name}", len(plan.terms.roster))
        progress.advance()

    def on_round(record: RoundRecord, state: State) -> None:
        # Neither a loss nor a figure on raw data: what the rounds cost is public.
        if (spent := promise.spent.get(record.index + 1)) is not None:
            progress.result(f"round {record.index + 1} of {len(promise.schedule)}: epsilon {spent:.3g} spent")

    folder = run_dir / PRIVACY_FOLDER / (f"eps-{promise.name}" if keep_ledgers else "draw")
    is_shared = settings.federation.workers > 0 or settings.federation.engine == "ray"
    url = IN_MEMORY
    if keep_ledgers or is_shared:
        if not keep_ledgers or (settings.is_masked and not _is_finished(folder / CHECKPOINT, promise)):
            _remove(folder)
        folder.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{(folder / LEDGER_FILE).absolute()}"
    roster = tuple(shop.name for shop in world.shops)
    anchors = folder / ANCHORS_FOLDER
    identities: Sequence[IdentityKey] = ()
    if settings.is_masked:
        identities = shop_keys(anchors, len(roster)) if keep_ledgers else simulated_identities(len(roster))
    terms = Terms(
        roster=roster,
        min_shops=promise.spec.min_shops,
        run_id=f"{run_id_of(settings, world)}-{promise.model.name}-eps-{promise.name}-draw-{draw}",
        privacy=promise.spec,
        schedule=promise.schedule,
        secure=_secure(roster, identities, promise.spec),
        shop_shoppers=declared_sizes(settings, world, promise),
    )
    federation = Federation(
        promise.model,
        world.public,
        terms,
        rows,
        ledger_url=url,
        anchor_dir=anchors if keep_ledgers and not is_shared else None,
        identities=identities,
        shoppers=[shop.shoppers for shop in world.shops],
    )
    view = None
    if settings.federation.reveal_coordinator_view:
        view = CoordinatorView(run_dir, f"eps-{promise.name}/{column}-draw-{draw + 1}", is_masked=bool(identities))
    options = RunOptions(
        checkpoint=folder / CHECKPOINT if keep_ledgers else None,
        resume=True,
        on_round=on_round,
        on_reply=on_reply,
        on_message=view,
    )
    try:
        return run_rounds(settings, federation, options, run_dir)
    finally:
        if is_shared and not keep_ledgers:
            shutil.rmtree(folder, ignore_errors=True)


def promise_record(promise: Promise, trained: Trained, guarantee: str) -> dict[str, Any]:
    """What run.json says of one epsilon's model."""
    delta = promise.spec.delta
    most = promise.spec.max_shops_per_person  # every account's contribution is clipped to C / most
    of_account = tuple(
        dataclasses.replace(one, noise_multiplier=one.noise_multiplier * most) for one in promise.schedule
    )
    accounts = {str(k): accounting.epsilon(of_account, delta, memberships=k) for k in _ACCOUNTS_SHOWN}
    return {
        "model": promise.model.name,
        "settings": settings_of(promise.model),
        "guarantee": guarantee,
        "spec": dataclasses.asdict(promise.spec),
        "schedule": [release.to_json() for release in promise.schedule],
        "epsilon_by_accounts": accounts,
        "epsilon_by_round": [{"round": count, "epsilon": spent} for count, spent in promise.spent.items()],
        "rounds": [dataclasses.asdict(one) for one in trained.rounds],
    }


def _remove(folder: Path) -> None:
    """Remove what an interrupted draw left."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise StoreError(f"{folder}: an interrupted draw's files cannot be removed ({error.strerror})") from error


def _is_finished(checkpoint: Path, promise: Promise) -> bool:
    """Whether the draw that left this checkpoint has all of its releases."""
    return checkpoint.exists() and read_checkpoint(checkpoint).index == len(promise.schedule)


def _secure(roster: tuple[str, ...], identities: Sequence[IdentityKey], spec: PrivacySpec) -> Parameters | None:
    if not identities:
        return None
    return secure_parameters(roster, identities, min_shops=spec.min_shops, colluders=spec.colluders)
