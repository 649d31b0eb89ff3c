"""Training scans: other objects pasted in, objects shifted, the whole mirrored, turned, scaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pegboard.records import Array, Sample
from pegboard_lidar.boxes import points_in_boxes
from pegboard_lidar.database import Objects, database_of, read_database
from pegboard_lidar.geometry import bev_iou
from pegboard_lidar.settings import LidarSettings


@dataclass
class Scan:
    """A training scan while it is changed."""

    points: Array
    """float32 (N, 4)."""
    boxes: Array
    """float32 (M, 7)."""
    velocity: Array
    """float32 (M, 2)."""
    pasted: list[int] = field(default_factory=list)
    """Labels of the objects at the end of `boxes` that are of other scans."""


def augment(settings: LidarSettings, sample: Sample) -> Sample:
    """Change a scan as `[train.augment]` says; objects left outside the range are dropped.

    Ground-truth sampling and per-object noise are those of SECOND (Yan et al., Sensors 18, 2018).
    Draws from NumPy's global generator, which the core has seeded.
    """
    how, targets = settings.train.augment, sample.targets
    scan = Scan(
        points=sample.inputs["points"].copy(),
        boxes=targets["boxes"].copy(),
        velocity=targets["velocity"].copy(),
    )
    if any(how.pasted):
        database = database_of(settings.data)
        if database.exists():
            paste(scan, read_database(database), how.pasted)
    if how.noise:
        shift(scan, how.noise)
    if how.flip and np.random.random() < 0.5:
        mirror(scan)
    turn(scan, np.random.uniform(-how.rotation, how.rotation))
    scale(scan, 1 + np.random.uniform(-how.scaling, how.scaling))
    return _cropped(settings, scan, sample)


def _cropped(settings: LidarSettings, scan: Scan, sample: Sample) -> Sample:
    low, high = np.array(settings.data.range[:3]), np.array(settings.data.range[3:])
    xyz, middles = scan.points[:, :3], scan.boxes[:, :2]
    is_near = ((xyz >= low) & (xyz < high)).all(axis=1)
    kept = ((middles >= low[:2]) & (middles < high[:2])).all(axis=1)
    labels = np.concatenate([sample.targets["labels"], np.array(scan.pasted, dtype=np.int64)])
    return Sample(
        inputs={"points": scan.points[is_near]},
        targets={
            "boxes": scan.boxes[kept],
            "labels": labels[kept],
            "velocity": scan.velocity[kept],
        },
        key=sample.key,
    )


# --- Single objects -------------------------------------------------------------------------------


def paste(scan: Scan, objects: Objects, counts: Sequence[int]) -> None:
    """Add objects of other scans where they were seen, as far as nothing stands there.

    Args:
        scan: Is changed.
        objects: Of the train split.
        counts: How many of each class are tried.
    """
    standing = scan.boxes
    for place in _chosen(objects, counts):
        box = objects.boxes[place : place + 1]
        if (bev_iou(_grown(box), standing) > 0).any():
            continue
        standing = np.concatenate([standing, box])
        scan.pasted.append(int(objects.labels[place]))
        # What was seen there is hidden now.
        scan.points = scan.points[~points_in_boxes(scan.points, _grown(box))[0]]
        scan.points = np.concatenate([scan.points, objects.points_of(place)])
    added = len(standing) - len(scan.boxes)
    scan.boxes = standing
    scan.velocity = np.concatenate([scan.velocity, np.full((added, 2), np.nan, dtype=np.float32)])


def _chosen(objects: Objects, counts: Sequence[int]) -> list[int]:
    chosen: list[int] = []
    for label, count in enumerate(counts):
        of_class = np.flatnonzero(objects.labels == label)
        if count and len(of_class):
            drawn = np.random.choice(of_class, min(count, len(of_class)), replace=False)
            chosen += drawn.tolist()
    return chosen


def _grown(boxes: Array) -> Array:
    result = boxes.copy()
    result[:, 3:5] += 0.2
    return result


def shift(scan: Scan, deviation: float) -> None:
    """Move every object along the ground on its own, where it meets no other."""
    for place, rows in enumerate(points_in_boxes(scan.points, scan.boxes)):
        by = np.random.normal(0, deviation, 2).astype(np.float32)
        moved = scan.boxes[place : place + 1].copy()
        moved[:, :2] += by
        others = np.delete(scan.boxes, place, axis=0)
        if (bev_iou(moved, others) > 0).any():
            continue
        scan.boxes[place, :2] += by
        scan.points[rows, :2] += by


# --- The whole scan -------------------------------------------------------------------------------


def mirror(scan: Scan) -> None:
    """Exchange left and right."""
    scan.points[:, 1] *= -1
    scan.boxes[:, [1, 6]] *= -1
    scan.velocity[:, 1] *= -1


def turn(scan: Scan, angle: float) -> None:
    """Turn everything about the scanner, counter-clockwise, in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos, sin], [-sin, cos]], dtype=np.float32)
    scan.points[:, :2] = scan.points[:, :2] @ matrix
    scan.boxes[:, :2] = scan.boxes[:, :2] @ matrix
    scan.boxes[:, 6] += angle
    scan.velocity = scan.velocity @ matrix


def scale(scan: Scan, factor: float) -> None:
    """Make all lengths longer by a factor."""
    scan.points[:, :3] *= factor
    scan.boxes[:, :6] *= factor
    scan.velocity *= factor


# --- The contact sheet ----------------------------------------------------------------------------


def draw(settings: LidarSettings, sample: Sample) -> Array:
    """Draw a training scan from above with its boxes, uint8 (H, W, 3)."""
    from pegboard_lidar.pictures import birds_eye

    return birds_eye(settings, sample.inputs["points"], sample.targets["boxes"])
