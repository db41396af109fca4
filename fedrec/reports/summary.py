"""A run record in plain words and well-formed numbers, for the terminal and the report alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedrec.federation.run_record import epsilon_of, family_of, noisy_column

Record = Mapping[str, Any]

COLUMN_TITLES = {
    "popularity": "popularity",
    "dp_popularity": "DP popularity, ε {epsilon}",
    "local": "alone",
    "federated": "federated",
    "federated_personal": "federated + personal",
    "federated_dp": "federated DP(ε {epsilon})",
    "federated_dp_personal": "federated DP(ε {epsilon}) + personal",
    "pooled": "pooled, no privacy",
}
COLUMN_NOTES = {
    "popularity": "the shop's own most popular items",
    "dp_popularity": "one private release of all shops' counts: the floor for any private model",
    "local": "the model that the shop trains alone, with the same texts and the same search",
    "federated": "the shared model as it comes from the coordinator",
    "federated_personal": "the shared model with the shop's own statistics mixed in, where that helps",
    "federated_dp": "the shared model under shopper-level differential privacy, nothing tuned on shoppers' data",
    "federated_dp_personal": "the same with the shop's own statistics mixed in at home, where that helps",
    "pooled": "all shops' data in one place: the reference that a federation tries to match",
}
NOTHING = "–"
MINUS = "−"


SAYS_MORE = "its own shoppers say more than the noisy sum"
"""Reason of a shop that stays local by the noise and its own size, without a test."""


def title_of(column: str) -> str:
    """A column's name for people; a name of its own for columns that are not built in."""
    title = COLUMN_TITLES.get(family_of(column))
    return column.replace("_", " ") if title is None else title.format(epsilon=epsilon_of(column))


def short_title_of(column: str) -> str:
    """The same for narrow terminals: "DP(ε 2) + personal"."""
    return title_of(column).removeprefix("federated ") if epsilon_of(column) else title_of(column)


def note_of(column: str) -> str:
    """What a column is; "" for columns that are not built in."""
    return COLUMN_NOTES.get(family_of(column), "")


def key_columns(record: Record) -> list[str]:
    """The columns for places with little room: those without an epsilon, and those with the main column's."""
    main = epsilon_of(record.get("main_column") or "")
    return [column for column in record["columns"] if epsilon_of(column) in ("", main)]


def score(value: float | None, digits: int = 4) -> str:
    """A figure between 0 and 1 as papers print it: .1263; "–" where there is none."""
    if value is None:
        return NOTHING
    text = f"{abs(value):.{digits}f}"
    sign = MINUS if value < 0 and float(text) else ""
    return sign + (text[1:] if text.startswith("0.") else text)


def figure(value: float | None) -> str:
    """A figure of any size in three significant digits: .0004, .943, 4.79, 60.3."""
    if value is None:
        return NOTHING
    if abs(value) < 1:
        return score(value, 3 if abs(value) >= 0.1 or value == 0 else 4)
    return f"{value:,.{max(0, 3 - len(str(int(abs(value)))))}f}"


def signed(value: float | None, digits: int = 4) -> str:
    """A difference with its sign: +.0522, −.0010."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    text = score(value, digits)
    return text if text.startswith(MINUS) else f"+{text}"


def interval(estimate: Mapping[str, float | None] | None, digits: int = 4) -> str:
    """Both ends of an interval of scores: .0311–.0732."""
    if not estimate or estimate.get("low") is None or estimate.get("high") is None:
        return NOTHING
    return f"{score(estimate['low'], digits)}–{score(estimate['high'], digits)}"


def signed_interval(estimate: Mapping[str, float | None] | None, digits: int = 4) -> str:
    """Both ends of an interval of differences: +.0311 to +.0732."""
    if not estimate or estimate.get("low") is None or estimate.get("high") is None:
        return NOTHING
    if estimate["low"] == estimate["high"] == 0:
        return NOTHING
    return f"{signed(estimate['low'], digits)} to {signed(estimate['high'], digits)}"


def count(value: float | None) -> str:
    """A whole number with thousands separated: 14,852."""
    return NOTHING if value is None else f"{value:,.0f}"


def size(value: float | None) -> str:
    """Bytes in the unit that reads best: 1.2 MB."""
    if value is None:
        return NOTHING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.1f} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that reads best: 0.04 s, 12.5 s, 3 min 07 s."""
    if seconds is None:
        return NOTHING
    if seconds >= 60:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"


