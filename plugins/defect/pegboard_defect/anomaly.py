"""Models that see good parts only: `Draem` learns from simulated defects, `PatchCore` remembers.

Both take pictures as they are and answer how far they are from good ones, and where. B pictures,
H height, W width, C channels, D features, P patches of a picture, M remembered patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pegboard.errors import DataError, SettingsError
from pegboard.records import Array, Batch
from pegboard_defect.backbones import Backbone
from pegboard_defect.data import InspectionDataset
from pegboard_defect.images import channels_of
from pegboard_defect.inputs import Normalise, Pixels
from pegboard_defect.settings import DefectSettings
from pegboard_defect.tiling import places

# --- DRAEM: restore the picture, compare, mark what differs ---------------------------------------


class Block(nn.Sequential):
    """3 x 3 convolutions: (B, inputs, H, W) -> (B, width, H, W), halved by a stride of 2."""

    def __init__(self, inputs: int, width: int, *, stride: int = 1, depth: int = 2) -> None:
        layers: list[nn.Module] = []
        for index in range(depth):
            first = index == 0
            layers += [
                nn.Conv2d(
                    inputs if first else width, width, 3, stride if first else 1, 1, bias=False
                ),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class UNet(nn.Module):
    """An encoder and a decoder, with or without shortcuts (Ronneberger et al., MICCAI 2015).

    It works at half the picture's size: four neighbouring pixels are the channels of one place,
    which loses nothing and takes a quarter of the time.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        widths: Of each level; the second is a half, the third a quarter, ... of the first's size.
        skips: Whether the decoder sees what the encoder saw. Without them only what fits through
            the narrowest level comes out.
    """

    def __init__(self, inputs: int, outputs: int, widths: Sequence[int], *, skips: bool) -> None:
        super().__init__()
        self.skips = skips
        # The first level, where pixels are many, has one convolution on each side.
        self.down = nn.ModuleList([Block(4 * inputs, widths[0], depth=1)])
        self.up = nn.ModuleList()
        for level, (width, below) in enumerate(pairwise(widths)):
            self.down.append(Block(width, below, stride=2))
            above = Block(width + below if skips else below, width, depth=2 if level else 1)
            self.up.insert(0, above)
        self.head = nn.Conv2d(widths[0], 4 * outputs, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W); both sides multiples of 2 ** levels."""
        x = functional.pixel_unshuffle(x, 2)
        seen = []
        for block in self.down:
            x = block(x)
            seen.append(x)
        for block, shortcut in zip(self.up, reversed(seen[:-1]), strict=True):
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, shortcut], dim=1) if self.skips else x)
        return functional.pixel_shuffle(self.head(x), 2)


class Draem(nn.Module):
    """Restores the good picture behind a defective one and marks where the two differ.

    Zavrtanik, Kristan and Skocaj, DRAEM, ICCV 2021. Both networks learn from defects simulated on
    good pictures (`simulate`), so neither needs pretrained weights.

    Args:
        channels: C.
        restoring: Widths of the levels of the network that restores.
        marking: The same for the one that marks.
        window: Side of the square that the map's logits are averaged over before the largest
            counts as the picture's score; odd.
    """

    def __init__(
        self,
        channels: int,
        *,
        restoring: Sequence[int] = (12, 24, 48, 64),
        marking: Sequence[int] = (16, 32, 64, 96),
        window: int = 5,
    ) -> None:
        super().__init__()
        self.restorer = UNet(channels, channels, restoring, skips=False)
        self.marker = UNet(2 * channels, 1, marking, skips=True)
        self.multiple = 2 ** max(len(restoring), len(marking))
        self.window = window

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """See how far pictures are from good ones.

        Args:
            image: uint8 (B, H, W, C), both sides at least 32.

        Returns:
            `score` (B,) and `map` (B, H, W) in [0, 1]; `logits` (B, H, W); `restored`
            (B, H, W, C) in [0, 1], as the picture would be if it were good.
        """
        logits, restored = self._compare(image)
        smooth = functional.avg_pool2d(logits, self.window, 1)
        return {
            "score": smooth.amax(dim=(1, 2, 3)).sigmoid(),
            "map": logits[:, 0].sigmoid(),
            "logits": logits[:, 0],
            "restored": restored.clamp(0, 1).permute(0, 2, 3, 1),
        }

    def _compare(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, 1, H, W) and the restored picture (B, C, H, W)."""
        height, width = image.shape[1:3]
        x = image.permute(0, 3, 1, 2).float() / 255 - 0.5
        missing = (0, -width % self.multiple, 0, -height % self.multiple)
        x = functional.pad(x, missing, mode="reflect")
        restored = self.restorer(x)
        logits = self.marker(torch.cat([x, restored], dim=1))
        return logits[:, :, :height, :width], restored[:, :, :height, :width] + 0.5

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Compare what was restored with the clean picture, and the marks with the mask.

        Args:
            batch: Simulated pictures, with the targets `clean`, uint8 (B, H, W, C), and `mask`,
                uint8 (B, H, W).

        Returns:
            Scalars: `loss`, the sum of `restoration` (squared error and 1 - SSIM) and `marking`
            (focal).
        """
        logits, restored = self._compare(batch.inputs["image"])
        clean = batch.targets["clean"].permute(0, 3, 1, 2).float() / 255
        squared = functional.mse_loss(restored, clean)
        restoration = squared + (1 - ssim(restored, clean)).mean()
        marking = focal_loss(logits[:, 0], batch.targets["mask"].float())
        return {"loss": restoration + marking, "restoration": restoration, "marking": marking}


