"""The network that tells the kind of a finding, and learns to outline it on the way.

B findings, d x h x w voxels or h x w pixels, D features, K classes of which the first is harmless.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from monai.networks.nets.densenet import DenseNet
from torch import Tensor, nn
from torch.nn import functional

from pegboard.records import Batch
from pegboard_medical.classification.settings import ClassificationSettings
from pegboard_medical.model import HounsfieldWindow

SIZES: Mapping[str, tuple[int, int, tuple[int, ...], int]] = {
    "densenet_small": (16, 8, (3, 3, 3), 2),
    "densenet121": (64, 32, (6, 12, 24, 16), 4),
}
"""First features, growth, layers of each block, and how wide a layer's 1 x 1 convolution is."""

DECODED = 16
"""Features of the decoder's maps."""

SMALLEST = 1e-3
"""Keeps logarithms of what has no size finite."""

HIDDEN = 32
"""Units between the pooled features and the classes."""


class Encoder(nn.Module):
    """DenseNet (Huang et al., CVPR 2017) as MONAI builds it, without its first pooling.

    That one would leave of a small lesion no voxel.

    Args:
        name: Key of `SIZES`.
        dimensions: 2 or 3.
    """

    def __init__(self, name: str, dimensions: int) -> None:
        super().__init__()
        features, growth, blocks, width = SIZES[name]
        network = DenseNet(
            dimensions,
            in_channels=1,
            out_channels=1,
            init_features=features,
            growth_rate=growth,
            block_config=blocks,
            bn_size=width,
        )
        self.features = network.features
        self.features.pool0 = nn.Identity()
        self.ends = [f"denseblock{place}" for place in range(1, len(blocks))]
        with torch.no_grad():
            maps = self.eval()(torch.zeros(1, 1, *[16] * dimensions))
        self.widths: list[int] = [one.shape[1] for one in maps]
        self.train()

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 1, d, h, w) -> the maps (B, D_i, d_i, h_i, w_i) after each block, finest first."""
        maps = []
        for name, layer in self.features.named_children():
            image = layer(image)
            if name in self.ends:
                maps.append(image)
        return [*maps, functional.relu(image)]


class Decoder(nn.Module):
    """From the encoder's maps back to the finest: a feature pyramid (Lin et al., CVPR 2017).

    Args:
        widths: Features of the maps, finest first.
        dimensions: 2 or 3.
    """

    def __init__(self, widths: Sequence[int], dimensions: int) -> None:
        super().__init__()
        convolution = nn.Conv3d if dimensions == 3 else nn.Conv2d
        normalisation = nn.BatchNorm3d if dimensions == 3 else nn.BatchNorm2d
        # One by one voxel: on the finest map anything larger would cost more than the encoder.
        self.lateral = nn.ModuleList(convolution(width, DECODED, 1) for width in widths)
        self.smooth = nn.ModuleList(
            nn.Sequential(
                normalisation(DECODED),
                nn.ReLU(inplace=True),
                convolution(DECODED, DECODED, 3, padding=1, bias=False),
                normalisation(DECODED),
                nn.ReLU(inplace=True),
            )
            for _ in widths[1:]
        )
        self.mask = convolution(DECODED, 1, 1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps, finest first -> features (B, D, ...) and logits of the mask (B, 1, ...)."""
        beside = [lateral(one) for lateral, one in zip(self.lateral, maps, strict=True)]
        found = beside[-1]
        for smooth, finer in zip(self.smooth, beside[-2::-1], strict=True):
            large = functional.interpolate(found, size=finer.shape[2:], mode="nearest")
            found = smooth(large + finer)
        return found, self.mask(found)


def halved(image: Tensor) -> Tensor:
    """Average (B, 1, ...) onto the grid that the encoder's first convolution leaves.

    Not `interpolate(mode="area")`, which has no counterpart in ONNX.
    """
    pool = functional.avg_pool3d if image.ndim == 5 else functional.avg_pool2d
    return pool(image, 3, stride=2, padding=1, count_include_pad=False)


def measured(image: Tensor, inside: Tensor) -> Tensor:
    """Measure what a radiologist does: how large, how bright, how uneven, how long, wide and high.

    Args:
        image: (B, 1, d, h, w) or (B, 1, h, w), normalised.
        inside: (B, 1, d', h', w'), half as fine: probability of each place to be inside.

    Returns:
        (B, 3 + dimensions).
    """
    coarse = halved(image)
    every = tuple(range(2, inside.ndim))
    size = inside.sum(dim=every) + 1
    mean = (coarse * inside).sum(dim=every) / size
    off = (coarse - mean.reshape(-1, 1, *[1] * len(every))) ** 2
    columns = [size.log(), mean, (off * inside).sum(dim=every) / size]
    for axis in every:
        along = inside.sum(dim=tuple(other for other in every if other != axis))  # (B, 1, n)
        place = torch.linspace(-1, 1, along.shape[2], device=along.device)
        middle = (along * place).sum(dim=2) / size
        spread = (along * (place - middle[:, :, None]) ** 2).sum(dim=2) / size
        columns.append((spread + SMALLEST).log())
    return torch.cat(columns, dim=1)


