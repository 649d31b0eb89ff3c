"""Pictures of volumes: axial, coronal and sagittal, as a radiologist looks at them.

Head up, the patient's left on the right of the picture, the front on the left of a sagittal one;
volumes are turned as models see them, see `volumes.py`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from pegboard.records import Array
from pegboard_medical.masks import components
from pegboard_medical.surfaces import bounding_box
from pegboard_medical.volumes import Spacing

TAILS = (0.5, 99.5)
"""Percentiles that are black and white where no window is given."""

COLORS = ((255, 176, 0), (70, 190, 255), (120, 230, 120), (255, 105, 180), (190, 150, 255))
"""Of structures, told apart on grey; after the last the first comes again."""

LONGEST = 384
"""Pixels of a volume's longest side."""

GAP = 6
"""Pixels between planes."""

CLOSEST = 40.0
"""Millimetres that a close view shows at least."""

AROUND = 2.0
"""Sides of the structure that a close view shows."""


@dataclass(frozen=True, kw_only=True)
class View:
    """Three planes through a volume, in square pixels."""

    spacing: Spacing
    """Of the volume's voxels, in mm."""
    slices: tuple[int, ...]
    """Index of the axial, the coronal and the sagittal slice."""
    middle: tuple[float, ...]
    """Of the pictures, in voxels along depth, height and width."""
    pixels: tuple[int, ...]
    """Along depth, height and width."""
    step: float
    """Side of a pixel in mm."""

    def labels(self, mask: Array) -> list[Array]:
        """Cut a mask (D, H, W) on the grid that the view was made for: axial, coronal, sagittal."""
        return [self._plane(mask, axis, order=0, outside=0) for axis in range(3)]

    def grey(self, image: Array, ends: tuple[float, float]) -> list[Array]:
        """Cut an image in the same way: uint8, what lies outside of it black.

        Args:
            image: (D, H, W).
            ends: What is black and what is white.
        """
        return [grey(self._plane(image, axis, order=1, outside=ends[0]), ends) for axis in range(3)]

    def _plane(self, volume: Array, axis: int, *, order: int, outside: float) -> Array:
        cut = np.take(volume, self.slices[axis], axis=axis)
        places = [self._places(along) for along in range(3) if along != axis]
        grid = np.meshgrid(*places, indexing="ij")
        # What rounds to a voxel is inside, be it beyond the voxel's centre.
        inside = np.ones(grid[0].shape, dtype=bool)
        for place, count in zip(grid, cut.shape, strict=True):
            inside &= (place > -0.5) & (place < count - 0.5)
        seen: Array = ndimage.map_coordinates(cut, grid, order=order, mode="nearest")
        seen[~inside] = outside
        # Depth grows to the head, the rows of a picture downwards.
        return seen if axis == 0 else seen[::-1]

    def _places(self, along: int) -> Array:
        """Return the place of each pixel along an axis, in voxels."""
        count = self.pixels[along]
        offsets: Array = (np.arange(count) - (count - 1) / 2) * (self.step / self.spacing[along])
        return self.middle[along] + offsets


@dataclass(frozen=True, kw_only=True)
class Focus:
    """What is worth looking at in a volume."""

    slices: tuple[int, ...]
    """Index of the axial, coronal and sagittal slice that show most of it."""
    middle: tuple[float, ...]
    """Its middle, in voxels."""
    size: tuple[int, ...]
    """Its sides in voxels; 0 where there is nothing."""


def focus(mask: Array) -> Focus:
    """Look at the largest connected structure of a mask (D, H, W), else at the volume's middle."""
    box = bounding_box(mask)
    if box is None:
        return Focus(
            slices=tuple(count // 2 for count in mask.shape), middle=_middle(mask), size=(0, 0, 0)
        )
    numbered, _ = components(mask[box] > 0)
    largest = numbered == np.bincount(numbered.ravel())[1:].argmax() + 1
    counts = [
        largest.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)
    ]
    ends = [np.flatnonzero(count)[[0, -1]] for count in counts]
    starts = [side.start for side in box]
    return Focus(
        slices=tuple(a + int(count.argmax()) for a, count in zip(starts, counts, strict=True)),
        middle=tuple(a + float(end.mean()) for a, end in zip(starts, ends, strict=True)),
        size=tuple(int(end[1] - end[0]) + 1 for end in ends),
    )


