"""Who is told how far a run is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Who is told how far a run is. Phases follow each other: a new one ends the one before.

    Nothing that is said here is about a single shop.
    """

    def phase(self, name: str, total: int | None) -> None:
        """A phase of ``total`` steps begins; None where the number of steps is not known.

        With the name of the phase before, that one goes on with as many new steps.
        """
        ...

    def advance(self, n: int = 1) -> None:
        """``n`` more steps of this phase are done."""
        ...

    def result(self, text: str) -> None:
        """What this phase came to so far, in place of what was said before."""
        ...

    def note(self, text: str) -> None:
        """One line worth reading now."""
        ...


class Silent:
    """A `Progress` that tells nobody."""

    def phase(self, name: str, total: int | None) -> None:
        """Ignored."""

    def advance(self, n: int = 1) -> None:
        """Ignored."""

    def result(self, text: str) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored."""


quiet: Progress = Silent()
