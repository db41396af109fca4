"""How many lines one address may have, open and new, before anything is read."""

from __future__ import annotations

import ipaddress
import resource
import socket
from collections import Counter
from typing import Any, Self

from fedrec.pace import Pace

MOST_LINES = 256
"""Open at a time from one address, and opened at once; shops behind one router or proxy share theirs."""

NEW_LINES_PER_S = 20.0


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
