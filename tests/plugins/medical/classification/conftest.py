"""Small findings on the disk for the whole session, and settings to read them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from pegboard.records import Array
from pegboard_medical.classification.settings import ClassificationData, ClassificationSettings
from pegboard_medical.nifti import write_nifti
from pegboard_medical.volumes import Spacing, Volume

PATIENTS = 30


def volume_of(voxels: Array, spacing: Spacing = (1.0, 1.0, 1.0)) -> Volume:
    """Place voxels so that they lie as models see them: towards head, back and left."""
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = (*spacing, 1.0)
    return Volume(voxels=voxels, affine=affine)


def ball(shape: tuple[int, int, int], radius: float, spacing: Spacing = (1.0, 1.0, 1.0)) -> Array:
    """Return where a ball around the middle is; its radius is in mm."""
    places = [
        (np.arange(count) - (count - 1) / 2) * step
        for count, step in zip(shape, spacing, strict=True)
    ]
    z, y, x = np.meshgrid(*places, indexing="ij")
    inside: Array = z**2 + y**2 + x**2 <= radius**2
    return inside


def write_findings(folder: Path, *, patients: int = PATIENTS) -> Path:
    """Write two findings of each patient, balls in lung, small if benign; return the table."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(2 * patients):
        malignant = number % 3 == 0
        inside = ball((9, 24, 24), 7.0 if malignant else 3.0, (2.0, 1.0, 1.0))
        noise = generator.normal(0, 20, inside.shape)
        image = (np.where(inside, 30, -850) + noise).astype(np.int16)
        for part, voxels in (("images", image), ("masks", inside.astype(np.uint8))):
            path = folder / part / f"{number:02}.nii.gz"
            write_nifti(path, volume_of(voxels, (2.0, 1.0, 1.0)))
        rows.append(
            {
                "image": f"images/{number:02}.nii.gz",
                "mask": f"masks/{number:02}.nii.gz",
                "label": "malignant" if malignant else "benign",
                "patient": f"Patient^{number // 2}",
            }
        )
    return write_table(folder / "findings.csv", rows)


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> ClassificationSettings:
    """Settings of sixty findings of thirty patients; not to be changed."""
    folder = tmp_path_factory.mktemp("findings")
    data = ClassificationData(path=write_findings(folder), folder=folder / "data")
    return ClassificationSettings(data=data)
