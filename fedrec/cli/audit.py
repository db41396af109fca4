"""``fedrec audit``: attack what leaves the shops, and hold it against the epsilon claimed."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedrec.simulation.audit_claim import AuditSettings, Finding

FAILED = 1


def audit(
    epsilon: Annotated[float, typer.Option(help="Claimed epsilon.")] = 2.0,
    delta: Annotated[float, typer.Option(help="Claimed delta.")] = 1e-6,
    mode: Annotated[
        str, typer.Option("--mode", "--privacy-mode", help="distributed or local: whose noise protects.")
    ] = "distributed",
    shops: Annotated[int, typer.Option(help="Shops on the roster.")] = 10,
    min_shops: Annotated[int, typer.Option(help="Shops that answer, and that the noise is made for.")] = 8,
    colluders: Annotated[int, typer.Option(help="Shops that tell the attacker what they sent, at least 1.")] = 1,
    canaries: Annotated[int, typer.Option(help="Crafted vectors; more of them give narrower intervals.")] = 100_000,
    items: Annotated[int, typer.Option(help="Items that one crafted shopper buys, all of them.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of coins and histories; the noise has none.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="All figures as JSON.")] = False,
) -> int:
    """Attack this build's releases: is the noise as claimed, can one shopper move a sum too far, what do lists tell?

    Exits with 0 if every audit passes and with 1 if one fails. A correct build fails about once in 200,000 runs.

    \b
    [bold]Examples[/]
      fedrec audit
      fedrec audit --epsilon 8 --mode local
      fedrec audit --json > audit.json
    """
    from fedrec.errors import ConfigError
    from fedrec.privacy.settings import PrivacySettings
    from fedrec.privacy.spec import Mode
    from fedrec.simulation.audit import run_audits
    from fedrec.simulation.audit_claim import AuditSettings

    if mode not in set(Mode):
        raise ConfigError(f"--mode {mode}: give distributed or local")
    promise = PrivacySettings(epsilon=epsilon, delta=delta, mode=Mode(mode), min_shops=min_shops, colluders=colluders)
    promise.spec(epsilon, num_shops=shops, num_shoppers=1)  # refuses what a run would refuse
    settings = AuditSettings(
        epsilon=epsilon,
        delta=delta,
        mode=Mode(mode),
        num_shops=shops,
        min_shops=min_shops,
        colluders=colluders,
        canaries=canaries,
        num_items=items,
        seed=seed,
    )
    if as_json:
        findings = run_audits(settings)
        typer.echo(json.dumps(_as_json(settings, findings), indent=2))
    else:
        from rich.console import Console

        with Console(stderr=True).status("auditing") as status:
            findings = run_audits(settings, on_start=lambda what: status.update(f"auditing: {what}"))
        _print(settings, findings)
    return FAILED if _failed(findings) else 0


def _failed(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.is_passed is False]


def _as_json(settings: AuditSettings, findings: list[Finding]) -> dict[str, object]:
    return {
        "settings": dataclasses.asdict(settings),
        "is_passed": not _failed(findings),
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }


def _print(settings: AuditSettings, findings: list[Finding]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fedrec.privacy.audit import FALSE_ALARM

    console = Console()
    console.print(
        Text(
            f"Claim: epsilon {settings.epsilon:g}, delta {settings.delta:g}, {settings.mode}; {settings.num_shops} "
            f"shops, {settings.min_shops} answer, {settings.colluders} of them collude",
            style="bold",
        )
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), header_style="bold")
    for column in ("audit", "claimed", "found", "verdict"):
        table.add_column(column)
    styles = {True: "green", False: "bold red", None: "yellow"}
    marks = {True: "pass", False: "FAIL", None: "for information"}
    for finding in findings:
        verdict = Text(f"{marks[finding.is_passed]}: {finding.verdict}", style=styles[finding.is_passed])
        table.add_row(Text(finding.audit), Text(finding.claimed), Text(finding.found), verdict)
    console.print(table)
    console.print(Text(f"Each interval misses the truth with probability {FALSE_ALARM:g}.", style="dim"))
    failed = _failed(findings)
    console.print(
        Text(
            f"{len(failed)} of {len(findings)} audits failed: do not release anything with this build", style="bold red"
        )
        if failed
        else Text("all audits passed", style="green")
    )
