"""Average precision: worked cases of KITTI's and of nuScenes', and their public implementations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pegboard_lidar import average_precision as ap
from pegboard_lidar.geometry import bev_iou, distances, iou

Array = Any
COUNTS = np.ones((1, 1), dtype=bool)
"""Of one object that counts at the only level."""


def matches(*hits: int) -> Array:
    """Detections without rematching: 1 a hit, 0 a false one, -1 one that is ignored."""
    rows = [(float(hit == 1), float(hit == 1), float(hit == 0)) for hit in hits]
    return np.array(rows).reshape(-1, 3)


def kitti(scores: list[float], matched: Array, objects: int) -> tuple[float, float]:
    precision = ap.precision_at_recalls(np.array(scores), matched, objects)
    return ap.r40(precision), ap.r11(precision)


# --- KITTI: the mean ------------------------------------------------------------------------------


def test_a_single_object_that_is_found_has_a_precision_at_recall_zero_alone() -> None:
    # One candidate is one threshold, the first sample: R40 leaves just that one out.
    precision = ap.precision_at_recalls(np.array([0.5]), matches(1), 1)
    np.testing.assert_array_equal(precision, [1] + [0] * 40)
    assert (ap.r40(precision), ap.r11(precision)) == (0, pytest.approx(1 / 11))


def test_forty_objects_that_are_all_found_fill_forty_of_the_samples() -> None:
    # Candidate i has recall (i + 1) / 40, so that each is the nearest to a sample: 0 to 39/40.
    scores = list(np.linspace(0.9, 0.1, 40))
    assert kitti(scores, matches(*[1] * 40), 40) == (pytest.approx(39 / 40), pytest.approx(10 / 11))


def test_many_objects_that_are_all_found_fill_every_sample() -> None:
    scores = list(np.linspace(0.9, 0.1, 1000))
    assert kitti(scores, matches(*[1] * 1000), 1000) == (1, 1)


def test_a_false_detection_lowers_the_precision_from_its_score_on() -> None:
    # Thresholds 0.9 and 0.7: precisions 1 and 2/3, at recalls 0 and 1/40.
    r40, r11 = kitti([0.9, 0.8, 0.7], matches(1, 0, 1), 2)
    assert r40 == pytest.approx((2 / 3) / 40)
    assert r11 == pytest.approx(1 / 11)


def test_a_precision_is_the_largest_at_a_higher_recall() -> None:
    # At 0.8, 1 of 2; at 0.7, 2 of 3: both samples say 2/3.
    precision = ap.precision_at_recalls(np.array([0.9, 0.8, 0.7]), matches(0, 1, 1), 2)
    np.testing.assert_allclose(precision, [2 / 3, 2 / 3] + [0] * 39)


def test_half_of_the_objects_give_half_of_the_recalls() -> None:
    # 40 of 80 found: candidates 0, 1, 3, 5, ..., of recalls 1/80, 2/80, 4/80, ...
    assert ap.sampled(40, 80) == [0, 1, *range(3, 40, 2)]
    assert kitti(list(np.linspace(0.9, 0.1, 40)), matches(*[1] * 40), 80)[0] == 20 / 40


def test_nothing_found_is_a_precision_of_zero() -> None:
    assert kitti([], matches(), 3) == (0, 0)
    assert kitti([0.9], matches(0), 3) == (0, 0)


def test_a_detection_that_is_ignored_changes_nothing() -> None:
    with_it = kitti([0.95, 0.9, 0.8, 0.75, 0.7], matches(-1, 1, 0, -1, 1), 2)
    assert with_it == kitti([0.9, 0.8, 0.7], matches(1, 0, 1), 2)


def test_equal_scores_are_counted_together() -> None:
    hits, false = ap.counts_at(
        np.array([0.5, 0.9, 0.5]), matches(1, 1, 0), np.array([0.5, 0.9, 1.0])
    )
    np.testing.assert_array_equal(hits, [2, 1, 0])
    np.testing.assert_array_equal(false, [1, 0, 0])


def test_by_the_definition_few_objects_can_reach_one() -> None:
    precision = ap.precision_by_definition(np.array([0.5]), matches(1), 1)
    assert (ap.r40(precision), ap.r11(precision)) == (1, 1)
    # Precisions 1 up to a recall of 1/2, and 2/3 from there on.
    precision = ap.precision_by_definition(np.array([0.9, 0.8, 0.7]), matches(1, 0, 1), 2)
    assert ap.r40(precision) == pytest.approx((20 + 20 * 2 / 3) / 40)
    assert ap.r11(precision) == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert not ap.precision_by_definition(np.zeros(0), matches(), 1).any()


def test_the_definition_and_the_development_kit_agree_on_many_objects() -> None:
    generator = np.random.RandomState(3)
    scores = generator.uniform(size=600)
    some = matches(*(generator.uniform(size=600) < scores).astype(int))
    kit = ap.precision_at_recalls(scores, some, 400)
    definition = ap.precision_by_definition(scores, some, 400)
    assert 0.4 < ap.r40(kit) < 0.9
    assert ap.r40(kit) == pytest.approx(ap.r40(definition), abs=0.02)


# --- KITTI: the match -----------------------------------------------------------------------------


def matched(
    overlaps: list[list[float]], scores: list[float], counts: Array, ignore: Array | None = None
) -> Array:
    return ap.match_by_overlap(np.array(overlaps), np.array(scores), counts, 0.5, ignore)


def test_an_object_is_found_once() -> None:
    # The surer one is found first; at the score of the other, that one overlaps more and is the
    # hit, and the surer one is false: hits 1 and 1, false 0 and 1.
    result = matched([[0.6], [0.9]], [0.9, 0.8], COUNTS)
    np.testing.assert_array_equal(result[:, 0], [[1, 1, 0], [0, 0, 1]])


def test_the_order_of_detections_plays_no_part() -> None:
    result = matched([[0.9], [0.6]], [0.8, 0.9], COUNTS)
    np.testing.assert_array_equal(result[:, 0], [[0, 0, 1], [1, 1, 0]])


def test_a_surer_detection_is_handed_to_the_next_object() -> None:
    # Alone, A is the first object's. With B it becomes the second's: B brings a second hit. The
    # candidates are A, the first object's surest, and none for the second, whose only one is gone;
    # B overlaps it too little.
    result = matched([[0.6, 0.7], [0.9, 0.1]], [0.9, 0.8], np.ones((2, 1), dtype=bool))
    np.testing.assert_array_equal(result[:, 0], [[1, 1, 0], [0, 1, 0]])


def test_an_overlap_of_just_the_limit_is_none() -> None:
    np.testing.assert_array_equal(matched([[0.5]], [0.9], COUNTS)[:, 0], [[0, 0, 1]])


def test_a_harder_object_is_neither_a_hit_nor_false() -> None:
    counts = ap.counted(np.array([0, 1, 2, -1]))
    np.testing.assert_array_equal(
        counts, [[True, True, True], [False, True, True], [False, False, True], [False] * 3]
    )
    result = matched((np.eye(4) * 0.8).tolist(), [0.9, 0.8, 0.7, 0.6], counts)
    np.testing.assert_array_equal(result[..., ap.HIT], counts)
    np.testing.assert_array_equal(result[..., ap.CANDIDATE], counts)
    assert not result[..., ap.FALSE].any()


def test_a_low_detection_is_not_false_at_the_levels_that_ignore_it() -> None:
    low = ap.ignored(np.array([30.0, 24.0, 40.0]))
    np.testing.assert_array_equal(low, [[True, False, False], [True, True, True], [False] * 3])
    nothing = np.zeros((3, 0))
    result = ap.match_by_overlap(
        nothing, np.array([0.9, 0.8, 0.7]), np.zeros((0, 3), dtype=bool), 0.5, low
    )
    np.testing.assert_array_equal(result.sum(axis=0)[:, ap.FALSE], [1, 2, 2])


def test_a_low_detection_takes_an_object_only_where_there_is_no_other() -> None:
    low = np.array([[True], [False]])
    # At 0.9 the low one takes the object, which is then neither found nor missed; at 0.8 the other
    # one takes it, though it overlaps less. The surest is no candidate, as it is ignored.
    result = matched([[0.9], [0.6]], [0.9, 0.8], COUNTS, low)
    np.testing.assert_array_equal(result[:, 0], [[0, 0, 0], [0, 1, 0]])


# --- nuScenes -------------------------------------------------------------------------------------


def centre(scores: list[float], matched: Array, objects: int) -> float:
    return ap.centre_average_precision(np.array(scores), matched, objects)


def test_all_found_is_one() -> None:
    assert centre([0.9, 0.8], matches(1, 1), 2) == pytest.approx(1)


def test_nothing_found_is_zero() -> None:
    assert centre([], matches(), 2) == centre([0.9], matches(0), 2) == 0


def test_half_found_is_half_of_what_counts() -> None:
    # A precision of 1 at recalls 0.11 to 0.50: 40 of the 90 that count.
    assert centre([0.9], matches(1), 2) == pytest.approx(40 / 90)


def test_a_worked_average_over_recalls() -> None:
    # Recalls 0.5, 0.5 and 1 of precisions 1, 1/2 and 2/3. From 0.11 to 0.49: 1. At 0.5, the later
    # of the two: 1/2; from there in 50 steps to 2/3. Less 0.1 each, of 90 times 0.9:
    # (39 * 0.9 + 0.4 + 50 * 0.4 + 1/6 * 25.5) / 81 = 59.75 / 81.
    assert centre([0.9, 0.8, 0.7], matches(1, 0, 1), 2) == pytest.approx(59.75 / 81)


def test_a_precision_below_a_tenth_counts_nothing() -> None:
    assert centre([0.9] * 19 + [0.1], matches(*[0] * 19, 1), 1) == 0


def test_the_surest_takes_the_nearest_object_that_is_left() -> None:
    # Both are nearest to the first object; the less sure one is near enough to the second too.
    apart = np.array([[0.6, 3.0], [0.1, 1.4]])
    everything = np.ones((2, 1), dtype=bool)
    scores = np.array([0.9, 0.8])
    for largest, hits, false in (
        (2.0, [1, 1], [0, 0]),
        (1.0, [1, 0], [0, 1]),
        (0.6, [0, 1], [1, 0]),
    ):
        result = ap.match_by_distance(apart, scores, everything, largest)
        np.testing.assert_array_equal(result[:, 0, ap.HIT], hits)
        np.testing.assert_array_equal(result[:, 0, ap.FALSE], false)


# --- Thresholds -----------------------------------------------------------------------------------


def test_the_best_threshold_has_the_best_f1() -> None:
    # F1 of 2 hits / (found + objects): 2/4, 4/5, 4/6, 6/7, 6/8.
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    assert ap.best_threshold(scores, matches(1, 1, 0, 1, 0), 3) == 0.6
    assert math.isnan(ap.best_threshold(scores, matches(0, 0, 0, 0, 0), 3))
    assert math.isnan(ap.best_threshold(np.zeros(0), matches(), 3))


# --- Public implementations -----------------------------------------------------------------------

Frame = tuple[Array, Array, Array, Array, Array, Array]


def frames(digits: int) -> Iterator[Frame]:
    """Yield boxes, whether each is a Van, difficulties; detections, scores, heights in pixels.

    Scores are rounded: with two digits some are equal.
    """
    generator = np.random.RandomState(1)  # Its stream stays the same in every NumPy.
    for _ in range(30):
        number = generator.randint(0, 8)
        boxes = np.zeros((number, 7))
        boxes[:, :2] = generator.uniform((5, -20), (60, 20), (number, 2))
        boxes[:, 3:6] = 4.0, 1.7, 1.5
        boxes[:, 6] = generator.uniform(-3, 3, number)
        is_van = generator.uniform(size=number) < 0.2
        difficulty = generator.choice([0, 1, 2, -1], number, p=[0.4, 0.3, 0.2, 0.1])
        found = boxes[np.repeat(np.arange(number), generator.randint(0, 4, number))]
        found = found + generator.normal(0, 1, found.shape) * (0.25, 0.25, 0.1, 0, 0, 0, 0.05)
        false = np.zeros((generator.randint(0, 5), 7))
        false[:, :2] = generator.uniform((5, -20), (60, 20), (len(false), 2))
        false[:, 3:6] = 4.0, 1.7, 1.5
        found = np.concatenate([found, false])
        scores = np.round(generator.uniform(size=len(found)), digits)
        pixels = generator.choice([20.0, 30.0, 60.0], len(found), p=[0.1, 0.1, 0.8])
        yield boxes, is_van, difficulty, found, scores, pixels


KITTI = {
    ("bev", 0.5): [
        [0.08701312, 0.1077425],
        [0.22829587, 0.24642251],
        [0.2787897, 0.28875957],
    ],
    ("bev", 0.7): [
        [0.05546894, 0.07732268],
        [0.15983958, 0.18340601],
        [0.18428583, 0.19083842],
    ],
    ("3d", 0.5): [
        [0.08370753, 0.10596479],
        [0.22264334, 0.24248071],
        [0.27406805, 0.28370463],
    ],
    ("3d", 0.7): [
        [0.03491005, 0.0453915],
        [0.09583194, 0.11380725],
        [0.12910714, 0.16049784],
    ],
}
"""Of `frames(2)`, by `clean_data`, `compute_statistics_jit` and `get_thresholds` of mmdet3d 1.4.0's
`evaluation/functional/kitti_utils/eval.py`, its overlaps replaced by ours."""

NUSCENES = {0.5: 0.1537997921, 1.0: 0.2012616462, 2.0: 0.2012616462, 4.0: 0.231304695}
"""Of `frames(9)`, by `accumulate` and `calc_ap` of nuscenes-devkit 1.2.0, Vans being no cars.
It leaves the order of equal scores open."""


def measured(overlap: Callable[[Array, Array], Array], limit: float, array: Any) -> Array:
    """R40 and R11 at the three levels (3, 2)."""
    scores, matched, objects = [], [], np.zeros(3)
    for boxes, is_van, difficulty, found, score, pixels in frames(2):
        counts = ap.counted(array(np.where(is_van, -1, difficulty)))
        overlaps = overlap(array(found), array(boxes))
        low = ap.ignored(array(pixels))
        matched.append(ap.match_by_overlap(overlaps, array(score), counts, limit, low))
        scores.append(array(score))
        objects += np.asarray(counts).sum(axis=0)
    joined = torch.cat if array is torch.from_numpy else np.concatenate
    everything, all_scores = joined(matched), joined(scores)
    precisions = [
        ap.precision_at_recalls(all_scores, everything[:, level], objects[level])
        for level in range(3)
    ]
    return np.array([(ap.r40(one), ap.r11(one)) for one in precisions])


@pytest.mark.parametrize("array", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize(("kind", "limit"), KITTI)
def test_the_average_precision_is_mmdet3ds(kind: str, limit: float, array: Any) -> None:
    ours = measured({"bev": bev_iou, "3d": iou}[kind], limit, array)
    np.testing.assert_allclose(ours, KITTI[kind, limit], rtol=0, atol=1e-8)


@pytest.mark.parametrize("array", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("metres", NUSCENES)
def test_the_centre_average_precision_is_nuscenes(metres: float, array: Any) -> None:
    scores, matched, objects = [], [], 0
    for boxes, is_van, _, found, score, _ in frames(9):
        cars = boxes[~is_van]
        everything = array(np.ones((len(cars), 1), dtype=bool))
        apart = distances(array(found), array(cars))
        matched.append(ap.match_by_distance(apart, array(score), everything, metres))
        scores.append(array(score))
        objects += len(cars)
    joined = torch.cat if array is torch.from_numpy else np.concatenate
    ours = ap.centre_average_precision(joined(scores), joined(matched)[:, 0], objects)
    assert ours == pytest.approx(NUSCENES[metres], abs=1e-9)


def test_a_frame_that_is_drawn_twice_counts_as_two_frames() -> None:
    # What is kept of a frame is what matching its detections at any threshold gives.
    generator = np.random.RandomState(5)
    overlaps = generator.uniform(size=(12, 6)) * (generator.uniform(size=(12, 6)) < 0.5)
    scores, counts = np.round(generator.uniform(size=12), 1), np.ones((6, 1), dtype=bool)
    kept = ap.match_by_overlap(overlaps, scores, counts, 0.3)[:, 0]
    for threshold in np.unique(scores):
        above = scores >= threshold
        alone = ap.match_by_overlap(overlaps[above], scores[above], counts, 0.3)[:, 0]
        twice = ap.counts_at(np.tile(scores, 2), np.tile(kept, (2, 1)), np.array([threshold]))
        assert twice[0] == 2 * alone[:, ap.HIT].sum()
        assert twice[1] == 2 * alone[:, ap.FALSE].sum()
