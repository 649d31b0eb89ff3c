"""Metrics against hand-computed cases and scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from pegboard_fraud import metrics
from pegboard_fraud.settings import FraudModel, FraudSettings

SETTINGS = FraudSettings(model=FraudModel(review_cost=3.0))


def rows(**columns: Any) -> dict[str, Any]:
    return {name: np.asarray(column) for name, column in columns.items()}


def drawn(count: int = 5000) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    label = (generator.random(count) < 0.05).astype(np.float32)
    # Rounded, so that there are ties.
    probability = np.round(generator.random(count) * 0.7 + label * generator.random(count) * 0.3, 2)
    return rows(label=label, probability=probability)


def test_ranking_metrics_equal_scikit_learns_with_ties() -> None:
    columns = drawn()
    expected = average_precision_score(columns["label"], columns["probability"])
    assert metrics.average_precision(columns) == pytest.approx(expected, rel=1e-9)
    expected = roc_auc_score(columns["label"], columns["probability"])
    assert metrics.roc_auc(columns) == pytest.approx(expected, rel=1e-9)


def test_recall_is_read_off_where_one_percent_of_the_genuine_raise_an_alarm() -> None:
    genuine = np.linspace(0, 0.5, 100)
    columns = rows(
        label=np.r_[np.zeros(100), np.ones(4)], probability=np.r_[genuine, 0.9, 0.8, 0.499, 0.1]
    )
    # The one genuine transaction at 0.5 may be hit, the next at 0.495 may not.
    assert metrics.recall(columns) == 0.75


@pytest.mark.parametrize("metric", ["average_precision", "roc_auc", "recall"])
def test_without_any_fraud_a_ranking_is_not_defined(metric: str) -> None:
    columns = rows(label=np.zeros(5), probability=np.arange(5) / 5)
    assert np.isnan(getattr(metrics, metric)(columns))


def test_card_precision_counts_cards_once_and_blocks_what_was_found() -> None:
    columns = rows(
        day=[1, 1, 1, 1, 2, 2, 2],
        customer=[7, 7, 8, 9, 7, 8, 9],
        probability=[0.9, 0.8, 0.7, 0.1, 0.99, 0.6, 0.5],
        label=[0, 1, 0, 0, 1, 0, 1],
    )
    # Day 1: cards 7 and 8 are looked at, 7 is fraud. Day 2: 7 is blocked, 8 and 9 remain.
    assert metrics.card_precision(columns, cards=2) == (1 / 2 + 1 / 2) / 2


def test_calibration_error_is_the_mean_distance_in_bins() -> None:
    columns = rows(probability=[0.1] * 10 + [0.9] * 10, label=[0] * 10 + [1] * 8 + [0] * 2)
    assert metrics.calibration_error(columns) == pytest.approx((0.1 + 0.1) / 2)


def test_savings_compare_with_the_cheaper_of_reviewing_nothing_and_everything() -> None:
    columns = rows(
        label=[1, 1, 0, 0], amount=[10.0, 4.0, 9.0, 9.0], expected_loss=[9.0, 1.0, 5.0, 0.1]
    )
    # Nothing: 14 lost. Everything: 12. The threshold reviews the first and the third: 6, and
    # loses 4.
    assert metrics.savings(SETTINGS, columns, {"review": 3.0}) == pytest.approx(1 - 10 / 12)


def test_by_cost_the_threshold_is_what_a_review_costs() -> None:
    assert metrics.choose_thresholds(SETTINGS, drawn()) == {"review": 3.0}


def test_by_budget_no_more_are_reviewed_than_the_team_can_do() -> None:
    settings = FraudSettings(model=FraudModel(threshold="budget", alerts_per_day=20))
    columns = drawn() | rows(day=np.arange(5000) % 5)
    threshold = metrics.choose_thresholds(settings, columns)["review"]
    reviewed = (columns["probability"] >= threshold).sum()
    # Ties at the threshold are left out together, so it is at most the budget and near it.
    assert 60 < reviewed <= 100


@pytest.mark.parametrize(("alerts", "reviewed"), [(0, 0), (1, 0), (2, 2), (3, 3), (9, 3)])
def test_a_budget_that_cuts_a_tie_leaves_the_tie_out(alerts: int, reviewed: int) -> None:
    probability = np.array([0.5, 0.5, 0.2])
    threshold = metrics.budget_threshold(probability, alerts)
    assert (probability >= threshold).sum() == reviewed


def test_average_precision_is_the_headline() -> None:
    built = metrics.build(SETTINGS)
    assert [metric.name for metric in built if metric.headline] == ["average_precision"]
    assert len({metric.name for metric in built}) == len(built)
