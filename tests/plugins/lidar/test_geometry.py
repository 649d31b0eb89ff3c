"""Rotated boxes: worked overlaps, shapely's, and suppression."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely
import torch

from pegboard_lidar import boxes as shapes
from pegboard_lidar.geometry import (
    bev_iou,
    bev_iou_of_pairs,
    distances,
    intersection,
    iou,
    iou_of_pairs,
    suppress,
)

Array = Any
QUARTERS = np.arange(-4, 5) * np.pi / 2


def box(x: float = 0, y: float = 0, *, z: float = 0, size: Any = (4, 2, 1), yaw: float = 0) -> Any:
    return np.array([[x, y, z, *size, yaw]], dtype=np.float64)


def drawn(seed: int, count: int = 2000, *, spread: float = 3.0) -> Array:
    """Boxes (count, 7) of all sizes near the origin."""
    generator = np.random.default_rng(seed)
    boxes = generator.uniform(-spread, spread, (count, 7))
    boxes[:, 3:6] = generator.uniform(0.2, 6.0, (count, 3))
    boxes[:, 6] = generator.uniform(-7.0, 7.0, count)
    return boxes


def turned_by_quarters(seed: int) -> Array:
    """Boxes whose sides are whole metres and parallel: many touch, contain or share edges."""
    generator = np.random.default_rng(seed)
    boxes = np.round(drawn(seed))
    boxes[:, 3:6] += 1
    boxes[:, 6] = generator.choice(QUARTERS, len(boxes))
    return boxes


def areas_by_shapely(boxes: Array, others: Array) -> Array:
    one, other = (shapely.polygons(shapes.corners(some)[:, :4, :2]) for some in (boxes, others))
    return shapely.area(shapely.intersection(one, other))


def scaled(boxes: Array, factor: float) -> Array:
    result = boxes.copy()
    result[:, 3:5] *= factor
    return result


def shifted(boxes: Array, metres: float) -> Array:
    result = boxes.copy()
    result[:, :2] += metres
    return result


# --- Worked cases ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "area"),
    [
        (box(), 8.0),
        (box(yaw=np.pi), 8.0),
        # Crossed: 2 x 2 in common.
        (box(yaw=np.pi / 2), 4.0),
        # Half a length ahead.
        (box(2), 4.0),
        # A corner of 1 x 0.5.
        (box(3, 1.5), 0.5),
        # Touching along a side, and at a corner.
        (box(4), 0.0),
        (box(4, 2), 0.0),
        # Inside, however turned; and around.
        (box(size=(1, 0.5, 1), yaw=0.7), 0.5),
        (box(size=(40, 40, 1), yaw=0.7), 8.0),
        # A square that stands on its corner, of which the left half reaches in.
        (box(2, size=(np.sqrt(2), np.sqrt(2), 1), yaw=np.pi / 4), 1.0),
        (box(100), 0.0),
        # Without a width.
        (box(size=(4, 0, 1)), 0.0),
    ],
)
def test_a_worked_intersection(other: Array, area: float) -> None:
    assert intersection(box(), other) == pytest.approx(area, abs=1e-12)
    assert intersection(other, box()) == pytest.approx(area, abs=1e-12)


def test_two_squares_share_an_octagon() -> None:
    # As a square of side 2 and the same turned by 45 degrees do: 8 (sqrt(2) - 1).
    square, turned = box(size=(2, 2, 2)), box(size=(2, 2, 2), yaw=np.pi / 4)
    octagon = 8 * (np.sqrt(2) - 1)
    assert intersection(square, turned) == pytest.approx(octagon)
    assert bev_iou_of_pairs(square, turned) == pytest.approx(octagon / (8 - octagon))


def test_a_worked_overlap_in_space() -> None:
    # Half of the length and half of the height in common: 2 of 8 + 8 - 2.
    assert iou_of_pairs(box(size=(4, 2, 1)), box(2, z=0.5)) == pytest.approx(2 / 14)
    assert iou_of_pairs(box(), box(z=1.0)) == 0
    assert iou_of_pairs(box(), box(z=5.0)) == 0


def test_boxes_without_area_overlap_nothing() -> None:
    flat = box(size=(0, 0, 0))
    assert bev_iou(flat, flat) == iou(flat, flat) == 0


# --- Shapely --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boxes", "others"),
    [
        pytest.param(drawn(0), drawn(1), id="any"),
        pytest.param(turned_by_quarters(0), turned_by_quarters(1), id="parallel"),
        pytest.param(scaled(drawn(2), 1e-3), drawn(3), id="tiny"),
        pytest.param(scaled(drawn(4), 1e3), drawn(5), id="huge"),
        pytest.param(shifted(drawn(6), 70), shifted(drawn(7), 70), id="far ahead"),
        pytest.param(drawn(8), shifted(drawn(9), 60), id="far apart"),
        pytest.param(scaled(drawn(10), 0.1), scaled(drawn(11), 4), id="contained"),
    ],
)
def test_overlap_is_shapelys(boxes: Array, others: Array) -> None:
    shared = areas_by_shapely(boxes, others)
    union = boxes[:, 3] * boxes[:, 4] + others[:, 3] * others[:, 4] - shared
    np.testing.assert_allclose(intersection(boxes, others), shared, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(bev_iou_of_pairs(boxes, others), shared / union, rtol=0, atol=1e-9)
    low, high = (
        other(boxes[:, 2] + sign * boxes[:, 5] / 2, others[:, 2] + sign * others[:, 5] / 2)
        for sign, other in ((-1, np.maximum), (1, np.minimum))
    )
    volume = shared * np.maximum(high - low, 0)
    volumes = boxes[:, 3:6].prod(axis=1) + others[:, 3:6].prod(axis=1)
    np.testing.assert_allclose(iou_of_pairs(boxes, others), volume / (volumes - volume), atol=1e-9)


@pytest.mark.parametrize("turn", [0.0, np.pi, -np.pi, 2 * np.pi, 1e-16, 1e-12])
def test_a_box_overlaps_itself_wholly(turn: float) -> None:
    # Shapely 2.2 says that a box and the same turned by pi share nothing, 4 times in 4,000.
    boxes = drawn(12)
    same = boxes.copy()
    same[:, 6] += turn
    np.testing.assert_allclose(bev_iou_of_pairs(boxes, same), 1.0, rtol=0, atol=1e-9)
    np.testing.assert_allclose(iou_of_pairs(same, boxes), 1.0, rtol=0, atol=1e-9)


def test_a_square_overlaps_itself_turned_by_any_quarter() -> None:
    square = drawn(13)
    square[:, 4] = square[:, 3]
    for turn in QUARTERS:
        turned = square.copy()
        turned[:, 6] += turn
        np.testing.assert_allclose(bev_iou_of_pairs(square, turned), 1.0, rtol=0, atol=1e-9)


# --- All with all ---------------------------------------------------------------------------------


def test_all_with_all_is_each_pair() -> None:
    boxes, others = drawn(14, 30, spread=15), drawn(15, 20, spread=15)
    first, second = (a.ravel() for a in np.indices((30, 20)))
    for of_all, of_pairs in ((bev_iou, bev_iou_of_pairs), (iou, iou_of_pairs)):
        pairs = of_pairs(boxes[first], others[second]).reshape(30, 20)
        assert 0 < (pairs > 0).sum() < 600
        np.testing.assert_allclose(of_all(boxes, others), pairs, rtol=0, atol=1e-15)


def test_nothing_overlaps_no_box() -> None:
    none = np.zeros((0, 7))
    assert bev_iou(none, box()).shape == distances(none, box()).shape == (0, 1)
    assert iou(box(), none).shape == (1, 0)
    assert suppress(none, np.zeros(0), 0.1).shape == (0,)


def test_torch_and_numpy_agree() -> None:
    boxes, others = drawn(16, 40), drawn(17, 50)
    tensors = torch.from_numpy(boxes).float(), torch.from_numpy(others).float()
    for function in (bev_iou, iou, distances):
        ours = function(*tensors)
        assert ours.dtype == torch.float64
        expected = function(*(tensor.numpy() for tensor in tensors))
        np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-12)
    scores = np.random.default_rng(0).random(40).astype(np.float32)
    kept = suppress(tensors[0], torch.from_numpy(scores), 0.2)
    np.testing.assert_array_equal(kept.numpy(), suppress(tensors[0].numpy(), scores, 0.2))


# --- Suppression ----------------------------------------------------------------------------------


def test_the_surer_of_two_that_overlap_stays() -> None:
    boxes = np.concatenate([box(), box(1), box(20)])
    np.testing.assert_array_equal(suppress(boxes, np.array([0.5, 0.9, 0.1]), 0.1), [1, 2])
    # They overlap by 6 of 10.
    np.testing.assert_array_equal(suppress(boxes, np.array([0.5, 0.9, 0.1]), 0.6), [1, 0, 2])


def test_what_is_dropped_drops_nothing() -> None:
    # In a row: the first drops the second, which would have dropped the third.
    boxes = np.concatenate([box(), box(3), box(6)])
    np.testing.assert_array_equal(suppress(boxes, np.array([0.9, 0.8, 0.7]), 0.1), [0, 2])


def test_of_equal_scores_the_first_stays() -> None:
    boxes = np.concatenate([box(), box(0.5)])
    np.testing.assert_array_equal(suppress(boxes, np.array([0.5, 0.5]), 0.1), [0])


def test_what_is_kept_is_what_the_definition_keeps() -> None:
    boxes, scores = drawn(18, 150, spread=20), np.random.default_rng(1).random(150)
    kept: list[int] = []
    for index in np.argsort(-scores):
        if not kept or bev_iou(boxes[[index]], boxes[kept]).max() <= 0.1:
            kept.append(index)
    assert 20 < len(kept) < 140
    np.testing.assert_array_equal(suppress(boxes, scores, 0.1), kept)
