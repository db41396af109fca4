"""``fedrec simulate``: run a comparison and leave its run directory."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedrec.errors import ConfigError

if TYPE_CHECKING:
    from fedrec.config import SimulationSettings

_DATA, _SHOPS, _MODEL, _PRIVACY, _RUN = "Events", "Shops and split", "Model", "Privacy", "Run"

EXAMPLES = """
SCENARIO is a TOML file; options replace its values. With neither: the built-in marketplace.

\b
[bold]Examples[/]
  fedrec simulate
  fedrec simulate simulations/scenarios/xmarket.toml
  fedrec simulate simulations/scenarios/xmarket.toml --epsilon 2
  fedrec simulate --epsilon 0.5,1,2,4,8 --delta 1e-6
  fedrec simulate --source online-retail-ii --model ease
  fedrec simulate --events my.csv --items items.csv --test later.csv
  fedrec simulate --events my.csv --columns shopper=kunde,item=artikel
  fedrec simulate --url sqlite:///a.db --query "select * from sales"
  fedrec simulate --source ml-1m --shops random:100 --no-tune
  fedrec simulate --out runs/x --resume        (after Ctrl-C)
"""


def simulate(
    scenario: Annotated[
        Path | None,
        typer.Argument(metavar="[SCENARIO]", help="Scenario file (TOML). Options below replace its values."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(help="A named data set; [bold]fedrec data list[/] shows them.", rich_help_panel=_DATA),
    ] = None,
    events: Annotated[
        str | None, typer.Option(metavar="FILE", help="Events as CSV or Parquet.", rich_help_panel=_DATA)
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Database with the events, as an SQLAlchemy URL.", rich_help_panel=_DATA)
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(metavar="SQL", help="SELECT that gives the events; needs --url.", rich_help_panel=_DATA),
    ] = None,
    items: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Item text, category and price (CSV or Parquet).", rich_help_panel=_DATA),
    ] = None,
    test: Annotated[
        str | None, typer.Option(metavar="FILE", help="Test events; replaces the split.", rich_help_panel=_DATA)
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="OURS=THEIRS,…",
            help="Name columns that are not found by their usual names: shopper=kunde,item=artikel.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    item_key: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="What makes two shops' items the same (GTIN, SKU); items without it stay in their shop.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    min_rating: Annotated[
        float | None, typer.Option(help="Keep ratings of at least this.", rich_help_panel=_DATA)
    ] = None,
    shops: Annotated[
        str | None,
        typer.Option(
            metavar="RULE", help="column, random:N, skewed:N, skewed:N:ALPHA or category.", rich_help_panel=_SHOPS
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="leave-last, last-basket, random-share, temporal or strong.", rich_help_panel=_SHOPS
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="[bold]fedrec models[/] shows them; or your own as package.module:Class.", rich_help_panel=_MODEL
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any key of a scenario, as in model.settings.factors=32. Can be given several times.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    no_tune: Annotated[
        bool, typer.Option("--no-tune", help="Take the settings as given.", rich_help_panel=_MODEL)
    ] = False,
    secure: Annotated[
        bool | None,
        typer.Option(
            "--secure/--no-secure",
            help="Secure aggregation: the coordinator sees sums over shops alone. On with --epsilon, else off.",
            rich_help_panel=_PRIVACY,
        ),
    ] = None,
    reveal_coordinator_view: Annotated[
        bool,
        typer.Option(
            "--reveal-coordinator-view",
            help="Keep everything that the coordinator received, in coordinator_view/ of the run directory.",
            rich_help_panel=_PRIVACY,
        ),
    ] = False,
    epsilon: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER,…",
            help="Adds the columns under differential privacy, for one epsilon or several: 2 or 0.5,1,2,4,8.",
            rich_help_panel=_PRIVACY,
        ),
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="Chance at which the promise may fail; needed with epsilon.", rich_help_panel=_PRIVACY),
    ] = None,
    privacy_mode: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help="distributed (shops share the noise) or local (each shop adds all of it).",
            rich_help_panel=_PRIVACY,
        ),
    ] = None,
    colluders: Annotated[
        int | None,
        typer.Option(help="Shops that may tell the coordinator their noise, at least 1.", rich_help_panel=_PRIVACY),
    ] = None,
    noise_draws: Annotated[
        int | None,
        typer.Option(help="Repeat the private rounds so often, for the intervals.", rich_help_panel=_PRIVACY),
    ] = None,
    benchmark_no_colluders: Annotated[
        bool,
        typer.Option(
            "--benchmark-no-colluders",
            help="Assume that all shops answer and none colludes, as papers do: not a deployable guarantee.",
            rich_help_panel=_PRIVACY,
        ),
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option(help="local, or ray (Flower's simulation engine, an extra).", rich_help_panel=_RUN),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes; 0 = none, all in this one.", rich_help_panel=_RUN)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random draw.", rich_help_panel=_RUN)] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.", rich_help_panel=_RUN)] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Run directory; must not exist. Default: runs/NAME-UTCTIME.", rich_help_panel=_RUN
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the finished rounds in --out.", rich_help_panel=_RUN)
    ] = False,
) -> None:
    """Run a federation on one machine and compare: each shop alone, joined, and all data pooled."""
    from fedrec.config import settings_from_options

    if benchmark_no_colluders and colluders:
        raise ConfigError(f"--benchmark-no-colluders with --colluders {colluders}: give one of the two")
    options: dict[str, Any] = {
        "name": name,
        "seed": seed,
        "data.source": source,
        "data.events": events,
        "data.url": url,
        "data.query": query,
        "data.items": items,
        "data.test": test,
        "data.columns": None if columns is None else parse_columns(columns),
        "data.item_key": item_key,
        "data.min_rating": min_rating,
        "data.shops": shops,
        "data.split": split,
        "model.name": model,
        "model.tune": False if no_tune else None,
        "privacy.epsilon": None if epsilon is None else parse_epsilons(epsilon),
        "privacy.delta": delta,
        "privacy.mode": privacy_mode,
        "privacy.colluders": 0 if benchmark_no_colluders else colluders,
        "privacy.noise_draws": noise_draws,
        "privacy.benchmark": True if benchmark_no_colluders else None,
        "federation.secure": secure,
        "federation.reveal_coordinator_view": True if reveal_coordinator_view else None,
        "federation.engine": engine,
        "federation.workers": workers,
    }
    settings = settings_from_options(scenario, options, set_ or ())
    _run(settings, choose_out(settings, out, resume=resume), resume=resume)


simulate.__doc__ = f"{simulate.__doc__}\n{EXAMPLES}"


def parse_columns(text: str) -> dict[str, str]:
    """ "shopper=kunde,item=artikel" as a mapping.

    Raises:
        ConfigError: a part has no "=", or one name comes twice.
    """
    pairs = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        ours, sign, theirs = part.partition("=")
        if not sign or not ours.strip() or not theirs.strip():
            raise ConfigError(f"--columns {text}: '{part}' has no '='; write shopper=kunde,item=artikel")
        if ours.strip() in pairs:
            raise ConfigError(f"--columns {text}: names the {ours.strip()} twice; name it once")
        pairs[ours.strip()] = theirs.strip()
    return pairs


def parse_epsilons(text: str) -> float | list[float]:
    """ "2" as a number, "0.5,1,2" as a list.

    Raises:
        ConfigError: a part is no number.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--epsilon {text}: give a number above 0, or several as in 0.5,1,2,4,8") from None
    return values[0] if len(values) == 1 else values


