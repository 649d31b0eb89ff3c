"""Live traffic beside training: the index, gaps and ranges."""

from __future__ import annotations

import numpy as np
import pytest

from pegboard.records import Signature, TensorSpec
from pegboard.serving.drift import BLOCKS, BUFFERED, ColumnDrift, DriftMonitor
from pegboard.serving.process import ServerProcess
from pegboard.statistics import TensorStatistics

SIGNATURE = Signature(
    inputs=(
        TensorSpec(
            name="x", dtype="float32", shape=("batch", 2), channels=("a", "b"), finite=False
        ),
    ),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("batch",)),),
)


def draw(count: int, seed: int, shift: float = 0.0) -> tuple[dict[str, object], dict[str, object]]:
    x = np.random.default_rng(seed).normal(size=(count, 2)).astype(np.float32)
    x[:, 0] += shift
    return {"x": x}, {"y": x.sum(axis=1)}


def monitor(window: int = 5_000) -> DriftMonitor:
    inputs, outputs = draw(20_000, seed=1)
    tables = {}
    for kind, specs, arrays in (
        ("inputs", SIGNATURE.inputs, inputs),
        ("outputs", SIGNATURE.outputs, outputs),
    ):
        statistics = TensorStatistics(specs, 1)
        statistics.add(arrays)  # type: ignore[arg-type]
        tables[kind] = statistics.summary()
    return DriftMonitor(SIGNATURE, tables, window)


def columns(watched: DriftMonitor) -> dict[str, ColumnDrift]:
    return {column.channel or column.tensor: column for column in watched.summary()}


def feed(watched: DriftMonitor, count: int, seed: int = 2, shift: float = 0.0) -> None:
    inputs, outputs = draw(count, seed, shift)
    for row in range(0, count, 50):
        part = slice(row, row + 50)
        watched.add(
            {"x": inputs["x"][part]},  # type: ignore[index]
            {"y": outputs["y"][part]},  # type: ignore[index]
            50,
        )


def test_the_same_traffic_is_stable() -> None:
    watched = monitor()
    feed(watched, 4_000)
    found = columns(watched)
    assert set(found) == {"a", "b", "y"}
    assert all(column.level == "stable" for column in found.values())
    assert all(column.psi is not None and column.psi < 0.02 for column in found.values())


def test_the_index_is_the_textbooks() -> None:
    """Against the formula, with bins counted anew from the values themselves."""
    watched = monitor()
    feed(watched, 2_000, shift=0.7)
    live = draw(2_000, seed=2, shift=0.7)[0]["x"][:, 0]  # type: ignore[index]
    then = draw(20_000, seed=1)[0]["x"][:, 0]  # type: ignore[index]
    edges = np.quantile(then.astype(np.float64), np.linspace(0.1, 0.9, 9))
    shares = [
        np.bincount(np.searchsorted(edges, part, side="right"), minlength=10) / len(part)
        for part in (then, live)
    ]
    expected = sum((b - a) * np.log(b / a) for a, b in zip(*shares, strict=True))
    found = columns(watched)
    assert found["a"].psi == pytest.approx(expected, rel=1e-3)
    assert found["a"].level == "changed"
    assert found["b"].level == "stable"


def test_gaps_and_strangers_are_counted() -> None:
    watched = monitor()
    x = np.zeros((1_000, 2), np.float32)
    x[:250, 0] = np.nan
    x[:100, 1] = 1e6
    watched.add({"x": x}, {"y": np.zeros(1_000, np.float32)}, 1_000)
    found = columns(watched)
    assert (found["a"].missing, found["a"].missing_reference) == (0.25, 0.0)
    assert (found["b"].missing, found["b"].out_of_range) == (0.0, 0.1)


def test_few_values_say_nothing() -> None:
    watched = monitor()
    feed(watched, 150, shift=5.0)
    assert {column.level for column in watched.summary()} == {"too few"}
    assert all(column.psi is None for column in watched.summary())


def test_the_window_forgets() -> None:
    watched = monitor(window=2_000)
    feed(watched, 2_000, shift=3.0)
    assert columns(watched)["a"].level == "changed"
    feed(watched, 2_000 + 2_000 // BLOCKS + BUFFERED, seed=3)
    assert columns(watched)["a"].level == "stable"


def test_values_of_an_image_are_sampled_and_still_compared() -> None:
    spec = TensorSpec(name="image", dtype="uint8", shape=("batch", 64, 64))
    signature = Signature(inputs=(spec,), outputs=())
    statistics = TensorStatistics((spec,), 1)
    generator = np.random.default_rng(0)
    statistics.add({"image": generator.integers(0, 200, (64, 64, 64), np.uint8)})
    watched = DriftMonitor(signature, {"inputs": statistics.summary(), "outputs": {}}, 100)
    dark = generator.integers(0, 50, (8, 64, 64), np.uint8)
    watched.add({"image": dark}, {}, 8)
    (column,) = watched.summary()
    assert column.level == "changed"
    assert 4_000 < column.count < 20_000


def test_the_server_shows_it(server: ServerProcess) -> None:
    strange = {"points": [[50.0, 1.0, 2.0, 3.0]] * 300}
    assert server.ask("POST", "/predict", strange).status == 200
    shown = {column["tensor"]: column for column in server.ask("GET", "/drift").json()["columns"]}
    assert set(shown) == {"x", "probability"}
    assert shown["x"]["out_of_range"] > 0.1
    assert shown["x"]["psi"] > 0
    metrics = server.ask("GET", "/metrics").body.decode()
    assert 'pegboard_drift_psi{channel="",tensor="x"}' in metrics
    assert 'pegboard_drift_out_of_range_share{channel="",tensor="x"}' in metrics
