"""Backbones: networks that turn a picture into maps of features, with timm's parameter names.

Weights of `pegboard pretrain` and checkpoints of timm load by these names. B pictures, C channels,
H height, W width, D features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from pegboard.errors import CheckpointError, SettingsError
from pegboard.files import atomic_path

Weights = dict[str, Tensor]


class Backbone(nn.Module):
    """What every backbone is: a module from (B, C, H, W) to maps (B, D, h, w), finest first."""

    widths: tuple[int, ...]
    """D of each map."""
    strides: tuple[int, ...]
    """Pixels from one place of each map to the next."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> a map (B, widths[i], H / strides[i], W / strides[i]) for each i."""
        raise NotImplementedError


# --- ResNet ---------------------------------------------------------------------------------------


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width)


class BasicBlock(nn.Module):
    """Two convolutions around a shortcut (He et al., CVPR 2016): (B, D, H, W) -> (B, D, h, w)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = _norm(width)
        nn.init.zeros_(self.bn2.weight)  # Each block begins as its shortcut (Goyal et al., 2017).
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        return functional.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


class Bottleneck(nn.Module):
    """Three convolutions, the middle one narrow; the stride is on the 3 x 3 as in timm."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = _norm(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = _norm(4 * width)
        nn.init.zeros_(self.bn3.weight)
        self.downsample = _shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        x = functional.relu(self.bn2(self.conv2(x)), inplace=True)
        return functional.relu(self.bn3(self.conv3(x)) + shortcut, inplace=True)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), _norm(outputs))


@dataclass(frozen=True, kw_only=True)
class ResNetShape:
    """What tells one ResNet from another."""

    block: type[BasicBlock] | type[Bottleneck] = BasicBlock
    """What its stages are made of."""
    depths: tuple[int, int, int, int]
    """Blocks a stage."""
    width: int = 64
    """Of the first stage; each next one is twice as wide."""
    stem: int = 7
    """Side of the first convolution, of stride 2."""
    pools: bool = True
    """Whether a 3 x 3 maximum of stride 2 follows it."""


RESNETS = {
    "tiny": ResNetShape(depths=(1, 1, 1, 1), width=16, stem=5, pools=False),
    "small": ResNetShape(depths=(1, 1, 1, 1), width=32, stem=5, pools=False),
    "resnet18": ResNetShape(depths=(2, 2, 2, 2)),
    "resnet34": ResNetShape(depths=(3, 4, 6, 3)),
    "resnet50": ResNetShape(block=Bottleneck, depths=(3, 4, 6, 3)),
}


