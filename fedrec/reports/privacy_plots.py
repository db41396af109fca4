"""The plots of a privacy report: what was spent over time, and what an attacker can reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.dates import num2date
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fedrec.reports import privacy_words as words
from fedrec.reports.drawing import FAINT, INK, STYLE, Picture, canvas, inline_svg

Figures = Mapping[str, Any]

_LINES = (
    ("#050501", "-"),
    ("#050502", (0, (5, 2))),
    ("#050503", (0, (2, 1.5))),
    ("#050504", (0, (6, 1, 1, 1))),
    ("#050505", (0, (1, 1))),
    ("#050506", "-."),
)
"""Colour and dashes of each line of a plot."""
_COLOURS = {
    "#050501": "federated-dp-personal",
    "#050502": "local",
    "#050503": "federated-personal",
    "#050504": "pooled",
    "#050505": "other",
    "#050506": "federated-dp",
}
_SHORT_S = 2 * 3600
"""Ledgers of less than this (simulations) are drawn over seconds, not dates."""


def pictures(books: Sequence[Figures]) -> list[Picture]:
    """The figures of a report, as far as there is something to draw."""
    drawn = (_spent(books), _curve([run for book in books for run in book["runs"]]))
    return [picture for picture in drawn if picture is not None]


def _spent(books: Sequence[Figures]) -> Picture | None:
    """Epsilon after each release; the line above is the budget, the gap is what is left."""
    groups = [
        (words.names(found, 1) if len(books) == 1 else words.title_of(book["name"]), shop)
        for book in books
        for found, shop in words.alike(book["shops"])
        if len(shop["history"]) > 1
    ]
    if not groups:
        return None
    num_groups = len(groups)
    most = sorted((shop["lifetime"] for _, shop in groups), reverse=True)[: len(_LINES)]
    groups = [(label, shop) for label, shop in groups if shop["lifetime"] >= most[-1]][: len(_LINES)]
    times = {id(shop): _times(shop) for _, shop in groups}
    is_short = all((when[-1] - when[0]).total_seconds() < _SHORT_S for when in times.values())
    with mpl.rc_context(STYLE):
        figure, axes = canvas(3.7)
        for (label, shop), (colour, dashes) in zip(groups, _LINES, strict=False):
            when = times[id(shop)]
            x: list[Any] = [(one - when[0]).total_seconds() for one in when] if is_short else list(when)
            _draw_ledger(axes, x, shop, colour, dashes, label, is_only=len(groups) == 1)
        _time_axis(axes, is_short)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("ε")
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2, handletextpad=0.5, columnspacing=1.2)
        worst = max((shop for _, shop in groups), key=lambda shop: shop["lifetime"])
        alt = (
            f"Epsilon spent over {len(worst['history']) - 1} releases, up to {words.number(worst['spent'])} of "
            f"{worst['budget']['epsilon']:g}."
        )
        text = (
            "Each step is a release, charged before it left and never refunded. The thin line on top is the budget; "
            "what is between them is left."
        )
        if any(shop["budget"]["period"] == "year" for _, shop in groups):
            text += " Dotted: the lifetime, which a new budget year does not reset."
        if num_groups > len(groups):
            text += f" Shown are {len(groups)} of {num_groups}, those that spent most."
        return Picture("spent", "ε spent and left", text, inline_svg(figure, "spent", alt, _COLOURS))


def _draw_ledger(
    axes: Axes, x: list[Any], shop: Figures, colour: str, dashes: Any, label: str, *, is_only: bool
) -> None:
    spent = [point["spent"] for point in shop["history"]]
    lifetime = [point["lifetime"] for point in shop["history"]]
    budget = shop["budget"]["epsilon"]
    axes.step(x, spent, where="post", color=colour, linestyle=dashes, linewidth=2, label=f"spent, {label}")
    axes.plot(x[-1:], spent[-1:], marker="o", color=colour, markersize=5)
    if lifetime != spent:
        axes.step(x, lifetime, where="post", color=colour, linestyle=":", linewidth=1.4, label=f"lifetime, {label}")
    axes.axhline(budget, color=colour, linewidth=1)
    if is_only:
        axes.fill_between(x, spent, budget, step="post", color=colour, alpha=0.12, linewidth=0, label="left")


def _times(shop: Figures) -> list[datetime]:
    return [datetime.fromisoformat(point["utc"]) for point in shop["history"]]


def _time_axis(axes: Axes, is_short: bool) -> None:
    if is_short:
        axes.set_xlabel("seconds since the ledger began")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        return
    days = axes.get_xlim()[1] - axes.get_xlim()[0]
    form = "%Y-%m-%d" if days > 2 else "%d %b %H:%M"
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=days > 4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{num2date(value):{form}}"))


def _curve(runs: Sequence[Figures]) -> Picture | None:
    """Misses over false accusations: of one run for a person with one, two, three accounts, else of each run."""
    lines = _curve_lines(runs)
    if not lines:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = canvas(4.4)
        axes.plot([0, 1], [1, 0], color=FAINT, linewidth=2, label="guessing")
        for (label, rates, misses), (colour, dashes) in zip(lines, _LINES, strict=False):
            axes.plot([0, *rates], [1, *misses], color=colour, linestyle=dashes, linewidth=2, label=label)
        axes.plot(0, 0, marker="x", color=INK, markersize=7, clip_on=False, linestyle="", label="certainty")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}\u00a0%"))
        axes.set_xlabel("absent shoppers accused")
        axes.set_ylabel("present shoppers missed")
        axes.legend(loc="upper right", handletextpad=0.5)
        label, rates, misses = lines[0]
        middle = min(range(len(rates)), key=lambda place: abs(rates[place] - 0.1))
        alt = (
            f"At 10 % false accusations at least {100 * misses[middle]:.0f} % of present shoppers are missed ({label})."
        )
        text = (
            "Whoever tries to tell from the releases whether somebody was there makes two kinds of mistakes. No method "
            "gets below a line; the nearer it is to guessing, the less is learnt."
        )
        return Picture("curve", "What an attacker can reach", text, inline_svg(figure, "curve", alt, _COLOURS))


def _curve_lines(runs: Sequence[Figures]) -> list[tuple[str, list[float], list[float]]]:
    """Label, false accusation rates and misses of each line; equal lines once."""
    lines: dict[tuple[float, ...], tuple[str, list[float], list[float]]] = {}
    for run in runs:
        rates, misses = run["curve"]["false_accusations"], run["curve"]["misses"]["1"]
        lines.setdefault(tuple(misses), (f"ε {run['terms']['spec']['epsilon']:g}", rates, misses))
    if len(lines) != 1:
        return list(lines.values())[: len(_LINES)]
    curve = next(run["curve"] for run in runs)
    accounts = {"1": "one account", "2": "two accounts", "3": "three accounts"}
    return [(accounts[k], curve["false_accusations"], misses) for k, misses in curve["misses"].items()]
