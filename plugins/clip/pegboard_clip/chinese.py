"""Chinese-CLIP (Yang et al., 2022): CLIP's image tower and a BERT, through transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pegboard.errors import CheckpointError, DataError, MissingExtraError, SettingsError
from pegboard_clip import sizes
from pegboard_clip.configuration import read_json
from pegboard_clip.model import DEVIATION, MEAN, bounded_scale
from pegboard_clip.settings import ClipSettings


class ChineseClip(nn.Module):
    """A `ChineseCLIPModel` that is used as a `Clip` is.

    B pictures or texts, S pixels a side, L tokens, D numbers of an embedding. Its text tower looks
    both ways, so it is told which tokens are padding: those that are 0.

    Args:
        model: transformers' model; with eager or scaled dot-product attention.
    """

    logit_scale: nn.Parameter
    """(1,), the logarithm of one over the temperature."""
    logit_bias: nn.Parameter | None
    """(1,), of SigLIP's objective alone."""
    mean: Tensor
    deviation: Tensor

    def __init__(self, model: Any, *, sigmoid: bool = False) -> None:
        super().__init__()
        self.vision_model, self.text_model = model.vision_model, model.text_model
        self.visual_projection = model.visual_projection
        self.text_projection = model.text_projection
        # The numbers of one axis that fsdp can shard; transformers' has none.
        scale = torch.full((1,), math.log(10.0)) if sigmoid else model.logit_scale.detach()
        self.logit_scale = nn.Parameter(scale.reshape(1).clone())
        self.logit_bias = nn.Parameter(torch.full((1,), -10.0)) if sigmoid else None
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer(
            "deviation", 255 * torch.tensor(DEVIATION).view(3, 1, 1), persistent=False
        )

    @property
    def visual(self) -> nn.Module:
        """The image tower, under the name that it has in a `Clip`."""
        return nn.ModuleList([self.vision_model, self.visual_projection])

    def encode_image(self, image: Tensor) -> Tensor:
        """uint8 (B, S, S, 3) -> unit vectors (B, D)."""
        x = (image.permute(0, 3, 1, 2).float() - self.mean) / self.deviation
        pooled = self.vision_model(pixel_values=x).pooler_output
        return F.normalize(self.visual_projection(pooled).float(), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """int64 (B, L), padded with zeros -> unit vectors (B, D)."""
        # Places are given, so that an exported graph's L may vary.
        places = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        seen = self.text_model(
            input_ids=tokens,
            attention_mask=(tokens != 0).long(),
            token_type_ids=torch.zeros_like(tokens),
            position_ids=places,
        )
        # The state of [CLS], as the checkpoint was trained; BERT's own pooler is not used.
        first = seen.last_hidden_state[:, 0]
        return F.normalize(self.text_projection(first).float(), dim=-1)

    def scale(self) -> Tensor:
        """Return what a cosine is multiplied by: one over the temperature, 100 at most."""
        return bounded_scale(self.logit_scale)

    def forward(self, image: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Encode pictures and texts; the numbers of both may differ."""
        return {
            "image_embedding": self.encode_image(image),
            "text_embedding": self.encode_text(tokens),
        }


def build_chinese(settings: ClipSettings, *, loads: bool = True) -> ChineseClip:
    """Build Chinese-CLIP from a local folder of transformers', or untrained without one.

    Raises:
        CheckpointError: The folder's model is another one.
        DataError: The folder cannot be read.
        MissingExtraError: transformers is not installed.
        SettingsError: Image size, width or context are not the checkpoint's.
    """
    try:
        from transformers import ChineseCLIPConfig, ChineseCLIPModel
    except ImportError as error:
        raise MissingExtraError(
            "Chinese-CLIP needs transformers, which is not installed",
            where="model.architecture",
            remedy="install 'pegboard-clip[chinese]'",
        ) from error
    folder = settings.model.weights
    configuration = ChineseCLIPConfig() if folder is None else _configuration(folder)
    _check(configuration, settings)
    model: Any = _loaded(folder) if folder and loads else ChineseCLIPModel(configuration)
    return ChineseClip(model, sigmoid=settings.train.objective == "sigmoid")


def _configuration(folder: Path) -> Any:
    from transformers import ChineseCLIPConfig

    told = read_json(folder / "config.json")
    if told is None:
        raise DataError(
            "the folder has no config.json",
            where=str(folder),
            remedy="set model.weights to a local folder of transformers' ChineseCLIPModel",
        )
    if told.get("model_type") != "chinese_clip":
        raise CheckpointError(
            "the folder holds another model than Chinese-CLIP",
            where=str(folder / "config.json"),
            remedy="set model.architecture to the one it was trained as",
        )
    return ChineseCLIPConfig.from_dict(told)


def _loaded(folder: Path) -> Any:
    from transformers import ChineseCLIPModel

    try:
        # Transformers reads a .bin as tensors alone (weights_only), as it should be.
        read: Any = ChineseCLIPModel.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable(folder, error) from error
    model, told = read
    missing = sorted(name for name in told["missing_keys"] if ".pooler." not in name)
    if missing or told.get("mismatched_keys"):
        raise CheckpointError(
            f"the checkpoint lacks {len(missing)} parameters of the model, as '{missing[0]}'"
            if missing
            else "the checkpoint's parameters have other shapes than its config.json says",
            where=str(folder),
            remedy="fetch its files again",
        )
    return model


def _unreadable(folder: Path, error: Exception) -> DataError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return DataError(
        f"the checkpoint cannot be read: {reason[0].rstrip('.')}",
        where=str(folder),
        remedy="set model.weights to a local folder of transformers' ChineseCLIPModel",
    )


def _check(configuration: Any, settings: ClipSettings) -> None:
    """Raise where settings and checkpoint say different sizes."""
    for key, has, wants in (
        ("image_size", configuration.vision_config.image_size, sizes.image_size(settings)),
        ("width", configuration.projection_dim, sizes.width(settings)),
    ):
        if has != wants:
            raise SettingsError(
                f"the checkpoint's {key} is {has} and the model's {wants}",
                where=f"model.{key}",
                remedy=f"set it to {has}",
            )
    longest = configuration.text_config.max_position_embeddings
    if settings.model.context > longest:
        raise SettingsError(
            f"the checkpoint reads {longest} tokens and not {settings.model.context}",
            where="model.context",
            remedy=f"set it to {longest} or less",
        )
