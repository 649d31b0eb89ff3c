"""Objects without a network: clusters above the ground, rectangles around them, rules of size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.spatial import cKDTree

from pegboard.records import Array, Sample
from pegboard_lidar.settings import LidarSettings, StepsSettings
from pegboard_lidar.steps import Prepared, cloud_of, prepare_points

ANGLES = np.deg2rad(np.arange(0.0, 90.0, 2.0))
"""Headings that are tried for a rectangle; beyond 90 degrees its sides change their names."""

SLACK = 1.15
"""How far beyond the sizes of the training labels a cluster may be: points stray."""

LEAST_HEIGHT = 0.6
"""Share of an object's height that must be seen."""

FLOATING = 0.9
"""Metres above the ground at which a cluster may begin; signs and crowns of trees do higher up."""

MOST_POINTS = 4000
"""Points of the largest cluster that is looked at: it is a wall or a hedge."""

HALF_SURE = 20.0
"""Points of a cluster that is believed half as much as one of many."""

GROUND_POINTS = 8
"""Points of the ground whose median height is taken for that under a cluster."""


# --- Sizes ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the K classes of objects are: length, width and height in metres."""

    smallest: Array
    """(K, 3), the 2nd percentile; NaN of a class that was never seen, which is never found."""
    usual: Array
    """(K, 3), the median."""
    largest: Array
    """(K, 3), the 98th percentile."""


def learn_sizes(samples: Iterable[Sample], classes: int) -> Sizes:
    """Take the sizes of classes from labelled samples."""
    sides: list[list[Array]] = [[] for _ in range(classes)]
    for sample in samples:
        boxes, labels = sample.targets["boxes"], sample.targets["labels"]
        for label in range(classes):
            sides[label].append(np.asarray(boxes)[np.asarray(labels) == label, 3:6])
    found = np.full((3, classes, 3), np.nan)
    for label, some in enumerate(sides):
        together = np.concatenate(some) if some else np.zeros((0, 3))
        if len(together):
            found[:, label] = np.percentile(together, (2, 50, 98), axis=0)
    return Sizes(smallest=found[0], usual=found[1], largest=found[2])


# --- Clusters -------------------------------------------------------------------------------------


def clusters(points: Array, steps: StepsSettings) -> Iterator[Array]:
    """Yield the points (n, 4) of each cluster.

    DBSCAN (Ester et al., KDD 1996) as Open3D has it, in space.
    """
    if not len(points):
        return
    found = cloud_of(points).cluster_dbscan(steps.cluster_distance, steps.cluster_points)
    labels = np.asarray(found)
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(labels.max() + 2))
    for start, stop in pairwise(starts):
        if stop - start <= MOST_POINTS:
            yield points[order[start:stop]]


def fit_rectangle(points: Array) -> Array:
    """Fit a rectangle to what is seen of an object from above.

    Zhang et al., "Efficient L-Shape Fitting for Vehicle Detection Using Laser Scanners", IV 2017:
    of all headings the one at which points are nearest to sides, by their mean distance, which is
    as good as the criteria of the paper and has no constant.

    Args:
        points: (n, >=2).

    Returns:
        float64 (5,): x and y of the middle, both sides, and the heading of the first from 0 to
        90 degrees.
    """
    xy = np.asarray(points[:, :2], dtype=np.float64)
    cos, sin = np.cos(ANGLES)[:, None], np.sin(ANGLES)[:, None]
    along = cos * xy[:, 0] + sin * xy[:, 1]  # (A, n)
    across = cos * xy[:, 1] - sin * xy[:, 0]
    off = np.minimum(_from_sides(along), _from_sides(across))
    best = int(off.mean(axis=1).argmin())
    u, v = along[best], across[best]
    middle_u, middle_v = (u.max() + u.min()) / 2, (v.max() + v.min()) / 2
    c, s = cos[best, 0], sin[best, 0]
    return np.array(
        [
            c * middle_u - s * middle_v,
            s * middle_u + c * middle_v,
            np.ptp(u),
            np.ptp(v),
            ANGLES[best],
        ]
    )


def _from_sides(places: Array) -> Array:
    """How far places (A, n) are from the nearer end of their row."""
    high, low = places.max(axis=1, keepdims=True), places.min(axis=1, keepdims=True)
    nearer: Array = np.minimum(high - places, places - low)
    return nearer


