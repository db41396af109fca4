"""A shop's keys of secure aggregation between messages: kept before an answer leaves, so that none is given twice."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.errors import PrivacyError, StoreError
from fedrec.federation.plan import RoundPlan
from fedrec.federation.secure_round import Step, shop_step
from fedrec.secure_aggregation.shop_session import ShopSession

_log = logging.getLogger("fedrec.shop")


class Masking:
    """A session and where it is kept.

    Guarantee: every step reads the state, moves it and has it on disk before its answer is known to anybody, under a
        lock that threads and processes of this machine share: no two steps start from the same state. An older copy of
        the file put in its place, or one on another machine, is seen by what the file system says of it (`_is_latest`):
        its keys are erased unused, and the shop takes part again from the next set-up on, of which one more round
        counts as repeated. Not seen is an image of the whole disk put back while a round is open.
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
                state = _read(self._path)
                if not (is_latest := _is_latest(self._path, state)):
                    _log.error(
                        "%s: not as it was left, but a copy; its keys are erased, none is used twice", self._path
                    )
                self._session.restore(state, is_latest=is_latest)
                if not is_latest:
                    _keep(self._path, self._session.to_bytes())
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


def forget(path: Path) -> None:
    """Delete the state of a run that cannot go on, and what a crash left beside it."""
    for one in (path, _part(path), _seal(path), _part(_seal(path))):
        one.unlink(missing_ok=True)


def _keep(path: Path, state: bytes) -> None:
    """Replace the file; it and its folder are on disk when this returns.

    Its seal names, beside the file that is there, the one that comes while it comes: no crash leaves one without.
    """
    part, digest = _part(path), hashlib.sha256(state).hexdigest()
    try:
        _write(part, state)
        coming = [digest, part.stat().st_ino, None]
        _write_seal(path, [*_sealed(path)[-2:], coming])
        os.replace(part, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        _write_seal(path, [[*coming[:2], path.stat().st_ctime_ns]])
    except OSError as error:
        raise StoreError(f"{path}: the keys of this run cannot be kept ({error.strerror})") from error


def _is_latest(path: Path, state: bytes) -> bool:
    """Whether a file is the one that was kept last, and not a copy of it or of an earlier one.

    A copy has another number in the file system, or another time of its last change, which no program can set.
    """
    digest, about = hashlib.sha256(state).hexdigest(), path.stat()
    return any(entry[:2] == [digest, about.st_ino] and entry[2] in (about.st_ctime_ns, None) for entry in _sealed(path))


def _sealed(path: Path) -> list[list[Any]]:
    """Digest, number and time of change of the files that may be there."""
    try:
        entries = json.loads(_seal(path).read_bytes())
    except (OSError, ValueError):
        return []
    return entries if isinstance(entries, list) else []


def _write_seal(path: Path, entries: list[list[Any]]) -> None:
    part = _part(_seal(path))
    _write(part, json.dumps(entries).encode())
    os.replace(part, _seal(path))


def _seal(path: Path) -> Path:
    return path.with_suffix(".seal")


def _part(path: Path) -> Path:
    """What is written beside a file; after a crash it may hold secrets."""
    return path.with_suffix(f"{path.suffix}-part")


def _write(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
