"""`pegboard pretrain`: a whole run, and at its end the file that defect takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pegboard.cli.options import New, Overrides, ProjectFolder, open_project

if TYPE_CHECKING:
    from pegboard.runs import Run
    from pegboard_defect.moco.settings import MocoSettings

FILE = "backbone.safetensors"
"""Where the backbone goes, in the project's folder."""


def register(app: typer.Typer) -> None:
    """Add `pretrain` to the command line."""

    @app.command()
    def pretrain(
        overrides: Overrides = None,
        project: ProjectFolder = None,
        new: New = False,
        output: Annotated[
            Path | None,
            typer.Option(
                metavar="FILE", help=f"Where the backbone goes; default: {FILE} in the project."
            ),
        ] = None,
    ) -> None:
        """Train a backbone on pictures without labels, measure it, and write it for defect."""
        from pegboard.cli.results import show
        from pegboard.lifecycle import open_run, run_stages
        from pegboard.logs import new_progress

        progress = new_progress()
        done = open_run(open_project(project, overrides), progress, new=new)
        facts = run_stages(done, "report", progress)
        for stage in ("check", "evaluate", "report"):
            show(stage, done, facts[stage])
        typer.echo(how_to_use(write_backbone(done, output), done))


def write_backbone(run: Run, path: Path | None = None) -> Path:
    """Write the trained backbone by timm's names, atomically; return where it lies.

    Raises:
        CheckpointError: The run's weights are missing or damaged.
    """
    from pegboard.weights import load_trained
    from pegboard_defect.backbones import BackboneNote, save_backbone
    from pegboard_defect.moco.model import MocoNet

    settings, model = _settings(run), load_trained(run)
    if not isinstance(model, MocoNet):
        raise TypeError(f"this is no model of moco: {type(model)}")
    target = (path or run.project.folder / FILE).resolve()
    table, (height, width) = settings.model, settings.data.size
    cell = 1 if table.input == "pixels" else table.cell
    note = BackboneNote(
        backbone=table.backbone,
        color=settings.data.color,
        size=(height // cell, width // cell),
        input=table.input,
    )
    save_backbone(model.encoder.backbone, target, note)
    return target


def how_to_use(path: Path, run: Run) -> str:
    """Say what to write into the pegboard.toml of a defect project."""
    settings = _settings(run)
    return f"""
backbone
  {path}

  defect begins from it with these lines in its pegboard.toml:

  [data]
  color = "{settings.data.color}"
  size = {list(settings.data.size)}

  [model]
  input = "{settings.model.input}"
  cell = {settings.model.cell}
  backbone = "{settings.model.backbone}"
  weights = {json.dumps(str(path), ensure_ascii=False)}"""


def _settings(run: Run) -> MocoSettings:
    from pegboard_defect.moco.settings import MocoSettings

    settings = run.project.settings
    if not isinstance(settings, MocoSettings):
        raise TypeError(f"these are no settings of moco: {type(settings)}")
    return settings
