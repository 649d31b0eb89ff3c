"""Logistic regression on brightness by distance from the middle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pegboard_medical.classification import baseline, data
from pegboard_medical.classification.settings import ClassificationSettings

from .conftest import ball


def settings(**tables: Any) -> ClassificationSettings:
    return ClassificationSettings.model_validate(tables)


def test_it_tells_small_from_large(written: ClassificationSettings) -> None:
    train, test = data.load(written, "train"), data.load(written, "test")
    predictor = baseline.fit(written, train, test)
    samples = [test[index] for index in range(len(test))]
    outputs = predictor({"image": np.stack([sample.inputs["image"] for sample in samples])})
    positive = np.array([sample.targets["label"] for sample in samples]) == 1
    assert outputs["probabilities"].shape == (len(samples), 2)
    assert np.allclose(outputs["probabilities"].sum(axis=1), 1)
    assert outputs["score"][positive].min() > outputs["score"][~positive].max()


@pytest.mark.parametrize("dimensions", [2, 3])
def test_features_do_not_change_when_a_finding_is_mirrored(dimensions: int) -> None:
    asked = settings(model={"dimensions": dimensions})
    shape = (3, 16, 32, 32)[:1] + (16, 32, 32)[3 - dimensions :]
    image = np.random.default_rng(0).normal(-300, 400, shape).astype(np.float32)
    seen = baseline.features(asked, image)
    assert seen.shape == (3, 30)
    assert np.allclose(seen, baseline.features(asked, np.flip(image, -1)), atol=1e-3)


def test_shells_are_measured_in_millimetres() -> None:
    inside = ball((16, 32, 32), 6.0, (2.0, 1.0, 1.0))
    image = np.where(inside, 30.0, -850.0).astype(np.float32)[None]
    mean = baseline.features(settings(), image)[0, ::6]
    assert mean[:2] == pytest.approx([30, 30], abs=60)
    assert mean[2:] == pytest.approx([-850, -850, -850], abs=60)


def test_where_all_are_alike_it_says_so(written: ClassificationSettings) -> None:
    train = data.load(written, "train")
    train.cases = [case for case in train.cases if case.label == "malignant"]
    outputs = baseline.fit(written, train, train)({"image": train[0].inputs["image"][None]})
    assert outputs["probabilities"].tolist() == [[0.0, 1.0]]
    assert outputs["score"].tolist() == [1.0]
