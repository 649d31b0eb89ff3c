"""The processes that train together, and the few things they say to one another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

Value = TypeVar("Value")
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class World:
    """One process's view of all of them; alone, every method answers without a word."""

    rank: int = 0
    """Which process this is; 0 is the main one, which writes and talks."""
    size: int = 1
    """How many there are, on all nodes."""
    device: torch.device = CPU
    """Where this process computes."""

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and calls the hooks of kind `main`."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    def agreed(self, value: Value) -> Value:
        """Return the main process's value, in every process."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: Value) -> list[Value]:
        """Return every process's value in the main process, in order; elsewhere nothing."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.main else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def summed(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the sums over all processes, by name, in every process."""
        totals = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        if self.size > 1:
            dist.all_reduce(totals)
        return dict(zip(values, totals.tolist(), strict=True))

    def spread(self, module: nn.Module, *, buffers_only: bool = False) -> None:
        """Give every process the main one's parameters and buffers."""
        if self.size == 1:
            return
        tensors = [] if buffers_only else [*module.parameters()]
        for tensor in (*tensors, *module.buffers()):
            dist.broadcast(tensor.detach(), src=0)


@contextmanager
def joined_world() -> Iterator[World]:
    """Join the processes that torchrun's variables name (RANK, WORLD_SIZE, LOCAL_RANK), or none."""
    together = "RANK" in os.environ
    size = int(os.environ["WORLD_SIZE"]) if together else 1
    device = CPU
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) if together else 0)
        torch.cuda.set_device(device)
    world = World(rank=int(os.environ["RANK"]) if together else 0, size=size, device=device)
    if size == 1:
        yield world
        return
    cuda = device.type == "cuda"
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", device_id=device if cuda else None
    )
    yield world
    # Only after a success: with a process lost, leaving in good order would wait for it for ever.
    dist.destroy_process_group()
