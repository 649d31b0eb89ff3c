"""Training patches: where they are taken and how they are changed, by one interpolation."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from pegboard.records import Array, Sample
from pegboard_medical.intensities import Scale, outside_of, scaled
from pegboard_medical.settings import SegmentationSettings
from pegboard_medical.windows import axes_of

TURN = 0.26
"""Largest turn about each axis, in radians: 15 degrees."""
ZOOM = 1.2
"""Largest change of size."""
TURNED = 0.3
"""Share of patches that are turned and zoomed."""
OUTLINE = (255, 170, 0)
"""Colour of a structure on the contact sheet."""


def augment(settings: SegmentationSettings, sample: Sample) -> Sample:
    """Cut a patch out of a whole case, turned, zoomed, mirrored and changed in brightness.

    Returns:
        `image` float32 (d, h, w) on the model's grid, as the graph takes it, and `mask` uint8.
    """
    model, data = settings.model, settings.data
    image, mask = sample.inputs["image"], sample.targets["mask"]
    spacing = np.asarray(sample.inputs["spacing"], dtype=np.float64)
    wanted = np.array([new or old for new, old in zip(data.spacing, spacing, strict=True)])
    matrix = np.diag(1 / spacing) @ _turn(model.symmetric) @ np.diag(wanted)
    middle = _middle(mask, np.array(model.patch) * wanted / spacing, model.foreground)
    offset = middle - matrix @ ((np.array(model.patch) - 1) / 2)
    scale = scale_from(sample.targets["scale"])
    outside = outside_of(scale)
    patch = _cut(image, mask, matrix, offset, model.patch, outside)
    brightness = _brighten_ct if data.modality == "ct" else _brighten_mr
    return Sample(
        inputs={"image": brightness(scaled(patch[0], scale))},
        targets={"mask": patch[1], "has_mask": sample.targets["has_mask"]},
        key=sample.key,
    )


def scale_from(numbers: Array) -> Scale | None:
    """Return what `data.py` put into a sample's targets."""
    if not np.isfinite(numbers).all():
        return None
    low, high, mean, deviation = (float(number) for number in numbers)
    return Scale(low=low, high=high, mean=mean, deviation=deviation)


def _turn(symmetric: Sequence[str]) -> Array:
    """Return a random (3, 3) of rotation, zoom and, along some directions, mirroring."""
    mirrored = axes_of(symmetric)
    matrix = np.diag([random.choice((-1.0, 1.0)) if axis in mirrored else 1.0 for axis in range(3)])
    if random.random() < TURNED:
        matrix = matrix * (ZOOM ** random.uniform(-1, 1))
        for axes in ((0, 1), (0, 2), (1, 2)):
            angle = random.uniform(-TURN, TURN)
            turned = np.eye(3)
            turned[np.ix_(axes, axes)] = [
                [np.cos(angle), -np.sin(angle)],
                [np.sin(angle), np.cos(angle)],
            ]
            matrix = turned @ matrix
    return matrix


def _middle(mask: Array, side: Array, foreground: float) -> Array:
    """Choose the voxel (3,) in a patch's middle: one of a structure, or anywhere.

    Small lesions are met as often as large ones: first a structure is drawn, then a connected
    region of it, then a voxel of that.

    Args:
        mask: uint8 (D, H, W).
        side: Sides of the patch in voxels of the volume.
        foreground: How often it is one of a structure.
    """
    shape = np.array(mask.shape)
    labels = np.unique(mask[mask > 0])
    if len(labels) and random.random() < foreground:
        inside = mask == random.choice(labels.tolist())
        numbered, count = ndimage.label(inside)
        voxels = np.argwhere(numbered == random.randint(1, count))
        # Anywhere in the patch and not always in its very middle.
        shift = np.array([random.uniform(-0.25, 0.25) for _ in range(3)]) * side
        middle = voxels[random.randrange(len(voxels))] + shift
    else:
        middle = np.array([random.uniform(0, length - 1) for length in shape])
    low = np.minimum(side / 2, (shape - 1) / 2)
    kept: Array = np.clip(middle, low, shape - 1 - low)
    return kept


