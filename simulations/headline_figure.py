"""Draw the headline of RESULTS.md: what small shops gain by joining, against epsilon, as docs/headline.svg.

python simulations/headline_figure.py

Reads the table under "Does a small shop gain?", so figure and table cannot differ.
"""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
HEADING = "## Does a small shop gain?"
_CELL = re.compile(r"([+-]\d\.\d+) \(([+-]\d\.\d+) to ([+-]\d\.\d+)\)")
INK, BLUE, GREY = "#1f2933", "#1b6ca8", "#8a949e"


def read_rows(text: str) -> list[tuple[str, list[tuple[float, float, float]]]]:
    """Rows of the section's table: joined column, and (gain, low, high) by shopper and by shop."""
    section = text.split(HEADING, 1)[1].split("\n## ", 1)[0]
    rows = []
    for line in section.splitlines():
        found = [tuple(map(float, cell)) for cell in _CELL.findall(line)]
        if len(found) == 2:
            rows.append((line.split("|")[1].strip(), [(cell[0], cell[1], cell[2]) for cell in found]))
    if not rows:
        raise SystemExit(f"RESULTS.md has no table of gains under {HEADING!r}")
    return rows


def draw(rows: list[tuple[str, list[tuple[float, float, float]]]], path: Path) -> None:
    """One panel a way of averaging; the last place is the joined column without privacy."""
    matplotlib.rcParams["svg.hashsalt"] = "fedrec"  # the same table gives the same file
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.3), sharey=True)
    titles = ("mean over test shoppers", "mean over shops of 5 test shoppers and more")
    names = [name.removeprefix("federated DP(").replace(") + personal", "") for name, _ in rows]
    names = ["no privacy" if "federated" in name else name for name in names]
    for place, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        for x, (name, cells) in enumerate(zip(names, [cells for _, cells in rows], strict=True)):
            gain, low, high = cells[place]
            color = GREY if name == "no privacy" else BLUE
            panel.plot([x, x], [low, high], color=color, linewidth=2.2, solid_capstyle="round")
            panel.plot(x, gain, "o", color=color, markersize=6.5)
            panel.annotate(f"{gain:+.3f}", (x, gain), (7, -3), textcoords="offset points", fontsize=8.5, color=INK)
        panel.axhline(0, color=INK, linewidth=0.8)
        panel.set_xticks(range(len(names)), names)
        panel.set_xlim(-0.5, len(names) - 0.2)
        panel.set_title(title, fontsize=10, color=INK, loc="left")
        panel.tick_params(labelsize=9, colors=INK, length=0)
        panel.yaxis.grid(visible=True, color="#e4e8eb", linewidth=0.8)
        panel.set_axisbelow(True)
        for side in ("top", "right", "left", "bottom"):
            panel.spines[side].set_visible(False)
    panels[0].set_ylabel("gain in NDCG@10", fontsize=9, color=INK)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    rows = read_rows((ROOT / "simulations" / "RESULTS.md").read_text(encoding="utf-8"))
    path = ROOT / "docs" / "headline.svg"
    draw(rows, path)
    print(path)


if __name__ == "__main__":
    main()
