"""The coordinator's side of a run: one open round at a time, sums added in roster order.

With secure aggregation uploads are added modulo a power of two, in any order (`CoordinatorSession`). Else the total
does not depend on the order of arrival either: a release that comes before those of shops ahead of it in
the roster waits until they have answered or are known to be unavailable. Memory is one accumulator plus the
releases that wait.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from fedrec.errors import BadMessage, ConfigError, NotFinite, ProtocolError, TooFewShops
from fedrec.federation.plan import MOST_ATTEMPTS, RoundPlan, canonical_json, items_digest, model_settings
from fedrec.federation.release import read_release, wire_dtype
from fedrec.federation.shop_side import is_finite
from fedrec.federation.terms import Terms
from fedrec.models.recommender import LOSS, WEIGHT, PublicInputs, Recommender, RoundKind, State
from fedrec.secure_aggregation.coordinator_session import CoordinatorSession


@dataclass(frozen=True)
class ClosedRound:
    """What is known when a round is over.

    Attributes:
        index, name: of the round.
        plan_digest: hexadecimal.
        answered: shops in the sum, in roster order.
        failed: shops that were asked and are not.
        loss: the mean training loss of the shoppers in the sum, where the model sends it.
    """

    index: int
    name: str
    plan_digest: str
    answered: tuple[str, ...]
    failed: tuple[str, ...]
    loss: float | None = None


class Coordinator:
    """Plans rounds, adds up releases, moves the shared arrays. No input or output of its own.

    ``next_plan`` opens a round, ``receive`` and ``mark_unavailable`` fill it, ``close`` ends it; ``state``,
    ``index`` and ``attempt`` are the shared arrays, the next round and how often it failed, between rounds.
    """

    def __init__(
        self,
        model: Recommender,
        public: PublicInputs,
        terms: Terms,
    ) -> None:
        """Args:
        model: what is trained; a frozen dataclass of its settings.
        public: the federation's item space.
        terms: who takes part, and what is promised.
        """
        self.model = model
        self.public = public
        self.terms = terms
        self.roster = terms.roster
        self.state: State = {}
        self.index = 0
        self._settings = model_settings(model)
        self._items_digest = items_digest(public)
        self._position_of = {shop: position for position, shop in enumerate(self.roster)}
        self.secure = None if terms.secure is None else CoordinatorSession(terms.secure, terms.run_id)
        self.asked: tuple[str, ...] = ()
        self.attempt = 0
        self._plan: RoundPlan | None = None
        self._is_complete = False

    def identity(self) -> str:
        """Hexadecimal sha256 of what a checkpoint must agree with: run, model, items, roster, bounds."""
        return hashlib.sha256(
            canonical_json([self.model.name, self._settings, self._items_digest, self.terms.to_json()])
        ).hexdigest()

    def restore(self, index: int, state: State, attempt: int = 0) -> None:
        """Go on after ``index`` finished rounds with their shared arrays, and failed attempts at the next one."""
        if self._plan is not None:
            raise ProtocolError(f"round {self.index} is open: a run is restored between rounds")
        self.index, self.state, self.attempt, self._is_complete = index, dict(state), attempt, False

    def rounds_to_set_up(self) -> int:
        """For how many rounds keys must be dealt (`secure_round.set_up`) before the next plan; 0 = none."""
        if self.secure is None or self.secure.covers(self.index) or self._is_complete:
            return 0
        if self.model.plan_round(self.index, self.state, self.public) is None:
            return 0
        left = len(self.terms.schedule) - self.index
        return left if left > 0 else self.secure.parameters.rounds_per_setup

    def next_plan(self) -> RoundPlan | None:
        """Open the next round; None when the model is trained.

        Raises:
            ProtocolError: a round is open, or secure aggregation has no keys for the next.
        """
        if self._plan is not None:
            raise ProtocolError(f"round {self.index} is open: close it before the next")
        if self._is_complete:
            return None
        spec = self.model.plan_round(self.index, self.state, self.public)
        if spec is None:
            self._is_complete = True
            return None
        plan = RoundPlan(
            index=self.index,
            spec=spec,
            model_name=self.model.name,
            model_settings=self._settings,
            items_digest=self._items_digest,
            terms=self.terms,
            setup="" if self.secure is None else self.secure.setup_digest.hex(),
            attempt=self.attempt,
        )
        if self.secure is not None:
            self.secure.open_round(self.index, plan.digest, spec.layout.size, wire_dtype(plan))
        self._plan = plan
        self._total = np.zeros(0 if self.secure is not None else spec.layout.size, wire_dtype(plan))
        self._waiting: dict[int, np.ndarray] = {}
        self.asked = self.terms.asked(spec.kind, self.index, plan.attempt)
        self._is_heard = [shop not in self.asked for shop in self.roster]
        self._answered: set[int] = set()
        self._next_to_add = 0
        return self._plan

    def receive(self, shop: str, data: bytes) -> bool:
        """Take one shop's release.

        Returns:
            True when it counts; False when this shop has been heard in this round already.
        Raises:
            BadMessage: no round is open, the shop is not on the roster or was not asked, or the bytes are not a release
                for this plan.
        """
        plan = self._open_plan()
        position = self._position(shop)
        if shop not in self.asked:
            raise BadMessage(f"shop {shop!r} is not among the {len(self.asked)} that round {plan.index} asks")
        if self._is_heard[position]:
            return False
        received = read_release(data, plan)
        if self.secure is not None:
            self.secure.add_upload(shop, plan.digest, received.values)
        self._is_heard[position] = True
        self._answered.add(position)
        if self.secure is None:
            self._waiting[position] = received.values
            self._add_in_order()
        return True

    def mark_unavailable(self, shop: str) -> None:
        """The shop will not answer this round; nothing happens when it has answered."""
        self._open_plan()
        self._is_heard[self._position(shop)] = True
        self._add_in_order()

    def close(self) -> ClosedRound:
        """End the round and move the shared arrays; with secure aggregation after `secure_round.unmask`.

        Raises:
            TooFewShops: fewer than ``min_shops`` answered; the shared arrays and the index stay as they were. Where a
                round asks a part of the shops, the next attempt at it asks another draw.
            NotFinite: the sum over the shops overflowed, or the shared arrays would; they stay as they were.
        """
        plan = self._open_plan()
        self._is_heard = [True] * len(self.roster)
        self._add_in_order()
        self._plan = None
        total = self._total if self.secure is None else self.secure.total()
        self._total = np.zeros(0)
        if len(self._answered) < self.terms.min_shops:
            if plan.terms.draws_shops(plan.spec.kind):
                self.attempt = min(self.attempt + 1, MOST_ATTEMPTS)
            raise TooFewShops(
                f"round {plan.index} ({plan.spec.name}): {len(self._answered)} of {len(self.asked)} "
                f"shops answered, at least {self.terms.min_shops} are needed (min_shops); finished rounds are kept"
            )
        ring = plan.terms.ring(plan.index)
        if ring is not None:
            total = ring.decode(ring.centre(total))
        if not is_finite(total):
            raise NotFinite(f"round {plan.index} ({plan.spec.name}): the sum over the shops is not finite")
        noise_sd = plan.terms.noise_sd(plan.index, len(self._answered))
        moved = self.model.advance(plan.spec, self.state, total, self.public, noise_sd=noise_sd)
        if not all(array.dtype.kind != "f" or is_finite(array) for array in moved.values()):
            raise NotFinite(
                f"round {plan.index + 1} ({plan.spec.name}): the shared arrays would leave the finite numbers; "
                "finished rounds are kept; give smaller learning rates"
            )
        self.state = moved
        self.index += 1
        self.attempt = 0
        return ClosedRound(
            index=plan.index,
            name=plan.spec.name,
            plan_digest=plan.digest.hex(),
            answered=tuple(shop for i, shop in enumerate(self.roster) if i in self._answered),
            failed=tuple(shop for shop in self.asked if self._position_of[shop] not in self._answered),
            loss=_mean_loss(plan, total) if len(self._answered) > 1 else None,  # one shop's is its own affair
        )

    def abandon(self) -> None:
        """Give the open round up, if there is one; shared arrays and index stay as they were."""
        self._plan, self._total = None, np.zeros(0)

    @property
    def num_waiting(self) -> int:
        """Releases held back until shops before them have been heard."""
        return len(self._waiting) if self._plan is not None else 0

    def _add_in_order(self) -> None:
        """Add what can be added without leaving roster order."""
        while self._next_to_add < len(self.roster) and self._is_heard[self._next_to_add]:
            values = self._waiting.pop(self._next_to_add, None)
            if values is not None:
                self._total += values
            self._next_to_add += 1

    def _open_plan(self) -> RoundPlan:
        if self._plan is None:
            raise BadMessage("no round is open: the message is late or early")
        return self._plan

    def _position(self, shop: str) -> int:
        if shop not in self._position_of:
            raise BadMessage(f"shop {shop!r} is not on the roster of {len(self.roster)} shops")
        return self._position_of[shop]


def _mean_loss(plan: RoundPlan, total: np.ndarray) -> float | None:
    """The round's training loss, from the sums over all shops; None where the model sends none."""
    sums = plan.spec.layout.split(total)
    if plan.spec.kind is not RoundKind.LOCAL_UPDATE or not {LOSS, WEIGHT} <= sums.keys() or not sums[WEIGHT][0] > 0:
        return None
    return float(sums[LOSS][0] / sums[WEIGHT][0])


def check_same_run(expected: str, found: str) -> None:
    """Refuse a checkpoint of another run."""
    if expected != found:
        raise ConfigError(
            "the checkpoint belongs to another run (model, settings, items, roster or data differ): "
            "resume with the configuration it was made with, or choose another output folder"
        )
