"""The options that several commands share, and how a command opens its project."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from pegboard.logs import LOGGER

if TYPE_CHECKING:
    from pegboard.board import Board
    from pegboard.project import Project

PROJECT_FILE = "pegboard.toml"

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings, for example train.epochs=3."),
]
ProjectFolder = Annotated[
    Path | None,
    typer.Option(
        "--project", metavar="DIR", help="The project; default: here, or the nearest folder above."
    ),
]
New = Annotated[bool, typer.Option("--new", help="Begin a run of its own.")]
Again = Annotated[bool, typer.Option("--again", help="Do this stage again even if it is done.")]


class QuickHelp:
    """For commands that must be quick: tells typer that no help was asked for.

    Where `--help` has no default, typer imports pydantic to find out what its absence means.
    """

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option, with a default."""
        option = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None:
            option.default = False
        return option


class QuickCommand(QuickHelp, TyperCommand):
    """A command that starts without pydantic."""


def project_folder(given: Path | None) -> Path:
    """Return the folder of a project: as given, else this one, else the nearest one above it."""
    here = Path.cwd()
    if given is not None:
        return given
    above = (folder for folder in (here, *here.parents) if (folder / PROJECT_FILE).is_file())
    return next(above, here)


def open_project(given: Path | None, overrides: Sequence[str] | None) -> Project:
    """Open a project and warn of what its plugins do in vain."""
    from pegboard import project

    opened = project.open_project(project_folder(given), overrides or ())
    for problem in problems_of(opened.board):
        LOGGER.warning(problem)
    return opened


def problems_of(board: Board) -> list[str]:
    """Describe what is wrong with a board and does not stop it."""
    kept_off = [
        f"the plugin '{plugin.name}' ({plugin.distribution} {plugin.version}) is kept off the "
        f"board: {plugin.cause}"
        for plugin in board.quarantined
    ]
    return [*kept_off, *board.unknown_hooks(), *board.ignored_defaults()]
