"""A volume through a model that sees windows of it: cut with overlap, run, put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from pegboard.records import Array, Predictor

SIGMA = 1 / 8
"""Width of the Gaussian that weighs a window, as a share of its side (Isensee et al., nnU-Net,
Nature Methods 18, 2021): a network knows least about its edges."""

DIRECTIONS = ("head-feet", "front-back", "left-right")
"""Of depth, height and width."""


def axes_of(directions: Sequence[str]) -> tuple[int, ...]:
    """Return the axes of (D, H, W) that run along some directions."""
    return tuple(axis for axis, name in enumerate(DIRECTIONS) if name in directions)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How a volume is cut."""

    shape: tuple[int, int, int]
    """Voxels of a window."""
    overlap: float
    """Share of a window that the next one repeats."""
    at_once: int
    """Windows in one call of the predictor."""
    skip_below: float
    """Windows without a voxel above this are not run: nothing is there."""
    mirrored: tuple[int, ...] = ()
    """Axes of (d, h, w) along which, in every combination, each is run mirrored too."""


def infer_windows(predictor: Predictor, image: Array, windows: Windows, *, outside: float) -> Array:
    """Run a predictor over windows of a volume and blend what it says.

    Args:
        predictor: Takes `image` (B, d, h, w), returns `probabilities` (B, K, d, h, w).
        image: float32 (D, H, W); a side shorter than a window is continued with `outside`.
        windows: How it is cut.
        outside: What lies around it.

    Returns:
        float32 (K, D, H, W); zero where no window was run.
    """
    padded, crop = _padded(image, windows.shape, outside)
    corners = [
        corner
        for corner in _corners(padded.shape, windows)
        if _has_something(padded, corner, windows)
    ]
    weight = gaussian(windows.shape)
    total: Array | None = None
    weights = np.zeros(padded.shape, dtype=np.float32)
    for place, found in _run(predictor, padded, corners, windows):
        if total is None:
            total = np.zeros((len(found), *padded.shape), dtype=np.float32)
        total[:, *place] += weight * found
        weights[place] += weight
    if total is None:
        # One window all the same, which tells how many structures there are.
        first = _cut(padded, (0, 0, 0), windows.shape)
        count = predictor({"image": first[None]})["probabilities"].shape[1]
        return np.zeros((count, *image.shape), dtype=np.float32)
    np.divide(total, weights, out=total, where=weights > 0)
    return np.ascontiguousarray(total[:, *crop])


def gaussian(shape: tuple[int, int, int]) -> Array:
    """Return float32 weights of a window, 1 in its middle and never 0."""
    sides = []
    for length in shape:
        place = np.arange(length) - (length - 1) / 2
        sides.append(np.exp(-0.5 * (place / (length * SIGMA)) ** 2))
    depth, height, width = sides
    weight: Array = depth[:, None, None] * height[None, :, None] * width[None, None, :]
    return np.maximum(weight, np.float64(1e-3)).astype(np.float32)


def places(length: int, side: int, overlap: float) -> list[int]:
    """Return where windows begin along an axis: evenly spaced, the last ending with the axis."""
    if length <= side:
        return [0]
    step = max(1, int(side * (1 - overlap)))
    count = -(-(length - side) // step) + 1
    return [int(place) for place in np.linspace(0, length - side, count).round()]


def _corners(shape: tuple[int, ...], windows: Windows) -> Iterator[tuple[int, int, int]]:
    axes = [places(n, side, windows.overlap) for n, side in zip(shape, windows.shape, strict=True)]
    yield from product(*axes)


def _has_something(image: Array, corner: tuple[int, int, int], windows: Windows) -> bool:
    return bool(_cut(image, corner, windows.shape).max() > windows.skip_below)


def _slices(corner: tuple[int, int, int], shape: tuple[int, int, int]) -> tuple[slice, ...]:
    return tuple(slice(first, first + n) for first, n in zip(corner, shape, strict=True))


def _cut(image: Array, corner: tuple[int, int, int], shape: tuple[int, int, int]) -> Array:
    return image[_slices(corner, shape)]


def _run(
    predictor: Predictor, image: Array, corners: list[tuple[int, int, int]], windows: Windows
) -> Iterator[tuple[tuple[slice, ...], Array]]:
    """Yield the place of each window and its probabilities (K, d, h, w), several at a time."""
    flips = [
        axes for n in range(len(windows.mirrored) + 1) for axes in combinations(windows.mirrored, n)
    ]
    for first in range(0, len(corners), windows.at_once):
        some = corners[first : first + windows.at_once]
        batch = np.stack([_cut(image, corner, windows.shape) for corner in some])
        found = np.mean([_flipped(predictor, batch, axes) for axes in flips], axis=0)
        for corner, one in zip(some, found, strict=True):
            yield _slices(corner, windows.shape), one


def _flipped(predictor: Predictor, batch: Array, axes: tuple[int, ...]) -> Array:
    """Run windows (B, d, h, w) mirrored; what is said of them is mirrored back."""
    inputs = np.flip(batch, tuple(axis + 1 for axis in axes)) if axes else batch
    found = predictor({"image": np.ascontiguousarray(inputs)})["probabilities"]
    return np.flip(found, tuple(axis + 2 for axis in axes)) if axes else found


def _padded(
    image: Array, shape: tuple[int, int, int], outside: float
) -> tuple[Array, tuple[slice, ...]]:
    """Return a volume no smaller than a window, itself in the middle, and where that is."""
    missing = [max(0, side - n) for n, side in zip(image.shape, shape, strict=True)]
    before = [some // 2 for some in missing]
    crop = tuple(slice(b, b + n) for b, n in zip(before, image.shape, strict=True))
    if not any(missing):
        return image, crop
    around = [(b, some - b) for b, some in zip(before, missing, strict=True)]
    return np.pad(image, around, constant_values=outside), crop
