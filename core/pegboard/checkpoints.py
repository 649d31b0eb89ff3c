"""Checkpoints: all that a training needs to go on as if it had never stopped.

    checkpoints/
        step-00000120/              shards of torch.distributed.checkpoint, and position.json
        step-00000150/
        best-00000120.safetensors   the weights of the best epoch so far
        latest                      names the checkpoint to go on from

Written by `torch.distributed.checkpoint`, so two processes can go on where four stopped. The
generators of random numbers have no place in it: every step seeds them anew (see `training`).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from pegboard.errors import CheckpointError
from pegboard.files import atomic_write, disk_is_full, remove, sha256_of
from pegboard.world import World

POSITION = "position.json"
LATEST = "latest"
KEPT = 2
"""Checkpoints on the disk: the latest, and the one before in case the latest is damaged."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """The headline metric of one epoch on the validation split."""

    epoch: int
    """From 0."""
    step: int
    """Optimiser steps when it was measured."""
    value: float | None
    """None where the metric is not defined."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a training is."""

    epoch: int = 0
    """The epoch to go on with, from 0."""
    step: int = 0
    """Optimiser steps so far; what is left of the epoch's data follows from it."""
    best: Score | None = None
    """The best epoch so far."""
    last: Score | None = None
    """The last finished epoch."""
    sums: Mapping[str, float] = field(default_factory=dict)
    """Losses of the unfinished epoch, summed over the samples of all processes."""
    seconds: float = 0.0
    """Wall time so far, all attempts together."""
    cpu_seconds: float = 0.0
    """Processor time so far, all processes together."""


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that training changes."""

    model: nn.Module
    """The model; its parameters may be shards."""
    optimizer: torch.optim.Optimizer
    """Over the model's parameters."""
    schedule: torch.optim.lr_scheduler.LRScheduler
    """Over the optimiser's rates."""
    scaler: torch.amp.GradScaler
    """Of the loss in fp16."""
    average: Mapping[str, torch.Tensor]
    """Averaged parameters by name; empty when none are wanted."""

    def tables(self) -> dict[str, Any]:
        """Return names and tensors, the latter sharing memory with what they are read from."""
        return {
            "model": get_model_state_dict(self.model),
            "optimizer": get_optimizer_state_dict(self.model, self.optimizer),
            "schedule": _Sealed(self.schedule.state_dict()),
            "scaler": _Sealed(self.scaler.state_dict()),
            "average": dict(self.average),
        }

    def restore(self, tables: Mapping[str, Any]) -> None:
        """Take over tables that were read from a checkpoint."""
        set_model_state_dict(self.model, tables["model"])
        # Not strict, because a parameter that no loss has touched has no state.
        set_optimizer_state_dict(
            self.model,
            self.optimizer,
            tables["optimizer"],
            options=StateDictOptions(strict=False),
        )
        self.schedule.load_state_dict(tables["schedule"].value)
        self.scaler.load_state_dict(tables["scaler"].value)


@dataclass(frozen=True)
class _Sealed:
    """A table that is stored as one piece: torch would make words of its keys that are numbers."""

    value: dict[str, Any]


class _DamagedError(Exception):
    """A checkpoint's files are not as they were written."""


