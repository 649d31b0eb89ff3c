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
    chosen = _chosen(objects, counts)
    boxes = objects.boxes[chosen]
    is_free = ~(bev_iou(_grown(boxes), scan.boxes) > 0).any(axis=1)
    meet = bev_iou(_grown(boxes), _grown(boxes)) > 0
    added: list[int] = []
    for place in np.flatnonzero(is_free).tolist():
        if not meet[place, added].any():
            added.append(place)
    # What was seen there is hidden now.
    is_hidden = points_in_boxes(scan.points, _grown(boxes[added])).any(axis=0)
    pasted = [objects.points_of(chosen[place]) for place in added]
    scan.points = np.concatenate([scan.points[~is_hidden], *pasted])
    scan.boxes = np.concatenate([scan.boxes, boxes[added]])
    scan.pasted += [int(objects.labels[chosen[place]]) for place in added]
    unknown = np.full((len(added), 2), np.nan, dtype=np.float32)
    scan.velocity = np.concatenate([scan.velocity, unknown])


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
    moved = scan.boxes.copy()
    moved[:, :2] += np.random.normal(0, deviation, (len(moved), 2))
    others = ~np.eye(len(moved), dtype=bool)
    meets = (bev_iou(moved, moved) > 0) | (bev_iou(moved, scan.boxes) > 0)
    free = np.flatnonzero(~(meets & others).any(axis=1))
    for place, inside in zip(free, points_in_boxes(scan.points, scan.boxes[free]), strict=True):
        points = np.flatnonzero(inside)
        scan.points[points, :2] += moved[place, :2] - scan.boxes[place, :2]
        scan.boxes[place] = moved[place]


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
