"""How training findings are changed: placed otherwise, a little larger, brighter, noisier.

Sizes tell most of what a finding is, so they are hardly changed. What is drawn follows from NumPy's
global generator, which the core seeds for each sample and epoch.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from pegboard.records import Array, Sample
from pegboard_medical.classification.settings import ClassificationData, ClassificationSettings

MR_SPAN = 4.0
"""Deviations that an MR's brightness is measured by, as a CT's is by its window."""


def change(settings: ClassificationSettings, sample: Sample) -> Sample:
    """Change a finding and its mask together."""
    data, image = settings.data, sample.inputs["image"]
    step = np.array(data.spacing[-image.ndim :])
    matrix, offset = placement(data, image.shape, np.where(step > 0, step, 1.0))
    # Beyond the edge lies what is darkest: air.
    moved = _moved(image, matrix, offset, float(image.min()))
    targets = dict(sample.targets)
    if targets["has_mask"]:
        targets["mask"] = _moved(targets["mask"], matrix, offset, 0.0)
    span = data.window[1] - data.window[0] if data.modality == "ct" else MR_SPAN
    moved += np.float32(np.random.uniform(-1, 1) * data.brightness * span)
    if data.noise:
        deviation = np.random.uniform(0, 1) * data.noise * span
        moved += np.random.standard_normal(image.shape).astype(np.float32) * np.float32(deviation)
    return replace(sample, inputs={"image": moved}, targets=targets)


def _moved(voxels: Array, matrix: Array, offset: Array, outside: float) -> Array:
    moved: Array = ndimage.affine_transform(
        voxels, matrix, offset=offset, order=1, mode="constant", cval=outside
    )
    return moved


def placement(data: ClassificationData, shape: tuple[int, ...], step: Array) -> tuple[Array, Array]:
    """Draw where each voxel of the changed finding comes from.

    Args:
        data: How far.
        shape: Of the finding, (d, h, w) or (h, w).
        step: Millimetres from voxel to voxel, of each axis.

    Returns:
        A matrix and an offset, from voxel to voxel; the middle is moved by the shift alone.
    """
    count = len(shape)
    turn = _turn(count, np.radians(data.rotation), np.radians(data.tilt))
    signs = np.random.choice([-1.0, 1.0], count) if data.mirror else np.ones(count)
    scales = np.exp(np.random.uniform(-1, 1, count) * np.log1p(data.scale) / 2)
    scale = np.exp(np.random.uniform(-1, 1) * np.log1p(data.scale) / 2)
    in_mm = turn * (signs * scales * scale)
    matrix: Array = in_mm * step[None, :] / step[:, None]
    middle = (np.array(shape) - 1) / 2
    shift = np.random.uniform(-1, 1, count) * data.shift / step
    return matrix, middle - matrix @ middle + shift


def _turn(count: int, rotation: float, tilt: float) -> Array:
    """Draw a rotation of `count` dimensions: in the slice and, of three, out of it."""
    angle = np.random.uniform(-rotation, rotation)
    sine, cosine = np.sin(angle), np.cos(angle)
    in_slice = np.array([[cosine, -sine], [sine, cosine]])
    if count == 2:
        return in_slice
    turn, lean = np.eye(3), np.eye(3)
    turn[1:, 1:] = in_slice
    angle = np.random.uniform(-tilt, tilt)
    sine, cosine = np.sin(angle), np.cos(angle)
    lean[:2, :2] = [[cosine, -sine], [sine, cosine]]
    leaning: Array = turn @ lean
    return leaning
