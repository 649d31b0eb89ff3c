"""The embedded data set: nodules cut out of the generated volumes, with their kind in a table."""

from __future__ import annotations

import csv
import io
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pegboard.files import atomic_path, atomic_write, digest_of
from pegboard.progress import Progress
from pegboard.records import Array
from pegboard_medical.classification.settings import ClassificationData
from pegboard_medical.intensities import AIR
from pegboard_medical.volumes import Volume

PHANTOM_SEED = 20261127
"""Other volumes than those of segmentation."""
TINY_CASES = 24
SIDE = 56.0
"""Millimetres of a cut-out."""
COLUMNS = ("image", "mask", "label", "patient")


def _folder_of(data: ClassificationData) -> Path:
    asked = [_cases(data), data.tiny, PHANTOM_SEED, SIDE]
    return data.folder / f"findings-{digest_of(asked)[:8]}"


def _cases(data: ClassificationData) -> int:
    return TINY_CASES if data.tiny else data.cases


def table_of(data: ClassificationData) -> Path:
    """Return the place of the table."""
    return _folder_of(data) / "findings.csv"


def write(data: ClassificationData, progress: Progress) -> Path:
    """Generate volumes, cut their nodules out and throw the rest away; once.

    Returns:
        The folder of the table, of images and of masks.
    """
    folder = _folder_of(data)
    if folder.exists():
        return folder
    with atomic_path(folder) as temporary:
        from pegboard_medical.phantoms import write_phantoms

        volumes = temporary / "phantoms"
        write_phantoms(
            volumes, cases=_cases(data), seed=PHANTOM_SEED, tiny=data.tiny, progress=progress
        )
        rows = list(_write_findings(volumes, temporary, progress))
        shutil.rmtree(volumes)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([COLUMNS, *rows])
        atomic_write(temporary / "findings.csv", text.getvalue())
    return folder


def _write_findings(
    volumes: Path, folder: Path, progress: Progress
) -> Iterator[tuple[str, str, str, str]]:
    """Write each nodule's image and mask; yield its row of the table."""
    from pegboard_medical import dicom
    from pegboard_medical.nifti import read_nifti, write_nifti
    from pegboard_medical.phantoms import IMAGES, MASKS, TABLE
    from pegboard_medical.sources import on_grid

    nodules = _nodules(volumes / TABLE)
    files = sorted(path for path in (volumes / IMAGES).rglob("*") if path.is_file())
    for series in progress.track(dicom.group_series(files), "cutting findings out"):
        image = dicom.read_series(series)
        mask = on_grid(read_nifti(volumes / MASKS / f"{series.uid}.nii.gz"), image)
        for number, row in enumerate(nodules.get(series.uid, ())):
            middle = tuple(int(row[axis]) for axis in "kji")
            name = f"{series.uid.rpartition('.')[2]}-{number}.nii.gz"
            for part, voxels, outside in (("images", image.voxels, AIR), ("masks", mask, 0)):
                cut = cut_out(image.like(voxels), middle, outside)
                write_nifti(folder / part / name, cut)
            yield f"images/{name}", f"masks/{name}", row["label"], series.patient


def _nodules(table: Path) -> Mapping[str, Sequence[Mapping[str, str]]]:
    nodules: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    with table.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            nodules[row["series"]].append(row)
    return nodules


def cut_out(volume: Volume, middle: Sequence[int], outside: float) -> Volume:
    """Cut a cube around a voxel (k, j, i), filled with `outside` beyond the volume."""
    halves = [round(SIDE / 2 / step) for step in volume.spacing]
    starts = [place - half for place, half in zip(middle, halves, strict=True)]
    sizes = [2 * half + 1 for half in halves]
    voxels: Array = np.full(sizes, outside, dtype=volume.voxels.dtype)
    source, target = [], []
    for start, size, length in zip(starts, sizes, volume.voxels.shape, strict=True):
        first, last = max(0, start), min(length, start + size)
        source.append(slice(first, last))
        target.append(slice(first - start, last - start))
    voxels[tuple(target)] = volume.voxels[tuple(source)]
    affine = volume.affine.copy()
    affine[:, 3] = volume.affine @ np.array([*starts, 1.0])
    return Volume(voxels=voxels, affine=affine, modality=volume.modality)
