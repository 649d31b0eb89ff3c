"""Masks: from probabilities to labels, and their connected regions."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from pegboard.records import Array
from pegboard_medical.volumes import Spacing

TOUCHING = np.ones((3, 3, 3), dtype=bool)
"""Voxels that share a corner belong together."""


def mask_of(probabilities: Array) -> Array:
    """Return the most probable structure of each voxel.

    Args:
        probabilities: (K, D, H, W) of the structures; what they leave to one is background.

    Returns:
        uint8 (D, H, W): 0 background, k + 1 the structure k.
    """
    background = 1 - probabilities.sum(axis=0)
    best = probabilities.argmax(axis=0)
    found = probabilities.max(axis=0) > background
    return np.where(found, best + 1, 0).astype(np.uint8)


def components(mask: Array) -> tuple[Array, int]:
    """Number the connected regions of a binary mask (D, H, W), from 1; return their count too."""
    numbered, count = ndimage.label(mask, structure=TOUCHING)
    return numbered, int(count)


def without_small(mask: Array, spacing: Spacing, smallest_mm3: float) -> Array:
    """Return a mask (D, H, W) of labels without connected regions below a volume."""
    fewest = smallest_mm3 / float(np.prod(spacing))
    if fewest <= 1:
        return mask
    kept = mask.copy()
    for label in np.unique(mask[mask > 0]):
        numbered, count = components(mask == label)
        sizes = np.bincount(numbered.ravel(), minlength=count + 1)
        small = np.flatnonzero(sizes < fewest)
        kept[np.isin(numbered, small[small > 0])] = 0
    return kept
