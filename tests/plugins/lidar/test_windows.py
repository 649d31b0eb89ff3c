"""Parts of scans that training learns from."""

from __future__ import annotations

import pytest
import torch

from pegboard_lidar.grid import Grid, smaller
from pegboard_lidar.windows import cut

GRID = Grid(x=0.0, y=-16.0, side=0.5, rows=64, columns=64)


def scan(boxes: list[tuple[float, float]], labels: list[int]) -> dict[str, torch.Tensor]:
    rows = [[x, y, -1.0, 4.0, 1.8, 1.5, 0.0] for x, y in boxes]
    return {"boxes": torch.tensor([rows]), "labels": torch.tensor([labels])}


@pytest.mark.parametrize("seed", range(20))
def test_an_object_is_in_the_part_and_its_box_where_its_points_are(seed: int) -> None:
    torch.manual_seed(seed)
    place = (float(torch.rand(())) * 31, float(torch.rand(())) * 31 - 16)
    (part,), targets = cut(GRID, (12.0, 12.0), scan([place], [0]))
    assert (part.rows, part.columns, part.side) == (24, 24, GRID.side)
    (low_x, low_y), (high_x, high_y) = part.corners
    assert low_x <= place[0] < high_x
    assert low_y <= place[1] < high_y
    # Points are not moved, boxes are: as far from the part's corner as from the grid's now.
    x, y = targets["boxes"][0, 0, :2].tolist()
    assert x - GRID.x == pytest.approx(place[0] - low_x, abs=1e-5)
    assert y - GRID.y == pytest.approx(place[1] - low_y, abs=1e-5)


def test_every_object_is_drawn_sooner_or_later_and_none_that_is_ignored() -> None:
    torch.manual_seed(0)
    places = [(2.0, -14.0), (29.0, 14.0), (2.0, 14.0)]
    seen = torch.zeros(3)
    for _ in range(60):
        _, targets = cut(GRID, (8.0, 8.0), scan(places, [0, 1, -1]))
        inside = targets["boxes"][0, :, 0] - GRID.x, targets["boxes"][0, :, 1] - GRID.y
        seen += (inside[0] >= 0) & (inside[0] < 8) & (inside[1] >= 0) & (inside[1] < 8)
    assert seen[0] > 10
    assert seen[1] > 10
    assert seen[2] == 0


def test_a_scan_without_objects_and_a_window_larger_than_the_range_are_taken_as_they_are() -> None:
    empty = {"boxes": torch.ones(1, 1, 7), "labels": torch.full((1, 1), -2)}
    parts, targets = cut(GRID, (100.0, 100.0), empty)
    assert parts == [GRID]
    assert torch.equal(targets["boxes"], empty["boxes"])
    assert smaller(GRID, (100.0, 100.0)) == GRID
