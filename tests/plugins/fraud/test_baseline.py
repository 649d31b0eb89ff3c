"""The baseline is honest: it learns, is tuned without the validation days, and scores alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from pegboard_fraud import baseline
from pegboard_fraud.data import FraudDataset
from pegboard_fraud.features import AMOUNT, FEATURE_NAMES
from pegboard_fraud.metrics import average_precision


def dataset(seed: int, count: int = 3000) -> FraudDataset:
    generator = np.random.default_rng(seed)
    features = generator.random((count, len(FEATURE_NAMES))).astype(np.float32)
    # Fraud is where two features together are large: no single one tells.
    label = (features[:, 1] + features[:, 2] > 1.7).astype(np.float32)
    targets: dict[str, Any] = {"label": label, "day": np.sort(generator.integers(0, 10, count))}
    return FraudDataset(features, targets)


def test_it_finds_what_no_single_feature_tells() -> None:
    predictor = baseline.fit_xgboost(dataset(0), dataset(1))
    test = dataset(2)
    outputs = predictor({"features": test.features})
    rows = {"probability": outputs["probability"], "label": test.labels}
    assert average_precision(rows) > 0.8
    amount = test.features[:, AMOUNT]
    assert np.array_equal(outputs["expected_loss"], outputs["probability"] * amount)


def test_tuning_prefers_what_does_better_on_the_last_days() -> None:
    chosen, rounds = baseline.tune(dataset(0))
    assert chosen in baseline.GRID
    assert 1 <= rounds <= baseline.MOST_ROUNDS


def test_without_fraud_in_the_last_days_the_first_parameters_are_taken() -> None:
    data = dataset(0)
    data.labels[np.asarray(data.targets["day"]) > 5] = 0
    assert baseline.tune(data) == (baseline.GRID[0], 100)
