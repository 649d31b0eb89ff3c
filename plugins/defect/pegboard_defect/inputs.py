"""What a backbone is given of a picture: the picture itself, or which way its edges run.

It is part of the graph, so a request is a picture in any case. B pictures, H x W pixels, C
channels, D channels of what the backbone is given.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pegboard_defect.images import channels_of
from pegboard_defect.settings import DefectData

FAINTEST = 1e-5
"""Squared gradient that counts as none: a twentieth of the smallest that grey levels have. The
exporter to ONNX takes additions below 1e-8 for nothing, and a flat picture would divide by zero."""

STATISTICS_RECORDS = 500
"""Training pictures that mean and spread are measured on."""


class Pixels(nn.Module):
    """uint8 (B, H, W, C) -> float (B, C, H, W), as the picture is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, 1

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        return image.permute(0, 3, 1, 2).float() / 255


class OrientedGradients(nn.Module):
    """uint8 (B, H, W, C) -> float (B, 8 + C, H / cell, W / cell): which way edges run, and where.

    Histograms of oriented gradients (Dalal and Triggs, CVPR 2005) as the first two harmonics of the
    histogram, divided by the strength of edges nearby: a thin crack in a dark picture counts as
    much as in a bright one, at a sixteenth of the pixels. Beside them that strength, the picture
    itself, and how far a place is from the middle: what is a busbar there is a crack here.

    Args:
        channels: C.
        cell: Side of the squares that are averaged, in pixels.
        positions: Whether places are told apart; not in tiles, which may lie anywhere.
    """

    HARMONICS = 5
    NEAR = 13
    """Side of the square of cells whose strength of edges is the measure."""

    def __init__(self, channels: int, cell: int, *, positions: bool) -> None:
        super().__init__()
        self.channels = self.HARMONICS + 1 + channels + 2
        self.cell = self.stride = cell
        self.positions = positions

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        if torch.compiler.is_exporting():
            return self._see(image)
        # One by one they stay in the cache: three times faster.
        return torch.cat([self._see(one) for one in torch.split(image, 1)])

    def _see(self, image: Tensor) -> Tensor:
        pixels = image.permute(0, 3, 1, 2).float() / 64  # (B, C, H, W)
        harmonics = functional.avg_pool2d(_harmonics(pixels.mean(dim=1, keepdim=True)), self.cell)
        near = _mean_nearby(harmonics[:, :1], self.NEAR)
        seen = functional.avg_pool2d(pixels, self.cell)
        return torch.cat([harmonics / (near + 0.05), near, seen, self._places(seen)], dim=1)

    def _places(self, maps: Tensor) -> Tensor:
        """Return the distance from the middle as shares of height and width, (B, 2, h, w)."""
        count, _, height, width = maps.shape
        down = torch.linspace(-1, 1, height, device=maps.device).abs()[:, None].expand(-1, width)
        right = torch.linspace(-1, 1, width, device=maps.device).abs()[None].expand(height, -1)
        places = torch.stack([down, right]) * float(self.positions)
        return places.expand(count, -1, -1, -1)


def _harmonics(grey: Tensor) -> Tensor:
    """(B, 1, H, W) -> (B, 5, H, W): m, m cos 2a, m sin 2a, m cos 4a, m sin 4a of the gradient.

    m is its strength and a its angle; twice the angle, because an edge has an orientation and no
    direction.
    """
    padded = functional.pad(grey, (1, 1, 1, 1), mode="replicate")
    right = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    square = right * right + down * down + FAINTEST
    inverse = square.rsqrt()
    cosine2 = (right * right - down * down) * inverse
    sine2 = 2 * right * down * inverse
    cosine4 = (cosine2 * cosine2 - sine2 * sine2) * inverse
    sine4 = 2 * cosine2 * sine2 * inverse
    return torch.cat([square * inverse, cosine2, sine2, cosine4, sine4], dim=1)


def _mean_nearby(maps: Tensor, side: int) -> Tensor:
    """Average (B, D, h, w) over squares around each place, first down, then right."""
    # ONNX Runtime continues an edge no farther than the map is large.
    half = min(side // 2, *(length - 1 for length in maps.shape[-2:]))
    side = 2 * half + 1
    padded = functional.pad(maps, (half, half, half, half), mode="replicate")
    return functional.avg_pool2d(functional.avg_pool2d(padded, (side, 1), 1), (1, side), 1)


class Normalise(nn.Module):
    """What the backbone is given, of zero mean and unit variance on the training pictures.

    Args:
        seen: Makes (B, D, h, w) of pictures; has `channels`, D.
    """

    def __init__(self, seen: nn.Module) -> None:
        super().__init__()
        self.seen = seen
        self.channels = int(seen.channels)  # type: ignore[arg-type]
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(self.channels, 1, 1))
        self.register_buffer("scale", torch.ones(self.channels, 1, 1))

    @torch.no_grad()
    def fit(self, data: Any) -> None:
        """Measure mean and spread on some of the training pictures.

        Args:
            data: The train split; its samples have `image`, uint8 (H, W, C).
        """
        step = max(1, len(data) // STATISTICS_RECORDS)
        means, squares = [], []
        for index in range(0, len(data), step):
            maps = self.seen(torch.from_numpy(data[index].inputs["image"])[None])[0].double()
            means.append(maps.mean(dim=(1, 2)))
            squares.append(maps.square().mean(dim=(1, 2)))
        mean = torch.stack(means).mean(dim=0)
        variance = torch.stack(squares).mean(dim=0) - mean.square()
        # A channel that never varies, such as the places of a tile, stays as it is.
        spread = torch.where(variance > 1e-8, variance, torch.ones_like(variance)).sqrt()
        self.mean.copy_(mean[:, None, None])
        self.scale.copy_(1 / spread[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        """uint8 (B, H, W, C) -> (B, D, h, w)."""
        maps: Tensor = (self.seen(image) - self.mean) * self.scale
        return maps


def build_input(
    data: DefectData, kind: Literal["pixels", "gradients"], cell: int
) -> Pixels | OrientedGradients:
    """Return what makes of pictures what the backbone is given."""
    channels = channels_of(data)
    if kind == "pixels":
        return Pixels(channels)
    return OrientedGradients(channels, cell, positions=not data.tile)
