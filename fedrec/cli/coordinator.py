"""``fedrec coordinator``: the side that plans rounds and adds up, as a process of its own."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedrec.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from fedrec.flower.deployment import Status

coordinator_app = typer.Typer(
    help="Run a federation's coordinator: init, invite, admit, run.", no_args_is_help=True, rich_markup_mode="rich"
)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The coordinator's folder.")]


@coordinator_app.command()
def init(
    folder: Folder,
    items: Annotated[str, typer.Option(metavar="FILE", help="The federation's item list, CSV or Parquet.")],
    name: Annotated[str, typer.Option(help="Name of the federation.")] = "federation",
    host: Annotated[str, typer.Option(help="Name or address under which shops reach the coordinator.")] = "localhost",
) -> None:
    """Make a coordinator's folder: commented settings, keys, and a certificate authority of its own.

    \b
    [bold]Example[/]
      fedrec coordinator init books --items items.csv --host books.example.org
    """
    from fedrec.flower.deployment import create_coordinator
    from fedrec.role_config import COORDINATOR_FILE, check_host
    from fedrec.shop.policy import check_name

    path = Path(items)
    if not path.is_file():
        raise ConfigError(f"--items {items}: is not a file; give the federation's item list, CSV or Parquet")
    create_coordinator(folder, check_name(name), public_host=check_host(host), items=str(path.absolute()))
    typer.echo(f"{folder / COORDINATOR_FILE} is written: read it, then fedrec coordinator invite {folder}")


@coordinator_app.command()
def invite(
    folder: Folder,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write it.")] = Path("invitation.json"),
    days: Annotated[int, typer.Option(min=1, max=365, help="How long shops may answer it.")] = 14,
) -> None:
    """Write an invitation to send to shops."""
    from fedrec.federation.run_record import write_atomically
    from fedrec.flower.deployment import invite as make

    data, fingerprint = make(folder, days=days)
    write_atomically(out, data)
    typer.echo(f"{out} is written, for {days} days. Tell the shops by telephone: {fingerprint}")


@coordinator_app.command()
def admit(
    folder: Folder,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Enrolments that shops sent.")],
) -> None:
    """Take shops' enrolments in; compare each fingerprint with the shop by telephone."""
    from fedrec.flower.deployment import admit as take

    for file in files:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise StoreError(f"{file}: cannot be read ({error.strerror})") from error
        enrolment = take(folder, data)
        typer.echo(f"{enrolment.shop}  {enrolment.key.fingerprint()}  declares {enrolment.public_shoppers:,} shoppers")
    num_shops, fingerprint = _roster(folder)
    typer.echo(f"roster of {num_shops} shops: {fingerprint}")


@coordinator_app.command()
def remove(folder: Folder, shop: Annotated[str, typer.Argument(help="Name of the shop.")]) -> None:
    """Take a shop off the roster of later runs; the others confirm the new roster."""
    from fedrec.flower.deployment import remove as take_off

    take_off(folder, shop)
    num_shops, fingerprint = _roster(folder)
    typer.echo(f"{shop} is off the roster; {num_shops} shops: {fingerprint}")


@coordinator_app.command()
def renew(folder: Folder) -> None:
    """Issue a new certificate for the coordinator under the same authority; shops need not do anything."""
    from fedrec.flower.certificates import TlsFiles, issue
    from fedrec.role_config import read_coordinator

    certificate = issue(TlsFiles.in_folder(folder), read_coordinator(folder).address.public_host)
    typer.echo(f"certificate until {certificate.not_valid_after_utc.date()}; restart the coordinator to use it")


@coordinator_app.command()
def run(
    folder: Folder,
    log_format: Annotated[str, typer.Option("--log", help="text or json.")] = "text",
) -> None:
    """Run one federation from start to end, or go on with one that was interrupted; prints its directory."""
    from fedrec.cli.logs import log_to_stderr
    from fedrec.cli.service import only_one, stop_on_signals
    from fedrec.flower.deployment import Deployment
    from fedrec.flower.observe import serve_metrics
    from fedrec.shop.member import check_secrets

    log_to_stderr(log_format)
    check_secrets(folder)
    deployment = Deployment(folder)
    stop_on_signals(deployment.stop)

    def read() -> tuple[bool, dict[str, float]]:
        return deployment.status.phase != "failed", deployment.status.figures()

    with only_one(folder, "coordinator"), serve_metrics(deployment.settings.address.metrics_port, read):
        run_dir = deployment.run()
    typer.echo(str(run_dir))


@coordinator_app.command()
def status(
    folder: Folder,
    watch: Annotated[bool, typer.Option("--watch", help="Again every second, until Ctrl-C.")] = False,
) -> None:
    """What the coordinator is doing, and who is connected."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if not watch:
        console.print(_table(_read_status(folder)))
        return
    with Live(_table(_read_status(folder)), console=console, refresh_per_second=2) as live:
        while True:
            time.sleep(1)
            live.update(_table(_read_status(folder)))


@coordinator_app.command()
def rounds(folder: Folder) -> None:
    """The finished rounds of the current or latest run."""
    import json

    from rich import box
    from rich.console import Console
    from rich.table import Table

    path = folder / "runs" / _read_status(folder).run_id / "rounds.json"
    table = Table("round", "sum", "shops", "seconds", "MB up", "MB down", box=box.SIMPLE_HEAD)
    for one in json.loads(path.read_bytes()) if path.exists() else []:
        sizes = (f"{one[name] / 1e6:.2f}" for name in ("bytes_up", "bytes_down"))
        table.add_row(str(one["index"] + 1), one["name"], str(one["shops"]), f"{one['seconds']:.2f}", *sizes)
    Console().print(table)


@coordinator_app.command()
def stop(folder: Folder) -> None:
    """Ask a running coordinator to stop between two answers; started again it goes on."""
    import os

    from fedrec.cli.service import running

    pid = running(folder, "coordinator")
    if pid is None:
        raise ConfigError(f"{folder}: no coordinator is running here")
    os.kill(pid, signal.SIGTERM)
    typer.echo(f"process {pid} was asked to stop")


def _roster(folder: Path) -> tuple[int, str]:
    """How many shops are enrolled, and the fingerprint of their roster."""
    from fedrec.federation.enrolment import roster_fingerprint
    from fedrec.flower.deployment import read_enrolments

    shops = read_enrolments(folder)
    return len(shops), roster_fingerprint({name: one.key for name, one in shops.items()})


def _read_status(folder: Path) -> Status:
    import json

    from fedrec.flower.deployment import STATUS_FILE, Status

    path = folder / STATUS_FILE
    if not path.exists():
        raise ConfigError(f"{folder}: no coordinator has run here yet")
    return Status(**json.loads(path.read_bytes()))


def _table(status: Status) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, show_header=False)
    planned = f" of {status.rounds_planned}" if status.rounds_planned else ""
    rows = [
        ("run", status.run_id),
        ("phase", status.phase + (f": {status.last_error}" if status.last_error else "")),
        ("promise", status.guarantee),
        ("rounds", f"{status.round}{planned}; the last took {status.seconds:.2f} s over {status.survivors} shops"),
        ("shops", f"{len(status.online)} of {len(status.roster)} were connected: {', '.join(status.online) or 'none'}"),
        ("roster", status.fingerprint),
        ("certificate", f"{status.certificate_days:.0f} days left"),
    ]
    for name, value in rows:
        table.add_row(name, Text(value))  # shops' words are no markup
    return table
