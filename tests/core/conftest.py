"""One trained and exported toy for the whole session, and copies of it to break."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pegboard.lifecycle import open_run, prepare
from pegboard.progress import SilentProgress
from pegboard.project import Project, open_project
from pegboard.runs import Run


@pytest.fixture(scope="session")
def exported_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run whose model is trained, evaluated and exported; not to be changed."""
    from pegboard.stages import evaluate, export

    folder = tmp_path_factory.mktemp("exported")
    (folder / "pegboard.toml").write_text('solution = "toy"\n\n[deploy]\ngolden = 16\n')
    project = open_project(folder)
    prepare(project, SilentProgress())
    run = Run(project=project, folder=folder / "runs" / "first")
    run.folder.mkdir(parents=True)
    train_quickly(run)
    evaluate.run(run, SilentProgress())
    export.run(run, SilentProgress())
    return run


def train_quickly(run: Run) -> None:
    """Fit the toy on its whole train split: enough for decisions that mean something."""
    import torch

    from pegboard.weights import save_weights

    torch.manual_seed(0)
    hook, settings = run.project.board.hook, run.project.settings
    train = hook.load_split(settings=settings, split="train")
    model = hook.build_model(settings=settings, train_data=train).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            model(torch.as_tensor(train.x)), torch.as_tensor(train.label)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_weights(model.state_dict(), run.weights_file)


@pytest.fixture
def run_copy(exported_run: Run, tmp_path: Path) -> Callable[..., Run]:
    """Return a function that copies the exported run, with other settings when given any."""

    def copy(*overrides: str) -> Run:
        folder = tmp_path / "copy"
        shutil.copytree(exported_run.project.folder, folder)
        project: Project = open_project(folder, overrides)
        return replace(exported_run, project=project, folder=folder / "runs" / "first")

    return copy


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., Run]:
    """Return a function that begins a run of the toy, or takes it up again."""

    def begin(*overrides: str, hooks: str = "", name: str = "project") -> Run:
        folder = tmp_path / name
        if not folder.exists():
            folder.mkdir()
            (folder / "pegboard.toml").write_text('solution = "toy"\n')
            if hooks:
                (folder / "hooks.py").write_text(hooks)
        return open_run(open_project(folder, overrides), SilentProgress())

    return begin
