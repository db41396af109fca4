"""Plots of a run record as inline SVG, in colours that the page decides: light and dark, fit for colour-blind eyes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from fedrec.federation.run_record import family_of
from fedrec.reports import summary
from fedrec.reports.drawing import FAINT, INK, PAPER, STYLE, WIDTH_IN, Picture, canvas, inline_svg
from fedrec.reports.summary import Record

_SERIES = {
    "popularity": "#040401",
    "dp_popularity": "#040407",
    "local": "#040402",
    "federated": "#040403",
    "federated_personal": "#040404",
    "federated_dp": "#040408",
    "federated_dp_personal": "#040409",
    "pooled": "#040405",
}
_OTHER = "#040406"
_MARKERS = {
    **{"popularity": "s", "local": "o", "federated": "^", "federated_personal": "D", "pooled": "v"},
    **{"dp_popularity": "X", "federated_dp": "<", "federated_dp_personal": "P"},
}
_CLASS_STYLES = (
    ("#040402", "o", (1, 1)),
    ("#040403", "^", (4, 2)),
    ("#040405", "v", (6, 1, 1, 1)),
    (_OTHER, "s", (3, 1)),
)
"""Colour, marker and dashes of shops of each size, the smallest first."""
_VARIABLES = {_OTHER: "other"} | {colour: column.replace("_", "-") for column, colour in _SERIES.items()}
_EPSILON_STYLES = (("#040409", "P", (1, 0)), *_CLASS_STYLES)
"""Colour, marker and dashes of each epsilon, the smallest first."""
_VALIDATION = "validation ndcg@10"
_MAX_ROWS = 30
_MAX_LABELS = 12


def pictures(record: Record) -> list[Picture]:
    """The figures that a record has values for."""
    drawn = [
        _gain_by_size(record),
        _gain_by_epsilon(record),
        _metrics_by_shop(record),
        _list_character(record),
        _learning_curve(record),
        _training_loss(record),
        _epsilon_spent(record),
    ]
    return [picture for picture in drawn if picture is not None]


def _gain_by_size(record: Record) -> Picture | None:
    """Each shop's gain with its interval, over its number of shoppers."""
    gain = record.get("gain")
    rows = {name: row for name, row in (gain or {}).get("shops", {}).items() if row["mean"] is not None}
    if not gain or not rows:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = canvas(3.7)
        axes.axhline(0, color=INK, linewidth=1)
        for decision, column, marker in (("joins", "federated_personal", "D"), ("stays local", "local", "o")):
            chosen = [row for row in rows.values() if row["decision"] == decision]
            if chosen:
                _errorbars(axes, chosen, _SERIES[column], marker, f"{decision} ({len(chosen)})")
        _log_counts(axes, [row["shoppers"] for row in rows.values()])
        if len(rows) <= _MAX_LABELS:
            _name_points(axes, rows)
        axes.set_xlabel("shoppers of the shop")
        axes.set_ylabel(f"gain in {gain['metric'].upper()}")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: summary.signed(value, 3) if value else "0"))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, handletextpad=0.3)
        lowest = min(rows, key=lambda name: rows[name]["mean"])
        highest = max(rows, key=lambda name: rows[name]["mean"])
        alt = (
            f"Gain of {len(rows)} shops against their size: from {summary.signed(rows[lowest]['mean'])} ({lowest}) "
            f"to {summary.signed(rows[highest]['mean'])} ({highest})."
        )
        text = "Above the line, joining beats the model that the shop trains alone. Bars: 95\u00a0% intervals."
        return Picture("gain", "Gain against shop size", text, inline_svg(figure, "gain", alt, _VARIABLES))