def ssim(one: Tensor, other: Tensor, window: int = 7) -> Tensor:
    """Return the structural similarity of pictures in [0, 1]: (B, C, H, W) twice -> (B, C, h, w).

    Wang et al., IEEE Transactions on Image Processing, 2004, with a square window.
    """

    def mean(x: Tensor) -> Tensor:
        # One axis after the other takes a third of the time.
        return functional.avg_pool2d(functional.avg_pool2d(x, (window, 1), 1), (1, window), 1)

    a, b = mean(one), mean(other)
    spreads = mean(one * one) - a * a + mean(other * other) - b * b
    common = mean(one * other) - a * b
    c1, c2 = 0.01**2, 0.03**2
    return (2 * a * b + c1) * (2 * common + c2) / ((a * a + b * b + c1) * (spreads + c2))


def focal_loss(logits: Tensor, mask: Tensor, gamma: float = 2.0) -> Tensor:
    """Return the focal loss (Lin et al., ICCV 2017), with both classes of pixels weighing the same.

    Args:
        logits: (B, H, W)
        mask: 0 or 1. (B, H, W)
        gamma: How much less a pixel counts that is right already.

    Returns:
        The mean over the good pixels plus the mean over the defective ones: a defect of a few
        pixels would be nothing beside a picture of thousands.
    """
    wrong = functional.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    focal = (1 - torch.exp(-wrong)) ** gamma * wrong
    defective = (focal * mask).sum() / mask.sum().clamp(min=1)
    good = (focal * (1 - mask)).sum() / (1 - mask).sum().clamp(min=1)
    return defective + good


# --- PatchCore: remember patches of good parts, measure how far others are from them --------------

STAGES = (1, 2)
"""The backbone's maps that are compared: the first sees too little, the last too little detail."""
WIDEST = 256
"""Features of a patch at most; wider ones are projected."""
CANDIDATES = 20_000
"""Patches of good parts at most that the remembered ones are chosen from."""
PICTURES = 2_000
"""Good pictures at most that they come from."""
TILES = 16
"""Tiles of a picture at most that are looked at."""
HELD_OUT = 5
"""Nothing is remembered of one part in so many: these show how far good parts usually are."""
CHUNK = 512
"""Remembered patches that are compared at a time: all at once would take too much memory."""
MARGIN = 2.0
"""The value 0.5 lies so many times as far as nearly all good parts do."""


