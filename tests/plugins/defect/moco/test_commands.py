"""`pegboard pretrain` leaves a file that defect begins from, and says how."""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pegboard.lifecycle import open_run
from pegboard.progress import SilentProgress
from pegboard.project import open_project
from pegboard.runs import Run
from pegboard.weights import save_weights
from pegboard_defect.backbones import build_backbone, load_backbone, read_note
from pegboard_defect.moco.commands import how_to_use, write_backbone
from pegboard_defect.moco.model import MocoNet, build
from pegboard_defect.moco.settings import MocoSettings

TINY = """
solution = "moco"
[data]
path = "parts"
size = [32, 32]
[model]
input = "pixels"
backbone = "tiny"
hidden = 16
dim = 8
[train]
epochs = 2
batch_size = 8
devices = 1
[deploy]
targets = ["torch"]
golden = 4
"""


@pytest.fixture
def run(make_project: Callable[..., Path]) -> Run:
    """A run of a project with pictures of its own, in which nothing was done yet."""
    folder = make_project(TINY)
    (folder / "parts").mkdir()
    for index in range(40):
        image = np.random.default_rng(index).integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(image).save(folder / "parts" / f"{index}.png")
    return open_run(open_project(folder), SilentProgress())


def with_weights(run: Run) -> MocoNet:
    assert isinstance(run.project.settings, MocoSettings)
    model = build(run.project.settings, None)
    with torch.no_grad():
        model.slow.get_buffer("backbone/conv1/weight").zero_()
    save_weights(model.state_dict(), run.weights_file)
    return model


def test_the_fast_backbone_is_written_by_timms_names(run: Run) -> None:
    model = with_weights(run)
    path = write_backbone(run)
    assert path == run.project.folder / "backbone.safetensors"
    backbone = build_backbone("tiny", 1, (32, 32))
    load_backbone(backbone, path)
    for name, value in model.encoder.backbone.state_dict().items():
        assert torch.equal(backbone.state_dict()[name], value), name
    note = read_note(path)
    assert note is not None
    assert (note.backbone, note.color, note.size) == ("tiny", "grey", (32, 32))


def test_what_it_says_can_be_pasted_into_a_defect_project(run: Run, tmp_path: Path) -> None:
    with_weights(run)
    path = write_backbone(run, tmp_path / 'my "best".safetensors')
    said = how_to_use(path, run)
    table = tomllib.loads(said[said.index("[data]") :].replace("\n  ", "\n"))
    assert table["model"] == {
        "input": "pixels",
        "cell": 4,
        "backbone": "tiny",
        "weights": str(path),
    }
    assert table["data"] == {"color": "grey", "size": [32, 32]}


@pytest.mark.slow
def test_the_command_goes_from_pictures_to_the_file(
    run: Run, pegboard: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    folder = run.project.folder
    ended = pegboard("pretrain", "model.version=v2", folder=folder)
    assert ended.returncode == 0, ended.stderr
    assert "effective_rank" in ended.stdout
    assert str(folder / "backbone.safetensors") in ended.stdout
    assert (folder / "backbone.safetensors").exists()
    report = next(folder.glob("runs/*/report.html")).read_text()
    assert "random" in report
    assert "Other views found again" in report
    again = pegboard("pretrain", "model.version=v2", folder=folder)
    assert "train: already done" in again.stderr
