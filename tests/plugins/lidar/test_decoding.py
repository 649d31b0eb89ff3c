"""Maps become objects: what the loss asks for is what is read, and nothing is told twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pegboard_lidar.decoding import (
    HEADING,
    OFFSET,
    Detections,
    boxes_of,
    detect,
    peaks,
    told_around,
)
from pegboard_lidar.grid import pillars_of
from pegboard_lidar.objectives import Objective
from pegboard_lidar.settings import LidarSettings

Array = Any
Small = Callable[..., LidarSettings]


# --- Peaks ----------------------------------------------------------------------------------------


def test_a_peak_is_no_lower_than_its_eight_neighbours() -> None:
    heat = np.zeros((2, 5, 6), dtype=np.float32)
    heat[0, 2, 2], heat[0, 3, 3] = 0.9, 0.8  # Corner to corner.
    heat[0, 0, 5] = 0.3  # In a corner of the map.
    heat[1, 3, 3] = 0.5  # Another class knows nothing of it.
    heat[1, 0, 0] = 0.05
    labels, rows, columns = peaks(heat, 0.1)
    found = set(zip(labels.tolist(), rows.tolist(), columns.tolist(), strict=True))
    assert found == {(0, 2, 2), (0, 0, 5), (1, 3, 3)}


def test_the_far_edge_of_the_map_is_not_beside_the_near_one() -> None:
    heat = np.zeros((1, 4, 4), dtype=np.float32)
    heat[0, 0, 0], heat[0, 3, 3] = 0.4, 0.9
    assert len(peaks(heat, 0.1)[0]) == 2


# --- Boxes ----------------------------------------------------------------------------------------


def truth(count: int, seed: int = 0) -> Array:
    """Return boxes (M, 7) all over the range, of all headings."""
    generator = np.random.default_rng(seed)
    low = [0.5, -7.5, -2, 0.5, 0.5, 1, -np.pi]
    high = [15.5, 7.5, 0.5, 6, 2.5, 3, np.pi]
    return generator.uniform(low, high, (count, 7)).astype(np.float32)


def told_of(objective: Objective, box: Array) -> tuple[Array, int, int]:
    """Return the maps (10, H, W) that the loss asks for, and the cell of the middle."""
    grid = objective.grid
    row = int((box[0] - grid.x) / grid.side)
    column = int((box[1] - grid.y) / grid.side)
    boxes = torch.from_numpy(box)[None, None]
    middle = torch.tensor([[(box[0] - grid.x) / grid.side, (box[1] - grid.y) / grid.side]])
    offset = middle - torch.tensor([[row, column]]) - 0.5
    true = objective._true(offset, torch.tensor([0]), torch.tensor([0]), {"boxes": boxes})
    maps = np.zeros((10, grid.rows, grid.columns), dtype=np.float32)
    maps[:, row, column] = true[0].numpy()
    return maps, row, column


@pytest.mark.parametrize("box", truth(12), ids=lambda box: f"{box[6]:.2f}")
def test_what_the_loss_asks_for_is_read_as_the_same_box(small: Small, box: Array) -> None:
    settings = small()
    maps, row, column = told_of(Objective(pillars_of(settings), 3), box)
    assert (np.abs(maps[OFFSET, row, column]) <= 0.5).all()
    found = boxes_of(
        maps[:, [row], [column]], np.array([row]), np.array([column]), pillars_of(settings)
    )
    np.testing.assert_allclose(found[0, :6], box[:6], atol=1e-4)
    assert np.cos(found[0, 6] - box[6]) == pytest.approx(1.0, abs=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("yaw", np.linspace(-np.pi, np.pi, 9))
def test_which_end_is_the_front_is_the_headings_word_and_the_axis_the_axis(
    small: Small, yaw: float
) -> None:
    """A heading that is little sure and a little wrong turns the box by nothing or by half."""
    grid = pillars_of(small())
    box = np.array([8.2, 1.3, -1, 4, 2, 1.5, yaw], dtype=np.float32)
    maps, row, column = told_of(Objective(grid, 3), box)
    wrong = yaw + 0.6
    for sign, turn in ((1, 0.0), (-1, np.pi)):
        maps[HEADING, row, column] = sign * 0.05 * np.array([np.cos(wrong), np.sin(wrong)])
        found = boxes_of(maps[:, [row], [column]], np.array([row]), np.array([column]), grid)[0, 6]
        assert np.cos(found - yaw - turn) == pytest.approx(1.0, abs=1e-6)


def test_a_box_is_told_by_every_cell_around_its_middle(small: Small) -> None:
    """The loss teaches neighbours, too: from each of them the same box must be read."""
    settings = small()
    objective = Objective(pillars_of(settings), 3)
    box = np.array([8.2, 1.3, -1, 4, 2, 1.5, 0.7], dtype=np.float32)
    targets = {
        "boxes": torch.from_numpy(box)[None, None],
        "labels": torch.zeros((1, 1), dtype=torch.int64),
    }
    drawn = objective._drawn(targets["boxes"], targets["labels"])
    near = drawn["cell"][0, 0][drawn["heat"][0, 0] >= 0.3]
    assert len(near) > 4
    offset = drawn["middle"][0] - near - 0.5
    zero = torch.zeros(len(near), dtype=torch.int64)
    true = objective._true(offset, zero, zero, targets).numpy()
    maps = np.zeros((10, 16, 16), dtype=np.float32)
    maps[:, near[:, 0], near[:, 1]] = true.T
    rows, columns = near[:, 0].numpy(), near[:, 1].numpy()
    found = boxes_of(maps[:, rows, columns], rows, columns, pillars_of(settings))
    np.testing.assert_allclose(found, np.tile(box, (len(near), 1)), atol=1e-4)


def test_a_box_is_the_mean_of_what_warm_neighbours_say(small: Small) -> None:
    """Two cells a metre apart in opinion, one three times as warm; cold and other ones are mute."""
    grid = pillars_of(small())
    heat = np.zeros((2, grid.rows, grid.columns), dtype=np.float32)
    maps = np.full((10, grid.rows, grid.columns), 9.0, dtype=np.float32)
    row, column = 5, 0  # On the edge: the far side of the map is no neighbour.
    heat[0, row, column], heat[0, row + 1, column] = 0.9, 0.3
    heat[0, row - 1, column] = 0.2  # Below 0.3 of the peak.
    heat[0, row, -1] = 0.8
    heat[1, row, column + 1] = 0.9  # Of another class.
    maps[:, row, column] = 0
    maps[:, row + 1, column] = 1
    maps[0, row + 1, column] = -1  # From one row further down: the same place.
    where = np.array([row]), np.array([column])
    told = told_around(heat, maps, np.array([0]), *where)
    np.testing.assert_allclose(told[:, 0], [0, 0.25, *[0.25] * 8], atol=1e-6)


# --- Objects --------------------------------------------------------------------------------------


def maps_of(settings: LidarSettings, boxes: Array, labels: Array, scores: Array) -> dict[str, Any]:
    """Return maps that tell of objects without a mistake."""
    objective = Objective(pillars_of(settings), 3)
    heat = np.zeros((3, 16, 16), dtype=np.float32)
    told = np.zeros((10, 16, 16), dtype=np.float32)
    for box, label, score in zip(boxes, labels, scores, strict=True):
        maps, row, column = told_of(objective, box)
        heat[label, row, column] = score
        told[:, row, column] = maps[:, row, column]
    return {"heat": heat, "boxes": told}


APART = np.array(
    [[3, -5, -1, 4, 2, 1.5, 0.3], [9, 0, -1, 4, 2, 1.5, 2.0], [13, 5, -1, 0.8, 0.6, 1.7, -1.0]],
    dtype=np.float32,
)


def test_objects_come_the_surest_first(small: Small) -> None:
    settings = small()
    labels, scores = np.array([0, 0, 1]), np.array([0.3, 0.9, 0.6])
    found = detect(settings, maps_of(settings, APART, labels, scores))
    assert found.labels.tolist() == [0, 1, 0]
    np.testing.assert_allclose(found.scores, [0.9, 0.6, 0.3], atol=1e-6)
    np.testing.assert_allclose(found.boxes[:, :6], APART[[1, 2, 0], :6], atol=1e-4)
    assert found.velocity is None


def test_of_two_objects_of_a_class_that_overlap_the_surer_one_stays(small: Small) -> None:
    settings = small(overlap=0.1)
    boxes = np.array(
        [[8.5, 0.5, -1, 4, 2, 1.5, 0.0], [10.5, 0.5, -1, 4, 2, 1.5, 0.0]], dtype=np.float32
    )
    scores = np.array([0.5, 0.8])
    found = detect(settings, maps_of(settings, boxes, np.array([0, 0]), scores))
    np.testing.assert_allclose(found.scores, [0.8])
    found = detect(settings, maps_of(settings, boxes, np.array([0, 1]), scores))
    np.testing.assert_allclose(found.scores, [0.8, 0.5])
    # The intersection is 2 x 2 of 12 in all.
    loose = small(overlap=0.34)
    assert len(detect(loose, maps_of(loose, boxes, np.array([0, 0]), scores)).scores) == 2


def test_what_is_below_the_smallest_score_or_too_much_is_left_out(small: Small) -> None:
    labels, scores = np.array([0, 0, 1]), np.array([0.3, 0.9, 0.6])
    maps = maps_of(small(), APART, labels, scores)
    np.testing.assert_allclose(detect(small(smallest_score=0.5), maps).scores, [0.9, 0.6])
    np.testing.assert_allclose(detect(small(objects=1), maps).scores, [0.9])
    nothing = detect(small(smallest_score=0.95), maps)
    assert nothing.boxes.shape == (0, 7)
    assert nothing.labels.shape == (0,)


def test_a_detector_without_maps_lists_what_it_found(small: Small) -> None:
    listed = np.full((4, 9), -1.0)
    listed[1] = [*APART[0], 0.7, 2]
    found = detect(small(), {"found": listed})
    assert isinstance(found, Detections)
    assert found.labels.tolist() == [2]
    np.testing.assert_allclose(found.boxes, APART[:1])
    np.testing.assert_allclose(found.scores, [0.7])
