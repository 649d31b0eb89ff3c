"""What is particular to this project. Delete what you do not need.

A function here comes before the solution's own of the same name. `pegboard doctor` shows who is
called in which order, `pegboard describe` which hooks there are.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pegboard import hookimpl

if TYPE_CHECKING:
    from pegboard.records import Sample, StageEvent, Thresholds
    from pegboard_medical.classification.settings import ClassificationSettings

Answers = Sequence[Mapping[str, Any]]

UNSURE_WITHIN = 0.15
"""A finding whose score is so near the threshold is read twice."""

LOW_DOSE_HU = 60.0
"""Deviation of a low-dose scan's noise in Hounsfield units, at most."""

AUDIT = Path(__file__).with_name("audit.jsonl")
"""Who did what when: one line a stage."""


@hookimpl
def augment(settings: ClassificationSettings, sample: Sample) -> Sample:
    """CHAIN: after a finding was moved, give every second one of a CT the grain of a low dose."""
    if settings.data.modality != "ct" or np.random.random() < 0.5:
        return sample
    image = sample.inputs["image"]
    drawn = np.random.standard_normal(image.shape)
    # A scanner's kernel blurs its noise: neighbours have some in common.
    across = drawn + np.roll(drawn, 1, axis=-1)
    grain = (across + np.roll(across, 1, axis=-2)) / 2
    noise = (np.random.uniform(0, LOW_DOSE_HU) * grain).astype(np.float32)
    return replace(sample, inputs={**sample.inputs, "image": image + noise})


@hookimpl(wrapper=True)
def encode_answer(thresholds: Thresholds) -> Generator[None, Answers, Answers]:
    """WRAPPER: take the solution's answers and add who reads the finding."""
    answers = yield
    return [{**answer, "reading": _reading(answer, thresholds["positive"])} for answer in answers]


def _reading(answer: Mapping[str, Any], threshold: float) -> str:
    if abs(answer["score"] - threshold) <= UNSURE_WITHIN * threshold:
        return "two readers"
    return "first" if answer["score"] > threshold else "routine"


@hookimpl
def after_stage(event: StageEvent) -> None:
    """NOTIFICATION: keep a line of every stage for the auditors; nothing in it is a patient's."""
    line = {"stage": event.stage, "seconds": round(event.seconds, 1), "run": event.folder.name}
    with AUDIT.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
