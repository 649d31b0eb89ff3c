"""What is particular to this project. Delete what you do not need.

A function here comes before the solution's own of the same name. `pegboard doctor` shows who is
called in which order, `pegboard describe` which hooks there are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pegboard import hookimpl

if TYPE_CHECKING:
    from pegboard.records import AnswerEvent, Array, Sample
    from pegboard_lidar.settings import LidarSettings

Answers = Sequence[Mapping[str, Any]]

DIRTY = 0.1
"""Share of training scans in which dirt covers a part of the scanner's window."""

DIRT_DEGREES = 6.0
"""How wide the dirt is, at most."""

FEWEST_POINTS = 3
"""An object of which fewer points are left is not to be found any more."""

LANE_HALF = 1.5
"""Metres to the left and to the right of the scanner that the vehicle needs."""

LANE_AHEAD = 40.0
"""Metres ahead in which an object there is told."""

AUDIT = "answers.jsonl"
"""What was answered when, one line a request, in the folder that outlives the server."""


@hookimpl
def augment(sample: Sample) -> Sample:
    """CHAIN: after a scan is changed, take the points behind dirt on the window out of some.

    Objects that hardly a point is left of are no longer asked for.
    """
    if np.random.random() >= DIRTY:
        return sample
    points, targets = sample.inputs["points"], sample.targets
    angle = np.degrees(np.arctan2(points[:, 1], points[:, 0]))
    middle = np.random.choice(angle) if len(angle) else 0.0
    off = np.abs((angle - middle + 180) % 360 - 180)
    clean = points[off > np.random.uniform(0, DIRT_DEGREES) / 2]
    return replace(
        sample,
        inputs={**sample.inputs, "points": clean},
        targets=_still_seen(clean, points, targets),
    )


def _still_seen(clean: Array, points: Array, targets: Mapping[str, Any]) -> dict[str, Any]:
    """Return the targets without the objects that lost their points to the dirt."""
    from pegboard_lidar.boxes import points_in_boxes

    before, after = (
        points_in_boxes(some, targets["boxes"]).sum(axis=1) for some in (points, clean)
    )
    kept = (after == before) | (after >= FEWEST_POINTS)
    return {name: value[kept] for name, value in targets.items()}


@hookimpl(wrapper=True)
def encode_answer() -> Generator[None, Answers, Answers]:
    """WRAPPER: take the solution's answers and add what stands in the vehicle's way, nearest first.

    Straight ahead, that is; a vehicle that knows its steering angle can do better.
    """
    answers = yield
    return [{**answer, "in_the_way": _in_the_way(answer["objects"])} for answer in answers]


def _in_the_way(objects: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return class and distance of the objects that reach into the lane ahead."""
    found = []
    for one in objects:
        x, y, _, length, width, _, yaw = one["box"].values()
        along = (length * abs(np.cos(yaw)) + width * abs(np.sin(yaw))) / 2
        across = (length * abs(np.sin(yaw)) + width * abs(np.cos(yaw))) / 2
        if 0 < x <= LANE_AHEAD and abs(y) - across <= LANE_HALF:
            found.append((max(x - along, 0.0), one["class"]))
    return [f"{name} in {distance:.1f} m" for distance, name in sorted(found)]


@hookimpl
def after_answer(settings: LidarSettings, event: AnswerEvent) -> None:
    """NOTIFICATION: keep a line of every answer: when, by which model, and how long it took."""
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": event.target,
        "scans": event.count,
        "milliseconds": round(1000 * event.seconds, 1),
    }
    settings.serve.folder.mkdir(parents=True, exist_ok=True)
    with (settings.serve.folder / AUDIT).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
