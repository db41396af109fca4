"""Backups, restores and upgrades as the runbooks say them (server/README.md, clients/README.md)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .town import SHOPS, Town

pytestmark = pytest.mark.slow


def back_up(folder: Path, *without: str) -> Path:
    """A copy of a folder beside it, as `cp -a` makes one."""
    copy = folder.with_name(f"{folder.name}.backup")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*without))
    return copy


def put_back(copy: Path, folder: Path) -> None:
    """The machine was lost: the copy is all there is."""
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)


def test_a_shop_that_was_put_back_takes_part_in_the_next_run(town: Town) -> None:
    town.have_run()
    town.end("ant")
    before = town.charge("ant")
    put_back(back_up(town.folder / "ant", "masks"), town.folder / "ant")
    town.start("ant")
    last = town.rounds(town.run())
    assert [one["shops"] for one in last][-1] == len(SHOPS)
    assert town.charge("ant") == (before[0] + len(last), before[1])
