"""The inspector, from a picture to class probabilities and a map of where the defect is.

B pictures, H x W pixels, C channels, D features, K classes of which the first is good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pegboard.errors import SettingsError
from pegboard.records import Batch
from pegboard_defect.backbones import Backbone, build_backbone, load_backbone
from pegboard_defect.data import InspectionDataset
from pegboard_defect.images import channels_of
from pegboard_defect.inputs import Normalise, OrientedGradients, Pixels, build_input
from pegboard_defect.settings import DefectSettings
from pegboard_defect.words import SHARE, SMALLEST, WordMachine

# --- The inspector --------------------------------------------------------------------------------


class Decoder(nn.Module):
    """From the backbone's maps to one map of where: a feature pyramid (Lin et al., CVPR 2017)."""

    def __init__(self, widths: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(inputs, width, 1) for inputs in widths)
        last = nn.Conv2d(width, 1, 1)
        self.smooth = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            last,
        )
        # Hardly a pixel is defective: beginning there saves the first epochs (Lin et al., 2017).
        nn.init.constant_(last.bias, -4.0)  # type: ignore[arg-type]

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps (B, D_i, h_i, w_i), finest first -> logits (B, 1, h_0, w_0)."""
        x = self.lateral[-1](maps[-1])
        for lateral, finer in zip(list(self.lateral)[-2::-1], maps[-2::-1], strict=True):
            x = lateral(finer) + functional.interpolate(x, size=finer.shape[-2:], mode="nearest")
        logits: Tensor = self.smooth(x)
        return logits


class Layout(nn.Module):
    """What lies where, for parts that always lie alike: (B, D, h, w) -> logits (B, K).

    A hidden layer over a coarse grid, as support vector machines see histograms of gradients. The
    backbone finds the same defect anywhere; this one knows that a line here belongs to the part.

    Args:
        channels: D.
        grid: Cells a side.
        classes: K.
        hidden: Units of the hidden layer.
    """

    def __init__(self, channels: int, grid: int, classes: int, hidden: int = 256) -> None:
        super().__init__()
        self.grid = grid
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.BatchNorm1d(channels * grid**2),
            nn.Dropout(0.3),
            nn.Linear(channels * grid**2, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            nn.Linear(hidden, classes),
        )

    def forward(self, seen: Tensor) -> Tensor:
        """See the class."""
        side = [max(1, length // self.grid) for length in seen.shape[-2:]]
        coarse = functional.avg_pool2d(seen, side)[:, :, : self.grid, : self.grid]
        logits: Tensor = self.layers(coarse)
        return logits


class InspectionNet(nn.Module):
    """Backbone, map of where, decision: trained together, with masks for all, some or no pictures.

    After SegDecNet (Tabernik et al., 2020; Božič et al., Computers in Industry 129, 2021): the
    decision sees the backbone's features and the map, whose gradient it does not touch. Where
    no picture has a mask, the map says how much each place speaks for a defect (class activation:
    Zhou et al., CVPR 2016).

    Args:
        seen: Makes of pictures what the backbone is given.
        backbone: Gives maps of features.
        classes: K.
        dropout: Share of features left out before the decision.
        mask_weight: Weight of the masks in the loss; 0 builds no decoder.
        mixup: How much training pictures are mixed; 0 mixes none.
        layout: Cells a side of the grid that places are told apart by; 0: they are not.
        words: Judges beside the network; its judgement is not part of the loss, because it knows
            the training pictures by heart.
    """

    def __init__(
        self,
        seen: Pixels | OrientedGradients,
        backbone: Backbone,
        *,
        classes: int,
        dropout: float = 0.2,
        mask_weight: float = 1.0,
        mixup: float = 0.0,
        layout: int = 0,
        words: WordMachine | None = None,
    ) -> None:
        super().__init__()
        self.normalise = Normalise(seen)
        self.words = words
        self.backbone = backbone
        self.mask_weight, self.mixup = mask_weight, mixup
        width = max(16, min(64, backbone.widths[0]))
        self.decoder = Decoder(backbone.widths, width) if mask_weight else None
        self.dropout = nn.Dropout(dropout)
        self.layout = Layout(seen.channels, layout, classes) if layout else None
        self.decision = nn.Linear(2 * backbone.widths[-1] + 2, classes)
        self.has_masks: Tensor
        self.register_buffer("has_masks", torch.zeros(()))

    def fit(self, data: InspectionDataset) -> None:
        """Measure what is not learnt: brightness, and whether there are masks."""
        self.normalise.fit(data)
        if self.mask_weight:
            self.has_masks.fill_(float(any(part.has_mask for part in data.parts)))
        if self.words is not None:
            self.words.fit(data)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """uint8 (B, H, W, C) -> score (B,), probabilities (B, K) and map (B, H, W)."""
        where, deepest, decision = self._judge(self.normalise(image))
        if self.words is not None:
            decision = SHARE * decision + self.words(image)
        probabilities = decision.softmax(dim=1)
        return {
            "score": 1 - probabilities[:, 0],
            "probabilities": probabilities,
            "map": self._map(where, deepest, image.shape[1:3]),
        }

    def _judge(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits of where (B, 1, h_0, w_0), features (B, D, h, w), logits of classes (B, K).

        Args:
            seen: What the backbone is given.
        """
        maps = self.backbone(seen)
        deepest, where = maps[-1], self._where(maps)
        marked = where.detach().sigmoid() * self.has_masks
        pooled = torch.cat(
            [
                deepest.mean(dim=(2, 3)),
                deepest.amax(dim=(2, 3)),
                marked.mean(dim=(2, 3)),
                marked.amax(dim=(2, 3)),
            ],
            dim=1,
        )
        decision = self.decision(self.dropout(pooled))
        if self.layout is not None:
            decision = decision + self.layout(seen)
        return where, deepest, decision

    def _where(self, maps: list[Tensor]) -> Tensor:
        if self.decoder is None:
            return torch.zeros_like(maps[0][:, :1])
        where: Tensor = self.decoder(maps)
        return where

    def _map(self, where: Tensor, deepest: Tensor, size: torch.Size) -> Tensor:
        """Return (B, H, W): what the masks taught, or else what the decision looks at."""
        learnt = _enlarged(where, size).sigmoid()
        activated = _enlarged(self._activation(deepest), size).sigmoid()
        return learnt * self.has_masks + activated * (1 - self.has_masks)

    def _activation(self, deepest: Tensor) -> Tensor:
        """Return (B, 1, h, w): the log odds of a defect if the part were everywhere like here."""
        features = deepest.shape[1]
        weight = self.decision.weight
        both = weight[:, :features] + weight[:, features : 2 * features]
        logits = functional.conv2d(deepest, both[:, :, None, None], self.decision.bias)
        return torch.logsumexp(logits[:, 1:], dim=1, keepdim=True) - logits[:, :1]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of the classes, and of the masks where they are known."""
        targets = batch.targets
        tensors = [self.normalise(batch.inputs["image"]), targets["label"]]
        if self.decoder is not None:
            tensors += [targets["mask"].float(), targets["has_mask"]]
        if self.mixup:
            tensors = mix(self.mixup, *tensors)
        where, _, decision = self._judge(tensors[0])
        classes = functional.cross_entropy(decision, tensors[1])
        if self.decoder is None:
            return {"loss": classes}
        mask = mask_loss(where, *tensors[2:])
        return {"loss": classes + self.mask_weight * mask, "decision": classes, "mask": mask}


def mix(strength: float, *tensors: Tensor) -> list[Tensor]:
    """Mix each picture with another of its batch, and what is true of them in the same proportion.

    mixup (Zhang et al., ICLR 2018), on what the backbone is given.

    Args:
        strength: alpha of the beta distribution (alpha, alpha) that the proportion is drawn from.
        tensors: (B, ...) each.
    """
    alpha = torch.tensor(strength, device=tensors[0].device)
    share = torch.distributions.Beta(alpha, alpha).sample()
    others = torch.randperm(len(tensors[0]), device=tensors[0].device)
    return [share * tensor + (1 - share) * tensor[others] for tensor in tensors]


def _enlarged(where: Tensor, size: torch.Size) -> Tensor:
    """(B, 1, h, w) -> (B, H, W)."""
    large = functional.interpolate(where, size=tuple(size), mode="bilinear", align_corners=False)
    return large[:, 0]


def mask_loss(where: Tensor, mask: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy and Dice loss (Milletari et al., 3DV 2016) of the pictures with a mask.

    Args:
        where: Logits (B, 1, h, w).
        mask: (B, H, W) in [0, 1]; a place of the coarser map is as defective as any of it is.
        known: (B,), 1 where the mask is known, a share where one of two mixed ones is.
    """
    logits = where[:, 0]
    target = functional.adaptive_max_pool2d(mask, logits.shape[-2:])  # (B, h, w)
    weight = known / known.sum().clamp(min=1.0)
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    probability = logits.sigmoid() * known[:, None, None]
    found = (probability * target).sum()
    dice = 1 - (2 * found + 1) / (probability.sum() + (target * known[:, None, None]).sum() + 1)
    return (entropy.mean(dim=(1, 2)) * weight).sum() + dice * known.amax()


