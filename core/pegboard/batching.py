"""Batches out of samples, and rows out of batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pegboard.errors import DataError
from pegboard.records import Array, Batch, Sample


def stack(samples: Sequence[Sample] | Batch) -> Batch:
    """Stack samples along a first axis; a ready batch is returned as it is.

    Raises:
        DataError: Two samples differ in the shape of an input or target.
    """
    if isinstance(samples, Batch):
        return samples
    return Batch(
        inputs=_stacked(samples, [sample.inputs for sample in samples]),
        targets=_stacked(samples, [sample.targets for sample in samples]),
        keys=[sample.key for sample in samples],
    )


def _stacked(
    samples: Sequence[Sample], records: Sequence[Mapping[str, Any]]
) -> dict[str, torch.Tensor]:
    tensors = {}
    for name in records[0]:
        values = [torch.as_tensor(np.asarray(record[name])) for record in records]
        odd = next((i for i, value in enumerate(values) if value.shape != values[0].shape), None)
        if odd is not None:
            raise DataError(
                f"'{name}' has the shape {tuple(values[odd].shape)} and not "
                f"{tuple(values[0].shape)} as others of its batch",
                where=samples[odd].key or "a sample",
                remedy="make the shapes equal, or write a 'collate' hook that pads",
            )
        tensors[name] = torch.stack(values)
    return tensors


def columns_of(batch: Batch, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return every output and target that has one number per record, as columns."""
    everything = {**{name: np.asarray(value) for name, value in batch.targets.items()}, **outputs}
    return {name: value for name, value in everything.items() if value.shape == (len(batch),)}