class FindingNet(nn.Module):
    """Encoder, decoder and decision, trained together; images alone are asked for.

    The decision sees the deepest map everywhere, the decoder's finest where the finding is, and
    what `measured` measures there.

    Args:
        normalise: Of Hounsfield units; an MR comes scaled.
        name: Key of `SIZES`.
        dimensions: 2 or 3.
        classes: K.
        dropout: Share of features left out before the decision.
        mask_weight: Weight of the masks in the loss; 0 builds no decoder.
    """

    def __init__(
        self,
        normalise: nn.Module,
        name: str,
        *,
        dimensions: int,
        classes: int,
        dropout: float,
        mask_weight: float,
    ) -> None:
        super().__init__()
        self.normalise, self.mask_weight = normalise, mask_weight
        self.encoder = Encoder(name, dimensions)
        self.decoder = Decoder(self.encoder.widths, dimensions) if mask_weight else None
        pooled = 2 * self.encoder.widths[-1]
        if mask_weight:
            pooled += DECODED + 3 + dimensions
        self.decision = nn.Sequential(
            nn.BatchNorm1d(pooled),
            nn.Dropout(dropout),
            nn.Linear(pooled, HIDDEN),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(HIDDEN, classes),
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """float32 (B, d, h, w) or (B, h, w) -> score (B,) and probabilities (B, K)."""
        decision, _ = self.judge(image)
        probabilities = decision.softmax(dim=1)
        return {"score": 1 - probabilities[:, 0], "probabilities": probabilities}

    def judge(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits of the classes (B, K) and of the mask (B, 1, ...), half as fine."""
        image = self.normalise(image)[:, None]
        maps = self.encoder(image)
        deepest = maps[-1].flatten(2)
        pooled = [deepest.mean(dim=2), deepest.amax(dim=2)]
        mask = None
        if self.decoder is not None:
            found, mask = self.decoder(maps)
            inside = mask.sigmoid()
            weight = inside.flatten(2)  # (B, 1, V)
            there = (found.flatten(2) * weight).sum(dim=2) / (weight.sum(dim=2) + 1)
            pooled += [there, measured(image, inside)]
        return self.decision(torch.cat(pooled, dim=1)), mask

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of the classes, and of the masks where they are known."""
        decision, mask = self.judge(batch.inputs["image"])
        classes = functional.cross_entropy(decision, batch.targets["label"])
        if mask is None:
            return {"loss": classes}
        outline = mask_loss(mask[:, 0], batch.targets["mask"], batch.targets["has_mask"])
        return {
            "loss": classes + self.mask_weight * outline,
            "decision": classes,
            "mask": outline,
        }


def mask_loss(logits: Tensor, mask: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy and Dice loss (Milletari et al., 3DV 2016) of the findings with a mask.

    Args:
        logits: (B, d', h', w') or (B, h', w'), half as fine as the mask.
        mask: (B, d, h, w) or (B, h, w), the share of a voxel that is covered.
        known: (B,), 1 where the mask is known.
    """
    target = halved(mask[:, None]).flatten(1)
    logits = logits.flatten(1)
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    inside = logits.sigmoid()
    # Of squares: else a place that is half covered would best be called covered, or not.
    both = (inside**2).sum(dim=1) + (target**2).sum(dim=1)
    dice = 1 - (2 * (inside * target).sum(dim=1) + 1) / (both + 1)
    weight = known / known.sum().clamp(min=1.0)
    return ((entropy.mean(dim=1) + dice) * weight).sum()


def build(settings: ClassificationSettings) -> FindingNet:
    """Build the model of a project."""
    data, table = settings.data, settings.model
    network = FindingNet(
        HounsfieldWindow(*data.window) if data.modality == "ct" else nn.Identity(),
        table.network,
        dimensions=table.dimensions,
        classes=len(data.classes),
        dropout=table.dropout,
        mask_weight=table.mask_weight,
    )
    # Half as long on a CPU.
    layout = torch.channels_last_3d if table.dimensions == 3 else torch.channels_last
    network.to(memory_format=layout)  # type: ignore[call-overload]  # In no stub.
    return network