# --- Building -------------------------------------------------------------------------------------


def build(settings: DefectSettings, train_data: InspectionDataset | None) -> nn.Module:
    """Build the model of the task, fitted to the train split unless trained weights will follow."""
    if settings.model.task == "anomaly":
        from pegboard_defect import anomaly

        return anomaly.build(
            settings, lambda seen: backbone_of(settings, seen, train_data), train_data
        )
    seen = build_input(settings.data, settings.model.input, settings.model.cell)
    model = InspectionNet(
        seen,
        backbone_of(settings, seen, train_data),
        classes=len(settings.data.classes),
        dropout=settings.model.dropout,
        mask_weight=settings.model.mask_weight,
        mixup=settings.model.mixup,
        layout=settings.model.layout,
        words=_words_of(settings),
    )
    if settings.model.freeze:
        model.backbone.requires_grad_(False)
    if train_data is not None:
        model.fit(train_data)
    # A third faster on a CPU.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # In no stub.
    return model


def _words_of(settings: DefectSettings) -> WordMachine | None:
    """Return the machine that judges beside the network.

    Raises:
        SettingsError: The model sees tiles, or the pictures are too small.
    """
    if not settings.model.words:
        return None
    if settings.data.tile:
        raise SettingsError(
            "visual words are taught whole pictures, and the model would see tiles",
            where="model.words",
            remedy="set model.words = 0, or data.tile = 0",
        )
    side = min(settings.data.size)
    if side < SMALLEST:
        raise SettingsError(
            f"pictures of {side} pixels are too small for visual words, which take {SMALLEST}",
            where="model.words",
            remedy=f"set data.size to {SMALLEST} or more, or model.words = 0",
        )
    data = settings.data
    return WordMachine(channels_of(data), settings.model.words, len(data.classes))


def backbone_of(
    settings: DefectSettings,
    seen: Pixels | OrientedGradients,
    train_data: InspectionDataset | None,
) -> Backbone:
    """Build the backbone for what it is given, with the user's weights where there are any."""
    table, data = settings.model, settings.data
    height, width = (data.tile, data.tile) if data.tile else data.size
    size = (height // seen.stride, width // seen.stride)
    backbone = build_backbone(table.backbone, seen.channels, size)
    # Trained weights follow where there is no train split, and the file need not be there any more.
    if table.weights is not None and train_data is not None:
        load_backbone(backbone, table.weights)
    return backbone


class Inspector(nn.Module):
    """What is deployed: a picture in; score, map and, of classes, probabilities out."""

    def __init__(self, model: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """uint8 (B, H, W, C) -> the signature's outputs."""
        found: Mapping[str, Any] = self.model(image)
        return {name: found[name] for name in self.outputs}