def _gain_by_epsilon(record: Record) -> Picture | None:
    """Gain from joining against epsilon: over all shops, with its interval, and by size of shop."""
    gains = [gain for gain in record.get("gain_by_epsilon") or [] if gain["macro"]["mean"] is not None]
    if not gains:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = canvas(3.7)
        axes.axhline(0, color=INK, linewidth=1)
        epsilons = [gain["epsilon"] for gain in gains]
        for name, style in zip(gains[0]["classes"], _CLASS_STYLES, strict=False):
            of_class = [gain["classes"][name] for gain in gains]
            points = [(epsilon, row["mean"]) for epsilon, row in zip(epsilons, of_class, strict=True)]
            points = [(epsilon, mean) for epsilon, mean in points if mean is not None]
            if points and len(gains[0]["classes"]) > 1:
                colour, marker, dashes = style
                label = f"{name} ({of_class[0]['shops']})"
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, dashes=dashes, label=label)
        means = [gain["macro"]["mean"] for gain in gains]
        low = [_or(gain["macro"]["low"], mean) for gain, mean in zip(gains, means, strict=True)]
        high = [_or(gain["macro"]["high"], mean) for gain, mean in zip(gains, means, strict=True)]
        colour = _SERIES["federated_dp_personal"]
        axes.fill_between(epsilons, low, high, color=colour, alpha=0.16, linewidth=0)
        if len(gains) == 1:
            axes.plot(epsilons * 2, [low[0], high[0]], color=colour, linewidth=1.2)
        axes.plot(epsilons, means, color=colour, marker="P", linewidth=2.4, label="all shops")
        _epsilon_axis(axes, epsilons)
        axes.set_ylabel(f"gain in {gains[0]['metric'].upper()}")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: summary.signed(value, 3) if value else "0"))
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2, handletextpad=0.5, columnspacing=1.2)
        alt = ", ".join(
            f"{summary.signed(mean)} at epsilon {name:g}" for name, mean in zip(epsilons, means, strict=True)
        )
        text = (
            "Above the line, joining under shopper-level privacy beats the model that a shop trains alone. Lines: mean "
        )
        text += "over the shops of one size; band: 95\u00a0% interval over all shops, of shoppers and noise."
        title = "Gain from joining against ε"
        return Picture(
            "epsilon", title, text, inline_svg(figure, "epsilon", f"Gain over all shops: {alt}.", _VARIABLES)
        )


