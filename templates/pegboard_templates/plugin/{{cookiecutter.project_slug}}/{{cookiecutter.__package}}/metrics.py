"""What is measured, where the line is drawn, and what has to be beaten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pegboard.records import Array, Baseline, Metric, Predictor, Rows, Thresholds

from {{ cookiecutter.__package }}.data import Vibrations
from {{ cookiecutter.__package }}.settings import WearSettings


def build() -> list[Metric]:
    """Return the metrics, the headline first."""
    return [
        Metric(
            name="roc_auc",
            compute=lambda rows, thresholds: roc_auc(rows),
            direction="higher",
            headline=True,
            description="Chance that a worn bearing scores above a sound one.",
        ),
        Metric(
            name="recall",
            compute=recall,
            direction="higher",
            unit="share",
            description="Share of worn bearings that are reported at the chosen threshold.",
        ),
    ]


def roc_auc(rows: Rows) -> float:
    """Count the pairs of worn and sound that are in the right order (Mann and Whitney, 1947)."""
    score, worn = rows["probability"], rows["worn"] > 0
    pairs = int(worn.sum()) * int((~worn).sum())
    if not pairs:
        return float("nan")
    sound = np.sort(score[~worn])
    below = np.searchsorted(sound, score[worn], side="left")
    not_above = np.searchsorted(sound, score[worn], side="right")
    return float((below + not_above).sum() / 2 / pairs)


def recall(rows: Rows, thresholds: Thresholds) -> float:
    """Return the share of worn bearings that are reported."""
    worn = rows["worn"] > 0
    reported = rows["probability"][worn] >= thresholds["report"]
    return float(reported.mean()) if worn.any() else float("nan")


def choose_thresholds(settings: WearSettings, rows: Rows) -> dict[str, float]:
    """Report above what only so many sound bearings of the validation split exceed."""
    sound = rows["probability"][rows["worn"] == 0]
    if not len(sound):
        return {"report": 0.5}
    return {"report": float(np.quantile(sound, 1 - settings.model.false_alarms))}


def baselines() -> list[Baseline]:
    """Return what vibration engineers use without learning."""
    return [Baseline(name="kurtosis", fit=fit_kurtosis, description="How spiky the signal is.")]


def fit_kurtosis(train: Any, validation: Any) -> Predictor:
    """Return a predictor that ranks by kurtosis; the train split gives it its scale."""
    scale = float(np.median(kurtosis(_signals(train))))

    def predict(inputs: Mapping[str, Array]) -> dict[str, Array]:
        value = kurtosis(inputs["signal"])
        return {"probability": (value / (value + scale)).astype(np.float32)}

    return predict


def _signals(data: Vibrations) -> Array:
    return data.signal


def kurtosis(signal: Array) -> Array:
    """Return the fourth standardised moment (N,) of recordings (N, T)."""
    centred = signal - signal.mean(axis=1, keepdims=True)
    variance = (centred**2).mean(axis=1)
    moment: Array = (centred**4).mean(axis=1) / np.maximum(variance, 1e-12) ** 2
    return moment
