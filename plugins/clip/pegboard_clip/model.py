"""CLIP from top to bottom: blocks, two towers, the model, its presets (Radford et al., ICML 2021).

Parameters have open_clip's names, so its checkpoints load strictly. B pictures or texts, S pixels
a side, P patches, L tokens, W width of a tower, H heads, D numbers of an embedding.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pegboard_clip.configuration import (
    Activation,
    Configuration,
    Convolution,
    Transformer,
    Vision,
    configuration_of,
)
from pegboard_clip.settings import ClipSettings

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""Of the channels of OpenAI's training images, as shares of 255."""

LARGEST_SCALE = math.log(100.0)
"""The temperature stays above 1/100, or training becomes unstable (Radford et al., 2.5)."""

# --- Transformer ----------------------------------------------------------------------------------


class QuickGELU(nn.Module):
    """OpenAI's approximation of the Gaussian error linear unit."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Self-attention with the parameters of `nn.MultiheadAttention`: (B, L, W) -> (B, L, W)."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = torch.unflatten(packed, -1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        mixed: Tensor = self.out_proj(x.transpose(1, 2).flatten(2))  # (B, H, L, W/H) before.
        return mixed


class Block(nn.Module):
    """Attention and a hidden layer, each around a shortcut: (B, L, W) -> (B, L, W)."""

    def __init__(self, shape: Transformer, activation: Activation, *, causal: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.width)
        self.attn = Attention(shape.width, shape.heads, causal=causal)
        self.ln_2 = nn.LayerNorm(shape.width)
        layers: dict[str, nn.Module] = {
            "c_fc": nn.Linear(shape.width, 4 * shape.width),
            "gelu": QuickGELU() if activation == "quickgelu" else nn.GELU(),
            "c_proj": nn.Linear(4 * shape.width, shape.width),
        }
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = x + self.attn(self.ln_1(x))
        hidden: Tensor = self.mlp(self.ln_2(x))
        return x + hidden


class Blocks(nn.Module):
    """A stack of blocks, initialised as CLIP's: (B, L, W) -> (B, L, W)."""

    def __init__(self, shape: Transformer, activation: Activation, *, causal: bool) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(
            *(Block(shape, activation, causal=causal) for _ in range(shape.layers))
        )
        deviation = shape.width**-0.5
        for name, parameter in self.named_parameters():
            if name.endswith(("in_proj_weight", "c_fc.weight", "out_proj.weight", "c_proj.weight")):
                # What ends a shortcut is smaller the more of them there are.
                ends = name.endswith(("out_proj.weight", "c_proj.weight"))
                share = (2 * shape.layers) ** -0.5 if ends else 1.0
                share = 2**-0.5 if name.endswith("c_fc.weight") else share
                nn.init.normal_(parameter, std=deviation * share)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        blocks: Tensor = self.resblocks(x)
        return blocks


# --- Image towers ---------------------------------------------------------------------------------


