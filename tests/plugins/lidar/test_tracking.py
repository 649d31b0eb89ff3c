"""Tracking: crossing, hidden and lost objects, and counts of mistakes worked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pegboard_lidar.decoding import Detections
from pegboard_lidar.tracking import Followed, Tracker, mota, nearest_pairs

Array = Any
STEP = 0.1
"""Seconds between scans."""


def seen(*positions: Sequence[float], labels: Any = None, velocity: Any = None) -> Detections:
    count = len(positions)
    boxes = np.zeros((count, 7), dtype=np.float32)
    boxes[:, :2] = np.array(positions, dtype=np.float32).reshape(count, 2)
    boxes[:, 3:6] = 4.0, 1.8, 1.5
    return Detections(
        boxes=boxes,
        scores=np.linspace(0.9, 0.5, count, dtype=np.float32),
        labels=np.array([0] * count if labels is None else labels, dtype=np.int64),
        velocity=None if velocity is None else np.array(velocity, dtype=np.float32),
    )


def tracker(max_distance: float = 2.0, **others: Any) -> Tracker:
    return Tracker(max_distance=(max_distance, 1.0), **others)


def test_an_object_that_moves_keeps_its_number() -> None:
    one = tracker()
    numbers = [one.update(seen((10 + 15 * t * STEP, 0)), t * STEP).tolist() for t in range(10)]
    assert numbers == [[1]] * 10
    np.testing.assert_allclose(one.tracks[0].velocity, [15, 0], atol=1e-3)


def test_objects_that_cross_keep_their_numbers() -> None:
    # Along both diagonals, with 10 m/s: they meet at the origin at one second, 0.2 m apart.
    one, numbers = tracker(), []
    for t in range(21):
        way = 10 * (t * STEP - 1)
        numbers.append(one.update(seen((way, way + 0.1), (way, -way - 0.1)), t * STEP).tolist())
    assert numbers == [[1, 2]] * 21


def test_objects_that_cross_would_be_mistaken_without_their_velocity() -> None:
    # Nearest to where they were last, each takes the other's place: the case above is no trifle.
    last = np.array([(-0.6, -0.5), (-0.6, 0.5)])
    now = np.array([(0.4, 0.5), (0.4, -0.5)])
    apart = np.linalg.norm(last[:, None] - now, axis=-1)
    assert dict(nearest_pairs(apart)) == {0: 1, 1: 0}


def test_a_hidden_object_is_met_again_where_it_must_have_gone() -> None:
    # Unseen for 0.5 s it goes on by 7.5 m, far more than the 2 m within which it may be.
    one, numbers = tracker(), []
    for t in range(12):
        visible = [] if 3 <= t < 8 else [(15 * t * STEP, 0.0)]
        numbers.append(one.update(seen(*visible), t * STEP).tolist())
    assert numbers == [[1]] * 3 + [[]] * 5 + [[1]] * 4


def test_an_object_that_is_lost_for_long_comes_back_as_another() -> None:
    one = tracker(max_age=0.5)
    assert one.update(seen((0, 0)), 0.0).tolist() == [1]
    assert one.update(seen(), 0.5).tolist() == []
    assert len(one.tracks) == 1
    assert one.update(seen((0, 0)), 0.6).tolist() == [2]


def test_an_object_is_never_continued_by_one_of_another_class_or_far_away() -> None:
    one = tracker()
    assert one.update(seen((0, 0), (20, 0), labels=[0, 1]), 0.0).tolist() == [1, 2]
    assert one.update(seen((0, 0), (20, 0), labels=[1, 0]), STEP).tolist() == [3, 4]
    # 1.5 m are near for the first class, and far for the second.
    assert one.update(seen((0, 1.5), (20, 1.5), labels=[0, 1]), 2 * STEP).tolist() == [1, 5]


def test_the_velocity_is_the_detectors_where_it_tells_one() -> None:
    one = tracker(max_distance=0.5)
    one.update(seen((0, 0), (50, 0), velocity=[(20, 0), (np.nan, np.nan)]), 0.0)
    assert one.update(seen((2, 0), (50, 0.1), velocity=[(20, 0)] * 2), STEP).tolist() == [1, 2]
    # Without it, an object that was seen once is expected where it was.
    other = tracker(max_distance=0.5)
    other.update(seen((0, 0)), 0.0)
    assert other.update(seen((2, 0)), STEP).tolist() == [2]


def test_the_nearest_of_two_continues_an_object_however_sure_the_other_is() -> None:
    one = tracker()
    one.update(seen((0, 0)), 0.0)
    assert one.update(seen((1.0, 0), (0.1, 0)), STEP).tolist() == [2, 1]


# --- MOTA -----------------------------------------------------------------------------------------


def at(positions: Sequence[Sequence[float]], identities: Sequence[int]) -> Followed:
    return Followed(
        positions=np.array(positions, dtype=np.float64).reshape(-1, 2),
        identities=np.array(identities, dtype=np.int64),
    )


def test_a_perfect_tracker_makes_no_mistake() -> None:
    true = [at([(0, t), (10, t)], [7, 8]) for t in range(5)]
    result = mota(true, [at([(10, t), (0, t)], [1, 2]) for t in range(5)])
    assert (result.objects, result.misses, result.false, result.switches) == (10, 0, 0, 0)
    assert result.mota == 1


def test_misses_false_ones_and_switches_are_counted() -> None:
    true = [at([(0, 0), (10, 0)], [1, 2])] * 4
    found = [
        at([(0, 0), (10, 0)], [5, 6]),
        at([(0, 0)], [5]),  # A miss.
        at([(0, 0), (10, 0), (30, 0)], [5, 9, 8]),  # A switch, after the miss; a false one.
        at([(0, 0), (10, 3)], [5, 9]),  # 3 m away: a miss and a false one.
    ]
    result = mota(true, found)
    assert (result.objects, result.misses, result.false, result.switches) == (8, 2, 2, 1)
    assert result.mota == pytest.approx(1 - 5 / 8)


def test_an_object_stays_with_its_track_while_that_is_near_enough() -> None:
    true = [at([(0, 0)], [1])] * 2
    found = [at([(0, 0)], [5]), at([(1.5, 0), (0, 0)], [5, 6])]
    result = mota(true, found)
    assert (result.switches, result.false) == (0, 1)


def test_as_many_as_can_be_are_matched() -> None:
    # The nearest pair first, 0.5 m apart, would leave two that are 3.5 m apart.
    result = mota([at([(0, 0), (2, 0)], [1, 2])], [at([(-1.5, 0), (0.5, 0)], [5, 6])])
    assert (result.misses, result.false) == (0, 0)


def test_nothing_there_is_no_number() -> None:
    assert np.isnan(mota([at([], [])], [at([], [])]).mota)
    assert mota([at([], [])], [at([(0, 0)], [1])]).false == 1


def test_the_tracker_follows_a_simulated_crossroads() -> None:
    # 12 objects cross each other for 4 s, seen with 0.1 m of noise; a tenth is missed, and in
    # every second scan there is one that is not there.
    generator = np.random.default_rng(0)
    start, pace = generator.uniform(-30, 30, (12, 2)), generator.uniform(-10, 10, (12, 2))
    true, found, one = [], [], tracker()
    for t in range(40):
        positions = start + pace * t * STEP
        true.append(at(positions, range(1, 13)))
        visible = positions[generator.uniform(size=12) > 0.1]
        told = visible + generator.normal(0, 0.1, visible.shape)
        if t % 2:
            told = np.concatenate([told, generator.uniform(-30, 30, (1, 2))])
        found.append(at(told, one.update(seen(*told), t * STEP).tolist()))
    result = mota(true, found)
    assert result.objects == 480
    assert result.switches <= 2
    assert result.mota > 0.8
