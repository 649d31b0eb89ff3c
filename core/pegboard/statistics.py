"""Reference statistics: what inputs and outputs looked like in training, to notice drift later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pegboard.records import Array, TensorSpec

SAMPLED = 20_000
"""Values of a column that the deciles are taken from."""

DECILES = np.linspace(0.1, 0.9, 9)


class Column:
    """One channel, or one whole tensor, seen batch by batch.

    Moments are exact, merged batch by batch (Chan, Golub and LeVeque, 1979: "Updating formulae
    and a pairwise algorithm for computing sample variances"); deciles are taken from evenly
    spaced values, so that memory is bounded and a second pass gives the same.

    Args:
        share: Share of the values to keep for the deciles.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.count = 0
        self.missing = 0
        self.mean = 0.0
        self.squares = 0.0
        self.low, self.high = np.inf, -np.inf
        self.kept: list[Array] = []

    def add(self, values: Array) -> None:
        """Take in the values of a batch, of any shape; NaN and infinity count as missing."""
        values = values.ravel().astype(np.float64)
        finite = values[np.isfinite(values)]
        self.missing += len(values) - len(finite)
        if len(finite):
            self._merge_moments(finite)
            self.low = min(self.low, float(finite.min()))
            self.high = max(self.high, float(finite.max()))
            self.kept.append(_evenly(finite, self.share))

    def _merge_moments(self, values: Array) -> None:
        total = self.count + len(values)
        mean = float(values.mean())
        distance = mean - self.mean
        self.squares += float(((values - mean) ** 2).sum())
        self.squares += distance**2 * self.count * len(values) / total
        self.mean += distance * len(values) / total
        self.count = total

    def summary(self) -> dict[str, Any]:
        """Return the statistics as JSON carries them.

        `edges` are the inner deciles without repetitions, and `shares` what part of the values
        lies in `(-inf, edges[0])`, `[edges[0], edges[1])` and so on, for a population stability
        index. A column without a finite value has nulls and empty lists.
        """
        seen = self.count + self.missing
        kept = np.concatenate(self.kept) if self.kept else np.empty(0)
        edges = np.unique(np.quantile(kept, DECILES)) if len(kept) else np.empty(0)
        bins = np.bincount(np.searchsorted(edges, kept, side="right"), minlength=len(edges) + 1)
        return {
            "count": seen,
            "missing": self.missing / seen if seen else 0.0,
            "mean": self.mean if self.count else None,
            "std": float(np.sqrt(self.squares / self.count)) if self.count else None,
            "min": self.low if self.count else None,
            "max": self.high if self.count else None,
            "edges": edges.tolist(),
            "shares": (bins / len(kept)).tolist() if len(kept) else [],
        }


def _evenly(values: Array, share: float) -> Array:
    """Return about `share` of the values, at least one, evenly spaced."""
    wanted = max(1, min(len(values), round(len(values) * share)))
    kept: Array = values[np.linspace(0, len(values) - 1, wanted).round().astype(int)]
    return kept


class TensorStatistics:
    """The columns of some tensors: one per channel where the spec names channels, else one.

    Args:
        specs: The tensors.
        batches: How many batches will come.
    """

    def __init__(self, specs: Sequence[TensorSpec], batches: int) -> None:
        self.specs = specs
        self.batches = max(1, batches)
        self.columns: dict[str, list[Column]] = {}

    def add(self, arrays: Mapping[str, Array]) -> None:
        """Take in one batch of each tensor."""
        for spec in self.specs:
            array = np.asarray(arrays[spec.name])
            parts = np.moveaxis(array, -1, 0) if spec.channels else array[None]
            if spec.name not in self.columns:
                share = SAMPLED / max(1, parts[0].size * self.batches)
                self.columns[spec.name] = [Column(share) for _ in parts]
            for column, values in zip(self.columns[spec.name], parts, strict=True):
                column.add(values)

    def summary(self) -> dict[str, list[dict[str, Any]]]:
        """Return the statistics of each tensor: a list of columns, each with its channel."""
        return {
            spec.name: [
                {"channel": channel} | column.summary()
                for channel, column in zip(
                    spec.channels or ("",), self.columns.get(spec.name, ()), strict=True
                )
            ]
            for spec in self.specs
        }
