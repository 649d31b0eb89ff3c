"""The embedded findings: cut out of generated volumes, the nodule in the middle."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from pegboard.progress import SilentProgress
from pegboard_medical.classification import crops, data
from pegboard_medical.classification.settings import ClassificationData, ClassificationSettings
from pegboard_medical.nifti import read_nifti

from .conftest import volume_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedded")
    return crops.write(ClassificationData(tiny=True, folder=folder), SilentProgress())


def test_every_nodule_lies_in_the_middle_of_its_cut_out(made: Path) -> None:
    with (made / "findings.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) >= 8
    assert {row["label"] for row in rows} == {"benign", "malignant"}
    assert len({row["patient"] for row in rows}) < len(rows)
    for row in rows:
        image, mask = read_nifti(made / row["image"]), read_nifti(made / row["mask"])
        assert image.voxels.shape == mask.voxels.shape
        assert np.allclose(image.affine, mask.affine)
        middle = tuple(count // 2 for count in mask.voxels.shape)
        near = tuple(slice(place - 1, place + 2) for place in middle)
        assert mask.voxels[near].any()
        sides = np.array(image.voxels.shape) * np.array(image.spacing)
        assert np.abs(sides - crops.SIDE).max() < 2 * max(image.spacing)


def test_they_are_cut_once_and_the_volumes_are_thrown_away(made: Path) -> None:
    assert sorted(path.name for path in made.iterdir()) == ["findings.csv", "images", "masks"]
    before = (made / "findings.csv").stat().st_mtime_ns
    asked = ClassificationData(tiny=True, folder=made.parent)
    assert crops.write(asked, SilentProgress()) == made
    assert (made / "findings.csv").stat().st_mtime_ns == before


def test_they_are_split_and_checked_without_an_error(made: Path) -> None:
    settings = ClassificationSettings(data=ClassificationData(tiny=True, folder=made.parent))
    assert [found for found in data.check(settings) if found.level == "error"] == []
    assert all(data.splits_of(settings.data).values())


def test_beyond_the_volume_a_cut_out_is_filled_and_keeps_its_place() -> None:
    voxels = np.arange(20**3, dtype=np.int16).reshape(20, 20, 20)
    volume = volume_of(voxels, (4.0, 4.0, 4.0))
    cut = crops.cut_out(volume, (0, 10, 19), -5)
    assert cut.voxels.shape == (15, 15, 15)
    assert cut.voxels[7, 7, 7] == voxels[0, 10, 19]
    assert (cut.voxels[:7] == -5).all()
    assert (cut.voxels[:, :, 8:] == -5).all()
    here = cut.affine @ (7, 7, 7, 1)
    assert np.allclose(here, volume.affine @ (0, 10, 19, 1))
