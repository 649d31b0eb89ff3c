"""What needs no network: logistic regression on how bright it is how far from the middle.

B findings, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from pegboard.records import Array, Baseline, Predictor, Sample
from pegboard_medical.classification.settings import ClassificationSettings

RADII = (3.0, 6.0, 9.0, 12.0, 15.0)
"""Outer radii in mm of the shells around the middle."""

LEVELS: Mapping[str, tuple[float, ...]] = {
    "ct": (-700.0, -400.0, -100.0, 50.0, 200.0),
    "mr": (-1.0, 0.0, 0.5, 1.0, 2.0),
}
"""Between these a shell's histogram is counted: Hounsfield units, or deviations of an MR."""


class Split(Protocol):
    """A map-style dataset of samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def build(settings: ClassificationSettings) -> list[Baseline]:
    """Logistic regression on histograms."""
    count = len(RADII) * (len(LEVELS["ct"]) + 1)
    return [
        Baseline(
            name="histograms",
            fit=partial(fit, settings),
            description=f"scikit-learn's logistic regression on {count} numbers: mean brightness, "
            f"and shares above {len(LEVELS['ct'])} levels, of {len(RADII)} shells around the "
            "middle; C is 0.1.",
        )
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class HistogramPredictor:
    """The regression in the place of the deployable."""

    settings: ClassificationSettings
    """How findings lie."""
    machine: Any
    """scikit-learn's pipeline."""
    places: Array
    """Class index of each of its columns; a class may be missing from what it was fitted to."""

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Judge boxes (B, d, h, w) or (B, h, w)."""
        image = inputs["image"]
        known = self.machine.predict_proba(features(self.settings, image))
        probabilities = np.zeros((len(image), len(self.settings.data.classes)), dtype=np.float32)
        probabilities[:, self.places] = known
        return {"score": 1 - probabilities[:, 0], "probabilities": probabilities}


def features(settings: ClassificationSettings, image: Array) -> Array:
    """Return mean brightness and histogram of every shell: (B, d, h, w) or (B, h, w) -> (B, F)."""
    data = settings.data
    shape = image.shape[1:]
    steps = [step or 1.0 for step in data.spacing[-len(shape) :]]
    places = [
        (np.arange(count) - (count - 1) / 2) * step
        for count, step in zip(shape, steps, strict=True)
    ]
    grid = np.meshgrid(*places, indexing="ij")
    distance = np.sqrt(sum(place**2 for place in grid)).ravel()
    low, high = data.window if data.modality == "ct" else (-4.0, 4.0)
    voxels = image.reshape(len(image), -1).clip(low, high)
    columns = []
    for inner, outer in zip((0.0, *RADII[:-1]), RADII, strict=True):
        shell = voxels[:, (distance >= inner) & (distance < outer)]
        if shell.shape[1]:  # A box may be smaller than the largest shells.
            columns.append(shell.mean(axis=1))
            columns += [(shell > level).mean(axis=1) for level in LEVELS[data.modality]]
    return np.stack(columns, axis=1)


def fit(settings: ClassificationSettings, train: Split, validation: Split) -> Predictor:
    """Fit the regression to the train split."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    samples = [train[index] for index in range(len(train))]
    label = np.array([sample.targets["label"] for sample in samples])
    image = np.stack([sample.inputs["image"] for sample in samples])
    if len(np.unique(label)) < 2:
        return HistogramPredictor(settings=settings, machine=_One(), places=label[:1])
    machine = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    machine.fit(features(settings, image), label)
    return HistogramPredictor(settings=settings, machine=machine, places=machine.classes_)


class _One:
    """What can be learnt where all findings are alike."""

    def predict_proba(self, columns: Array) -> Array:
        return np.ones((len(columns), 1))