def _epsilon_axis(axes: Axes, epsilons: list[float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(min(epsilons) / 1.3, max(epsilons) * 1.3)
    axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("ε (smaller promises more)")


def _name_points(axes: Axes, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Names beside the points, the farthest from zero first; none where it would hide another."""
    taken: list[np.ndarray] = []
    for name in sorted(rows, key=lambda name: -abs(rows[name]["mean"])):
        point = (rows[name]["shoppers"], rows[name]["mean"])
        place = axes.transAxes.inverted().transform(axes.transData.transform(point))
        if all(abs(other - place)[0] > 0.2 or abs(other - place)[1] > 0.06 for other in taken):
            taken.append(place)
            axes.annotate(_shortened(name), point, (6, 4), textcoords="offset points", fontsize=9)


def _errorbars(axes: Axes, rows: list[Mapping[str, Any]], colour: str, marker: str, label: str) -> None:
    means = np.array([row["mean"] for row in rows])
    ends = np.array([[_or(row["low"], row["mean"]), _or(row["high"], row["mean"])] for row in rows])
    axes.errorbar(
        [row["shoppers"] for row in rows],
        means,
        yerr=np.abs(ends - means[:, None]).T,
        fmt=marker,
        color=colour,
        ecolor=colour,
        elinewidth=1.2 if len(rows) <= _MAX_ROWS else 0.6,
        markersize=6 if len(rows) <= _MAX_ROWS else 4,
        markerfacecolor=colour if marker == "D" else PAPER,
        label=label,
    )


def _metrics_by_shop(record: Record) -> Picture | None:
    """NDCG@10 of each column: one line a shop, or one line a column where there are many shops."""
    names = [row["shop"] for row in sorted(record["data"]["shops"], key=lambda row: (row["shoppers"], row["shop"]))]
    found = {
        column: {name: summary.shop_mean(record, column, name, "ndcg@10") for name in names}
        for column in summary.key_columns(record)
    }
    values = {
        column: {name: value for name, value in rows.items() if value is not None} for column, rows in found.items()
    }
    values = {column: rows for column, rows in values.items() if rows}
    if not values:
        return None
    shops = [shop for shop in names if any(shop in rows for rows in values.values())]
    draw = _dots_by_shop if len(shops) <= _MAX_ROWS else _spread_by_column
    with mpl.rc_context(STYLE):
        figure = draw(values, shops)
        alt = f"NDCG@10 of {', '.join(summary.title_of(column) for column in values)} in {len(shops)} shops."
        text = (
            "Each line is a shop, the largest on top; each mark is a column."
            if draw is _dots_by_shop
            else "Each dot is a shop; the upright line is the median shop."
        )
        return Picture("shops", "NDCG@10 by shop", text, inline_svg(figure, "shops", alt, _VARIABLES))


def _dots_by_shop(values: Mapping[str, Mapping[str, float]], shops: list[str]) -> Figure:
    figure, axes = canvas(1.0 + 0.1 * len(values) + 0.27 * max(len(shops), 2))
    places = {shop: place for place, shop in enumerate(shops)}
    for shop, place in places.items():
        ends = [rows[shop] for rows in values.values() if shop in rows]
        axes.plot([min(ends), max(ends)], [place, place], color=FAINT, linewidth=3, solid_capstyle="round", zorder=1)
    for column, rows in values.items():
        axes.scatter(
            list(rows.values()),
            [places[shop] for shop in rows],
            marker=_MARKERS.get(family_of(column), "P"),
            s=38,
            color=_SERIES.get(family_of(column), _OTHER),
            edgecolors=PAPER,
            linewidths=0.8,
            label=summary.title_of(column),
            zorder=3 if column == "federated_personal" else 2,
        )
    axes.set_yticks(list(places.values()), [_shortened(shop) for shop in shops])
    axes.set_ylim(-0.7, len(shops) - 0.3)
    axes.grid(False, axis="y")
    _score_axis(axes, "NDCG@10")
    _legend_above(axes)
    return figure


def _spread_by_column(values: Mapping[str, Mapping[str, float]], shops: list[str]) -> Figure:
    figure, axes = canvas(1.0 + 0.55 * len(values))
    rng = np.random.default_rng(0)
    for place, (column, rows) in enumerate(reversed(list(values.items()))):
        points = np.array(list(rows.values()))
        heights = place + rng.uniform(-0.26, 0.26, len(points))
        axes.scatter(points, heights, s=12, color=_SERIES.get(family_of(column), _OTHER), alpha=0.55, linewidths=0)
        axes.plot([np.median(points)] * 2, [place - 0.36, place + 0.36], color=INK, linewidth=2)
    axes.set_yticks(range(len(values)), [summary.title_of(column) for column in reversed(list(values))])
    axes.grid(False, axis="y")
    _score_axis(axes, "NDCG@10")
    return figure


_CHARACTER = {
    "popularity_bias@10": "popularity bias",
    "coverage@10": "coverage",
    "novelty@10": "novelty",
}


def _list_character(record: Record) -> Picture | None:
    """Popularity bias, coverage and novelty of each column, side by side."""
    metrics = {
        metric: title
        for metric, title in _CHARACTER.items()
        if any(summary.mean(record, column, metric) is not None for column in summary.key_columns(record))
    }
    if "popularity_bias@10" not in metrics:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 0.9 + 0.32 * len(summary.key_columns(record))), layout="constrained")
        panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, (metric, title) in zip(panels, metrics.items(), strict=True):
            _bars(axes, record, metric, title)
        bias = [
            f"{summary.title_of(column)} {summary.figure(summary.mean(record, column, 'popularity_bias@10'))}"
            for column in summary.key_columns(record)
        ]
        alt = f"Popularity bias by column: {', '.join(bias)}."
        text = "What the lists of ten are like, whether they hit or not: how much they favour popular items, and how "
        text += "much of a shop's catalogue they show. Lines are 95\u00a0% intervals."
        return Picture("character", "Popularity bias by column", text, inline_svg(figure, "character", alt, _VARIABLES))


def _bars(axes: Axes, record: Record, metric: str, title: str) -> None:
    columns = list(reversed(summary.key_columns(record)))
    for place, column in enumerate(columns):
        one = summary.estimate(record, column, metric)
        if (mean := one.get("mean")) is None:
            continue
        axes.barh(place, mean, height=0.62, color=_SERIES.get(family_of(column), _OTHER))
        axes.plot([_or(one.get("low"), mean), _or(one.get("high"), mean)], [place, place], color=INK, linewidth=1.4)
    axes.set_yticks(range(len(columns)), [summary.title_of(column) for column in columns])
    axes.set_title(title, fontsize=10)
    axes.grid(False, axis="y")
    axes.locator_params(axis="x", nbins=3)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _learning_curve(record: Record) -> Picture | None:
    """The shared model's NDCG@10 after each round; None where there is nothing between start and end."""
    points = [point for point in record["learning_curve"] if point.get("ndcg@10") is not None]
    if len(points) < 2:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = canvas(3.2)
        rounds, values = [point["round"] for point in points], [point["ndcg@10"] for point in points]
        axes.plot(rounds, values, color=_SERIES["federated"], **_marks("^", rounds), linewidth=2, label="federated")
        stopping, text = record["model"].get("early_stopping"), ""
        if stopping:
            found = [(point["round"], value) for point in points if (value := point.get(_VALIDATION)) is not None]
            marks = _marks("s", rounds)
            axes.plot(*zip(*found, strict=True), color=_OTHER, **marks, dashes=(4, 1.5), label="on validation")
            axes.axvline(stopping["round"], color=INK, linewidth=1, label="kept")
            text = (
                " The upright line is the round whose arrays are kept, the best on validation (half the mean of shops, "
            )
            text += "half that of shoppers)."
        levels = []
        for column, dashes, words in (
            ("local", (2, 2), "what shops reach alone"),
            ("pooled", (5, 3), "all data in one place"),
        ):
            if (level := summary.mean(record, column, "ndcg@10")) is not None:
                label = summary.title_of(column)
                axes.axhline(level, color=_SERIES[column], linewidth=1.4, dashes=dashes, label=label)
                levels.append(words)
        _round_axis(axes)
        axes.set_ylabel("NDCG@10, mean of shops")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: summary.score(value, 3) if value else "0"))
        _legend_above(axes)
        best = int(np.argmax(values))
        alt = (
            f"NDCG@10 is {summary.score(values[0])} after round {rounds[0]}, {summary.score(values[-1])} after round "
            f"{rounds[-1]}, at most {summary.score(values[best])} after round {rounds[best]}."
        )
        evaluation = record["config"]["evaluation"]
        limits = [evaluation.get(f"max_{of}_shoppers_per_shop") for of in ("test", "curve")]
        on = f", on at most {min(filter(None, limits)):,} test shoppers of a shop" if any(limits) else ""
        dashed = f"; dashed: {', and '.join(levels)}" if levels else ""
        text = f"The shared model after each round{on}{dashed}.{text}"
        return Picture("curve", "Learning curve", text, inline_svg(figure, "curve", alt, _VARIABLES))


def _training_loss(record: Record) -> Picture | None:
    """The loss that shops' training sees, after each round; None for models that send none, as under a promise."""
    points = [(one["round"], one["loss"]) for one in record["learning_curve"] if one.get("loss") is not None]
    if len(points) < 2:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = canvas(2.8)
        rounds, losses = [place for place, _ in points], [loss for _, loss in points]
        axes.plot(rounds, losses, color=_SERIES["federated"], **_marks("^", rounds), linewidth=2)
        _round_axis(axes)
        axes.set_ylabel("loss, mean of shoppers")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        alt = f"Training loss goes from {losses[0]:.4g} in round {rounds[0]} to {losses[-1]:.4g} in round {rounds[-1]}."
        text = "What shops' training minimises, in the last local epoch of each round, over all shops that answered. "
        text += "Its unit is the model's own, so it compares rounds, not models."
        return Picture("loss", "Training loss", text, inline_svg(figure, "loss", alt, _VARIABLES))


def _epsilon_spent(record: Record) -> Picture | None:
    """What the rounds of each epsilon's model have cost so far; None where one release is all of it."""
    lines = {}
    for run in (record.get("privacy") or {}).get("runs", []):
        points = (run.get("federated") or run["popularity"]).get("epsilon_by_round", [])
        if len(points) > 1:
            lines[f"ε {run['epsilon']:g}"] = [(0, 0.0), *((one["round"], one["epsilon"]) for one in points)]
    if not lines:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = canvas(3.2)
        for place, (label, points) in enumerate(lines.items()):
            colour, marker, dashes = _EPSILON_STYLES[place % len(_EPSILON_STYLES)]
            axes.step(*zip(*points, strict=True), where="post", color=colour, linewidth=2, dashes=dashes)
            axes.plot(*points[-1], color=colour, marker=marker, dashes=dashes, label=label)
        _round_axis(axes)
        axes.set_ylabel("ε spent")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=4, handletextpad=0.5, columnspacing=1.2)
        ends = ", ".join(f"{points[-1][1]:.3g} after {points[-1][0]} rounds" for points in lines.values())
        text = "What a shopper's privacy has cost after so many rounds, by the accountant that the promise is counted "
        text += "with. It is public, and the same whatever the data. Each line is a model of its own."
        return Picture("spent", "ε by round", text, inline_svg(figure, "spent", f"Epsilon spent: {ends}.", _VARIABLES))


