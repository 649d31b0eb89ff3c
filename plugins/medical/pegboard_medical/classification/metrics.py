"""What a classification is worth: ranking, what is found and alarmed at, and honest probabilities.

Every metric is a pure function of the rows of an evaluation, one row a finding, see `tabulate`. It
is NaN where it is not defined. A finding is positive where it is not of the first, the harmless
class; it is acted on where its score, the probability of that, reaches the threshold `positive`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import numpy as np

from pegboard import ranking
from pegboard.records import Array, Batch, Metric, Rows, Thresholds
from pegboard_medical import planes
from pegboard_medical.classification.findings import fitted
from pegboard_medical.classification.settings import ClassificationSettings
from pegboard_medical.volumes import resize, resized_shape

SIDE = 96
"""Height and width of each picture that a row keeps."""

BINS = 10
"""Equally wide ones that calibration is measured in."""

UNDECIDED = 0.5
"""The threshold where nothing can be learnt from the rows."""


# --- Rows -----------------------------------------------------------------------------------------


def tabulate(
    settings: ClassificationSettings, batch: Batch, outputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Keep what metrics and figures need of a batch of B findings.

    Returns:
        `score` (B,) float32; `positive` (B,) 0 or 1; `label` and `predicted` (B,), class indices;
        `patient` and `key` (B,) text; `picture` uint8 (B, P, 96, 96), the middle slices: axial,
        coronal and sagittal, of a model of 2 dimensions the axial one alone.
    """
    label = np.asarray(batch.targets["label"])
    keys = np.array(list(batch.keys), dtype=str)
    patient = np.array(list(batch.targets.get("patient", keys)), dtype=str)
    images = np.asarray(batch.inputs["image"])
    return {
        "score": np.asarray(outputs["score"], dtype=np.float32),
        "positive": (label > 0).astype(np.int64),
        "label": label,
        "predicted": np.asarray(outputs["probabilities"]).argmax(axis=1),
        "patient": np.where(patient == "", keys, patient),
        "key": keys,
        "picture": np.stack([pictures(settings, image) for image in images]),
    }


