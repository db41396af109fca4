"""How far a run is: a live bar for each phase on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

_PAUSE_S = 1.0


class TerminalProgress:
    """Bars that stay on the screen when done; see `fedrec.simulation.progress`. Use it in a ``with`` block."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}", style="none"),
            BarColumn(bar_width=24, complete_style="cyan", finished_style="green", pulse_style="cyan"),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._task: TaskID | None = None
        self._name = ""

    def __enter__(self) -> TerminalProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()
        self._bars.stop()

    def phase(self, name: str, total: int | None) -> None:
        """End the phase before and show a new bar; fill the same one anew for the same name."""
        if self._task is not None and name == self._name:
            self._bars.update(self._task, total=total, completed=0)
            return
        self._finish()
        self._name, self._task = name, self._bars.add_task(f"{name:<34}", total=total)

    def advance(self, n: int = 1) -> None:
        """Move the bar of this phase."""
        if self._task is not None:
            self._bars.advance(self._task, n)

    def result(self, text: str) -> None:
        """A line under the name of this phase."""
        if self._task is not None:
            self._bars.update(self._task, description=f"{self._name:<34}\n  {text}")

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._bars.console.print(Text(f"  {text}", style="dim"))

    def _finish(self) -> None:
        if self._task is None:
            return
        task = next(one for one in self._bars.tasks if one.id == self._task)
        total = task.total or max(task.completed, 1)
        self._bars.update(self._task, total=total, completed=total)
        self._task = None


class PlainProgress:
    """One line for each finished phase, for logs and pipes; see `fedrec.simulation.progress`. For ``with``."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._name = ""
        self._started = 0.0
        self._waiting = ""
        self._said = -math.inf

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()

    def phase(self, name: str, total: int | None) -> None:
        """Say that the phase before is done, unless it goes on."""
        if name == self._name:
            return
        self._finish()
        self._name, self._started = name, time.monotonic()

    def advance(self, n: int = 1) -> None:
        """Nothing to show between lines."""

    def result(self, text: str) -> None:
        """A line of its own, at most one a second, and the last of the phase."""
        self._waiting = f"  {text}"
        if time.monotonic() - self._said >= _PAUSE_S:
            self._say_waiting()

    def note(self, text: str) -> None:
        """A line of its own."""
        self._line(f"  {text}")

    def _finish(self) -> None:
        self._say_waiting()
        if self._name:
            self._line(f"{self._name}: {time.monotonic() - self._started:.1f} s")
            self._name = ""

    def _say_waiting(self) -> None:
        if self._waiting:
            self._line(self._waiting)
            self._waiting, self._said = "", time.monotonic()

    def _line(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)


def progress_on(console: Console) -> TerminalProgress | PlainProgress:
    """Bars on a terminal, lines elsewhere."""
    return TerminalProgress(console) if console.is_terminal else PlainProgress(console)
