"""Made-up run records, true to the schema."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

METRICS = ("ndcg", "hr", "recall", "mrr")
EXTRAS = ("coverage@10", "novelty@10", "diversity@10", "gini@10", "serendipity@10", "popularity_bias@10")
LEVELS = {"popularity": 0.05, "local": 0.09, "federated": 0.10, "federated_personal": 0.12, "pooled": 0.125}
PRIVATE_LEVELS = {"dp_popularity": 0.045, "federated_dp": 0.08, "federated_dp_personal": 0.11}


def make_record(
    num_shops: int = 8,
    *,
    seed: int = 0,
    untested: int = 0,
    name: str = "made-up",
    epsilons: tuple[float, ...] = (),
) -> dict[str, Any]:
    """A record of ``num_shops`` shops, the last ``untested`` of them without test shoppers.

    With epsilons: the columns under differential privacy too, the first epsilon's as the main one.
    """
    record = _plain_record(num_shops, seed, untested, name)
    if epsilons:
        _add_private_columns(record, epsilons, np.random.default_rng(seed + 1))
    return record


def _add_private_columns(record: dict[str, Any], epsilons: tuple[float, ...], rng: np.random.Generator) -> None:
    names = [row["shop"] for row in record["data"]["shops"]]
    tested = {row["shop"]: row["test_shoppers"] for row in record["data"]["shops"]}
    columns = [f"{family}@{epsilon:g}" for family in PRIVATE_LEVELS for epsilon in sorted(epsilons)]
    for column in columns:
        family, _, epsilon = column.partition("@")
        record["scores"][column] = _column(PRIVATE_LEVELS[family] * float(epsilon) ** 0.1, names, tested, rng)
    record["columns"] += columns
    record["main_column"] = f"federated_dp_personal@{epsilons[0]:g}"
    classes = {"under 100 shoppers": names[-1:], "100 to 9,999 shoppers": names[:-1]}
    record["gain_by_epsilon"] = []
    for epsilon in sorted(epsilons):
        gain = json.loads(json.dumps(record["gain"]))
        gain |= {"of": f"federated_dp_personal@{epsilon:g}", "epsilon": epsilon}
        if gain["macro"]["mean"] is not None:
            gain["macro"] = {key: value + epsilon / 100 for key, value in gain["macro"].items()}
        gain["classes"] = {
            name: {**gain["macro"], "shops": len(shops), "test_shoppers": 9} for name, shops in classes.items() if shops
        }
        record["gain_by_epsilon"].append(gain)
    record["gain"] = next(gain for gain in record["gain_by_epsilon"] if gain["of"] == record["main_column"])
    release = {"name": "co-occurrence", "clip_norm": 1.0, "noise_multiplier": 2.345, "sampling_rate": 1.0}
    spec = {"public_shoppers": 6000, "max_shoppers": 7000, "min_shops": 6, "colluders": 1, "max_shops_per_person": 1}
    federated = {
        "model": "private-ease",
        "settings": {"released_items": 612, "regularisation": 28.5},
        "guarantee": "epsilon, delta",
        "spec": spec,
        "schedule": [release],
        "epsilon_by_accounts": {"1": 1.234, "2": 2.345, "3": 3.456},
        "epsilon_by_round": [{"round": 1, "epsilon": 0.4}, {"round": 2, "epsilon": 1.234}],
        "rounds": [{**record["rounds"][1], "name": "noisy pairs"}],
    }
    record["privacy"] = {
        "unit": "one shopper",
        "mode": "distributed",
        "delta": 1e-6,
        "is_benchmark": False,
        "not_protected": "the coordinator sees each sum",
        "public_inputs": "counted as declared",
        "noise_draws": 3,
        "noise": "from the operating system",
        "parameters": "by rule",
        "joins": "by test or size",
        "keep_validation_back": names[:1],
        "runs": [
            {"epsilon": epsilon, "federated": federated, "ledger": f"privacy/eps-{epsilon:g}/ledger.sqlite"}
            for epsilon in sorted(epsilons)
        ],
    }


def _plain_record(num_shops: int, seed: int, untested: int, name: str) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    names = [f"shop-{place:03d}" for place in range(num_shops)]
    sizes = np.geomspace(6000, 60, num_shops).astype(int) if num_shops > 1 else np.array([500])
    tested = {shop: 0 if place >= num_shops - untested else int(sizes[place]) for place, shop in enumerate(names)}
    scores = {column: _column(level, names, tested, rng) for column, level in LEVELS.items()}
    gains = {}
    for place, shop in enumerate(names):
        if not tested[shop]:
            gains[shop] = dict.fromkeys(("mean", "low", "high", "p_value", "holm_low", "holm_high"))
        else:
            joined, alone = (scores[column]["shops"][shop]["ndcg@10"] for column in ("federated_personal", "local"))
            mean = joined["mean"] - alone["mean"]
            half = 0.5 / np.sqrt(tested[shop])
            gains[shop] = {"mean": mean, "low": mean - half, "high": mean + half, "p_value": 0.04}
            gains[shop] |= {"holm_low": mean - 2 * half, "holm_high": mean + 2 * half}
        joins = place % 5 != 3
        gains[shop] |= {
            "decision": "joins" if joins else "stays local",
            "reason": f"gain on {tested[shop]} validation shoppers (p = 0.040)",
            "shoppers": int(sizes[place]),
            "test_shoppers": tested[shop],
        }
    means = [row["mean"] for row in gains.values() if row["mean"] is not None]
    total = _estimate(float(np.mean(means)) if means else None, 0.01)
    measured = {shop: row["mean"] for shop, row in gains.items() if row["mean"] is not None}
    worst = min(measured, key=lambda shop: measured[shop], default=None)
    return {
        "format": 2,
        "gain_by_epsilon": [],
        "privacy": None,
        "fedrec": "0.1.0",
        "name": name,
        "created_utc": "2026-11-21T02:00:00Z",
        "seed": 0,
        "complete": True,
        "guarantee": "none: research mode; shops' sums leave unprotected",
        "config": {
            "name": name,
            "seed": 0,
            "data": {"source": "synthetic", "events": None, "columns": {}, "synthetic": {"num_shops": num_shops}},
            "model": {"name": "ease", "settings": {"regularisation": 100.0}, "tune": True},
            "evaluation": {"ks": [10, 20, 50], "max_curve_shoppers_per_shop": 1000},
        },
        "data": {
            "source": "synthetic",
            "licence": "generated, free of rights",
            "fingerprint": "sha256:0123456789abcdef",
            "rows_read": 107_421,
            "dropped": [{"reason": "no shopper", "rows": 12}, {"reason": "cancelled <or> negative", "rows": 340}],
            "handled": [{"what": "test rows whose item the shop does not have", "count": 3}],
            "events": 107_069,
            "shoppers": int(sizes.sum()),
            "items": 7658,
            "shared_items": 7001,
            "split": {"kind": "leave-last", "parameters": {"min_items": 3}, "seed": 0, "events": {"train": 90_000}},
            "shops": [
                {"shop": shop, "shoppers": int(size), "items": 900, "events": 9000, "test_shoppers": tested[shop]}
                for shop, size in zip(names, sizes, strict=True)
            ],
        },
        "model": {
            "name": "ease",
            "settings": {"local": {"regularisation": 100.0}, "federated": {"regularisation": 300.0}},
            "items_covered": 7001,
            "shared_values": 29_326_311,
            "tuned": [
                {"column": "local", "settings": {"regularisation": 100.0}, "ndcg@10": 0.09},
                {"column": "local", "settings": {"regularisation": 300.0}, "ndcg@10": 0.08},
            ],
        },
        "columns": list(LEVELS),
        "main_column": "federated_personal",
        "scores": scores,
        "gain": {
            "metric": "ndcg@10",
            "of": "federated_personal",
            "over": "local",
            "macro": total,
            "micro": total,
            "shops": gains,
            "harmed_shops": 0,
            "worst": {"shop": worst, "mean": measured.get(worst) if worst else None},
        },
        "compatibility": {"local": {"hr@10 (99 negatives, clean)": 0.61}},
        "rounds": [
            {"index": 0, "name": "popularity", "seconds": 0.2, "shops": num_shops, "failed": 0}
            | {"bytes_up": 61_264 * num_shops, "bytes_down": 1200},
            {"index": 1, "name": "co-occurrence", "seconds": 11.2, "shops": num_shops, "failed": 0}
            | {"bytes_up": 234_610_488 * num_shops, "bytes_down": 61_264},
        ],
        "learning_curve": [{"round": 1, "ndcg@10": 0.05}, {"round": 2, "ndcg@10": 0.10}],
        "seconds": {"load and split": 2.1, "choose settings": 70.2, "federated rounds": 11.4, "total": 101.3},
        "bytes": {"up": 234_671_752 * num_shops, "down": 62_464},
        "peak_memory_bytes": 2_400_000_000,
        "versions": {"python": "3.12.3", "fedrec": "0.1.0", "flwr": "1.41.0", "numpy": "2.4.6"},
        "threads": 2,
        "cores": 2,
        "files": ["run.json", "report.html"],
    }


def _column(of_column: float, names: list[str], tested: dict[str, int], rng: np.random.Generator) -> dict[str, Any]:
    shops: dict[str, dict[str, Any]] = {}
    for shop in names:
        level = of_column * float(rng.uniform(0.7, 1.3))
        means = {
            f"{metric}@{k}": level * (1 + place / 4) * (k / 10) ** 0.3
            for place, metric in enumerate(METRICS)
            for k in (10, 20, 50)
        } | {metric: float(rng.uniform(0.1, 0.6)) for metric in EXTRAS}
        shops[shop] = {metric: _estimate(mean if tested[shop] else None, 0.02) for metric, mean in means.items()}
        shops[shop]["test_shoppers"] = tested[shop]
    macro = {}
    for metric in means:
        known = [row[metric]["mean"] for row in shops.values() if row[metric]["mean"] is not None]
        macro[metric] = _estimate(float(np.mean(known)) if known else None, 0.008)
    return {"macro": macro, "micro": macro, "shops": shops}


def _estimate(mean: float | None, half: float) -> dict[str, float | None]:
    return (
        {"mean": mean, "low": None, "high": None}
        if mean is None
        else {
            "mean": mean,
            "low": mean - half,
            "high": mean + half,
        }
    )


@pytest.fixture
def record_of() -> Callable[..., dict[str, Any]]:
    """`make_record` for tests."""
    return make_record
