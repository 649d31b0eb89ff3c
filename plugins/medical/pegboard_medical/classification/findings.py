"""What a model sees of a finding: a box of fixed size in millimetres around a volume's middle.

Training and serving cut it by the same functions. SciPy and NumPy alone.
"""

from __future__ import annotations

import numpy as np

from pegboard.records import Array
from pegboard_medical.classification.settings import ClassificationSettings
from pegboard_medical.intensities import outside_of, scale_of, scaled
from pegboard_medical.volumes import Spacing, Volume, oriented, resize, resized_shape


def shape_of(settings: ClassificationSettings) -> tuple[int, ...]:
    """Return the box in voxels: (d, h, w), or (h, w) of a model of 2 dimensions."""
    return settings.data.size[3 - settings.model.dimensions :]


def image_of(settings: ClassificationSettings, volume: Volume) -> Array:
    """Return what the model sees of a finding.

    Returns:
        float32 of `shape_of`: Hounsfield units of a CT, deviations from the mean of an MR.
    """
    turned = oriented(volume)
    scale = scale_of(turned.voxels, settings.data.modality)
    box = _boxed(settings, turned.voxels, turned.spacing, outside_of(scale))
    return scaled(box, scale)


def mask_of(settings: ClassificationSettings, mask: Volume) -> Array:
    """Return the share of each voxel of the box that an outline, of any class, covers.

    Returns:
        float32 of `shape_of`, from 0 to 1.
    """
    turned = oriented(mask)
    return _boxed(settings, turned.voxels > 0, turned.spacing, 0.0)


def _boxed(
    settings: ClassificationSettings, voxels: Array, spacing: Spacing, outside: float
) -> Array:
    """Cut the box out of a turned volume (D, H, W): float32 of `shape_of`."""
    size, step = settings.data.size, settings.data.spacing
    if settings.model.dimensions == 2:
        voxels, spacing = _sliced(voxels, spacing)
        size, step = (1, *size[1:]), (0.0, *step[1:])
    near = _middle(voxels, spacing, size, step).astype(np.float32)
    grid = resized_shape(near.shape, spacing, step)
    box = fitted(resize(near, grid), size, outside)
    return box[0] if settings.model.dimensions == 2 else box


def _sliced(voxels: Array, spacing: Spacing) -> tuple[Array, Spacing]:
    """Return the middle slice (1, H, W): of a flat volume the only one, else the axial one."""
    axis = voxels.shape.index(1) if 1 in voxels.shape else 0
    across = np.moveaxis(voxels, axis, 0)
    rest = [step for place, step in enumerate(spacing) if place != axis]
    middle = len(across) // 2
    return across[middle : middle + 1], (spacing[axis], rest[0], rest[1])


def _middle(voxels: Array, spacing: Spacing, size: tuple[int, ...], step: Spacing) -> Array:
    """Cut off, evenly on both sides, what lies far outside the box: a whole CT is large."""
    kept = []
    for length, old, count, new in zip(voxels.shape, spacing, size, step, strict=True):
        needed = int(np.ceil(count * (new / old if new else 1))) + 2
        spare = max(0, (length - needed) // 2)
        kept.append(slice(spare, length - spare))
    return voxels[tuple(kept)]


def fitted(voxels: Array, size: tuple[int, ...], outside: float) -> Array:
    """Cut or fill every axis evenly on both sides until the volume has a size."""
    box = np.full(size, outside, dtype=np.float32)
    source, target = [], []
    for length, wanted in zip(voxels.shape, size, strict=True):
        cut, gap = max(0, length - wanted) // 2, max(0, wanted - length) // 2
        count = min(length, wanted)
        source.append(slice(cut, cut + count))
        target.append(slice(gap, gap + count))
    box[tuple(target)] = voxels[tuple(source)]
    return box
