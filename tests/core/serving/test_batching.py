"""Micro-batches: who runs together, who waits how long, and whom an error hurts."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from pegboard.errors import RequestError
from pegboard.records import Array, Signature, TensorSpec
from pegboard.serving.batching import MicroBatcher, OverloadedError

X = TensorSpec(name="x", dtype="float32", shape=("batch", "width"))
Y = TensorSpec(name="y", dtype="float32", shape=("batch",))
SIGNATURE = Signature(inputs=(X,), outputs=(Y,))


class Model:
    """Sums rows, notes the batches it was given, and fails on a negative number."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[int] = []
        self.busy = 0
        self.busiest = 0
        self._lock = threading.Lock()

    def __call__(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        with self._lock:
            self.batches.append(len(inputs["x"]))
            self.busy += 1
            self.busiest = max(self.busiest, self.busy)
        time.sleep(self.seconds)
        with self._lock:
            self.busy -= 1
        if (inputs["x"] < 0).any():
            raise RequestError("a negative number", where="x", remedy="send none")
        return {"y": inputs["x"].sum(axis=1)}


def rows(*values: float, width: int = 2) -> dict[str, Array]:
    return {"x": np.array([[value] * width for value in values], np.float32)}


def answer_all(batcher: MicroBatcher, model: Model, *requests: dict[str, Array]) -> list[Any]:
    async def ask(inputs: dict[str, Array]) -> Any:
        try:
            return (await batcher.submit(inputs, model))["y"].tolist()
        except RequestError as error:
            return error.what

    async def ask_all() -> list[Any]:
        return list(await asyncio.gather(*map(ask, requests)))

    return asyncio.run(ask_all())


def test_what_arrives_together_runs_together_and_everybody_gets_his_own() -> None:
    model = Model()
    batcher = MicroBatcher(SIGNATURE, size=8)
    sizes: list[int] = []
    batcher.observe = sizes.append
    answers = answer_all(batcher, model, rows(1), rows(2, 3), rows(4))
    assert answers == [[2.0], [4.0, 6.0], [8.0]]
    assert model.batches == sizes == [4]


def test_a_batch_is_never_larger_than_said_unless_one_request_is() -> None:
    model = Model()
    answers = answer_all(
        MicroBatcher(SIGNATURE, size=2), model, rows(1), rows(2), rows(3), rows(4, 5, 6)
    )
    assert answers == [[2.0], [4.0], [6.0], [8.0, 10.0, 12.0]]
    assert model.batches == [2, 1, 3]


def test_other_shapes_do_not_share_a_batch_and_keep_their_turn() -> None:
    model = Model()
    answers = answer_all(
        MicroBatcher(SIGNATURE, size=8), model, rows(1), rows(2, width=3), rows(3), rows(4, width=3)
    )
    assert answers == [[2.0], [6.0], [6.0], [12.0]]
    assert model.batches == [2, 2]


def test_what_takes_one_record_at_a_time_is_never_joined() -> None:
    scan = TensorSpec(name="x", dtype="float32", shape=("points", 2))
    model = Model()
    batcher = MicroBatcher(Signature(inputs=(scan,), outputs=(Y,)), size=8)
    assert answer_all(batcher, model, rows(1, 2), rows(3)) == [[2.0, 4.0], [6.0]]
    assert model.batches == [2, 1]


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_hurts_only_the_request_that_made_it(threads: int) -> None:
    model = Model()
    with ThreadPoolExecutor(2) as pool:
        batcher = MicroBatcher(
            SIGNATURE, size=8, executor=pool if threads else None, threads=max(1, threads)
        )
        assert answer_all(batcher, model, rows(1), rows(-1), rows(2)) == [
            [2.0],
            "a negative number",
            [4.0],
        ]


def test_a_slow_model_runs_in_threads_and_takes_what_came_meanwhile_together() -> None:
    model = Model(seconds=0.05)
    with ThreadPoolExecutor(2) as pool:
        batcher = MicroBatcher(SIGNATURE, size=8, executor=pool, threads=2)

        async def ask() -> None:
            first = [batcher.submit(rows(1), model)]
            await asyncio.sleep(0.01)
            first.append(batcher.submit(rows(2), model))
            await asyncio.sleep(0.01)
            late = [batcher.submit(rows(value), model) for value in (3, 4, 5)]
            answers = await asyncio.gather(*first, *late)
            assert [one["y"].tolist() for one in answers] == [[2.0], [4.0], [6.0], [8.0], [10.0]]

        asyncio.run(ask())
    assert model.batches == [1, 1, 3]
    assert model.busiest == 2


def test_a_request_waits_for_others_no_longer_than_said() -> None:
    model = Model()
    batcher = MicroBatcher(SIGNATURE, size=3, wait=0.1)

    async def ask() -> tuple[float, float]:
        began = time.monotonic()
        alone = batcher.submit(rows(1), model)
        await asyncio.sleep(0.03)
        await asyncio.gather(alone, batcher.submit(rows(2), model))
        waited = time.monotonic() - began
        began = time.monotonic()
        await asyncio.gather(*(batcher.submit(rows(value), model) for value in (1, 2, 3)))
        return waited, time.monotonic() - began

    waited, full = asyncio.run(ask())
    assert model.batches == [2, 3]
    assert 0.09 < waited < 0.5
    assert full < 0.09


def test_more_than_may_wait_is_refused_and_one_large_request_is_not() -> None:
    model = Model()
    batcher = MicroBatcher(SIGNATURE, size=8, queue=2)

    async def ask() -> None:
        large = batcher.submit(rows(1, 2, 3), model)
        with pytest.raises(OverloadedError, match=r"3 records wait already .*serve\.queue"):
            batcher.submit(rows(4), model)
        assert (await large)["y"].tolist() == [2.0, 4.0, 6.0]
        assert (await batcher.submit(rows(4), model))["y"].tolist() == [8.0]

    asyncio.run(ask())


def test_who_went_away_is_not_computed() -> None:
    model = Model()
    batcher = MicroBatcher(SIGNATURE, size=8)

    async def ask() -> None:
        gone, stays = batcher.submit(rows(1), model), batcher.submit(rows(2), model)
        gone.cancel()
        assert (await stays)["y"].tolist() == [4.0]

    asyncio.run(ask())
    assert model.batches == [1]


def test_requests_of_different_models_never_share_a_batch() -> None:
    one, other = Model(), Model()
    batcher = MicroBatcher(SIGNATURE, size=8)

    async def ask() -> None:
        await asyncio.gather(batcher.submit(rows(1), one), batcher.submit(rows(2), other))

    asyncio.run(ask())
    assert (one.batches, other.batches) == ([1], [1])
