"""Lesions: what finds one, what is marked in vain, how candidates are cut, and the curve."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from pegboard_medical import lesions
from pegboard_medical.masks import components

Array = Any
SHAPE = (12, 40, 40)


def boxes(*corners: tuple[int, int, int], side: int = 4) -> Array:
    mask = np.zeros(SHAPE, dtype=bool)
    for corner in corners:
        mask[tuple(slice(a, a + side) for a in corner)] = True
    return mask


def matched(true: Array, found: Array) -> tuple[int, int]:
    """Return lesions found and regions in vain."""
    numbered, count = components(found)
    one = lesions.match(true, numbered, np.ones(count))
    return int((one.found > 0).sum()), len(one.false)


TWO = boxes((2, 2, 2), (2, 20, 20))


def test_a_perfect_mask_finds_all() -> None:
    assert matched(TWO, TWO) == (2, 0)


def test_a_lesion_that_is_not_marked_is_missed() -> None:
    assert matched(TWO, boxes((2, 2, 2))) == (1, 0)
    assert matched(TWO, np.zeros(SHAPE, dtype=bool)) == (0, 0)


def test_a_region_beside_any_lesion_is_false() -> None:
    assert matched(TWO, boxes((2, 2, 2), (6, 30, 6))) == (1, 1)
    assert matched(np.zeros(SHAPE, dtype=bool), boxes((6, 30, 6))) == (0, 1)


def test_a_tenth_in_common_is_enough_and_less_is_not() -> None:
    # 64 voxels each; 1 x 3 x 4 in common: 12 of 116.
    assert matched(boxes((2, 2, 2)), boxes((5, 3, 2))) == (1, 0)
    # 1 x 2 x 4: 8 of 120.
    assert matched(boxes((2, 2, 2)), boxes((5, 4, 2))) == (0, 1)


def test_marking_everything_finds_nothing() -> None:
    assert matched(TWO, np.ones(SHAPE, dtype=bool)) == (0, 1)


def test_one_region_over_two_lesions_finds_both() -> None:
    true = boxes((2, 2, 2), (2, 2, 8))
    across = true.copy()
    across[2:6, 2:6, 2:12] = True
    assert matched(true, across) == (2, 0)


def test_a_second_region_on_a_lesion_counts_neither_way() -> None:
    halves = boxes((2, 2, 2))
    halves[3, :, :] = False
    assert matched(boxes((2, 2, 2)), halves) == (1, 0)


def test_overlap_is_intersection_over_union() -> None:
    true, found = boxes((2, 2, 2)), boxes((3, 2, 2))
    share = lesions.overlaps(true.astype(int), 1, found.astype(int), 1)
    assert share == pytest.approx(np.array([[48 / 80]]))
    assert lesions.overlaps(np.zeros(SHAPE, int), 0, np.zeros(SHAPE, int), 0).shape == (0, 0)


# --- Candidates -----------------------------------------------------------------------------------


def hills(*peaks: tuple[tuple[int, int, int], float], width: float = 1.5) -> Array:
    """A map with a smooth hill at each place."""
    heights = np.zeros(SHAPE, dtype=np.float32)
    for place, peak in peaks:
        one = np.zeros(SHAPE, dtype=np.float32)
        one[place] = 1
        one = ndimage.gaussian_filter(one, width)
        heights = np.maximum(heights, peak * one / one.max())
    return heights


def test_each_hill_is_one_candidate_with_the_score_of_its_peak() -> None:
    heights = hills(((5, 8, 8), 0.9), ((5, 30, 30), 0.3))
    marked, scores = lesions.candidates(heights)
    np.testing.assert_allclose(scores, [0.9, 0.3], rtol=1e-5)
    # A faint hill is cut out as large as a sure one: at a share of its own height.
    sizes = np.bincount(marked.ravel())[1:]
    assert sizes[0] == sizes[1] > 30
    assert marked[5, 8, 8] == 1
    assert marked[5, 30, 30] == 2
    assert heights[marked == 2].min() >= 0.4 * 0.3


def test_hills_that_run_into_one_another_are_told_apart() -> None:
    marked, scores = lesions.candidates(hills(((5, 10, 10), 0.95), ((5, 10, 17), 0.8)))
    np.testing.assert_allclose(scores, [0.95, 0.8], rtol=1e-5)
    assert marked[5, 10, 10] == 1
    assert marked[5, 10, 17] == 2


def test_the_slope_of_a_candidate_is_no_candidate() -> None:
    _, scores = lesions.candidates(hills(((5, 10, 10), 1.0), width=3.0))
    assert len(scores) == 1


def test_nothing_below_the_floor_is_one() -> None:
    marked, scores = lesions.candidates(hills(((5, 10, 10), 0.04)))
    assert len(scores) == 0
    assert not marked.any()


def test_small_ones_are_dropped() -> None:
    heights = hills(((5, 8, 8), 0.9)) + hills(((5, 30, 30), 0.95), width=0.4)
    _, every = lesions.candidates(heights)
    marked, large = lesions.candidates(heights, fewest=20)
    assert len(every) == 2
    np.testing.assert_allclose(large, [0.9], rtol=1e-5)
    assert marked.max() == 1


def test_of_many_the_surest_are_kept() -> None:
    random = np.random.default_rng(0)
    heights = np.zeros(SHAPE, dtype=np.float32)
    heights[::3, ::3, ::3] = random.uniform(0.1, 1, (4, 14, 14))
    _, scores = lesions.candidates(heights)
    assert len(scores) == lesions.MOST
    np.testing.assert_allclose(scores, np.sort(heights.ravel())[::-1][: lesions.MOST])


def test_of_a_scan_that_is_marked_all_over_the_surest_places_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lesions, "VOXELS", 200)
    heights = np.maximum(hills(((5, 8, 8), 0.9)), np.float32(0.2))
    heights += np.random.default_rng(0).uniform(0, 0.01, SHAPE).astype(np.float32)
    marked, scores = lesions.candidates(heights)
    assert scores[0] == pytest.approx(0.9, abs=0.02)
    assert 0 < (marked > 0).sum() <= 200


def test_counts_fall_with_the_threshold() -> None:
    true = boxes((3, 6, 6))
    heights = hills(((5, 8, 8), 0.6), ((5, 30, 30), 0.3))
    one = lesions.match(true, *lesions.candidates(heights))
    found, false = one.counts(np.array([0.1, 0.5, 0.7]))
    assert found.tolist() == [1, 1, 0]
    assert false.tolist() == [1, 0, 0]


# --- The curve ------------------------------------------------------------------------------------


def test_froc_of_a_worked_case() -> None:
    # Two cases, four lesions; thresholds rise to the right.
    found = np.array([[2, 2, 1], [2, 1, 0]])
    false = np.array([[5, 1, 0], [3, 1, 0]])
    there = np.array([2, 2])
    rates, recall = lesions.curve(found, false, there)
    assert rates.tolist() == [0, 1, 4]
    assert recall.tolist() == [0.25, 0.75, 1]
    # From 0.25 at none to 0.75 at one, to 1 at four, and then on.
    expected = [0.25 + 0.5 / 8, 0.25 + 0.5 / 4, 0.5, 0.75, 0.75 + 0.25 / 3, 1, 1]
    assert lesions.froc(found, false, there) == pytest.approx(np.mean(expected))


def test_the_curve_begins_with_nothing() -> None:
    # The strictest threshold makes one false region a case: below it, a straight line to 0.
    read = lesions.recall_at(np.array([1.0]), np.array([0.8]), np.array([0.25, 1, 8]))
    np.testing.assert_allclose(read, [0.2, 0.8, 0.8])


def test_froc_is_one_for_a_perfect_model_and_zero_for_an_idle_one() -> None:
    zero, one = np.zeros((3, 4)), np.ones((3, 4))
    assert lesions.froc(one, zero, np.ones(3)) == 1
    assert lesions.froc(zero, zero, np.ones(3)) == 0


def test_froc_needs_a_lesion_and_leaves_out_what_is_not_outlined() -> None:
    one = np.ones((2, 4))
    assert np.isnan(lesions.froc(one, one, np.zeros(2)))
    assert np.isnan(lesions.froc(one, one, np.full(2, np.nan)))
    unknown = np.array([[0.0] * 4, [np.nan] * 4])
    assert lesions.froc(one, unknown, np.array([1, np.nan])) == 1