class PatchCore(nn.Module):
    """Compares every patch of a picture with remembered patches of good parts.

    Roth et al., Towards total recall in industrial anomaly detection, CVPR 2022. Nothing is learnt:
    `fit` fills the buffers.

    Args:
        backbone: Maps (B, C, H, W) to maps of features; pretrained, or this does not work.
        channels: C.
        memory: M.
        neighbours: Remembered patches around the nearest one that a score is weighed by; 1 weighs
            nothing.
        tile: Side of the squares that the model will see; 0: whole pictures.
    """

    def __init__(
        self, backbone: Backbone, *, channels: int, memory: int, neighbours: int, tile: int = 0
    ) -> None:
        super().__init__()
        self.normalise = Normalise(Pixels(channels))
        self.backbone = backbone.requires_grad_(False)
        self.neighbours, self.tile = min(neighbours, memory), tile
        width = sum(backbone.widths[stage] for stage in STAGES)
        self.project: Tensor | None
        self.register_buffer("project", _projection(width, WIDEST) if width > WIDEST else None)
        self.memory: Tensor
        self.center: Tensor
        self.usual: Tensor
        self.usual_score: Tensor
        self.blur: Tensor
        self.register_buffer("memory", torch.zeros(memory, min(width, WIDEST)))
        self.register_buffer("center", torch.zeros(min(width, WIDEST)))
        self.register_buffer("usual", torch.ones(()))
        self.register_buffer("usual_score", torch.ones(()))
        # As wide as in the paper, where a patch is 8 pixels and the Gaussian's deviation 4.
        self.register_buffer("blur", _gaussian(backbone.strides[STAGES[0]] / 2))
        self.eval()

    def train(self, mode: bool = True) -> PatchCore:
        """Stay as it is: batch normalisation must not move while good parts are remembered."""
        return super().train(False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """See how far pictures are from good ones.

        Args:
            image: uint8 (B, H, W, C)

        Returns:
            `score` (B,) and `map` (B, H, W) in [0, 1]; nearly all good parts lie below a third.
        """
        patches = self._patches(image)  # (B, D, h, w)
        flat = patches.flatten(2).transpose(1, 2)  # (B, P, D)
        distances = self._nearest(flat)  # (B, P)
        score = self._weigh(*_oddest(flat, distances))
        where = self._enlarge(distances.reshape(-1, *patches.shape[2:]), image.shape[1:3])
        return {
            "score": score / (score + self.usual_score),
            "map": where / (where + self.usual),
        }

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return nothing to minimise: `loss` is 0, with a gradient for nobody."""
        return {"loss": torch.zeros((), device=self.memory.device, requires_grad=True)}

    # ----------------------------------------------------------------- what is seen

    def _patches(self, image: Tensor) -> Tensor:
        """Return features of patches (B, D, h, w): two stages, each averaged over 3 x 3 places."""
        maps = self.backbone(self.normalise(image))
        chosen = [functional.avg_pool2d(maps[stage], 3, 1, 1) for stage in STAGES]
        fine, coarse = chosen
        coarse = functional.interpolate(
            coarse, size=fine.shape[2:], mode="bilinear", align_corners=False
        )
        features = torch.cat([fine, coarse], dim=1)
        if self.project is not None:
            features = torch.einsum("bdhw,de->behw", features, self.project)
        # Around zero, squares are small and their differences exact.
        return features - self.center[:, None, None]

    def _nearest(self, patches: Tensor) -> Tensor:
        """Return how far patches (B, P, D) are from the nearest remembered one: (B, P)."""
        nearest = [
            _squares(patches, chunk).amin(dim=-1) for chunk in torch.split(self.memory, CHUNK)
        ]
        return torch.stack(nearest).amin(dim=0).sqrt()

    def _weigh(self, patch: Tensor, distance: Tensor) -> Tensor:
        """Weigh distances (B,) of patches (B, D): the paper's equation 7.

        A patch counts fully where the neighbours of the remembered one that is nearest are much
        farther from it, and less where all of them are as near: good parts vary there.
        """
        if self.neighbours == 1:
            return distance
        nearest = self.memory[_squares(patch, self.memory).argmin(dim=1)]  # (B, D)
        crowd = _squares(nearest, self.memory).topk(self.neighbours, largest=False).indices
        away = (patch[:, None] - self.memory[crowd]).square().sum(dim=2).sqrt()  # (B, N)
        # In units of what is usual: the weight must not depend on the scale of the features.
        others = torch.exp((away - distance[:, None]) / self.usual).sum(dim=1)
        return distance * (1 - 1 / others)

    def _enlarge(self, distances: Tensor, size: Sequence[int]) -> Tensor:
        """(B, h, w) -> (B, H, W), smooth."""
        large = functional.interpolate(
            distances[:, None], size=tuple(size), mode="bilinear", align_corners=False
        )
        return blurred(large, self.blur)[:, 0]

    # ----------------------------------------------------------------- what is remembered

    @torch.no_grad()
    def fit(self, data: InspectionDataset) -> None:
        """Remember good parts of the train split, and measure how far others are from them.

        Raises:
            DataError: There is no good part.
        """
        self.normalise.fit(data)
        kept, held_out = _good_pictures(data)
        if not held_out:
            raise DataError(
                "there are no good parts to remember",
                where="train split",
                remedy="add pictures of good parts, or correct data.classes",
            )
        # Of a single part, what is remembered has to show what is usual, too.
        self._remember(data, kept or held_out)
        self._measure(data, held_out)

    def _remember(self, data: InspectionDataset, indices: Sequence[int]) -> None:
        """Choose the patches to remember among those of good pictures."""
        generator = torch.Generator().manual_seed(0)
        most = max(1, CANDIDATES // len(indices))
        candidates = []
        for tiles in self._tiles(data, indices):
            patches = self._patches(tiles).permute(0, 2, 3, 1).flatten(0, 2)
            candidates.append(patches[torch.randperm(len(patches), generator=generator)[:most]])
        patches = torch.cat(candidates)  # (P, D)
        chosen = coreset(patches, len(self.memory), generator)
        # Patches that are too few are remembered again: a shape must not depend on data.
        chosen = chosen[torch.arange(len(self.memory)) % len(chosen)]
        center = patches.mean(dim=0)
        self.memory.copy_(patches[chosen] - center)
        self.center.add_(center)

    def _measure(self, data: InspectionDataset, indices: Sequence[int]) -> None:
        """Set what is usual by good pictures that nothing is remembered of."""
        every, odd = [], []
        for tiles in self._tiles(data, indices):
            flat = self._patches(tiles).flatten(2).transpose(1, 2)
            distances = self._nearest(flat)
            every.append(distances.flatten())
            patch, largest = _oddest(flat, distances)
            worst = largest.argmax()
            odd.append((patch[worst], largest[worst]))
        self.usual.copy_(MARGIN * _quantile(torch.cat(every), 0.995))
        patch, largest = (torch.stack(values) for values in zip(*odd, strict=True))
        self.usual_score.copy_(MARGIN * _quantile(self._weigh(patch, largest), 0.95))

    def _tiles(self, data: InspectionDataset, indices: Sequence[int]) -> Iterator[Tensor]:
        """Yield what the model sees of each picture: uint8 (T, H, W, C), T = 1 without tiles."""
        for index in indices:
            image = data[index].inputs["image"]
            tiles = _cut(image, self.tile) if self.tile else image[None]
            yield torch.from_numpy(np.ascontiguousarray(tiles))


def coreset(patches: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Choose patches that all others are near to.

    The greedy k-center of Sener and Savarese, ICLR 2018: whichever is farthest from those chosen
    comes next. Distances are measured on random projections, as PatchCore does.

    Args:
        patches: (P, D)
        count: How many to choose; all where there are no more.
        generator: Where the first one and the projection come from.

    Returns:
        Indices (min(P, count),).
    """
    if len(patches) <= count:
        return torch.arange(len(patches))
    if patches.shape[1] > WIDEST // 2:
        patches = patches @ _projection(patches.shape[1], WIDEST // 2, generator)
    patches = patches - patches.mean(dim=0)
    chosen = torch.zeros(count, dtype=torch.long)
    chosen[0] = torch.randint(len(patches), (), generator=generator)
    nearest = _squares(patches[chosen[:1]], patches)[0]  # (P,)
    for index in range(1, count):
        chosen[index] = nearest.argmax()
        one = patches[chosen[index : index + 1]]
        nearest = torch.minimum(nearest, _squares(one, patches)[0])
    return chosen


def blurred(maps: Tensor, kernel: Tensor) -> Tensor:
    """Convolve maps (B, 1, H, W) with a kernel (K,) along both axes; edges are continued."""
    radius = len(kernel) // 2
    padded = functional.pad(maps, (radius,) * 4, mode="replicate")
    down = functional.conv2d(padded, kernel[None, None, :, None])
    return functional.conv2d(down, kernel[None, None, None, :])


def _oddest(patches: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
    """Of patches (B, P, D) the one farthest from good ones (B, D), and how far it is (B,)."""
    largest, place = distances.max(dim=1)
    index = place[:, None, None].expand(-1, 1, patches.shape[2])
    return patches.gather(1, index)[:, 0], largest


def _squares(some: Tensor, others: Tensor) -> Tensor:
    """Squared distances of (..., D) and (M, D): (..., M)."""
    lengths = some.square().sum(dim=-1, keepdim=True) + others.square().sum(dim=-1)
    return (lengths - 2 * some @ others.T).clamp(min=0)


def _projection(inputs: int, outputs: int, generator: torch.Generator | None = None) -> Tensor:
    """A random matrix (inputs, outputs) that nearly keeps distances (Johnson, Lindenstrauss)."""
    generator = generator or torch.Generator().manual_seed(0)
    return torch.randn(inputs, outputs, generator=generator) / math.sqrt(outputs)


def _gaussian(deviation: float) -> Tensor:
    radius = math.ceil(3 * deviation)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / deviation) ** 2)
    return weights / weights.sum()


def _quantile(values: Tensor, share: float) -> Tensor:
    """A quantile that is above 0; torch's own refuses many values."""
    ascending = values.sort().values
    return ascending[math.ceil(share * (len(values) - 1))].clamp(min=1e-6)


def _good_pictures(data: InspectionDataset) -> tuple[list[int], list[int]]:
    """Indices of good pictures, those to remember and those held out, at most `PICTURES`."""
    kept: list[int] = []
    held_out: list[int] = []
    parts: dict[str, int] = {}
    for index in range(0, len(data), -(-len(data) // PICTURES) or 1):
        sample = data[index]
        if sample.targets["defective"] < 0.5:
            # Pictures of one part are nearly the same: they stay together.
            number = parts.setdefault(sample.targets["part"], len(parts))
            (kept if number % HELD_OUT else held_out).append(index)
    return kept, held_out


def _cut(image: Array, side: int) -> Array:
    """Tiles (T, side, side, C) of a picture (H, W, C), evenly spread."""
    missing = [(0, max(0, side - length)) for length in image.shape[:2]]
    image = np.pad(image, (*missing, (0, 0)), mode="edge")
    rows, columns = (places(length, side, 0.0) for length in image.shape[:2])
    corners = [(top, left) for top in rows for left in columns]
    some = corners[:: -(-len(corners) // TILES)]
    return np.stack([image[top : top + side, left : left + side] for top, left in some])


# --- Building -------------------------------------------------------------------------------------


def build(
    settings: DefectSettings,
    backbone_factory: Callable[[], Backbone],
    train_data: InspectionDataset | None,
) -> nn.Module:
    """Build the anomaly model, fitted to the train split unless trained weights will follow.

    Args:
        settings: `model.method` chooses.
        backbone_factory: Builds the backbone with the user's weights; only patchcore calls it.
        train_data: Good parts.

    Raises:
        SettingsError: patchcore has no weights to begin from.
        DataError: The train split has no good part.
    """
    table, channels = settings.model, channels_of(settings.data)
    if table.method == "draem":
        return Draem(channels)
    if table.weights is None:
        raise SettingsError(
            "patchcore needs a pretrained backbone, and there is none",
            where="model.weights",
            remedy="run 'pegboard pretrain' and set it to its backbone.safetensors, set it to a "
            'timm checkpoint, or set model.method = "draem"',
        )
    model = PatchCore(
        backbone_factory(),
        channels=channels,
        memory=table.memory,
        neighbours=table.neighbours,
        tile=settings.data.tile,
    )
    if train_data is not None:
        model.fit(train_data)
    return model
