"""`pegboard describe --augment`: samples as training sees them, on one sheet."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pegboard.contact_sheet import GAP, SAMPLES, VERSIONS, write_contact_sheet
from pegboard.errors import PluginError
from pegboard.lifecycle import prepare
from pegboard.progress import SilentProgress
from pegboard.project import open_project

HOOKS = '''"""Samples drawn as squares as bright as their first number; augmenting moves it."""

import random
from dataclasses import replace

import numpy as np

from pegboard import hookimpl


@hookimpl
def augment(sample):
    x = sample.inputs["x"].copy()
    x[0] = random.uniform(-1, 1)
    return replace(sample, inputs={"x": x})


@hookimpl
def draw_sample(sample):
    grey = int(128 + 40 * np.clip(sample.inputs["x"][0], -3, 3))
    return np.full((20, 30, 3), grey, np.uint8)
'''


def test_a_sheet_has_a_row_a_sample_and_its_versions_differ(
    make_project: Callable[..., Path], tmp_path: Path
) -> None:
    project = open_project(make_project(hooks=HOOKS))
    prepare(project, SilentProgress())
    sheets = []
    for name in ("one.png", "two.png"):
        write_contact_sheet(project, tmp_path / name)
        sheets.append(np.asarray(Image.open(tmp_path / name)))
    assert sheets[0].shape == ((20 + GAP) * SAMPLES, (30 + GAP) * (1 + VERSIONS), 3)
    assert np.array_equal(*sheets)
    first_row = sheets[0][5, 5 :: 30 + GAP, 0]
    assert len(set(first_row.tolist())) == 1 + VERSIONS
    data = project.board.hook.load_split(settings=project.settings, split="train")
    assert first_row[0] == int(128 + 40 * np.clip(data[0].inputs["x"][0], -3, 3))


def test_a_solution_that_draws_none_says_so(
    make_project: Callable[..., Path], tmp_path: Path
) -> None:
    project = open_project(make_project())
    with pytest.raises(PluginError, match="'toy' shows no augmented samples"):
        write_contact_sheet(project, tmp_path / "sheet.png")
    assert not list(tmp_path.glob("*.png"))


def test_describe_writes_the_sheet_of_a_project_and_of_a_solution(
    make_project: Callable[..., Path],
    pegboard: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    folder = make_project(hooks=HOOKS)
    ended = pegboard("describe", "--augment", "train.seed=3", folder=folder)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == str(folder / "augment.png")
    Image.open(folder / "augment.png").verify()
    refused = pegboard("describe", "toy", "--augment", folder=tmp_path)
    assert refused.returncode == 2
    assert "shows no augmented samples" in refused.stderr
