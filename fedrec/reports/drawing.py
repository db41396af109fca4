"""What all plots have in common: inline SVG in colours that the page decides, light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT, PAPER = "#010101", "#020202", "#030303"
"""Colours to draw with; the page replaces them by its own."""

WIDTH_IN = 5.2

STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "figure.facecolor": "none",
    "legend.frameon": False,
}
"""Under which every figure is drawn."""

_PAGE = {INK: "ink", FAINT: "line", PAPER: "paper"}


@dataclass(frozen=True)
class Picture:
    """One figure of the report.

    Attributes:
        key: its id in the page.
        title, text: heading, and how to read it.
        svg: inline, without any outside reference.
    """

    key: str
    title: str
    text: str
    svg: str


def canvas(height_in: float) -> tuple[Figure, Axes]:
    """A figure of the usual width with one pair of axes."""
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    return figure, figure.subplots()


def inline_svg(figure: Figure, key: str, alt: str, colours: Mapping[str, str]) -> str:
    """The figure as an inline element: page colours, page font, ids of its own, a text for those who cannot see it.

    Args:
        key: of the figure, unique in its page.
        alt: what it shows, in a sentence.
        colours: colour as drawn -> the page's variable, besides those of this module.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, name in {**_PAGE, **colours}.items():
        text = text.replace(colour, f"var(--{name})")
    text = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'font: ([\d.]+)px [^;"]+', r"font: \1px var(--font)", text)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', text)
    text = re.sub(r'(url\(|xlink:href=")#', rf"\1#{key}-", text)
    text = re.sub(r'<svg([^>]*?) (?:width|height)="[^"]*"', r"<svg\1", text)
    text = re.sub(r'<svg([^>]*?) (?:width|height)="[^"]*"', r"<svg\1", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(alt, quote=True)}"', 1).strip()
