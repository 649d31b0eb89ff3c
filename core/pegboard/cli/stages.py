"""`run` and a command for every stage of the life cycle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pegboard import logs
from pegboard.cli.options import Again, New, Overrides, ProjectFolder, open_project
from pegboard.cli.results import show
from pegboard.errors import LimitMissedError
from pegboard.lifecycle import STAGES, open_run, run_stages
from pegboard.lifecycle import prepare as prepare_data

if TYPE_CHECKING:
    from pegboard.runs import Run


def add_commands(app: typer.Typer) -> None:
    """Add `run`, `prepare` and the stages."""
    app.command()(run)
    app.command()(prepare)
    for stage in STAGES.values():
        app.command(stage.name, help=stage.summary)(_command_of(stage.name))


def run(overrides: Overrides = None, project: ProjectFolder = None, new: New = False) -> None:
    """Go through all stages, from the data to the report."""
    done, facts = _bring(STAGES_END, overrides, project, new=new, again=False)
    for stage in ("check", "evaluate", "verify", "benchmark", "report"):
        show(stage, done, facts[stage])


def prepare(overrides: Overrides = None, project: ProjectFolder = None) -> None:
    """Make the embedded data set, or fetch your own."""
    for path in prepare_data(open_project(project, overrides), logs.new_progress()):
        typer.echo(path)


STAGES_END = list(STAGES)[-1]


def _command_of(stage: str) -> Callable[..., None]:
    def command(
        overrides: Overrides = None,
        project: ProjectFolder = None,
        new: New = False,
        again: Again = False,
    ) -> None:
        done, facts = _bring(stage, overrides, project, new=new, again=again)
        show(stage, done, facts[stage])

    return command


def _bring(
    last: str, overrides: Sequence[str] | None, folder: Path | None, *, new: bool, again: bool
) -> tuple[Run, Mapping[str, Mapping[str, Any]]]:
    """Bring the project's run up to a stage."""
    progress = logs.new_progress()
    done = open_run(open_project(folder, overrides), progress, new=new)
    try:
        return done, run_stages(done, last, progress, again=again)
    except LimitMissedError:
        if done.benchmark_file.exists():
            show("benchmark", done, {})
        raise
