"""A privacy report in plain words: what is promised and to whom, what is not, and what the figures mean."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedrec.privacy.accounting import posterior
from fedrec.privacy.spec import UNIT

NOT_PROMISED = (
    "Nothing is promised between shoppers of one shop. Where a shop serves lists from its own raw statistics, a list "
    "shown to one shopper can tell something about another, as in any shop's own recommender.",
    "A shop's own secrets are not covered: sums over items that only it sells, that it takes part, when rounds ran.",
    "A guest checkout or a second account is counted like one more shop: see the figures for two and three accounts.",
    "Only what left through the ledger is counted: nothing from before its first entry, and nothing that left the shop "
    "by another way.",
)
"""What no run covers, in its own words for a lawyer."""

_ASSUMED = (
    "The attacker knows everything but whether one shopper is in the data: all other shoppers, the model, the plans, "
    "this report.",
    "The declared numbers (shoppers of the federation, catalogue, shops) were not computed from shoppers' events.",
    "The operating system's randomness is not to be guessed, and AES-256 is what it is held to be. How the noise is "
    "drawn costs a part of δ, which is counted.",
)

Figures = Mapping[str, Any]


def statements(books: Sequence[Figures]) -> dict[str, list[str]]:
    """All sentences of a report.

    Args:
        books: of `fedrec.reports.privacy_figures`.
    """
    runs = [run for book in books for run in book["runs"]]
    shops = [shop for book in books for shop in book["shops"]]
    return {
        "warnings": [*_simulated(books), *_warnings(runs, shops)],
        "promise": list(_promise(runs)),
        "means": [*_means(runs), *_lifetime(shops)],
        "assumed": [*_unique(_assumed_of(run) for run in runs), *_ASSUMED],
        "not_promised": list(NOT_PROMISED),
    }


def of_hundred(share: float) -> str:
    """A probability as "so many times in 100": 59.9, 1.63, 0.042, 99.998; never rounded to certainty."""
    value = 100 * share
    if 99.95 <= value < 100:
        return f"{value:.{min(9, -math.floor(math.log10(100 - value)))}f}"
    return f"{value:.3g}"


def number(value: float | None) -> str:
    """A figure in four significant digits; "–" where there is none."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 1e4 else f"{value:.4g}"


def alike(shops: Sequence[Figures]) -> list[tuple[list[str], Figures]]:
    """Shops whose figures are the same, together: their names, and the figures of the first."""
    own = ("shop", "head", "history", "first_utc", "last_utc", "runs")
    groups: dict[str, tuple[list[str], Figures]] = {}
    for shop in shops:
        same = {name: value for name, value in shop.items() if name not in own}
        states = [{name: value for name, value in run.items() if name != "run"} for run in shop["runs"]]
        key = json.dumps([same, states], sort_keys=True)
        groups.setdefault(key, ([], shop))[0].append(shop["shop"])
    return list(groups.values())


def names(shops: Sequence[str], most: int = 3) -> str:
    """uk; uk, fr; all 10 shops by the first: uk, fr, de and 7 more."""
    if len(shops) <= most:
        return ", ".join(shops)
    return f"{', '.join(shops[:most])} and {len(shops) - most} more"


def title_of(book: str) -> str:
    """A book's name for people: eps-2 → ε 2."""
    return f"ε {book.removeprefix('eps-')}" if book.startswith("eps-") else book


def is_open_to_coordinator(terms: Figures) -> bool:
    """Whether the coordinator saw each shop's sum by itself, with that shop's share of the noise alone."""
    return bool(terms["spec"]["mode"] == "distributed" and not terms["is_masked"])


def _simulated(books: Sequence[Figures]) -> Iterable[str]:
    if len(books) > 1:
        yield (
            f"{len(books)} promises ({', '.join(title_of(book['name']) for book in books)}), each counted as if it "
            "were the only one: only a simulation may make them over the same shoppers. A shop that did would have "
            "spent more than any of them."
        )


def _warnings(runs: Sequence[Figures], shops: Sequence[Figures]) -> Iterable[str]:
    terms = [run["terms"] for run in runs]
    if any(one["spec"]["is_benchmark"] for one in terms):
        yield "Counted for a benchmark (no colluders assumed): not a deployable guarantee."
    if any(one["is_noise_seeded"] for one in terms):
        yield "Noise from a seed, for tests and studies: whoever knows the seed can take it away. No guarantee."
    if any(is_open_to_coordinator(one) for one in terms):
        yield (
            "Not protected from the coordinator: secure aggregation was off, so it sees each shop's sum with that "
            f"shop's share of the noise alone{_against_coordinator(runs)}. The other figures hold against everyone who "
            "sees only the sums over shops."
        )
    if unanchored := [shop["shop"] for shop in shops if not shop["rollback_detectable"]]:
        yield (
            f"Rollback not detectable ({_count(dict.fromkeys(unanchored))}): nobody outside the shop keeps the "
            "ledger's head, so that a restored backup or a cloned machine would go unnoticed."
        )
    for shop in shops:
        if 0 < shop["anchored_sequence"] < shop["head"]["sequence"]:
            yield (
                f"Shop {shop['shop']}: the last entry that an anchor countersigned is {shop['anchored_sequence']}, the "
                f"ledger's last release is entry {shop['head']['sequence']}."
            )
    if recovered := [shop["shop"] for shop in shops if shop["recovered"]]:
        yield f"A lost copy of the ledger had released more, which was charged in full ({_count(recovered)})."


