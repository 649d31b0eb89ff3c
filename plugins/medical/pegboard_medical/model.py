"""The network that outlines structures in a window of a volume, and its loss.

B windows, K structures, d x h x w voxels of a window.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from monai.losses.dice import DiceCELoss
from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from pegboard.records import Batch
from pegboard_medical.settings import SegmentationModel, SegmentationSettings

# --- What it sees ---------------------------------------------------------------------------------


class HounsfieldWindow(nn.Module):
    """Cuts Hounsfield units to a window and brings them to -1 to 1; a CT's normalisation.

    Args:
        low: Smallest number that is told from smaller ones.
        high: Largest one.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, image: Tensor) -> Tensor:
        """HU of any shape -> -1 to 1."""
        middle, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        return (image.clamp(self.low, self.high) - middle) / half


def build_network(model: SegmentationModel, classes: int) -> nn.Module:
    """Return a network of MONAI that maps (B, 1, d, h, w) to logits (B, K + 1, d, h, w).

    `unet`: residual units (Cicek et al., MICCAI 2016; Kerfoot et al., STACOM 2018).
    `attention_unet`: additive attention gates on the skip connections (Oktay et al., MIDL 2018).
    `segresnet`: encoder of residual blocks, small decoder (Myronenko, BrainLes 2018).
    `dynunet`: the network of nnU-Net (Isensee et al., Nature Methods 18, 2021).
    """
    channels = [min(model.channels * 2**level, 320) for level in range(model.levels)]
    strides = [2] * (model.levels - 1)
    outputs = classes + 1
    if model.network == "attention_unet":
        return AttentionUnet(3, 1, outputs, channels, strides)
    if model.network == "segresnet":
        return SegResNet(
            3,
            init_filters=model.channels,
            in_channels=1,
            out_channels=outputs,
            blocks_down=(1, *[2] * (model.levels - 1)),
            blocks_up=(1,) * (model.levels - 1),
        )
    if model.network == "dynunet":
        return DynUNet(
            3,
            1,
            outputs,
            kernel_size=[3] * model.levels,
            strides=[1, *strides],
            upsample_kernel_size=strides,
            filters=channels,
            norm_name="instance",
        )
    return UNet(3, 1, outputs, channels, strides, num_res_units=2, norm="INSTANCE")


# --- The model ------------------------------------------------------------------------------------


class SegmentationNet(nn.Module):
    """Normalisation, network and probabilities, whole: what is trained is what is exported.

    Args:
        normalise: Of Hounsfield units; an MR comes scaled.
        network: (B, 1, d, h, w) -> logits (B, K + 1, d, h, w).
    """

    def __init__(self, normalise: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.normalise, self.network = normalise, network
        # Structures alone: a window is mostly background and would say that it is found.
        self.loss = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """float32 (B, d, h, w) -> probabilities (B, K, d, h, w) of the structures."""
        return {"probabilities": self.logits(image).softmax(dim=1)[:, 1:]}

    def logits(self, image: Tensor) -> Tensor:
        """float32 (B, d, h, w) -> (B, K + 1, d, h, w), the background first."""
        logits: Tensor = self.network(self.normalise(image)[:, None])
        return logits

    def losses(self, batch: Batch) -> Mapping[str, Tensor]:
        """Soft Dice (Milletari et al., 3DV 2016) plus cross entropy, over the batch."""
        logits = self.logits(batch.inputs["image"]).float()
        return {"loss": self.loss(logits, batch.targets["mask"][:, None].long())}


def build(settings: SegmentationSettings) -> SegmentationNet:
    """Build the model of a project."""
    data = settings.data
    normalise = HounsfieldWindow(*data.window) if data.modality == "ct" else nn.Identity()
    network = build_network(settings.model, len(data.classes))
    # A sixth faster on a CPU where full resolution is computed.
    if settings.model.network != "unet":
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # No stub.
    return SegmentationNet(normalise, network)
