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
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pegboard.records import Array, Signature

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
    """What one column counted in one block of the window."""

    bins: Array
    seen: int = 0
    missing: int = 0
    outside: int = 0


@dataclass(slots=True)
class _Column:
    """One column's reference and its live counts, the latest block last."""

    tensor: str
    channel: str
    edges: Array
    reference: Array
    missing: float
    low: float
    high: float
    blocks: deque[_Counts] = field(default_factory=lambda: deque(maxlen=BLOCKS))

    def open_block(self) -> None:
        self.blocks.append(_Counts(np.zeros(len(self.edges) + 1, np.int64)))

    def add(self, values: Array) -> None:
        counts = self.blocks[-1]
        finite = values[np.isfinite(values)]
        counts.seen += len(values)
        counts.missing += len(values) - len(finite)
        counts.outside += int(((finite < self.low) | (finite > self.high)).sum())
        places = np.searchsorted(self.edges, finite, side="right")
        counts.bins += np.bincount(places, minlength=len(self.edges) + 1)

    def summary(self) -> ColumnDrift:
        bins = np.sum([counts.bins for counts in self.blocks], axis=0)
        seen = sum(counts.seen for counts in self.blocks)
        psi = _psi(self.reference, bins) if bins.sum() >= LEAST and len(self.reference) else None
        return ColumnDrift(
            tensor=self.tensor,
            channel=self.channel,
            count=seen,
            psi=psi,
            level=_level(psi),
            missing=sum(counts.missing for counts in self.blocks) / max(1, seen),
            missing_reference=self.missing,
            out_of_range=sum(counts.outside for counts in self.blocks) / max(1, seen),
        )


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
        self._specs = (*signature.inputs, *signature.outputs)
        tables = {**reference["inputs"], **reference["outputs"]}
        self._columns = {
            spec.name: [_column(spec.name, table) for table in tables[spec.name]]
            for spec in self._specs
        }
        self._block = max(1, window // BLOCKS)
        self._in_block = self._block  # Full, so that the first record opens one.
        self._buffer: list[Mapping[str, Array]] = []
        self._buffered = 0

    def add(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], records: int) -> None:
        """Take in the records of an answer; cheap until `BUFFERED` of them wait to be counted."""
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
            for column in self._all():
                column.open_block()
        self._in_block += records
        for spec in self._specs:
            values = _by_column(waiting, spec.name, channels=bool(spec.channels))
            for column, part in zip(self._columns[spec.name], values, strict=True):
                column.add(part)

    def summary(self) -> list[ColumnDrift]:
        """Compare the window with training, column by column."""
        self.count()
        return [column.summary() for column in self._all() if column.blocks]

    def _all(self) -> Iterator[_Column]:
        for columns in self._columns.values():
            yield from columns


def _column(tensor: str, table: Mapping[str, Any]) -> _Column:
    low, high = table["min"], table["max"]
    return _Column(
        tensor=tensor,
        channel=table["channel"],
        edges=np.array(table["edges"], np.float64),
        reference=np.array(table["shares"], np.float64),
        missing=table["missing"],
        low=-np.inf if low is None else low,
        high=np.inf if high is None else high,
    )


def _by_column(
    waiting: Sequence[Mapping[str, Array]], name: str, *, channels: bool
) -> Sequence[Array]:
    """Return the values of each column."""
    arrays = [part[name] for part in waiting]
    if channels:
        rows = np.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays])
        return list(rows.T)
    return [np.concatenate([_sampled(array) for array in arrays])]


def _sampled(array: Array) -> Array:
    records = len(array) if array.ndim else 1
    values: Array = array.ravel()
    return values[:: max(1, values.size // (SAMPLED * records))]
