"""A locked image tower: it keeps the checkpoint's weights, so its embeddings are computed once.

LiT (Zhai et al., CVPR 2022): the text tower learns to describe what a good image tower sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pegboard_clip.data import PairDataset
    from pegboard_clip.settings import ClipSettings


def lock(model: nn.Module, train_data: PairDataset, settings: ClipSettings) -> None:
    """Stop the image tower's learning and embed every training picture with it.

    The embeddings lie in `model.locked_images`, float32 (pictures, D), by `image_id`. That is
    neither a parameter nor a buffer: it is not saved, and not sent to other processes at each
    step. Training pictures are not augmented then.

    Args:
        model: A `Clip` or `ChineseClip`, on the CPU.
        train_data: The train split.
        settings: `train.batch_size` pictures are embedded at once.
    """
    for parameter in model.visual.parameters():  # type: ignore[union-attr]
        parameter.requires_grad_(False)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    count, step = len(train_data.image_keys), settings.train.evaluated_at_once
    parts = [
        _embedded(model, train_data, range(first, min(first + step, count)), device)
        for first in range(0, count, step)
    ]
    model.to("cpu")
    model.locked_images = torch.cat(parts)


@torch.no_grad()
def _embedded(model: nn.Module, data: PairDataset, ids: range, device: torch.device) -> Tensor:
    images = torch.from_numpy(np.stack([data.image(image_id) for image_id in ids]))
    embedded: Tensor = model.encode_image(images.to(device))  # type: ignore[operator]
    return embedded.cpu()
