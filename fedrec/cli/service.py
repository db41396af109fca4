"""Long-running commands: one process a folder, and what stops it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from fedrec.errors import ConfigError, StoreError

_STOPPING = (signal.SIGTERM, signal.SIGINT)
_KNOWN = "FEDREC_KNOWN"


@contextmanager
def only_one(folder: Path, role: str) -> Iterator[None]:
    """A lock on a folder that ends with the process, however it ends, and its process id for `running`.

    Args:
        role: ``coordinator`` or ``shop``.
    Raises:
        ConfigError: another process has it.
        StoreError: the folder cannot be written.
    """
    try:
        file = open(_path(folder, role), "a+")  # noqa: SIM115 - closed below
    except OSError as error:
        raise StoreError(f"{folder}: cannot be locked ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{folder}: a {role} is running here already; stop it first") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def running(folder: Path, role: str) -> int | None:
    """Process id of what holds the folder; None when nothing does."""
    path = _path(folder, role)
    if not path.exists():
        return None
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read() or 0) or None
    return None


def stop_on_signals(stop: threading.Event) -> None:
    """SIGTERM and Ctrl-C set ``stop``, to end between two answers; a second one ends the process at once."""

    def ask(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # nothing is lost: all that matters is on disk
        stop.set()

    for number in _STOPPING:
        signal.signal(number, ask)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)  # as `begin_anew` left them


def begin_anew(**known: Any) -> NoReturn:
    """Run this process's own command again in its place: same process id, but nothing that it had loaded.

    Args:
        known: for `known_before`; JSON values, nothing secret.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)  # until the new program listens
    os.execve(sys.executable, sys.orig_argv, {**os.environ, _KNOWN: json.dumps(known)})


def known_before() -> dict[str, Any] | None:
    """What `begin_anew` was given; None in a process that somebody has started."""
    text = os.environ.pop(_KNOWN, None)
    return None if text is None else dict(json.loads(text))


def _path(folder: Path, role: str) -> Path:
    return folder / f"{role}.pid"
