"""Where the lines, bars and labels of the dashboard's plots are; the page draws them as SVG in its own colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

HEIGHT = 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 12.0, 12.0, 26.0
_BARS = 40.0
_DAY_S = 86_400.0


@dataclass(frozen=True)
class Line:
    """One line as it is.

    Attributes:
        name: for the legend.
        points: (seconds since 1970, value, what the point says), in order.
        is_step: the value holds until the next point.
    """

    name: str
    points: Sequence[tuple[float, float, str]]
    is_step: bool = False


@dataclass(frozen=True)
class Mark:
    """A point or a bar on the canvas, and what it says."""

    x: float
    y: float
    text: str
    width: float = 0.0
    height: float = 0.0


@dataclass(frozen=True)
class Drawn:
    """One line on the canvas: an SVG path, the area under it, and its points."""

    name: str
    path: str
    area: str
    marks: list[Mark]


@dataclass(frozen=True)
class Plot:
    """A plot on its canvas.

    Attributes:
        width, height: of the canvas.
        left, right, floor: edges of the plot's field; floor is where values are 0.
        x_labels, y_labels: (position, text).
        limit: where the line of a limit is; None = there is none.
    """

    width: float
    height: float
    left: float
    right: float
    floor: float
    x_labels: list[tuple[float, str]]
    y_labels: list[tuple[float, str]]
    lines: list[Drawn]
    bars: list[Mark] = field(default_factory=list)
    limit: float | None = None


def plot(
    lines: Sequence[Line],
    *,
    width: float,
    value: Callable[[float], str],
    bars: Sequence[tuple[float, float, str]] = (),
    limit: float | None = None,
) -> Plot:
    """Lay a plot out.

    Args:
        lines: at least one with a point; values >= 0.
        width: of the canvas, in CSS pixels.
        value: a value as the axis writes it.
        bars: (seconds since 1970, value, what it says), one a day, drawn small below the lines.
        limit: drawn across.
    """
    times = [at for line in lines for at, _, _ in line.points]
    first, last = min(times), max(times)
    if last - first < _DAY_S:
        first, last = first - _DAY_S / 2, last + _DAY_S / 2
    height = HEIGHT + (_BARS if bars else 0)
    left, right, floor = _LEFT, width - _RIGHT, HEIGHT - _BOTTOM
    ticks = _ticks(max([limit or 0.0, *(y for line in lines for _, y, _ in line.points)]))

    def place(at: float) -> float:
        return round(left + (right - left) * (at - first) / (last - first), 1)

    def rise(y: float) -> float:
        return round(floor - (floor - _TOP) * y / ticks[-1], 1)

    most = max((count for _, count, _ in bars), default=0.0) or 1.0
    thick = max(2.0, min(12.0, 0.7 * (right - left) * _DAY_S / (last - first)))
    return Plot(
        width,
        height,
        left,
        right,
        floor,
        [(place(at), f"{datetime.fromtimestamp(at, UTC):%-d %b}") for at in _days(first, last, int(width // 110))],
        [(rise(tick), value(tick)) for tick in ticks],
        [_drawn(line, place, rise, floor) for line in lines],
        [
            Mark(place(at) - thick / 2, height - tall, text, thick, tall)
            for at, count, text in bars
            if (tall := round((_BARS - 8) * count / most, 1))
        ],
        None if limit is None else rise(limit),
    )


def _drawn(line: Line, place: Callable[[float], float], rise: Callable[[float], float], floor: float) -> Drawn:
    marks = [Mark(place(at), rise(y), text) for at, y, text in line.points]
    corners: list[str] = []
    for mark in marks:
        corners.append(
            f"H{mark.x}V{mark.y}" if line.is_step and corners else f"{'L' if corners else 'M'}{mark.x} {mark.y}"
        )
    path = "".join(corners)
    return Drawn(line.name, path, f"{path}V{floor}H{marks[0].x}Z" if marks else "", marks)


def _ticks(most: float) -> list[float]:
    """0 and three to five round values, the last one at least the greatest."""
    if not most > 0:
        return [0.0, 1.0]
    unit = 10.0 ** math.floor(math.log10(most / 4))
    step = next(unit * size for size in (1, 2, 2.5, 5, 10) if unit * size * 4 >= most)
    return [step * count for count in range(math.ceil(most / step - 1e-9) + 1)]


def _days(first: float, last: float, most: int) -> Iterable[float]:
    """At most so many midnights, evenly spread."""
    days = range(math.ceil(first / _DAY_S), math.floor(last / _DAY_S) + 1)
    return (day * _DAY_S for day in days[:: max(1, math.ceil(len(days) / max(1, most)))])
