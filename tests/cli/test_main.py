"""What holds for every command: errors in one line, exit statuses, help that is enough."""

import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedrec as package
from fedrec.cli import _no_lost_interrupt


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
        (["simulate", "--columns", "item=a,shopper=b,item=c"], "item twice"),
        (["simulate", "--events", ""], "data.events is empty"),
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
    for words in ("popularity", "itemknn", "ease", "ials", "neumf", "smallae", "none, local, distributed"):
        assert words in said.out
    said = fedrec("models", "ease")
    assert said.status == 0
    assert "max_items" in said.out
    said = fedrec("models", "easy")
    assert said.status == 2
    assert "did you mean ease" in said.err


def test_without_a_command_there_is_help_and_no_empty_error(fedrec: Callable[..., Any]) -> None:
    for arguments in ([], ["data"]):
        said = fedrec(*arguments)
        assert said.status == 2
        assert "Usage: fedrec" in said.out + said.err
        assert "error: " not in said.err


OWN_MODEL = """
from dataclasses import dataclass
from typing import ClassVar

from fedrec.models.popularity import Popularity


@dataclass(frozen=True)
class Mine(Popularity):
    name: ClassVar[str] = "mine"
"""


def test_a_model_of_ones_own_is_found_in_the_folder_where_the_command_is_given(
    tmp_path: Path, small_options: tuple[str, ...]
) -> None:
    (tmp_path / "module_of_mine.py").write_text(OWN_MODEL)
    command = [str(Path(sys.executable).with_name("fedrec")), "simulate", *small_options]
    command += ["--model", "module_of_mine:Mine", "--out", "run", "--set", 'evaluation.columns=["federated"]']
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert (tmp_path / "run" / "run.json").is_file()


def test_a_ctrl_c_that_falls_into_a_callback_is_not_lost() -> None:
    class Thing:
        pass

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    def run() -> None:
        thing = Thing()
        reference = weakref.ref(thing, interrupted)
        with _no_lost_interrupt():
            del thing
            time.sleep(5)
        raise AssertionError(f"{reference} went and nobody was told")

    with pytest.raises(KeyboardInterrupt):
        run()
