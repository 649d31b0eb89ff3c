"""What the trade does without learning: a picture is defective where it leaves its surroundings.

B pictures, H height, W width, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Protocol

import numpy as np
from scipy.ndimage import uniform_filter

from pegboard.records import Array, Baseline, Predictor, Sample
from pegboard_defect.settings import DefectSettings

WIDTHS = (1 / 32, 1 / 16, 1 / 8, 1 / 4)
"""Sides of the square that the background is averaged over, as shares of the picture's."""
PERCENTILES = (95.0, 99.0, 99.9, 100.0)
"""Of the deviations in a picture; the largest alone may be a speck of dust."""
MOST_PICTURES = 400
"""That are measured with; evenly taken from the split."""
TOLERATED = 0.95
"""Share of good pictures that score below a half."""


class Split(Protocol):
    """A map-style dataset of samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def build(settings: DefectSettings) -> list[Baseline]:
    """Thresholding against a blurred background."""
    return [
        Baseline(
            name="threshold",
            fit=partial(fit_threshold, task=settings.model.task),
            description="Deviation from a blurred background over its spread, in the picture "
            f"itself or in good ones; spread, width of the blur and percentile are the best of "
            f"2 x {len(WIDTHS)} x {len(PERCENTILES)} by ROC AUC on at most {MOST_PICTURES} "
            "training pictures.",
        )
    ]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is tuned."""

    width: float = WIDTHS[-1]
    """Side of the background's square, as a share of the picture's."""
    percentile: float = PERCENTILES[-1]
    """Which of a picture's deviations is its score."""
    own: bool = True
    """Whether deviations count in spreads of the picture itself, not in those of good ones."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ThresholdPredictor:
    """Deviations in the place of the deployable."""

    choice: Choice
    """How they are measured."""
    spread: float
    """Root mean square of the deviations in good pictures."""
    tolerance: float
    """Deviation, in spreads, that scores a half."""
    shares: Array | None = None
    """Share of each defect among the defective, (K - 1,); None where no class is asked for."""

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Score pictures uint8 (B, H, W, C)."""
        off = deviations(inputs["image"], self.choice.width, own=self.choice.own) / self.spread
        heat = off / (off + self.tolerance)
        score = np.percentile(heat, self.choice.percentile, axis=(1, 2)).astype(np.float32)
        outputs = {"score": score, "map": heat.astype(np.float32)}
        if self.shares is not None:
            outputs["probabilities"] = spread_over(score, self.shares)
        return outputs


def spread_over(score: Array, shares: Array) -> Array:
    """Return the probabilities (B, K) of good and of the defects by their shares (K - 1,)."""
    columns = np.concatenate([1 - score[:, None], score[:, None] * shares[None]], axis=1)
    return np.asarray(columns, dtype=np.float32)


def deviations(image: Array, width: float, *, own: bool) -> Array:
    """Return how far each pixel is from its background.

    Args:
        image: Pictures uint8 (B, H, W, C); colours are averaged.
        width: Side of the square that the background is the mean of, as a share of the picture's.
        own: In units of the picture's own root mean square; else in grey levels.

    Returns:
        float32 (B, H, W).
    """
    grey = image.mean(axis=3, dtype=np.float32)
    side = max(3, round(min(grey.shape[1:]) * width))
    background = uniform_filter(grey, size=(0, side, side), mode="nearest")
    off: Array = np.abs(grey - background)
    # A flat picture has no spread; a grey level is the least that a camera tells apart.
    spreads = np.sqrt((off**2).mean(axis=(1, 2), keepdims=True)).clip(1) if own else 1
    return off / spreads


def fit_threshold(train: Split, validation: Split, *, task: str) -> Predictor:
    """Choose width and percentile on training pictures, and measure the spread on good ones.

    Where those are all good, as they are for `anomaly`, the validation pictures choose.
    """
    image, defective, label = sampled(train)
    good = image[~defective] if not defective.all() else image
    judged = (image, defective) if defective.any() else sampled(validation)[:2]
    choice = choose(*judged)
    off = deviations(good, choice.width, own=choice.own)
    spread = max(float(np.sqrt((off**2).mean())), 1e-3)
    scores = np.percentile(off, choice.percentile, axis=(1, 2)) / spread
    return ThresholdPredictor(
        choice=choice,
        spread=spread,
        tolerance=max(float(np.quantile(scores, TOLERATED)), 1e-3),
        shares=None if task == "anomaly" else shares_of(label),
    )


def sampled(split: Split) -> tuple[Array, Array, Array]:
    """Return pictures (B, H, W, C), whether each is defective (B,), and labels (B, K)."""
    chosen = np.unique(np.linspace(0, len(split) - 1, min(len(split), MOST_PICTURES)).round())
    samples: Sequence[Sample] = [split[int(index)] for index in chosen]
    image = np.stack([sample.inputs["image"] for sample in samples])
    targets: dict[str, Any] = {
        name: np.stack([sample.targets[name] for sample in samples])
        for name in ("defective", "label")
    }
    return image, targets["defective"] >= 0.5, targets["label"]


def choose(image: Array, defective: Array) -> Choice:
    """Return what tells defective (B,) pictures best from good ones; the default where none are."""
    best, chosen = -1.0, Choice()
    for width, own in product(WIDTHS, (True, False)):
        off = deviations(image, width, own=own)
        scores = np.percentile(off, PERCENTILES, axis=(1, 2))
        for percentile, score in zip(PERCENTILES, scores, strict=True):
            area = roc_auc(score, defective)
            if area > best:
                best, chosen = area, Choice(width=width, percentile=percentile, own=own)
    return chosen


def roc_auc(score: Array, defective: Array) -> float:
    """Return the chance that a defective picture scores higher than a good one; ties count half.

    NaN where there are none of a kind.
    """
    from scipy.stats import rankdata

    high, low = int(defective.sum()), int((~defective).sum())
    if not high or not low:
        return float("nan")
    ranks = rankdata(score)[defective].sum()
    return float((ranks - high * (high + 1) / 2) / (high * low))


def shares_of(label: Array) -> Array:
    """Return the share of each defect among the defective, (K - 1,), of labels (B, K)."""
    # One more of each: a class may be missing from what was sampled.
    counts = label[:, 1:].sum(axis=0) + 1
    return np.asarray(counts / counts.sum(), dtype=np.float32)