def choose_out(settings: SimulationSettings, out: Path | None, *, resume: bool) -> Path:
    """The run directory, before anything is computed.

    Raises:
        ConfigError: it exists and the run is not to be resumed, or --resume has no directory.
    """
    if out is None:
        if resume:
            raise ConfigError("--resume needs --out DIR: the run directory to go on with")
        return Path("runs") / f"{settings.name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    if out.exists() and not resume:
        raise ConfigError(f"--out {out}: exists already; give another folder, or --resume to go on with that run")
    if resume and not out.is_dir():
        raise ConfigError(f"--resume: there is no run directory {out}")
    return out


def _run(settings: SimulationSettings, out: Path, *, resume: bool) -> None:
    try:
        from rich.console import Console

        from fedrec.cli.progress import progress_on
        from fedrec.cli.tables import print_comparison
        from fedrec.simulation import simulate as run

        with progress_on(Console(stderr=True)) as progress:
            done = run(settings, out=out, resume=resume, progress=progress)
    except KeyboardInterrupt:
        raise InterruptedRunError(_how_to_resume(out)) from None
    print_comparison(done.run_dir, json.loads(done.record.to_json()), Console())


class InterruptedRunError(Exception):
    """Ctrl-C in a run; the message says how to go on."""


def _how_to_resume(out: Path) -> str:
    if not (out / "scenario.json").is_file():
        return "interrupted: nothing was written yet"
    if (out / "run.json").is_file():
        return f"interrupted: the run in {out} is finished"
    return f"interrupted: finished rounds are in {out}; go on with the same command and --out {out} --resume"
