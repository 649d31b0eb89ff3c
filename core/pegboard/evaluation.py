"""Evaluation: any predictor over any split, on one path: `infer`, `tabulate`, then metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from pegboard.board import Board
from pegboard.errors import PluginError
from pegboard.progress import Progress
from pegboard.records import (
    Array,
    Batch,
    Evaluation,
    Metric,
    MetricValue,
    Predictor,
    Rows,
    Split,
    Thresholds,
)
from pegboard.settings import Settings

RESAMPLES = 100
"""Bootstrap samples behind a confidence interval."""


class ModulePredictor:
    """A deployable in torch, as a predictor."""

    def __init__(self, deployable: nn.Module, device: torch.device | None = None) -> None:
        self.deployable = deployable.eval()
        self.device = device or torch.device("cpu")

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch without gradients."""
        with torch.inference_mode():
            tensors = {
                name: torch.as_tensor(np.ascontiguousarray(array)).to(self.device)
                for name, array in inputs.items()
            }
            outputs = self.deployable(**tensors)
            return {name: _array(tensor) for name, tensor in outputs.items()}


def _array(tensor: torch.Tensor) -> Array:
    # NumPy has no bfloat16.
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()


def batches_of(
    board: Board, settings: Settings, data: Dataset[Any], batch_size: int
) -> DataLoader[Any]:
    """Return a split as batches, in order."""

    def collate(samples: Any) -> Batch:
        batch: Batch = board.hook.collate(settings=settings, samples=samples)
        return batch

    return DataLoader(data, batch_size=batch_size, collate_fn=collate)


def tabulated(
    board: Board, settings: Settings, predictor: Predictor, batches: Iterator[Batch] | Any
) -> dict[str, Array]:
    """Run a predictor over batches and join what `tabulate` keeps of each."""
    tables = []
    for batch in batches:
        outputs = board.hook.infer(settings=settings, predictor=predictor, inputs=batch.arrays())
        tables.append(board.hook.tabulate(settings=settings, batch=batch, outputs=outputs))
    return join_rows(tables)


def completed(board: Board, settings: Settings, predictor: Predictor, rows: Rows) -> Rows:
    """Return the rows of a whole split with what depends on all of them."""
    completed: Rows = board.hook.complete_rows(settings=settings, predictor=predictor, rows=rows)
    return completed


def join_rows(tables: Sequence[Rows]) -> dict[str, Array]:
    """Put tables with the same columns under one another."""
    if not tables:
        return {}
    return {name: np.concatenate([np.asarray(t[name]) for t in tables]) for name in tables[0]}


def evaluate(
    board: Board,
    settings: Settings,
    predictor: Predictor,
    data: Dataset[Any],
    *,
    name: str,
    split: Split,
    thresholds: Thresholds,
    progress: Progress,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """Measure a predictor on a split.

    Args:
        board: The project's board.
        settings: The project's settings.
        predictor: Any backend.
        data: The split's dataset.
        name: What the evaluation is called.
        split: The split's name.
        thresholds: As `choose_thresholds` chose them.
        progress: Where to show how far it is.
        resamples: Bootstrap samples behind each confidence interval; 0 gives none.
    """
    batches = batches_of(board, settings, data, settings.train.evaluated_at_once)
    rows: Rows = tabulated(
        board, settings, predictor, progress.track(batches, f"{name} on {split}", len(batches))
    )
    rows = completed(board, settings, predictor, rows)
    metrics = metrics_of(board, settings)
    return Evaluation(
        name=name,
        split=split,
        rows=rows,
        thresholds=thresholds,
        metrics=[
            measure(metric, rows, thresholds, resamples=resamples)
            for metric in progress.track(metrics, f"{name}: confidence intervals")
        ],
    )


def metrics_of(board: Board, settings: Settings) -> list[Metric]:
    """Return the metrics, the headline first.

    Raises:
        PluginError: There is not exactly one headline metric.
    """
    metrics: list[Metric] = board.collect("build_metrics", settings=settings)
    headlines = [metric.name for metric in metrics if metric.headline]
    if len(headlines) != 1:
        raise PluginError(
            f"there are {len(headlines)} headline metrics {headlines} and not one",
            where=f"hook build_metrics of '{settings.solution}' and its plugins",
            remedy="set headline=True on exactly one",
        )
    return sorted(metrics, key=lambda metric: not metric.headline)


def measure(
    metric: Metric, rows: Rows, thresholds: Thresholds, *, resamples: int = 0, seed: int = 0
) -> MetricValue:
    """Compute a metric and its 95 % percentile bootstrap interval (Efron, 1979)."""
    low, high = _interval(metric, rows, thresholds, resamples, seed) if resamples else (None, None)
    return MetricValue(
        name=metric.name,
        value=_defined(metric.compute(rows, thresholds)),
        low=low,
        high=high,
        direction=metric.direction,
        headline=metric.headline,
        unit=metric.unit,
        description=metric.description,
    )


def _interval(
    metric: Metric, rows: Rows, thresholds: Thresholds, resamples: int, seed: int
) -> tuple[float | None, float | None]:
    generator = np.random.default_rng(seed)
    draws = []
    for index, groups in _resampled(rows, metric.group, resamples, generator):
        # A group that is drawn twice stands for two: a metric that counts groups must see two.
        drawn = {metric.group: groups} if metric.group else {}
        draws.append(metric.compute(_DrawnRows(rows, index, drawn), thresholds))
    defined = [draw for draw in draws if math.isfinite(draw)]
    if not defined:
        return None, None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


class _DrawnRows(Mapping[str, Array]):
    """Rows drawn from a table; a column is copied when a metric looks at it, and not before.

    Args:
        rows: The table.
        index: Which rows.
        drawn: Columns that are there already.
    """

    def __init__(self, rows: Rows, index: Array, drawn: dict[str, Array]) -> None:
        self._rows, self._index, self._drawn = rows, index, drawn

    def __getitem__(self, name: str) -> Array:
        if name not in self._drawn:
            self._drawn[name] = self._rows[name][self._index]
        return self._drawn[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _resampled(
    rows: Rows, group: str, resamples: int, generator: np.random.Generator
) -> Iterator[tuple[Array, Array]]:
    """Yield indices of rows drawn with replacement, single or in groups, and their groups."""
    count = len(next(iter(rows.values()))) if rows else 0
    if not group:
        for _ in range(resamples):
            drawn = generator.integers(0, count, count)
            yield drawn, drawn
        return
    _, codes = np.unique(rows[group], return_inverse=True)
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes)
    starts = np.cumsum(sizes) - sizes
    for _ in range(resamples):
        drawn = generator.integers(0, len(sizes), len(sizes))
        lengths = sizes[drawn]
        offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        yield (
            order[np.repeat(starts[drawn], lengths) + offsets],
            np.repeat(np.arange(len(drawn)), lengths),
        )


def _defined(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def is_better(value: MetricValue, than: MetricValue) -> bool:
    """Whether a metric's value is better than another of the same metric."""
    if value.value is None or than.value is None:
        return than.value is None and value.value is not None
    if value.direction == "higher":
        return value.value > than.value
    return value.value < than.value
