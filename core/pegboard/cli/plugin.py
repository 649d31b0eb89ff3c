"""`plugin test`, and the commands that a project's plugins add."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_group

from pegboard.cli.options import PROJECT_FILE, open_project, project_folder
from pegboard.cli.tables import table
from pegboard.logs import new_progress


def add_commands(app: typer.Typer) -> None:
    """Add `plugin test`."""
    plugin = typer.Typer(help="Work on a plugin of your own.")
    plugin.command("test")(test)
    app.add_typer(plugin, name="plugin")


def test(name: Annotated[str, typer.Argument(help="The solution's name, as in 'list'.")]) -> None:
    """Put a solution through the conformance kit."""
    from pegboard.board import build_board
    from pegboard.errors import PluginError
    from pegboard.testing import check_plugin

    build_board(name)  # Of one that is not there, or does not load, every check would say the same.
    with tempfile.TemporaryDirectory() as folder:
        outcomes = check_plugin(name, Path(folder), progress=new_progress(), strict=False)
    table(
        ("check", "result", "seconds"),
        [
            (outcome.name.replace("_", " "), outcome.reason or "passed", f"{outcome.seconds:.1f}")
            for outcome in outcomes
        ],
    )
    failed = sum(not outcome.passed for outcome in outcomes)
    if failed:
        raise PluginError(
            f"{failed} of {len(outcomes)} checks failed",
            where=f"plugin {name}",
            remedy="docs/conformance.md says what each asks for",
        )
    typer.echo(f"{name} holds all {len(outcomes)} checks")


def project_commands() -> dict[str, Any]:
    """Return the commands that the plugins of the project here add; none outside a project."""
    folder = project_folder(None)
    if not (folder / PROJECT_FILE).is_file():
        return {}
    app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    open_project(folder, ()).board.hook.register_commands(app=app)
    if not app.registered_commands and not app.registered_groups:
        return {}
    return dict(get_group(app).commands)
