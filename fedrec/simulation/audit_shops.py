"""The shops of an audit: the real rounds, with what goes under the masks overheard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy import sparse

from fedrec.federation.coordinator_side import Coordinator
from fedrec.federation.plan import RoundPlan
from fedrec.federation.release import MakeNoise, read_release
from fedrec.federation.secure_round import Step, ask_all, set_up, unmask
from fedrec.federation.terms import Terms
from fedrec.models.recommender import PublicInputs
from fedrec.privacy.spec import Mode
from fedrec.secure_aggregation.keys import IdentityKey
from fedrec.secure_aggregation.shop_session import ShopSession
from fedrec.shop.masking import Masking
from fedrec.shop.node import shop_nodes, simulated_identities
from fedrec.simulation.crafted import Crafted
from fedrec.simulation.rounds import secure_parameters


class AuditedShops:
    """An audit's shops and coordinator in one process, secure aggregation included where noise is shared.

    What a shop is about to mask is overheard: colluders tell it, and the audit looks at it.
    """

    def __init__(
        self,
        model: Crafted,
        public: PublicInputs,
        terms: Terms,
        tables: Sequence[sparse.csr_matrix],
        make_noise: MakeNoise,
    ) -> None:
        """Args:
        model: whose rounds are run.
        public: its items.
        terms: what is claimed; secure aggregation is added where shops share the noise.
        tables: the shops' histories, in roster order.
        make_noise: the real source, but in tests.
        """
        identities: tuple[IdentityKey, ...] = ()
        if terms.privacy is not None and terms.privacy.mode is Mode.DISTRIBUTED:
            identities = simulated_identities(len(terms.roster))
            secure = secure_parameters(
                terms.roster, identities, min_shops=terms.min_shops, colluders=terms.privacy.colluders
            )
            terms = replace(terms, secure=secure)
        nodes = shop_nodes(model.trained, public, terms, tables, make_noise=make_noise, identities=identities)
        if terms.secure is not None:
            sessions = [
                ShopSession(terms.secure, node.name, identity, terms.run_id)
                for node, identity in zip(nodes, identities, strict=True)
            ]
            nodes = tuple(
                replace(node, masking=_Overheard(session)) for node, session in zip(nodes, sessions, strict=True)
            )
        self.run = Coordinator(model.trained, public, terms)
        self._nodes = nodes
        self._plain: dict[int, np.ndarray] = {}

    def next_round(self, num_answering: int) -> RoundPlan | None:
        """One round in which so many shops, the first ones, answer; None when all are over."""
        by_name = {node.name: node for node in self._nodes}
        run, secure = self.run, self.run.secure

        def answer(shop: str, step: Step, data: bytes) -> bytes:
            return by_name[shop].step(step, data)

        if secure is not None and (count := run.rounds_to_set_up()):
            ask_all(set_up(secure, run.index, count), answer)
        plan = run.next_plan()
        if plan is None:
            return None
        for place, node in enumerate(self._nodes):
            if place >= num_answering:
                run.mark_unavailable(node.name)
                continue
            data = node.answer(plan, b"" if secure is None else secure.delivery(node.name)).to_bytes()
            self._plain[place] = read_release(data, plan).values
            run.receive(node.name, data)
        if secure is not None:
            ask_all(unmask(secure), answer)
        run.close()
        return plan

    def vector(self, place: int, plan: RoundPlan) -> np.ndarray:
        """What a shop contributed to the round that was just run: its sum with its noise, before masks."""
        masking = self._nodes[place].masking
        values = masking.heard if isinstance(masking, _Overheard) else self._plain[place]
        grid = plan.terms.grid(plan.index)
        return grid.decode(grid.centre(values))


class _Overheard(Masking):
    """Of a shop that tells what it is about to mask."""

    heard: np.ndarray = np.zeros(0)

    def mask_for(self, plan: RoundPlan) -> Callable[[np.ndarray], None]:
        """As `Masking.mask_for`, after a copy."""
        mask = super().mask_for(plan)

        def overheard(values: np.ndarray) -> None:
            self.heard = values.copy()
            mask(values)

        return overheard