def _against_coordinator(runs: Sequence[Figures]) -> str:
    pairs = [(run["terms"]["spec"]["epsilon"], run["epsilon_of_coordinator"]) for run in runs]
    texts = [f"{number(seen)} for a promised {promised:g}" for promised, seen in pairs if seen is not None]
    return f" (ε {', '.join(dict.fromkeys(texts))})"


def _promise(runs: Sequence[Figures]) -> Iterable[str]:
    yield f"Protected is {UNIT}."
    modes = {run["terms"]["spec"]["mode"]: is_open_to_coordinator(run["terms"]) for run in runs}
    if "local" in modes:
        yield (
            "Mode local: from everyone outside her shop, the coordinator and the other shops included; every shop adds "
            "the full noise to what it sends."
        )
    if "distributed" in modes:
        whom = "other shops and whoever gets the model later" if modes["distributed"] else "everyone outside her shop"
        yield f"Mode distributed: from {whom}; the shops' shares of the noise protect the sum together."
    own = dict.fromkeys(one["local_steps"] for run in runs for one in run["schedule"] if one.get("local_steps"))
    if own:
        yield (
            f"In rounds of local steps a shop trains by itself ({', '.join(map(str, own))} steps a round): every step "
            "uses its shoppers through one noisy sum alone, each of these sums is counted, and only what follows from "
            "them leaves."
        )
    if not runs:
        yield "Nothing was released, and nothing is reserved."


def _means(runs: Sequence[Figures]) -> Iterable[str]:
    """One sentence for all runs with the same promise."""
    groups: dict[str, list[Figures]] = {}
    for run in runs:
        spec = run["terms"]["spec"]
        same = [spec["epsilon"], spec["delta"], run["odds"], is_open_to_coordinator(run["terms"])]
        groups.setdefault(json.dumps(same), []).append(run)
    for same in groups.values():
        run, spec = same[0], same[0]["terms"]["spec"]
        which = "One run" if len(same) == 1 else f"Each of {len(same)} runs"
        found = of_hundred(run["odds"]["found_at_one_percent"])
        sees = "the sums over shops" if is_open_to_coordinator(run["terms"]) else "all that leaves"
        yield (
            f"{which} at ε {spec['epsilon']:g}: whoever sees {sees} is right about whether a given shopper was "
            f"there at most {of_hundred(run['odds']['right_of_coin'])} times in 100 (a coin: 50). Accusing 1 "
            f"absent shopper in 100, he finds at most {found} in 100 who were there (by guessing: 1). Where he held "
            "it for 10\u00a0% likely before, he may hold it for at most "
            f"{of_hundred(posterior(0.1, spec['epsilon']))}\u00a0% afterwards, except with "
            f"probability δ\u00a0=\u00a0{spec['delta']:g}."
        )


def _lifetime(shops: Sequence[Figures]) -> Iterable[str]:
    for found, shop in alike(shops):
        if not shop["releases"] and not shop["recovered"]:
            continue
        yield (
            f"All that ever left ({names(found)}): lifetime ε {number(shop['lifetime'])} at δ "
            f"{shop['budget']['delta']:g}, right at most {of_hundred(shop['lifetime_odds']['right_of_coin'])} times in "
            f"100."
        )


def _assumed_of(run: Figures) -> str:
    spec = run["terms"]["spec"]
    most = spec["max_shops_per_person"]
    person = "one shop" if most == 1 else f"{most} shops, to which contributions were clipped"
    text = f"ε {spec['epsilon']:g}: nothing about other shops"
    if spec["mode"] == "distributed":
        text = (
            f"ε {spec['epsilon']:g}: at least {spec['min_shops']} shops in every sum, of which at most "
            f"{spec['colluders']} may tell the coordinator their noise"
        )
        if run["terms"]["is_masked"]:
            text += ", and masked sums: the keys on the roster are the shops' own, and X25519 and Ed25519 hold"
    return (
        f"{text}; {spec['public_shoppers']:,} shoppers declared, {spec['max_shoppers']:,} at most; a person has an "
        f"account in at most {person}."
    )


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _count(shops: Iterable[str]) -> str:
    found = list(dict.fromkeys(shops))
    return f"shop {found[0]}" if len(found) == 1 else f"{len(found)} shops"
