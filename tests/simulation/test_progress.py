"""Telling nobody."""

import pytest

from fedrec.simulation.progress import quiet


def test_the_quiet_progress_takes_everything_and_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    quiet.phase("load", None)
    quiet.advance(3)
    quiet.note("text")
    assert capsys.readouterr() == ("", "")
