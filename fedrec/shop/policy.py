"""What a shop is willing to take part in. The shop's own file decides; a coordinator can only ask for less."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedrec.errors import BadAssumption, ConfigError, RoundRefused
from fedrec.federation.enrolment import SHOP_NAME, Offer, roster_fingerprint
from fedrec.privacy.ledger_entries import Budget, Period
from fedrec.privacy.spec import Mode
from fedrec.secure_aggregation.keys import PublicKey

BUILT_IN = "fedrec.models."


@dataclass(frozen=True)
class Policy:
    """The limits of one shop.

    Attributes:
        max_epsilon: of one run; > 0.
        max_delta: likewise; in (0, 1).
        budget_epsilon, budget_delta: of all runs together, per shopper; what the ledger is begun with.
        budget_period: ``lifetime`` or ``year``.
        max_aborts: repeated rounds that one run may charge.
        allow_research: take part in runs that promise nothing. Never with real customers.
        require_masks: only under secure aggregation.
        min_shops: fewest shops of a sum.
        min_colluders: shops that must be assumed to work with the coordinator, at least; >= 0.
        max_rounds: noisy sums of one run, those of steps inside the shop included.
        max_sampling_rate: of a gradient step; in (0, 1].
        max_message_mb: of one message of the coordinator's, in MB of 2^20 bytes; a larger one is refused unread.
        models: classes (``package.module:Class``) that may be trained beside fedrec's own, which are always allowed.
        roster: fingerprint of the roster that the shop has confirmed; "" = none yet.
    """

    max_epsilon: float = 2.0
    max_delta: float = 1e-6
    budget_epsilon: float = 4.0
    budget_delta: float = 2e-6
    budget_period: str = "lifetime"
    max_aborts: int = 2
    allow_research: bool = False
    require_masks: bool = True
    min_shops: int = 3
    min_colluders: int = 1
    max_rounds: int = 200
    max_sampling_rate: float = 1.0
    max_message_mb: float = 1024.0
    models: tuple[str, ...] = ()
    roster: str = ""

    def __post_init__(self) -> None:
        self.budget()
        if not 0 < self.max_epsilon < math.inf or not 0 < self.max_delta < 1:
            raise BadAssumption(
                f"policy: max_epsilon = {self.max_epsilon}, max_delta = {self.max_delta}: give numbers above 0, delta "
                "below 1"
            )
        if not (self.min_shops >= 1 and self.min_colluders >= 0 and self.max_rounds >= 1):
            raise BadAssumption("policy: min_shops and max_rounds must be at least 1, min_colluders at least 0")
        if not 1 <= self.max_message_mb <= 2**20:
            raise BadAssumption(f"policy: max_message_mb = {self.max_message_mb}: from 1 to {2**20:,}")
        if not 0 < self.max_sampling_rate <= 1:
            raise BadAssumption(f"policy: max_sampling_rate = {self.max_sampling_rate}: above 0, at most 1")

    def budget(self) -> Budget:
        """What the shop's ledger is begun with."""
        return Budget(self.budget_epsilon, self.budget_delta, Period(self.budget_period), self.max_aborts)

    @property
    def max_message_bytes(self) -> int:
        """`max_message_mb` in bytes."""
        return int(self.max_message_mb * 2**20)

    def check(self, offer: Offer, *, shop: str, key: PublicKey) -> None:
        """Refuse an offer that asks for more; nothing of it was loaded before.

        Args:
            shop: this shop's name.
            key: its identity.
        Raises:
            RoundRefused: the first limit that the offer breaks, with both numbers.
        Guarantee: what passes names a model that is fedrec's own or listed, a promise within the limits, a roster with
            this shop's own key in it, and, once one was confirmed, that roster alone.
        """
        terms, keys = offer.read_terms(), offer.keys()
        for model in (offer.model, str(offer.settings.get("base", offer.model))):  # what a private variant trains
            if not (model.startswith(BUILT_IN) or model in self.models):
                raise RoundRefused(f"the coordinator asks for model {model!r}, which policy.models does not list")
        if keys.get(shop) != key:
            raise RoundRefused(f"the coordinator's roster has no shop {shop!r} with this shop's key: enrol again")
        found = roster_fingerprint(keys)
        if self.roster != found:
            known = f"policy.roster is {self.roster}" if self.roster else "no roster was confirmed"
            raise RoundRefused(
                f"the coordinator's roster of {len(keys)} shops ({', '.join(sorted(keys)[:8])}) has fingerprint "
                f"{found}; {known}: compare it with the other shops, then set policy.roster to it"
            )
        if terms.min_shops < self.min_shops:
            raise RoundRefused(f"sums over {terms.min_shops} shops; policy.min_shops is {self.min_shops}")
        if terms.secure is None and self.require_masks:
            raise RoundRefused("a run without secure aggregation; policy.require_masks is true")
        spec = terms.privacy
        if terms.secure is not None and terms.secure.colluders < self.min_colluders:
            raise RoundRefused(
                f"masks against {terms.secure.colluders} colluders; policy.min_colluders is {self.min_colluders}"
            )
        if spec is None:
            if not self.allow_research:
                raise RoundRefused("a run that promises nothing to shoppers; policy.allow_research is false")
            return
        if spec.epsilon > self.max_epsilon:
            raise RoundRefused(f"epsilon {spec.epsilon:g} is asked; policy.max_epsilon is {self.max_epsilon:g}")
        if spec.delta > self.max_delta:
            raise RoundRefused(f"delta {spec.delta:g} is asked; policy.max_delta is {self.max_delta:g}")
        if spec.is_benchmark:
            raise RoundRefused("a benchmark's promise, which protects nobody against colluding shops")
        if spec.mode is Mode.DISTRIBUTED and (spec.colluders < self.min_colluders or terms.secure is None):
            raise RoundRefused(
                f"shared noise against {spec.colluders} colluders, masks {'on' if terms.secure else 'off'}: it needs "
                f"masks, and policy.min_colluders is {self.min_colluders}"
            )
        if (num_sums := sum(release.num_sums for release in terms.schedule)) > self.max_rounds:
            raise RoundRefused(f"{num_sums} noisy sums are asked; policy.max_rounds is {self.max_rounds}")
        worst = max(release.sampling_rate for release in terms.schedule)
        if worst > self.max_sampling_rate:
            raise RoundRefused(
                f"sampling rate {worst:g} is asked; policy.max_sampling_rate is {self.max_sampling_rate:g}"
            )


def check_name(name: str) -> str:
    """A shop's or federation's name.

    Raises:
        ConfigError: it cannot be one.
    """
    if not SHOP_NAME.fullmatch(name):
        raise ConfigError(f"name {name!r}: letters, digits, '.', '_' and '-', at most 60, no blank in front")
    return name
