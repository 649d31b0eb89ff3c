"""What a detector is worth: average precision by overlap and by distance, recall and precision.

Every metric is a pure function of the rows of an evaluation, one row a frame, see `tabulate`: what
is found in a frame is matched once, and metrics count, see `average_precision.py`. A metric is NaN
where no object of its class is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from pegboard.records import Array, Batch, Metric, Rows, Thresholds
from pegboard_lidar import average_precision as ap
from pegboard_lidar import boxes as shapes
from pegboard_lidar.decoding import Detections, detect
from pegboard_lidar.frames import IGNORED, NEIGHBOURS
from pegboard_lidar.geometry import bev_iou, distances, iou
from pegboard_lidar.kitti import PICTURE
from pegboard_lidar.settings import LidarSettings

OVERLAPS = {"Car": (0.5, 0.7)}
"""Overlaps that finding an object takes, the looser first: KITTI's, and beside them 0.5 of cars,
as more is asked of them than the length of a car seen from behind tells."""

USUAL_OVERLAPS = (0.5,)
"""Of other classes: KITTI's."""

OverlapKind = Literal["bev", "3d"]

OVERLAP_KINDS: Mapping[OverlapKind, str] = {"bev": "from above", "3d": "in space"}

METRES = (0.5, 1.0, 2.0, 4.0)
"""Distances of middles that nuScenes looks at."""

FOUND_METRES = 1.0
"""Distance within which an object counts as found where a score must be decided on."""

MODERATE, ALL = 1, 2
"""Places in `ap.LEVELS`."""

TRUE_OBJECTS = 128
"""Most true objects that a row keeps for pictures, the nearest ones."""

CLOUD = 4000
"""Points of a scan that a row keeps for pictures."""

NO_POINT = np.iinfo(np.int16).min
"""Of a cloud with fewer points."""


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """What it takes to have found an object."""

    kind: OverlapKind | Literal["centre"]
    """Overlap from above, overlap in space, or distance of the middles from above."""
    limit: float
    """Smallest overlap, or largest distance in metres."""

    def column(self, name: str) -> str:
        """Name the column of a class."""
        return f"matched:{self.kind}_{self.limit:g}:{name}"


def overlaps_of(name: str) -> Sequence[float]:
    """Return the overlaps that finding an object of a class takes, the looser first."""
    return OVERLAPS.get(name, USUAL_OVERLAPS)


def criteria_of(name: str) -> Iterator[Criterion]:
    """Yield what a class is measured by."""
    for limit in overlaps_of(name):
        yield Criterion(kind="bev", limit=limit)
        yield Criterion(kind="3d", limit=limit)
    for metres in METRES:
        yield Criterion(kind="centre", limit=metres)


# --- Rows -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The M labelled objects of a frame."""

    boxes: Array
    """float64 (M, 7)."""
    labels: Array
    """int64 (M,), places in `data.classes`; -1 of a class beside one of them."""
    names: Sequence[str]
    """M names."""
    difficulty: Array
    """int64 (M,), KITTI's 0, 1 and 2; -1 of objects that do not count."""