def pictures(settings: ClassificationSettings, image: Array) -> Array:
    """Return the middle slices of a finding (d, h, w) or (h, w) as uint8 (P, 96, 96).

    Head up, front to the left in the sagittal one; a millimetre is as long in every direction.
    """
    data = settings.data
    volume = image if image.ndim == 3 else image[None]
    ends = data.window if data.modality == "ct" else planes.ends_of(image)
    seen = planes.grey(volume, ends)
    steps = [step or 1.0 for step in data.spacing][-image.ndim :]
    pixel = max(count * step for count, step in zip(image.shape, steps, strict=True)) / SIDE
    steps = [pixel, *steps] if image.ndim == 2 else steps
    slices = []
    for axis in range(3 if image.ndim == 3 else 1):
        cut = np.take(seen, seen.shape[axis] // 2, axis=axis)[None]
        high, wide = (step for place, step in enumerate(steps) if place != axis)
        grid = resized_shape(cut.shape, (1.0, high, wide), (0.0, pixel, pixel))
        picture = fitted(resize(cut.astype(np.float32), grid), (1, SIDE, SIDE), 0.0)[0]
        # Depth grows to the head, the rows of a picture downwards.
        slices.append(picture if axis == 0 else picture[::-1])
    return np.stack(slices).round().clip(0, 255).astype(np.uint8)


# --- The list -------------------------------------------------------------------------------------


def build(settings: ClassificationSettings) -> list[Metric]:
    """Return the metrics, the headline first."""
    several = len(settings.data.classes) > 2
    return [
        _ranked(
            "roc_auc", roc_auc, "How often a positive finding scores above a harmless one.", True
        ),
        _ranked("average_precision", average_precision, "Mean precision over all recalls."),
        *([_balanced_accuracy()] if several else []),
        _metric(
            "sensitivity",
            lambda rows, thresholds: found_and_spared(rows, thresholds)[0],
            "Share of positive findings that is found at the threshold.",
            unit="share",
        ),
        _metric(
            "specificity",
            lambda rows, thresholds: found_and_spared(rows, thresholds)[1],
            "Share of harmless findings that is let be at the threshold.",
            unit="share",
        ),
        _metric(
            "cost",
            partial(cost, settings),
            "What the mistakes at the threshold cost on a hundred findings like these.",
            direction="lower",
        ),
        _ranked(
            "calibration_error",
            calibration_error,
            f"How far scores lie from what comes true, mean over {BINS} bins.",
            direction="lower",
        ),
        _ranked(
            "brier", brier, "Mean squared distance of scores from the truth.", direction="lower"
        ),
    ]


def _metric(
    name: str,
    compute: Callable[[Rows, Thresholds], float],
    description: str,
    *,
    direction: Literal["higher", "lower"] = "higher",
    headline: bool = False,
    unit: str = "",
) -> Metric:
    """A metric whose interval draws the findings of a patient together."""
    return Metric(
        name=name,
        compute=compute,
        direction=direction,
        headline=headline,
        unit=unit,
        group="patient",
        description=description,
    )


def _ranked(
    name: str,
    compute: Callable[[Rows], float],
    description: str,
    headline: bool = False,
    direction: Literal["higher", "lower"] = "higher",
) -> Metric:
    """A metric that needs no threshold."""
    return _metric(
        name,
        lambda rows, thresholds: compute(rows),
        description,
        direction=direction,
        headline=headline,
    )


def _balanced_accuracy() -> Metric:
    description = "Share of each class that is named right, mean over classes."
    return _ranked("balanced_accuracy", balanced_accuracy, description)


# --- Ranking --------------------------------------------------------------------------------------


def trade_off(rows: Rows) -> tuple[Array, Array, Array]:
    """Return every threshold that can be told apart, ascending, and what it finds and alarms at.

    Returns:
        Thresholds (T,), sensitivities (T,) from 1 to 0 and shares of false alarms (T,) from 1 to 0:
        the first threshold is reached by every finding, the last one by none. Shares are NaN
        without such findings.
    """
    thresholds, missed, alarmed = ranking.rates_at_thresholds(rows["score"], rows["positive"] == 1)
    return thresholds, 1 - missed, alarmed


def roc_auc(rows: Rows) -> float:
    """Area under the curve of sensitivity over false alarms; NaN where one kind is missing."""
    return ranking.roc_auc(rows["score"], rows["positive"] == 1)


def average_precision(rows: Rows) -> float:
    """Sum of precision times gain in recall over all thresholds, without interpolation."""
    return ranking.average_precision(rows["score"], rows["positive"] == 1)


# --- Decisions ------------------------------------------------------------------------------------


def acted_on(rows: Rows, thresholds: Thresholds) -> Array:
    """Return which rows (N,) reach the threshold."""
    reached: Array = rows["score"] >= np.float32(thresholds["positive"])
    return reached


def found_and_spared(rows: Rows, thresholds: Thresholds) -> tuple[float, float]:
    """Return sensitivity and specificity at the threshold."""
    reached, positive = acted_on(rows, thresholds), rows["positive"] == 1
    return _mean(reached[positive]), _mean(~reached[~positive])


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else np.nan


def balanced_accuracy(rows: Rows) -> float:
    """Share of a class that is named right, mean over the classes that occur."""
    right, label = rows["predicted"] == rows["label"], rows["label"]
    return _mean(np.array([right[label == one].mean() for one in np.unique(label)]))


def cost(settings: ClassificationSettings, rows: Rows, thresholds: Thresholds) -> float:
    """What misses and false alarms cost, on a hundred findings."""
    reached, positive = acted_on(rows, thresholds), rows["positive"] == 1
    misses = settings.model.miss_cost * (positive & ~reached)
    return 100 * _mean(misses + settings.model.alarm_cost * (~positive & reached))


# --- Probabilities --------------------------------------------------------------------------------


def reliability(rows: Rows) -> tuple[Array, Array, Array]:
    """Return of each bin that holds findings the mean score, the share of positives, the count."""
    place = np.minimum((rows["score"] * BINS).astype(int), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    scores = np.bincount(place, weights=rows["score"], minlength=BINS)
    positives = np.bincount(place, weights=rows["positive"], minlength=BINS)
    held = count > 0
    return scores[held] / count[held], positives[held] / count[held], count[held]


def calibration_error(rows: Rows) -> float:
    """Expected calibration error (Naeini et al., AAAI 2015) of the score."""
    score, share, count = reliability(rows)
    return float(np.sum(np.abs(score - share) * count) / count.sum()) if len(count) else np.nan


def brier(rows: Rows) -> float:
    """Mean squared distance of the score from 0 or 1 (Brier, 1950)."""
    return _mean((rows["score"].astype(np.float64) - rows["positive"]) ** 2)


# --- The threshold --------------------------------------------------------------------------------


def choose_thresholds(settings: ClassificationSettings, rows: Rows) -> dict[str, float]:
    """Choose `positive`, which a score has to reach; 0.5 where one kind of finding is missing."""
    positive = rows["positive"] == 1
    if not positive.any() or positive.all():
        return {"positive": UNDECIDED}
    if settings.model.threshold == "sensitivity":
        return {"positive": sensitive_threshold(rows, settings.model.sensitivity)}
    return {"positive": cheapest_threshold(settings, rows)}


def sensitive_threshold(rows: Rows, sensitivity: float) -> float:
    """The highest threshold that finds at least a share of the positive findings."""
    return ranking.limited_threshold(rows["score"], rows["positive"] == 1, 1 - sensitivity)


def cheapest_threshold(settings: ClassificationSettings, rows: Rows) -> float:
    """The threshold at which the mistakes on the rows cost least; of several the lowest."""
    positive = rows["positive"] == 1
    return ranking.cheapest_threshold(
        rows["score"],
        settings.model.miss_cost * positive,
        settings.model.alarm_cost * ~positive,
    )
