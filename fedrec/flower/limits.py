"""How much of a server one peer may take: requests a second of a key, lines of an address, before anything is read."""

from __future__ import annotations

import ipaddress
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, Self

MOST_LINES = 256
"""Open at a time from one address, and opened at once; shops behind one router or proxy share theirs."""

NEW_LINES_PER_S = 20.0
_MOST_NAMES = 10_000


class Pace:
    """So many a second of each name, and so many at once after a pause; several threads may use it."""

    def __init__(self, per_s: float, at_once: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Args: per_s: > 0. at_once: >= 1."""
        self._step_s, self._slack_s, self._clock = 1 / per_s, (at_once - 1) / per_s, clock
        self._due: dict[Hashable, float] = {}
        self._lock = threading.Lock()

    def wait_s(self, name: Hashable, *, most_s: float = float("inf")) -> float:
        """Seconds until the next one of this name is due, which this one then is.

        Args:
            most_s: one that would wait longer is not counted; the caller refuses it.
        """
        with self._lock:
            now = self._clock()
            if len(self._due) > _MOST_NAMES:
                self._due = {one: due for one, due in self._due.items() if due > now}
            due = max(self._due.get(name, 0.0), now)
            wait = max(0.0, due - now - self._slack_s)
            if wait <= most_s:
                self._due[name] = due + self._step_s
            return wait


class Doorman(socket.socket):
    """A listening socket that closes a line before a byte is read, where its address has too many or opens too many.

    **Guarantee:** one address (of IPv6, one network of 2^64, which a single machine may have) holds at most
    ``most_lines``, and all together leave half of the process's files free. Many machines at once can still fill the
    rest.
    """

    def __init__(self, address: tuple[str, int], *, most_lines: int = MOST_LINES) -> None:
        """Listen.

        Args:
            most_lines: of one address.
        Raises:
            OSError: the address is in use, or not this machine's.
        """
        super().__init__(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
        self._open: Counter[str] = Counter()
        self._most_lines, self._pace = most_lines, Pace(NEW_LINES_PER_S, most_lines)
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        try:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.bind(address)
            self.listen(128)
        except OSError:
            self.close()
            raise

    def accept(self) -> tuple[socket.socket, Any]:
        """The next line.

        Raises:
            ConnectionAbortedError: it was closed at once.
        """
        handle, address = self._accept()  # type: ignore[attr-defined]  # as `socket.socket.accept` does
        line = _Line(self, peer_of(str(address[0])), handle)
        is_full = self._open[line.peer] > self._most_lines or self._open.total() > self._most
        if is_full or self._pace.wait_s(line.peer, most_s=0.0):
            line.close()
            raise ConnectionAbortedError("too many lines of one address")
        return line, address

    def note(self, peer: str, change: int) -> None:
        """A line of this address was opened or closed."""
        self._open[peer] += change
        if not self._open[peer]:
            del self._open[peer]


def peer_of(address: str) -> str:
    """Under which name the lines of an address count."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv4Address) or found.ipv4_mapped:
        return address
    return str(ipaddress.IPv6Network((found, 64), strict=False))


class _Line(socket.socket):
    """An accepted line, which says when it is closed."""

    def __init__(self, doorman: Doorman, peer: str, handle: int) -> None:
        super().__init__(doorman.family, doorman.type, doorman.proto, fileno=handle)
        self.peer, self._doorman = peer, doorman
        doorman.note(peer, 1)

    def close(self) -> None:
        """Close it, and be no longer counted."""
        if self.fileno() != -1:
            self._doorman.note(self.peer, -1)
        super().close()

    def __enter__(self) -> Self:
        return self
