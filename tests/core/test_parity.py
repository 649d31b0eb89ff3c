from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pegboard.parity import flipped_share, metric_drop, output_errors, worst
from pegboard.records import MetricValue, Signature, TensorSpec


def error_of(expected: Any, got: Any) -> Any:
    spec = TensorSpec(name="y", dtype="float32", shape=("batch",))
    signature = Signature(inputs=(), outputs=(spec,))
    (error,) = output_errors(
        signature, [{"y": np.asarray(e)} for e in expected], [{"y": np.asarray(g)} for g in got]
    )
    return error


def test_an_error_is_a_share_of_the_range_over_all_batches() -> None:
    error = error_of([[0.0, 2.0], [10.0]], [[0.0, 2.5], [10.0]])
    assert (error.max_abs, error.share) == (0.5, 0.05)
    assert error.what == "'y' is off by 0.5, 0.05 of its range"


def test_rounding_in_an_output_that_hardly_varies_is_no_error() -> None:
    assert error_of([[0.5, 0.5000001]], [[0.5000001, 0.5]]).share < 1e-3


def test_an_output_that_is_all_zero_has_a_range() -> None:
    assert error_of([[0.0, 0.0]], [[0.0, 0.25]]).share == 0.25


def test_another_shape_is_infinitely_wrong() -> None:
    error = error_of([[1.0, 2.0]], [[1.0]])
    assert error.share == np.inf
    assert error.what == "'y' has the shape [1] and not [2]"


def test_nan_in_the_same_place_is_no_error_and_elsewhere_is_infinite() -> None:
    assert error_of([[np.nan, 2.0]], [[np.nan, 2.0]]).share == 0.0
    assert error_of([[1.0, 2.0]], [[np.nan, 2.0]]).share == np.inf


def test_whole_numbers_are_compared_by_how_many_differ() -> None:
    error = error_of([[1, 2, 3, 90]], [[1, 2, 3, 4]])
    assert (error.share, error.max_abs) == (0.25, 86.0)


def test_the_worst_output_is_the_one_with_the_largest_share() -> None:
    good, bad = error_of([[0.0, 1.0]], [[0.0, 1.0]]), error_of([[0.0, 1.0]], [[0.5, 1.0]])
    assert worst([good, bad]) is bad


def value(number: float | None, direction: Any = "higher") -> MetricValue:
    return MetricValue(name="m", value=number, direction=direction)


@pytest.mark.parametrize(
    ("reference", "got", "drop"),
    [
        (value(0.8), value(0.6), 0.25),
        (value(0.8), value(0.9), -0.125),
        (value(4.0, "lower"), value(5.0), 0.25),
        (value(0.0, "lower"), value(0.5), 0.5),
        (value(-2.0), value(-3.0), 0.5),
        (value(0.8), value(None), float("inf")),
        (value(None), value(0.5), 0.0),
    ],
)
def test_a_drop_is_how_much_worse_as_a_share(
    reference: MetricValue, got: MetricValue, drop: float
) -> None:
    assert metric_drop(reference, got) == pytest.approx(drop)


def test_flips_are_counted_among_what_is_decided() -> None:
    assert flipped_share(["yes", None, "no", "no"], ["no", None, "no", "no"]) == 1 / 3
    assert flipped_share([None, None], [None, None]) is None