def _cut(
    image: Array,
    mask: Array,
    matrix: Array,
    offset: Array,
    shape: tuple[int, int, int],
    outside: float,
) -> tuple[Array, Array]:
    """Interpolate a patch of image and mask; only what it needs of the volume is looked at."""
    if np.array_equal(np.abs(matrix), np.eye(3)):
        return _cut_straight(image, mask, np.diag(matrix), offset, shape, outside)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
    reached = matrix @ corners + offset[:, None]
    first = np.clip(np.floor(reached.min(axis=1)).astype(int) - 1, 0, np.array(image.shape) - 1)
    last = np.clip(np.ceil(reached.max(axis=1)).astype(int) + 2, first + 1, image.shape)
    box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    cut = ndimage.affine_transform(
        image[box].astype(np.float32),
        matrix,
        offset=offset - first,
        output_shape=shape,
        order=1,
        mode="constant",
        cval=outside,
    )
    labels = ndimage.affine_transform(
        mask[box], matrix, offset=offset - first, output_shape=shape, order=0, mode="constant"
    )
    return cut, labels


def _cut_straight(
    image: Array,
    mask: Array,
    signs: Array,
    offset: Array,
    shape: tuple[int, int, int],
    outside: float,
) -> tuple[Array, Array]:
    """Cut a patch whose voxels are those of the volume: ten times faster than interpolating."""
    sides = np.array(shape)
    # A mirrored axis begins at its far end.
    first = np.round(np.where(signs < 0, offset - (sides - 1), offset)).astype(int)
    inside = np.clip(first, 0, image.shape), np.clip(first + sides, 0, image.shape)
    box = tuple(slice(a, b) for a, b in zip(*inside, strict=True))
    around = list(zip(inside[0] - first, first + sides - inside[1], strict=True))
    flipped = tuple(axis for axis in range(3) if signs[axis] < 0)
    cut = np.pad(image[box].astype(np.float32), around, constant_values=outside)
    labels = np.pad(mask[box], around)
    # Torch takes no array that runs backwards.
    return np.flip(cut, flipped).copy(), np.flip(labels, flipped).copy()


def _brighten_ct(patch: Array) -> Array:
    """Shift by some Hounsfield units and add a scanner's noise."""
    return patch + np.float32(random.gauss(0, 10)) + _noise(patch.shape, random.uniform(0, 20))


def _brighten_mr(patch: Array) -> Array:
    """Change brightness, contrast and gamma of a patch in deviations from the mean."""
    changed = patch * random.uniform(0.8, 1.2) + random.gauss(0, 0.1)
    if random.random() < 0.5:
        low, high = float(changed.min()), float(changed.max())
        span = max(high - low, 1e-6)
        share = torch.from_numpy((changed - low) / span)
        changed = (share ** random.uniform(0.7, 1.5)).numpy() * span + low
    return changed.astype(np.float32) + _noise(patch.shape, random.uniform(0, 0.1))


def _noise(shape: tuple[int, ...], deviation: float) -> Array:
    """Return float32 noise; torch draws it three times as fast as NumPy."""
    drawn: Array = torch.randn(shape).mul_(deviation).numpy()
    return drawn


def draw(settings: SegmentationSettings, sample: Sample) -> Array:
    """Draw the middle slice of a patch with the outlines of its structures, uint8 (H, W, 3)."""
    image, mask = sample.inputs["image"], sample.targets["mask"]
    middle = image.shape[0] // 2
    low, high = settings.data.window if settings.data.modality == "ct" else (-2.0, 3.0)
    grey = np.clip((image[middle] - low) / (high - low), 0, 1) * 255
    picture = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    inside = mask[middle] > 0
    picture[inside & ~ndimage.binary_erosion(inside)] = OUTLINE
    return picture
