"""The records of the domain: a frame on the disk, and what is labelled in it.

Everything is in the scanner's frame, in metres and radians: x ahead, y to the left, z up, yaw
counter-clockwise about z from x. A box is `(x, y, z, length, width, height, yaw)`; x, y, z are its
middle, its length lies along its heading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pegboard.records import Array, Split

UNKNOWN = -1
"""Of a label's occlusion: nobody said."""

IGNORED, PADDING = -1, -2
"""Places in `data.classes`: of an object that may be found or not, and of none at all."""

NEIGHBOURS: Mapping[str, str] = {"Van": "Car", "Person_sitting": "Pedestrian"}
"""Classes of KITTI so like another that finding one is neither right nor wrong."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One scan and what belongs to it; nothing of it is read yet."""

    key: str
    """Names it in messages and galleries: `000123`."""
    scan: Path
    """File of the points; its ending says the format."""
    labels: Path | None = None
    """File of the labels; None where nothing is known."""
    calibration: Path | None = None
    """KITTI calibration file."""
    sequence: str = ""
    """Drive that it belongs to; frames of one stay in one split. Empty: it stands alone."""
    seconds: float | None = None
    """Time of the scan."""
    split: Split | None = None
    """Where the data set says that it belongs; None: ours to choose."""
    tokens: Mapping[str, str] = field(default_factory=dict)
    """What a layout needs to find the rest again (nuScenes)."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The M labelled objects of a frame."""

    names: Sequence[str]
    """M classes as the data set calls them; also the ones that nobody looks for."""
    boxes: Array
    """float64 (M, 7)."""
    truncation: Array = field(default_factory=lambda: np.zeros(0))
    """float64 (M,), share outside the picture; 0 where nobody said."""
    occlusion: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """int64 (M,): 0 fully visible, 1 partly, 2 largely hidden, 3 and -1 unknown."""
    pixels: Array = field(default_factory=lambda: np.zeros(0))
    """float64 (M,), height of the object in the picture, which KITTI's difficulty goes by; NaN
    where there is no picture."""
    velocity: Array = field(default_factory=lambda: np.zeros((0, 2)))
    """float64 (M, 2), metres a second along x and y; NaN where nobody said."""
    ignored: Array = field(default_factory=lambda: np.zeros((0, 4)))
    """float64 (R, 4), regions of the picture where nothing is labelled (KITTI's DontCare): left,
    top, right, bottom."""
