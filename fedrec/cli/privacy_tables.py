"""Privacy reports, verifications and plans in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fedrec.reports import privacy_words as words
from fedrec.reports.privacy_check import Check, Verdict
from fedrec.reports.privacy_plan import SOURCE, Answer, Expectation, Question
from fedrec.reports.privacy_report import Report, headline, subtitle
from fedrec.reports.privacy_words import Figures

_MAX_RUNS = 15
_MARKS = {
    Verdict.HOLDS: Text("✓", style="green"),
    Verdict.FAILS: Text("✗", style="bold red"),
    Verdict.NOT_CHECKED: Text("–", style="dim"),
}


def print_report(report: Report, page: Path, file: Path, console: Console) -> None:
    """What was promised, what was spent, what it means, what is not promised; where the files are."""
    books, texts = report["document"]["books"], report["document"]["words"]
    console.print()
    console.print(Text(headline(report), style="bold"))
    console.print(Text(subtitle(report)))
    for text in texts["warnings"]:
        console.print(Text(f"! {text}", style="yellow"))
    console.print(shop_table(books))
    if any(book["runs"] for book in books):
        console.print(run_table(books))
        console.print(accountant_table(books))
        console.print(mechanism_table(books))
    for title, name in (("promised", "promise"), ("what it means", "means"), ("not promised", "not_promised")):
        _print_list(title, texts[name], console)
    _print_list("assumed", [*texts["assumed"], *report["notes"]], console)
    console.print()
    console.print(Text(f"page: {page}"), soft_wrap=True)
    console.print(Text(f"signed JSON: {file}"), soft_wrap=True)
    console.print(Text(f"signed by key {report['signature']['fingerprint']}"), soft_wrap=True)


def shop_table(books: Sequence[Figures]) -> Table:
    """Shop × budget, spent, left, lifetime; shops with the same figures share a line."""
    shops = [shop for book in books for shop in book["shops"]]
    is_open = any(shop["committed"] != shop["spent"] for shop in shops)
    is_repeated = any(shop["repeats"] for shop in shops)
    table = _table()
    table.add_column("shop", no_wrap=True)
    titles = ["budget", "δ", "spent", *(["reserved"] if is_open else []), "left", "lifetime", "sums"]
    for title in [*titles, *(["repeats"] if is_repeated else [])]:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("anchor", no_wrap=True)
    for book in books:
        for found, shop in words.alike(book["shops"]):
            budget = shop["budget"]
            period = "" if budget["period"] == "lifetime" else f" a year ({shop['years']})"
            table.add_row(
                _who(found, book),
                f"{budget['epsilon']:g}{period}",
                f"{budget['delta']:g}",
                Text(words.number(shop["spent"]), style="bold"),
                *([words.number(shop["committed"])] if is_open else []),
                words.number(shop["left"]),
                words.number(shop["lifetime"]),
                str(shop["releases"]),
                *([str(shop["repeats"])] if is_repeated else []),
                f"entry {shop['anchored_sequence']}" if shop["rollback_detectable"] else Text("no", style="yellow"),
            )
    return table


def run_table(books: Sequence[Figures]) -> Table:
    """Run × promised epsilon, epsilon of one, two, three accounts, and against a coordinator that sees each sum."""
    table = _table()
    table.add_column("run", no_wrap=True)
    table.add_column("mode", no_wrap=True)
    for title in ("ε", "k = 1", "k = 2", "k = 3", "coord."):
        table.add_column(title, justify="right", no_wrap=True)
    left_out = len(_runs(books)) - _MAX_RUNS
    table.caption = "k: accounts of one person; coord.: what a coordinator reaches that sees each shop's sum"
    if left_out > 0:
        table.caption += f"; {left_out} earlier runs in the report"
    table.caption_style, table.caption_justify = "dim", "left"
    for run in _runs(books)[-_MAX_RUNS:]:
        spec, accounts, seen = run["terms"]["spec"], run["epsilon_by_accounts"], run["epsilon_of_coordinator"]
        table.add_row(
            _shortened(run["run"]),
            spec["mode"],
            f"{spec['epsilon']:g}",
            Text(words.number(accounts["1"]), style="bold"),
            words.number(accounts["2"]),
            words.number(accounts["3"]),
            words.number(accounts["1"]) if seen is None else Text(words.number(seen), style="yellow"),
        )
    return table


def accountant_table(books: Sequence[Figures]) -> Table:
    """Run × what each accountant says."""
    table = _table()
    table.add_column("ε counted by", no_wrap=True)
    for title in ("PLD", "Rényi", "PRV", "closed form"):
        table.add_column(title, justify="right", no_wrap=True)
    for run in _runs(books)[-_MAX_RUNS:]:
        found = run["accountants"]
        table.add_row(_shortened(run["run"]), *(words.number(found[name]) for name in ("pld", "rdp", "prv", "exact")))
    return table


def mechanism_table(books: Sequence[Figures]) -> Table:
    """Sum × how often, epsilon by itself, share of everything that was spent."""
    table = _table()
    table.add_column("shop", no_wrap=True)
    table.add_column("sum", no_wrap=True)
    for title in ("times", "ε by itself", "share"):
        table.add_column(title, justify="right", no_wrap=True)
    for book in books:
        for found, shop in words.alike(book["shops"]):
            for one in shop["mechanisms"]:
                table.add_row(
                    _who(found, book),
                    one["name"],
                    str(one["releases"] or "–"),
                    words.number(one["epsilon_alone"]),
                    f"{100 * one['share']:.3g} %",
                )
    return table


def print_checks(checks: Iterable[Check], console: Console) -> None:
    """One line per check, and what they come to."""
    found = list(checks)
    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column()
    for check in found:
        style = "red" if check.verdict is Verdict.FAILS else "dim" if check.verdict is Verdict.NOT_CHECKED else ""
        table.add_row(_MARKS[check.verdict], Text(check.name, style="bold"), Text(check.text, style=style))
    console.print(table)
    failed = [check.name for check in found if check.verdict is Verdict.FAILS]
    skipped = [check.name for check in found if check.verdict is Verdict.NOT_CHECKED]
    if failed:
        console.print(Text(f"The report does not hold: {', '.join(failed)}.", style="bold red"))
        return
    rest = f"; not checked: {', '.join(skipped)}" if skipped else ""
    console.print(Text(f"The report holds{rest}.", style="bold"))


def print_plan(
    question: Question,
    plan: Answer,
    others: Sequence[tuple[str, Expectation, float]],
    console: Console,
) -> None:
    """The promise, the noise, what to expect, what would buy more."""
    spec = plan.spec
    shops = f"{question.shops} {'shop' if question.shops == 1 else 'shops'}"
    console.print()
    console.print(
        Text(
            f"ε {spec.epsilon:g}, δ {spec.delta:g}, {question.rounds} {'round' if question.rounds == 1 else 'rounds'}, "
            f"{question.shoppers:,} shoppers in {shops}, mode {spec.mode}",
            style="bold",
        )
    )
    for text in _plan_lines(plan):
        console.print(Text(text))
    console.print(_sum_table(plan))
    console.print(Text(_expectation_line(plan.expectation), style="bold"))
    console.print(_others_table(others))
    console.print(Text(SOURCE, style="dim"))


def _plan_lines(plan: Answer) -> Iterable[str]:
    spec, accounts = plan.spec, plan.epsilon_by_accounts
    if spec.mode == "distributed":
        yield (
            f"noise holds with {spec.min_shops} shops in a sum, {spec.colluders} of them telling the coordinator "
            "theirs; needs secure aggregation"
        )
    else:
        yield "every shop adds all of the noise, and trusts nobody"
    yield (
        f"a person with 1, 2, 3 accounts: ε {', '.join(words.number(accounts[k]) for k in sorted(accounts))}"
        + (f" (contributions clipped to 1 / {spec.max_shops_per_person})" if spec.max_shops_per_person > 1 else "")
    )
    yield (
        f"whoever sees all sums is right about whether somebody was there at most "
        f"{words.of_hundred(plan.right_of_coin)} times in 100 (a coin: 50); accusing 1 absent shopper in 100, he finds "
        f"at most {words.of_hundred(plan.found_at_one_percent)} in 100 who were there"
    )


def _sum_table(plan: Answer) -> Table:
    table = _table()
    table.add_column("sum", no_wrap=True)
    for title in ("rounds", "budget", "σ needed", "noise of each shop", "noise of the sum"):
        table.add_column(title, justify="right")
    for one in plan.sums:
        table.add_row(
            one.name,
            str(one.repeats),
            f"{100 * one.share:.3g} %",
            words.number(one.sigma),
            words.number(one.of_each_shop),
            words.number(one.of_the_sum),
        )
    table.caption = "noise: standard deviation over the most that one shopper can add; budget: part of 1 / σ²"
    table.caption_style = "dim"
    table.caption_justify = "left"
    return table


def _expectation_line(found: Expectation) -> str:
    return (
        f"expect: {found.usefulness} (about {100 * found.gain:.0f} % of what no privacy gains over popularity; signal "
        f"{found.ratio:.3g} times the noise edge)"
    )


def _others_table(others: Sequence[tuple[str, Expectation, float]]) -> Table:
    table = _table()
    table.add_column("what if", no_wrap=True)
    for title in ("signal over noise edge", "part of the gain"):
        table.add_column(title, justify="right")
    table.add_column("expect")
    for name, found, delta in others:
        label = name if delta == others[0][2] else f"{name} (δ {delta:.2g})"
        table.add_row(label, f"{found.ratio:.3g}", f"{100 * found.gain:.0f} %", found.usefulness)
    return table


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, header_style="bold")


def _runs(books: Sequence[Figures]) -> list[Figures]:
    return [run for book in books for run in book["runs"]]


def _who(found: Sequence[str], book: Figures) -> str:
    """The shops of a line, and which promise it is, where there are several."""
    everybody = len(found) > 1 and len(found) == len(book["shops"])
    shops = f"all {len(found)} shops" if everybody else words.names(found, 2)
    return shops if book["name"] == "ledger" else f"{words.title_of(book['name'])}: {shops}"


def _shortened(run: str, most: int = 20) -> str:
    """The end of a run's name, which tells runs of one federation apart."""
    return run if len(run) <= most else f"…{run[1 - most :]}"


def _print_list(title: str, texts: Sequence[str], console: Console) -> None:
    console.print(Text(f"{title}:", style="bold"))
    table = Table.grid(padding=(0, 1))
    for text in texts:
        table.add_row(Text("-"), Text(text))
    console.print(Padding(table, (0, 0, 0, 2)))
