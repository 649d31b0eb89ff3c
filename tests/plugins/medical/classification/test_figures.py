"""Figures of the report."""

from __future__ import annotations

from typing import Any

import numpy as np

from pegboard.records import Evaluation
from pegboard_medical.classification import data, figures, metrics
from pegboard_medical.classification.settings import ClassificationSettings


def evaluation(classes: int = 2, **columns: Any) -> Evaluation:
    generator = np.random.default_rng(0)
    label = np.arange(40) % classes
    rows = {
        "score": (0.6 * (label > 0) + 0.4 * generator.random(40)).astype(np.float32),
        "positive": (label > 0).astype(int),
        "label": label,
        "predicted": label,
        "patient": np.arange(40).astype(str),
        "key": np.array([f"key{index}" for index in range(40)]),
        "picture": generator.integers(0, 255, (40, 3, 96, 96)).astype(np.uint8),
        **columns,
    }
    return Evaluation(
        name="model", split="test", rows=rows, thresholds={"positive": 0.5}, metrics=[]
    )


def test_a_report_shows_curves_calibration_and_mistakes() -> None:
    drawn = figures.draw(ClassificationSettings(), evaluation())
    assert [figure.name for figure in drawn] == [
        "operating_curve",
        "reliability",
        "worst_mistakes",
    ]
    assert all(str(figure.content).strip().startswith("<") for figure in drawn)


def test_with_more_classes_it_shows_what_is_taken_for_what() -> None:
    settings = ClassificationSettings.model_validate({"data": {"classes": ["a$", "b", "c"]}})
    drawn = figures.draw(settings, evaluation(3))
    assert "confusion" in [figure.name for figure in drawn]


def test_the_worst_mistakes_come_first_and_right_decisions_not_at_all() -> None:
    score = np.full(40, 0.9, dtype=np.float32)
    score[::2] = 0.1
    score[[1, 3]] = 0.3, 0.2
    score[4] = 0.7
    figure = figures.draw(ClassificationSettings(), evaluation(score=score))[-1]
    content = str(figure.content)
    assert [content.index(f"key{place}<") for place in (3, 1, 4)] == sorted(
        content.index(f"key{place}<") for place in (3, 1, 4)
    )
    assert content.count("<img") == 3
    assert content.count("missed</b>") == 2


def test_where_nothing_is_wrong_it_says_so() -> None:
    label = np.arange(40) % 2
    figure = figures.draw(ClassificationSettings(), evaluation(score=label.astype(np.float32)))[-1]
    assert "decided right" in figure.caption
    assert "<img" not in str(figure.content)


def test_a_sample_is_drawn_as_three_planes(written: ClassificationSettings) -> None:
    picture = figures.sample_picture(written, data.load(written, "train")[0])
    assert picture.dtype == np.uint8
    assert picture.shape[0] == metrics.SIDE
    assert picture.shape[1] > 3 * metrics.SIDE - 1
    assert picture.shape[2] == 3
