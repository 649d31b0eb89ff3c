"""The detector: dynamic pillars, a small pyramid, a centre-based head, and its loss.

B scans of N points, K classes, C channels; a grid of X x Y pillars, maps of H x W cells, one
a pillar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from pegboard.records import Batch
from pegboard_lidar.decoding import BOX_CHANNELS, HEIGHT, SIZE, VELOCITY
from pegboard_lidar.grid import Grid, pillars_of, smaller
from pegboard_lidar.objectives import Objective
from pegboard_lidar.settings import LidarSettings, Range
from pegboard_lidar.windows import cut

HIDDEN = 16
"""Units between what is told of a point and its features."""

HALVES = 2
"""Along a side of a pillar: points are sorted into its quarters."""

FINER = 2
"""Cells of the maps along a side of a cell that the head sees; they are those of the pillars."""

# --- Pillars --------------------------------------------------------------------------------------


class PillarEncoder(nn.Module):
    """Points to a picture of the ground: of every feature the maximum in each quarter of a pillar.

    PointPillars (Lang et al., CVPR 2019) with the dynamic voxels of MVF (Zhou et al., CoRL 2019):
    any number of points in any number of pillars, none padded, none left out. Points outside the
    range fall into one quarter more, which is thrown away, so that nothing depends on how many
    there are; features are not negative, so that the zero of what is empty is exact and the order
    of the points changes nothing.

    The quarters of a pillar are channels of it (space to depth): the network sees outlines twice as
    fine and has no more cells to go through.

    Args:
        grid: The pillars.
        range: Smallest and largest x, y, z that count.
        features: Of a quarter; C is four times as many.
        reflectance: Whether it is looked at.
    """

    def __init__(self, grid: Grid, range: Range, features: int, *, reflectance: bool) -> None:  # noqa: A002
        super().__init__()
        self.grid, self.range = grid, range
        self.features, self.reflectance = features, reflectance
        self.describe = nn.Sequential(
            nn.Linear(6 if reflectance else 5, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, features)
        )

    @property
    def channels(self) -> int:
        """Return C."""
        return self.features * HALVES**2

    def forward(self, points: Tensor) -> Tensor:
        """float32 (B, N, 4) -> (B, C, X, Y); a point that is not finite counts for nothing."""
        sorted_ = [self._sorted(scan, self.grid, self.range) for scan in points]
        return self._picture(sorted_, self.grid)

    def parts(self, points: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Return the pillars (B, C, x, y) of a part of each scan; other points cost nothing.

        Args:
            points: float32 (B, N, 4).
            grids: B parts of the grid, equally large.
        """
        sorted_ = []
        for scan, grid in zip(points, grids, strict=True):
            low, high = grid.corners
            is_near = (scan[:, :2] >= scan.new_tensor(low)) & (scan[:, :2] < scan.new_tensor(high))
            limits = (*low, self.range[2], *high, self.range[5])
            sorted_.append(self._sorted(scan[is_near.all(dim=-1)], grid, limits))
        return self._picture(sorted_, grids[0])

    def _picture(self, scans: Sequence[tuple[Tensor, Tensor]], grid: Grid) -> Tensor:
        """Return the pillars (B, C, X, Y) of points that are sorted into them, scan by scan."""
        size = grid.rows * grid.columns * HALVES**2
        index = torch.cat([place + (size + 1) * scan for scan, (place, _) in enumerate(scans)])
        found = self.describe(torch.cat([told for _, told in scans])).relu()  # (points, features)
        quarters: Tensor = PillarMaximum.apply(found, index, len(scans) * (size + 1))  # type: ignore[no-untyped-call]
        picture = quarters.reshape(len(scans), size + 1, self.features)[:, :size]
        shape = len(scans), grid.rows, grid.columns, self.channels
        return picture.reshape(shape).permute(0, 3, 1, 2)

    def _sorted(self, points: Tensor, grid: Grid, limits: Range) -> tuple[Tensor, Tensor]:
        """Return of every point its quarter (N,) and what is told of it (N, 5 or 6).

        Column by column: a runtime goes through a whole column at once.
        """
        size = grid.rows * grid.columns * HALVES**2
        columns = points.unbind(dim=-1)
        is_inside = torch.ones_like(columns[0], dtype=torch.bool)
        for column, low, high in zip(columns, limits[:3], limits[3:], strict=False):
            is_inside = is_inside & (column >= low) & (column < high)
        # Also what is not finite becomes harmless: it is outside.
        x, y, z, reflectance = (torch.where(is_inside, column, 0.0) for column in columns)
        row, column = (x - grid.x) / grid.side, (y - grid.y) / grid.side
        first, second = row.floor(), column.floor()
        row, column = (row - first) * HALVES, (column - second) * HALVES
        down, right = row.floor(), column.floor()
        pillar = first * grid.columns + second
        # Rounding may put a point on the far edge one cell too far.
        index = ((pillar * HALVES + down) * HALVES + right).long().clamp(0, size - 1)
        told = [
            (row - down) * 2 - 1,
            (column - right) * 2 - 1,
            z,
            z * z / 4,
            (x * x + y * y).sqrt() / 50,
            *([reflectance] if self.reflectance else []),
        ]
        return torch.where(is_inside, index, size), torch.stack(told, dim=-1)


