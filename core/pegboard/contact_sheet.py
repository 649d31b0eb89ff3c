"""The contact sheet: training samples beside what `augment` makes of them, as one picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pegboard.batching import Stream, seed_generators
from pegboard.errors import PluginError
from pegboard.files import atomic_write
from pegboard.project import Project
from pegboard.records import Array, Sample

SAMPLES = 6
VERSIONS = 7
GAP = 4
"""Pixels between pictures."""
LONGEST = 256
"""Longest side of a picture on the sheet."""


def write_contact_sheet(project: Project, path: Path) -> None:
    """Write a sheet as PNG: each row a sample as it is, then as training would see it.

    The samples are evenly spaced over the train split; each version is one epoch's.

    Raises:
        PluginError: The solution draws no samples or augments none.
        DataError: There is no train split.
    """
    board, settings = project.board, project.settings
    solution = settings.solution
    if not board.augments or not board.call_order("draw_sample"):
        raise PluginError(
            f"'{solution}' shows no augmented samples",
            where="hooks augment and draw_sample",
            remedy="implement both in hooks.py; docs/hooks.md has examples",
        )
    data: Any = board.hook.load_split(settings=settings, split="train")
    indices = np.unique(np.linspace(0, len(data) - 1, SAMPLES).round().astype(int))
    rows = [_row(project, data[int(index)], int(index)) for index in indices]
    atomic_write(path, _as_png(_grid(rows)))


def _row(project: Project, sample: Sample, index: int) -> list[Array]:
    versions = [sample]
    for epoch in range(VERSIONS):
        seed_generators(Stream.SAMPLE, project.settings.train.seed, epoch, index)
        versions.append(project.board.augment(project.settings, sample))
    return [
        _shrunk(project.board.hook.draw_sample(settings=project.settings, sample=version))
        for version in versions
    ]


def _shrunk(picture: Array) -> Array:
    image = Image.fromarray(picture)
    image.thumbnail((LONGEST, LONGEST))
    return np.asarray(image)


def _grid(rows: list[list[Array]]) -> Array:
    """Lay pictures (H, W, 3) out on white, each in a cell of the largest one's size."""
    height = max(picture.shape[0] for row in rows for picture in row) + GAP
    width = max(picture.shape[1] for row in rows for picture in row) + GAP
    sheet = np.full((height * len(rows), width * len(rows[0]), 3), 255, dtype=np.uint8)
    for top, row in enumerate(rows):
        for left, picture in enumerate(row):
            place = sheet[top * height :, left * width :]
            place[: picture.shape[0], : picture.shape[1]] = picture
    return sheet


def _as_png(picture: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()
