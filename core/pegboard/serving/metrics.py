"""What `/metrics` shows, in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
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
        self._requests = Counter(
            "pegboard_requests", "Answers by path and status.", ("path", "status"),
            registry=self.registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "pegboard_request_seconds", "From the request's head to its answer.", ("path",),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.records = Counter("pegboard_records", "Records answered.", registry=self.registry)
        self._batches = Histogram(
            "pegboard_batch_records", "Records run together.", buckets=RECORDS,
            registry=self.registry,
        )  # fmt: skip
        self._model = Gauge(
            "pegboard_model_info", "1 for the bundles that are loaded.",
            ("role", "solution", "version", "candidate"), registry=self.registry,
        )  # fmt: skip
        # Looking up a child by its labels costs more than counting.
        self._answered: dict[tuple[str, int], Any] = {}
        self._timed: dict[str, Any] = {}
        self.observe_batch = self._batches.observe

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count an answer."""
        answered = self._answered.get((path, status))
        if answered is None:
            answered = self._answered[path, status] = self._requests.labels(path, str(status))
        timed = self._timed.get(path)
        if timed is None:
            timed = self._timed[path] = self._seconds.labels(path)
        answered.inc()
        timed.observe(seconds)

    def name_models(self, models: dict[str, tuple[str, str, str]]) -> None:
        """Say which bundles are loaded: solution, version and candidate by role."""
        self._model.clear()
        for role, labels in models.items():
            self._model.labels(role, *labels).set(1)

    def watch_drift(self, summary: Callable[[], Sequence[ColumnDrift]]) -> None:
        """Show drift, computed when somebody looks."""
        self.registry.register(_DriftCollector(summary))

    def watch(self, prefix: str, figures: Callable[[], dict[str, float]]) -> None:
        """Show figures that somebody else counts, by name."""
        self.registry.register(_FigureCollector(prefix, figures))

    def text(self) -> bytes:
        """Return everything as Prometheus reads it."""
        return generate_latest(self.registry)


class _DriftCollector:
    def __init__(self, summary: Callable[[], Sequence[ColumnDrift]]) -> None:
        self.summary = summary

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families = {
            name: GaugeMetricFamily(f"pegboard_drift_{name}", text, labels=("tensor", "channel"))
            for name, text in (
                ("psi", "Population stability index against training."),
                ("missing_share", "Share of values that are NaN or infinite."),
                ("out_of_range_share", "Share of values outside what training saw."),
            )
        }
        for column in self.summary():
            labels = (column.tensor, column.channel)
            if column.psi is not None:
                families["psi"].add_metric(labels, column.psi)
            families["missing_share"].add_metric(labels, column.missing)
            families["out_of_range_share"].add_metric(labels, column.out_of_range)
        yield from families.values()

    def describe(self) -> list[Any]:
        return []


class _FigureCollector:
    def __init__(self, prefix: str, figures: Callable[[], dict[str, float]]) -> None:
        self.prefix, self.figures = prefix, figures

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, value in self.figures().items():
            yield GaugeMetricFamily(f"{self.prefix}_{name}", name.replace("_", " "), value=value)

    def describe(self) -> list[Any]:
        return []
