"""`doctor`: what is installed, what is broken and why, and who answers which hook."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from pegboard.cli.options import PROJECT_FILE, ProjectFolder, problems_of, project_folder
from pegboard.cli.tables import heading, table
from pegboard.errors import PegboardError

if TYPE_CHECKING:
    from pegboard.board import Board
    from pegboard.records import Finding

LIBRARIES = ("pegboard", "torch", "onnx", "onnxruntime", "onnxscript", "safetensors", "matplotlib")
SYSTEM_LIBRARIES = {"gomp": "libgomp1"}
"""Shared libraries that pip does not bring, by the Debian package that does."""


def add_commands(app: typer.Typer) -> None:
    """Add `doctor`."""
    app.command()(doctor)


def doctor(folder: ProjectFolder = None) -> None:
    """Show what is installed, what is broken and why, and who answers which hook.

    The exit code is 2 when the project or one of its plugins is broken.
    """
    place = project_folder(folder)
    _show_software()
    problems, board = _examine(place)
    problems += _diagnose(board)
    _show_targets(board)
    _show_call_order(board)
    _show_plugins(board)
    heading("Problems")
    for problem in problems:
        typer.echo(f"  {problem}")
    if problems:
        raise typer.Exit(2)
    typer.echo("  none")


def _show_software() -> None:
    import platform

    heading("Software")
    rows = [("python", platform.python_version(), "")]
    rows += [(name, *_library(name)) for name in LIBRARIES]
    rows += [_system_library(name, package) for name, package in SYSTEM_LIBRARIES.items()]
    table(("name", "version", "remark"), rows)


def _library(name: str) -> tuple[str, str]:
    """Return version and remark of a library; only importing it shows whether it works."""
    from importlib import metadata

    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return "-", "not installed; pip install 'pegboard[train]' brings it"
    try:
        importlib.import_module(name)
    # A broken binary raises ImportError, OSError or an error of its own.
    except Exception as error:
        return version, f"cannot be imported: {type(error).__name__}: {error}"
    return version, ""


def _system_library(name: str, package: str) -> tuple[str, str, str]:
    import ctypes.util

    if ctypes.util.find_library(name):
        return f"lib{name}", "present", ""
    return f"lib{name}", "-", f"missing; on Debian apt-get install {package}"


def _examine(folder: Path) -> tuple[list[str], Board]:
    """Open a project; return what is wrong with it, and as much of its board as can be built."""
    from pegboard.board import build_board
    from pegboard.project import open_project

    if not (folder / PROJECT_FILE).is_file():
        return [], build_board()
    problems: list[str] = []
    try:
        board = open_project(folder).board
    except PegboardError as error:
        problems.append(str(error))
        board = _what_can_be_built(folder)
    return problems + problems_of(board), board


def _what_can_be_built(folder: Path) -> Board:
    """Build the board of a broken project: without its `hooks.py`, or else the core's alone."""
    from pegboard.board import PROJECT_PLUGIN, build_board
    from pegboard.settings import read_sources

    try:
        tables = read_sources(folder / PROJECT_FILE).tables
    except PegboardError:
        return build_board()
    for hooks_file in (folder / PROJECT_PLUGIN, None):
        try:
            return build_board(tables["solution"], tables.get("plugins", ()), hooks_file)
        # The tables are as the user wrote them: `plugins = 3` is possible here.
        except (PegboardError, KeyError, TypeError):
            continue
    return build_board()


def _diagnose(board: Board) -> list[str]:
    """Show what plugins find this machine to lack; return what of it is a problem."""
    try:
        findings: list[Finding] = board.collect("diagnose")
    # A plugin that cannot examine the machine must not hide what else is wrong.
    except Exception as error:
        return [f"the hook 'diagnose' is broken: {type(error).__name__}: {error}"]
    if findings:
        heading("Machine")
        rows = [(one.level, one.what, one.where, one.remedy) for one in findings]
        table(("level", "finding", "where", "remedy"), rows)
    errors = [one for one in findings if one.level == "error"]
    return [f"{one.what} ({one.where}); {one.remedy}" for one in errors]


def _show_targets(board: Board) -> None:
    heading("Targets")
    targets = board.collect("deploy_targets")
    table(("name", "state"), [(t.name, t.unavailable() or "available") for t in targets])


def _show_call_order(board: Board) -> None:
    from pegboard.hookspecs import HOOKS

    heading("Hooks, and who is called in which order")
    rows = [(name, facts.call, ", ".join(board.call_order(name))) for name, facts in HOOKS.items()]
    table(("hook", "call", "order"), rows)


def _show_plugins(board: Board) -> None:
    heading("Plugins")
    rows = [(name, version, "on the board") for name, version in board.versions().items()]
    rows += [(plugin.name, plugin.version, plugin.cause) for plugin in board.quarantined]
    if rows:
        table(("name", "version", "state"), rows)
    else:
        typer.echo("  none beside the core's own")
