"""``fedrec shop``: a shop in a deployed federation."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedrec.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from fedrec.role_config import ShopSettings
    from fedrec.shop.member import Member

shop_app = typer.Typer(help="Take part in a federation: enrol, run.", no_args_is_help=True, rich_markup_mode="rich")
_REFRESH = "import sys; from fedrec.cli import main; sys.exit(main(sys.argv[1:]))"
_ERASURE_PAUSE_S = 20.0
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The shop's folder.")]


@shop_app.command()
def enrol(
    folder: Folder,
    invitation: Annotated[Path, typer.Option(metavar="FILE", help="The coordinator's invitation.")],
    name: Annotated[str, typer.Option(help="Name of the shop on the roster.")],
    shoppers: Annotated[int, typer.Option(min=1, help="Declared number of shoppers, one significant digit; public.")],
    events: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The shop's events, CSV or Parquet; else those of its store.")
    ] = None,
    items: Annotated[Path | None, typer.Option(metavar="FILE", help="Titles and categories, CSV or Parquet.")] = None,
) -> None:
    """Join: make the shop's folder with its keys and settings, and the file to send back to the coordinator.

    \b
    [bold]Example[/]
      fedrec shop enrol myshop --invitation invitation.json --name north --events events.csv --shoppers 2000
    """
    from fedrec.flower.keys import new_node_key
    from fedrec.privacy.spec import one_significant_digit
    from fedrec.role_config import SHOP_FILE, shop_toml
    from fedrec.shop.enrol import enrol as join
    from fedrec.shop.policy import check_name

    for option, path in (("--events", events), ("--items", items)):
        if path is not None and not path.is_file():
            raise ConfigError(f"{option} {path}: is not a file")
    try:
        data = invitation.read_bytes()
    except OSError as error:
        raise StoreError(f"{invitation}: cannot be read ({error.strerror})") from error
    declared = one_significant_digit(shoppers)
    if (folder / SHOP_FILE).exists():
        text = declare_shoppers(folder, check_name(name), declared, has_files=bool(events or items))
    else:
        text = shop_toml(
            check_name(name),
            public_shoppers=declared,
            events=None if events is None else str(events.absolute()),
            items=None if items is None else str(items.absolute()),
        )
    found, path = join(
        folder,
        data,
        name=name,
        public_shoppers=declared,
        settings_file=(SHOP_FILE, text.encode()),
        new_node_key=new_node_key,
    )
    typer.echo(f"federation {found.federation} at {found.address}")
    typer.echo(f"compare with the coordinator by telephone: {found.key.fingerprint()}")
    typer.echo(f"send {path} back; {folder / SHOP_FILE} says what this shop is willing to do")


@shop_app.command()
def run(
    folder: Folder,
    roster: Annotated[
        str | None, typer.Option(metavar="FINGERPRINT", help="Confirm this roster, after comparing it.")
    ] = None,
    log_format: Annotated[str, typer.Option("--log", help="text or json.")] = "text",
) -> None:
    """Stay connected and take part in what the shop's policy allows; ends with Ctrl-C."""
    from fedrec.cli.logs import log_to_stderr
    from fedrec.cli.service import begin_anew, known_before, only_one, stop_on_signals
    from fedrec.flower.agent import Agent, Traffic
    from fedrec.flower.observe import serve_metrics
    from fedrec.shop.status import agent_figures, read_status, write_status

    log_to_stderr(log_format)
    opened: list[Member] = []

    def keep(traffic: Traffic) -> None:
        write_status(folder, asdict(traffic), opened[0] if opened else None)

    app, known = None, known_before()
    if known is None:
        if roster is not None:
            confirm_roster(folder, roster)
        app, known = _open(folder, opened)  # what is wrong with keys, settings or events is said at once
        traffic = Traffic()
    else:
        traffic = Traffic(**{**read_status(folder)["traffic"], "connected": False})
    policy_bytes = known["most_bytes"]

    def most_bytes(kind: str) -> int:
        from fedrec.flower.exchange import SECURE_MESSAGE

        is_bounded = opened and kind == SECURE_MESSAGE
        return min(policy_bytes, opened[0].most_secure_bytes) if is_bounded else policy_bytes

    agent = Agent(
        lambda: _open(folder, opened)[0],
        shop=known["shop"],
        address=known["address"],
        authority=known["authority"].encode(),
        node_key=Path(known["node_key"]).read_bytes(),
        on_change=keep,
        app=app,
        idle_after_s=known["idle_after_s"],
        traffic=traffic,
        most_bytes=most_bytes,
    )
    stop_on_signals(agent.stop)
    with only_one(folder, "shop"):
        threading.Thread(target=refresh_after_erasures, args=(folder, agent.stop), daemon=True).start()
        keep(traffic)
        with serve_metrics(known["metrics_port"], lambda: agent_figures(folder)):
            agent.run()
    for member in opened:
        member.close()
    if not agent.stop.is_set():
        begin_anew(**known)


