"""What holds for every command: errors in one line, exit statuses, help that is enough."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedrec as package


def test_the_version_is_the_package_s(fedrec: Callable[..., Any]) -> None:
    said = fedrec("--version")
    assert (said.status, said.out) == (0, f"fedrec {package.__version__}\n")


@pytest.mark.parametrize("command", ["simulate", "recommend", "models", "data list", "data describe"])
def test_help_of_each_command_holds_an_example_of_it(fedrec: Callable[..., Any], command: str) -> None:
    said = fedrec(*command.split(), "--help")
    assert said.status == 0
    assert f"  fedrec {command}" in said.out.split("Examples", 1)[1] or command == "data list"
    assert "[bold]" not in said.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simulate", "--sed", "3"], "--seed"),
        (["simulate", "none.toml"], "none.toml"),
        (["simulate", "--set", "data.sorce=x"], "did you mean source?"),
        (["simulate", "--columns", "kunde"], "shopper=kunde"),
        (["simulate", "--source", "ml-1m", "--events", "a.csv"], "one of source, events, url"),
        (["simulate", "--resume"], "--out DIR"),
        (["simulate", "--model", "esae"], "ease"),
        (["simulate", "--url", "sqlite://"], "query is missing"),
        (["recommend", "--run", "runs/none", "--shop", "a", "--shopper", "b"], "runs/none"),
        (["recommend", "--run", "x"], "--shop and --shopper"),
        (["recommend", "--run", "x", "--all"], "--out FILE"),
        (["recommend", "--run", "x", "--all", "--out", "lists.txt"], ".csv or .parquet"),
        (["recommend", "--run", "x", "--shop", "a", "--shopper", "b", "-n", "0"], "0"),
        (["nothing"], "nothing"),
    ],
)
def test_what_is_refused_is_said_in_one_line_with_exit_status_2(
    fedrec: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = fedrec(*arguments)
    assert said.status == 2
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert words in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_name_with_a_line_break_still_makes_one_line(fedrec: Callable[..., Any]) -> None:
    said = fedrec("simulate", "two\nlines.toml")
    assert said.err.startswith("error: scenario two lines.toml: cannot be read")
    assert said.err.count("\n") == 1


def test_models_are_listed_with_their_settings(fedrec: Callable[..., Any]) -> None:
    said = fedrec("models")
    assert said.status == 0
    for words in ("popularity", "itemknn", "ease", "ials", "max_items = ", "factors = "):
        assert words in said.out
