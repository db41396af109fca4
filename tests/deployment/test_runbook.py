"""Backups, restores and upgrades as the runbooks say them (server/README.md, clients/README.md)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import fedrec
from fedrec.federation.plan import FORMAT_VERSION

from .town import SHOPS, Town, wait_until

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


def test_a_coordinator_that_was_put_back_drops_the_old_run_and_begins_the_next(town: Town) -> None:
    town.begin()
    wait_until(town.uploads, "an upload")
    assert town.end("coordinator") == 2
    copy = back_up(town.coordinator)
    town.run()
    spent = town.charges()
    put_back(copy, town.coordinator)
    town.start("coordinator")
    assert town.finish() == 2  # for the shops it is over: nobody answers or opens it a second time
    assert town.log("coordinator").splitlines()[-1].startswith("error: ")
    assert town.charges() == spent
    town.drop_run()
    num_sums = len(town.rounds(town.run()))
    assert town.charges() == {shop: (charges + num_sums, aborts) for shop, (charges, aborts) in spent.items()}


def test_a_shop_that_was_put_back_takes_part_in_the_next_run(town: Town) -> None:
    town.have_run()
    town.end("ant")
    before = town.charge("ant")
    put_back(back_up(town.folder / "ant", "masks"), town.folder / "ant")
    town.start("ant")
    last = town.rounds(town.run())
    assert [one["shops"] for one in last][-1] == len(SHOPS)
    assert town.charge("ant") == (before[0] + len(last), before[1])


def another_version(folder: Path) -> Path:
    """fedrec 9.9.9, whose plans have a format that this one does not know."""
    source = Path(fedrec.__file__).parent
    shutil.copytree(source, folder / "fedrec", ignore=shutil.ignore_patterns("__pycache__"))
    for name, line, other in (
        ("__init__.py", f'__version__ = "{fedrec.__version__}"', '__version__ = "9.9.9"'),
        ("federation/plan.py", f"FORMAT_VERSION = {FORMAT_VERSION}", "FORMAT_VERSION = 999"),
    ):
        text = (folder / "fedrec" / name).read_text()
        assert line in text
        (folder / "fedrec" / name).write_text(text.replace(line, other))
    return folder


def test_a_shop_that_was_upgraded_alone_is_left_out_and_takes_part_again_when_it_goes_back(
    town: Town, tmp_path: Path
) -> None:
    before = town.charges()
    town.end("ant")
    town.code["ant"] = another_version(tmp_path)
    town.start("ant")
    alone = town.rounds(town.run())
    assert [one["shops"] for one in alone] == [len(SHOPS) - 1] * len(alone)
    assert "plan of format" in town.log("ant")
    town.end("ant")
    del town.code["ant"]
    town.start("ant")
    together = town.rounds(town.run())
    assert [one["shops"] for one in together] == [len(SHOPS)] * len(together)
    charged = {shop: town.charge(shop)[0] - before[shop][0] for shop in SHOPS}
    assert charged == {shop: len(together) + (len(alone) if shop != "ant" else 0) for shop in SHOPS}
