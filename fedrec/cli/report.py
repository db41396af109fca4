"""``fedrec report``: what privacy has cost, whether a report of it is true, and what a promise would cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedrec.errors import ConfigError

FAILED = 1

USUAL_DELTA = 1e-6
"""What a plan answers for where no delta is given; runs have no default."""

report_app = typer.Typer(
    no_args_is_help=True,
    help="What privacy has cost, whether a report of it is true, and what a promise would cost.",
)


@report_app.command("privacy")
def privacy(
    source: Annotated[
        str, typer.Argument(metavar="RUN|SHOP_DB", help="A run directory, a shop's SQLite file, or a database's URL.")
    ],
    shop: Annotated[str | None, typer.Option(help="One shop of it.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the HTML and the JSON. Default: in the run, beside the database."),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Private key (Ed25519, PEM) that signs the JSON. Default: one beside the report, made at first use.",
        ),
    ] = None,
) -> None:
    """Epsilon spent and left, by shop, run and mechanism; what it means, and what is not promised.

    Writes privacy-report.html, one page that needs nothing else, and privacy-report.json, signed, with every ledger
    entry in it.

    \b
    [bold]Examples[/]
      fedrec report privacy runs/x
      fedrec report privacy shop.db --key shop.key
      fedrec report privacy runs/x --shop uk --out reports/uk
    """
    from rich.console import Console

    from fedrec.cli.privacy_tables import print_report
    from fedrec.reports.privacy_entries import notes_of, read_source
    from fedrec.reports.privacy_report import make_report, report_key, write_report
    from fedrec.secure_aggregation.keys import IdentityKey

    books = read_source(source, shop)
    given = None if key is None else IdentityKey.load(key)
    folder = _folder(source, out)
    report = make_report(books, given or report_key(folder), source=_name(source), notes=notes_of(source))
    page, file = write_report(report, folder)
    print_report(report, page, file, Console())


@report_app.command("verify")
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE.json", help="What fedrec report privacy wrote.")],
    public_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="The signer's fingerprint or public key (hex), as the shop told it."),
    ] = None,
    ledger: Annotated[
        str | None,
        typer.Option(metavar="RUN|SHOP_DB", help="The shop's own ledger; the report's entries must be in it."),
    ] = None,
    anchor: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Heads that the coordinator or a peer keeps, or one receipt; they must be in it."
        ),
    ] = None,
    shop_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="The shop's public key (hex), which must have signed the heads of --anchor."),
    ] = None,
    anchor_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="The anchor's public key (hex), which must have signed its receipts."),
    ] = None,
) -> None:
    """Check a report: signature, chain of every ledger, and each figure counted again from the entries.

    Ends with 0 if everything holds, 1 if something does not, 2 if the file is no report.

    \b
    [bold]Examples[/]
      fedrec report verify privacy-report.json
      fedrec report verify privacy-report.json --public-key 3f2a-…-90bc
      fedrec report verify privacy-report.json --ledger shop.db --anchor coordinator.json
    """
    from rich.console import Console

    from fedrec.cli.privacy_tables import print_checks
    from fedrec.reports.privacy_check import Verdict, read_report
    from fedrec.reports.privacy_check import verify as check

    report, data = read_report(file)
    checks = check(
        report,
        data,
        public_key=public_key,
        ledger=ledger,
        anchor=anchor,
        shop_key=shop_key,
        anchor_key=anchor_key,
    )
    print_checks(checks, Console())
    if any(one.verdict is Verdict.FAILS for one in checks):
        raise typer.Exit(FAILED)


@report_app.command("plan")
def plan(
    epsilon: Annotated[float, typer.Option(help="What a run may cost each shopper; smaller promises more.")],
    rounds: Annotated[int, typer.Option(help="Noisy sums that leave each shop.")],
    shoppers: Annotated[int, typer.Option(help="Of the whole federation, as declared.")],
    delta: Annotated[
        float | None,
        typer.Option(
            help="Chance at which the promise may fail; at most 1 / (10 x shoppers). A run needs one; a plan without "
            "answers for 1e-6 and says so.",
            show_default=False,
        ),
    ] = None,
    shops: Annotated[int, typer.Option(help="That take part.")] = 10,
    mode: Annotated[
        str,
        typer.Option(
            "--mode", "--privacy-mode", help="distributed (shops share the noise) or local (each adds all of it)."
        ),
    ] = "distributed",
    items: Annotated[int, typer.Option(help="Of the catalogue; the sum covers the 300 most popular.")] = 300,
    min_shops: Annotated[
        int | None, typer.Option(help="Fewest shops of a sum. Default: four of five, at least 3.", show_default=False)
    ] = None,
    colluders: Annotated[int, typer.Option(help="Shops that may tell the coordinator their noise.")] = 1,
    accounts: Annotated[
        int, typer.Option("--max-shops-per-person", help="Shops in which one person may have an account.")
    ] = 1,
) -> None:
    """What a promise costs, before any data is touched: noise, its split, what to expect, what would buy more.

    \b
    [bold]Examples[/]
      fedrec report plan --epsilon 2 --rounds 5 --shoppers 6000 --delta 1e-6
      fedrec report plan --epsilon 2 --rounds 2 --shoppers 600 --delta 1e-6 --shops 1 --mode local
    """
    from rich.console import Console

    from fedrec.cli.privacy_tables import print_plan
    from fedrec.privacy.settings import PrivacySettings
    from fedrec.privacy.spec import Mode
    from fedrec.reports.privacy_plan import Question, alternatives, answer, largest_delta

    most = largest_delta(shoppers)
    if mode not in set(Mode):
        raise ConfigError(f"--mode {mode}: give distributed or local")
    settings = PrivacySettings(
        epsilon=epsilon,
        delta=min(USUAL_DELTA, most) if delta is None else delta,
        mode=Mode(mode),
        min_shops=min_shops,
        colluders=colluders,
        max_shops_per_person=accounts,
        public_shoppers=shoppers,
        max_shoppers=shoppers,
    )
    question = Question(settings, rounds, shoppers, shops, items)
    console = Console()
    print_plan(question, answer(question), alternatives(question), console)
    if delta is None:
        console.print(
            f"No --delta was given: this answers for {settings.delta:g}. It is the chance at which the promise may "
            f"fail; {shoppers:,} shoppers allow at most {most:.3g}, and a run has no default for it."
        )


def _folder(source: str, out: Path | None) -> Path:
    """Where the report goes; made where it is asked for."""
    from fedrec.errors import StoreError

    if out is None:
        path = Path(source)
        return Path() if "://" in source else path / "privacy" if path.is_dir() else path.parent
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"--out {out}: cannot be made ({error.strerror})") from error
    return out


def _name(source: str) -> str:
    """The last part of a path; a URL may hold a password."""
    return "database" if "://" in source else Path(source).resolve().name