class ResNet(Backbone):
    """Four stages of residual blocks, each half as large as the one before.

    Args:
        shape: Depths, widths, stem.
        channels: C.
    """

    def __init__(self, shape: ResNetShape, channels: int) -> None:
        super().__init__()
        expansion = shape.block.expansion
        self.widths = tuple(shape.width * 2**stage * expansion for stage in range(4))
        first = 4 if shape.pools else 2
        self.strides = tuple(first * 2**stage for stage in range(4))
        self.conv1 = nn.Conv2d(channels, shape.width, shape.stem, 2, shape.stem // 2, bias=False)
        self.bn1 = _norm(shape.width)
        self.maxpool: nn.Module = nn.MaxPool2d(3, 2, 1) if shape.pools else nn.Identity()
        inputs = shape.width
        for stage, depth in enumerate(shape.depths):
            width = shape.width * 2**stage
            blocks: list[nn.Module] = []
            for index in range(depth):
                stride = 2 if stage and not index else 1
                blocks.append(shape.block(inputs, width, stride))
                inputs = width * expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> four maps (B, widths[i], H / strides[i], W / strides[i])."""
        x = self.maxpool(functional.relu(self.bn1(self.conv1(x)), inplace=True))
        maps = []
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
            maps.append(x)
        return maps


# --- Vision transformer ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ViTShape:
    """What tells one vision transformer from another."""

    width: int = 192
    """D of every token."""
    depth: int = 12
    """Blocks."""
    heads: int = 3
    """Heads of attention a block."""
    patch: int = 16
    """Side of the square that becomes one token."""


VITS = {"vit_tiny": ViTShape()}


class Attention(nn.Module):
    """Every token looks at every other: (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        width = x.shape[2]
        parts = self.qkv(x).unflatten(2, (3, self.heads, width // self.heads))
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)  # Each (B, heads, N, D / heads)
        seen = functional.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.proj(seen.transpose(1, 2).flatten(2))
        return mixed


class Mlp(nn.Module):
    """Two layers that treat each token by itself: (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class TransformerBlock(nn.Module):
    """Attention and MLP, each around a shortcut and normalised before: (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchEmbed(nn.Module):
    """Each square of the picture as a token: (B, C, H, W) -> (B, h * w, D)."""

    def __init__(self, channels: int, shape: ViTShape) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, shape.width, shape.patch, shape.patch)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class ViT(Backbone):
    """A vision transformer (Dosovitskiy et al., ICLR 2021) that answers its tokens as one map.

    Args:
        shape: Depth, width, heads, patch.
        channels: C.
        size: H and W, multiples of the patch.
        freeze_patches: Leave the projection of the patches as it was drawn, which keeps
            self-supervised training from jumping (Chen, Xie and He, ICCV 2021, section 4).
    """

    def __init__(
        self, shape: ViTShape, channels: int, size: tuple[int, int], *, freeze_patches: bool = False
    ) -> None:
        super().__init__()
        self.widths, self.strides = (shape.width,), (shape.patch,)
        self.grid = (size[0] // shape.patch, size[1] // shape.patch)
        self.patch_embed = PatchEmbed(channels, shape)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.pos_embed = nn.Parameter(_positions(self.grid, shape.width))
        self.blocks = nn.Sequential(
            *(TransformerBlock(shape.width, shape.heads) for _ in range(shape.depth))
        )
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        _draw_projection(self.patch_embed.proj)
        self.patch_embed.requires_grad_(not freeze_patches)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> one map (B, D, H / patch, W / patch)."""
        tokens = self.patch_embed(x)
        first = self.cls_token.expand(tokens.shape[0], -1, -1)
        tokens = torch.cat([first, tokens], dim=1) + self.pos_embed  # (B, 1 + h * w, D)
        tokens = self.norm(self.blocks(tokens))
        return [tokens[:, 1:].transpose(1, 2).unflatten(2, self.grid)]


def _draw_projection(proj: nn.Conv2d) -> None:
    """Draw it as the linear layer that it is (Xavier, over a whole patch)."""
    inputs = proj.weight[0].numel()
    bound = math.sqrt(6 / (inputs + proj.out_channels))
    nn.init.uniform_(proj.weight, -bound, bound)
    if proj.bias is not None:
        nn.init.zeros_(proj.bias)


def _positions(grid: tuple[int, int], width: int) -> Tensor:
    """Sines and cosines of row and column (Vaswani et al., 2017, in two dimensions).

    Returns:
        (1, 1 + h * w, D), of zeros for the first token, which has no place.
    """
    rates = 1 / 10000 ** (torch.arange(width // 4) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [place.flatten()[:, None] * rates for place in (rows, columns)]
    waves = [wave(angle) for angle in angles for wave in (torch.sin, torch.cos)]
    places = torch.cat(waves, dim=1)  # (h * w, D)
    return torch.cat([torch.zeros(1, width), places])[None]


# --- Building -------------------------------------------------------------------------------------


def build_backbone(
    name: str, channels: int, size: tuple[int, int], *, freeze_patches: bool = False
) -> Backbone:
    """Build a backbone with random weights.

    Args:
        name: Of `RESNETS` or `VITS`.
        channels: C.
        size: H and W of the pictures; a ResNet takes any.
        freeze_patches: For a vision transformer, whether the projection of the patches stays.

    Raises:
        SettingsError: The picture cannot be cut into the transformer's patches.
    """
    if name in RESNETS:
        return ResNet(RESNETS[name], channels)
    shape = VITS[name]
    if any(side % shape.patch for side in size):
        raise SettingsError(
            f"{size[0]} x {size[1]} pixels cannot be cut into patches of {shape.patch}",
            where=f"data.size, for the backbone {name}",
            remedy=f"take multiples of {shape.patch}",
        )
    return ViT(shape, channels, size, freeze_patches=freeze_patches)


# --- Weights --------------------------------------------------------------------------------------

HEADS = ("fc.", "head.", "fc_norm.", "head_norm.")
"""What a checkpoint has after the backbone, and nobody needs here."""

NOTE = "pegboard"
"""Under which a file of ours says what it holds."""


@dataclass(frozen=True, kw_only=True)
class BackboneNote:
    """What `backbone.safetensors` says of itself; checkpoints of others say nothing."""

    backbone: str
    """Name of the network."""
    color: str
    """`grey` or `rgb`."""
    size: tuple[int, int]
    """Height and width of what it was given."""
    input: str = "pixels"
    """What of a picture it was given."""


def save_backbone(backbone: Backbone, path: Path, note: BackboneNote) -> None:
    """Write a backbone's weights by timm's names, atomically.

    Raises:
        PegboardError: The disk is full.
    """
    tensors = {name: value.detach().cpu().clone() for name, value in backbone.state_dict().items()}
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata={NOTE: json.dumps(asdict(note))})


def load_backbone(backbone: Backbone, path: Path) -> None:
    """Fill a backbone with the weights of `pegboard pretrain` or of a timm checkpoint.

    The head of a classifier is left out. Where the file's pictures had other channels, the first
    convolution is summed (colour to grey) or shared out (grey to colour), which gives the same on
    a grey picture. The places of a vision transformer are interpolated to the backbone's grid.

    Raises:
        CheckpointError: The file is missing or damaged, is no .safetensors, or does not fit.
    """
    weights = _fitted(_read(path), backbone, path)
    expected = backbone.state_dict()
    misfit = _misfit(weights, expected)
    if misfit:
        raise CheckpointError(
            f"the weights do not fit the backbone: {misfit}{_of_another(path)}",
            where=str(path),
            remedy="set model.backbone and what it is given as they were trained",
        )
    # Old checkpoints do not count batches, and only a mean without momentum would need it.
    counts = {name: value for name, value in expected.items() if name.endswith("_tracked")}
    backbone.load_state_dict(counts | weights)


def _read(path: Path) -> Weights:
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"'{path.suffix or path.name}' is no format that weights are read from",
            where=str(path),
            remedy="save them with safetensors.torch.save_file: a pickle may run anything when it "
            "is opened",
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(
            "the weights are missing", where=str(path), remedy="correct the path"
        ) from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the weights cannot be read: {error}",
            where=str(path),
            remedy="write or fetch the file again",
        ) from error


def read_note(path: Path) -> BackboneNote | None:
    """Return what a file of ours says of itself; None where it says nothing."""
    try:
        with safe_open(path, framework="pt") as file:
            fields = json.loads((file.metadata() or {})[NOTE])
        return BackboneNote(**(fields | {"size": tuple(fields["size"])}))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _of_another(path: Path) -> str:
    note = read_note(path)
    return (
        "" if note is None else f" (the file holds {note.backbone} for {note.color} {note.input})"
    )


def _fitted(weights: Weights, backbone: Backbone, path: Path) -> Weights:
    """Leave out the head; bring first convolution and places to the backbone's shapes."""
    fitted = {name: value for name, value in weights.items() if not name.startswith(HEADS)}
    expected = backbone.state_dict()
    for name in ("conv1.weight", "patch_embed.proj.weight"):
        if name in fitted and name in expected:
            fitted[name] = _with_channels(fitted[name], expected[name].shape[1])
    if isinstance(backbone, ViT) and "pos_embed" in fitted:
        note = read_note(path)
        patch = backbone.strides[0]
        grid = None if note is None else (note.size[0] // patch, note.size[1] // patch)
        fitted["pos_embed"] = _with_grid(fitted["pos_embed"], grid, backbone.grid)
    return {name: v.float() if v.is_floating_point() else v for name, v in fitted.items()}


def _with_channels(weight: Tensor, channels: int) -> Tensor:
    """(D, 3, h, w) -> (D, 1, h, w) or back; as it is where it fits, or neither would."""
    if weight.ndim != 4 or {weight.shape[1], channels} != {1, 3}:
        return weight
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight.repeat(1, 3, 1, 1) / 3


def _with_grid(places: Tensor, of: tuple[int, int] | None, to: tuple[int, int]) -> Tensor:
    """(1, 1 + n, D) -> (1, 1 + h * w, D), by the grid that the file names, else a square."""
    if places.ndim != 3:
        return places
    count = places.shape[1] - 1
    side = math.isqrt(max(0, count))
    height, width = of or (side, side)
    # What is no grid is left to be named as a misfit.
    if height * width != count or count < 1 or (height, width) == to:
        return places
    grid = places[:, 1:].transpose(1, 2).reshape(1, -1, height, width).float()
    resized = functional.interpolate(grid, size=to, mode="bicubic", antialias=True)
    return torch.cat([places[:, :1].float(), resized.flatten(2).transpose(1, 2)], dim=1)


def _misfit(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Describe the first name or shape that differs."""
    for name, tensor in expected.items():
        if name not in weights:
            if name.endswith("num_batches_tracked"):
                continue
            return f"'{name}' is not in the file"
        if weights[name].shape != tensor.shape:
            return (
                f"'{name}' has the shape {tuple(weights[name].shape)} in the file and "
                f"{tuple(tensor.shape)} in the backbone"
            )
    unknown = next((name for name in weights if name not in expected), None)
    return None if unknown is None else f"'{unknown}' is not in the backbone"
