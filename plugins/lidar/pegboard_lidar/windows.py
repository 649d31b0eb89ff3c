"""A part of the ground that a training step learns from: around an object, not mostly nothing.

Most of the range is empty, and an empty cell costs what any other does. A convolution does not know
where it is, so the model that learns from parts judges the whole.

B scans, M objects each (padded), C features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pegboard_lidar.grid import LEVELS, Grid, smaller


def cut(
    grid: Grid, size: tuple[float, float], targets: Mapping[str, Any]
) -> tuple[list[Grid], dict[str, Any]]:
    """Cut a part out of every scan, around an object that is drawn by lot.

    Args:
        grid: Of the pillars.
        size: Metres ahead and across.
        targets: `boxes` (B, M, 7) and `labels` (B, M) among them.

    Returns:
        The B parts, and the targets, their boxes moved as if each part began where the grid does.
    """
    part = smaller(grid, size)
    boxes = targets["boxes"].clone()
    parts = []
    for scan, labels in enumerate(targets["labels"]):
        row, column = _corner(grid, part, boxes[scan][labels >= 0])
        ahead, aside = row * grid.side, column * grid.side
        parts.append(replace(part, x=grid.x + ahead, y=grid.y + aside))
        boxes[scan, :, 0] -= ahead
        boxes[scan, :, 1] -= aside
    return parts, {**targets, "boxes": boxes}


def _corner(grid: Grid, part: Grid, boxes: Tensor) -> tuple[int, int]:
    """Draw where a part begins, in pillars: about an object somewhere in it, or anywhere."""
    # Cells of the coarsest level begin with every eighth pillar.
    step = 2**LEVELS
    size = torch.tensor([part.rows, part.columns])
    free = torch.tensor([grid.rows, grid.columns]) - size
    share = torch.rand(2)
    corner = share * (free + 1)
    if len(boxes):
        chosen = boxes[int(torch.randint(len(boxes), ()))]
        middle = (chosen[:2].cpu() - torch.tensor([grid.x, grid.y])) / grid.side
        # Half a step from the edge at least, or rounding would put the object outside.
        corner = middle - step / 2 - share * (size - step)
    row, column = (corner / step).round().mul(step).clamp(min=0).minimum(free).long().tolist()
    return row, column
