"""Two views of a batch of pictures, made on the device the batch is on.

The crops are mild on purpose. The usual recipe shows as little as a twentieth of a photograph
(He et al., CVPR 2020): on tiles with small local defects a network then learns that a picture with
its defect and a crop without it are the same, and sees defects worse than before it was trained.
What a line does to its parts (how they lie, light, focus, noise) is what should not matter.

B pictures, C channels, H height, W width. All that is drawn comes from torch's global generator,
or from the one that is given.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from pegboard_defect.moco.settings import MocoData

STRETCH = math.log(4 / 3)
"""Largest logarithm of a crop's ratio of sides (Szegedy et al., CVPR 2015)."""

BLURRED = 0.5
"""Share of the views that are blurred at all."""

REACH = 3
"""Pixels on either side that a blur looks at."""


def two_views(
    pictures: Tensor, data: MocoData, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Change pictures (B, C, H, W) in [0, 1] twice, each time otherwise."""
    return view(pictures, data, generator), view(pictures, data, generator)


def view(pictures: Tensor, data: MocoData, generator: torch.Generator | None = None) -> Tensor:
    """Change pictures (B, C, H, W) in [0, 1]; each differently, all of its channels alike."""
    placed = place(pictures, placements(pictures, data, generator))
    lit = light(placed, data.light, generator)
    seen = noise(blur(lit, data.blur, generator), data.noise, generator)
    return seen.clamp(0, 1)


# --- Where a view is taken from -------------------------------------------------------------------


def placements(
    pictures: Tensor, data: MocoData, generator: torch.Generator | None = None
) -> Tensor:
    """Draw a crop, a turn and a flip for each picture.

    Returns:
        (B, 2, 3): from places of the view to places of the picture, both from -1 to 1.
    """
    count, device = len(pictures), pictures.device

    def drawn(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, device=device)

    area, ratio = drawn(data.min_crop, 1.0), drawn(-STRETCH, STRETCH).exp()
    # A crop that would be longer than the picture becomes more of a square, and not smaller.
    ratio = ratio.clamp(min=area, max=1 / area)
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1)  # (B, 2): x, y
    middle = torch.stack([drawn(-1, 1), drawn(-1, 1)], dim=1) * (1 - sides)
    turned = _turns(pictures, data, generator)  # (B, 2, 2)
    return torch.cat([sides[:, :, None] * turned, middle[:, :, None]], dim=2)


def _turns(pictures: Tensor, data: MocoData, generator: torch.Generator | None) -> Tensor:
    """Draw turns and flips: (B, 2, 2) of -1, 0 and 1."""
    count, device = len(pictures), pictures.device

    def drawn(ways: int) -> Tensor:
        return torch.randint(ways, (count,), generator=generator, device=device)

    quarters, flip = drawn(4), 1.0 - 2.0 * drawn(2)
    if data.turns == "none":
        return torch.eye(2, device=device).expand(count, 2, 2)
    if data.turns == "half" or pictures.shape[2] != pictures.shape[3]:
        quarters = 2 * (quarters % 2)
    # Exact, where a cosine of a quarter turn is not quite zero.
    cosine = torch.tensor([1.0, 0.0, -1.0, 0.0], device=device)[quarters]
    sine = torch.tensor([0.0, 1.0, 0.0, -1.0], device=device)[quarters]
    rows = [torch.stack([cosine * flip, -sine], dim=1), torch.stack([sine * flip, cosine], dim=1)]
    return torch.stack(rows, dim=1)


def place(pictures: Tensor, placed: Tensor) -> Tensor:
    """Take views (B, C, H, W) of pictures (B, C, H, W) by placements (B, 2, 3)."""
    grid = functional.affine_grid(placed, list(pictures.shape), align_corners=False)
    return functional.grid_sample(
        pictures, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )


# --- How it was taken -----------------------------------------------------------------------------


def light(pictures: Tensor, strength: float, generator: torch.Generator | None = None) -> Tensor:
    """Change contrast around each picture's mean, and brightness."""
    drawn = torch.rand(len(pictures), 2, 1, 1, 1, generator=generator, device=pictures.device)
    contrast = 1 + strength * (2 * drawn[:, 0] - 1)
    brightness = strength / 2 * (2 * drawn[:, 1] - 1)
    mean = pictures.mean(dim=(1, 2, 3), keepdim=True)
    return (pictures - mean) * contrast + mean + brightness


def blur(pictures: Tensor, most: float, generator: torch.Generator | None = None) -> Tensor:
    """Blur some of the pictures by a Gaussian of a width of their own."""
    drawn = torch.rand(2, len(pictures), generator=generator, device=pictures.device)
    # Where it is next to nothing the kernel is one pixel.
    width = torch.where(drawn[0] < BLURRED, most * drawn[1], 0.0).clamp(min=1e-3)
    steps = torch.arange(-REACH, REACH + 1, device=pictures.device)
    kernel = torch.softmax(-0.5 * (steps / width[:, None]) ** 2, dim=1)  # (B, 2 * REACH + 1)
    return _along(_along(pictures, kernel[:, None, :]), kernel[:, :, None])


def _along(pictures: Tensor, kernels: Tensor) -> Tensor:
    """Weigh pictures (B, C, H, W) with a kernel (B, h, w) of each."""
    count, channels, height, width = pictures.shape
    reach = (kernels.shape[1] // 2, kernels.shape[2] // 2)
    padded = functional.pad(
        pictures, (reach[1], reach[1], reach[0], reach[0]), mode="replicate"
    ).reshape(1, count * channels, height + 2 * reach[0], width + 2 * reach[1])
    weight = kernels.repeat_interleave(channels, dim=0)[:, None]
    seen = functional.conv2d(padded, weight, groups=count * channels)
    return seen.reshape(pictures.shape)


def noise(pictures: Tensor, most: float, generator: torch.Generator | None = None) -> Tensor:
    """Add noise of a strength of its own to every picture."""
    device = pictures.device
    strength = most * torch.rand(len(pictures), 1, 1, 1, generator=generator, device=device)
    drawn = torch.randn(pictures.shape, generator=generator, device=device)
    return pictures + strength * drawn
