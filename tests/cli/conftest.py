"""A small finished run that the tests of the command line share, and a way to call the command."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedrec.cli import main


@dataclass(frozen=True)
class Said:
    """What a command left: exit status, standard output and error."""

    status: int
    out: str
    err: str


SMALL = (
    *("--source", "synthetic", "--no-tune", "--set", "data.synthetic.num_shoppers=300"),
    *("--set", "data.synthetic.num_shops=3", "--set", "data.synthetic.num_items=80"),
    *("--set", "data.synthetic.size_ratio=3", "--set", "evaluation.bootstrap=100"),
)


@pytest.fixture(autouse=True)
def _signals_and_logs_as_before() -> Iterator[None]:
    """Commands that run for long set those of their process, which here is that of all tests."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    loggers = [logging.getLogger(name) for name in ("fedrec", "flwr")]
    before = [(one, one.level, list(one.handlers)) for one in loggers]
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    for number, handler in signals.items():
        signal.signal(number, handler)
    for one, old_level, old_handlers in before:
        one.setLevel(old_level)
        one.handlers[:] = old_handlers
    root.setLevel(level)
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler and handler not in handlers:
            root.removeHandler(handler)


@pytest.fixture
def fedrec(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Call the command in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Said(status, said.out, said.err)

    return call


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fedrec: Callable[..., Said]) -> Path:
    """A shop of its own with an empty store; beside it events.csv and items.csv, where four items share a title."""
    monkeypatch.chdir(tmp_path)
    rows = [f"u{row},i{(row * 3 + n) % 20},{1_700_000_000 + n}" for row in range(30) for n in range(5)]
    (tmp_path / "events.csv").write_text("shopper,item,timestamp\n" + "\n".join(rows) + "\n")
    (tmp_path / "items.csv").write_text("item,title\n" + "".join(f"i{n},Title {n // 4}\n" for n in range(20)))
    assert fedrec("shop", "init", "north", "--name", "north").status == 0
    return tmp_path / "north"


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of one small run."""
    out = tmp_path_factory.mktemp("runs") / "small"
    assert main(["simulate", *SMALL, "--out", str(out)]) == 0
    return out


@pytest.fixture
def small_options() -> tuple[str, ...]:
    """Options of a run of a second or two."""
    return SMALL
