"""Plain text tables: readable on a terminal, in a log and through `grep`."""

from __future__ import annotations

from collections.abc import Sequence

import typer


def heading(text: str) -> None:
    """Print a heading with a line before it."""
    typer.echo()
    typer.echo(typer.style(text, bold=True))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, indent: int = 2) -> None:
    """Print rows under bold headers, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    typer.echo(typer.style(_line(headers, widths, indent), bold=True))
    for row in rows:
        typer.echo(_line(row, widths, indent))


def _line(cells: Sequence[str], widths: Sequence[int], indent: int) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    return (" " * indent + "  ".join(padded)).rstrip()
