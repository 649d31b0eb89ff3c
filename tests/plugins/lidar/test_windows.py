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


def pillars_with(boxes: list[tuple[float, float]]) -> torch.Tensor:
    """One feature, 1 in the pillars of the boxes' middles."""
    pillars = torch.zeros(1, 1, GRID.rows, GRID.columns)
    for x, y in boxes:
        pillars[0, 0, int((x - GRID.x) / GRID.side), int((y - GRID.y) / GRID.side)] = 1
    return pillars


@pytest.mark.parametrize("seed", range(20))
def test_an_object_is_in_the_part_and_its_box_where_its_points_are(seed: int) -> None:
    torch.manual_seed(seed)
    place = (float(torch.rand(())) * 31, float(torch.rand(())) * 31 - 16)
    part, targets = cut(GRID, (12.0, 12.0), pillars_with([place]), scan([place], [0]))
    assert part.shape == (1, 1, 24, 24)
    ((_, _, row, column),) = torch.nonzero(part).tolist()
    x, y = targets["boxes"][0, 0, :2].tolist()
    assert (row, column) == (int((x - GRID.x) / GRID.side), int((y - GRID.y) / GRID.side))


def test_every_object_is_drawn_sooner_or_later_and_none_that_is_ignored() -> None:
    torch.manual_seed(0)
    places = [(2.0, -14.0), (29.0, 14.0), (2.0, 14.0)]
    pillars = pillars_with(places)
    seen = torch.zeros(3)
    for _ in range(60):
        _, targets = cut(GRID, (8.0, 8.0), pillars, scan(places, [0, 1, -1]))
        inside = targets["boxes"][0, :, 0] - GRID.x, targets["boxes"][0, :, 1] - GRID.y
        seen += (inside[0] >= 0) & (inside[0] < 8) & (inside[1] >= 0) & (inside[1] < 8)
    assert seen[0] > 10
    assert seen[1] > 10
    assert seen[2] == 0


def test_a_scan_without_objects_and_a_window_larger_than_the_range_are_taken_as_they_are() -> None:
    pillars = torch.rand(1, 2, GRID.rows, GRID.columns)
    empty = {"boxes": torch.ones(1, 1, 7), "labels": torch.full((1, 1), -2)}
    part, targets = cut(GRID, (100.0, 100.0), pillars, empty)
    assert torch.equal(part, pillars)
    assert torch.equal(targets["boxes"], empty["boxes"])
    assert smaller(GRID, (100.0, 100.0)) == GRID
