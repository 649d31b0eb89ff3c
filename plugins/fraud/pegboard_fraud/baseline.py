"""The honest baseline: XGBoost, tuned, on the same features and rows as the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xgboost

from pegboard.records import Array, Baseline, Predictor
from pegboard_fraud.data import FraudDataset
from pegboard_fraud.features import AMOUNT
from pegboard_fraud.metrics import average_precision
from pegboard_fraud.settings import FraudSettings

FIXED: Mapping[str, Any] = {
    "objective": "binary:logistic",
    "tree_method": "hist",
    # Left alone, the intercept and coarse bins cost .06 of average precision: see `fine_bins`.
    "base_score": 0.5,
    "nthread": 1,
    "seed": 0,
    "verbosity": 0,
}

GRID: tuple[Mapping[str, Any], ...] = (
    {"max_depth": 6, "eta": 0.3},
    {"max_depth": 6, "eta": 0.1, "colsample_bytree": 0.5},
    {
        "max_depth": 4,
        "eta": 0.1,
        "min_child_weight": 5,
        "subsample": 0.8,
        "colsample_bytree": 0.5,
    },
)
"""What practitioners tune first; the number of rounds is found by stopping early."""

MOST_ROUNDS = 200
PATIENCE = 15
TUNING_ROWS = 150_000
"""The latest training rows, which the grid is searched on."""


def build(settings: FraudSettings) -> list[Baseline]:
    """Tuned XGBoost."""
    return [
        Baseline(
            name="xgboost",
            fit=fit_xgboost,
            description=f"XGBoost {xgboost.__version__} on the same features and rows, tuned by a "
            f"grid of {len(GRID)} with early stopping on the last days of the training rows.",
        )
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class BoosterPredictor:
    """Trees in the place of the deployable."""

    booster: xgboost.Booster
    """The trees."""

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Score features (B, F)."""
        features = inputs["features"]
        probability: Array = self.booster.inplace_predict(features)
        return {"probability": probability, "expected_loss": probability * features[:, AMOUNT]}


def fit_xgboost(train: FraudDataset, validation: FraudDataset) -> Predictor:
    """Tune on the training days, the last fifth held out, then fit on all of them.

    The validation split is not touched: it chooses the model's threshold, and the baseline's.
    """
    chosen, rounds = tune(train)
    return BoosterPredictor(booster=_fit(chosen, train.features, train.labels, rounds))


def tune(train: FraudDataset) -> tuple[Mapping[str, Any], int]:
    """Return the best parameters of the grid and their number of rounds."""
    features, labels = train.features[-TUNING_ROWS:], train.labels[-TUNING_ROWS:]
    day = np.asarray(train.targets["day"], dtype=np.int64)[-TUNING_ROWS:]
    held_out = day > int(np.quantile(day, 0.8))
    if not labels[held_out].any() or not labels[~held_out].any():
        return GRID[0], 100
    results = [
        _stopped_early(
            chosen, (features[~held_out], labels[~held_out]), (features[held_out], labels[held_out])
        )
        for chosen in GRID
    ]
    best = int(np.argmax([score for score, _ in results]))
    return GRID[best], results[best][1]


def _stopped_early(
    chosen: Mapping[str, Any], train: tuple[Array, Array], held_out: tuple[Array, Array]
) -> tuple[float, int]:
    """Return the average precision on what is held out, and the rounds that gave it."""
    bins = fine_bins(len(train[1]))
    matrix = xgboost.QuantileDMatrix(*train, max_bin=bins, nthread=1)
    watched = xgboost.QuantileDMatrix(*held_out, ref=matrix, max_bin=bins, nthread=1)
    booster = xgboost.train(
        {**FIXED, **chosen, "max_bin": bins, "eval_metric": "logloss"},
        matrix,
        MOST_ROUNDS,
        evals=[(watched, "held_out")],
        early_stopping_rounds=PATIENCE,
        verbose_eval=False,
    )
    rounds = booster.best_iteration + 1
    probability = booster.inplace_predict(held_out[0], iteration_range=(0, rounds))
    return average_precision({"probability": probability, "label": held_out[1]}), rounds


def _fit(chosen: Mapping[str, Any], features: Array, labels: Array, rounds: int) -> xgboost.Booster:
    bins = fine_bins(len(labels))
    matrix = xgboost.QuantileDMatrix(features, labels, max_bin=bins, nthread=1)
    return xgboost.train({**FIXED, **chosen, "max_bin": bins}, matrix, rounds)


def fine_bins(rows: int) -> int:
    """Return bins fine enough to tell amounts apart, and no more than the rows can fill."""
    return min(4096, max(256, rows // 16))
