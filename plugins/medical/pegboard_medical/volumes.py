"""Volumes: voxels with their place in the patient, and how they are brought to another grid.

Axes are (depth, height, width): slice, row, column. Positions are millimetres in DICOM's patient
space (LPS): x grows to the patient's left, y to the back, z to the head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from pegboard.records import Array

Spacing = tuple[float, float, float]
"""Millimetres from voxel to voxel along depth, height and width."""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """Voxels and where they lie."""

    voxels: Array
    """(D, H, W): Hounsfield units of a CT, a scanner's own units else; or labels of a mask."""
    affine: Array
    """float64 (4, 4): voxel index (slice, row, column, 1) -> millimetres (x, y, z, 1), LPS."""
    modality: str = ""
    """`ct`, `mr`, or empty where the file does not say."""

    @property
    def spacing(self) -> Spacing:
        """Millimetres along depth, height and width."""
        depth, height, width = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(depth), float(height), float(width)

    @property
    def voxel_ml(self) -> float:
        """What one voxel holds, in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    def like(self, voxels: Array) -> Volume:
        """Return other voxels of the same grid."""
        return replace(self, voxels=voxels)


# --- Orientation ----------------------------------------------------------------------------------

AXES = (2, 1, 0)
"""Which of x, y, z depth, height and width follow in the order that models see: towards head, back
and left, as an axial CT usually lies already."""


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """How a volume's axes are turned into the order that models see."""

    order: tuple[int, int, int]
    """For each axis of the turned volume, which axis of the original it was."""
    flipped: tuple[int, ...]
    """Axes of the turned volume that run the other way."""

    def apply(self, voxels: Array) -> Array:
        """Turn (D, H, W)."""
        return np.flip(np.transpose(voxels, self.order), self.flipped)

    def undo(self, voxels: Array) -> Array:
        """Turn back (..., D, H, W)."""
        lead = voxels.ndim - 3
        flipped = np.flip(voxels, tuple(axis + lead for axis in self.flipped))
        back = [lead + self.order.index(axis) for axis in range(3)]
        return np.transpose(flipped, [*range(lead), *back])


def orientation_of(affine: Array) -> Orientation:
    """Return how a volume has to be turned: each axis to the direction that it is nearest to."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    # Of all ways to pair axes with directions the one that agrees best: no axis is taken twice.
    order = max(
        ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)),
        key=lambda axes: sum(abs(directions[AXES[i], axes[i]]) for i in range(3)),
    )
    flipped = tuple(i for i in range(3) if directions[AXES[i], order[i]] < 0)
    return Orientation(order=order, flipped=flipped)


def oriented(volume: Volume) -> Volume:
    """Return a volume with its axes in the order that models see; no voxel changes its value."""
    turn = orientation_of(volume.affine)
    affine = volume.affine.copy()
    affine[:, :3] = volume.affine[:, list(turn.order)]
    for axis in turn.flipped:
        last = volume.voxels.shape[turn.order[axis]] - 1
        affine[:3, 3] += affine[:3, axis] * last
        affine[:3, axis] *= -1
    return replace(volume, voxels=turn.apply(volume.voxels), affine=affine)


# --- Other grids ----------------------------------------------------------------------------------


def resized_shape(
    shape: tuple[int, ...], spacing: Spacing, target: Spacing
) -> tuple[int, int, int]:
    """Return how many voxels of the target spacing cover the same space; 0 keeps an axis."""
    sides = [
        max(1, round(length * old / new)) if new else length
        for length, old, new in zip(shape[-3:], spacing, target, strict=True)
    ]
    return sides[0], sides[1], sides[2]


def resize(voxels: Array, shape: tuple[int, int, int], *, order: int = 1) -> Array:
    """Interpolate (D, H, W) to another shape that covers the same space.

    Voxel centres are moved as if the outer faces of both grids coincided.

    Args:
        voxels: (D, H, W).
        shape: What is wanted.
        order: Of the spline: 1 is linear; 0, the nearest voxel, for labels.
    """
    if voxels.shape == shape:
        return voxels
    scale = np.array(voxels.shape) / np.array(shape)
    offset = (scale - 1) / 2
    resized: Array = ndimage.affine_transform(
        voxels, scale, offset=offset, output_shape=shape, order=order, mode="nearest"
    )
    return resized
