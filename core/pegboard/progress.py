"""Progress: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0
"""Plain output says something this often, so that a log shows life and stays short."""


class Progress(Protocol):
    """What hooks use to say how far they are."""

    def track(self, items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
        """Yield `items` and show how many are done."""

    @contextmanager
    def task(self, title: str) -> Iterator[None]:
        """Show that something of unknown length is going on."""

    def say(self, text: str) -> None:
        """Print one line without disturbing a bar."""


class TerminalProgress:
    """Bars that are drawn over."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def track(self, items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
        """Yield `items` under a bar."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=self.console, transient=True) as bars:
            yield from bars.track(items, total=total, description=title)

    @contextmanager
    def task(self, title: str) -> Iterator[None]:
        """Spin until the block is left."""
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with RichProgress(*columns, console=self.console, transient=True) as bars:
            bars.add_task(title, total=None)
            yield

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, markup=False, highlight=False)


class PlainProgress:
    """Lines for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def track(self, items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
        """Yield `items`; say where they are every few seconds."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        said = time.monotonic()
        for done, item in enumerate(items):
            yield item
            if time.monotonic() - said > SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                self.say(f"{title}: {done + 1}" + (f" of {total}" if total else ""))

    @contextmanager
    def task(self, title: str) -> Iterator[None]:
        """Say that it begins."""
        self.say(f"{title} ...")
        yield

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class SilentProgress:
    """Nothing: for tests and for every process but the first."""

    def track(self, items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
        """Yield `items`."""
        yield from items

    @contextmanager
    def task(self, title: str) -> Iterator[None]:
        """Do nothing."""
        yield

    def say(self, text: str) -> None:
        """Do nothing."""


def new_progress(console: Console | None = None) -> Progress:
    """Choose bars for a terminal and lines for anything else."""
    console = console or Console(stderr=True)
    return TerminalProgress(console) if console.is_terminal else PlainProgress(console)
