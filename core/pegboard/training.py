"""Training in plain PyTorch: alone or in many processes, exact when it is taken up again.

Read `Trainer.train` first: epochs of `_step`, after each a validation and a checkpoint. Three
ideas carry the rest:

- DDP and FSDP wrap the model *with its loss* (`ModelWithLoss`), so the `compute_loss` of a
  solution is given the plain model and may call any of its methods.
- Everything random is a pure function of the seed and the position: the order (seed, epoch), an
  augmented sample (seed, epoch, index), a step's dropout (seed, step, rank). A run that was killed
  and taken up again ends with the same bits as one that was left in peace.
- `train.batch_size` is global. Each process takes its share and weights its mean loss by the
  share's size, so the gradient does not depend on how many processes there are.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import Subset

from pegboard.batching import Stream, TrainBatches, check_length, seed_generators
from pegboard.checkpoints import Checkpoints, Position, Score, TrainState
from pegboard.errors import DataError, PegboardError, PluginError, SettingsError
from pegboard.evaluation import (
    ModulePredictor,
    batches_of,
    completed,
    is_better,
    join_rows,
    measure,
    metrics_of,
    tabulated,
)
from pegboard.files import atomic_path
from pegboard.journal import Journal, describe_epoch
from pegboard.progress import Progress, SilentProgress
from pegboard.records import Batch, EpochEvent, MetricValue, Rows, StepEvent
from pegboard.runs import Run
from pegboard.weights import load_trained, save_weights
from pegboard.world import World, joined_world

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def train(run: Run, progress: Progress) -> dict[str, Any]:
    """Train a run's model, or go on where it stopped, as one of the processes there are.

    Returns:
        `epochs` and `steps` done; `metric` and its validation `value` at the epoch whose weights
        are kept, `best_epoch` (from 1); `world_size`, `seconds`, `cpu_seconds`. The weights are
        in `run.weights_file`.

    Raises:
        DataError: A split is empty.
        PegboardError: The loss is no longer a number, or the disk is full.
        CheckpointError: There are checkpoints and none can be read.
    """
    with joined_world() as world:
        return Trainer(run, world, progress if world.main else SilentProgress()).train()


class ModelWithLoss(nn.Module):
    """The model with its loss around it: one forward from a batch to named losses."""

    def __init__(self, run: Run, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._settings, self._hook = run.project.settings, run.project.board.hook

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return scalars, means over the batch; only `loss` has a gradient."""
        losses = self._hook.compute_loss(settings=self._settings, model=self.model, batch=batch)
        if "loss" not in losses:
            raise PluginError(
                f"there is no 'loss' among the losses ({', '.join(losses) or 'none'})",
                where=f"compute_loss of '{self._settings.solution}'",
                remedy="call the one to minimise 'loss'",
            )
        return {name: v if name == "loss" else v.detach() for name, v in losses.items()}


def distribute(module: nn.Module, world: World, strategy: str) -> nn.Module:
    """Make a module average its gradients over all processes.

    With `fsdp` (fully sharded data parallel: Zhao et al., VLDB 2023) gradients, optimiser state
    and averaged weights are shards; the parameters are gathered whole for forward and backward,
    as one group, so that a loss may use the model in any way.

    Raises:
        SettingsError: The model has a parameter without an axis, which fsdp cannot shard.
    """
    if world.size == 1:
        return module
    if strategy != "fsdp":
        # A model may hold parameters that this loss does not use, and trains alone with them.
        return DistributedDataParallel(module, find_unused_parameters=True)
    scalar = next((name for name, p in module.named_parameters() if not p.ndim), None)
    if scalar is not None:
        raise SettingsError(
            f"fsdp cannot shard the parameter '{scalar.removeprefix('model.')}', a single number",
            where="train.strategy",
            remedy='set it to "ddp", or make the parameter a vector of one number',
        )
    world.spread(module)
    # It shards plain memory only; on one process a model may lie as is fastest.
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # In no stub.
    fully_shard(module, mesh=init_device_mesh(world.device.type, (world.size,)))
    return module


