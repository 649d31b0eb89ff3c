"""`pegboard segment`, in a process of its own, on what a hospital has."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pegboard_medical.nifti import read_nifti


@pytest.mark.slow
def test_series_of_a_folder_get_masks_pictures_and_a_table(
    make_project: Callable[..., Path],
    pegboard: Callable[..., subprocess.CompletedProcess[str]],
    small: Callable[..., str],
    tmp_path: Path,
) -> None:
    folder = make_project(small())
    ended = pegboard("verify", folder=folder)
    assert ended.returncode == 0, ended.stderr
    generated = next((folder / "data").glob("phantoms-*"))
    source = tmp_path / "Mustermann"
    for number, series in enumerate(sorted((generated / "series").iterdir())[:2]):
        shutil.copytree(series, source / str(number))
    shutil.copy(next((generated / "masks").iterdir()), source / "a.nii.gz")
    ended = pegboard("segment", source, "--output", "out", folder=folder)
    assert ended.returncode == 0, ended.stderr
    table = (folder / "out" / "volumes.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert len(rows) == 3
    for row in rows:
        mask = read_nifti(folder / "out" / f"{row['case']}.nii.gz")
        assert mask.voxels.max() <= 1
        expected = float((mask.voxels > 0).sum()) * mask.voxel_ml
        assert float(row["nodule_ml"]) == pytest.approx(expected, rel=0.01, abs=0.01)
        picture = np.asarray(Image.open(folder / "out" / f"{row['case']}.png"))
        assert picture.ndim == 3
        assert picture.std() > 5
    assert "Mustermann" not in ended.stdout + ended.stderr + table
    assert not [path for path in (folder / "out").iterdir() if "Mustermann" in path.name]


def test_a_path_with_nothing_is_one_sentence(
    make_project: Callable[..., Path], pegboard: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    folder = make_project('solution = "medical-segmentation"\n')
    ended = pegboard("segment", "nowhere", folder=folder)
    assert ended.returncode == 2
    assert "there is no bundle yet" in ended.stderr
