"""What a fraud score is worth: ranking, alarms, calibration and money.

Every metric is a pure function of the rows of an evaluation: `probability`, `expected_loss`
(probability times amount), `label` (1 fraud, 0 genuine), `amount`, `customer` and `day`, each (N,).
It is NaN where it is not defined.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pegboard.records import Array, Metric, Rows, Thresholds
from pegboard_fraud.deploy import score_to_threshold
from pegboard_fraud.settings import FraudSettings

CARDS = 100
"""Cards that a team of investigators looks into on a day (Le Borgne et al., 2022, chapter 4)."""

FALSE_ALARMS = 0.01
"""Share of genuine transactions that may raise an alarm."""

NO_REVIEW = 2.0
"""A probability that nothing reaches."""


def build(settings: FraudSettings) -> list[Metric]:
    """Average precision first: with one fraud in a hundred it tells rankings apart best."""
    return [
        _metric(
            "average_precision",
            average_precision,
            "Mean precision over all recalls.",
            headline=True,
        ),
        _metric("roc_auc", roc_auc, "How often a fraud scores above a genuine transaction."),
        _metric(
            f"card_precision_{CARDS}",
            card_precision,
            f"Share of defrauded cards among the {CARDS} most suspicious of a day.",
            unit="share",
        ),
        _metric(
            "recall_at_1_percent",
            recall,
            "Share of frauds found while 1 % of genuine transactions raise an alarm.",
            unit="share",
        ),
        _metric(
            "calibration_error",
            calibration_error,
            "Mean distance between predicted probability and share of frauds.",
            direction="lower",
        ),
        Metric(
            name="savings",
            compute=partial(savings, settings),
            direction="higher",
            unit="share",
            group="customer",
            description="What the threshold saves of the cost of reviewing all or nothing.",
        ),
    ]


def _metric(
    name: str,
    compute: Callable[[Rows], float],
    description: str,
    *,
    direction: Literal["higher", "lower"] = "higher",
    headline: bool = False,
    unit: str = "",
) -> Metric:
    """A metric that needs no threshold; transactions of one customer are resampled together."""
    return Metric(
        name=name,
        compute=lambda rows, thresholds: compute(rows),
        direction=direction,
        headline=headline,
        unit=unit,
        group="customer",
        description=description,
    )


# --- Ranking --------------------------------------------------------------------------------------


def alarms(rows: Rows) -> tuple[Array, Array]:
    """Count true and false alarms at every threshold that can be told apart, highest first.

    Returns:
        Frauds found (T,) and genuine transactions hit (T,).
    """
    order = np.argsort(-rows["probability"], kind="stable")
    score, fraud = rows["probability"][order], rows["label"][order] == 1
    # Transactions of equal score raise an alarm together.
    last = np.flatnonzero(np.append(np.diff(score) != 0, True)) if len(score) else order
    true = np.cumsum(fraud)[last]
    return true, last + 1 - true


def average_precision(rows: Rows) -> float:
    """Sum of precision times gain in recall over all thresholds, without interpolation."""
    true, false = alarms(rows)
    if not len(true) or not true[-1]:
        return np.nan
    return float(np.sum(np.diff(true, prepend=0) * true / (true + false)) / true[-1])


def roc_auc(rows: Rows) -> float:
    """Area under the curve of recall over the share of false alarms."""
    true, false = alarms(rows)
    if not len(true) or not true[-1] or not false[-1]:
        return np.nan
    area = np.trapezoid(np.append(0, true), np.append(0, false))
    return float(area / true[-1] / false[-1])


def recall(rows: Rows, *, false_alarms: float = FALSE_ALARMS) -> float:
    """Largest share of frauds found while at most that share of genuine transactions is hit."""
    true, false = alarms(rows)
    if not len(true) or not true[-1]:
        return np.nan
    return float(np.max(true, where=false <= false_alarms * false[-1], initial=0) / true[-1])


def card_precision(rows: Rows, *, cards: int = CARDS) -> float:
    """Share of defrauded cards among the most suspicious `cards` of a day, mean over days.

    A card counts by its most suspicious transaction of the day, and is fraud if any of them is. A
    card that was found on one day is blocked on the next ones (Le Borgne et al., Reproducible
    Machine Learning for Credit Card Fraud Detection, 2022, chapter 4).
    """
    found = np.empty(0, dtype=np.int64)
    precisions = []
    for day in np.unique(rows["day"]):
        today = np.flatnonzero(rows["day"] == day)
        today = today[~np.isin(rows["customer"][today], found)]
        suspects = _suspects(rows["customer"][today], rows["probability"][today], cards)
        fraud = rows["customer"][today][rows["label"][today] == 1]
        hit = np.intersect1d(suspects, fraud)
        precisions.append(len(hit) / cards)
        found = np.append(found, hit)
    return float(np.mean(precisions)) if precisions else np.nan


def _suspects(customer: Array, probability: Array, cards: int) -> Array:
    """The customers with the highest scores, at most `cards` of them."""
    order = np.argsort(-probability, kind="stable")
    _, first = np.unique(customer[order], return_index=True)
    return customer[order][np.sort(first)[:cards]]


# --- Calibration ----------------------------------------------------------------------------------


def calibration_error(rows: Rows, *, bins: int = 15) -> float:
    """Expected calibration error in bins of equal width (Naeini, Cooper and Hauskrecht, 2015)."""
    if not len(rows["label"]):
        return np.nan
    place = np.minimum((rows["probability"] * bins).astype(np.int64), bins - 1)
    excess = np.bincount(place, weights=rows["probability"] - rows["label"], minlength=bins)
    return float(np.abs(excess).sum() / len(place))


# --- Money ----------------------------------------------------------------------------------------


def savings(settings: FraudSettings, rows: Rows, thresholds: Thresholds) -> float:
    """Saved share of the cost of the cheaper of two simple policies: review nothing, review all.

    A review costs `model.review_cost` and stops the fraud, a fraud that is not reviewed costs its
    amount (Bahnsen, Aouada and Ottersten, Expert Systems with Applications 42, 2015).
    """
    review_cost = settings.model.review_cost
    reviewed = score_to_threshold(settings, rows) >= thresholds["review"]
    lost = rows["label"] * rows["amount"].astype(np.float64)
    simple = min(lost.sum(), review_cost * len(lost))
    cost = lost[~reviewed].sum() + review_cost * reviewed.sum()
    return float(1 - cost / simple) if simple else np.nan


# --- Thresholds -----------------------------------------------------------------------------------


def choose_thresholds(settings: FraudSettings, rows: Rows) -> dict[str, float]:
    """Choose `review`, which the expected loss or the probability has to reach.

    By cost: the expected loss is worth a review from its cost on, which is the policy of least
    expected cost for a calibrated probability (Elkan, IJCAI 2001). By budget: the probability that
    as many transactions a day reach as can be reviewed.
    """
    if settings.model.threshold == "cost":
        return {"review": settings.model.review_cost}
    days = len(np.unique(rows["day"]))
    return {"review": budget_threshold(rows["probability"], settings.model.alerts_per_day * days)}


def budget_threshold(probability: NDArray[Any], alerts: int) -> float:
    """The smallest threshold that at most `alerts` probabilities (N,) reach."""
    if alerts >= len(probability):
        return 0.0
    ordered = np.sort(probability)[::-1]
    too_low = ordered[alerts]
    return float(np.min(ordered[:alerts], where=ordered[:alerts] > too_low, initial=NO_REVIEW))
