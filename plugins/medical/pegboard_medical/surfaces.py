"""How far the surfaces of two masks lie apart, in millimetres.

A surface is made of the voxels of a mask that touch the outside by a face, each standing for its
centre; what lies at the edge of the volume touches it. Every such voxel counts the same, as in
MONAI's metrics, whatever area of the surface it stands for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from pegboard.records import Array
from pegboard_medical.volumes import Spacing

PERCENTILE = 95
"""Of the distances: the largest of all hangs on a single voxel."""


@dataclass(frozen=True, kw_only=True)
class Distances:
    """From the surface of each of two masks to the nearest point of the other's, in mm."""

    found: Array
    """From each voxel of the found surface to the true one."""
    true: Array
    """From each voxel of the true surface to the found one."""


def bounding_box(mask: Array) -> tuple[slice, slice, slice] | None:
    """Return the box around what is set in a mask (D, H, W); None where nothing is."""
    sides = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        places = np.flatnonzero(mask.any(axis=others))
        if not len(places):
            return None
        sides.append(slice(int(places[0]), int(places[-1]) + 1))
    return sides[0], sides[1], sides[2]


def surface(mask: Array) -> Array:
    """Return the voxels (N, 3) of a binary mask (D, H, W) that touch the outside by a face."""
    box = bounding_box(mask)
    if box is None:
        return np.zeros((0, 3), dtype=np.int64)
    inside = mask[box] > 0
    edge = np.argwhere(inside & ~ndimage.binary_erosion(inside))
    return np.asarray(edge + np.array([side.start for side in box]))


def distances(found: Array, true: Array, spacing: Spacing) -> Distances | None:
    """Measure from surface to surface; None where one of the masks (D, H, W) is empty.

    A tree of points gives the very distances of a distance transform, at the cost of the surfaces
    and not of the volume.
    """
    ours, theirs = surface(found) * np.array(spacing), surface(true) * np.array(spacing)
    if not len(ours) or not len(theirs):
        return None
    return Distances(found=_nearest(ours, theirs), true=_nearest(theirs, ours))


def _nearest(points: Array, others: Array) -> Array:
    # Points of a grid lie on planes, where splitting at the median gains nothing.
    tree = cKDTree(others, balanced_tree=False, compact_nodes=False)
    nearest: Array = tree.query(points)[0]
    return nearest


def hd95(measured: Distances | None) -> float:
    """Return the larger of the two directed 95th percentiles, in mm; NaN where one mask is empty.

    It is the definition of MONAI and of nnU-Net's evaluation; the percentile of both directions
    thrown together, which others take, is smaller.
    """
    if measured is None:
        return np.nan
    return float(
        max(np.percentile(measured.found, PERCENTILE), np.percentile(measured.true, PERCENTILE))
    )


def surface_dice(measured: Distances | None, tolerance: float) -> float:
    """Return which share of both surfaces lies within `tolerance` mm of the other one.

    Nikolov et al., Journal of Medical Internet Research 23(7), 2021. NaN where one mask is empty.
    """
    if measured is None:
        return np.nan
    near = (measured.found <= tolerance).sum() + (measured.true <= tolerance).sum()
    return float(near / (len(measured.found) + len(measured.true)))
