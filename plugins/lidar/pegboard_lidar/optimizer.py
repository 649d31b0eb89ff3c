"""The optimiser: filters are turned into one another at an even pace, all else is left to AdamW.

Twenty minutes of one core are few steps: AdamW alone took a quarter more of them to the same loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from pegboard.optimization import warmup_cosine
from pegboard.records import Optimization
from pegboard.settings import TrainSettings

FASTER = 8.0
"""Rate of the filters to that of all else."""

MOMENTUM = 0.9

STEPS = 5
"""Of Newton and Schulz; singular values come out between 0.7 and 1.2."""

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of their polynomial; Jordan's, chosen for few steps."""


def build(train: TrainSettings, model: nn.Module, total_steps: int) -> Optimization:
    """Return optimiser and schedule: a linear rise, then half a cosine to zero.

    Args:
        train: Says the rates.
        model: Filters are its 3 x 3 and 1 x 1 convolutions that a norm follows; biases, norms and
            other vectors do not decay.
        total_steps: After which the rate is zero.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    turned = [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and module.bias is None and module.weight.requires_grad
    ]
    known = set(map(id, turned))
    others = [parameter for parameter in parameters if id(parameter) not in known]
    decay = train.weight_decay
    groups: list[dict[str, Any]] = [
        {"params": turned, "lr": FASTER * train.lr, "weight_decay": decay, "turned": True},
        {"params": [p for p in others if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = Muon([group for group in groups if group["params"]], lr=train.lr)
    shape = partial(warmup_cosine, warmup=round(train.warmup * total_steps), total=total_steps)
    return Optimization(
        optimizer=optimizer, schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
    )


class Muon(torch.optim.AdamW):
    """AdamW, and in groups that are `turned` Muon (Jordan et al., 2024, kellerjordan.github.io).

    A step along the gradient moves a filter bank in the few directions that the gradient is strong
    in. Muon makes all of them equally strong: the nearest orthogonal matrix, by a polynomial of
    Newton and Schulz.

    torch.optim.Muon takes matrices alone, no filters, and computes in bfloat16, which most CPUs
    have to imitate.

    Args:
        groups: Of parameters; those with `turned` have at least two axes.
        lr: Rate where a group says none.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float) -> None:
        super().__init__([{"turned": False, **group} for group in groups], lr=lr)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["turned"]:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._turn(parameter, group["lr"], group["weight_decay"])
        super().step()
        return loss

    def _turn(self, parameter: Tensor, lr: float, decay: float) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None  # The caller looked.
        if not state:
            # AdamW looks for a count in whatever it loads.
            state["step"], state["mean"] = torch.zeros(()), torch.zeros_like(parameter)
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - MOMENTUM)
        ahead = torch.lerp(gradient, state["mean"], MOMENTUM)
        parameter.mul_(1 - lr * decay).add_(_turned(ahead), alpha=-lr)
        # AdamW passes over what has no gradient.
        parameter.grad = None


def _turned(filters: Tensor) -> Tensor:
    """Return filters (O, I, h, w) as orthogonal to one another as they can be."""
    if isinstance(filters, DTensor):  # No process has all of it.
        whole = _turned(filters.full_tensor())
        return distribute_tensor(whole, filters.device_mesh, filters.placements)
    return orthogonal(filters.flatten(1)).view_as(filters)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return a matrix (n, m) with the same singular vectors, whose singular values are near 1."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-12)
    # Every step multiplies by a polynomial of the Gram matrix, which is small: these are gathered,
    # and the matrix itself is multiplied once.
    gram = wide @ wide.T
    one = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    first, second, third = COEFFICIENTS
    product = one
    for _ in range(STEPS):
        step = first * one + (second * one + third * gram) @ gram
        product = step @ product
        gram = step @ gram @ step
    result: Tensor = product @ wide
    return result if matrix.shape[0] <= matrix.shape[1] else result.T
