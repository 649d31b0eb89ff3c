from __future__ import annotations

import json

import numpy as np
import pytest

from pegboard.records import Array, TensorSpec
from pegboard.statistics import SAMPLED, TensorStatistics

FEATURES = TensorSpec(
    name="features", dtype="float32", shape=("batch", 2), channels=("amount", "age")
)
IMAGE = TensorSpec(name="image", dtype="uint8", shape=("batch", 8, 8))


def described(spec: TensorSpec, batches: list[Array]) -> list[dict[str, object]]:
    statistics = TensorStatistics([spec], len(batches))
    for batch in batches:
        statistics.add({spec.name: batch})
    summary = statistics.summary()
    json.dumps(summary, allow_nan=False)
    return summary[spec.name]


def test_moments_are_those_of_all_values_together() -> None:
    values = np.random.default_rng(0).lognormal(size=(1000, 2)).astype(np.float32)
    amount, age = described(FEATURES, np.array_split(values, [10, 11, 700]))
    for column, expected in ((amount, values[:, 0]), (age, values[:, 1])):
        assert column["count"] == 1000
        assert column["mean"] == pytest.approx(expected.astype(np.float64).mean())
        assert column["std"] == pytest.approx(expected.astype(np.float64).std())
        assert (column["min"], column["max"]) == (expected.min(), expected.max())
    assert (amount["channel"], age["channel"]) == ("amount", "age")


def test_a_large_mean_does_not_drown_a_small_spread() -> None:
    values = 1e7 + np.random.default_rng(0).normal(size=(1000, 8, 8))
    (column,) = described(IMAGE, np.array_split(values, 7))
    assert column["std"] == pytest.approx(values.std())


def test_deciles_split_the_values_into_ten_equal_parts() -> None:
    values = np.random.default_rng(0).normal(size=(5000, 2)).astype(np.float32)
    amount, _ = described(FEATURES, np.array_split(values, 5))
    np.testing.assert_allclose(
        amount["edges"], np.quantile(values[:, 0], np.arange(1, 10) / 10), rtol=1e-6
    )
    np.testing.assert_allclose(amount["shares"], np.full(10, 0.1), atol=1e-3)


def test_a_tensor_without_channels_is_one_column() -> None:
    values = np.random.default_rng(0).integers(0, 256, (50, 8, 8), dtype=np.uint8)
    (column,) = described(IMAGE, [values])
    assert column["channel"] == ""
    assert column["count"] == values.size
    assert column["mean"] == pytest.approx(values.mean())


def test_a_value_that_repeats_gives_fewer_bins_with_their_true_shares() -> None:
    values = np.zeros((100, 2), dtype=np.float32)
    values[:30, 0] = np.arange(1, 31)
    amount, age = described(FEATURES, [values])
    # Seven of ten are zero: the first edges fall together on it.
    assert amount["edges"][0] == 0.0
    assert amount["shares"][0] == 0.0
    assert sum(amount["shares"]) == pytest.approx(1.0)
    assert (age["edges"], age["shares"]) == ([0.0], [0.0, 1.0])


def test_nan_and_infinity_count_as_missing_and_as_nothing_else() -> None:
    values = np.ones((4, 2), dtype=np.float32)
    values[:3, 0] = [np.nan, np.inf, 5.0]
    amount, age = described(FEATURES, [values])
    assert (amount["count"], amount["missing"], amount["mean"]) == (4, 0.5, 3.0)
    assert age["missing"] == 0.0


def test_a_column_without_any_value_has_nulls() -> None:
    values = np.full((4, 2), np.nan, dtype=np.float32)
    amount, _ = described(FEATURES, [values])
    assert (amount["missing"], amount["mean"], amount["max"]) == (1.0, None, None)
    assert (amount["edges"], amount["shares"]) == ([], [])


def test_memory_is_bounded_however_many_values_come() -> None:
    batches = [np.random.default_rng(i).normal(size=(100, 64, 64)) for i in range(20)]
    statistics = TensorStatistics([IMAGE], len(batches))
    for batch in batches:
        statistics.add({"image": batch})
    kept = sum(len(values) for values in statistics.columns["image"][0].kept)
    assert SAMPLED / 2 < kept < SAMPLED * 2
    (column,) = statistics.summary()["image"]
    assert abs(column["edges"][4]) < 0.05