class Trainer:
    """One process's part in a training.

    Args:
        run: The run to train.
        world: The processes that train together, seen from this one.
        progress: Where to show how far it is; silent in every process but the main one.
    """

    def __init__(self, run: Run, world: World, progress: Progress) -> None:
        self.run, self.world, self.progress = run, world, progress
        self.board, self.hook = run.project.board, run.project.board.hook
        self.settings, self.options = run.project.settings, run.project.settings.train
        self.began, self.cpu_began = time.monotonic(), _cpu_seconds()
        self.metrics = metrics_of(self.board, self.settings)
        seed_generators(Stream.MODEL, self.options.seed)
        with progress.task("train: loading the data"):
            self.train_data = self.hook.load_split(settings=self.settings, split="train")
            self.validation_data = self._validation_data()
            first = TrainBatches(
                self.board, self.settings, self.train_data, epoch=0, processes=world.size
            )
        self.samples, self.steps_per_epoch = len(first.order), len(first)
        steps = self.options.epochs * self.steps_per_epoch
        self.total_steps = min(steps, self.options.max_steps or steps)
        with progress.task("train: building the model"):
            model = self.hook.build_model(settings=self.settings, train_data=self.train_data)
        self.model = model.to(world.device).train()
        self.learns = any(parameter.requires_grad for parameter in model.parameters())
        if self.learns:
            self._set_up(self.model)
        else:
            self.module: nn.Module = ModelWithLoss(run, self.model)

    def _validation_data(self) -> Any:
        data = self.hook.load_split(settings=self.settings, split="validation")
        if not len(data):
            raise DataError(
                "the validation split is empty",
                where=f"load_split of '{self.settings.solution}'",
                remedy="give it data, or change how it is split",
            )
        return data

    def _set_up(self, model: nn.Module) -> None:
        device = self.world.device.type
        if device == "cuda" and self.world.size > 1:
            # So that batch normalisation sees the whole batch; torch has no such thing on a CPU.
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        self.module = distribute(ModelWithLoss(self.run, model), self.world, self.options.strategy)
        self.model = model
        optimization = self.hook.build_optimizer(
            settings=self.settings, model=model, total_steps=self.total_steps
        )
        averaged = _averaged(model) if self.options.ema_decay else {}
        self.state = TrainState(
            model=model,
            optimizer=optimization.optimizer,
            schedule=optimization.schedule,
            scaler=torch.amp.GradScaler(device, enabled=self.options.precision == "fp16"),
            average={name: tensor.detach().clone() for name, tensor in averaged.items()},
        )
        self.checkpoints = Checkpoints(self.run.checkpoints, self.world)

    # ----------------------------------------------------------------- the loop

    def train(self) -> dict[str, Any]:
        """Go on from the latest checkpoint to the end."""
        if not self.learns:
            return self._keep_fitted()
        self.position = self.checkpoints.load(self.state, self.progress.say)
        self.earlier = self.position
        if self.world.main:
            self.journal = Journal(self.run.progress_file, self.position.step)
        while self.position.step < self.total_steps:
            losses = self._train_epoch()
            self._finish_epoch(losses)
        return self._finish()

    def _keep_fitted(self) -> dict[str, Any]:
        """Keep a model that was fitted as it was built and has nothing to learn by gradients."""
        self.position = self.earlier = Position()
        self.checkpoints = Checkpoints(self.run.checkpoints, self.world)
        self.run.checkpoints.mkdir(exist_ok=True)
        rows = self._validate()
        metrics = self.world.agreed(self._measure(rows) if self.world.main else [])
        score = Score(epoch=0, step=0, value=metrics[0].value)
        self.position = Position(epoch=1, best=score, last=score)
        self._write_weights(self.checkpoints.best_file(score))
        if self.world.main:
            self.journal = Journal(self.run.progress_file, 0)
        return self._finish()

    def _train_epoch(self) -> dict[str, float]:
        """Take the steps of an epoch that are still to be taken; return its mean losses."""
        epoch, start = self.position.epoch, self.position.step
        batches = TrainBatches(
            self.board,
            self.settings,
            self.train_data,
            epoch=epoch,
            rank=self.world.rank,
            processes=self.world.size,
        )
        check_length(len(batches.order), self.samples, epoch)
        before = epoch * self.steps_per_epoch
        end = min(before + self.steps_per_epoch, self.total_steps)
        # What was summed before an interruption is the main process's to bring along.
        sums = Counter(self.position.sums if self.world.main else {})
        steps = self.progress.track(
            batches.load(start - before, end - before),
            f"epoch {epoch + 1} of {self.options.epochs}",
            total=end - start,
        )
        for step, batch in enumerate(steps, start + 1):
            losses = self._step(step, batch, batches.weight)
            sums.update({name: value * batches.count for name, value in losses.items()})
            if step < end and self._is_due(step):
                self._save(replace(self.position, step=step, sums=self.world.summed(sums)))
        self.position = replace(self.position, step=end)
        samples = (end - before) * batches.batch_size
        return {name: total / samples for name, total in self.world.summed(sums).items()}

    def _is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after a step inside an epoch."""
        every = self.options.checkpoint_every
        return every > 0 and step % every == 0

    def _step(self, step: int, batch: Batch, weight: float) -> dict[str, float]:
        """Move the weights once; return the named losses of this process's share."""
        state, dtype = self.state, AUTOCAST[self.options.precision]
        rate = state.optimizer.param_groups[0]["lr"]
        seed_generators(Stream.STEP, self.options.seed, step, self.world.rank)
        with torch.autocast(self.world.device.type, dtype=dtype, enabled=dtype is not None):
            losses = self.module(batch.to(self.world.device))
        state.optimizer.zero_grad()
        state.scaler.scale(losses["loss"] * weight).backward()
        state.scaler.unscale_(state.optimizer)
        norm = self._clip_gradients()
        values = self._read(losses, norm, step)
        scale = state.scaler.get_scale()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        # A scale that fell says that fp16 overflowed and the optimiser was not stepped.
        if state.scaler.get_scale() >= scale:
            state.schedule.step()
            self._average_weights(step)
        self._tell(step, values, rate)
        return values

    def _clip_gradients(self) -> Tensor:
        """Shorten the gradient to `train.clip_grad_norm`; return the norm that it had."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.options.clip_grad_norm:
            clip_grads_with_norm_(parameters, self.options.clip_grad_norm, norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _read(self, losses: Mapping[str, Tensor], norm: Tensor, step: int) -> dict[str, float]:
        """Return losses as numbers, in one transfer from the device.

        Raises:
            PegboardError: The loss or the gradient is no number; the weights are still good.
        """
        scalars = torch.stack([value.detach().float() for value in (*losses.values(), norm)])
        *numbers, length = scalars.tolist()
        values = dict(zip(losses, numbers, strict=True))
        if not math.isfinite(values["loss"]):
            raise self._diverged("loss", values["loss"], step)
        # In fp16 an infinite gradient is usual: the scaler leaves out the step and scales less.
        if not math.isfinite(length) and not self.state.scaler.is_enabled():
            raise self._diverged("gradient", length, step)
        return values

    def _diverged(self, what: str, value: float, step: int) -> PegboardError:
        epoch = (step - 1) // self.steps_per_epoch
        return PegboardError(
            f"the {what} became {value} at step {step} in epoch {epoch + 1}",
            where=f"checkpoints from before it are in {self.run.checkpoints}",
            remedy=f"lower train.lr (now {self.options.lr:g}), raise train.warmup, or look for "
            "extreme values in the data",
        )

    def _average_weights(self, step: int) -> None:
        """Move the averaged weights, slower the longer training goes on."""
        if not self.state.average:
            return
        # As in TensorFlow's ExponentialMovingAverage: short trainings are averaged shorter.
        decay = min(self.options.ema_decay, (1 + step) / (10 + step))
        average, current = self.state.average.values(), _averaged(self.model).values()
        move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        move(_local(average), _local(current), 0)

    def _tell(self, step: int, losses: Mapping[str, float], rate: float) -> None:
        event = StepEvent(
            epoch=self.position.epoch,
            step=step,
            total_steps=self.total_steps,
            rank=self.world.rank,
            losses=losses,
            learning_rate=rate,
        )
        self.hook.after_step(settings=self.settings, event=event)
        if self.world.main:
            self.journal.step(event)

    # ----------------------------------------------------------------- between epochs

    def _finish_epoch(self, losses: Mapping[str, float]) -> None:
        """Validate, keep the weights if they are the best, tell about it, write a checkpoint."""
        with self._weights_to_keep():
            rows = self._validate()
            metrics = self.world.agreed(self._measure(rows) if self.world.main else [])
            score = Score(
                epoch=self.position.epoch, step=self.position.step, value=metrics[0].value
            )
            best = self.position.best is None or is_better(
                metrics[0], replace(metrics[0], value=self.position.best.value)
            )
            if best and self.options.keep == "best":
                self._write_weights(self.checkpoints.best_file(score))
        if self.world.main:
            self._tell_epoch(losses, metrics, best)
        self.position = replace(
            self.position,
            epoch=self.position.epoch + 1,
            best=score if best else self.position.best,
            last=score,
            sums={},
        )
        self._save(self.position)

    def _validate(self) -> Rows:
        """Tabulate the validation split, each process its share; the main one gets all rows."""
        size = math.ceil(self.options.evaluated_at_once / self.world.size)
        share = math.ceil(len(self.validation_data) / size / self.world.size) * size
        first = self.world.rank * share
        indices = range(len(self.validation_data))[first : first + share]
        batches = batches_of(self.board, self.settings, Subset(self.validation_data, indices), size)
        if isinstance(self.module, FSDPModule):
            # Whole parameters on every process, so each may call the model as often as it likes.
            self.module.unshard()
        self.world.spread(self.model, buffers_only=True)
        deployable = self.hook.build_deployable(settings=self.settings, model=self.model)
        predictor = ModulePredictor(deployable.to(self.world.device), self.world.device)
        shown = self.progress.track(batches, "validation", total=len(batches))
        own = tabulated(self.board, self.settings, predictor, shown)
        rows: Rows = join_rows([table for table in self.world.gathered(own) if table])
        if self.world.main:
            rows = completed(self.board, self.settings, predictor, rows)
        self.module.train()
        if isinstance(self.module, FSDPModule):
            self.module.reshard()
        return rows

    def _measure(self, rows: Rows) -> list[MetricValue]:
        """Compute the metrics, the headline first."""
        thresholds = self.hook.choose_thresholds(settings=self.settings, rows=rows)
        return [measure(metric, rows, thresholds) for metric in self.metrics]

    @contextmanager
    @torch.no_grad()
    def _weights_to_keep(self) -> Iterator[None]:
        """Put the averaged weights, where there are any, into the model for a while."""
        if not self.learns or not self.state.average:
            yield
            return
        current = _local(_averaged(self.model).values())
        average = _local(self.state.average.values())
        own = [tensor.clone() for tensor in current]
        for tensor, averaged in zip(current, average, strict=True):
            tensor.copy_(averaged)
        yield
        for tensor, value in zip(current, own, strict=True):
            tensor.copy_(value)

    def _write_weights(self, path: Path) -> None:
        """Write the model's weights as they are now, whole."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(self.model, options=options)
        if self.world.main:
            save_weights(state, path)

    def _tell_epoch(
        self, losses: Mapping[str, float], metrics: list[MetricValue], best: bool
    ) -> None:
        event = EpochEvent(
            epoch=self.position.epoch,
            step=self.position.step,
            losses=losses,
            metrics={m.name: math.nan if m.value is None else m.value for m in metrics},
            best=best,
        )
        self.hook.after_epoch(settings=self.settings, event=event)
        self.progress.say(describe_epoch(self.journal.epoch(event)))

    def _save(self, position: Position) -> None:
        self.world.spread(self.model, buffers_only=True)
        self.checkpoints.save(self.state, self._timed(position))

    def _timed(self, position: Position) -> Position:
        """Say how long it took to get here, earlier attempts included."""
        cpu = self.world.summed({"cpu": _cpu_seconds() - self.cpu_began})["cpu"]
        return replace(
            position,
            seconds=self.earlier.seconds + time.monotonic() - self.began,
            cpu_seconds=self.earlier.cpu_seconds + cpu,
        )

    def _finish(self) -> dict[str, Any]:
        """Hand over the weights to keep, and say how it went."""
        position = self._timed(self.position)
        best, last = position.best, position.last
        kept = best if self.options.keep == "best" else last
        if best is None or kept is None:
            raise AssertionError("training ended without an epoch")
        if self.options.keep == "last":
            with self._weights_to_keep():
                self._write_weights(self.run.weights_file)
        elif self.world.main:
            with atomic_path(self.run.weights_file) as temporary:
                shutil.copyfile(self.checkpoints.best_file(best), temporary)
        facts = {
            "epochs": position.epoch,
            "steps": position.step,
            "best_epoch": best.epoch + 1,
            "metric": self.metrics[0].name,
            "value": kept.value,
            "world_size": self.world.size,
            "seconds": round(position.seconds, 3),
            "cpu_seconds": round(position.cpu_seconds, 3),
        }
        if self.world.main:
            self.journal.end(position.step, facts)
            self._finish_model()
        self.world.barrier()
        return facts

    def _finish_model(self) -> None:
        """Let plugins change the model that training hands over."""
        if self.board.call_order("finish_model"):
            model = load_trained(self.run)
            self.hook.finish_model(settings=self.settings, model=model)
            save_weights(model.state_dict(), self.run.weights_file)


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    """Return what weights are averaged over: parameters, and the running statistics of norms.

    Statistics of the latest weights would not belong to averaged ones.
    """
    buffers = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
    return {**dict(model.named_parameters()), **buffers}


def _local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return what this process holds of each tensor: its shard, or all of it."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def _cpu_seconds() -> float:
    """Return the processor time of this process and of the loader processes it has ended."""
    return sum(os.times()[:4])
