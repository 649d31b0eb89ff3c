"""Intensities: what a scanner's numbers become before a network sees them.

A CT's Hounsfield units mean the same everywhere; the graph cuts them to a window. An MR's numbers
mean nothing by themselves: the whole volume, which a window of it does not know, sets the scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pegboard.records import Array

TAILS = (0.5, 99.5)
"""Percentiles that an MR is cut to before it is measured: single voxels can be a thousand times
brighter than the rest."""

AIR = -1024.0
"""Hounsfield units around a CT."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How the numbers of one volume are changed."""

    low: float
    """Smaller ones become this."""
    high: float
    """Larger ones become this."""
    mean: float
    """Becomes 0."""
    deviation: float
    """Becomes 1."""

    def apply(self, voxels: Array) -> Array:
        """Return float32 voxels of any shape, changed."""
        cut = np.clip(voxels, self.low, self.high).astype(np.float32)
        return (cut - np.float32(self.mean)) / np.float32(self.deviation)


def scale_of(voxels: Array, modality: str) -> Scale | None:
    """Return how a volume (D, H, W) is scaled; None for a CT, which the graph scales."""
    if modality == "ct":
        return None
    low, high = np.percentile(voxels, TAILS)
    cut = np.clip(voxels, low, high)
    return Scale(
        low=float(low),
        high=float(high),
        mean=float(cut.mean()),
        # A volume of one value only has none.
        deviation=float(cut.std()) or 1.0,
    )


def scaled(voxels: Array, scale: Scale | None) -> Array:
    """Return float32 voxels as the graph takes them."""
    return voxels.astype(np.float32) if scale is None else scale.apply(voxels)


def outside_of(scale: Scale | None) -> float:
    """Return what lies around a volume, in its own units."""
    return AIR if scale is None else scale.low
