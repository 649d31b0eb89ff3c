"""A project: a folder with `pegboard.toml` and `hooks.py`, its settings and its board."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pegboard.board import PROJECT_PLUGIN, Board, build_board
from pegboard.errors import PluginError, SettingsError
from pegboard.settings import FILE_NAME, Settings, Sources, read_sources, resolve


@dataclass(frozen=True, kw_only=True)
class Project:
    """What every stage works on."""

    folder: Path
    """Absolute."""
    settings: Settings
    """Resolved from file, environment and command line."""
    board: Board
    """With the project's plugins on it."""
    overrides: tuple[str, ...] = field(default=())
    """The `key=value` settings of the command line, for processes that open it again."""

    @property
    def hooks_file(self) -> Path:
        """The project's own hooks; the file may be absent."""
        return self.folder / PROJECT_PLUGIN


def open_project(folder: Path, overrides: Sequence[str] = ()) -> Project:
    """Read a project's settings and build its board.

    Raises:
        SettingsError: `pegboard.toml` is missing or wrong.
        PluginError: A plugin it names is not installed, or the solution is broken.
    """
    folder = folder.resolve()
    sources = read_sources(folder / FILE_NAME, overrides=overrides)
    plugins = _names(sources, "plugins")
    solution = _names(sources, "solution")
    if len(solution) != 1:
        raise SettingsError(
            "the setting 'solution' is missing",
            where=str(folder / FILE_NAME),
            remedy="add a line such as solution = \"fraud\"; 'pegboard list' names what is there",
        )
    board = build_board(solution[0], plugins, hooks_file=folder / PROJECT_PLUGIN)
    settings = resolve(settings_type(board, solution[0]), sources, folder)
    return Project(folder=folder, settings=settings, board=board, overrides=tuple(overrides))


def settings_type(board: Board, solution: str) -> type[Settings]:
    """Return the type of a solution's settings.

    Raises:
        PluginError: The plugin names none, so it is no solution.
    """
    kind: type[Settings] | None = board.hook.settings_type()
    if kind is None:
        raise PluginError(
            f"the plugin '{solution}' is no solution: it has no hook 'settings_type'",
            where=FILE_NAME,
            remedy="name a solution, and put this one under plugins = [...]",
        )
    return kind


def _names(sources: Sources, key: str) -> list[str]:
    """Read a name or a list of names before the settings' type is known."""
    value: Any = sources.tables.get(key, [])
    names = [value] if isinstance(value, str) else value
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return names
    raise SettingsError(
        f"the setting '{key}' is wrong: it takes names, not {value!r}",
        where=sources.origin((key,)),
        remedy="write names in quotation marks",
    )
