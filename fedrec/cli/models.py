"""``fedrec models``: what can be trained."""

from __future__ import annotations

from typing import Annotated

import typer


def models(
    name: Annotated[str, typer.Argument(help="One model's settings and their defaults.", show_default=False)] = "",
) -> None:
    """Show the models that --model takes, and in which privacy modes each can be trained.

    \b
    [bold]Examples[/]
      fedrec models
      fedrec models multvae
      fedrec simulate --model itemknn --set model.settings.neighbours=100
      fedrec simulate --model my_package.my_module:MyModel
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from fedrec.errors import ConfigError
    from fedrec.models import describe_models

    console, described = Console(), {about.name: about for about in describe_models()}
    if name and name not in described:
        from fedrec.config import nearest

        raise ConfigError(f"there is no model '{name}'{nearest(name, described)}; see fedrec models")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), expand=False)
    if name:
        table.add_column("setting", style="bold cyan", no_wrap=True)
        table.add_column("default")
        for setting, value in described[name].settings.items():
            table.add_row(setting, str(value))
        console.print(f"[bold]{name}[/]: {described[name].summary}")
        console.print(table)
        console.print(f"[dim]fedrec simulate --model {name} --set model.settings.SETTING=VALUE[/]")
        return
    table.add_column("model", style="bold cyan", no_wrap=True)
    table.add_column("what it is")
    table.add_column("privacy modes", no_wrap=True)
    for about in described.values():
        table.add_row(about.name, about.summary, ", ".join(about.privacy_modes))
    console.print(table)
    console.print(
        "[dim]Settings of one: fedrec models NAME. Your own: --model package.module:Class, or the entry-point group "
        "fedrec.models.[/]"
    )