class PillarMaximum(torch.autograd.Function):
    """Of every feature the maximum in each pillar: (N, C), (N,) -> (size, C), 0 where none is.

    Torch's own gradient goes through every pillar, empty or not, and is four times as slow. Points
    that share a maximum each get the whole of its gradient here.
    """

    @staticmethod
    def forward(ctx: Any, found: Tensor, index: Tensor, size: int) -> Tensor:
        """Keep what the gradient needs."""
        rows = index[:, None].expand(-1, found.shape[1])
        pillars = found.new_zeros((size, found.shape[1])).scatter_reduce(0, rows, found, "amax")
        ctx.save_for_backward(found, index, pillars)
        return pillars

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """A point learns where it is the maximum."""
        found, index, pillars = ctx.saved_tensors
        return gradients[0][index] * (found == pillars[index]), None, None


# --- Network --------------------------------------------------------------------------------------


def convolution(inputs: int, outputs: int, size: int, *, stride: int = 1) -> nn.Sequential:
    """Return a convolution with normalisation and ReLU; runtimes fold it into one operation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride=stride, padding=(size - 1) // 2, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.1),
        nn.ReLU(),
    )


class Block(nn.Module):
    """Two convolutions and the way around them (He et al., CVPR 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = convolution(channels, channels, 3)
        self.second = convolution(channels, channels, 3)

    def forward(self, picture: Tensor) -> Tensor:
        """(B, C, h, w) -> the same."""
        result: Tensor = picture + self.second(self.first(picture))
        return result


class Pyramid(nn.Module):
    """Three levels down, and what they saw added up again (Lin et al., CVPR 2017).

    Args:
        features: Channels of a pillar.
        channels: Of each level.
        blocks: In each level.
    """

    def __init__(
        self, features: int, channels: tuple[int, int, int], blocks: tuple[int, int, int]
    ) -> None:
        super().__init__()
        inputs = (features, *channels)
        self.levels = nn.ModuleList(
            nn.Sequential(
                convolution(before, after, 3, stride=2),
                *(Block(after) for _ in range(count)),
            )
            for before, after, count in zip(inputs, channels, blocks, strict=False)
        )
        self.lateral = nn.ModuleList(
            convolution(coarse, fine, 1) for fine, coarse in pairwise(channels)
        )

    def forward(self, picture: Tensor) -> Tensor:
        """(B, C, X, Y) -> (B, channels[0], X / 2, Y / 2)."""
        seen = []
        for level in self.levels:
            picture = level(picture)
            seen.append(picture)
        for lateral in reversed(self.lateral):
            seen.pop()
            coarse = nn.functional.interpolate(lateral(picture), scale_factor=2.0)
            picture = seen[-1] + coarse
        return picture


RARE = -4.6
"""Logit of 0.01, which the heat begins with: objects are rare, and one half would have to be
unlearnt first."""


def middling(boxes: int) -> Tensor:
    """Return what the map of boxes begins with: a middling object, a metre below the scanner."""
    begin = torch.zeros(boxes)
    begin[HEIGHT] = -1.0
    begin[SIZE] = torch.tensor([2.4, 1.2, 1.6]).log()
    return begin


class CentreHead(nn.Module):
    """What is in the middle of each cell: objects are points (Yin et al., CVPR 2021).

    Beside heat and box it tells how well the box will fit (Jiang et al., IoU-Net, ECCV 2018). It
    tells of each quarter of a cell on its own (sub-pixel convolution, Shi et al., CVPR 2016):
    people who stand side by side have middles in different ones.

    Args:
        channels: Of the picture.
        classes: K.
        boxes: Channels of the map of boxes, see `decoding.py`.
    """

    def __init__(self, channels: int, classes: int, boxes: int) -> None:
        super().__init__()
        self.parts = [classes, 1, boxes]
        # Wider than what it sees: numbers of unlike kinds come out of it.
        self.shared = convolution(channels, 2 * channels, 3)
        begin = torch.cat([torch.full((classes,), RARE), torch.zeros(1), middling(boxes)])
        begin = begin.repeat_interleave(FINER**2)
        self.maps = nn.Conv2d(2 * channels, len(begin), 1)
        self.maps.bias = nn.Parameter(begin)
        self.quarters = nn.PixelShuffle(FINER)

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, h, w) -> logits (B, K, H, W), overlap (B, 1, H, W), boxes (B, 10 or 12, H, W).

        H and W are twice h and w.
        """
        maps = self.quarters(self.maps(self.shared(picture)))
        logits, overlap, boxes = maps.split(self.parts, dim=1)
        return logits, overlap, boxes


# --- The model ------------------------------------------------------------------------------------


class PillarDetector(nn.Module):
    """Raw points to maps, whole: what is trained is what is exported.

    Args:
        encoder: Points to pillars.
        head: Pillars to logits and boxes.
        objective: What it is taught by.
        window: Metres of the part of a scan that it learns from.
    """

    def __init__(
        self,
        encoder: PillarEncoder,
        head: nn.Module,
        objective: Objective,
        window: tuple[float, float],
    ) -> None:
        super().__init__()
        self.encoder, self.head, self.objective = encoder, head, objective
        self.window = window

    def forward(self, points: Tensor) -> dict[str, Tensor]:
        """float32 (N, 4) -> `heat` (K, H, W), 0 to 1, and `boxes` (10 or 12, H, W)."""
        return self.maps(self.encoder(points[None]))

    def maps(self, pillars: Tensor) -> dict[str, Tensor]:
        """(1, C, X, Y) -> `heat` and `boxes` of the one scan."""
        logits, overlap, boxes = self.head(pillars)
        # An object that is surely there and poorly outlined ranks below one that is outlined well.
        return {"heat": logits[0].sigmoid() * overlap[0].sigmoid(), "boxes": boxes[0]}

    def losses(self, batch: Batch) -> Mapping[str, Tensor]:
        """Compare the maps of parts of B scans with their objects."""
        grids, targets = cut(self.encoder.grid, self.window, batch.targets)
        parts = self.encoder.parts(batch.inputs["points"], grids)
        # Three times as fast on a CPU.
        maps = self.head(parts.contiguous(memory_format=torch.channels_last))
        logits, overlap, boxes = (one.float() for one in maps)
        losses: Mapping[str, Tensor] = self.objective(logits, overlap, boxes, targets)
        return losses


def build(settings: LidarSettings) -> PillarDetector:
    """Build the model of a project."""
    data, model = settings.data, settings.model
    encoder = PillarEncoder(
        pillars_of(settings), data.range, model.features, reflectance=model.reflectance
    )
    boxes = VELOCITY.stop if model.velocity else BOX_CHANNELS
    head = nn.Sequential(
        Pyramid(encoder.channels, model.channels, model.blocks),
        CentreHead(model.channels[0], len(data.classes), boxes),
    )
    head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # No stub.
    window = settings.train.window
    learnt = smaller(pillars_of(settings), window)
    return PillarDetector(encoder, head, Objective(learnt, len(data.classes)), window)
