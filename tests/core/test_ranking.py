from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from pegboard import ranking

SCORE = np.array([0.1, 0.4, 0.4, 0.8, 1.0], dtype=np.float32)
POSITIVE = np.array([False, True, False, True, True])


def test_the_first_threshold_is_reached_by_all_and_the_last_by_none() -> None:
    thresholds, missed, alarmed = ranking.rates_at_thresholds(SCORE, POSITIVE)
    assert (np.diff(thresholds) > 0).all()
    assert (thresholds[0] <= SCORE).all()
    assert (thresholds[-1] > SCORE).all()
    np.testing.assert_allclose(missed, [0, 0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(alarmed, [1, 1 / 2, 0, 0, 0])


def test_areas_are_those_of_scikit_learn_ties_included() -> None:
    generator = np.random.default_rng(0)
    score = generator.integers(0, 20, 300).astype(np.float32) / 20
    positive = generator.random(300) < 0.2 + 0.6 * score
    assert ranking.roc_auc(score, positive) == pytest.approx(roc_auc_score(positive, score))
    expected = average_precision_score(positive, score)
    assert ranking.average_precision(score, positive) == pytest.approx(expected)


def test_of_one_kind_alone_there_is_no_ranking() -> None:
    assert np.isnan(ranking.roc_auc(SCORE, np.ones(5, dtype=bool)))
    assert np.isnan(ranking.average_precision(SCORE, np.zeros(5, dtype=bool)))


def test_the_cheapest_threshold_follows_the_costs_and_lies_between_scores() -> None:
    dear, cheap = 10.0 * POSITIVE, 1.0 * ~POSITIVE
    assert ranking.cheapest_threshold(SCORE, dear, cheap) == pytest.approx(0.25)
    assert ranking.cheapest_threshold(SCORE, 0.1 * POSITIVE, cheap) == pytest.approx(0.6)


def test_a_limit_of_misses_gives_the_highest_threshold_that_keeps_it() -> None:
    assert ranking.limited_threshold(SCORE, POSITIVE, 0.0) == pytest.approx(0.25)
    assert ranking.limited_threshold(SCORE, POSITIVE, 0.34) == pytest.approx(0.6)
