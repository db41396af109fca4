"""A shop's keys of secure aggregation between messages: kept before an answer leaves, so that none is given twice."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedrec.errors import PrivacyError, StoreError
from fedrec.federation.plan import RoundPlan
from fedrec.federation.secure_round import Step, shop_step
from fedrec.secure_aggregation.shop_session import ShopSession


class Masking:
    """A session and where it is kept.

    Guarantee: with a file, the state is on disk before `answer` or the mask returns; several processes may take turns.
    """

    def __init__(self, session: ShopSession, path: Path | None = None) -> None:
        """Args:
        session: of this shop in this run.
        path: of the state's file, readable by its owner alone; None = in this process's memory.
        """
        self._session = session
        self._path = path

    def answer(self, step: Step, data: bytes) -> bytes:
        """The answer to one exchange; see `ShopSession` for what is refused."""
        self._load()
        answer = shop_step(self._session, step, data)
        self._save()
        return answer

    def accept(self, plan: RoundPlan, delivery: bytes) -> None:
        """Open what the others dealt, and check that the plan belongs to this set-up.

        Raises:
            PrivacyError: it does not: the masks would be somebody else's.
        """
        self._load()
        digest = self._session.accept(delivery)
        self._save()
        if plan.setup != digest.hex():
            raise PrivacyError(f"plan of round {plan.index} names another set-up of keys than this shop took part in")

    def mask_for(self, plan: RoundPlan) -> Callable[[np.ndarray], None]:
        """Adds the shop's masks of a round in place; see `ShopSession.mask`."""

        def mask(values: np.ndarray) -> None:
            self._load()
            self._session.mask(plan.index, plan.digest, values)
            self._save()

        return mask

    def _load(self) -> None:
        if self._path is None or not self._path.exists():
            return
        try:
            self._session.restore(self._path.read_bytes())
        except OSError as error:
            raise StoreError(f"{self._path}: the keys of this run cannot be read ({error.strerror})") from error

    def _save(self) -> None:
        if self._path is None:
            return
        part = self._path.with_suffix(".part")
        try:
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(handle, "wb") as file:
                file.write(self._session.to_bytes())
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self._path)
        except OSError as error:
            raise StoreError(f"{self._path}: the keys of this run cannot be kept ({error.strerror})") from error
