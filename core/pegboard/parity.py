"""Parity: how far one backend's outputs and metrics are from another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pegboard.records import Array, MetricValue, Signature

RANGE_FLOOR = 0.01
"""Least range of an output, as a share of its magnitude: an output that hardly varies would turn
rounding in the last digits into an error."""


@dataclass(frozen=True, kw_only=True)
class OutputError:
    """How far one output is off, over all records compared."""

    output: str
    """The output's name."""
    max_abs: float
    """Largest absolute difference; infinite when shapes or gaps (NaN) differ."""
    share: float
    """The same as a share of the output's range; for whole numbers the share that differ."""
    what: str
    """The difference in words."""


def output_errors(
    signature: Signature,
    expected: Sequence[Mapping[str, Array]],
    got: Sequence[Mapping[str, Array]],
) -> list[OutputError]:
    """Compare outputs, batch by batch.

    Args:
        signature: Names the outputs.
        expected: What the trained model returned, one dict per batch.
        got: What another backend returned for the same inputs.

    Returns:
        One error per output, in the signature's order.
    """
    return [
        _output_error(
            spec.name, [batch[spec.name] for batch in expected], [batch[spec.name] for batch in got]
        )
        for spec in signature.outputs
    ]


def worst(errors: Sequence[OutputError]) -> OutputError:
    """Return the largest error."""
    return max(errors, key=lambda error: error.share)


def _output_error(name: str, expected: Sequence[Array], got: Sequence[Array]) -> OutputError:
    for one, other in zip(expected, got, strict=True):
        if one.shape != other.shape:
            shapes = f"'{name}' has the shape {list(other.shape)} and not {list(one.shape)}"
            return OutputError(output=name, max_abs=np.inf, share=np.inf, what=shapes)
    left = np.concatenate([array.ravel() for array in expected])
    right = np.concatenate([array.ravel() for array in got])
    if left.dtype.kind in "biu":
        return _count_error(name, left, right)
    return _float_error(name, left.astype(np.float64), right.astype(np.float64))


def _count_error(name: str, expected: Array, got: Array) -> OutputError:
    share = float(np.mean(expected != got)) if expected.size else 0.0
    distance = np.abs(expected.astype(np.float64) - got.astype(np.float64)).max(initial=0.0)
    return OutputError(
        output=name,
        max_abs=float(distance),
        share=share,
        what=f"'{name}' differs in {share:.2%} of its values",
    )


def _float_error(name: str, expected: Array, got: Array) -> OutputError:
    if not np.array_equal(np.isfinite(expected), np.isfinite(got)):
        what = f"'{name}' is finite in other places"
        return OutputError(output=name, max_abs=np.inf, share=np.inf, what=what)
    finite = np.isfinite(expected)
    expected, got = expected[finite], got[finite]
    max_abs = float(np.abs(expected - got).max(initial=0.0))
    share = max_abs / _range_of(expected)
    return OutputError(
        output=name,
        max_abs=max_abs,
        share=share,
        what=f"'{name}' is off by {max_abs:.3g}, {share:.3g} of its range",
    )


def _range_of(values: Array) -> float:
    if not values.size:
        return 1.0
    floor = RANGE_FLOOR * float(np.abs(values).max())
    return max(float(np.ptp(values)), floor) or 1.0


def metric_drop(reference: MetricValue, value: MetricValue) -> float:
    """Return how much worse a metric got, as a share of the reference; negative when better.

    Infinite when the metric is defined for the reference alone, 0 when for neither.
    """
    if reference.value is None:
        return 0.0
    if value.value is None:
        return float("inf")
    worse = reference.value - value.value
    if reference.direction == "lower":
        worse = -worse
    return worse / abs(reference.value) if reference.value else worse


def flipped_share(reference: Sequence[object], decisions: Sequence[object]) -> float | None:
    """Return the share of decisions that differ; None when nothing is decided."""
    decided = [(a, b) for a, b in zip(reference, decisions, strict=True) if a is not None]
    if not decided:
        return None
    return sum(a != b for a, b in decided) / len(decided)
