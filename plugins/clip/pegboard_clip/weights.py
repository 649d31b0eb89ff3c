"""Published weights: open_clip's files and Hugging Face's folders, read strictly."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pegboard.errors import CheckpointError, DataError
from pegboard_clip.configuration import no_checkpoint

Weights = dict[str, Tensor]

_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
"""What a folder's weights are called, the ones to be preferred first."""

_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI keeps among the weights."""

_OTHER_NAMES = (
    # Hugging Face's names, as patterns, and open_clip's.
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
_TRANSPOSED = ("text_projection", "visual.proj")
"""Kept as `nn.Linear` keeps them there, and as factors on the right here."""

# --- Reading --------------------------------------------------------------------------------------


def read_weights(path: Path) -> Weights:
    """Read a checkpoint, with open_clip's names whatever its own are.

    Args:
        path: A `.safetensors`, `.bin` or `.pt` file of open_clip's, or a folder with such a file
            or with that of a `CLIPModel`.

    Raises:
        DataError: There is none, or it cannot be read as plain tensors.
    """
    weights = _plain(_tensors(_file_of(path)))
    return _renamed(weights) if any(name.startswith("text_model.") for name in weights) else weights


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = next((path / name for name in _FILES if (path / name).is_file()), None)
    if found is None:
        raise DataError(
            "the folder has no weights",
            where=str(path),
            remedy=f"put {' or '.join(_FILES)} into it, or name the file in model.weights",
        )
    return found


def _tensors(file: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # Tensors alone: a pickle could run anything.
        read = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        raise _unreadable(file, error) from error
    if not isinstance(read, Mapping):
        raise _unreadable(file, TypeError(f"it holds a {type(read).__name__}"))
    return read


def _unreadable(file: Path, error: Exception) -> DataError:
    if not file.exists():
        return no_checkpoint(file)
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return DataError(
        f"the checkpoint cannot be read: {reason[0].rstrip('.')}",
        where=str(file),
        remedy="take open_clip's .safetensors or Hugging Face's folder; OpenAI's own .pt is a "
        "program and not weights",
    )


def _plain(read: Mapping[str, Any]) -> Weights:
    """Undo how training wraps weights: `state_dict`, `module.`, and `text.` of newer models."""
    read = cast("Mapping[str, Any]", read.get("state_dict", read))
    weights = {
        re.sub(r"^(module\.)?(text\.)?", "", name): tensor
        for name, tensor in read.items()
        if isinstance(tensor, Tensor)
    }
    for name in list(weights):
        if name in _NOT_WEIGHTS or name.endswith((".position_ids", "attn_mask")):
            del weights[name]
    return weights


def _renamed(weights: Weights) -> Weights:
    """Give Hugging Face's weights open_clip's names; queries, keys and values become one."""
    renamed: Weights = {}
    for name, tensor in weights.items():
        for pattern, other in _OTHER_NAMES:
            name = re.sub(pattern, other, name)
        renamed[name] = tensor.T.contiguous() if name in _TRANSPOSED else tensor
    for name in [name for name in renamed if ".attn.q_proj." in name]:
        parts = [renamed.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        renamed[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return renamed


# --- Loading --------------------------------------------------------------------------------------


def load(model: nn.Module, path: Path) -> None:
    """Load a checkpoint into a `Clip`; every parameter has to fit.

    Two things are fitted: the places of the patches, where the image has another size, are
    interpolated as open_clip does; places of tokens beyond the model's context are left out,
    which changes nothing for shorter texts.

    Raises:
        CheckpointError: The checkpoint is of another architecture.
        DataError: It cannot be read.
    """
    own, weights = model.state_dict(), read_weights(path)
    if "logit_bias" not in own:
        weights.pop("logit_bias", None)  # What SigLIP's objective learnt besides.
    elif "logit_bias" not in weights:
        weights["logit_bias"] = own["logit_bias"]
    fitted = {name: _fitted(name, tensor, own) for name, tensor in weights.items()}
    _check(fitted, own, path)
    model.load_state_dict(fitted)


def _fitted(name: str, tensor: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    if name in ("logit_scale", "logit_bias"):
        return tensor.reshape(1)
    wanted = own.get(name)
    if wanted is None or tensor.shape == wanted.shape or tensor.ndim != 2:
        return tensor
    if name == "positional_embedding":
        return tensor[: len(wanted)]
    if name == "visual.positional_embedding" and tensor.shape[1] == wanted.shape[1]:
        return resized_places(tensor, len(wanted))
    return tensor


def resized_places(places: Tensor, count: int) -> Tensor:
    """Interpolate the places of patches: (1 + n * n, W) -> (1 + m * m, W), bicubic as open_clip.

    The first is that of the class and stays.
    """
    old, new = (round((length - 1) ** 0.5) for length in (len(places), count))
    if old**2 + 1 != len(places) or new**2 + 1 != count:
        return places
    grid = places[1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (new, new), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([places[:1], grid.flatten(2)[0].T.to(places.dtype)])


def _check(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    """Raise one sentence about the first parameter that does not fit."""
    what = _misfit(weights, own)
    if what:
        raise CheckpointError(
            what,
            where=str(path),
            remedy="set model.architecture, and where they are set model.image_size, model.width "
            "and model.context, to what the checkpoint was trained with",
        )


def _misfit(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    for name, wanted in own.items():
        if name in weights and weights[name].shape != wanted.shape:
            has, wants = (tuple(tensor.shape) for tensor in (weights[name], wanted))
            return f"the checkpoint's '{name}' is {has} and the model's {wants}"
    missing, strange = (sorted(a.keys() - b.keys()) for a, b in ((own, weights), (weights, own)))
    if missing:
        return f"the checkpoint lacks {len(missing)} parameters of the model, as '{missing[0]}'"
    if strange:
        return f"the model lacks {len(strange)} parameters of the checkpoint, as '{strange[0]}'"
    return ""


def interpolate(
    initial: Mapping[str, Tensor], tuned: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Return weights on the line from a checkpoint's to the fine-tuned ones.

    WiSE-FT (Wortsman et al., CVPR 2022): what was learnt for one's own pictures is kept, and so is
    most of what the checkpoint knew of others.

    Args:
        initial: The checkpoint's weights by name; one that it lacks is taken as it was tuned.
        tuned: The weights after fine-tuning.
        share: Of the fine-tuned ones: 0 gives the checkpoint's, 1 theirs.
    """
    mixed: dict[str, Tensor] = {}
    for name, tensor in tuned.items():
        if share >= 1 or name not in initial or not tensor.is_floating_point():
            mixed[name] = tensor
        else:
            mixed[name] = torch.lerp(initial[name].to(tensor), tensor, share)
    return mixed
