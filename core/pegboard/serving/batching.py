"""Micro-batches: requests that arrive together run together, and none waits longer than said.

A model that answers in less than a millisecond runs in the event loop, together with whatever
else arrived in the same turn of it: a thread would cost more than the model. A slower one runs in
threads, and what arrives while all of them are busy is the next batch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np

from pegboard.errors import PegboardError
from pegboard.records import Array, Signature

Infer = Callable[[Mapping[str, Array]], Mapping[str, Array]]


class OverloadedError(PegboardError):
    """More waits than a server is allowed to keep waiting."""


@dataclass(slots=True)
class _Waiting:
    """A request's records on their way."""

    inputs: Mapping[str, Array]
    count: int
    """Records in it."""
    infer: Infer
    """What answers them: requests from before and after a swap never share a batch."""
    future: asyncio.Future[Mapping[str, Array]]
    """Their outputs."""


class MicroBatcher:
    """Runs what is submitted, together where shapes allow.

    Args:
        signature: Says whether inputs and outputs have a batch axis at all.
        size: Most records in a batch; a larger request runs alone.
        wait: Longest time in seconds that a request waits for others.
        queue: Most records that may wait.
        executor: Where slow models run, and None for one that runs in the event loop.
        threads: How many batches the executor runs at a time.
    """

    def __init__(
        self,
        signature: Signature,
        *,
        size: int,
        wait: float = 0.0,
        queue: int = 1024,
        executor: Executor | None = None,
        threads: int = 1,
    ) -> None:
        self.size, self.wait, self.queue = size, wait, queue
        self.executor, self.idle = executor, threads
        self.observe: Callable[[int], None] = lambda count: None
        """Told the number of records of every batch."""
        self._outputs = [spec.name for spec in signature.outputs]
        self._joins = all(
            spec.shape[:1] == ("batch",) for spec in (*signature.inputs, *signature.outputs)
        )
        self._waiting: deque[_Waiting] = deque()
        self._records = 0
        self._timer: asyncio.Handle | None = None
        self._running: set[asyncio.Future[None]] = set()

    def submit(
        self, inputs: Mapping[str, Array], infer: Infer
    ) -> asyncio.Future[Mapping[str, Array]]:
        """Have inputs answered.

        Raises:
            OverloadedError: Too many records wait already.
        """
        count = len(next(iter(inputs.values()))) if self._joins else 1
        if self._records and self._records + count > self.queue:
            raise OverloadedError(
                f"{self._records} records wait already",
                where="server",
                remedy="try again in a moment, or raise serve.queue",
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Mapping[str, Array]] = loop.create_future()
        self._waiting.append(_Waiting(inputs, count, infer, future))
        self._records += count
        self._schedule(loop)
        return future

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.wait and self._records < self.size:
            if self._timer is None:
                self._timer = loop.call_later(self.wait, self._flush)
        elif self._timer is None or self.wait:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._timer = None
        while self._waiting and self.idle:
            batch = self._next_batch()
            if not batch:
                continue
            if self.executor is None:
                for waiting, outcome in _answered(batch, self._outputs):
                    _settle(waiting, outcome)
            else:
                self.idle -= 1
                task = asyncio.ensure_future(self._run(batch))
                self._running.add(task)  # Or the event loop may forget a task that nobody holds.
                task.add_done_callback(self._running.discard)

    async def _run(self, batch: Sequence[_Waiting]) -> None:
        try:
            loop = asyncio.get_running_loop()
            outcomes = await loop.run_in_executor(self.executor, _answered, batch, self._outputs)
            for waiting, outcome in outcomes:
                _settle(waiting, outcome)
        finally:
            self.idle += 1
            if self._waiting and self._timer is None:
                self._flush()

    def _next_batch(self) -> list[_Waiting]:
        """Take what runs together: the first that waits, and those behind it that fit to it."""
        if len(self._waiting) == 1 and not self._waiting[0].future.done():
            self._records = 0
            self.observe(self._waiting[0].count)
            return [self._waiting.popleft()]
        batch: list[_Waiting] = []
        records = 0
        left: deque[_Waiting] = deque()
        while self._waiting:
            waiting = self._waiting.popleft()
            if waiting.future.done():  # Timed out, or its client went away.
                self._records -= waiting.count
            elif not batch or (
                self._joins and records + waiting.count <= self.size and _fits(waiting, batch[0])
            ):
                batch.append(waiting)
                records += waiting.count
                self._records -= waiting.count
            else:
                left.append(waiting)
            if records >= self.size or (batch and not self._joins):
                break
        self._waiting.extendleft(reversed(left))
        if batch:
            self.observe(records)
        return batch


def _fits(one: _Waiting, other: _Waiting) -> bool:
    return (
        one.infer is other.infer
        and one.inputs.keys() == other.inputs.keys()
        and all(
            array.shape[1:] == other.inputs[name].shape[1:] for name, array in one.inputs.items()
        )
    )


Outcome = Mapping[str, Array] | Exception


def _answered(batch: Sequence[_Waiting], outputs: Sequence[str]) -> list[tuple[_Waiting, Outcome]]:
    """Run a batch; when it fails, each request alone, so that only a bad one is hurt."""
    if len(batch) == 1:
        return [(batch[0], _outcome(batch[0]))]
    joined = {
        name: np.concatenate([waiting.inputs[name] for waiting in batch])
        for name in batch[0].inputs
    }
    try:
        found = batch[0].infer(joined)
    except Exception:  # Whatever it is, it may concern one of them alone.
        return [(waiting, _outcome(waiting)) for waiting in batch]
    answered: list[tuple[_Waiting, Outcome]] = []
    start = 0
    for waiting in batch:
        end = start + waiting.count
        parts = {name: found[name][start:end] for name in outputs if name in found}
        answered.append((waiting, parts))
        start = end
    return answered


def _outcome(waiting: _Waiting) -> Outcome:
    try:
        return waiting.infer(waiting.inputs)
    except Exception as error:  # Raised again where it is awaited.
        return error


def _settle(waiting: _Waiting, outcome: Any) -> None:
    if waiting.future.done():
        return
    if isinstance(outcome, Exception):
        waiting.future.set_exception(outcome)
    else:
        waiting.future.set_result(outcome)
