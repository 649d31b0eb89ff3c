"""Batches: which samples, in which order, shared how, and with which random numbers."""

from __future__ import annotations

import random
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pegboard.batching import (
    Stream,
    TrainBatches,
    check_length,
    columns_of,
    epoch_order,
    seed_generators,
    stack,
)
from pegboard.board import Board, build_board
from pegboard.errors import DataError, PluginError, SettingsError
from pegboard.hookspecs import hookimpl
from pegboard.records import Batch, Sample
from pegboard.settings import Settings, TrainSettings


class Numbers:
    """Samples that hold their own index."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return Sample(inputs={"x": np.float32(index)}, key=f"row {index}")


class FastNumbers(Numbers):
    def __getitems__(self, indices: list[int]) -> Batch:
        return Batch(inputs={"x": torch.tensor(indices, dtype=torch.float32)}, targets={})


class Noise:
    """Draws from all three generators."""

    @hookimpl
    def augment(self, sample: Sample) -> Sample:
        drawn = random.random() + np.random.random() + float(torch.rand(()))
        return Sample(inputs={"x": sample.inputs["x"] + np.float32(drawn)})


@pytest.fixture
def board() -> Board:
    return build_board("toy")


def batches(
    data: Any, board: Board, *, epoch: int = 0, rank: int = 0, processes: int = 1, **train: Any
) -> TrainBatches:
    chosen = Settings(solution="toy", train=TrainSettings(**{"batch_size": 8} | train))
    return TrainBatches(board, chosen, data, epoch=epoch, rank=rank, processes=processes)


def numbers(batch: Batch) -> list[float]:
    values: list[float] = batch.inputs["x"].tolist()
    return values


def test_an_epoch_takes_every_sample_once_and_drops_the_incomplete_batch(board: Board) -> None:
    epoch = batches(Numbers(21), board)
    seen = [number for batch in epoch.load(0, len(epoch)) for number in numbers(batch)]
    assert len(epoch) == 2
    assert len(seen) == len(set(seen)) == 16


def test_a_split_smaller_than_a_batch_is_one_batch(board: Board) -> None:
    epoch = batches(Numbers(5), board)
    assert len(epoch) == 1
    assert sorted(numbers(epoch[0])) == [0, 1, 2, 3, 4]
    assert epoch.weight == 1.0


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    order = epoch_order(Numbers(50), seed=1, epoch=2)
    assert np.array_equal(order, epoch_order(Numbers(50), seed=1, epoch=2))
    assert not np.array_equal(order, epoch_order(Numbers(50), seed=1, epoch=3))
    assert not np.array_equal(order, epoch_order(Numbers(50), seed=2, epoch=2))
    assert sorted(order) == list(range(50))


def test_a_dataset_may_choose_the_indices_of_an_epoch_and_they_are_shuffled() -> None:
    class Drawn(Numbers):
        def epoch_indices(self, epoch: int, seed: int) -> Any:
            return np.arange(10) + 100 * epoch + 1000 * seed

    order = epoch_order(Drawn(5000), seed=2, epoch=3)
    assert sorted(order) == list(range(2300, 2310))
    assert list(order) != sorted(order)


def test_an_epoch_of_another_length_is_refused() -> None:
    check_length(10, 10, 1)
    with pytest.raises(PluginError, match="epoch 1 has 9 samples and not 10"):
        check_length(9, 10, 1)


@settings(deadline=None)  # The machine may be busy.
@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    processes=st.integers(1, 5),
    step=st.integers(0, 3),
)
def test_the_shares_of_the_processes_make_up_the_batch_of_one(
    count: int, batch_size: int, processes: int, step: int
) -> None:
    board = build_board()
    if min(batch_size, count) < processes:
        return
    data = FastNumbers(count)
    one = batches(data, board, batch_size=batch_size)
    many = [
        batches(data, board, batch_size=batch_size, rank=rank, processes=processes)
        for rank in range(processes)
    ]
    step = min(step, len(one) - 1)
    shares = [numbers(part[step]) for part in many]
    assert list(chain(*shares)) == numbers(one[step])
    assert [len(share) for share in shares] == [part.count for part in many]
    # The mean over processes of weighted means is the mean over the batch.
    weighted = [part.weight * np.mean(share) for part, share in zip(many, shares, strict=True)]
    assert np.mean(weighted) == pytest.approx(np.mean(numbers(one[step])))


@pytest.mark.parametrize(
    ("count", "batch_size", "kind", "message"),
    [
        (0, 8, DataError, "the train split is empty"),
        (50, 2, SettingsError, "a batch of 2 cannot be shared by 3 processes"),
        (2, 8, DataError, "2 samples cannot be shared by 3 processes"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(
    board: Board, count: int, batch_size: int, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        batches(Numbers(count), board, batch_size=batch_size, processes=3)


def test_ready_batches_are_taken_unless_samples_must_be_augmented(board: Board) -> None:
    data = FastNumbers(24)
    assert batches(data, board)[0].keys == ()
    board.manager.register(Noise())
    assert len(batches(data, board)[0].keys) == 8


def test_augmentation_depends_on_seed_epoch_and_index_alone(board: Board) -> None:
    board.manager.register(Noise())
    data = Numbers(24)

    def drawn(**how: Any) -> dict[int, float]:
        epoch = batches(data, board, **how)
        values = [number for batch in epoch.load(0, len(epoch)) for number in numbers(batch)]
        shares = [epoch._share(step).tolist() for step in range(len(epoch))]
        return dict(zip(chain(*shares), values, strict=True))

    alone = drawn()
    assert drawn(workers=2) == alone
    assert drawn(batch_size=6) == alone
    assert drawn(rank=0, processes=2) | drawn(rank=1, processes=2) == alone
    assert drawn(epoch=1) != alone
    assert drawn(seed=1) != alone
    shifts = {value - index for index, value in alone.items()}
    assert len(shifts) == 24


def test_workers_start_in_the_middle_and_leave_the_generators_alone(board: Board) -> None:
    data = Numbers(40)
    epoch = batches(data, board, workers=2)
    before = torch.get_rng_state()
    assert [numbers(batch) for batch in epoch.load(2, 5)] == [numbers(epoch[i]) for i in (2, 3, 4)]
    assert torch.equal(before, torch.get_rng_state())


def test_two_purposes_never_share_random_numbers() -> None:
    drawn = []
    for stream in (Stream.SAMPLE, Stream.STEP):
        seed_generators(stream, 0, 1, 2)
        drawn.append((random.random(), np.random.random(), float(torch.rand(()))))
    assert not set(drawn[0]) & set(drawn[1])
    seed_generators(Stream.SAMPLE, 0, 1, 2)
    assert (random.random(), np.random.random(), float(torch.rand(()))) == drawn[0]


def test_samples_of_different_shape_are_named() -> None:
    samples = [
        Sample(inputs={"x": np.zeros(3)}, key="row 0"),
        Sample(inputs={"x": np.zeros(4)}, key="row 1"),
    ]
    with pytest.raises(DataError, match=r"'x' has the shape \(4,\) and not \(3,\).*row 1"):
        stack(samples)


def test_texts_stay_a_list_and_become_a_column() -> None:
    samples = [Sample(inputs={"x": np.zeros(2)}, targets={"lot": lot}) for lot in ("a", "b")]
    batch = stack(samples)
    assert batch.targets["lot"] == ["a", "b"]
    assert batch.to(torch.device("cpu")).targets["lot"] == ["a", "b"]
    assert columns_of(batch, {})["lot"].tolist() == ["a", "b"]


def test_only_one_number_per_record_becomes_a_column() -> None:
    batch = Batch(
        inputs={"x": torch.zeros(2, 3)},
        targets={"label": torch.tensor([0.0, 1.0]), "mask": torch.zeros(2, 5)},
    )
    outputs = {"probability": np.array([0.1, 0.9]), "logits": np.zeros((2, 4))}
    assert columns_of(batch, outputs).keys() == {"label", "probability"}


def test_a_process_gets_its_batches_from_the_hook_of_the_board(
    board: Board,
) -> None:
    class Doubling:
        @hookimpl
        def collate(self, samples: list[Sample]) -> Batch:
            doubled = [2 * sample.inputs["x"] for sample in samples]
            return Batch(inputs={"x": torch.tensor(doubled)}, targets={})

    plain = numbers(batches(Numbers(24), board)[1])
    board.manager.register(Doubling())
    assert numbers(batches(Numbers(24), board)[1]) == [2 * number for number in plain]
