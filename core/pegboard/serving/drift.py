"""Drift: what comes in and goes out now, beside what did in training.

The bundle's reference statistics (`statistics.py`) cut every column into its deciles. Live values
are counted in the same bins, and the population stability index compares the shares:

    PSI = sum over bins of (live - reference) * ln(live / reference)

It is Kullback-Leibler divergence taken both ways (Jeffreys, 1946); below 0.1 a column counts as
stable, from 0.25 on as changed (Siddiqi, "Credit Risk Scorecards", 2006).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pegboard.records import Array, Signature, TensorSpec

LEAST = 200
"""Values below which shares say nothing."""
STABLE, CHANGED = 0.1, 0.25
SMALLEST_SHARE = 1e-4
"""Stands for an empty bin, whose logarithm would be infinite."""
BLOCKS = 10
"""The window moves on by a tenth of itself."""
BUFFERED = 256
"""Records that are counted at once: one by one would cost ten times as much."""
SAMPLED = 1024
"""Values of a record that are looked at in a tensor without channels, evenly spaced."""


@dataclass(frozen=True, kw_only=True)
class ColumnDrift:
    """One column, now beside then."""

    tensor: str
    """The input or output."""
    channel: str
    """The channel's name; empty for a tensor without channels."""
    count: int
    """Live values in the window."""
    psi: float | None
    """Population stability index; None below `LEAST` values or without a reference."""
    level: str
    """`stable`, `moderate`, `changed`, or `too few` values to tell."""
    missing: float
    """Share of live values that are NaN or infinite."""
    missing_reference: float
    """The same in training."""
    out_of_range: float
    """Share of live values outside what training saw."""


@dataclass(slots=True)
class _Counts:
    """What the columns (C) of one tensor counted in one block of the window."""

    seen: int
    missing: Array
    outside: Array
    above: Array
    """(C, E): how many values were not below each edge."""


class _Tensor:
    """The columns (C) of one tensor: their reference, and live counts, the latest block last.

    All columns are counted in one comparison with all edges (E): with a search for each column the
    calls would cost more than the work.
    """

    def __init__(self, spec: TensorSpec, tables: Sequence[Mapping[str, Any]]) -> None:
        self.spec, self.tables = spec, tables
        longest = max((len(table["edges"]) for table in tables), default=0)
        self.edges = np.full((len(tables), longest), np.nan)
        for row, table in zip(self.edges, tables, strict=True):
            row[: len(table["edges"])] = table["edges"]
        self.low = np.array([_number(table["min"], -np.inf) for table in tables])
        self.high = np.array([_number(table["max"], np.inf) for table in tables])
        self.blocks: deque[_Counts] = deque(maxlen=BLOCKS)

    def open_block(self) -> None:
        columns = len(self.tables)
        zeros = np.zeros(columns, np.int64)
        above = np.zeros(self.edges.shape, np.int64)
        self.blocks.append(_Counts(0, zeros, zeros.copy(), above))

    def add(self, values: Array) -> None:
        """Count values (N, C)."""
        counts = self.blocks[-1]
        finite = np.isfinite(values)
        values = np.where(finite, values, np.nan)  # Which is neither below nor above anything.
        counts.seen += len(values)
        counts.missing += (~finite).sum(axis=0)
        counts.outside += ((values < self.low) | (values > self.high)).sum(axis=0)
        counts.above += (values[:, :, None] >= self.edges).sum(axis=0)

    def summary(self) -> Iterator[ColumnDrift]:
        seen = sum(counts.seen for counts in self.blocks)
        missing, outside, above = (
            np.sum([getattr(counts, name) for counts in self.blocks], axis=0)
            for name in ("missing", "outside", "above")
        )
        for column, table in enumerate(self.tables):
            finite = seen - missing[column]
            edges = len(table["edges"])
            # Not below the first edge, less not below the second, is between them.
            bins = -np.diff(above[column, :edges], prepend=finite, append=0)
            psi = _psi(np.array(table["shares"]), bins) if edges and finite >= LEAST else None
            yield ColumnDrift(
                tensor=self.spec.name,
                channel=table["channel"],
                count=seen,
                psi=psi,
                level=_level(psi),
                missing=float(missing[column] / max(1, seen)),
                missing_reference=table["missing"],
                out_of_range=float(outside[column] / max(1, seen)),
            )


def _number(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _psi(reference: Array, bins: Array) -> float:
    expected = np.maximum(reference, SMALLEST_SHARE)
    live = np.maximum(bins / bins.sum(), SMALLEST_SHARE)
    return float(((live - expected) * np.log(live / expected)).sum())


def _level(psi: float | None) -> str:
    if psi is None:
        return "too few"
    return "stable" if psi < STABLE else "moderate" if psi < CHANGED else "changed"


class DriftMonitor:
    """Counts live inputs and outputs in the bins of training.

    Args:
        signature: Names inputs, outputs and their channels.
        reference: The bundle's statistics: `Bundle.reference()`.
        window: The latest records that count.
    """

    def __init__(self, signature: Signature, reference: Mapping[str, Any], window: int) -> None:
        tables = {**reference["inputs"], **reference["outputs"]}
        specs = (*signature.inputs, *signature.outputs)
        self._tensors = [_Tensor(spec, tables[spec.name]) for spec in specs]
        self._block = max(1, window // BLOCKS)
        self._in_block = self._block  # Full, so that the first record opens one.
        self._buffer: list[Mapping[str, Array]] = []
        self._buffered = 0

    def add(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], records: int) -> None:
        """Take in the records of an answer; `BUFFERED` of them are counted together."""
        self._buffer.append({**inputs, **outputs})
        self._buffered += records
        if self._buffered >= BUFFERED:
            self.count()

    def count(self) -> None:
        """Count what waits."""
        waiting, self._buffer, records = self._buffer, [], self._buffered
        self._buffered = 0
        if not waiting:
            return
        if self._in_block >= self._block:
            self._in_block = 0
            for tensor in self._tensors:
                tensor.open_block()
        self._in_block += records
        for tensor in self._tensors:
            name = tensor.spec.name
            # Of a model in parts, a request may have asked some alone.
            arrays = [answer[name] for answer in waiting if name in answer]
            if arrays:
                tensor.add(_columns(tensor.spec, arrays))

    def summary(self) -> list[ColumnDrift]:
        """Compare the window with training, column by column."""
        self.count()
        return [column for tensor in self._tensors if tensor.blocks for column in tensor.summary()]


def _columns(spec: TensorSpec, arrays: Sequence[Array]) -> Array:
    """Return values (N, C) of all records: one column per channel, or one in all."""
    if spec.channels:
        return np.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays])
    return np.concatenate([_sampled(array) for array in arrays])[:, None]


def _sampled(array: Array) -> Array:
    records = len(array) if array.ndim else 1
    values: Array = array.ravel()
    return values[:: max(1, values.size // (SAMPLED * records))]
