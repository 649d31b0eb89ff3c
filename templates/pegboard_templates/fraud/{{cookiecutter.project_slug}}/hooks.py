"""What is particular to this project. Delete what you do not need.

A function here comes before the solution's own of the same name. `pegboard doctor` shows who is
called in which order, `pegboard describe` which hooks there are.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pegboard import hookimpl

if TYPE_CHECKING:
    from pegboard.records import Rows, StageEvent, Thresholds
    from pegboard_fraud.settings import FraudSettings

Answers = Sequence[Mapping[str, Any]]

SENIOR_ABOVE = {{ cookiecutter.senior_above | float }}
"""Expected loss from which a senior reviews, in units of the currency."""

AUDIT = Path(__file__).with_name("audit.jsonl")
"""Who did what when: one line a stage."""


@hookimpl
def choose_thresholds(settings: FraudSettings, rows: Rows) -> Thresholds | None:
    """OVERRIDE: review what is worth its cost, but no more than the team can do.

    The rows are the validation days, scored by the model.
    """
    if settings.model.threshold != "cost":
        return None  # None leaves the answer to the solution.
    capacity = settings.model.alerts_per_day * len(np.unique(rows["day"]))
    losses = np.sort(rows["expected_loss"])[::-1]
    first_left_out = losses[capacity : capacity + 1].max(initial=0.0)
    return {"review": max(settings.model.review_cost, float(np.nextafter(first_left_out, np.inf)))}


@hookimpl(wrapper=True)
def encode_answer() -> Generator[None, Answers, Answers]:
    """WRAPPER: take the solution's answers and add who reviews them."""
    answers = yield
    return [{**answer, "queue": _queue(answer)} for answer in answers]


def _queue(answer: Mapping[str, Any]) -> str | None:
    if answer["decision"] != "review":
        return None
    return "senior" if answer["expected_loss"] >= SENIOR_ABOVE else "standard"


@hookimpl
def after_stage(event: StageEvent) -> None:
    """NOTIFICATION: keep a line of every stage for the auditors."""
    line = {"stage": event.stage, "seconds": round(event.seconds, 1), "run": event.folder.name}
    with AUDIT.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
