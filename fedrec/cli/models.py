"""``fedrec models``: what can be trained."""

from __future__ import annotations


def models() -> None:
    """Show the models that --model takes, with their settings and defaults, and which can be trained under a budget.

    \b
    [bold]Examples[/]
      fedrec models
      fedrec simulate --model itemknn --set model.settings.neighbours=100
      fedrec simulate --model my_package.my_module:MyModel
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from fedrec.models import describe_models

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), expand=False)
    table.add_column("model", style="bold cyan", no_wrap=True)
    table.add_column("what it is")
    table.add_column("settings (default)", style="dim")
    table.add_column("private")
    for about in describe_models():
        settings = "\n".join(f"{name} = {value}" for name, value in about.settings.items())
        table.add_row(about.name, about.summary, settings, "yes" if about.can_be_private else "no")
    console = Console()
    console.print(table)
    console.print("[dim]Your own: --model package.module:Class, or the entry-point group fedrec.models.[/]")
