"""`serve`: answers requests over HTTP with a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pegboard.cli.options import PROJECT_FILE, Overrides, ProjectFolder, project_folder
from pegboard.errors import SettingsError


def add_commands(app: typer.Typer) -> None:
    """Add `serve`."""
    app.command()(serve)


def serve(
    overrides: Overrides = None,
    project: ProjectFolder = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A bundle; default: that of the project's newest run."),
    ] = None,
    challenger: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A bundle to run in its shadow; it never answers."),
    ] = None,
    bundles: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where bundles to change to lie; default: around the bundle."
        ),
    ] = None,
) -> None:
    """Answer requests over HTTP with a bundle."""
    from pegboard.bundle import read_bundle
    from pegboard.cli.predict import board_for, newest_bundle
    from pegboard.serving.server import run
    from pegboard.serving.service import Service
    from pegboard.settings import read_sources

    folder = project_folder(project)
    chosen = bundle or newest_bundle(folder)
    # Every checksum is looked at when it is deployed; here it only says what it needs.
    opened = read_bundle(chosen, verify=False)
    _require_serve_only(overrides or ())
    file = folder / PROJECT_FILE
    sources = read_sources(file if file.is_file() else None, overrides=overrides or ())
    board = board_for(opened, folder)
    around = folder / "runs" if bundle is None else chosen.absolute().parent
    service = Service(
        board,
        chosen,
        sources=sources,
        root=folder,
        challenger=challenger,
        bundles=bundles or around,
    )
    run(service, chosen.absolute())


def _require_serve_only(overrides: Sequence[str]) -> None:
    for override in overrides:
        if not override.startswith("serve."):
            raise SettingsError(
                f"'{override.partition('=')[0]}' belongs to the bundle and cannot be changed now",
                where="command line",
                remedy="set only serve.* here; train another bundle for the rest",
            )
