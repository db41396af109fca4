"""Print the tables of RESULTS.md from run directories: python simulations/table.py RUN_DIR [RUN_DIR ...]."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from fedrec.federation.run_record import epsilon_of, family_of
from fedrec.reports.summary import key_columns

METRICS = ("ndcg@10", "hr@10", "recall@20", "mrr@10", "coverage@10", "popularity_bias@10")
NAMES = {
    "popularity": "popularity",
    "dp_popularity": "DP popularity(ε {epsilon})",
    "local": "local only",
    "federated": "federated",
    "federated_personal": "federated + personal",
    "federated_dp": "federated DP(ε {epsilon})",
    "federated_dp_personal": "federated DP(ε {epsilon}) + personal",
    "pooled": "pooled",
}


def name_of(column: str) -> str:
    """A column as RESULTS.md calls it."""
    return NAMES[family_of(column)].format(epsilon=epsilon_of(column))


def figure(value: dict[str, float | None] | None, digits: int = 4) -> str:
    """Mean and interval as ".0912 (.0880–.0944)"."""
    if value is None or value["mean"] is None:
        return "–"
    mean, low, high = (None if value[key] is None else f"{value[key]:.{digits}f}" for key in ("mean", "low", "high"))
    text = mean if low is None else f"{mean} ({low} to {high})"
    return re.sub(r"(?<![\d.])0\.", ".", str(text))


def columns_table(record: dict[str, Any]) -> list[str]:
    """One row a column: macro figures, and micro NDCG@10."""
    lines = ["| column | " + " | ".join(f"{m}, macro" for m in METRICS) + " | ndcg@10, micro |"]
    lines.append("|---" * (len(METRICS) + 2) + "|")
    for column in record["columns"]:
        scores = record["scores"][column]
        cells = [figure(scores["macro"].get(metric)) for metric in METRICS]
        lines.append(f"| {name_of(column)} | " + " | ".join([*cells, figure(scores["micro"]["ndcg@10"])]) + " |")
    return lines


def epsilons_table(record: dict[str, Any]) -> list[str]:
    """One row an epsilon: gain over local-only, by size of shop, who joins, who is harmed, the worst point loss."""
    gains = record["gain_by_epsilon"]
    classes = list(gains[0]["classes"])
    titles = ["ε", f"gain in {gains[0]['metric']}, macro", "micro", *classes, "join", "harmed", "worst"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for gain in gains:
        joining = sum(row.get("decision") == "joins" for row in gain["shops"].values())
        worst = gain["worst"]
        cells = [epsilon_of(gain["of"]), figure(gain["macro"]), figure(gain["micro"])]
        cells += [figure(gain["classes"][name]) for name in classes]
        cells += [f"{joining} of {len(gain['shops'])}", str(gain["harmed_shops"])]
        lines.append("| " + " | ".join([*cells, f"{worst['shop']} ({worst['mean']:+.4f})" if worst else "–"]) + " |")
    return lines


def shops_table(record: dict[str, Any], most: int = 60) -> list[str]:
    """One row a shop: shoppers, every column's NDCG@10 (of the first epsilon), gain and decision."""
    columns = key_columns(record)
    lines = ["| shop | shoppers | test | " + " | ".join(name_of(c) for c in columns) + " | gain | decision |"]
    lines.append("|---" * (len(columns) + 5) + "|")
    shops = sorted(record["data"]["shops"], key=lambda shop: -shop["shoppers"])
    tested = [shop for shop in shops if record["scores"][columns[0]]["shops"][shop["shop"]]["test_shoppers"]]
    for shop in tested[:most]:
        name = shop["shop"]
        cells = [figure(record["scores"][c]["shops"][name]["ndcg@10"], 3) for c in columns]
        gain = record["gain"]["shops"][name] if record["gain"] else {}
        cells += [figure(gain or None), f"{gain.get('decision', '–')}: {gain.get('reason', '')}"]
        num_tested = record["scores"][columns[0]]["shops"][name]["test_shoppers"]
        lines.append(f"| {name} | {shop['shoppers']} | {num_tested} | " + " | ".join(cells) + " |")
    if len(tested) > most:
        lines.append(f"\n({len(tested) - most} smaller shops are in run.json.)")
    return lines


def promise(record: dict[str, Any]) -> list[str]:
    """What the private columns promise, in one line."""
    privacy = record["privacy"]
    if privacy is None:
        return []
    run = privacy["runs"][0]
    spec = (run.get("federated") or run["popularity"])["spec"]
    kind = "benchmark, no deployable guarantee" if privacy["is_benchmark"] else "deployable assumptions"
    return [
        f"Shopper-level DP, mode {privacy['mode']}, δ = {privacy['delta']:g}, n_min = {spec['min_shops']}, "
        f"t = {spec['colluders']}, {spec['public_shoppers']:,} public shoppers, {privacy['noise_draws']} noise draws "
        f"({kind}).",
        "",
    ]


def describe(record: dict[str, Any]) -> list[str]:
    """Everything RESULTS.md says of one run."""
    data, gain = record["data"], record["gain"]
    lines = [
        f"{data['events']:,} events, {data['shoppers']:,} shoppers, {len(data['shops'])} shops, "
        f"{data['items']:,} items; split {data['split']['kind']}; seed {record['seed']}; "
        f"{data['fingerprint'][:23]}…; fedrec {record['fedrec']}, "
        f"{record['threads']} threads, {record['seconds']['total']:.0f} s, "
        f"peak {record['peak_memory_bytes'] / 2**30:.2f} GiB.",
        "",
        *promise(record),
        *columns_table(record),
        "",
    ]
    if gain:
        worst = gain["worst"] or {"shop": "–", "mean": 0.0}
        lines += [
            f"Gain of {name_of(gain['of'])} over {name_of(gain['over'])} ({gain['metric']}): "
            f"macro {figure(gain['macro'])}, micro {figure(gain['micro'])}; harmed shops {gain['harmed_shops']}; "
            f"worst {worst['shop']} ({worst['mean']:+.4f}).",
            "",
        ]
    if record["gain_by_epsilon"]:
        lines += [*epsilons_table(record), ""]
    lines += shops_table(record)
    if record["compatibility"]:
        lines += ["", "Compatibility only (99 sampled negatives):", ""]
        lines += [
            f"- {name_of(c)}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items())
            for c, figures in record["compatibility"].items()
        ]
    return lines


def main(arguments: list[str]) -> int:
    """Print the tables of each run directory."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    for argument in arguments:
        record = json.loads((Path(argument) / "run.json").read_text())
        print(f"### {record['name']} · {record['model']['name']}\n")
        print("\n".join(describe(record)), "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
