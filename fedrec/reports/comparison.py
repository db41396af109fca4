"""The report of a comparison: a run record as one HTML file that needs nothing else."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from fedrec.errors import StoreError
from fedrec.federation.run_record import family_of
from fedrec.reports import summary
from fedrec.reports.figures import pictures
from fedrec.reports.summary import Record

_ACCURACY = ("ndcg", "hr", "recall", "mrr")
_CHARACTER = {
    "coverage@10": "Coverage",
    "novelty@10": "Novelty",
    "diversity@10": "Diversity",
    "gini@10": "Gini",
    "serendipity@10": "Serendipity",
    "popularity_bias@10": "Popularity bias",
}


def write_report(record: Mapping[str, Any], path: str | Path) -> None:
    """Render a run record as a self-contained page: styles and plots inline, no scripts, no requests.

    Args:
        record: what ``run.json`` holds.
        path: of the HTML file; written beside it first, then renamed over it.
    Raises:
        StoreError: the file cannot be written.
    """
    path = Path(path)
    page = render(record)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"{path}: cannot be written ({error.strerror})") from error


def render(record: Record) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("fedrec.reports"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "score": summary.score,
        "signed": summary.signed,
        "interval": summary.interval,
        "signed_interval": summary.signed_interval,
        "count": summary.count,
        "size": summary.size,
        "duration": summary.duration,
        "figure": summary.figure,
        "metric": _metric,
        "variable": _variable,
        "direction": _direction,
        "plain": _plain,
    }
    promises, shops = _promises(record), _shops(record)
    return environment.get_template("comparison.html").render(
        record=record,
        headline=_headline(record),
        subtitle=summary.what_was_run(record),
        sentences=summary.sentences(record),
        tiles=_tiles(record),
        columns=_columns(record),
        accuracy=[metric for metric in _metrics(record) if metric.startswith(_ACCURACY)],
        character=_character(record),
        key_columns=[column for column in _columns(record) if column["name"] in summary.key_columns(record)],
        shops=shops,
        is_sampled=any(shop["scored"] != shop["test_shoppers"] for shop in shops),
        gains=gains if len(gains := record.get("gain_by_epsilon") or []) > 1 else [],
        promises=promises,
        rounds=_rounds(record, promises),
        pictures=pictures(record),
        settings=_settings(record),
        tuned=_tuned(record),
        compatibility=_compatibility(record),
        scenario=to_toml(record["config"]),
        split=", ".join(_split_words(record["data"]["split"])),
    )


def _headline(record: Record) -> str:
    return f"What joining brings: {record['name']}" if record.get("gain") else f"Comparison: {record['name']}"


def _tiles(record: Record) -> list[dict[str, str]]:
    """Key figures on top: value, what it is, a remark."""
    tiles = []
    gain, main = record.get("gain"), record.get("main_column")
    if gain and (gain.get("macro") or {}).get("mean") is not None:
        average = gain["macro"]
        remark = f"{summary.signed_interval(average)} (95\u00a0%)"
        tiles.append(
            {"value": summary.signed(average["mean"]), "title": "gain in NDCG@10, mean of shops", "note": remark}
        )
    if main and (value := summary.mean(record, main, "ndcg@10")) is not None:
        alone = summary.mean(record, "local", "ndcg@10")
        remark = f"alone {summary.score(alone)}" if alone is not None and main != "local" else ""
        tiles.append({"value": summary.score(value), "title": f"NDCG@10 {summary.title_of(main)}", "note": remark})
    if gain and gain.get("shops"):
        joining = sum(row["decision"] == "joins" for row in gain["shops"].values())
        harmed = gain.get("harmed_shops")
        remark = "none harmed" if harmed == 0 else f"{harmed} harmed" if harmed else ""
        tiles.append({"value": f"{joining} of {len(gain['shops'])}", "title": "shops join", "note": remark})
    rounds, sent = len(record["rounds"]), record["bytes"].get("up")
    took = summary.duration(record["seconds"].get("total"))
    tiles.append(
        {"value": took, "title": f"in all, {summary.plural(rounds, 'round')}", "note": f"{summary.size(sent)} up"}
    )
    return tiles


def _metrics(record: Record) -> list[str]:
    """Metrics that any column has, in the record's order."""
    names: dict[str, None] = {}
    for column in record["columns"]:
        names |= dict.fromkeys(record["scores"].get(column, {}).get("macro", {}))
    return list(names)


def _character(record: Record) -> dict[str, str]:
    """Metrics of what lists are like, by title, that any column has a value for."""
    return {
        metric: title
        for metric, title in _CHARACTER.items()
        if any(summary.mean(record, column, metric) is not None for column in record["columns"])
    }


def _columns(record: Record) -> list[dict[str, Any]]:
    """One entry a column: title, remark (of one family's columns the first alone), width of its bar, estimates."""
    means = {name: summary.mean(record, name, "ndcg@10") for name in record["columns"]}
    top = max((value for value in means.values() if value is not None), default=0.0)
    explained: set[str] = set()
    columns = []
    for name in record["columns"]:
        columns.append(
            {
                "name": name,
                "title": summary.title_of(name),
                "note": "" if family_of(name) in explained else summary.note_of(name),
                "is_main": name == record.get("main_column"),
                "percent": round(100 * (means[name] or 0) / top, 1) if top else 0,
                "macro": {metric: summary.estimate(record, name, metric) for metric in _metrics(record)},
                "micro": {metric: summary.estimate(record, name, metric, "micro") for metric in _metrics(record)},
            }
        )
        explained.add(family_of(name))
    return columns