def _round_axis(axes: Axes) -> None:
    axes.set_xlabel("rounds")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _marks(marker: str, rounds: list[int]) -> dict[str, Any]:
    """A marker at some twenty rounds at most, so that many rounds stay a line."""
    return {"marker": marker, "markevery": max(1, len(rounds) // 20), "markersize": 5}


def _legend_above(axes: Axes) -> None:
    labels = axes.get_legend_handles_labels()[1]
    many = len(labels) > 5 or max(map(len, labels)) > 20
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.42, 1.0), ncols=2 if many else 3, handletextpad=0.3, columnspacing=1.0
    )


def _score_axis(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".removeprefix("0") or "0"))


def _log_counts(axes: Axes, counts: list[int]) -> None:
    """A log axis with ticks at 1, 2, 5 times powers of ten (or powers alone over a wide range)."""
    low, high = max(min(counts), 1), max(*counts, 1)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.6, high * 2.2)
    steps = (1, 2, 5) if high / low < 300 else (1,)
    ticks = [step * 10**power for power in range(8) for step in steps]
    axes.set_xticks([tick for tick in ticks if low / 1.6 <= tick <= high * 2.2])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _shortened(name: str, limit: int = 18) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _or(value: float | None, instead: float) -> float:
    return instead if value is None else value