@shop_app.command()
def status(folder: Folder) -> None:
    """Whether the shop is connected, what it serves, what it has sent and spent."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fedrec.shop.adoption import current_version
    from fedrec.shop.member import MODELS_FOLDER
    from fedrec.shop.status import read_status

    about = read_status(folder)
    traffic = about["traffic"]
    table = Table(box=box.SIMPLE, show_header=False)
    answered = ", ".join(f"{count} {kind}" for kind, count in traffic["answered"].items()) or "nothing"
    table.add_row("shop", f"{about['shop']} at {about['at']}")
    table.add_row("connected", "yes" if traffic["connected"] else Text(f"no: {traffic['last_error'] or 'stopped'}"))
    table.add_row("run", about["run_id"] or "none was agreed to")
    table.add_row("serves", current_version(folder / MODELS_FOLDER))
    table.add_row("answered", Text(f"{answered}; refused {traffic['refused']}; {traffic['bytes_up'] / 1e6:.2f} MB"))
    for name, value in about["ledger"].items():
        table.add_row(name.replace("_", " "), f"{value:g}")
    Console().print(table)


@shop_app.command()
def recover(folder: Folder) -> None:
    """After a restored backup: charge in full what others have seen and the ledger lacks, then go on."""
    from fedrec.cli.service import only_one

    member, _ = open_member(folder)
    with only_one(folder, "shop"):
        sequence = member.recover()
    member.close()
    typer.echo(f"the missing releases are charged; the ledger is at release {sequence}. Start the agent again")


@shop_app.command()
def rollback(
    folder: Folder,
    to: Annotated[str | None, typer.Option(metavar="VERSION", help="A version; else the one before.")] = None,
) -> None:
    """Serve the model before the current one again, or the one named; local is the shop's own."""
    from fedrec.cli.shop_serve import make_ready, stale_models
    from fedrec.role_config import read_shop
    from fedrec.shop.adoption import roll_back
    from fedrec.shop.lists.serving_files import is_prepared
    from fedrec.shop.member import MODELS_FOLDER

    version = roll_back(folder / MODELS_FOLDER, to)
    typer.echo(f"serves {version} from now on")
    settings = read_shop(folder)
    if not is_prepared(folder / MODELS_FOLDER, version) or version in stale_models(folder, settings):
        make_ready(folder, settings, version)


@shop_app.command()
def privacy(folder: Folder) -> None:
    """What the shop has spent of its budget, entry by entry."""
    from fedrec.cli.report import privacy as report
    from fedrec.role_config import read_shop
    from fedrec.shop.member import IDENTITY_FILE, LEDGER_FILE

    if not (folder / LEDGER_FILE).exists():
        raise StoreError(
            f"{folder}: shop {read_shop(folder).name} has no ledger; one begins with its first private run"
        )
    report(str(folder / LEDGER_FILE), key=folder / IDENTITY_FILE)


@shop_app.command()
def leave(folder: Folder) -> None:
    """Free what an unfinished run reserved and delete the keys; ledger and models stay, own model alone is served."""
    from fedrec.cli.service import only_one
    from fedrec.shop.adoption import LOCAL, roll_back
    from fedrec.shop.member import IDENTITY_FILE, MODELS_FOLDER, NODE_KEY_FILE

    member, settings = open_member(folder)
    with only_one(folder, "shop"):
        member.leave()
    member.close()
    roll_back(folder / MODELS_FOLDER, LOCAL)
    for name in (IDENTITY_FILE, NODE_KEY_FILE):
        (folder / name).unlink(missing_ok=True)
    typer.echo(f"shop {settings.name} has left; tell the coordinator to remove it from the roster")