def plural(number: int, noun: str) -> str:
    """1 shop, 2 shops."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def estimate(record: Record, column: str, metric: str, over: str = "macro") -> Mapping[str, float | None]:
    """Mean, low and high of a metric, or an empty mapping."""
    return record["scores"].get(column, {}).get(over, {}).get(metric) or {}


def mean(record: Record, column: str, metric: str, over: str = "macro") -> float | None:
    """The mean of a metric over shops, or None."""
    return estimate(record, column, metric, over).get("mean")


def shop_mean(record: Record, column: str, shop: str, metric: str) -> float | None:
    """The mean of a metric in one shop, or None."""
    shops = record["scores"].get(column, {}).get("shops", {})
    return ((shops.get(shop) or {}).get(metric) or {}).get("mean")


def what_was_run(record: Record) -> str:
    """One line: model, data, who took part."""
    data = record["data"]
    shops = plural(len(data["shops"]), "shop")
    parts = (plural(data["shoppers"], "shopper"), plural(data["items"], "item"), plural(data["events"], "event"))
    return f"{record['model']['name']} on {data['source']}: {shops}, {', '.join(parts)}"


def sentences(record: Record) -> list[str]:
    """What the run says about the question "what do I gain by joining?", in plain words."""
    parts = (
        _gain(record),
        _popularity(record),
        _who_joins(record),
        _harm(record),
        _by_epsilon(record),
        _harm_by_epsilon(record),
        _private_floor(record),
        _retention(record),
        _stopped(record),
        _part_asked(record),
    )
    return [text for text in parts if text]


def _gain(record: Record) -> str:
    gain = record.get("gain")
    if not gain or (gain.get("macro") or {}).get("mean") is None:
        return ""
    joined, alone = mean(record, gain["of"], gain["metric"]), mean(record, gain["over"], gain["metric"])
    average = gain["macro"]
    chance = "" if _is_shown(average) else " The interval holds zero: that may be chance."
    promise = f" under ε {epsilon}" if (epsilon := epsilon_of(gain["of"])) else ""
    return (
        f"A shop that takes part{promise} gets lists of {gain['metric'].upper()} {score(joined)} on average over "
        f"shops, against {score(alone)} from the model it trains alone: a difference of {signed(average['mean'])} "
        f"(95\u00a0% interval {signed_interval(average)}).{chance}"
    )


def _popularity(record: Record) -> str:
    """Only where it takes part in the answer: the shop's best-sellers beat its own model."""
    popular, alone = mean(record, "popularity", "ndcg@10"), mean(record, "local", "ndcg@10")
    if popular is None or alone is None or popular <= alone:
        return ""
    return f"The best-sellers of each shop ({score(popular)}) do better than the models that shops train alone."


def _is_shown(average: Mapping[str, float | None]) -> bool:
    low, high = average.get("low"), average.get("high")
    return low is not None and high is not None and (low > 0 or high < 0)


def _who_joins(record: Record) -> str:
    gain = record.get("gain")
    shops = list((gain or {}).get("shops", {}).values())
    if not shops:
        return ""
    joining = [shop for shop in shops if shop.get("decision") == "joins"]
    measured = [shop for shop in joining if shop.get("mean") is not None]
    better = sum(shop["mean"] > 0 for shop in measured)
    sure = sum(shop["low"] is not None and shop["low"] > 0 for shop in measured)
    verb = "joins" if len(joining) == 1 else "join"
    text = f"{len(joining)} of {plural(len(shops), 'shop')} {verb}"
    if measured:
        text += f"; {better} of them {'gains' if better == 1 else 'gain'} on test, {sure} beyond chance"
    stay = len(shops) - len(joining)
    if stay:
        text += f". {stay} {'stays' if stay == 1 else 'stay'} with the local model, {_why_local(shops)}"
    return text + "."


def _why_local(shops: list[Any]) -> str:
    """Why the shops that stay do so: by their own test, or because the release is worth too little to them."""
    staying = [shop.get("reason") or "" for shop in shops if shop.get("decision") != "joins"]
    knowing = sum(reason.startswith(SAYS_MORE) for reason in staying)
    whose = "its" if knowing == 1 else "their"
    if knowing == len(staying):
        return f"since {whose} own shoppers say more than the noisy sum"
    text = "since validation showed no gain"
    return f"{text}, or ({knowing}) {whose} own shoppers say more than the noisy sum" if knowing else text


