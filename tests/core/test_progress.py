"""Progress: bars on a terminal, few lines in a log, nothing lost either way."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from pegboard import progress
from pegboard.progress import PlainProgress, SilentProgress, TerminalProgress, new_progress


def plain() -> tuple[PlainProgress, io.StringIO]:
    stream = io.StringIO()
    return PlainProgress(Console(file=stream, width=40)), stream


def test_a_terminal_gets_bars_and_a_pipe_gets_lines() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True)
    assert isinstance(new_progress(terminal), TerminalProgress)
    assert isinstance(new_progress(Console(file=io.StringIO())), PlainProgress)


@pytest.mark.parametrize(
    "shown",
    [
        plain()[0],
        SilentProgress(),
        TerminalProgress(Console(file=io.StringIO(), force_terminal=True)),
    ],
    ids=lambda shown: type(shown).__name__,
)
def test_every_item_comes_through_once_and_in_order(shown: Any) -> None:
    assert list(shown.track([3, 1, 2], "work")) == [3, 1, 2]
    assert list(shown.track(iter("ab"), "work", total=2)) == ["a", "b"]
    with shown.task("something"):
        shown.say("said")


def test_lines_are_rare_and_say_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, stream = plain()
    assert list(shown.track(range(1000), "work"))[-1] == 999
    assert stream.getvalue() == ""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    list(shown.track(range(2), "work"))
    assert stream.getvalue().splitlines() == ["work: 1 of 2", "work: 2 of 2"]


def test_a_long_line_is_not_broken_and_brackets_are_not_markup() -> None:
    shown, stream = plain()
    text = "a [bold]path[/bold] " + "x" * 60
    shown.say(text)
    assert stream.getvalue() == text + "\n"


def test_an_error_inside_a_task_passes_through() -> None:
    for shown in (plain()[0], SilentProgress()):
        with pytest.raises(ZeroDivisionError), shown.task("work"):
            raise ZeroDivisionError
