"""Batches out of samples, and rows out of batches.

Which samples make up a batch is a pure function of the seed, the epoch and the step, and what
`augment` draws is one of the seed, the epoch and the sample's index. So nothing that moves between
runs (worker processes, the number of processes, where a run was taken up again) changes a batch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pegboard.board import Board
from pegboard.errors import DataError, PluginError, SettingsError
from pegboard.records import Array, Batch, Sample
from pegboard.settings import Settings


class Stream(IntEnum):
    """What random numbers are for; two purposes never share a sequence."""

    MODEL = 0
    ORDER = 1
    SAMPLE = 2
    STEP = 3


def seed_generators(stream: Stream, *key: int) -> None:
    """Seed Python's, NumPy's and torch's generators from a key."""
    words = np.random.SeedSequence((stream, *key)).generate_state(4)
    random.seed(words.tobytes())
    np.random.seed(words)
    number = int.from_bytes(words[:2].tobytes(), "little")
    torch.default_generator.manual_seed(number)
    # torch.manual_seed would do both, and without a GPU remember each call with its traceback.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(number)


# --------------------------------------------------------------------------- batches


class TrainBatches(Dataset[Batch]):
    """The batches of one epoch, as one of the processes that train together sees them.

    The last batch is left out when it is not full, unless it is the only one. `count` is how many
    samples of every batch are this process's.

    Args:
        board: For `augment` and `collate`.
        settings: `train.batch_size` counts the samples of all processes together.
        data: The train split.
        epoch: From 0.
        rank: Which process this is.
        processes: How many there are.
    """

    def __init__(
        self,
        board: Board,
        settings: Settings,
        data: Any,
        *,
        epoch: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.board, self.settings, self.data = board, settings, data
        self.epoch, self.rank, self.processes = epoch, rank, processes
        self.order = epoch_order(data, settings.train.seed, epoch)
        self.batch_size = min(settings.train.batch_size, len(self.order))
        _check_share(settings, len(self.order), processes)
        self.count = len(self._share(0))

    def __len__(self) -> int:
        return max(1, len(self.order) // self.settings.train.batch_size)

    @property
    def weight(self) -> float:
        """What this process's mean loss counts, so that the mean over processes is the batch's."""
        return self.count * self.processes / self.batch_size

    def __getitem__(self, step: int) -> Batch:
        """Return this process's share of the epoch's batch number `step`."""
        indices = self._share(step).tolist()
        if self.board.augments:
            samples: Any = [self._augmented(index) for index in indices]
        elif hasattr(self.data, "__getitems__"):
            samples = self.data.__getitems__(indices)
        else:
            samples = [self.data[index] for index in indices]
        batch: Batch = self.board.hook.collate(settings=self.settings, samples=samples)
        return batch

    def load(self, first: int, last: int) -> Iterator[Batch]:
        """Yield the batches from step `first` up to `last`, drawn ahead by `train.workers`."""
        workers = self.settings.train.workers
        if not workers:
            return (self[step] for step in range(first, last))
        loader: DataLoader[Batch] = DataLoader(
            self,
            batch_size=None,
            sampler=range(first, last),
            num_workers=workers,
            # A board of plugins cannot be pickled, so workers inherit it.
            multiprocessing_context="fork",
            # Its own, or opening a loader would draw from the generator that dropout uses.
            generator=torch.Generator(),
        )
        return iter(loader)

    def _share(self, step: int) -> Array:
        batch = self.order[step * self.batch_size : (step + 1) * self.batch_size]
        share: Array = np.array_split(batch, self.processes)[self.rank]
        return share

    def _augmented(self, index: int) -> Sample:
        seed_generators(Stream.SAMPLE, self.settings.train.seed, self.epoch, index)
        return self.board.augment(self.settings, self.data[index])


def epoch_order(data: Any, seed: int, epoch: int) -> Array:
    """Return the indices of an epoch in the order they are trained on.

    A dataset with `epoch_indices(epoch, seed)` says which ones; they are shuffled all the same.
    """
    if hasattr(data, "epoch_indices"):
        indices = np.asarray(data.epoch_indices(epoch, seed))
    else:
        indices = np.arange(len(data))
    return np.random.default_rng((Stream.ORDER, seed, epoch)).permutation(indices)


def _check_share(settings: Settings, count: int, processes: int) -> None:
    if not count:
        raise DataError(
            "the train split is empty",
            where=f"load_split of '{settings.solution}'",
            remedy="give it data, or change how it is split",
        )
    if settings.train.batch_size < processes:
        raise SettingsError(
            f"a batch of {settings.train.batch_size} cannot be shared by {processes} processes",
            where="train.batch_size",
            remedy=f"set it to {processes} or more",
        )
    if count < processes:
        raise DataError(
            f"{count} samples cannot be shared by {processes} processes",
            where=f"train split of '{settings.solution}'",
            remedy="set train.devices and train.nodes to 1, or give it more data",
        )


def check_length(count: int, expected: int, epoch: int) -> None:
    """Refuse a dataset whose epochs differ in length: positions in it would mean nothing.

    Raises:
        PluginError: `count` is not what the first epoch had.
    """
    if count != expected:
        raise PluginError(
            f"epoch {epoch} has {count} samples and not {expected} as the first one",
            where="epoch_indices of the train split",
            remedy="always return the same number",
        )


# --------------------------------------------------------------------------- stacking and rows


def stack(samples: Sequence[Sample] | Batch) -> Batch:
    """Stack samples along a first axis; a ready batch is returned as it is.

    Texts, such as the name of a lot, stay a list.

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


def _stacked(samples: Sequence[Sample], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for name in records[0]:
        if isinstance(records[0][name], str):
            tensors[name] = [record[name] for record in records]
            continue
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
