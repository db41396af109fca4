"""The ``fedrec`` command. Commands import what they need when they run, so that ``fedrec --help`` is quick."""

from __future__ import annotations

import _thread
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click
import typer

from fedrec.cli.audit import audit
from fedrec.cli.coordinator import coordinator_app
from fedrec.cli.data import data_app
from fedrec.cli.models import models
from fedrec.cli.recommend import recommend
from fedrec.cli.report import report_app
from fedrec.cli.shop import shop_app
from fedrec.cli.shop_serve import refresh, serve
from fedrec.cli.shop_store import erase, export, import_file, init, key
from fedrec.cli.simulate import InterruptedRunError, simulate
from fedrec.errors import FedrecError

app = typer.Typer(
    name="fedrec",
    help="Shops that may not share their customers' data train one recommender together.",
    epilog="Start with: fedrec simulate --source synthetic",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(simulate)
app.command()(recommend)
app.command()(models)
app.command()(audit)
app.add_typer(report_app, name="report")
app.add_typer(data_app, name="data")
app.add_typer(coordinator_app, name="coordinator")
app.add_typer(shop_app, name="shop")
for command in (init, erase, export, key, refresh, serve):
    shop_app.command()(command)
shop_app.command("import")(import_file)

REFUSED = 2
INTERRUPTED = 130


def _print_version(wanted: bool) -> None:
    if wanted:
        import fedrec

        typer.echo(f"fedrec {fedrec.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and stop."
    ),
) -> None:
    """Shops that may not share their customers' data train one recommender together."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0 done, 2 refused, 130 interrupted.

    Args:
        arguments: without the program's name; None = of this process.
    """
    if os.getcwd() not in sys.path:  # --model package.module:Class may lie where the command is given
        sys.path.append(os.getcwd())
    try:
        with _no_lost_interrupt():
            result = app(args=arguments, prog_name="fedrec", standalone_mode=False)
    except FedrecError as error:
        return _refuse(" ".join(str(error).split()))
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return REFUSED
    except click.ClickException as error:
        return _refuse(" ".join(error.format_message().split()))
    except InterruptedRunError as stopped:
        return _interrupted(str(stopped))
    except (click.Abort, KeyboardInterrupt):
        return _interrupted("interrupted")
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    if result == INTERRUPTED:  # typer's word for a Ctrl-C that it caught, about which nobody was told
        return _interrupted("interrupted")
    return result if isinstance(result, int) else 0


@contextmanager
def _no_lost_interrupt() -> Iterator[None]:
    """Repeat a Ctrl-C that Python drops with a traceback, since it fell into a callback that cannot raise."""
    before = sys.unraisablehook

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            threading.Timer(0.01, _thread.interrupt_main).start()
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _interrupted(message: str) -> int:
    print(message, file=sys.stderr)
    return INTERRUPTED


def _refuse(message: str) -> int:
    text = "".join(char if char.isprintable() else " " for char in message)  # words of others' files may be in it
    print(f"error: {text}", file=sys.stderr)
    return REFUSED