class Checkpoints:
    """The checkpoints of one run; every method is called by all processes together."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder = folder
        self.world = world

    def best_file(self, score: Score) -> Path:
        """Return where the weights of a best epoch are kept until training ends."""
        return self.folder / f"best-{score.step:08d}.safetensors"

    def save(self, state: TrainState, position: Position) -> None:
        """Write a checkpoint; until it is whole the one before stays the latest.

        Raises:
            CheckpointError: The disk does not take it.
        """
        final = self.folder / f"step-{position.step:08d}"
        partial = self.folder / f".{final.name}.partial"
        try:
            if self.world.main:
                remove(partial)
                partial.mkdir(parents=True)
            self.world.barrier()
            with _quiet():
                save(state.tables(), checkpoint_id=partial)
            # Not before every process has written its shards.
            self.world.barrier()
            if self.world.main:
                self._publish(partial, final, position)
            self.world.barrier()
        except (CheckpointException, OSError) as error:
            full = disk_is_full(_root(error))
            raise CheckpointError(
                f"the checkpoint of step {position.step} cannot be written: {_cause(error)}",
                where=str(self.folder),
                remedy=f"{'free space' if full else 'see that you may write'} there and run the "
                "same command again to resume",
            ) from error
        finally:
            if self.world.main:
                remove(partial)

    def _publish(self, partial: Path, final: Path, position: Position) -> None:
        best = self.best_file(position.best) if position.best else None
        files = [*partial.iterdir(), *([best] if best and best.exists() else [])]
        digests = {file.name: sha256_of(file) for file in files}
        # Not `write_json`: a sum may be infinite, and nobody else reads this.
        atomic_write(partial / POSITION, json.dumps(asdict(position) | {"files": digests}))
        remove(final)
        partial.rename(final)
        atomic_write(self.folder / LATEST, final.name)
        self._prune(best)

    def _prune(self, best: Path | None) -> None:
        for folder in self._found()[KEPT:]:
            remove(folder)
        needed = {name for folder in self._found() for name in _read_facts(folder)["files"]}
        for file in self.folder.glob("best-*.safetensors"):
            if file != best and file.name not in needed:
                remove(file)

    def _found(self) -> list[Path]:
        """Return all checkpoints, the one to go on from first."""
        latest = self.folder / LATEST
        marked = latest.read_text() if latest.exists() else ""
        folders = self.folder.glob("step-*")
        return sorted(folders, key=lambda path: (path.name == marked, path.name), reverse=True)

    def load(self, state: TrainState, say: Callable[[str], None]) -> Position:
        """Take up the latest checkpoint that is whole.

        Args:
            state: What to fill; left as it is when there is no checkpoint.
            say: Prints a line about a checkpoint that is damaged.

        Returns:
            Where to go on; the beginning when there is no checkpoint.

        Raises:
            CheckpointError: There are checkpoints and all are damaged.
        """
        damaged: dict[Path, str] = {}
        for folder in self.world.agreed(self._found()):
            try:
                position = self._load(state, folder)
            except (CheckpointException, _DamagedError) as error:
                damaged[folder] = _cause(error)
                say(f"the checkpoint {folder.name} is damaged ({_cause(error)})")
                continue
            if self.world.main:
                for unusable in damaged:
                    remove(unusable)
            return position
        if damaged:
            raise CheckpointError(
                f"no checkpoint can be read: {next(iter(damaged.values()))}",
                where=str(self.folder),
                remedy="remove the folder to train from the beginning",
            )
        return Position()

    def _load(self, state: TrainState, folder: Path) -> Position:
        facts = self.world.agreed(self._verified(folder) if self.world.main else {})
        if "damage" in facts:
            raise _DamagedError(facts["damage"])
        tables = state.tables()
        with _quiet():
            saved = FileSystemReader(folder).read_metadata().state_dict_metadata
            states = tables["optimizer"]["state"]
            for name in [name for name in states if not _holds(saved, f"optimizer.state.{name}.")]:
                del states[name]
            load(tables, checkpoint_id=folder)
        state.restore(tables)
        scores = {name: Score(**facts[name]) if facts[name] else None for name in ("best", "last")}
        return Position(**facts | scores)

    def _verified(self, folder: Path) -> dict[str, Any]:
        """Return a checkpoint's position, or what is wrong with its files."""
        try:
            facts = _read_facts(folder)
            for name, digest in facts.pop("files").items():
                holder = self.folder if name.startswith("best-") else folder
                if sha256_of(holder / name) != digest:
                    raise ValueError(f"{name} has changed since it was written")
        except (OSError, ValueError, KeyError) as error:
            return {"damage": _cause(error)}
        return facts


def _read_facts(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / POSITION).read_text())
    return facts


def _holds(saved: Mapping[str, Any], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in saved)


def _root(error: BaseException) -> BaseException:
    """Return what really went wrong, in whichever process."""
    if isinstance(error, CheckpointException) and error.failures:
        wrapped = next(iter(error.failures.values()))
        return wrapped[0] if isinstance(wrapped, tuple) else wrapped
    return error


def _cause(error: BaseException) -> str:
    error = _root(error)
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch has to say about a single process off the terminal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
