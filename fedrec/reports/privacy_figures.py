"""Every figure of a privacy report, computed from the entries of the ledgers in it and from nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedrec.privacy import accounting
from fedrec.privacy import ledger_rules as rules
from fedrec.privacy.ledger_account import Account, Run
from fedrec.privacy.ledger_entries import Costs, Counting, Entry, Kind
from fedrec.privacy.mechanisms import PlannedRelease, Schedule
from fedrec.reports import privacy_words as words
from fedrec.reports.privacy_entries import Book, ShopLedger, counted

DIGITS = 6
"""Significant digits of a figure: what the discretised accountants can vouch for, on any machine."""

ACCOUNTS = (1, 2, 3)
"""A person with so many accounts."""

CURVE_RATES = tuple(float(rate) for rate in (*np.geomspace(1e-4, 0.01, 9), *np.linspace(0.02, 0.98, 49), 0.99, 1.0))
"""False accusation rates at which an attacker's misses are given."""

_RELEASES = (Kind.CHARGE, Kind.RECOVER)


def document(books: Sequence[Book]) -> dict[str, Any]:
    """What a report says of the ledgers in it; unrounded.

    Args:
        books: chains checked.
    Returns:
        JSON values; infinite figures are None.
    Raises:
        LedgerTampered: entries that no ledger could have written.
        AccountantsDisagree: nothing can be reported.
    """
    found = [_book(book) for book in books]
    return {"books": found, "words": words.statements(found)}


def rounded(value: Any) -> Any:
    """JSON values with figures to `DIGITS` significant digits."""
    if isinstance(value, Mapping):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def differences(stored: Any, computed: Any, path: str = "") -> list[str]:
    """Where a report says something else than follows from its entries.

    Args:
        stored: as the report says it.
        computed: anew, unrounded. A machine whose logarithm differs in its last digits may round a figure the other
            way, so that a figure may lie half a unit of its last digit away, but no further.
    Returns:
        The places, as in ``books[0].shops[2].spent: 1.9 in place of 1.99999``.
    """
    if isinstance(stored, Mapping) and isinstance(computed, Mapping):
        if stored.keys() != computed.keys():
            return [f"{path or 'report'}: has other entries than it should"]
        return [
            line for key in computed for line in differences(stored[key], computed[key], f"{path}.{key}".strip("."))
        ]
    if isinstance(stored, list) and isinstance(computed, list):
        if len(stored) != len(computed):
            return [f"{path}: {len(stored)} entries in place of {len(computed)}"]
        pairs = enumerate(zip(stored, computed, strict=True))
        return [line for i, (one, other) in pairs for line in differences(one, other, f"{path}[{i}]")]
    is_figure = isinstance(computed, float) and isinstance(stored, float)
    if type(stored) is type(computed) and (_is_same_figure(stored, computed) if is_figure else stored == computed):
        return []
    return [f"{path}: {_shown(stored)} in place of {_shown(rounded(computed))}"]


def num_figures(value: Any) -> int:
    """How many numbers JSON values hold."""
    if isinstance(value, Mapping):
        return sum(num_figures(entry) for entry in value.values())
    if isinstance(value, list):
        return sum(num_figures(entry) for entry in value)
    return int(isinstance(value, int | float) and not isinstance(value, bool))


def odds(schedule: Schedule) -> dict[str, float]:
    """What somebody who sees all releases of a schedule can find out about one shopper, at best."""
    missed = accounting.trade_off(schedule, np.array([0.01]))
    return {"right_of_coin": accounting.best_accuracy(schedule), "found_at_one_percent": float(1 - missed[0])}


def epsilon_of_person(schedule: Schedule, delta: float, accounts: int, max_shops_per_person: int) -> float:
    """Epsilon of a person with so many accounts, whose contributions were clipped to C / max_shops_per_person each."""
    return accounting.epsilon(_of_one_account(schedule, max_shops_per_person), delta, memberships=accounts)


def _of_one_account(schedule: Schedule, max_shops_per_person: int) -> Schedule:
    """The schedule as one account sees it: noise relative to C / k."""
    return tuple(
        dataclasses.replace(one, noise_multiplier=one.noise_multiplier * max_shops_per_person) for one in schedule
    )


def _book(book: Book) -> dict[str, Any]:
    reserved: dict[str, tuple[Run, list[str]]] = {}
    shops = []
    for copy in book.shops:
        account = counted(copy)
        for name, run in account.runs.items():
            reserved.setdefault(_key_of(name, run, reserved), (run, []))[1].append(copy.shop)
        shops.append(_shop(copy, account))
    runs = [{"run": key, "shops": at, **_run(run)} for key, (run, at) in reserved.items()]
    return {"name": book.name, "runs": runs, "shops": shops}