def tabulate(
    settings: LidarSettings, batch: Batch, outputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Keep what metrics and figures need of a batch of B frames.

    Returns:
        `key` and `sequence` (B,) text; a frame without a sequence is one of its own. With D as
        `model.objects`, the surest objects first, of each class c:

        - `scores:c` float32 (B, D), -1 where there is none.
        - `matched:CRITERION:c` int16 (B, D, 3, 3), what `average_precision.py` tells of a match
          at KITTI's three levels, by each of `criteria_of`.
        - `objects:c` int64 (B, 3), how many there are at each level.

        For figures: of what was found `boxes` float32 (B, D, 7), `scores` float32 (B, D) and
        `labels` int64 (B, D); of what is true `true_boxes` float32 (B, 128, 7), `true_labels` and
        `true_difficulty` int64 (B, 128); NaN, -1, -1, NaN, -1 and -1 where there is none; and
        `cloud` int16 (B, 4000, 3), see `unpacked`.
    """
    frames = [_row(settings, batch, outputs, index) for index in range(len(batch))]
    table = {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}
    keys = np.array(list(batch.keys), dtype=str)
    sequence = np.array(list(batch.targets.get("sequence", keys)), dtype=str)
    return {"key": keys, "sequence": np.where(sequence == "", keys, sequence), **table}


def _row(
    settings: LidarSettings, batch: Batch, outputs: Mapping[str, Array], index: int
) -> dict[str, Array]:
    most = settings.model.objects
    found = detect(settings, {name: output[index] for name, output in outputs.items()})
    found = found.at(np.argsort(-found.scores, kind="stable")[:most])
    truth = _truth(batch.targets, index)
    ignore = _ignored(found.boxes, batch.targets, index)
    row = {
        "boxes": _padded(found.boxes, most, np.nan, np.float32),
        "scores": _padded(found.scores, most, -1, np.float32),
        "labels": _padded(found.labels, most, IGNORED, np.int64),
        **_true_columns(truth),
        "cloud": _packed(settings, np.asarray(batch.inputs["points"][index])),
    }
    for label, name in enumerate(settings.data.classes):
        row |= _class_columns(name, label, found, truth, ignore, most)
    return row


def _truth(targets: Mapping[str, Any], index: int) -> Truth:
    labels = np.asarray(targets["labels"][index])
    known = labels >= IGNORED  # The others fill the batch up.
    return Truth(
        boxes=np.asarray(targets["boxes"][index], dtype=np.float64)[known],
        labels=labels[known],
        names=list(targets["names"][index]),
        difficulty=np.asarray(targets["difficulty"][index]),
    )


def _ignored(boxes: Array, targets: Mapping[str, Any], index: int) -> Array | None:
    """What KITTI ignores of what was found: boxes too low in the picture, where there is one."""
    projection = np.asarray(targets.get("projection", {index: np.nan})[index], dtype=np.float64)
    if not np.isfinite(projection).all():
        return None
    ignored: Array = ap.ignored(picture_heights(boxes, projection))
    return ignored


def picture_heights(boxes: Array, projection: Array) -> Array:
    """Return how high boxes (M, 7) stand in KITTI's picture, in pixels (M,).

    What is beyond the picture's edge does not count. A box that reaches behind the camera is as
    high as the picture: it is near.

    Args:
        boxes: In the scanner's frame.
        projection: (3, 4), from the scanner's frame to pixels.
    """
    seen = shapes.corners(boxes) @ projection[:, :3].T + projection[:, 3]  # (M, 8, 3)
    depth = seen[..., 2]
    places = seen[..., :2] / np.where(depth > 0, depth, 1.0)[..., None]
    places = places.clip(0, PICTURE)
    width, height = np.moveaxis(places.max(axis=1) - places.min(axis=1), -1, 0)
    height = np.where(width > 0, height, 0.0)
    height = np.where((depth > 0).all(axis=1), height, float(PICTURE[1]))
    return np.asarray(height, dtype=np.float64)


def _class_columns(
    name: str, label: int, found: Detections, truth: Truth, ignore: Array | None, most: int
) -> dict[str, Array]:
    ours = np.flatnonzero(found.labels == label)
    beside = [NEIGHBOURS.get(other) == name for other in truth.names]
    theirs = np.flatnonzero((truth.labels == label) | np.array(beside, dtype=bool))
    # A class beside this one is ignored, however well it is seen.
    difficulty = np.where(truth.labels == label, truth.difficulty, -1)[theirs]
    counts = ap.counted(difficulty)
    boxes, scores, true = found.boxes[ours], found.scores[ours], truth.boxes[theirs]
    ignore = None if ignore is None else ignore[ours]
    columns = {
        f"scores:{name}": _padded(scores, most, -1, np.float32),
        f"objects:{name}": counts.sum(axis=0),
    }
    measured = {"bev": bev_iou(boxes, true), "3d": iou(boxes, true)}
    measured["centre"] = distances(boxes, true)
    for criterion in criteria_of(name):
        match = ap.match_by_distance if criterion.kind == "centre" else ap.match_by_overlap
        matched = match(measured[criterion.kind], scores, counts, criterion.limit, ignore)
        columns[criterion.column(name)] = _padded(matched, most, 0, np.int16)
    return columns


def _true_columns(truth: Truth) -> dict[str, Array]:
    near = np.argsort(np.hypot(truth.boxes[:, 0], truth.boxes[:, 1]), kind="stable")[:TRUE_OBJECTS]
    return {
        "true_boxes": _padded(truth.boxes[near], TRUE_OBJECTS, np.nan, np.float32),
        "true_labels": _padded(truth.labels[near], TRUE_OBJECTS, IGNORED, np.int64),
        "true_difficulty": _padded(truth.difficulty[near], TRUE_OBJECTS, -1, np.int64),
    }


def _padded(values: Array, length: int, filling: float, dtype: Any) -> Array:
    padded = np.full((length, *values.shape[1:]), filling, dtype=dtype)
    padded[: len(values)] = values
    return padded


def _packed(settings: LidarSettings, points: Array) -> Array:
    """Draw points (N, 4) of what is looked at, as int16 (4000, 3), in centimetres."""
    is_inside = np.ones(len(points), dtype=bool)
    for axis, (low, high) in enumerate(np.array(settings.data.range).reshape(2, 3).T):
        is_inside &= (points[:, axis] >= low) & (points[:, axis] < high)  # NaN is nowhere.
    inside = np.flatnonzero(is_inside)
    if len(inside) > CLOUD:
        generator = np.random.default_rng(0)
        inside = inside[generator.choice(len(inside), CLOUD, replace=False, shuffle=False)]
    centimetres = np.rint(points[inside, :3] * 100).clip(NO_POINT + 1, -NO_POINT - 1)
    return _padded(centimetres, CLOUD, NO_POINT, np.int16)


def unpacked(cloud: Array) -> Array:
    """Return the points float32 (N, 3), in metres, of the cloud (4000, 3) of a row."""
    metres: Array = cloud[cloud[:, 0] != NO_POINT].astype(np.float32) / 100
    return metres


# --- The list -------------------------------------------------------------------------------------


def build(settings: LidarSettings) -> list[Metric]:
    """Return the metrics, the headline first.

    It is the mean over classes of KITTI's moderate average precision from above, at the looser
    overlap: where an object stands and how it is turned is what a vehicle plans by, and a stricter
    overlap mostly measures how long what is hidden is.
    """
    names = settings.data.classes
    return [
        _metric(
            "map",
            lambda rows, thresholds: _mean(
                [kitti(name, "bev", overlaps_of(name)[0], rows) for name in names]
            ),
            "Mean over classes of the average precision from above (BEV), at the looser overlap.",
            headline=True,
        ),
        *(metric for name in names for metric in _overlap_metrics(name)),
        _metric(
            "centre_map",
            lambda rows, thresholds: _mean([nuscenes(name, rows) for name in names]),
            "Mean over classes and 0.5, 1, 2 and 4 m of nuScenes' average precision.",
        ),
        *(_centre_metric(name) for name in names),
        *(metric for name in names for metric in _decided_metrics(name)),
    ]


def _metric(
    name: str,
    compute: Callable[[Rows, Thresholds], float],
    description: str,
    *,
    headline: bool = False,
    unit: str = "",
) -> Metric:
    """A metric whose interval draws the frames of a sequence together."""
    return Metric(
        name=re.sub(r"[^\w.]", "_", name),
        compute=compute,
        direction="higher",
        headline=headline,
        unit=unit,
        group="sequence",
        description=description,
    )


def _overlap_metrics(name: str) -> Iterator[Metric]:
    for limit in overlaps_of(name):
        for kind, where in OVERLAP_KINDS.items():
            yield _metric(
                f"{kind}_ap_{name}_{limit:g}",
                partial(_of_rows, partial(kitti, name, kind, limit)),
                f"KITTI's moderate average precision (R40) of {name} at an overlap of {limit:g} "
                f"{where}.",
            )
        yield _metric(
            f"3d_ap_r11_{name}_{limit:g}",
            partial(_of_rows, partial(kitti, name, "3d", limit, mean=ap.r11)),
            f"The same of {name} in space at eleven recalls (R11), as older papers give it.",
        )


def _centre_metric(name: str) -> Metric:
    return _metric(
        f"centre_ap_{name}",
        partial(_of_rows, partial(nuscenes, name)),
        f"Mean over 0.5, 1, 2 and 4 m of nuScenes' average precision of {name}.",
    )


def _decided_metrics(name: str) -> Iterator[Metric]:
    told = f"{name} of moderate difficulty, within {FOUND_METRES:g} m, from the chosen score on."
    yield _metric(
        f"recall_{name}",
        lambda rows, thresholds: decided(name, rows, thresholds)[0],
        f"Share of objects that are found: {told}",
        unit="share",
    )
    yield _metric(
        f"precision_{name}",
        lambda rows, thresholds: decided(name, rows, thresholds)[1],
        f"Share of what is reported that is there: {told}",
        unit="share",
    )


def _of_rows(compute: Callable[[Rows], float], rows: Rows, thresholds: Thresholds) -> float:
    return compute(rows)


# --- Numbers --------------------------------------------------------------------------------------


def kitti(
    name: str,
    kind: OverlapKind,
    limit: float,
    rows: Rows,
    *,
    level: int = MODERATE,
    mean: Callable[[Array], float] = ap.r40,
) -> float:
    """The average precision of KITTI of a class; NaN where nothing counts.

    It is what the development kit says; of fewer objects than that has samples, by the definition.
    """
    scores, matched, objects = matches_of(name, Criterion(kind=kind, limit=limit), level, rows)
    few = objects < ap.SAMPLES
    precision = ap.precision_by_definition if few else ap.precision_at_recalls
    return mean(precision(scores, matched, objects)) if objects else np.nan


def nuscenes(name: str, rows: Rows) -> float:
    """The mean over distances of nuScenes' average precision of a class."""
    return _mean([centre(name, metres, rows) for metres in METRES])


def centre(name: str, metres: float, rows: Rows, *, level: int = ALL) -> float:
    """The average precision of nuScenes of a class at a distance; NaN where nothing counts."""
    scores, matched, objects = matches_of(name, Criterion(kind="centre", limit=metres), level, rows)
    return ap.centre_average_precision(scores, matched, objects) if objects else np.nan


def decided(name: str, rows: Rows, thresholds: Thresholds) -> tuple[float, float]:
    """Recall and precision of a class from the chosen score on; of all where none was chosen."""
    scores, matched, objects = _found(name, rows)
    chosen = np.array([thresholds.get(f"score_{name}", 0.0)])
    (hits,), (false,) = ap.counts_at(scores, matched, chosen)
    return (
        float(hits / objects) if objects else np.nan,
        float(hits / (hits + false)) if hits + false else np.nan,
    )


def choose_thresholds(settings: LidarSettings, rows: Rows) -> dict[str, float]:
    """Choose for each class the score from which on objects are reported: `score_<class>`.

    It is the one of the best F1 of moderate objects found within 1 m; `model.smallest_score` where
    none is.
    """
    chosen = {
        f"score_{name}": ap.best_threshold(*_found(name, rows)) for name in settings.data.classes
    }
    smallest = settings.model.smallest_score
    return {name: score if np.isfinite(score) else smallest for name, score in chosen.items()}


def _found(name: str, rows: Rows) -> tuple[Array, Array, float]:
    return matches_of(name, Criterion(kind="centre", limit=FOUND_METRES), MODERATE, rows)


def matches_of(
    name: str, criterion: Criterion, level: int, rows: Rows
) -> tuple[Array, Array, float]:
    """Scores (K,), matches (K, 3) and the number of objects of a class, of all frames."""
    scores = rows[f"scores:{name}"]
    there = scores >= 0
    matched = rows[criterion.column(name)][there][:, level].astype(np.float64)
    objects = float(rows[f"objects:{name}"][:, level].sum())
    return scores[there].astype(np.float64), matched, objects


def _mean(values: Sequence[float]) -> float:
    """The mean of what is defined."""
    defined = [value for value in values if np.isfinite(value)]
    return float(np.mean(defined)) if defined else np.nan
