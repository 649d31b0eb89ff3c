"""Metrics against hand-computed cases and scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from pegboard.records import Batch
from pegboard_medical.classification import metrics
from pegboard_medical.classification.settings import ClassificationSettings


def settings(**model: Any) -> ClassificationSettings:
    return ClassificationSettings.model_validate({"model": model})


def rows(score: Any, positive: Any) -> dict[str, Any]:
    positive = np.asarray(positive)
    return {
        "score": np.asarray(score, dtype=np.float32),
        "positive": positive,
        "label": positive,
        "predicted": (np.asarray(score) >= 0.5).astype(int),
        "patient": np.arange(len(positive)).astype(str),
    }


def drawn(count: int = 2000) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    positive = generator.integers(0, 2, count)
    # Rounded, so that there are ties.
    return rows(np.round(generator.random(count) * 0.7 + positive * 0.3, 2), positive)


# Harmless: 0.1 0.3 0.5, positive: 0.2 0.4 0.9.
SIX = rows([0.1, 0.3, 0.5, 0.2, 0.4, 0.9], [0, 0, 0, 1, 1, 1])


def test_ranking_agrees_with_scikit_learn() -> None:
    table = drawn()
    truth, score = table["positive"], table["score"]
    assert metrics.roc_auc(table) == pytest.approx(roc_auc_score(truth, score))
    assert metrics.average_precision(table) == pytest.approx(average_precision_score(truth, score))
    assert metrics.brier(table) == pytest.approx(brier_score_loss(truth, score))


def test_six_findings_by_hand() -> None:
    assert metrics.roc_auc(SIX) == pytest.approx(6 / 9)
    assert metrics.found_and_spared(SIX, {"positive": 0.35}) == (2 / 3, 2 / 3)
    # One missed and one alarm in vain of six.
    assert metrics.cost(settings(), SIX, {"positive": 0.35}) == pytest.approx(100 * (5 + 1) / 6)


def test_a_threshold_finds_the_share_that_is_asked_for_and_no_more_alarms_than_that_needs() -> None:
    every = metrics.choose_thresholds(settings(sensitivity=1.0), SIX)
    assert metrics.found_and_spared(SIX, every) == (1.0, 1 / 3)
    most = metrics.choose_thresholds(settings(sensitivity=0.6), SIX)
    assert metrics.found_and_spared(SIX, most) == (2 / 3, 2 / 3)


def test_a_threshold_can_be_the_cheapest() -> None:
    dear = settings(threshold="cost", miss_cost=100.0)
    cheap = settings(threshold="cost", miss_cost=0.01)
    assert metrics.found_and_spared(SIX, metrics.choose_thresholds(dear, SIX))[0] == 1.0
    assert metrics.found_and_spared(SIX, metrics.choose_thresholds(cheap, SIX))[1] == 1.0
    chosen = metrics.choose_thresholds(dear, drawn())
    prices = [
        metrics.cost(dear, drawn(), {"positive": threshold}) for threshold in np.arange(0, 1, 0.01)
    ]
    assert metrics.cost(dear, drawn(), chosen) <= min(prices) + 1e-9


def test_calibration_error_is_the_mean_distance_by_bins() -> None:
    # Four at 0.25, of which one is positive, and two at 0.95, of which one is.
    table = rows([0.25] * 4 + [0.95] * 2, [1, 0, 0, 0, 1, 0])
    assert metrics.calibration_error(table) == pytest.approx((0 * 4 + 0.45 * 2) / 6)
    score, share, count = metrics.reliability(table)
    assert score.tolist() == pytest.approx([0.25, 0.95])
    assert share.tolist() == [0.25, 0.5]
    assert count.tolist() == [4, 2]
    assert metrics.calibration_error(rows([1.0], [1])) == 0


def test_what_is_not_defined_is_nan_and_leaves_the_threshold_in_the_middle() -> None:
    harmless = rows([0.1, 0.2], [0, 0])
    assert np.isnan(metrics.roc_auc(harmless))
    assert np.isnan(metrics.average_precision(harmless))
    assert metrics.choose_thresholds(settings(), harmless) == {"positive": 0.5}
    for metric in metrics.build(settings()):
        metric.compute(rows([], []), {"positive": 0.5})


def test_the_headline_is_the_roc_area_and_intervals_draw_patients() -> None:
    built = metrics.build(settings())
    assert [metric.name for metric in built if metric.headline] == ["roc_auc"]
    assert {metric.group for metric in built} == {"patient"}


def test_a_row_says_what_is_true_and_shows_three_planes() -> None:
    asked = ClassificationSettings.model_validate({"data": {"classes": ["none", "cyst", "tumour"]}})
    image = torch.full((3, 16, 32, 32), -1000.0)
    image[:, :, :16] = 400.0
    batch = Batch(
        inputs={"image": image},
        targets={"label": torch.tensor([0, 1, 2]), "patient": ["a", "a", ""]},
        keys=["k0", "k1", "k2"],
    )
    probabilities = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.5, 0.3, 0.2]], dtype=np.float32)
    outputs = {"probabilities": probabilities, "score": 1 - probabilities[:, 0]}
    table = metrics.tabulate(asked, batch, outputs)
    assert table["positive"].tolist() == [0, 1, 1]
    assert table["predicted"].tolist() == [0, 1, 0]
    assert table["patient"].tolist() == ["a", "a", "k2"]
    assert metrics.balanced_accuracy(table) == pytest.approx(2 / 3)
    axial, coronal, sagittal = table["picture"][0]
    assert axial.shape == (metrics.SIDE, metrics.SIDE)
    assert axial[10].max() == 255
    assert axial[-10].max() == 0
    assert (coronal == coronal[0]).all()
    assert sagittal[:, 10].max() == 255
