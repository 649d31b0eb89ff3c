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

Answers = Sequence[Mapping[str, Any]]

REINSPECT_WITHIN = 0.15
"""A part whose score is so near the threshold is looked at by a person."""

DUST = 3
"""Specks of dust on a training picture, at most."""

AUDIT = Path(__file__).with_name("audit.jsonl")
"""Who did what when: one line a stage."""


@hookimpl
def augment(sample: Sample) -> Sample:
    """CHAIN: after the preset, put dust on training pictures, because this line has dust.

    A speck is one grey pixel or two: it must not be taken for a defect.
    """
    image = sample.inputs["image"].copy()
    for _ in range(np.random.randint(DUST + 1)):
        row, column = np.random.randint(image.shape[0]), np.random.randint(image.shape[1] - 1)
        image[row, column : column + np.random.randint(1, 3)] = np.random.randint(60, 200)
    return replace(sample, inputs={"image": image})


@hookimpl(wrapper=True)
def encode_answer(thresholds: Thresholds) -> Generator[None, Answers, Answers]:
    """WRAPPER: take the solution's answers and add which lane the part goes to."""
    answers = yield
    return [{**answer, "lane": _lane(answer, thresholds["defect"])} for answer in answers]


def _lane(answer: Mapping[str, Any], threshold: float) -> str:
    if abs(answer["score"] - threshold) <= REINSPECT_WITHIN * threshold:
        return "reinspect"
    return "scrap" if answer["decision"] == "reject" else "pass"


@hookimpl
def after_stage(event: StageEvent) -> None:
    """NOTIFICATION: keep a line of every stage for the auditors."""
    line = {"stage": event.stage, "seconds": round(event.seconds, 1), "run": event.folder.name}
    with AUDIT.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