def _middle(volume: Array) -> tuple[float, ...]:
    return tuple((count - 1) / 2 for count in volume.shape)


def whole_view(mask: Array, spacing: Spacing, longest: int = LONGEST) -> View:
    """See all of a volume (D, H, W), in planes through its largest structure.

    Args:
        mask: What may be seen.
        spacing: In mm.
        longest: Pixels of the volume's longest side.
    """
    sides = np.array(mask.shape) * np.array(spacing)
    step = float(sides.max()) / longest
    return View(
        spacing=spacing,
        slices=focus(mask).slices,
        middle=_middle(mask),
        pixels=tuple(max(1, round(side / step)) for side in sides.tolist()),
        step=step,
    )


def close_view(mask: Array, spacing: Spacing, side: int) -> View:
    """See the largest structure of a mask (D, H, W) and what is around it, `side` pixels square."""
    there = focus(mask)
    sides = np.array(mask.shape) * np.array(spacing)
    wanted = max(CLOSEST, AROUND * float(np.max(np.array(there.size) * np.array(spacing))))
    shown = wanted if mask.any() else float(sides.max())
    return View(
        spacing=spacing,
        slices=there.slices,
        middle=there.middle,
        pixels=(side, side, side),
        step=min(shown, float(sides.max())) / side,
    )


# --- Pictures -------------------------------------------------------------------------------------


def ends_of(image: Array) -> tuple[float, float]:
    """Return what is black and what is white where no window is given."""
    low, high = np.percentile(image, TAILS)
    return float(low), float(high)


def grey(image: Array, ends: tuple[float, float]) -> Array:
    """Return uint8 of any shape: from the lower end on brighter, white from the upper one on."""
    low, high = ends
    share = (np.asarray(image, dtype=np.float32) - low) / max(high - low, 1e-6)
    return np.asarray((share.clip(0, 1) * 255).round(), dtype=np.uint8)


def outline(labels: Array) -> Array:
    """Return which pixels of structures (H, W) lie beside another label, or at the edge."""
    height, width = labels.shape
    padded = np.pad(labels, 1)
    same = np.ones(labels.shape, dtype=bool)
    for row, column in ((0, 1), (2, 1), (1, 0), (1, 2)):
        same &= padded[row : row + height, column : column + width] == labels
    return np.asarray((labels > 0) & ~same)


def three_planes(
    image: Array, mask: Array, spacing: Spacing, *, window: tuple[float, float] | None = None
) -> Array:
    """Draw axial, coronal and sagittal slices through the largest structure, side by side.

    Args:
        image: (D, H, W), turned as models see.
        mask: uint8 (D, H, W) of labels; each structure is outlined in a colour of its own.
        spacing: In mm.
        window: What is black and what is white, in the image's units; None: what nearly all of the
            voxels span.

    Returns:
        uint8 (h, w, 3), a millimetre as long in every direction.
    """
    view = whole_view(mask, spacing)
    ends = window or ends_of(image)
    pictures = []
    for seen, labels in zip(view.grey(image, ends), view.labels(mask), strict=True):
        picture = np.repeat(seen[..., None], 3, axis=2)
        edge = outline(labels)
        picture[edge] = np.array(COLORS, dtype=np.uint8)[(labels[edge] - 1) % len(COLORS)]
        pictures.append(picture)
    return beside(pictures)


def beside(pictures: Sequence[Array]) -> Array:
    """Put pictures uint8 (h, w, 3) next to one another on black, each in the middle of its row."""
    height = max(len(picture) for picture in pictures)
    columns: list[Array] = []
    for picture in pictures:
        missing = height - len(picture)
        around = ((missing // 2, missing - missing // 2), (0, 0), (0, 0))
        columns += [np.zeros((height, GAP, 3), dtype=np.uint8), np.pad(picture, around)]
    return np.concatenate(columns[1:], axis=1)


def png_of(picture: Array) -> bytes:
    """Return a picture uint8 (h, w, 3) as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