class VisionTransformer(nn.Module):
    """An image as a row of patches (Dosovitskiy et al., ICLR 2021): (B, 3, S, S) -> (B, D)."""

    def __init__(self, shape: Vision, size: int, width: int, activation: Activation) -> None:
        super().__init__()
        patches, deviation = (size // shape.patch) ** 2, shape.width**-0.5
        self.conv1 = nn.Conv2d(3, shape.width, shape.patch, shape.patch, bias=False)
        self.class_embedding = nn.Parameter(deviation * torch.randn(shape.width))
        self.positional_embedding = nn.Parameter(deviation * torch.randn(patches + 1, shape.width))
        self.ln_pre = nn.LayerNorm(shape.width)
        self.transformer = Blocks(shape, activation, causal=False)
        self.ln_post = nn.LayerNorm(shape.width)
        self.proj = nn.Parameter(deviation * torch.randn(shape.width, width))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.conv1(x).flatten(2).transpose(1, 2)  # (B, P, W)
        first = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([first, x], dim=1) + self.positional_embedding.to(x.dtype)
        x = self.transformer(self.ln_pre(x))
        pooled: Tensor = self.ln_post(x[:, 0])
        return pooled @ self.proj


class Residual(nn.Module):
    """Two convolutions around a shortcut: (B, W, h, w) -> (B, W, h, w).

    Normalised over each picture alone and not over the batch (Wu and He, ECCV 2018): an embedding
    must not depend on its neighbours, and a batch encoded in chunks must give the same gradient.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, width)
        # Each block begins as its shortcut.
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(inner)))


class ConvolutionalTower(nn.Module):
    """A small residual network for training from scratch: (B, 3, S, S) -> (B, D)."""

    def __init__(self, shape: Convolution, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, side = 3, shape.patch
        for outputs, depth in zip(shape.widths, shape.depths, strict=True):
            layers.append(nn.Conv2d(inputs, outputs, side, side, bias=False))
            layers += [nn.GroupNorm(8, outputs), nn.ReLU()]
            layers += [Residual(outputs) for _ in range(depth)]
            inputs, side = outputs, 2
        self.stages = nn.Sequential(*layers)
        self.proj = nn.Parameter(inputs**-0.5 * torch.randn(inputs, width))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.stages(x).mean(dim=(2, 3))
        return x @ self.proj


# --- The model ------------------------------------------------------------------------------------


class Clip(nn.Module):
    """A dual encoder: pictures and texts as unit vectors, near where they belong together."""

    logit_scale: nn.Parameter
    """(1,), the logarithm of one over the temperature. open_clip's has no axis, which fsdp could
    not shard; `weights.load` gives it one, and torch takes ours for open_clip's as it is."""
    logit_bias: nn.Parameter | None
    """(1,), of SigLIP's objective alone."""

    def __init__(self, configuration: Configuration) -> None:
        super().__init__()
        self.configuration = configuration
        text, width = configuration.text, configuration.width
        self.visual = _image_tower(configuration)
        self.token_embedding = nn.Embedding(configuration.vocabulary, text.width)
        self.positional_embedding = nn.Parameter(
            0.01 * torch.randn(configuration.context, text.width)
        )
        self.transformer = Blocks(text, configuration.activation, causal=True)
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = nn.Parameter(text.width**-0.5 * torch.randn(text.width, width))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        # Beginnings of Radford et al. (2021) and Zhai et al. (ICCV 2023).
        scale = math.log(10.0) if configuration.sigmoid else math.log(1 / 0.07)
        self.logit_scale = nn.Parameter(torch.full((1,), scale))
        self.logit_bias = nn.Parameter(torch.full((1,), -10.0)) if configuration.sigmoid else None
        # Not saved: they are constants, and open_clip's checkpoints have none.
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer(
            "deviation", 255 * torch.tensor(DEVIATION).view(3, 1, 1), persistent=False
        )

    mean: Tensor
    deviation: Tensor

    def encode_image(self, image: Tensor) -> Tensor:
        """uint8 (B, S, S, 3) -> unit vectors (B, D)."""
        # The channels stay last in memory, which convolutions are fastest with.
        x = (image.permute(0, 3, 1, 2).float() - self.mean) / self.deviation
        return F.normalize(self.visual(x).float(), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """int64 (B, L) with L up to the context -> unit vectors (B, D).

        The text tower looks back only, so tokens after a text's end change nothing.
        """
        # Looked up and not cut out, so that an exported graph's L may vary.
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.token_embedding(tokens) + F.embedding(places, self.positional_embedding)
        x = self.transformer(x)
        # The end token is the largest of the vocabulary.
        end = tokens.argmax(dim=-1)
        x = x[torch.arange(x.shape[0], device=x.device), end]
        return F.normalize((self.ln_final(x) @ self.text_projection).float(), dim=-1)

    def scale(self) -> Tensor:
        """Return what a cosine is multiplied by: one over the temperature, 100 at most."""
        return bounded_scale(self.logit_scale)

    def forward(self, image: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Encode pictures and texts; the numbers of both may differ."""
        return {
            "image_embedding": self.encode_image(image),
            "text_embedding": self.encode_text(tokens),
        }


def bounded_scale(logarithm: Tensor) -> Tensor:
    """Return the exponential of a learnt logarithm, 100 at most.

    At the limit a gradient passes that leads back from it; a plain clamp would stay there.
    """
    bounded = logarithm + (logarithm.clamp(max=LARGEST_SCALE) - logarithm).detach()
    if bounded.requires_grad:
        at_limit = logarithm.detach() >= LARGEST_SCALE
        # Torch annotates the method in part.
        bounded.register_hook(  # type: ignore[no-untyped-call]
            lambda slope: slope.masked_fill(at_limit & (slope < 0), 0.0)
        )
    return bounded.exp()


def _image_tower(configuration: Configuration) -> nn.Module:
    image, width = configuration.image, configuration.width
    if isinstance(image, Convolution):
        tower: nn.Module = ConvolutionalTower(image, width)
        tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # In no stub.
        return tower
    return VisionTransformer(image, configuration.image_size, width, configuration.activation)


class ImageTower(nn.Module):
    """The half of a model that is exported for pictures."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """uint8 (B, S, S, 3) -> `image_embedding` (B, D)."""
        return {"image_embedding": self.model.encode_image(image)}  # type: ignore[operator]


class TextTower(nn.Module):
    """The half of a model that is exported for texts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """int64 (B, L) -> `text_embedding` (B, D)."""
        return {"text_embedding": self.model.encode_text(tokens)}  # type: ignore[operator]


def build(settings: ClipSettings, *, loads: bool = True) -> nn.Module:
    """Build the settings' model, with the checkpoint's weights where `model.weights` names one.

    Args:
        settings: The project's settings.
        loads: Whether to read those weights; needless where trained ones are loaded right after.

    Returns:
        A `Clip`, or a `chinese.ChineseClip`, which is used in the same way.

    Raises:
        CheckpointError: The weights are another model's.
        DataError: The weights cannot be read.
        SettingsError: The settings do not make an architecture.
    """
    if settings.model.architecture == "chinese-clip":
        from pegboard_clip.chinese import build_chinese

        return build_chinese(settings, loads=loads)
    model = Clip(configuration_of(settings))
    if loads and settings.model.weights is not None:
        from pegboard_clip.weights import load

        load(model, settings.model.weights)
    return model
