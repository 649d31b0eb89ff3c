"""The optimiser and schedule of a solution that asks for nothing special."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn

from pegboard.records import Optimization
from pegboard.settings import TrainSettings


def adamw_with_cosine(train: TrainSettings, model: nn.Module, total_steps: int) -> Optimization:
    """AdamW; biases, norms and other vectors do not decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=train.lr)
    shape = partial(warmup_cosine, warmup=round(train.warmup * total_steps), total=total_steps)
    return Optimization(
        optimizer=optimizer, schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
    )


def warmup_cosine(step: int, *, warmup: int, total: int) -> float:
    """Return the share of the peak rate at a step: a linear rise, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