def _key_of(name: str, run: Run, reserved: Mapping[str, tuple[Run, list[str]]]) -> str:
    """A run's name; where shops reserved it on different terms, with a number."""
    key, number = name, 1
    while key in reserved and not _is_same(reserved[key][0], run):
        number += 1
        key = f"{name} ({number})"
    return key


def _is_same(one: Run, other: Run) -> bool:
    return _terms(one) == _terms(other) and one.schedule == other.schedule


def _terms(run: Run) -> dict[str, Any]:
    return {
        "spec": dict(run.fields["spec"]),
        "residual_delta": float(run.fields["residual_delta"]),
        "is_noise_seeded": run.fields["is_noise_seeded"],
        "is_masked": bool(run.fields.get("is_masked", False)),
    }


def _run(run: Run) -> dict[str, Any]:
    """One run's promise in figures; the worst case that was reserved."""
    spec = run.fields["spec"]
    delta, most = spec["delta"] - run.fields["residual_delta"], spec["max_shops_per_person"]
    alone = _of_one_account(run.schedule, most)
    agreement = accounting.check_accountants(run.schedule, delta)
    return {
        "terms": _terms(run),
        "epsilon_by_accounts": {str(k): epsilon_of_person(run.schedule, delta, k, most) for k in ACCOUNTS},
        "epsilon_of_coordinator": _epsilon_of_coordinator(run, delta),
        "accountants": dataclasses.asdict(agreement),
        "odds": odds(alone),
        "curve": _curve(alone),
        "schedule": list(_schedule(run, delta)),
    }


def _schedule(run: Run, delta: float) -> Iterable[dict[str, Any]]:
    """The reserved sums, equal neighbours together: what each shop adds, over C, and what one would cost by itself."""
    first = 1
    for one, same in itertools.groupby(run.schedule):
        times = len(list(same))
        yield {
            "rounds": f"{first}" if times == 1 else f"{first}–{first + times - 1}",
            **one.to_json(),
            "noise_of_each_shop": one.noise_multiplier / math.sqrt(_num_honest(run.fields["spec"])),
            "epsilon_alone": accounting.epsilon((one,), delta),
        }
        first += times


def _num_honest(spec: Mapping[str, Any]) -> int:
    """How many shops' noise makes up what was calibrated."""
    return spec["min_shops"] - spec["colluders"] if spec["mode"] == "distributed" else 1


def _epsilon_of_coordinator(run: Run, delta: float) -> float | None:
    """Against a coordinator that sees a shop's sum with that shop's share of the noise; None = as promised."""
    if not words.is_open_to_coordinator(_terms(run)):
        return None
    fewer = math.sqrt(_num_honest(run.fields["spec"]))
    alone = tuple(dataclasses.replace(one, noise_multiplier=one.noise_multiplier / fewer) for one in run.schedule)
    return accounting.epsilon(alone, delta)


def _curve(schedule: Schedule) -> dict[str, Any]:
    """False accusation rates, and the least rate of misses; without sampling for two and three accounts too."""
    rates = np.array(CURVE_RATES)
    accounts = ACCOUNTS if accounting.gdp_mu(schedule) is not None else ACCOUNTS[:1]
    misses = {str(k): accounting.trade_off(_louder(schedule, k), rates).tolist() for k in accounts}
    return {"false_accusations": rates.tolist(), "misses": misses}


def _louder(schedule: Schedule, accounts: int) -> Schedule:
    """A schedule without sampling as a person with several accounts sees it."""
    return tuple(dataclasses.replace(one, noise_multiplier=one.noise_multiplier / accounts) for one in schedule)


def _shop(copy: ShopLedger, account: Account) -> dict[str, Any]:
    """One shop's ledger in figures."""
    figures = rules.figures(account, rollback_detectable=bool(copy.receipts))
    anchored = max((receipt.signed.head.sequence for receipt in copy.receipts), default=0)
    return {
        "shop": copy.shop,
        "entries": len(copy.entries),
        "first_utc": copy.entries[0].utc.isoformat(timespec="seconds"),
        "last_utc": copy.entries[-1].utc.isoformat(timespec="seconds"),
        "head": {"sequence": account.head.sequence, "hash": account.head.hash.hex()},
        "budget": {**dataclasses.asdict(figures.budget), "period": str(figures.budget.period)},
        "filter": None if figures.counting is None else str(figures.counting),
        "spent": figures.epsilon,
        "committed": figures.committed_epsilon,
        "left": left(account),
        "lifetime": figures.lifetime_epsilon,
        "years": figures.years,
        "releases": figures.num_charges,
        "repeats": figures.num_aborts,
        "recovered": rules.epsilon(account, figures.recovered_costs),
        "is_deployable": figures.is_deployable,
        "rollback_detectable": figures.rollback_detectable,
        "anchored_sequence": anchored,
        "lifetime_odds": _lifetime_odds(account),
        "runs": [_run_at_shop(name, run) for name, run in account.runs.items()],
        "mechanisms": _mechanisms(account),
        "history": list(history(copy)),
    }