def _harm(record: Record) -> str:
    gain = record.get("gain")
    if not gain or gain.get("harmed_shops") is None:
        return ""
    harmed, worst = gain["harmed_shops"], gain.get("worst") or {}
    text = "No shop is harmed" if harmed == 0 else f"{plural(harmed, 'shop')} {'is' if harmed == 1 else 'are'} harmed"
    text += " (Holm-corrected 95\u00a0% intervals)"
    if worst.get("mean") is not None and worst["mean"] < 0:
        return f"{text}; the largest point loss is {signed(worst['mean'])}, in {worst['shop']}."
    return f"{text}; no shop loses on test." if harmed == 0 else f"{text}."


def _by_epsilon(record: Record) -> str:
    """Where several epsilons were tried: what each brings, and from which on it is more than chance."""
    rows = [row for row in record.get("gain_by_epsilon") or [] if row["macro"]["mean"] is not None]
    if len(rows) < 2:
        return ""
    parts = [f"{signed(row['macro']['mean'])} at ε {epsilon_of(row['of'])}" for row in rows]
    sure = [epsilon_of(row["of"]) for row in rows if (row["macro"]["low"] or 0) > 0]
    text = f"What joining brings on average over shops: {', '.join(parts)}; "
    if not sure:
        return text + "none of that is beyond chance."
    return text + f"beyond chance at ε {', '.join(sure)}."


def _harm_by_epsilon(record: Record) -> str:
    rows = record.get("gain_by_epsilon") or []
    if len(rows) < 2:
        return ""
    harmed = [
        f"{plural(row['harmed_shops'], 'shop')} at ε {epsilon_of(row['of'])}" for row in rows if row["harmed_shops"]
    ]
    if harmed:
        return f"Harmed by joining (Holm-corrected 95\u00a0% intervals): {', '.join(harmed)}."
    lost = [row for row in rows if row["worst"] is not None and row["worst"]["mean"] < 0]
    if not lost:
        return "At no epsilon is a shop harmed, and none loses on test."
    worst = min(lost, key=lambda row: row["worst"]["mean"])
    return (
        f"At no epsilon is a shop harmed (Holm-corrected 95\u00a0% intervals); the largest point loss is "
        f"{signed(worst['worst']['mean'])}, in {worst['worst']['shop']} at ε {epsilon_of(worst['of'])}."
    )


def _private_floor(record: Record) -> str:
    """Whether the private models beat one private release of popularity, the floor of all of them."""
    under = []
    compared = 0
    for column in record["columns"]:
        if family_of(column) not in ("federated_dp", "federated_dp_personal"):
            continue
        floor = mean(record, noisy_column("dp_popularity", float(epsilon_of(column))), "ndcg@10")
        reached = mean(record, column, "ndcg@10")
        if floor is not None and reached is not None:
            compared += 1
            under += [f"{title_of(column)} ({score(reached)} against {score(floor)})"] if reached < floor else []
    if under:
        return f"Under DP popularity, the floor for private models: {', '.join(under)}."
    return "Every private model beats DP popularity, the floor at the same epsilon." if compared else ""


def _retention(record: Record) -> str:
    column = record.get("main_column")
    pooled, main = mean(record, "pooled", "ndcg@10"), mean(record, column or "", "ndcg@10")
    if not pooled or main is None or column == "pooled":
        return ""
    share = f"{100 * main / pooled:.0f}\u00a0%"
    return f"All data in one place would give {score(pooled)}; the federation reaches {share} of that."


def _stopped(record: Record) -> str:
    """Which round is served where rounds may stop early, and what that costs the comparison."""
    stopping = record["model"].get("early_stopping")
    if not stopping:
        return ""
    return (
        f"The shared model is that of round {stopping['round']} of {len(record['rounds'])}, the best on validation "
        f"shoppers (raw data, no guarantee); rounds end after {stopping['patience']} without a better one. For that, "
        "the federation and the pooled model learn without the validation events, the pooled one for as many epochs; "
        "models that shops train alone learn from them too."
    )


def _part_asked(record: Record) -> str:
    """How many shops a round asked, where not all."""
    asked = {one["shops"] + one["failed"] for one in record["rounds"] if one.get("not_asked")}
    if not asked:
        return ""
    return f"Each round asks {plural(max(asked), 'shop')} of {len(record['data']['shops'])}, drawn anew by the seed."