def _open(folder: Path, opened: list[Member]) -> tuple[Any, dict[str, Any]]:
    """The app of a folder's shop, whose member is put on the list, and what an agent must know to wait without it."""
    from fedrec.flower.client_app import make_member_app
    from fedrec.shop.member import NODE_KEY_FILE, check_secrets

    check_secrets(folder)
    member, settings = open_member(folder)
    opened.append(member)
    return make_member_app(member), {
        "shop": settings.name,
        "address": member.invitation.address,
        "authority": member.invitation.authority,
        "node_key": str(folder / NODE_KEY_FILE),
        "metrics_port": settings.metrics_port,
        "idle_after_s": settings.idle_after_s,
        "most_bytes": settings.policy.max_message_bytes,
    }


def open_member(folder: Path) -> tuple[Member, ShopSettings]:
    """The shop of a folder with its events, and its settings."""
    from fedrec.cli.shop_serve import make_ready
    from fedrec.role_config import open_store, read_shop
    from fedrec.shop.enrol import read_own_data
    from fedrec.shop.member import Member
    from fedrec.shop.own_data import StoreData

    settings = read_shop(folder)
    about, name = settings.data, settings.name
    member, ready = settings.member(), partial(make_ready, folder, settings)
    if not about.store:
        own = read_own_data(about.data_settings(), name, validation=about.validation)
        return Member(folder, member, *own, make_ready=ready), settings
    source = StoreData(
        open_store(folder, settings),
        name,
        validation=about.validation,
        kinds=about.train_on,
        min_rating=about.min_rating,
    )
    return Member(folder, member, *source.read(), source=source, make_ready=ready), settings


def refresh_after_erasures(folder: Path, stop: threading.Event, pause_s: float = _ERASURE_PAUSE_S) -> None:
    """Have what is served made anew, by a process of its own, whenever somebody was erased; until told to stop.

    Every erasure writes the file of tombstones, so that a look at its time is all that it costs to wait.
    """
    from fedrec.role_config import TOMBSTONES_FILE

    path, seen, wait_s = folder / TOMBSTONES_FILE, 0, pause_s
    while not stop.wait(wait_s):
        with suppress(OSError):
            if (now := path.stat().st_mtime_ns) != seen and path.read_text().count("\n") > 1:
                done = subprocess.run([sys.executable, "-c", _REFRESH, "shop", "refresh", str(folder), "--if-erased"])
                seen, wait_s = (seen, min(2 * wait_s, 3600.0)) if done.returncode else (now, pause_s)


def declare_shoppers(folder: Path, name: str, declared: int, *, has_files: bool) -> str:
    """The settings of a shop that was in no federation, with what it declares now.

    Raises:
        ConfigError: they are of another shop, in a federation already, or have no line for it.
    """
    from fedrec.role_config import SHOP_FILE, read_shop

    path = folder / SHOP_FILE
    if (found := read_shop(folder)).name != name or found.public_shoppers:
        raise ConfigError(
            f"{folder}: holds a shop already, {found.name} with {found.public_shoppers} shoppers declared; choose "
            "another folder, or the name of a shop in no federation"
        )
    if has_files:
        raise ConfigError(f"{path}: says where events come from; leave --events and --items out")
    changed, count = re.subn(r"(?m)^public_shoppers = 0\b", f"public_shoppers = {declared}", path.read_text())
    if count != 1:
        raise ConfigError(f"{path}: has no line public_shoppers = 0; add one")
    return changed


def confirm_roster(folder: Path, fingerprint: str) -> None:
    """Write the confirmed roster into the shop's settings.

    Raises:
        ConfigError: it is no fingerprint, or the settings have no line for it.
    """
    from fedrec.role_config import SHOP_FILE

    if not re.fullmatch(r"([0-9a-f]{4}-){7}[0-9a-f]{4}", fingerprint):
        raise ConfigError(f"--roster {fingerprint}: give the fingerprint, eight groups of four digits")
    path = folder / SHOP_FILE
    text = path.read_text()
    changed, count = re.subn(r'(?m)^roster = "[^"\n]*"', f'roster = "{fingerprint}"', text)
    if count != 1:
        raise ConfigError(f"{path}: has no line roster = ... in [policy]; add one")
    path.write_text(changed)
