"""Bars on a terminal, lines elsewhere."""

import io

from rich.console import Console

from fedrec.cli.progress import PlainProgress, TerminalProgress, progress_on


def console(*, is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=100)


def said(one: Console) -> str:
    assert isinstance(one.file, io.StringIO)
    return one.file.getvalue()


def test_a_pipe_gets_a_line_for_each_phase_and_no_control_characters() -> None:
    screen = console(is_terminal=False)
    with progress_on(screen) as progress:
        progress.phase("load and split", None)
        progress.phase("rank [local]", 3)
        progress.advance()
        progress.note("3 shops")
    lines = said(screen).splitlines()
    assert [line.split(":")[0] for line in lines] == ["load and split", "  3 shops", "rank [local]"]
    assert "\x1b" not in said(screen)


def test_an_interrupted_phase_is_not_called_done() -> None:
    screen = console(is_terminal=False)
    try:
        with PlainProgress(screen) as progress:
            progress.phase("first", 1)
            progress.phase("second", 1)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert "first" in said(screen)
    assert "second" not in said(screen)


def test_a_terminal_gets_a_bar_for_each_phase_that_ends_full() -> None:
    screen = console(is_terminal=True)
    with progress_on(screen) as progress:
        assert isinstance(progress, TerminalProgress)
        progress.phase("load and split", None)
        progress.phase("rank", 3)
        progress.advance(2)
        progress.note("a [note]")
    last = said(screen)
    assert "load and split" in last
    assert "3/3" in last
    assert "a [note]" in last


def test_a_phase_that_comes_again_goes_on_and_its_last_result_stands() -> None:
    for is_terminal in (False, True):
        screen = console(is_terminal=is_terminal)
        with progress_on(screen) as progress:
            for number in (1, 2, 3):
                progress.phase("rounds: local update", 2)
                progress.advance(2)
                progress.result(f"round {number}: loss {number}.5")
            progress.phase("rank", 1)
        lines = said(screen).splitlines()
        if is_terminal:
            assert sum("rounds: local update" in line for line in lines[-4:]) == 1
            assert "round 3: loss 3.5" in "".join(lines[-4:])
        else:
            assert [line.split(":")[0] for line in lines][-3:] == ["  round 3", "rounds", "rank"]
            assert lines[0] == "  round 1: loss 1.5"