# --- Objects --------------------------------------------------------------------------------------


def find_objects(points: Array, settings: LidarSettings, sizes: Sizes) -> Array:
    """Find objects in a scan (N, 4).

    Returns:
        float32 (D, 9): box, score and label, the surest first; at most `model.objects`.
    """
    prepared = prepare_points(points, settings.data, settings.model.steps)
    ground = _GroundBelow(prepared)
    objects = [
        found
        for cluster in clusters(prepared.points, settings.model.steps)
        if (found := _object(cluster, ground(cluster), sizes)) is not None
    ]
    table = np.array(objects, dtype=np.float32).reshape(-1, 9)
    best = np.argsort(-table[:, 7], kind="stable")[: settings.model.objects]
    return table[best]


class _GroundBelow:
    """How high the ground is under a cluster."""

    def __init__(self, prepared: Prepared) -> None:
        self.heights = prepared.ground[:, 2]
        self.tree = cKDTree(prepared.ground[:, :2]) if len(prepared.ground) else None

    def __call__(self, cluster: Array) -> float:
        if self.tree is None:
            return float(cluster[:, 2].min())
        count = min(GROUND_POINTS, len(self.heights))
        _, near = self.tree.query(cluster[:, :2].mean(axis=0), k=count)
        return float(np.median(self.heights[near]))


def _object(cluster: Array, ground: float, sizes: Sizes) -> list[float] | None:
    """Return box, score and label of a cluster (n, 4); None where no class fits."""
    bottom, top = float(cluster[:, 2].min()) - ground, float(cluster[:, 2].max()) - ground
    if bottom > FLOATING:
        return None
    rectangle = fit_rectangle(cluster)
    fits = [_fit(rectangle[2:4], top, sizes, label) for label in range(len(sizes.usual))]
    label = int(np.argmax(fits))
    if fits[label] <= 0:
        return None
    x, y, length, width, yaw = _completed(rectangle, sizes.usual[label], sizes.largest[label])
    height = float(np.clip(top, sizes.smallest[label, 2], sizes.largest[label, 2]))
    score = fits[label] * len(cluster) / (len(cluster) + HALF_SURE)
    return [x, y, ground + height / 2, length, width, height, yaw, score, label]


def _fit(sides: Array, height: float, sizes: Sizes, label: int) -> float:
    """Return how well a cluster agrees with a class, 0 to 1; 0 where it cannot be one.

    A side may be seen in part, so the longer one is compared with what it is nearer to, length or
    width.
    """
    smallest, usual, largest = sizes.smallest[label], sizes.usual[label], sizes.largest[label]
    longer, shorter = sides.max(), sides.min()
    is_within = (
        longer <= SLACK * largest[0]
        and shorter <= SLACK * largest[1]
        and LEAST_HEIGHT * smallest[2] <= height <= SLACK * largest[2]
    )
    if not is_within:
        return 0.0
    spread = np.maximum((largest - smallest) / 4, 0.15 * usual)
    nearest = np.abs((longer - usual[:2]) / spread[:2]).min()
    return float(np.exp(-(nearest + abs(height - usual[2]) / spread[2]) / 4))


def _completed(rectangle: Array, usual: Array, largest: Array) -> tuple[float, ...]:
    """Let a rectangle grow away from the scanner to the usual size of its class.

    What faces the scanner is seen, what is behind it is not. The longer side seen is the width
    where it is nearer to that and no wider than one can be, as of a car that drives ahead.

    Returns:
        x, y, length, width and yaw.
    """
    x, y, first, second, yaw = (float(value) for value in rectangle)
    if second > first:
        first, second, yaw = second, first, yaw + np.pi / 2
    is_width = first <= SLACK * largest[1] and abs(first - usual[1]) < abs(first - usual[0])
    if is_width:
        first, second, yaw = second, first, yaw + np.pi / 2
    cos, sin = np.cos(yaw), np.sin(yaw)
    away = cos * x + sin * y, cos * y - sin * x  # The middle, in the rectangle's own frame.
    grown = max(first, float(usual[0])), max(second, float(usual[1]))
    u, v = (
        place + np.sign(place) * (side - seen) / 2
        for place, side, seen in zip(away, grown, (first, second), strict=True)
    )
    heading = float((yaw + np.pi / 2) % np.pi - np.pi / 2)
    return cos * u - sin * v, sin * u + cos * v, *grown, heading
