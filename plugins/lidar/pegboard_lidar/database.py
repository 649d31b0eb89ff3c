"""The objects of the train split, cut out: what training pastes into other scans."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from pegboard.files import atomic_path, digest_of
from pegboard.progress import Progress
from pegboard.records import Array, Sample
from pegboard_lidar.boxes import points_in_boxes
from pegboard_lidar.settings import LidarData

FEWEST_POINTS = 5
"""An object with fewer is no example of its class."""

MOST_OBJECTS = 4_000
"""Of each class; more would not make the choice richer and fill the memory."""


@dataclass(frozen=True, kw_only=True)
class Objects:
    """Q objects with their points."""

    boxes: Array
    """float32 (Q, 7)."""
    labels: Array
    """int64 (Q,), places in `data.classes`."""
    points: Array
    """float32 (P, 4), those of one object after those of another."""
    starts: Array
    """int64 (Q + 1,), where each object's points begin and the last one's end."""

    def points_of(self, place: int) -> Array:
        """Return the points (n, 4) of one object."""
        return self.points[self.starts[place] : self.starts[place + 1]]


class Samples(Protocol):
    """A split."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def database_of(data: LidarData) -> Path:
    """Return where the objects of a data set lie; another choice of frames is another file."""
    # Not the path as such: a project that is moved keeps its objects.
    what = [data.path.name if data.path else data.scenes, data.tiny, data.classes, data.range]
    how = [data.test_share, data.validation_share, data.split_seed, data.picture_only, data.sweeps]
    return data.folder / f"objects-{digest_of([*what, *how])[:8]}.npz"


def is_made_of(path: Path, frames: str) -> bool:
    """Whether the objects there are of just these frames, see `write_database`."""
    if not path.exists():
        return False
    with np.load(path, allow_pickle=False) as file:
        return "frames" in file and str(file["frames"]) == frames


def write_database(path: Path, samples: Samples, progress: Progress, *, frames: str = "") -> None:
    """Cut the labelled objects out of frames and write them to an npz file.

    Args:
        path: The npz file.
        samples: The frames.
        progress: Is told how many are done.
        frames: A digest of which frames they are; kept beside the objects.
    """
    tracked = progress.track(range(len(samples)), "objects of the train split", len(samples))
    found = _collected(samples[index] for index in tracked)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            boxes=found.boxes,
            labels=found.labels,
            points=found.points,
            starts=found.starts,
            frames=np.array(frames),
        )
    read_database.cache_clear()


def _collected(samples: Iterable[Sample]) -> Objects:
    boxes, labels, points = [], [], [np.zeros((0, 4), dtype=np.float32)]
    counts: dict[int, int] = {}
    for sample in samples:
        cloud = sample.inputs["points"]
        inside = points_in_boxes(cloud, sample.targets["boxes"])
        for box, label, rows in zip(
            sample.targets["boxes"], sample.targets["labels"].tolist(), inside, strict=True
        ):
            if label < 0 or rows.sum() < FEWEST_POINTS or counts.get(label, 0) >= MOST_OBJECTS:
                continue
            counts[label] = counts.get(label, 0) + 1
            boxes.append(box)
            labels.append(label)
            points.append(cloud[rows])
    return Objects(
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 7),
        labels=np.array(labels, dtype=np.int64),
        points=np.concatenate(points),
        starts=np.cumsum([len(some) for some in points]),
    )


@lru_cache(maxsize=1)
def read_database(path: Path) -> Objects:
    """Read what `write_database` wrote; kept in memory."""
    with np.load(path, allow_pickle=False) as file:
        return Objects(**{name: file[name] for name in ("boxes", "labels", "points", "starts")})
