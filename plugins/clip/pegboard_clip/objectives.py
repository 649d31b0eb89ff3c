"""What pairs should learn: to be near each other and far from the rest of the batch.

B pairs of this process, N pairs of all processes together, D numbers of an embedding, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pegboard.records import Batch
from pegboard_clip.settings import ClipSettings


def losses(model: nn.Module, batch: Batch, settings: ClipSettings) -> dict[str, Tensor]:
    """Return `loss`, a mean over this process's pairs, and `temperature`.

    Every process sees its own rows against the columns of all of them. The mean over processes of
    what comes out is the loss of the whole batch, and so is its gradient.

    Args:
        model: A `Clip` or `ChineseClip`.
        batch: Inputs `image` and `tokens`; targets `caption_id`, equal where the caption is, and
            `image_id` for a locked tower.
        settings: `train.objective`, `train.chunk`.
    """
    image, text = embed(model, batch, settings.train.chunk)
    scale: Tensor = model.scale()  # type: ignore[operator]
    with torch.autocast(image.device.type, enabled=False):
        pairs = Pairs(image, text, batch.targets.get("caption_id"))
        if settings.train.objective == "sigmoid":
            loss = sigmoid(pairs, scale, model.logit_bias)  # type: ignore[arg-type]
        else:
            loss = infonce(pairs, scale)
    return {"loss": loss, "temperature": 1 / scale.detach().squeeze()}


# --- Embeddings -----------------------------------------------------------------------------------


def embed(model: nn.Module, batch: Batch, chunk: int) -> tuple[Tensor, Tensor]:
    """Encode pictures and captions (B, D); those of a locked image tower are looked up.

    Args:
        model: A `Clip` or `ChineseClip`.
        batch: Its inputs.
        chunk: Pairs that are encoded at once; 0: all.
    """
    text = in_chunks(model.encode_text, trimmed(batch.inputs["tokens"]), chunk)  # type: ignore[arg-type]
    known: Tensor | None = getattr(model, "locked_images", None)
    if known is not None:
        return known[batch.targets["image_id"].cpu()].to(text.device), text
    return in_chunks(model.encode_image, batch.inputs["image"], chunk), text  # type: ignore[arg-type]


def trimmed(tokens: Tensor) -> Tensor:
    """Leave out the columns (B, L) that are padding in every row; no embedding changes by it."""
    return tokens[:, : int(tokens.ne(0).any(dim=0).nonzero().max()) + 1]


def in_chunks(encode: Callable[[Tensor], Tensor], inputs: Tensor, chunk: int) -> Tensor:
    """Encode a chunk at a time, keeping embeddings alone; the gradient is that of all at once.

    GradCache (Gao et al., RepL4NLP 2021): what a chunk needs for its gradient is computed again
    when that is known, so memory is a chunk's and the loss sees the whole batch.
    """
    if not chunk or chunk >= len(inputs):
        return encode(inputs)
    parts = [checkpoint(encode, part, use_reentrant=False) for part in torch.split(inputs, chunk)]
    return torch.cat(parts)


# --- Pairs of all processes -----------------------------------------------------------------------


class Pairs:
    """Embeddings of this process and of all, and which caption is whose.

    Args:
        image: (B, D).
        text: (B, D).
        captions: int64 (B,), equal where the caption is; None where all differ.
    """

    def __init__(self, image: Tensor, text: Tensor, captions: Tensor | None) -> None:
        self.image, self.text = image, text
        counts = counts_of_all(image)
        together = gathered(torch.cat([image, text], dim=1), counts)
        self.images, self.texts = together.chunk(2, dim=1)  # (N, D)
        first = sum(counts[: _rank()])
        self.own = first + torch.arange(len(image), device=image.device)  # (B,), of N.
        self.same = F.one_hot(self.own, sum(counts)).bool()  # (B, N)
        if captions is not None:
            # A caption that stands below several pictures is true of them all.
            everyones = gathered(captions.unsqueeze(1), counts).squeeze(1)
            self.same = captions.unsqueeze(1) == everyones


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def counts_of_all(rows: Tensor) -> list[int]:
    """Return how many rows each process has; the last ones may have one less."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [len(rows)]
    own = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, own)
    return [int(count) for count in counts]


def gathered(rows: Tensor, counts: list[int]) -> Tensor:
    """Return the rows of all processes in order, (B, D) -> (N, D); gradients go back to each."""
    if len(counts) == 1:
        return rows
    everyones: Tensor = _Gather.apply(rows, counts)  # type: ignore[no-untyped-call]
    return everyones


class _Gather(torch.autograd.Function):
    """All rows forward; backward the sum of what every process found about one's own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padded = rows.new_zeros(max(counts), rows.shape[1])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        total = slope.contiguous().clone()
        dist.all_reduce(total)
        first = sum(ctx.counts[: _rank()])
        return total[first : first + ctx.counts[_rank()]], None


# --- Objectives -----------------------------------------------------------------------------------


def infonce(pairs: Pairs, scale: Tensor) -> Tensor:
    """Tell each picture's caption among all, and each caption's picture (Radford et al., 2021).

    Another picture with the very same caption counts neither for nor against.
    """
    is_other = pairs.same.clone()
    is_other[torch.arange(len(pairs.own)), pairs.own] = False
    by_image = (scale * pairs.image @ pairs.texts.T).masked_fill(is_other, -torch.inf)  # (B, N)
    by_text = (scale * pairs.text @ pairs.images.T).masked_fill(is_other, -torch.inf)
    return (F.cross_entropy(by_image, pairs.own) + F.cross_entropy(by_text, pairs.own)) / 2


def sigmoid(pairs: Pairs, scale: Tensor, bias: Tensor) -> Tensor:
    """Tell of each picture and each caption whether they belong together (Zhai et al., ICCV 2023).

    The sum over the captions, the mean over the pictures.
    """
    logits = scale * pairs.image @ pairs.texts.T + bias  # (B, N)
    sign = 2 * pairs.same.to(logits.dtype) - 1
    return -F.logsigmoid(sign * logits).sum(dim=1).mean()