def _run_at_shop(name: str, run: Run) -> dict[str, Any]:
    charged = sum(len(plans) for plans in run.charged.values())
    state = "finished" if run.is_finished else "all charged" if len(run.charged) == len(run.schedule) else "open"
    return {"run": name, "planned": len(run.schedule), "charged": charged, "repeats": run.num_aborts, "state": state}


def left(account: Account) -> float:
    """Epsilon of the largest further run of Gaussian sums that the budget covers, at the budget's delta."""
    counting = account.counting or Counting.GDP

    def fits(mu_squared: float) -> bool:
        return rules.fits(account, counting, Costs(mu_squared, account.order * mu_squared / 2))

    low, high = 0.0, 1.0
    while fits(high) and high < 1e9:
        low, high = high, 2 * high
    while high - low > 1e-12 * max(high, 1.0):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    # Rounding of sums leaves a sliver of a budget that was spent to the last digit.
    return 0.0 if low < 1e-6 else accounting.exact_epsilon(math.sqrt(low), rules.budget_of(account).delta)


def _lifetime_odds(account: Account) -> dict[str, float]:
    """An attacker who has seen all that ever left: exact for Gaussian sums, else from epsilon and delta alone."""
    if account.lifetime == Costs():
        return {"right_of_coin": 0.5, "found_at_one_percent": 0.01}
    if math.isfinite(account.lifetime.gdp):
        return odds((PlannedRelease("all", 1.0, account.lifetime.gdp**-0.5),))
    epsilon, delta = rules.epsilon(account, account.lifetime), rules.budget_of(account).delta
    found = min(1.0, math.exp(min(epsilon, 700.0)) * 0.01 + delta, 1 - (1 - delta - 0.01) * math.exp(-epsilon))
    return {"right_of_coin": accounting.posterior(0.5, epsilon) + delta / 2, "found_at_one_percent": found}


def _mechanisms(account: Account) -> list[dict[str, Any]]:
    """By name of the release: how many, and which part of all charges they are."""
    charged: dict[str, list[tuple[PlannedRelease, Costs]]] = {}
    for run in account.runs.values():
        for index, plans in run.charged.items():
            one = run.schedule[index]
            charged.setdefault(one.name, []).extend([(one, run.costs[index])] * len(plans))
    if account.recovered != Costs():
        charged["(recovered)"] = []
    delta, whole = rules.budget_of(account).delta, account.lifetime
    is_gaussian = math.isfinite(whole.gdp)
    rows = []
    for name, releases in charged.items():
        costs = [cost for _, cost in releases] or [account.recovered]
        part = math.fsum(cost.gdp if is_gaussian else cost.renyi for cost in costs)
        schedule = tuple(one for one, _ in releases)
        alone = accounting.epsilon(schedule, delta) if schedule else rules.epsilon(account, account.recovered)
        share = part / (whole.gdp if is_gaussian else whole.renyi)
        rows.append({"name": name, "releases": len(releases), "epsilon_alone": alone, "share": share})
    return rows


def history(copy: ShopLedger) -> Iterable[dict[str, Any]]:
    """The ledger's epsilons after each entry that changed them: sequence, utc, what, spent, lifetime."""
    account = Account(copy.shop)
    for entry in copy.entries:
        account.apply(entry)
        if entry.kind in (Kind.OPEN, *_RELEASES, Kind.YEAR):
            yield {
                "sequence": entry.sequence,
                "utc": entry.utc.isoformat(timespec="milliseconds"),
                "what": _what(entry),
                "spent": rules.epsilon(account, account.spent),
                "lifetime": rules.epsilon(account, account.lifetime),
            }


def _what(entry: Entry) -> str:
    match entry.kind:
        case Kind.CHARGE:
            again = ", again" if entry.what["is_repeat"] else ""
            return f"round {entry.what['round'] + 1} ({entry.what['release']['name']}{again}) of {entry.what['run']}"
        case Kind.RECOVER:
            return "charged what a lost copy had released"
        case Kind.YEAR:
            return f"year {entry.what['year']} began"
        case _:
            return "ledger began"


def _is_same_figure(stored: float, computed: float) -> bool:
    if rounded(stored) != stored:
        return False
    unit = 10.0 ** (math.floor(math.log10(abs(computed))) + 1 - DIGITS) if computed else 0.0
    return stored == rounded(computed) or abs(stored - computed) <= 0.5005 * unit


def _shown(value: Any) -> str:
    text = f"{value}"
    return text if len(text) <= 60 else text[:57] + "..."
