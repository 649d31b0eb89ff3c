"""From maps to objects: peaks of the heat map, their boxes, and no object twice; NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pegboard.records import Array
from pegboard_lidar.geometry import suppress
from pegboard_lidar.grid import Grid, pillars_of
from pegboard_lidar.settings import LidarSettings

OFFSET, HEIGHT, SIZE, HEADING, AXIS, VELOCITY = (
    slice(0, 2),
    2,
    slice(3, 6),
    slice(6, 8),
    slice(8, 10),
    slice(10, 12),
)
"""Channels of the map `boxes`: x and y of the middle from the cell's, in cells; z in metres;
logarithms of length, width and height in metres; cosine and sine of the heading and of twice the
heading; and metres a second along x and y.

A box says little of which end is the front, and the mean of two opposite headings is none. Twice
the heading is the same for both: it gives the box's axis, the heading only its direction."""

BOX_CHANNELS = 10
"""Without velocity."""

NEAR = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1))
"""Steps to the cells that tell of the box of a peak, itself among them."""

SAY = 0.3
"""Share of a peak's heat from which on a neighbour has a say in its box."""


@dataclass(frozen=True, kw_only=True)
class Detections:
    """The D objects that were found in a scan, the surest first."""

    boxes: Array
    """float32 (D, 7), see `frames.py`."""
    scores: Array
    """float32 (D,), 0 to 1."""
    labels: Array
    """int64 (D,), places in `data.classes`."""
    velocity: Array | None = None
    """float32 (D, 2), metres a second along x and y; None where the model does not say."""

    def at(self, index: Array | slice) -> Detections:
        """Return some of them."""
        velocity = None if self.velocity is None else self.velocity[index]
        return Detections(
            boxes=self.boxes[index],
            scores=self.scores[index],
            labels=self.labels[index],
            velocity=velocity,
        )


def detect(settings: LidarSettings, outputs: Mapping[str, Array]) -> Detections:
    """Return the objects of one scan.

    Args:
        settings: Say the grid, the smallest score and the largest overlap.
        outputs: `heat` (K, H, W) and `boxes` (C, H, W), or, of a detector without maps, `found`
            (D, 9): box, score and label, a score below 0 where there is none.
    """
    if "found" in outputs:
        return _listed(outputs["found"])
    model, heat = settings.model, outputs["heat"]
    labels, rows, columns = peaks(heat, model.smallest_score)
    told = told_around(heat, outputs["boxes"], labels, rows, columns)
    found = Detections(
        boxes=boxes_of(told, rows, columns, pillars_of(settings)),
        scores=heat[labels, rows, columns],
        labels=labels,
        velocity=told[VELOCITY].T if model.velocity else None,
    )
    # The surest ones are enough: each overlap is looked at for every pair.
    found = found.at(np.argsort(-found.scores, kind="stable")[: 2 * model.objects])
    return _distinct(found, model.overlap).at(np.s_[: model.objects])


def _listed(found: Array) -> Detections:
    some = found[found[:, 7] >= 0]
    return Detections(
        boxes=some[:, :7].astype(np.float32),
        scores=some[:, 7].astype(np.float32),
        labels=some[:, 8].astype(np.int64),
    )


def peaks(heat: Array, smallest: float) -> tuple[Array, Array, Array]:
    """Return classes, rows and columns of cells that no neighbour exceeds.

    Args:
        heat: (K, H, W).
        smallest: Cells below it are no peaks.
    """
    _, height, width = heat.shape
    labels, rows, columns = np.nonzero(heat >= smallest)
    scores = heat[labels, rows, columns]
    is_peak = np.ones(len(scores), dtype=bool)
    for down, right in NEAR:
        beside = heat[
            labels, np.clip(rows + down, 0, height - 1), np.clip(columns + right, 0, width - 1)
        ]
        is_peak &= beside <= scores
    return labels[is_peak], rows[is_peak], columns[is_peak]


def told_around(heat: Array, maps: Array, labels: Array, rows: Array, columns: Array) -> Array:
    """Return what the cells around each of D peaks tell of its box, as if the peak had told it.

    Training has a peak's neighbours tell the same box; the mean of what they say, by their heat, is
    off by less than what the peak alone says (box voting, Gidaris and Komodakis, ICCV 2015).

    Args:
        heat: (K, H, W).
        maps: (C, H, W).
        labels: (D,).
        rows: (D,).
        columns: (D,).

    Returns:
        float32 (C, D).
    """
    _, height, width = heat.shape
    total = np.zeros((len(maps), len(rows)), dtype=np.float32)
    weight = np.zeros(len(rows), dtype=np.float32)
    least = SAY * heat[labels, rows, columns]
    for down, right in NEAR:
        row, column = rows + down, columns + right
        is_inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        row, column = row.clip(0, height - 1), column.clip(0, width - 1)
        beside = heat[labels, row, column]
        share = np.where(is_inside & (beside >= least), beside, np.float32(0))
        told = maps[:, row, column]
        told[OFFSET] += np.array([[down], [right]], dtype=np.float32)
        total += share * told
        weight += share
    return total / weight


def boxes_of(told: Array, rows: Array, columns: Array, grid: Grid) -> Array:
    """Return the boxes float32 (D, 7) that D cells tell (C, D)."""
    x = grid.x + (rows + 0.5 + told[0]) * grid.side
    y = grid.y + (columns + 0.5 + told[1]) * grid.side
    boxes = np.stack([x, y, told[HEIGHT], *np.exp(told[SIZE]), _heading(told)], axis=-1)
    return boxes.astype(np.float32)


def _heading(told: Array) -> Array:
    axis = 0.5 * np.arctan2(told[AXIS][1], told[AXIS][0])
    # The axis has two directions; the heading says which of them is ahead.
    ahead = np.cos(axis) * told[HEADING][0] + np.sin(axis) * told[HEADING][1]
    turned = np.where(ahead < 0, axis + np.pi, axis)
    heading: Array = np.arctan2(np.sin(turned), np.cos(turned))
    return heading


def _distinct(found: Detections, overlap: float) -> Detections:
    """Keep, of objects of a class that overlap more than `overlap`, the surest."""
    kept = [
        of_class[suppress(found.boxes[of_class], found.scores[of_class], overlap)]
        for of_class in (np.flatnonzero(found.labels == label) for label in set(found.labels))
    ]
    return found.at(np.sort(np.concatenate(kept)) if kept else np.arange(0))
