"""What the maps should say of labelled objects, and what it costs not to say it.

B scans, M objects each (padded), K classes, H x W cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pegboard_lidar.decoding import AXIS, BOX_CHANNELS, HEADING, HEIGHT, OFFSET, SIZE, VELOCITY
from pegboard_lidar.frames import IGNORED
from pegboard_lidar.geometry import bev_iou_of_pairs
from pegboard_lidar.grid import Grid

REACH = 4
"""Cells around an object's middle that its heat reaches."""

SHARE = 0.3
"""Heat from which on a cell tells the box too: not the middle alone, which learns faster."""

BOX_WEIGHT = 2.0

OVERLAP_WEIGHT = 2.0


class Objective(nn.Module):
    """The loss of CenterPoint (Yin et al., CVPR 2021): where objects are, and their boxes.

    Args:
        grid: Cells of the maps.
        classes: K.
    """

    around: Tensor
    """int64 (R, 2), steps to the cells around one."""

    def __init__(self, grid: Grid, classes: int) -> None:
        super().__init__()
        self.grid, self.classes = grid, classes
        step = torch.arange(-REACH, REACH + 1)
        around = torch.stack(torch.meshgrid(step, step, indexing="ij"), dim=-1)
        self.register_buffer("around", around.reshape(-1, 2), persistent=False)  # (R, 2)

    def forward(
        self, logits: Tensor, overlap: Tensor, boxes: Tensor, targets: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Return `loss`, its parts `heat`, `box` and `overlap`.

        Args:
            logits: (B, K, H, W).
            overlap: Logits (B, 1, H, W) of how much the box in a cell and its object share.
            boxes: (B, 10 or 12, H, W).
            targets: `boxes` (B, M, 7), `labels` (B, M), `velocity` (B, M, 2).
        """
        drawn = self._drawn(targets["boxes"].float(), targets["labels"])
        heat, is_counted = self._heat(drawn, targets, logits.shape)
        heat_loss = penalty_reduced_focal(logits, heat, is_counted)
        told = self._told(heat, drawn, targets["labels"])
        box_loss, overlap_loss = self._box_losses(boxes, overlap, told, drawn, targets)
        return {
            "loss": heat_loss + BOX_WEIGHT * box_loss + overlap_loss,
            "heat": heat_loss.detach(),
            "box": box_loss.detach(),
            "overlap": overlap_loss.detach(),
        }

    def _drawn(self, boxes: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return of every object the cells around it: `cell` (B, M, R, 2), `heat` (B, M, R)."""
        grid = self.grid
        corner = torch.tensor([grid.x, grid.y], device=boxes.device)
        middle = (boxes[..., :2] - corner) / grid.side  # (B, M, 2), in cells
        cell = middle.floor().long()[:, :, None] + self.around  # (B, M, R, 2)
        deviation = ((boxes[..., 3] * boxes[..., 4]).sqrt() / grid.side / 6).clamp(1.2, 1.5)
        squared = self.around.square().sum(dim=-1)  # (R,)
        heat = torch.exp(-squared / (2 * deviation.square()[..., None]))
        is_there = (cell >= 0).all(dim=-1)
        is_there &= (cell[..., 0] < grid.rows) & (cell[..., 1] < grid.columns)
        is_there &= (labels >= 0)[..., None]
        return {"middle": middle, "cell": cell, "heat": heat * is_there, "is_there": is_there}

    def _heat(
        self, drawn: Mapping[str, Tensor], targets: Mapping[str, Any], shape: torch.Size
    ) -> tuple[Tensor, Tensor]:
        """Return the heat (B, K, H, W) and which cells count (B, 1, H, W)."""
        index = self._index(drawn["cell"], targets["labels"])
        flat = drawn["heat"].new_zeros(shape.numel())
        heat = flat.scatter_reduce(0, index.reshape(-1), drawn["heat"].reshape(-1), "amax")
        return heat.reshape(shape), ~self._ignored(targets)

    def _index(self, cell: Tensor, labels: Tensor) -> Tensor:
        """Return places (B, M, R) in the flat heat map; of cells outside, some place inside."""
        grid = self.grid
        scan = torch.arange(len(labels), device=labels.device)[:, None]
        layer = (scan * self.classes + labels.clamp(min=0))[..., None]
        row = cell[..., 0].clamp(0, grid.rows - 1)
        column = cell[..., 1].clamp(0, grid.columns - 1)
        return (layer * grid.rows + row) * grid.columns + column

    def _ignored(self, targets: Mapping[str, Any]) -> Tensor:
        """Return the cells (B, 1, H, W) inside an object that may be found or not."""
        grid, labels = self.grid, targets["labels"]
        x = grid.x + (torch.arange(grid.rows, device=labels.device) + 0.5) * grid.side
        y = grid.y + (torch.arange(grid.columns, device=labels.device) + 0.5) * grid.side
        result = torch.zeros(
            (len(labels), 1, grid.rows, grid.columns), dtype=torch.bool, device=labels.device
        )
        for scan, place in torch.nonzero(labels == IGNORED).tolist():
            middle_x, middle_y, _, length, width, _, yaw = targets["boxes"][scan, place]
            east, north = x[:, None] - middle_x, y[None, :] - middle_y
            along = (east * yaw.cos() + north * yaw.sin()).abs() <= length / 2
            across = (north * yaw.cos() - east * yaw.sin()).abs() <= width / 2
            result[scan, 0] |= along & across
        return result

    def _told(
        self, heat: Tensor, drawn: Mapping[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return scan, object and neighbour (P,) of the P cells that tell a box."""
        # Of cells that several objects reach, the one whose heat it is tells.
        is_told = drawn["is_there"] & (drawn["heat"] >= SHARE)
        is_told &= heat.reshape(-1)[self._index(drawn["cell"], labels)] <= drawn["heat"]
        scan, place, near = torch.nonzero(is_told, as_tuple=True)
        return scan, place, near

    def _box_losses(
        self,
        boxes: Tensor,
        overlap: Tensor,
        told: tuple[Tensor, Tensor, Tensor],
        drawn: Mapping[str, Tensor],
        targets: Mapping[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """Return how far boxes are off where objects are, and how little they share with them.

        The shared area is the exact one, whose gradient torch takes: boxes learn what they are
        measured by.
        """
        scan, place, near = told
        cell = drawn["cell"][scan, place, near]
        found = boxes[scan, :, cell[:, 0], cell[:, 1]]  # (P, 10 or 12)
        true = self._true(drawn["middle"][scan, place] - cell - 0.5, scan, place, targets)
        weight = drawn["heat"][scan, place, near]
        weight = weight / weight.sum().clamp(min=1.0)
        error = (found[:, :BOX_CHANNELS] - true).abs() * _weights(true.device)
        loss = (error.sum(dim=1) * weight).sum()
        if boxes.shape[1] > BOX_CHANNELS:
            loss = loss + _velocity_loss(found[:, VELOCITY], targets["velocity"][scan, place])
        shared = bev_iou_of_pairs(self._box_of(found), self._box_of(true)).float()
        judged = F.binary_cross_entropy_with_logits(
            overlap[scan, 0, cell[:, 0], cell[:, 1]], shared.detach(), reduction="none"
        )
        return loss, ((OVERLAP_WEIGHT * (1 - shared) + judged) * weight).sum()

    def _box_of(self, told: Tensor) -> Tensor:
        """Return the boxes (P, 7) of what cells say (P, 10), all as if in one cell."""
        size = told[:, SIZE].clamp(-3, 4).exp()
        axis = 0.5 * torch.atan2(told[:, AXIS][:, 1], told[:, AXIS][:, 0])
        return torch.cat(
            [told[:, OFFSET] * self.grid.side, told[:, HEIGHT, None], size, axis[:, None]], dim=1
        )

    def _true(
        self, offset: Tensor, scan: Tensor, place: Tensor, targets: Mapping[str, Any]
    ) -> Tensor:
        """Return what the map should say (P, 10)."""
        box = targets["boxes"][scan, place].float()
        yaw = box[:, 6]
        true: Tensor = box.new_zeros((len(box), BOX_CHANNELS))
        true[:, OFFSET] = offset
        true[:, HEIGHT] = box[:, 2]
        true[:, SIZE] = box[:, 3:6].log()
        true[:, HEADING] = torch.stack([yaw.cos(), yaw.sin()], dim=-1)
        true[:, AXIS] = torch.stack([(2 * yaw).cos(), (2 * yaw).sin()], dim=-1)
        return true


def _weights(device: torch.device) -> Tensor:
    """Return how much each channel counts (10,): places and sizes decide whether boxes overlap."""
    return torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0, 1.0, 0.2, 0.2, 1.0, 1.0], device=device) / 2


def _velocity_loss(told: Tensor, true: Tensor) -> Tensor:
    known = torch.isfinite(true)
    error = (told - torch.where(known, true, 0.0)).abs() * known
    return 0.2 * error.sum() / known.sum().clamp(min=1)


def penalty_reduced_focal(logits: Tensor, heat: Tensor, is_counted: Tensor) -> Tensor:
    """Return the focal loss of heat maps (Law and Deng, CornerNet, ECCV 2018), per object.

    Args:
        logits: (B, K, H, W).
        heat: (B, K, H, W), 1 in the middle of an object and less around it.
        is_counted: (B, 1, H, W), false where anything may be said.
    """
    probability = logits.sigmoid()
    is_middle = heat >= 1.0
    hit = -F.logsigmoid(logits) * (1 - probability).square()
    false = -F.logsigmoid(-logits) * probability.square() * (1 - heat).pow(4) * is_counted
    return torch.where(is_middle, hit, false).sum() / is_middle.sum().clamp(min=1)
