"""What `/metrics` shows, in Prometheus's text format.

What every request counts is counted in plain lists and turned into metrics when somebody looks:
the library's own counters take a lock each, and together longer than the rest of the server.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from pegboard.serving.drift import ColumnDrift

SECONDS = (
    0.0005, 0.001, 0.0015, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0
)  # fmt: skip
RECORDS = (1, 2, 4, 8, 16, 32, 64, 128)
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class ServerMetrics:
    """The counters of a server, in a registry that plugins may add to."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._statuses: Counter[tuple[str, int]] = Counter()
        self._seconds: dict[str, _Histogram] = {}
        self._batches = _Histogram(RECORDS)
        self.observe_batch = self._batches.observe
        self.registry.register(_Collected(self._collect))
        self._model = Gauge(
            "pegboard_model_info", "1 for the bundles that are loaded.",
            ("role", "solution", "version", "candidate"), registry=self.registry,
        )  # fmt: skip

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._statuses[path, status] += 1
        timed = self._seconds.get(path)
        if timed is None:
            timed = self._seconds[path] = _Histogram(SECONDS)
        timed.observe(seconds)

    def _collect(self) -> Iterator[Any]:
        requests = CounterMetricFamily(
            "pegboard_requests", "Answers by path and status.", labels=("path", "status")
        )
        for (path, status), number in list(self._statuses.items()):
            requests.add_metric((path, str(status)), number)
        seconds = HistogramMetricFamily(
            "pegboard_request_seconds", "From a request's head to its answer.", labels=("path",)
        )
        for path, timed in list(self._seconds.items()):
            seconds.add_metric((path,), *timed.cumulative())
        batches = HistogramMetricFamily("pegboard_batch_records", "Records run together.")
        batches.add_metric((), *self._batches.cumulative())
        yield from (requests, seconds, batches)

    def name_models(self, models: dict[str, tuple[str, str, str]]) -> None:
        """Say which bundles are loaded: solution, version and candidate by role."""
        self._model.clear()
        for role, labels in models.items():
            self._model.labels(role, *labels).set(1)

    def watch_drift(self, summary: Callable[[], Sequence[ColumnDrift]]) -> None:
        """Show drift, computed when somebody looks."""
        self.registry.register(_Collected(lambda: _drift(summary())))

    def watch(self, prefix: str, figures: Callable[[], dict[str, float]]) -> None:
        """Show figures that somebody else counts, by name."""

        def collect() -> Iterator[Any]:
            for name, value in figures().items():
                text = name.replace("_", " ")
                yield GaugeMetricFamily(f"{prefix}_{name}", text, value=value)

        self.registry.register(_Collected(collect))

    def text(self) -> bytes:
        """Return everything as Prometheus reads it."""
        return generate_latest(self.registry)


class _Histogram:
    """Counts values by the least bound that holds them."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> tuple[list[tuple[str, float]], float]:
        """Return what Prometheus wants: numbers up to each bound, and the sum."""
        names = [*(repr(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(names, accumulate(self.counts), strict=True)), self.total


class _Collected:
    """A collector made of a function."""

    def __init__(self, collect: Callable[[], Iterator[Any]]) -> None:
        self.collect = collect

    def describe(self) -> list[Any]:
        """Name nothing ahead, or the registry would collect once to find out."""
        return []


def _drift(columns: Sequence[ColumnDrift]) -> Iterator[GaugeMetricFamily]:
    families = {
        name: GaugeMetricFamily(f"pegboard_drift_{name}", text, labels=("tensor", "channel"))
        for name, text in (
            ("psi", "Population stability index against training."),
            ("missing_share", "Share of values that are NaN or infinite."),
            ("out_of_range_share", "Share of values outside what training saw."),
        )
    }
    for column in columns:
        labels = (column.tensor, column.channel)
        if column.psi is not None:
            families["psi"].add_metric(labels, column.psi)
        families["missing_share"].add_metric(labels, column.missing)
        families["out_of_range_share"].add_metric(labels, column.out_of_range)
    yield from families.values()