def _shops(record: Record) -> list[dict[str, Any]]:
    """One entry a shop, the largest first, with the shoppers that were scored, and the gain where there is one."""
    gain = record.get("gain") or {}
    scored = record["scores"][record["columns"][0]]["shops"]  # the same shoppers in every column
    rows = []
    for shop in sorted(record["data"]["shops"], key=lambda row: (-row["shoppers"], row["shop"])):
        scores = {column: summary.shop_mean(record, column, shop["shop"], "ndcg@10") for column in record["columns"]}
        num_scored = scored[shop["shop"]]["test_shoppers"]
        of_shop = (gain.get("shops") or {}).get(shop["shop"])
        rows.append({**shop, "scored": num_scored, "scores": scores, "gain": of_shop})
    return rows


def _times(release: Record) -> str:
    return f" × {release['local_steps']}" if release.get("local_steps") else ""


def _promises(record: Record) -> list[dict[str, Any]]:
    """One entry an epsilon: what it costs a person with several accounts, its noise, its parameters, its ledger."""
    entries = []
    for run in (record.get("privacy") or {}).get("runs", []):
        federated = run.get("federated") or run["popularity"]
        releases = Counter(
            f"{release['name']} σ {release['noise_multiplier']:.3g}{_times(release)}"
            for release in federated["schedule"]
        )
        given = {name: value for name, value in federated["settings"].items() if value is not None}
        entries.append(
            {
                "epsilon": f"{run['epsilon']:g}",
                "accounts": [f"{value:.3g}" for value in federated["epsilon_by_accounts"].values()],
                "noise": ", ".join(f"{count} × {what}" if count > 1 else what for what, count in releases.items()),
                "settings": [f"{name.replace('_', ' ')} {_plain(value)}" for name, value in given.items()],
                "ledger": run.get("ledger", ""),
                "spec": federated["spec"],
                "rounds": federated["rounds"],
            }
        )
    return entries


def _rounds(record: Record, promises: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a round: those without noise, then of each epsilon the first draw's.

    Without a column of the federation without noise the record's own rounds are one of the promises'.
    """
    has_plain = not promises or set(record["columns"]) & {"federated", "federated_personal"}
    rounds = [{**one, "epsilon": ""} for one in record["rounds"]] if has_plain else []
    return rounds + [{**one, "epsilon": promise["epsilon"]} for promise in promises for one in promise["rounds"]]


def _variable(column: str) -> str:
    """The page's colour of a column."""
    return f"var(--{family_of(column).replace('_', '-')}, var(--other))"


def _direction(row: Mapping[str, Any]) -> str:
    """The class of a cell: up or down where the interval leaves zero out."""
    if row["low"] is not None and row["low"] > 0:
        return "up"
    return "down" if row["high"] is not None and row["high"] < 0 else ""


def _metric(name: str) -> str:
    """ndcg@10 → NDCG@10; hr_all_test_rows@10 → HR@10 all test rows."""
    head, at, tail = name.partition("@")
    word, _, rest = head.partition("_")
    word = word.upper() if len(word) <= 4 else word.capitalize()
    return f"{word}{at}{tail} {rest.replace('_', ' ')}".strip()


def _settings(record: Record) -> dict[str, dict[str, str]]:
    """Setting → column → value, as text."""
    table: dict[str, dict[str, str]] = {}
    for column, settings in record["model"]["settings"].items():
        for name, value in settings.items():
            table.setdefault(name, {})[column] = _plain(value)
    return table


def _tuned(record: Record) -> list[dict[str, Any]]:
    """What was tried on validation, and which try won in its column."""
    tries = record["model"].get("tuned") or []
    best: dict[str, float] = {}
    for one in tries:
        if one["ndcg@10"] is not None:
            best[one["column"]] = max(best.get(one["column"], -1.0), one["ndcg@10"])
    return [
        {
            "column": summary.title_of(one["column"]),
            "settings": ", ".join(f"{name} = {_plain(value)}" for name, value in one["settings"].items()),
            "value": one["ndcg@10"],
            "is_best": one["ndcg@10"] is not None and one["ndcg@10"] == best.get(one["column"]),
        }
        for one in tries
    ]


def _compatibility(record: Record) -> dict[str, dict[str, float | None]]:
    """Metric → column → mean, of the sampled columns."""
    table: dict[str, dict[str, float | None]] = {}
    for column, metrics in (record.get("compatibility") or {}).items():
        for metric, value in metrics.items():
            table.setdefault(metric, {})[column] = value.get("mean") if isinstance(value, Mapping) else value
    return table


def _split_words(split: Mapping[str, Any]) -> list[str]:
    """Kind, parameters, what was drawn at random, events of each part."""
    words = [str(split.get("kind", ""))]
    words += [
        f"{name.replace('_', ' ')} {_plain(value)}" for name, value in (split.get("parameters") or {}).items() if value
    ]
    if split.get("random"):
        words.append(f"at random: {'; '.join(map(str, split['random']))}")
    events = split.get("events") or {}
    words += [f"{summary.count(rows)} {part.replace('_', '-')} events" for part, rows in events.items() if rows]
    return words


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:g}" if abs(value) < 1e6 else f"{value:,.0f}"
    return str(value)


def to_toml(config: Mapping[str, Any]) -> str:
    """A record's ``config`` entry as a scenario file; what is not set is left out."""
    return "\n".join(_toml_lines(config, ())).strip() + "\n"


def _toml_lines(section: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    values = {key: value for key, value in section.items() if value is not None and not isinstance(value, Mapping)}
    lines = [f"\n[{'.'.join(path)}]"] if path and values else []
    lines += [f"{_toml_key(key)} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    for key, value in section.items():
        if isinstance(value, Mapping):
            lines += _toml_lines(value, (*path, _toml_key(key)))
    return lines


def _toml_key(key: str) -> str:
    is_bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if is_bare else json.dumps(key, ensure_ascii=False)
