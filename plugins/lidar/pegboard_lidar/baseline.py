"""What the trade does without learning a network: clusters above the ground, told by their size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from pegboard.records import Array, Baseline, Predictor, Sample
from pegboard_lidar.clustering import Sizes, find_objects, learn_sizes
from pegboard_lidar.settings import LidarSettings

MOST_FRAMES = 200
"""Training frames that sizes are taken from, evenly."""


class Split(Protocol):
    """A map-style dataset of frames."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def build(settings: LidarSettings) -> list[Baseline]:
    """Clusters above the ground."""
    return [
        Baseline(
            name="clustering",
            fit=partial(fit_clustering, settings=settings),
            description="Open3D's DBSCAN of what stands on the ground, rectangles fitted to the "
            "sides that are seen, and classes by the sizes of the training labels (2nd to 98th "
            "percentile); nothing else is learnt.",
        )
    ]


def fit_clustering(train: Split, validation: Split, *, settings: LidarSettings) -> Predictor:
    """Learn how large objects are."""
    sizes = learn_sizes(_some(train), len(settings.data.classes))
    return ClusteringPredictor(settings=settings, sizes=sizes)


def _some(split: Split) -> Iterator[Sample]:
    """Yield frames, evenly taken: sizes need not all of them."""
    count = min(len(split), MOST_FRAMES)
    for index in np.unique(np.linspace(0, len(split) - 1, count).round()).astype(int).tolist():
        yield split[index]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClusteringPredictor:
    """Clusters in the place of the deployable: one scan at a time, as the model."""

    settings: LidarSettings
    """Say range, steps and the most objects."""
    sizes: Sizes
    """Of each class."""

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Find the objects among `points` (N, 4), NaN among them.

        Returns:
            `found` float32 (`model.objects`, 9): box, score and label; score -1 where there is
            none. Of a batch (B, N, 4) each is found for itself: (B, `model.objects`, 9).
        """
        points = inputs["points"]
        if points.ndim == 3:
            return {"found": np.stack([self._found(scan) for scan in points])}
        return {"found": self._found(points)}

    def _found(self, points: Array) -> Array:
        objects = find_objects(points, self.settings, self.sizes)
        found = np.full((self.settings.model.objects, 9), -1.0, dtype=np.float32)
        found[: len(objects)] = objects
        return found
