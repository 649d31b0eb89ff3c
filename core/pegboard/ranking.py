"""Scores against the truth: what every threshold finds and what it costs.

N records, S scores that differ.
"""

from __future__ import annotations

import numpy as np

from pegboard.records import Array

NEVER = 1.001
"""A score that nothing reaches."""


def sums_at_thresholds(score: Array, below: Array, reached: Array) -> tuple[Array, Array, Array]:
    """Add up what records count on either side of every threshold that can be told apart.

    Args:
        score: (N,), from 0 to 1.
        below: (N,), what a record adds up to where its score does not reach the threshold.
        reached: (N,), what it adds up to where it does.

    Returns:
        Thresholds (S + 1,), ascending, of which the first is reached by all and the last by none,
        and both sums (S + 1,).
    """
    every, place = np.unique(score, return_inverse=True)
    low = np.bincount(place, weights=below, minlength=len(every))
    high = np.bincount(place, weights=reached, minlength=len(every))
    return (
        _between(every),
        np.append(0.0, np.cumsum(low)),
        np.append(np.cumsum(high[::-1])[::-1], 0.0),
    )


def _between(score: Array) -> Array:
    """The middles between ascending scores (S,), the ends of their range included: (S + 1,).

    They are float32 numbers: what compares them with a model's scores, in whatever precision,
    decides the same.
    """
    above = 1.0 if not len(score) or score[-1] < 1 else NEVER
    low, high = np.append(0.0, score), np.append(score, above)
    middle = ((low + high) / 2).astype(np.float32)
    return np.where(middle > low, middle, high).astype(np.float32)


def rates_at_thresholds(score: Array, positive: Array) -> tuple[Array, Array, Array]:
    """Return thresholds and the shares of positives missed and of negatives that reach them.

    Args:
        score: (N,), from 0 to 1.
        positive: (N,), whether a record is one to find.

    Returns:
        Thresholds (S + 1,), ascending; shares missed, from 0 to 1, and of false alarms, from 1 to
        0. Shares are NaN without such records.
    """
    thresholds, missed, alarmed = sums_at_thresholds(score, positive, ~positive)
    return thresholds, _share(missed, positive.sum()), _share(alarmed, (~positive).sum())


def _share(count: Array, of: int) -> Array:
    return count / of if of else np.full(len(count), np.nan)


def roc_auc(score: Array, positive: Array) -> float:
    """Area under the curve of what is found over false alarms; NaN where one kind is missing."""
    _, missed, alarmed = rates_at_thresholds(score, positive)
    return float(np.trapezoid((1 - missed)[::-1], alarmed[::-1]))


def average_precision(score: Array, positive: Array) -> float:
    """Sum of precision times gain in recall over all thresholds, without interpolation."""
    if not positive.any():
        return np.nan
    _, missed, alarmed = sums_at_thresholds(score, positive, ~positive)
    found = (positive.sum() - missed)[-2::-1]
    precision = found / (found + alarmed[-2::-1])
    return float(np.sum(np.diff(found, prepend=0) * precision) / positive.sum())


def cheapest_threshold(score: Array, miss_costs: Array, alarm_costs: Array) -> float:
    """The threshold at which mistakes cost least; of several the lowest.

    It lies midway between neighbouring scores, so that a small change of one, as a compressed
    model brings, seldom changes a decision.

    Args:
        score: (N,), from 0 to 1.
        miss_costs: (N,), what it costs if a record does not reach the threshold.
        alarm_costs: (N,), what it costs if it does.
    """
    thresholds, missed, alarmed = sums_at_thresholds(score, miss_costs, alarm_costs)
    costs = missed + alarmed
    # Sums of the same costs in another order differ in their last digits.
    return float(thresholds[np.argmax(costs <= costs.min() * (1 + 1e-9))])


def limited_threshold(score: Array, positive: Array, limit: float) -> float:
    """The highest threshold that misses at most a share `limit` of the positives."""
    thresholds, missed, _ = rates_at_thresholds(score, positive)
    return float(thresholds[np.flatnonzero(missed <= limit + 1e-9)[-1]])
