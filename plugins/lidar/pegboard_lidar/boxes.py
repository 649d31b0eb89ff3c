"""Boxes `(x, y, z, length, width, height, yaw)`: their corners, what lies in them, other frames.

NumPy alone; see `frames.py` for the convention.
"""

from __future__ import annotations

import numpy as np

from pegboard.records import Array

_SIGNS = np.array(
    [
        [1, 1, -1],
        [-1, 1, -1],
        [-1, -1, -1],
        [1, -1, -1],
        [1, 1, 1],
        [-1, 1, 1],
        [-1, -1, 1],
        [1, -1, 1],
    ]
)


def corners(boxes: Array) -> Array:
    """Return the corners (M, 8, 3) of boxes (M, 7).

    The bottom four come first, seen from above counter-clockwise from front left; the top four lie
    above them in the same order.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 7)
    local = _SIGNS * boxes[:, None, 3:6] / 2  # (M, 8, 3)
    cos, sin = np.cos(boxes[:, None, 6]), np.sin(boxes[:, None, 6])
    turned = np.stack(
        [
            local[..., 0] * cos - local[..., 1] * sin,
            local[..., 0] * sin + local[..., 1] * cos,
            local[..., 2],
        ],
        axis=-1,
    )
    return turned + boxes[:, None, :3]


def to_local(points: Array, box: Array) -> Array:
    """Return points (N, >=3) in the frame of one box (7,).

    Returns:
        float64 (N, 3): along its heading, to its left and up, from its middle.
    """
    shifted = np.asarray(points)[:, :3] - box[:3]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    return np.stack(
        [
            shifted[:, 0] * cos + shifted[:, 1] * sin,
            shifted[:, 1] * cos - shifted[:, 0] * sin,
            shifted[:, 2],
        ],
        axis=-1,
    )


def points_in_boxes(points: Array, boxes: Array) -> Array:
    """Tell which points lie in which boxes, those on the surface included.

    Args:
        points: (N, >=3); a point with NaN lies nowhere.
        boxes: (M, 7).

    Returns:
        bool (M, N).
    """
    points = np.asarray(points)
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 7)
    inside = np.zeros((len(boxes), len(points)), dtype=bool)
    x, y = np.ascontiguousarray(points[:, 0]), np.ascontiguousarray(points[:, 1])
    for row, box in zip(inside, boxes, strict=True):
        reach = np.hypot(box[3], box[4]) / 2 + 1e-3  # Few points are turned, the nearby ones.
        near = np.flatnonzero((np.abs(x - box[0]) <= reach) & (np.abs(y - box[1]) <= reach))
        row[near] = (np.abs(to_local(points[near], box)) <= box[3:6] / 2).all(axis=1)
    return inside


def transformed(boxes: Array, matrix: Array) -> Array:
    """Return boxes (M, 7) in another frame.

    Args:
        boxes: (M, 7).
        matrix: (4, 4), takes points of the boxes' frame to the other; a rotation and a shift. What
            it tilts is lost: a box stands upright.
    """
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 7)
    heading = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(len(boxes))], axis=-1)
    heading = heading @ matrix[:3, :3].T
    boxes[:, :3] = boxes[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
    boxes[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
    return boxes
