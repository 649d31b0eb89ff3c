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
    from pegboard_medical.settings import SegmentationSettings

Answers = Sequence[Mapping[str, Any]]

READ_FIRST_MM = 10.0
"""A lesion as large as a ball of this diameter is read first."""

MOST_ML = 50.0
"""More of one structure than this is looked at before anybody believes it."""

STREAKED = 0.1
"""Share of training patches of a CT with streaks of metal."""

STREAK_HU = 250.0
"""How far a streak is from what it hides, in Hounsfield units, at most."""

AUDIT = "answers.jsonl"
"""What was answered when, one line a request, in the folder that outlives the server."""


@hookimpl
def augment(settings: SegmentationSettings, sample: Sample) -> Sample:
    """CHAIN: after a patch is cut, lay streaks of metal over some of a CT, as implants do.

    They run from one point in the slice, bright and dark, through a quarter of the slices.
    """
    if settings.data.modality != "ct" or np.random.random() >= STREAKED:
        return sample
    image = sample.inputs["image"]
    depth, height, width = image.shape
    rows = np.arange(height)[:, None] - np.random.randint(height)
    columns = np.arange(width) - np.random.randint(width)
    angle = np.random.randint(3, 9) * np.arctan2(rows, columns)
    rays = np.cos(angle + np.random.uniform(0, 2 * np.pi)) ** 9  # Thin ones.
    slices = np.abs(np.arange(depth) - np.random.randint(depth)) <= depth / 8
    streaks = np.float32(STREAK_HU) * slices[:, None, None] * rays.astype(np.float32)
    return replace(sample, inputs={**sample.inputs, "image": image + streaks})


@hookimpl(wrapper=True)
def encode_answer(
    settings: SegmentationSettings, outputs: Mapping[str, Array]
) -> Generator[None, Answers, Answers]:
    """WRAPPER: take the solution's answers and add why a radiologist should look at the case."""
    answers = yield
    return [
        {**answer, "look_at": _reasons(settings, outputs, index)}
        for index, answer in enumerate(answers)
    ]


def _reasons(settings: SegmentationSettings, outputs: Mapping[str, Array], index: int) -> list[str]:
    from pegboard_medical.masks import mask_of

    mask = mask_of(outputs["probabilities"][index])
    reasons = []
    for label, name in enumerate(settings.data.classes, start=1):
        millilitres = float(outputs["volume_ml"][index, label - 1])
        if millilitres > MOST_ML:
            reasons.append(f"{name}: {millilitres:.0f} ml are hardly possible")
        if settings.model.lesions and millilitres > 0:
            diameter = _largest_mm(mask == label, millilitres)
            if diameter >= READ_FIRST_MM:
                reasons.append(f"{name}: one is as large as a ball of {diameter:.0f} mm")
    return reasons


def _largest_mm(mask: Array, millilitres: float) -> float:
    """Return the diameter of a ball that holds what the largest connected region does."""
    from pegboard_medical.masks import components

    sizes = np.bincount(components(mask)[0].ravel())[1:]
    largest = 1000 * millilitres * sizes.max() / sizes.sum()
    return float(np.cbrt(6 / np.pi * largest))


@hookimpl
def after_answer(settings: SegmentationSettings, event: AnswerEvent) -> None:
    """NOTIFICATION: keep a line of every answer for the auditors; nothing in it is a patient's."""
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "model": event.target,
        "cases": event.count,
        "seconds": round(event.seconds, 2),
    }
    settings.serve.folder.mkdir(parents=True, exist_ok=True)
    with (settings.serve.folder / AUDIT).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
