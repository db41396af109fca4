"""A shop's keys of secure aggregation between messages: kept before an answer leaves, so that none is given twice."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fedrec.errors import PrivacyError, StoreError
from fedrec.federation.plan import RoundPlan
from fedrec.federation.secure_round import Step, shop_step
from fedrec.secure_aggregation.shop_session import ShopSession


class Masking:
    """A session and where it is kept.

    Guarantee: every step reads the state, moves it and has it on disk before its answer is known to anybody, under a
        lock that threads and processes of this machine share: no two steps start from the same state. What is not
        noticed is an older copy of the file put in its place (a backup, a cloned machine): the file lives for one run,
        so keep it out of backups. With a ledger the second release would be charged, and refused behind its anchor.
    """

    def __init__(self, session: ShopSession, path: Path | None = None) -> None:
        """Args:
        session: of this shop in this run.
        path: of the state's file, readable by its owner alone; None = in this process's memory.
        """
        self._session = session
        self._path = path
        self._lock = threading.Lock()

    def answer(self, step: Step, data: bytes) -> bytes:
        """The answer to one exchange; see `ShopSession` for what is refused."""
        with self._current() as session:
            return shop_step(session, step, data)

    def accept(self, plan: RoundPlan, delivery: bytes) -> None:
        """Open what the others dealt, and check that the plan belongs to this set-up.

        Raises:
            PrivacyError: it does not: the masks would be somebody else's.
        """
        with self._current() as session:
            digest = session.accept(delivery)
        if plan.setup != digest.hex():
            raise PrivacyError(f"plan of round {plan.index} names another set-up of keys than this shop took part in")

    def mask_for(self, plan: RoundPlan) -> Callable[[np.ndarray], None]:
        """Adds the shop's masks of a round in place; see `ShopSession.mask`."""

        def mask(values: np.ndarray) -> None:
            with self._current() as session:
                session.mask(plan.index, plan.digest, values)

        return mask

    @contextmanager
    def _current(self) -> Iterator[ShopSession]:
        """The session as it was kept last; kept again when the step is done, not when it failed."""
        if self._path is None:
            with self._lock:
                yield self._session
            return
        with self._lock, _locked(self._path.with_suffix(".lock")):
            if self._path.exists():
                self._session.restore(_read(self._path))
            yield self._session
            _keep(self._path, self._session.to_bytes())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the file's lock against all other processes of this machine; it ends with the process, however it ends."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StoreError(f"{path}: the keys of this run cannot be locked ({error.strerror})") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: the keys of this run cannot be read ({error.strerror})") from error


def _keep(path: Path, state: bytes) -> None:
    """Replace the file; it and its folder are on disk when this returns."""
    part = path.with_suffix(".part")
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(handle, "wb") as file:
            file.write(state)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StoreError(f"{path}: the keys of this run cannot be kept ({error.strerror})") from error
