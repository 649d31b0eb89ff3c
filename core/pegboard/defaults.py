"""What the core answers where a solution does not: hooks like everyone's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pegboard.hookspecs import hookimpl

if TYPE_CHECKING:
    from torch import nn

    from pegboard.records import (
        Array,
        Batch,
        Optimization,
        Predictor,
        Rows,
        Sample,
        Thresholds,
    )
    from pegboard.settings import Settings


@hookimpl
def collate(samples: Sequence[Sample] | Batch) -> Batch:
    """Stack arrays of equal shape; pass on what a dataset has already made a batch of."""
    from pegboard.batching import stack

    return stack(samples)


@hookimpl
def build_optimizer(settings: Settings, model: nn.Module, total_steps: int) -> Optimization:
    """AdamW (Loshchilov and Hutter, ICLR 2019) with linear warm-up and cosine decay."""
    from pegboard.optimization import adamw_with_cosine

    return adamw_with_cosine(settings.train, model, total_steps)


@hookimpl
def tabulate(batch: Batch, outputs: Mapping[str, Array]) -> Rows:
    """Keep every output and target that has one number per record."""
    from pegboard.batching import columns_of

    return columns_of(batch, outputs)


@hookimpl
def complete_rows(rows: Rows) -> Rows:
    """Add nothing."""
    return rows


@hookimpl
def choose_thresholds() -> Thresholds:
    """Choose none."""
    return {}


@hookimpl
def build_deployable(model: nn.Module) -> nn.Module:
    """Export the model as it is."""
    return model


@hookimpl
def infer(predictor: Predictor, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run the predictor once."""
    return predictor(inputs)


@hookimpl
def encode_answer(outputs: Mapping[str, Array]) -> list[dict[str, Any]]:
    """Answer each record with its outputs as plain numbers and lists."""
    count = len(next(iter(outputs.values())))
    return [
        {name: value[index].tolist() for name, value in outputs.items()} for index in range(count)
    ]
