from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pegboard.errors import DataError
from pegboard.progress import SilentProgress
from pegboard_medical import data
from pegboard_medical.nifti import write_nifti
from pegboard_medical.settings import SegmentationData, SegmentationModel, SegmentationSettings
from pegboard_medical.volumes import Volume


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Return a table of six outlined volumes that lie in another folder."""
    (tmp_path / "elsewhere").mkdir()
    lines = ["image,mask,patient"]
    for number in range(6):
        voxels = np.full((12, 10, 8), -800, dtype=np.int16)
        mask = np.zeros(voxels.shape, dtype=np.uint8)
        voxels[4:7, 2:5, 3:6], mask[4:7, 2:5, 3:6] = number, 1
        for name, array in (("image", voxels), ("mask", mask)):
            # A sagittal volume: its rows run along z.
            affine = np.array([[2.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
            path = tmp_path / "elsewhere" / f"{name}{number}.nii.gz"
            write_nifti(path, Volume(voxels=array, affine=affine))
        lines.append(
            f"../elsewhere/image{number}.nii.gz,../elsewhere/mask{number}.nii.gz,p{number}"
        )
    (tmp_path / "table").mkdir()
    path = tmp_path / "table" / "cases.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def settings_of(path: Path, folder: Path) -> SegmentationSettings:
    return SegmentationSettings(
        data=SegmentationData(path=path, folder=folder / "data"),
        model=SegmentationModel(patches=3),
    )


def test_of_a_table_every_volume_it_names_is_watched(table: Path, tmp_path: Path) -> None:
    watched = data.prepare(settings_of(table, tmp_path).data, SilentProgress())
    names = sorted(path.name for path in watched)
    assert watched[0] == table
    assert len(names) == 13
    assert {"image0.nii.gz", "mask5.nii.gz"} < set(names)


def test_what_is_not_there_is_said_without_its_path(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "Mustermann", tmp_path)
    with pytest.raises(DataError, match="there are no volumes") as caught:
        data.prepare(settings.data, SilentProgress())
    assert "Mustermann" not in str(caught.value)


def test_a_sample_is_turned_as_models_see_it_mask_and_all(table: Path, tmp_path: Path) -> None:
    train = data.load(settings_of(table, tmp_path), "train")
    sample = train[0]
    image, mask = sample.inputs["image"], sample.targets["mask"]
    assert image.shape == mask.shape == (10, 8, 12)
    assert sample.inputs["spacing"].tolist() == [1.0, 1.0, 2.0]
    np.testing.assert_array_equal(mask == 1, image > -700)


def test_an_epoch_takes_as_many_patches_of_every_case(table: Path, tmp_path: Path) -> None:
    train = data.load(settings_of(table, tmp_path), "train")
    counts = np.bincount(train.epoch_indices(0, 0))
    assert counts.tolist() == [3] * len(train)
